"""What names a plugin to TensorRT and to trtllm-build."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plugin:
    """A TensorRT plugin as the engine builder creates it.

    Attributes:
        name, version, namespace: the key in TensorRT's plugin registry.
        fields: names of its creation fields, in order.
        config_key: the PluginConfig entry that enables it.
    """

    name: str
    fields: tuple[str, ...]
    config_key: str
    version: str = "1"
    namespace: str = "tensorrt_llm"
