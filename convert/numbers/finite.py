"""Whether numbers are numbers: NaN and infinities show in the extremes, which are found without a mask of the whole."""

from __future__ import annotations

from ...plugins.lazy import torch

# Of which PyTorch finds no extremes until they are wider.
NARROW = ("float8_e4m3fn", "float8_e5m2")
AT_ONCE = 1 << 22


def finite(tensor: torch.Tensor) -> bool:
    """Whether every number of a tensor of any dtype is finite."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if str(tensor.dtype).removeprefix("torch.") in NARROW:
        return all(finite(piece.float()) for piece in tensor.reshape(-1).split(AT_ONCE))
    return bool(all_finite(tensor))


def all_finite(tensor: torch.Tensor) -> torch.Tensor:
    """The same of one that has numbers, as a bool [] on its device, for which nobody waits."""
    extremes = torch.stack(torch.aminmax(tensor))  # one NaN makes both of them NaN
    return torch.isfinite(extremes).all()
