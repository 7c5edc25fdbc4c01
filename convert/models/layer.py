"""A decoder layer between reading and rounding: float32 weights that may still be scaled.

Names are those of logical linears (Hugging Face's, where a file holds each by itself) for weights and biases, and
TensorRT-LLM's for norms and groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from .model import Model
from .pieces import Group, Linear

Tensors = dict[str, torch.Tensor]


class Weights(Mapping[str, torch.Tensor]):
    """Weights of logical linears, float32 whoever asks; some are kept in the dtype that they came in.

    Args:
        kept: those.
    """

    def __init__(self, tensors: Tensors, kept: frozenset[str] = frozenset()):
        self.kept = kept
        self.tensors = {part: tensor if part in kept else tensor.float() for part, tensor in tensors.items()}

    def __getitem__(self, part: str) -> torch.Tensor:
        return self.tensors[part].float()

    def __setitem__(self, part: str, weight: torch.Tensor) -> None:
        self.tensors[part] = weight.to(self.tensors[part].dtype) if part in self.kept else weight

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def held(self, part: str, divisor: torch.Tensor | None) -> torch.Tensor:
        """One of them over a divisor, where there is one; else as it is kept."""
        return self.tensors[part] if divisor is None else self[part] / divisor


@dataclass
class Layer:
    """A decoder layer's weights.

    Attributes:
        norms: weights and biases of the norms, float32 [hidden], by TensorRT-LLM name and suffix.
        gates: weights of linears that are never quantized, float32, by TensorRT-LLM name and suffix.
        weights, biases: float32, by Hugging Face part; experts' are kept in their source's dtype.
        factors: s of each group, float32 [in]: its input was divided by it, in whatever places.
        smoothers: what the runtime still divides a group's input by, float32 [in], by group name.
        ranges: the largest value of each group's scaled input, by group name; None per token.
        folded: what the output rows of a feeding linear were divided by, by Hugging Face part.
    """

    model: Model
    norms: Tensors
    gates: Tensors
    weights: Weights
    biases: Tensors
    factors: Tensors = field(default_factory=dict)
    smoothers: Tensors = field(default_factory=dict)
    ranges: dict[str, float | None] = field(default_factory=dict)
    folded: Tensors = field(default_factory=dict)

    @staticmethod
    def of(source: Tensors, model: Model) -> Layer:
        """The layer of some Hugging Face tensors, in any floating dtype."""
        family = model.family
        parts = [part for linear in family.linears for part in linear.parts]
        experts = frozenset(part for linear in family.linears if linear.stacked for part in linear.parts)
        biased = [part for linear in family.linears if model.has_bias(linear.name) for part in linear.parts]
        return Layer(
            model,
            norms={
                f"{norm.name}.{suffix}": source[f"{norm.tensor}.{suffix}"].float()
                for norm in family.all_norms
                for suffix in norm.suffixes
            },
            gates={f"{gate.name}.weight": source[f"{gate.tensor}.weight"].float() for gate in family.gates},
            weights=Weights({part: source[f"{part}.weight"] for part in parts}, kept=experts),
            biases={part: source[f"{part}.bias"].float() for part in biased},
        )

    def weight(self, linear: Linear) -> torch.Tensor:
        """The fused weight, float32 [out, in]."""
        return torch.cat([self.weights[part] for part in linear.parts])

    def set_weight(self, linear: Linear, weight: torch.Tensor) -> None:
        """Replace the fused weight, float32 [out, in]."""
        pieces = weight.split(self.model.out_features(linear.name))
        for part, piece in zip(linear.parts, pieces, strict=True):
            self.weights[part] = piece

    def common(self) -> Tensors:
        """The tensors that every scheme stores: norms, gates and biases, by TensorRT-LLM name."""
        tensors = self.norms | self.gates
        for linear in self.model.family.linears:
            if self.model.has_bias(linear.name):
                tensors[f"{linear.name}.bias"] = torch.cat([self.biases[part] for part in linear.parts])
        return tensors

    def set_common(self, tensors: Tensors) -> None:
        """Hold norms and biases as they are stored; the inverse of ``common``, in float32. Gates stay exact."""
        self.norms = {name: tensors[name].float() for name in self.norms}
        for linear in self.model.family.linears:
            if self.model.has_bias(linear.name):
                pieces = tensors[f"{linear.name}.bias"].float().split(self.model.out_features(linear.name))
                self.biases |= dict(zip(linear.parts, pieces, strict=True))

    def computed(self) -> Tensors:
        """Hugging Face tensors of a layer that computes what this one does, runtime divisions included."""
        family = self.model.family
        tensors = {
            f"{norm.tensor}.{suffix}": self.norms[f"{norm.name}.{suffix}"]
            for norm in family.all_norms
            for suffix in norm.suffixes
        }
        tensors |= {f"{gate.tensor}.weight": self.gates[f"{gate.name}.weight"] for gate in family.gates}
        tensors |= {f"{part}.bias": bias for part, bias in self.biases.items()}
        for group in family.groups:
            for part in self.model.family.parts(group):
                smoother = self.smoothers.get(group.name)
                tensors[f"{part}.weight"] = self.weights.held(part, smoother)
        return tensors

    def unscaled(self, group: Group) -> Tensors:
        """Hugging Face tensors of a group's linears, for an input that nothing has divided."""
        parts = self.model.family.parts(group)
        tensors = {f"{part}.weight": self.weights.held(part, self.factors.get(group.name)) for part in parts}
        return tensors | {f"{part}.bias": self.biases[part] for part in parts if part in self.biases}

    def may_fold(self, group: Group, groups: Sequence[Group]) -> bool:
        """Whether a factor of a group's input may go into the rows of the linear that feeds it.

        Each of them must make one channel of the input, which is not so where heads share values, and the linear must
        be of one of the groups that are quantized together, else it may be rounded already.
        """
        if group.feeder is None or self.model.family.group_of_part(group.feeder) not in groups:
            return False
        return self.weights[group.feeder].shape[0] == self.weights[self.model.family.parts(group)[0]].shape[1]

    def feeding(self, group: Group, groups: Sequence[Group], shared: bool = False) -> torch.Tensor | None:
        """The row of the feeding linear that makes each channel of a group's input, int64 [in]; None where no factor
        may go into its rows (see ``may_fold``).

        Args:
            shared: one row may make several channels, as where heads share values; they must have one factor then.
        """
        if self.may_fold(group, groups):
            assert group.feeder is not None
            return torch.arange(len(self.weights[group.feeder]), device=self.weights[group.feeder].device)
        if not shared or group.feeder is None or group.feeder != self.model.family.attention[2]:
            return None
        if self.model.family.group_of_part(group.feeder) not in groups:
            return None
        value = self.weights[group.feeder]
        heads = torch.arange(len(value), device=value.device).view(self.model.num_key_value_heads, -1)
        times = self.model.num_attention_heads // self.model.num_key_value_heads
        return heads.repeat_interleave(times, 0).flatten()

    def scale_input(
        self, group: Group, s: torch.Tensor, folded: torch.Tensor | None = None, rows: torch.Tensor | None = None
    ) -> None:
        """Multiply the weights that read a group's input by s, and divide whatever makes it; exact in float.

        Args:
            s: float32 [in].
            folded: the part of s that the feeder's rows are divided by, float32 [its rows]; the runtime divides by the
                rest. Without it the runtime divides by all of s. A group behind a norm folds into the norm.
            rows: as ``feeding`` has it, where a row makes several channels.
        """
        self.factors[group.name] = s
        for part in self.model.family.parts(group):
            self.weights[part] = self.weights[part] * s
        if group.norm is not None:
            for suffix in self.model.family.norm(group.norm).suffixes:
                self.norms[f"{group.norm}.{suffix}"] = self.norms[f"{group.norm}.{suffix}"] / s
            self.smoothers[group.name] = torch.ones_like(s)
            return
        if group.feeder is None:
            self.smoothers[group.name] = s
            return
        feeder = self.weights[group.feeder]
        self.folded[group.feeder] = feeder.new_ones(feeder.shape[0]) if folded is None else folded
        if folded is not None:
            self.weights[group.feeder] = feeder / folded[:, None]
            if group.feeder in self.biases:
                self.biases[group.feeder] = self.biases[group.feeder] / folded
            s = s / (folded if rows is None else folded[rows])
        self.smoothers[group.name] = s
