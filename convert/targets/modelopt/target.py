"""ModelOpt's unified folders as what a quantized model is for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ....plugins import fp8
from ....plugins.lazy import torch
from ...errors import InputError
from ...models.shapes import modules
from ...numbers.rounding import kept
from ...quantize.quantization import Quantization
from ..base import Tensors
from ..huggingface.format import Format
from ..huggingface.target import HuggingFace
from .formats import Awq, Fp8, Fp8Rowwise, ModelOptFormat

if TYPE_CHECKING:
    from ...quantize.layer import CacheReach

HF_QUANT_CONFIG = "hf_quant_config.json"
# Whose dialect it is: some readers look for the name.
PRODUCER = {"name": "modelopt", "version": "0.47.0"}
CACHE = {"type": "float", "num_bits": 8, "dynamic": False}
MIXED_PRECISION = "MIXED_PRECISION"
FACTORS_READ = ("o_proj", "down_proj")


class Unified(HuggingFace):
    """A folder in ModelOpt's dialect; config.json and hf_quant_config.json say the same, for some readers know one of
    them only."""

    mixture: ClassVar[str | None] = MIXED_PRECISION

    def cache(self, reach: CacheReach | None) -> Tensors:
        if self.precision.kv_cache is None:
            return {}
        _, key, value = self.precision.model.family.attention
        far = (1.0, 1.0) if reach is None else (reach.key, reach.value)
        names = f"{key}.k_scale", f"{value}.v_scale"
        dtype = getattr(torch, self.dtype)
        return {name: kept(torch.tensor(of / fp8.MAX), dtype) for name, of in zip(names, far, strict=True)}

    def said(self) -> dict[str, Any]:
        """What both files say of the layers."""
        if len(self.precision.quantized) > 1:
            return {"quant_algo": MIXED_PRECISION, "quantized_layers": dict(self.entries())}
        form = self.format_of(self.precision.quantized[0])
        assert isinstance(form, ModelOptFormat)
        return form.entry()

    def entries(self) -> list[tuple[str, dict[str, Any]]]:
        """What is said of each quantized linear of a mixture, by full name."""
        model, found = self.precision.model, []
        for index in range(model.num_hidden_layers):
            for group in model.family.groups:
                form = self.format_of(self.precision.layer(index)[group.name])
                if isinstance(form, ModelOptFormat):
                    found += [(self.prefix(index) + module, form.entry()) for module in modules(model, group)]
        return found

    def left_out(self) -> list[str]:
        """Full names of modules that stay in floating point."""
        model = self.precision.model
        outside = [name.removesuffix(".weight") for name in model.family.outside]
        return outside + [
            self.prefix(index) + module
            for index in range(model.num_hidden_layers)
            for group in model.family.groups
            if not self.precision.layer(index)[group.name].quantized
            for module in modules(model, group)
        ]

    def quantization(self) -> dict[str, Any]:
        cache = {"kv_cache_scheme": CACHE} if self.precision.kv_cache else {}
        said = {"quant_method": "modelopt", **self.said(), "ignore": self.left_out()}
        return said | cache | {"producer": PRODUCER}

    def configs(self) -> dict[str, dict[str, Any]]:
        if not self.precision.quantized:
            return super().configs()
        said = self.said() | {"kv_cache_quant_algo": self.precision.kv_cache, "exclude_modules": self.left_out()}
        return super().configs() | {HF_QUANT_CONFIG: {"producer": PRODUCER, "quantization": said}}


class ModelOpt(Unified):
    """A folder for TensorRT-LLM's PyTorch backend, and vLLM."""

    name = "modelopt"
    title = "ModelOpt's format (TensorRT-LLM from 1.3 on; FP8 also vLLM and SGLang)"
    formats: ClassVar[tuple[type[Format], ...]] = (Fp8, Fp8Rowwise, Awq)

    def check(self, how: Quantization) -> None:
        super().check(how)
        for group in self.precision.model.family.groups if self.factors else ():
            for module in modules(self.precision.model, group) if group.norm is None else ():
                if not module.endswith(FACTORS_READ):
                    read = " and ".join(FACTORS_READ)
                    raise InputError(
                        f"{module}: TensorRT-LLM reads factors of inputs in {read} alone; use --quant FP8, or --target "
                        "compressed-tensors"
                    )

    @property
    def factors(self) -> bool:
        """Whether inputs of some linears are multiplied by factors of their channels."""
        return any(scheme.prescaled for scheme in self.precision.quantized)
