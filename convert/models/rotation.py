"""Rotate the residual stream, so that no output row of a linear stands out from the others.

    h R instead of h, R orthogonal:  RMS(h R) = RMS(h), hence  norm(h) W' = norm(h R) (W R)'

once the norm's weight is folded into W. Every matrix that reads the stream becomes W R, every one that writes
to it R' W; the float model computes what it did. A rotation spreads the few huge hidden channels of a model
over all of them, which is what one weight scale for a whole matrix needs.

Ashkboos et al. 2024, "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", section 4 (stage 1a). R is the
discrete Hartley transform with random signs: orthogonal for every size, its entries at most sqrt(2 / d).
"""

from __future__ import annotations

import math

import torch

from .model import Model

Tensors = dict[str, torch.Tensor]
# Rows rotated at once: bounds the memory of a large embedding's transform.
ROWS = 8192


class Rotation:
    """R of one model: ``rotate(x)`` is x R, ``restore(y)`` is y R'.

    Args:
        size: d, the hidden size.
        seed: draws the signs.
    """

    def __init__(self, size: int, seed: int):
        draw = torch.Generator().manual_seed(seed)
        self.signs = torch.randint(2, (size,), generator=draw).float() * 2 - 1

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        """[..., d] -> float32 [..., d]."""
        signs = self.signs.to(x.device)
        if x.dim() == 1:
            return hartley(x.float() * signs)
        return torch.cat([hartley(rows.float() * signs) for rows in x.split(ROWS)])

    def restore(self, x: torch.Tensor) -> torch.Tensor:
        """The inverse of ``rotate``."""
        return hartley(x.float()) * self.signs.to(x.device)

    def layer(self, source: Tensors, model: Model) -> Tensors:
        """A decoder layer of the rotated model; its norm weights become ones."""
        family, rotated = model.family, dict(source)
        for group in family.groups:
            for part in family.parts(group):
                weight = source[f"{part}.weight"].float()
                if group.norm is not None:
                    norm = source[f"{family.norm(group.norm).tensor}.weight"].float()
                    rotated[f"{part}.weight"] = self.rotate(weight * norm)
                else:
                    rotated[f"{part}.weight"] = self.rotate(weight.t()).t().contiguous()
                    if f"{part}.bias" in source:
                        rotated[f"{part}.bias"] = self.rotate(source[f"{part}.bias"])
        for name in (f"{norm.tensor}.weight" for norm in family.norms):
            rotated[name] = torch.ones_like(source[name], dtype=torch.float32)
        return rotated


def hartley(x: torch.Tensor) -> torch.Tensor:
    """x C with C[j, k] = (cos + sin)(2 pi j k / d) / sqrt(d), its own inverse (Bracewell 1983). x: [..., d]."""
    spectrum = torch.fft.fft(x)
    transformed: torch.Tensor = (spectrum.real - spectrum.imag) / math.sqrt(x.shape[-1])
    return transformed
