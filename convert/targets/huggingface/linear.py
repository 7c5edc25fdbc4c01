"""What living runtimes compute of a linear that is quantized.

    static       q = round(x p / s_x + z_x)     s_x, z_x from the file
    per token    q = round(x p / s_x)           s_x = max|x| / levels, at run time
    y = (q - z_x) @ (W_q - z_w)' s_x s_w        integers exactly, everything else in float32

levels is 127 in the kernels of vLLM and SGLang, 127.5 in transformers (compressed-tensors), 448 for FP8. Weights whose
input stays in floating point are dequantized in the runtime's dtype before the product.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ....plugins import float_product, fp8, int8
from ....plugins.arithmetic import quotients
from ....plugins.float_product import FloatProduct
from ....plugins.lazy import torch
from ...numbers.quantized import QuantizedLinear
from ...sources.readymade.kinds import Inputs

# What stands for the range of a token that is all zeros.
LEAST = 1e-30


@dataclass(frozen=True)
class Reader:
    """Who executes a folder.

    Attributes:
        levels: of int8 per token.
        half: scales of FP8 and of groups are float16, as in Edge-LLM's graphs.
        whole: products of these kinds of inputs are scaled afterwards; those of others are of dequantized numbers.
    """

    levels: float = 127.0
    half: bool = False
    whole: tuple[str, ...] = ("int8", "fp8")


READERS = {
    "kernels": Reader(),
    "transformers": Reader(127.5, whole=()),
    "edge": Reader(half=True, whole=("int8",)),
}


@dataclass(frozen=True)
class FolderLinear:
    """A linear of a folder.

    Attributes:
        inputs: how its input is rounded.
    """

    made: QuantizedLinear
    inputs: Inputs
    reader: Reader = READERS["kernels"]

    @staticmethod
    def of(made: QuantizedLinear, inputs: Inputs, reader: Reader) -> FolderLinear:
        """A linear as a reader has it."""
        if reader.half and inputs.kind != "int8":
            made = replace(made, scale=made.scale.half().float())
            if made.range is not None:
                made = replace(made, range=fp8.MAX * float(torch.tensor(made.range / fp8.MAX).half()))
        return FolderLinear(made, inputs, reader)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """y in x's dtype, [tokens, out]; x: [tokens, in], in the runtime's dtype."""
        x = self.prescaled(x)
        if self.inputs.kind is None:
            return (x.float() @ self.made.dequantize().to(x.dtype).float().t()).to(x.dtype)
        return self.multiplied(x, self.made.values if self.whole else self.made.dequantize())

    def prepared(self, dtype: torch.dtype) -> FloatProduct:
        """``product`` of x in a dtype, for many calls."""
        made = self.made
        if self.inputs.kind is None:
            run = float_product.prepare(made.dequantize().to(dtype))
            return run if made.smoother is None else lambda x: run(self.prescaled(x))
        held = (
            made.dequantize() if not self.whole else made.values if self.inputs.kind == "int8" else made.values.float()
        )
        own = replace(self, made=replace(made, values=held))
        return lambda x: own.multiplied(own.prescaled(x), held)

    @property
    def whole(self) -> bool:
        """Whether a product is of rounded numbers and scaled afterwards."""
        centred = self.made.input_zero == 0 if self.inputs.static else self.inputs.symmetric
        return self.inputs.kind in self.reader.whole and self.made.zero is None and centred

    def multiplied(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """y of x behind ``prescaled``; weight: values where products are whole, else dequantized."""
        q, scale, zero = self.rounded(x.float())
        if self.whole:
            product = fp8.matmul if self.inputs.kind == "fp8" else int8.matmul
            return self.scaled(product(q, weight).float(), scale).to(x.dtype)
        centred = q.float() if zero is None else q.float() - zero
        return ((centred * scale) @ weight.t()).to(x.dtype)

    def prescaled(self, x: torch.Tensor) -> torch.Tensor:
        """x as it is divided, where something divides it."""
        return x if self.made.smoother is None else (x.float() * self.made.prescale()).to(x.dtype)

    def scaled(self, sums: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """A product of quantized values times the scales of both; scale: of tokens."""
        return sums * scale * self.made.scale.reshape(1, -1)

    def rounded(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """(q, s_x, z_x) of float32 [tokens, in]."""
        top = fp8.MAX if self.inputs.kind == "fp8" else 127.0
        saturate = fp8.saturate if self.inputs.kind == "fp8" else int8.saturate
        if self.inputs.static:
            assert self.made.range is not None
            # Filled on the device: nothing is copied to it while a pass is recorded.
            scale, zero = x.new_full((), self.made.range / top), float(self.made.input_zero)
            q = saturate(x / scale + zero)
            return q, scale, x.new_full((), zero) if zero else None
        if not self.inputs.symmetric:
            least, most = x.amin(1, keepdim=True).clamp_max(0), x.amax(1, keepdim=True).clamp_min(0)
            scale = quotients(255, most - least)[1].clamp_min(LEAST)
            zeros = (-128 - least / scale).clamp(-128, 127).round()
            return saturate(x / scale + zeros), scale, zeros
        levels = top if self.inputs.kind == "fp8" else self.reader.levels
        scale = quotients(levels, x.abs().amax(1, keepdim=True))[1].clamp_min(LEAST)
        return saturate(x / scale), scale, None
