"""What arguments of operators may be: whatever a kernel would misread, or read past, is a ValueError."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .gated_activation import ACTIVATIONS
from .packing import ORDERS

DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
FLOATS = (torch.float16, torch.bfloat16)
OR_FLOAT32 = (*FLOATS, torch.float32)
# Matrices whose rows kernels read at any stride.
STRIDED = ("x", "residual", "gate", "up", "qkv")


def is_matrix(x: Tensor, dtypes: tuple[torch.dtype, ...]) -> bool:
    return x.dtype in dtypes and x.dim() == 2 and x.shape[1] > 0


def is_like(x: Tensor, other: Tensor) -> bool:
    return (x.shape, x.dtype) == (other.shape, other.dtype)


def is_channels(t: Tensor | None, x: Tensor) -> bool:
    return t is None or (t.dtype in OR_FLOAT32 and t.shape == x.shape[1:])


def is_scale(t: Tensor, *shapes: tuple[int, ...]) -> bool:
    return t.dtype == torch.float32 and ((t.numel() == 1 and t.dim() <= 2) or tuple(t.shape) in shapes)


# What arguments may be, by their names: in words, and whether one is that, of (it, the first one, all by name).
Rule = tuple[str, Callable[[Any, Tensor, dict[str, Any]], bool]]
ROWS: Rule = "float16 or bfloat16 [tokens, channels]", lambda t, x, _: is_matrix(t, FLOATS)
LIKE: Rule = "the first matrix's shape and dtype", lambda t, x, _: is_like(t, x)
CHANNELS: Rule = "float16, bfloat16 or float32 [channels]", lambda t, x, _: is_channels(t, x)
RULES: dict[str, Rule] = {
    "x": ROWS,
    "gate": ROWS,
    "residual": LIKE,
    "up": LIKE,
    "weight": CHANNELS,
    "bias": CHANNELS,
    "smoother": (
        f"{CHANNELS[0]} or [1, channels]",
        lambda t, x, _: t is None or (t.shape[:-1] in ((), (1,)) and is_channels(t.reshape(-1), x)),
    ),
    "scale": ("float32 of one element", lambda t, x, _: is_scale(t)),
    "eps": ("a finite number, 0 or more,", lambda eps, x, _: 0 <= eps < math.inf),
    "kind": ("int8 or fp8", lambda kind, x, _: kind in DTYPES),
    "activation": (f"one of {', '.join(ACTIVATIONS)}", lambda name, x, _: name in ACTIVATIONS),
}
LAYER_NORM = RULES | {
    "x": (f"{ROWS[0]}, channels even,", lambda t, x, _: is_matrix(t, FLOATS) and t.shape[1] % 2 == 0),
}
PRODUCT: dict[str, Rule] = {
    "x": ("int8 [tokens, in]", lambda t, x, _: is_matrix(t, (torch.int8,))),
    "weight": (
        "x's dtype and channels, [out, in],",
        lambda t, x, _: is_matrix(t, (x.dtype,)) and t.shape[1] == x.shape[1],
    ),
    "scale_a": ("float32 [tokens, 1] or of one element", lambda t, x, _: is_scale(t, (len(x), 1))),
    "scale_b": (
        "float32 [1, out] or of one element",
        lambda t, x, given: is_scale(t, (1, len(given["weight"])), (len(given["weight"]),)),
    ),
    "dtype": ("float16, bfloat16 or float32", lambda dtype, x, _: dtype in OR_FLOAT32),
    "bias": (
        "[out] in the dtype asked for",
        lambda t, x, given: t is None or (t.dtype, t.shape) == (given["dtype"], given["weight"].shape[:1]),
    ),
}
FP8_PRODUCT = PRODUCT | {"x": ("e4m3 [tokens, in]", lambda t, x, _: is_matrix(t, (torch.float8_e4m3fn,)))}


def check(given: dict[str, Any], rules: dict[str, Rule]) -> None:
    """Raise ValueError for an argument that is not what it has to be: for the first one, in the order of the rules."""
    first = next(iter(given.values()))
    for name, (words, holds) in rules.items():
        if name in given and not holds(given[name], first, given):
            raise ValueError(f"{name} is {described(given[name])}; {words} is needed")


def check_there(given: dict[str, Any], tensors: Iterable[str], rules: dict[str, Rule]) -> None:
    """Raise ValueError for a tensor that is needed and None."""
    for name in tensors:
        if given[name] is None:
            raise ValueError(f"{name} is None; {rules[name][0]} is needed")


def check_devices(arguments: Iterable[Any]) -> None:
    """Raise ValueError for tensors on several devices."""
    devices = sorted({str(value.device) for value in arguments if isinstance(value, Tensor)})
    if len(devices) > 1:
        raise ValueError(f"tensors are on {' and '.join(devices)}; move all to one device")


def described(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else repr(value)


def readable(name: str, value: Any) -> Any:
    """An argument, a tensor as kernels read it: copied where it lies otherwise."""
    if not isinstance(value, Tensor) or (name in STRIDED and value.stride(-1) == 1):
        return value
    return value.contiguous()


def are_group_scales(scale: Tensor, x: Tensor) -> bool:
    """Whether they are of a weight [out, in] for x, in sizes that kernels take."""
    if scale.dtype != x.dtype or scale.dim() != 2:
        return False
    (groups, out), channels = scale.shape, x.shape[1]
    return channels % 64 == out % 64 == 0 and (groups == 1 or channels in (64 * groups, 128 * groups))


def holds_integers(packed: Tensor, x: Tensor, given: dict[str, Any]) -> bool:
    return packed.nbytes * 8 == int(given["scale"].shape[1] * x.shape[1] * given["bits"])


def is_vector(t: Tensor | None, dtype: torch.dtype, size: int) -> bool:
    return t is None or (t.dtype == dtype and tuple(t.shape) == (size,))


PACKED_PRODUCT: dict[str, Rule] = {
    "x": ROWS,
    "scale": (
        "[groups, out] in x's dtype, one group or groups of 64 or 128 channels, in and out multiples of 64,",
        lambda t, x, _: are_group_scales(t, x),
    ),
    "bits": ("4 or 8", lambda bits, x, _: bits in (4, 8)),
    "packed": ("the bytes of [out, in] integers of so many bits", holds_integers),
    "zero": ("the scale's shape and dtype", lambda t, x, given: t is None or is_like(t, given["scale"])),
    "prequant": (
        "[in] or [1, in] in x's dtype",
        lambda t, x, _: t is None or is_vector(t.squeeze(0) if t.dim() == 2 else t, x.dtype, x.shape[1]),
    ),
    "bias": ("[out] in x's dtype", lambda t, x, given: is_vector(t, x.dtype, given["scale"].shape[1])),
    "layout": (
        "rows, sm80, sm90 or fp8, with 8 bits sm80 or sm90,",
        lambda name, x, given: name in (("sm80", "sm90") if given["bits"] == 8 else ORDERS),
    ),
}


def holds_fragments(packed: Tensor, x: Tensor) -> bool:
    """Whether packed are 4-bit integers [out, in] for x, in sizes that QServe's kernel takes."""
    channels = x.shape[1]
    sized = channels % 128 == 0 and packed.dim() == 2 and packed.shape[0] % 32 == 0
    return packed.dtype == torch.int8 and sized and packed.shape[1] * 2 == channels


def is_of_outputs(t: Tensor, given: dict[str, Any]) -> bool:
    return is_vector(t, torch.float16, len(given["packed"]))


def is_of_groups(t: Tensor, x: Tensor, given: dict[str, Any]) -> bool:
    return t.dtype == torch.int8 and tuple(t.shape) == (x.shape[1] // 128, len(given["packed"]))


OF_OUTPUTS: Rule = "float16 [out]", lambda t, x, given: is_of_outputs(t, given)
OF_GROUPS: Rule = "int8 [in / 128, out]", is_of_groups
OF_TOKENS: Rule = (
    "float16 [tokens, 1]",
    lambda t, x, _: t.dtype == torch.float16 and tuple(t.shape) == (len(x), 1),
)
QSERVE: dict[str, Rule] = {
    "x": PRODUCT["x"],
    "act_scales": OF_TOKENS,
    "packed": (
        "int8 [out, in / 2], in a multiple of 128, out of 32,",
        lambda t, x, _: holds_fragments(t, x),
    ),
    "s1_scales": OF_OUTPUTS,
}
QSERVE_PER_GROUP = QSERVE | {"s2_scales": OF_GROUPS, "s2_zeros": OF_GROUPS}
QSERVE_PER_CHANNEL = QSERVE | {"act_sums": OF_TOKENS, "s1_szeros": OF_OUTPUTS}
