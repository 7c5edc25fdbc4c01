"""What names a plugin to TensorRT and to trtllm-build, and where it can be used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# GPU generations as inclusive ranges of SM numbers: 80 to 88 Ampere, 89 Ada, 90 Hopper, 100 to 119 data-centre
# Blackwell, 120 and above consumer Blackwell.
Generations = tuple[tuple[int, int], ...]
ANY: Generations = ((80, 90), (100, 121))
# The engine builder refuses INT8 and INT4 on SM 100 to 119.
INTEGER: Generations = ((80, 90), (120, 121))
# FP8 arithmetic begins with Ada.
FP8: Generations = ((89, 90), (100, 121))
# Of it, what the builder takes where scales are per channel or token, and where kernels mix it with 4-bit integers.
FP8_SCALED: Generations = ((89, 90), (120, 121))
FP8_INTEGER: Generations = ((89, 90),)

Site = Literal[
    "linear", "fused linear", "column linear", "rmsnorm", "layernorm", "input", "attention", "experts", "none"
]


@dataclass(frozen=True)
class Plugin:
    """A TensorRT plugin as the engine builder creates it.

    Attributes:
        name, version, namespace: the key in TensorRT's plugin registry.
        fields: names of its creation fields, in order.
        config_key: the PluginConfig entry that enables it.
        site: what makes one node of it in a decoder layer: every "linear", every "fused linear" (gate and up are
            one), every "column linear" (cut along in_features by tensor parallelism), every "rmsnorm" or "layernorm"
            before linears, every "input" of linears that no norm makes, the "attention", the
            "experts" of a mixture; "none" for plugins outside the layers.
        gpus: the GPU generations that run it.
        dtypes: engine dtypes it is compiled for.
        in_multiple, out_multiple: what a linear's in_features and out_features on one rank must be multiples of.
        typed: config_key takes a dtype; otherwise true or false.
        since, until: the TensorRT-LLM releases that have it, of those that this project builds for.
    """

    name: str
    fields: tuple[str, ...]
    config_key: str
    site: Site
    gpus: Generations = ANY
    dtypes: tuple[str, ...] = ("float16", "bfloat16")
    in_multiple: int = 1
    out_multiple: int = 1
    typed: bool = True
    since: str = "0.16.0"
    until: str = "1.2.1"
    version: str = "1"
    namespace: str = "tensorrt_llm"


def within(sm: int, generations: Generations) -> bool:
    return any(first <= sm <= last for first, last in generations)
