"""A layer's functions where nobody looks at what is between them: one kernel normalizes, activates or divides, and
quantizes what it has made while it holds it."""

from __future__ import annotations

import torch

from ...plugins import gated_activation
from ..models.ends import quantizing_norm
from ..models.pieces import Linear, Mlp, Norm
from ..targets.trtllm.formats.base import Activation
from .layer_functions import LayerFunctions


class FusedFunctions(LayerFunctions):
    """As ``LayerFunctions`` compute them, to the bit but for the last one of an exponential."""

    def norm(self, norm: Norm, x: torch.Tensor) -> Activation:
        rounding = self.layer.rounding(self.behind_norm(norm))
        if rounding.sums:
            return super().norm(norm, x)
        flat, epsilon = x.view(-1, x.shape[-1]), self.runtime.model.norm_epsilon
        made = quantizing_norm(norm, flat, self.layer.norm(norm), epsilon, rounding.kind, rounding.scale)
        return Activation(made.y_or_q, made.scale)

    def product(self, mlp: Mlp, made: list[torch.Tensor]) -> Activation:
        name, rounding = self.runtime.activation_name, self.layer.rounding(self.group(mlp.last))
        if name is None or rounding.sums:
            return super().product(mlp, made)
        activated, *other = self.factors(mlp, made)
        rows = gated_activation.run(
            activated,
            other[0] if other else None,
            self.layer.divisor(mlp.last.name),
            activation=name,
            kind=rounding.kind,
            scale=rounding.scale,
        )
        return Activation(*rows)

    def read(self, linear: Linear, x: torch.Tensor) -> Activation:
        return self.layer.rounding(self.group(linear)).of(x.view(-1, x.shape[-1]), self.layer.divisor(linear.name))
