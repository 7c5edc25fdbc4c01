"""How a quantization decides, whatever the scheme."""

from __future__ import annotations

from dataclasses import dataclass

from .scheme import GPTQ, Scheme


@dataclass(frozen=True)
class QuantizeOptions:
    """The choices that change a checkpoint's numbers but not its tensors.

    Attributes:
        alpha: SmoothQuant's migration strength for every group, or None to search it group by group.
        act_range: "auto", or a method of ranges.METHODS, for SmoothQuant's static activation scales.
        fold: fold factors into the linear before o_proj and down_proj where that is exact, and give every output row
            of qkv its own scale. False writes what upstream's converter writes.
        rounding: "nearest", "gptq", or "auto": what the scheme is named after.
        symmetric: 4- and 8-bit groups of GPTQ without zero points.
        repacks: the source is quantized already, and its integers are kept.
    """

    alpha: float | None = None
    act_range: str = "auto"
    fold: bool = True
    rounding: str = "auto"
    symmetric: bool = False
    repacks: bool = False

    def gptq(self, scheme: Scheme) -> bool:
        """Whether weights are rounded by GPTQ."""
        if self.repacks or not scheme.takes_gptq:
            return False
        return (scheme.rounding if self.rounding == "auto" else self.rounding) == GPTQ
