"""Which parts of a model a budget of floating-point weights is best spent on.

Of the parts with errors E_p and sizes n_p that set is wanted whose sum of E_p is the largest while the sum of n_p stays
within the budget: a knapsack, filled in the order of E_p / n_p (Dantzig 1957, "Discrete-Variable Extremum Problems").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..models.model import Model


@dataclass(frozen=True)
class Part:
    """Groups of linears that are quantized together or not at all.

    Attributes:
        layer: its number.
        groups: their names.
        weights: how many weights they have.
        error: what quantizing them costs.
    """

    layer: int
    groups: tuple[str, ...]
    weights: int
    error: float

    def described(self, model: Model) -> dict[str, Any]:
        """The part as it stands in the manifest, its linears under names that --exclude takes."""
        family = model.family
        parts = [part for group in family.groups if group.name in self.groups for part in family.parts(group)]
        names = dict.fromkeys(family.layer.format(i=self.layer) + family.view(part).tensor for part in parts)
        return {"linears": list(names), "weights": self.weights, "error": self.error}


@dataclass(frozen=True)
class Spent:
    """What became of a budget.

    Attributes:
        percent: the budget, of the weights of all parts.
        in_float, quantized: the parts, those of the largest error a weight first.
    """

    percent: float
    in_float: list[Part]
    quantized: list[Part]

    @staticmethod
    def on(parts: Sequence[Part], percent: float) -> Spent:
        """The parts in the order of their errors a weight, each that still fits left in floating point."""
        room = sum(part.weights for part in parts) * percent / 100
        spent = Spent(percent, [], [])
        for part in sorted(parts, key=lambda part: (-part.error / part.weights, part.layer, part.groups)):
            fits = part.error > 0 and part.weights <= room
            room -= part.weights if fits else 0
            (spent.in_float if fits else spent.quantized).append(part)
        return spent

    def described(self, model: Model) -> dict[str, Any]:
        """What the manifest says of it."""
        return {
            "percent": self.percent,
            "weights": sum(part.weights for part in self.in_float + self.quantized),
            "in_float": [part.described(model) for part in self.in_float],
            "quantized": [part.described(model) for part in self.quantized],
        }
