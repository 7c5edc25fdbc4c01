"""How one whole tensor of a layer lies on tensor-parallel ranks, and layers on pipeline stages.

Shapes are written with named axes, so that one description gives both a tensor's shape and its cut: a
tensor is cut along "out" where its linear is cut by rows or heads, along "in" where it is cut by
columns, and is whole on every rank otherwise.

    ("out", "in")   a weight            (1, "out")   a scale per output channel
    (1, "in")       a smoother          (1, 1)       one number
    ("groups", "out")   a scale per group of input channels
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ....plugins.lazy import torch
from ...errors import InputError
from ...models.model import Model
from ...models.pieces import COLUMNS, HEADS, Linear
from .storage import PLAIN, Storage
from .values import FINITE, Values, Zeros

Axis = int | str
INT8, FLOAT8, FLOAT16, FLOAT32, MODEL_DTYPE = "int8", "float8_e4m3fn", "float16", "float32", "model"


@dataclass(frozen=True)
class Mapping:
    """Tensor and pipeline parallelism; rank = pp_rank * tp_size + tp_rank.

    Attributes:
        moe_ep_size: parts that the experts of a mixture are dealt out to; moe_tp_size ranks have each, and cut its
            experts.
    """

    tp_size: int = 1
    pp_size: int = 1
    moe_ep_size: int = 1

    @property
    def moe_tp_size(self) -> int:
        return self.tp_size // self.moe_ep_size

    def share(self, linear: Linear | None, tp_rank: int) -> tuple[int, int]:
        """(number of pieces that a linear is cut into, the one of a rank)."""
        if linear is None or linear.expert is None:
            return self.tp_size, tp_rank
        return self.moe_tp_size, tp_rank // self.moe_ep_size

    def experts(self, model: Model, tp_rank: int) -> range:
        """The experts of one rank."""
        size = model.num_experts // self.moe_ep_size
        place = tp_rank % self.moe_ep_size
        return range(place * size, (place + 1) * size)

    def holds(self, linear: Linear | None, model: Model, tp_rank: int) -> bool:
        """Whether a rank has a linear's tensors: an expert's are only where it is."""
        return linear is None or linear.expert is None or linear.expert in self.experts(model, tp_rank)

    @property
    def world_size(self) -> int:
        return self.tp_size * self.pp_size

    def stages(self, layers: int) -> list[range]:
        """The consecutive layers of each pipeline stage."""
        size = layers // self.pp_size
        return [range(stage * size, (stage + 1) * size) for stage in range(self.pp_size)]

    def check(self, model: Model) -> None:
        """Raise InputError, naming what would work, unless the model can be cut this way."""
        if self.tp_size < 1 or self.pp_size < 1:
            raise InputError("--tp_size and --pp_size must be at least 1")
        tp, kv = self.tp_size, model.num_key_value_heads
        works = [
            size
            for size in range(1, model.num_attention_heads + 1)
            if model.num_attention_heads % size == 0
            and (model.num_experts or model.intermediate_size % size == 0)
            and model.shared_expert_intermediate_size % size == 0
            and (kv % size == 0 or size % kv == 0)
        ]
        if tp not in works:
            raise InputError(
                f"--tp_size {tp} does not divide {model.num_attention_heads} heads, {kv} KV heads (or a multiple "
                f"of them) and intermediate size {model.intermediate_size}; sizes that do: "
                f"{', '.join(map(str, works))}"
            )
        if model.num_experts:
            self.check_experts(model)
        if model.family.classifies and model.num_labels % tp:
            raise InputError(f"--tp_size {tp} does not divide {model.num_labels} classes, whose scores ranks share")
        if self.pp_size > 1 and (model.shares_embedding or not model.family.pipelined):
            raise InputError(f"--pp_size {self.pp_size}: engines of {model.architecture} have one stage; use --tp_size")
        if self.tp_size > 1 and model.shares_embedding and model.vocab_size % self.tp_size:
            raise InputError(
                f"--tp_size {self.tp_size} does not divide vocabulary size {model.vocab_size}: ranks of "
                f"{model.architecture} share the embedding, which is its output projection"
            )
        if model.num_hidden_layers % self.pp_size:
            works = [n for n in range(1, model.num_hidden_layers + 1) if model.num_hidden_layers % n == 0]
            raise InputError(
                f"--pp_size {self.pp_size} does not divide {model.num_hidden_layers} layers; sizes that do: "
                f"{', '.join(map(str, works))}"
            )

    def check_experts(self, model: Model) -> None:
        """Raise InputError unless experts can be dealt out and cut this way."""
        ep, width = self.moe_ep_size, model.moe_intermediate_size
        if self.tp_size % ep or model.num_experts % ep:
            raise InputError(f"--moe_ep_size {ep} must divide --tp_size {self.tp_size} and {model.num_experts} experts")
        if width % self.moe_tp_size:
            raise InputError(
                f"--moe_tp_size {self.moe_tp_size} does not divide the experts' width {width}; give a larger "
                "--moe_ep_size"
            )


@dataclass(frozen=True)
class Tensor:
    """A tensor of one layer, whole: its named axes, the linear that decides its cut, and how a piece is stored.

    Attributes:
        dtype: of the stored piece.
        values: what it may hold, once it is unpacked; None for integers of which every one means something.
        group_size: input channels of one place on the axis "groups".
        heads: name of the model dimension that the axis "heads" counts, which ranks share.
        shared: all experts of a mixture have this one.
        summed: every rank adds it before their outputs are summed, so that the first holds it and the others zeros.
    """

    axes: tuple[Axis, ...]
    dtype: str
    values: Values | Zeros | None = FINITE
    linear: Linear | None = None
    storage: Storage = PLAIN
    group_size: int = 1
    heads: str | None = None
    shared: bool = False
    summed: bool = False

    @property
    def cut_axis(self) -> str | None:
        """The named axis that tensor parallelism cuts; None for a tensor that every rank holds whole."""
        if self.heads is not None:
            return "heads"
        if self.linear is None:
            return None
        wanted = ("in", "groups") if self.linear.cut == COLUMNS else ("out",)
        return next((axis for axis in wanted if axis in self.axes), None)

    def shape(self, model: Model, **sizes: int) -> list[int]:
        """The shape, whole, or with the given sizes of named axes."""
        if self.heads is not None:
            sizes = {"heads": model.dimension(self.heads)} | sizes
        if self.linear is not None:
            width = model.dimension(self.linear.in_features)
            whole = {
                "out": sum(model.out_features(self.linear.name)),
                "in": width,
                "groups": width // self.group_size,
            }
            sizes = whole | sizes
        return [sizes[axis] if isinstance(axis, str) else axis for axis in self.axes]

    def places(self, model: Model, mapping: Mapping, rank: int) -> torch.Tensor:
        """Where the piece of one tensor-parallel rank lies on the cut axis, in its order."""
        tp_size, tp_rank = mapping.share(self.linear, rank)
        if self.heads is not None:
            return share_of(model.dimension(self.heads), tp_size, tp_rank)
        assert self.linear is not None
        if self.cut_axis == "groups":
            return even_share(model.dimension(self.linear.in_features) // self.group_size, tp_size, tp_rank)
        return rank_indices(self.linear, model, tp_size, tp_rank)

    def rank_shape(self, model: Model, mapping: Mapping) -> list[int]:
        """The shape of one rank's piece, before it is stored; of one expert's, where they are stacked."""
        tp_size, _ = mapping.share(self.linear, 0)
        if self.heads is not None:
            return self.shape(model, heads=max(model.dimension(self.heads) // tp_size, 1))
        if tp_size == 1 or self.linear is None or self.cut_axis is None:
            return self.shape(model)
        size = rank_size(self.linear, model, tp_size)
        return self.shape(model, **{self.cut_axis: size // self.group_size if self.cut_axis == "groups" else size})


def rank_model(model: Model, mapping: Mapping, tp_rank: int) -> Model:
    """The dimensions of what one tensor-parallel rank executes."""
    size = mapping.tp_size
    return replace(
        model,
        num_attention_heads=model.num_attention_heads // size,
        num_key_value_heads=max(model.num_key_value_heads // size, 1),
        intermediate_size=model.intermediate_size // size,
        share=(size, tp_rank),
    )


def cut(tensor: torch.Tensor, spec: Tensor, model: Model, mapping: Mapping, tp_rank: int) -> torch.Tensor:
    """One tensor-parallel rank's piece of a whole layer tensor."""
    if spec.summed and tp_rank > 0:
        return torch.zeros_like(tensor)
    if mapping.share(spec.linear, 0)[0] == 1 or spec.cut_axis is None:
        return tensor
    places = spec.places(model, mapping, tp_rank).to(tensor.device)
    return tensor.index_select(spec.axes.index(spec.cut_axis), places)


def rank_indices(linear: Linear, model: Model, tp_size: int, tp_rank: int) -> torch.Tensor:
    """The channels of a linear's cut axis that one rank holds, in its order."""
    if linear.cut == COLUMNS:
        return even_share(model.dimension(linear.in_features), tp_size, tp_rank)
    pieces, start, size = [], 0, unit(linear, model)
    for rows in model.out_features(linear.name):
        share = share_of(rows // size, tp_size, tp_rank)
        channels = share[:, None] * size + torch.arange(size)
        pieces.append(start + channels.flatten())
        start += rows
    return torch.cat(pieces)


def unit(linear: Linear, model: Model) -> int:
    """Rows of each part that stay together: a head's, or one."""
    return model.head_size if linear.cut == HEADS else 1


def rank_size(linear: Linear, model: Model, tp_size: int) -> int:
    """How many channels of a linear's cut axis each rank holds."""
    if linear.cut == COLUMNS:
        return model.dimension(linear.in_features) // tp_size
    size = unit(linear, model)
    return sum(max(rows // size // tp_size, 1) * size for rows in model.out_features(linear.name))


def share_of(heads: int, tp_size: int, tp_rank: int) -> torch.Tensor:
    """The heads of one rank; where there are fewer than ranks, neighbouring ranks repeat one."""
    return even_share(heads, tp_size, tp_rank) if heads >= tp_size else torch.tensor([tp_rank * heads // tp_size])


def even_share(size: int, parts: int, part: int) -> torch.Tensor:
    return torch.arange(size // parts * part, size // parts * (part + 1))
