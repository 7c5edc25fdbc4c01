"""compressed-tensors as what a quantized model is for.

Its runtimes scale no input: what a norm or the linear before cannot take is not scaled (``Scheme.folded``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ....plugins import fp8
from ....plugins.lazy import torch
from ...models.shapes import modules
from ...numbers.rounding import kept
from ..base import Tensors
from ..huggingface.format import Format
from ..huggingface.target import HuggingFace
from .formats import CompressedFormat, Float8, Int8, Packed

if TYPE_CHECKING:
    from ...quantize.layer import CacheReach

CACHE = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}


class CompressedTensors(HuggingFace):
    """A folder for vLLM, SGLang and transformers."""

    name = "compressed-tensors"
    title = "compressed-tensors (vLLM, SGLang, transformers)"
    formats: ClassVar[tuple[type[Format], ...]] = (Int8, Float8, Packed)

    def cache(self, reach: CacheReach | None) -> Tensors:
        if self.precision.kv_cache is None:
            return {}
        module = self.precision.model.family.attention[0].rpartition(".")[0]
        key, value = (1.0, 1.0) if reach is None else (reach.key, reach.value)
        dtype = getattr(torch, self.dtype)
        scales = {"k_scale": key, "v_scale": value}
        return {f"{module}.{name}": kept(torch.tensor([of / fp8.MAX]), dtype).to(dtype) for name, of in scales.items()}

    def quantization(self) -> dict[str, Any]:
        form = self.format_of(self.precision.quantized[0])
        assert isinstance(form, CompressedFormat)
        group = {
            "targets": ["Linear"],
            "format": form.compression,
            "weights": form.weights(),
            "input_activations": form.input_activations(),
            "output_activations": None,
        }
        return {
            "quant_method": "compressed-tensors",
            "format": form.compression,
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": [*self.heads(), *self.left_out()],
            "kv_cache_scheme": CACHE if self.precision.kv_cache else None,
        }

    def heads(self) -> list[str]:
        """The output projection, which is a Linear too."""
        head = self.precision.model.family.head
        return [] if head is None else [head.removesuffix(".weight")]

    def left_out(self) -> list[str]:
        """Full names of the decoder's linears that stay in floating point."""
        model = self.precision.model
        return [
            self.prefix(index) + module
            for index in range(model.num_hidden_layers)
            for group in model.family.groups
            if not self.precision.layer(index)[group.name].quantized
            for module in modules(model, group)
        ]
