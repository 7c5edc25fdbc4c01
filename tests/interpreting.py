"""Triton's interpreter, whose conversions to narrow floats cut bits off that the GPU's round by."""

from __future__ import annotations

from typing import Any

import numpy
import torch

DTYPES = {
    "fp8e4nv": torch.float8_e4m3fn,
    "fp8e5": torch.float8_e5m2,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "fp64": torch.float64,
}
BITS = {1: numpy.uint8, 2: numpy.uint16, 4: numpy.uint32, 8: numpy.uint64}


def converted(values: Any, source: Any, target: Any, rounding_mode: Any) -> Any:
    """Bits of floats of one dtype -> bits of the nearest of another, half to even."""
    held = torch.frombuffer(bytearray(values.tobytes()), dtype=DTYPES[source.name]).to(DTYPES[target.name])
    return numpy.frombuffer(held.view(torch.uint8).numpy().tobytes(), BITS[held.element_size()]).reshape(values.shape)


def widened(builder: Any, operand: Any) -> Any:
    """bfloat16 as float32; the interpreter multiplies its bits."""
    return builder.cast_impl(operand, builder.get_float_ty()) if operand.dtype.scalar.name == "bf16" else operand


def mend() -> None:
    """Let the interpreter round, take bfloat16 in products for what it is, spread truths as such over a tensor, and
    count loops to numbers that a kernel computes, which newer NumPy refuses."""
    from triton.runtime import interpreter

    interpreter._convert_float = converted
    product = interpreter.InterpreterBuilder.create_dot

    def create_dot(builder: Any, a: Any, b: Any, *rest: Any) -> Any:
        return product(builder, *(widened(builder, x) for x in (a, b)), *rest)

    interpreter.InterpreterBuilder.create_dot = create_dot
    splat = interpreter.InterpreterBuilder.create_splat

    def create_splat(builder: Any, shape: Any, value: Any) -> Any:
        made = splat(builder, shape, value)
        made.data = made.data.astype(bool) if value.data.dtype == bool else made.data
        return made

    interpreter.InterpreterBuilder.create_splat = create_splat
    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patched
