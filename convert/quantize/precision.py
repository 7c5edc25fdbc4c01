"""Which scheme every linear has: one for the whole model, but for layers left in float or quantized otherwise.

Linears that read one input are quantized alike, for TensorRT-LLM fuses q, k and v, and gate with up where it can: a
scheme belongs to a group of linears of one layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ..errors import InputError, shown
from ..files.patterns import compiled
from ..models.dimensions import Model
from ..models.family import Group
from .scheme import FLOAT, FP8_ROWWISE, QSERVE_CHANNEL, QSERVE_GROUP, SMOOTHQUANT_PLUGIN, LayerSchemes, Scheme

MIXED_PRECISION = "MIXED_PRECISION"
# Forms that TensorRT-LLM executes with an attention, an MLP and norms of their own, and with a model of their own.
WHOLE_BLOCKS = (SMOOTHQUANT_PLUGIN, FP8_ROWWISE)
WHOLE_MODEL = (QSERVE_GROUP, QSERVE_CHANNEL)
LAYER = "transformer.layers.{i}."

# A group of linears, or a Hugging Face linear: (layer, name inside it).
Place = tuple[int, str]


@dataclass(frozen=True)
class Precision:
    """The scheme of each group of linears of each layer.

    Attributes:
        base: of every group that ``others`` does not name.
        others: by (layer, group name).
    """

    model: Model
    base: Scheme
    others: Mapping[Place, Scheme] = field(default_factory=dict)

    def layer(self, index: int) -> LayerSchemes:
        """The schemes of one layer, by group name."""
        return {group.name: self.others.get((index, group.name), self.base) for group in self.model.family.groups}

    @cached_property
    def schemes(self) -> tuple[Scheme, ...]:
        """Every scheme that some group has, once."""
        layers = range(self.model.num_hidden_layers)
        return tuple(dict.fromkeys(scheme for index in layers for scheme in self.layer(index).values()))

    @property
    def quantized(self) -> tuple[Scheme, ...]:
        """Those of the schemes that are not floating point."""
        return tuple(scheme for scheme in self.schemes if scheme.form != FLOAT)

    @property
    def kv_cache(self) -> str | None:
        return self.base.kv_cache

    @property
    def algo(self) -> str | None:
        """TensorRT-LLM's QuantAlgo of the whole model; its SmoothQuant knows exceptions only as mixed precision."""
        if not self.quantized:
            return None
        first = self.quantized[0]
        alone = len(self.schemes) == 1 or (len(self.quantized) == 1 and first.form != SMOOTHQUANT_PLUGIN)
        return first.algo if alone else MIXED_PRECISION

    @property
    def packed_for_sm(self) -> int | None:
        """The GPU generation that packed integers are arranged for; None where none are."""
        return next((scheme.sm for scheme in self.schemes if scheme.arranged), None)

    def check(self) -> None:
        """Raise InputError for what TensorRT-LLM cannot execute: of this family, or as a mixture."""
        for scheme in self.schemes:
            reason = self.model.family.refused.get(scheme.algo or "")
            if reason is not None:
                raise InputError(f"{scheme.algo}: not for {self.model.architecture}: {reason}")
        for scheme in self.schemes if len(self.schemes) > 1 else ():
            if scheme.form in WHOLE_MODEL:
                raise InputError(
                    f"{scheme.algo} quantizes every layer, TensorRT-LLM knows no exceptions from it; "
                    "leave --exclude and --quant_layer away, or use another --quant"
                )
        for index in range(self.model.num_hidden_layers):
            schemes = self.layer(index)
            for group in self.model.family.groups:
                whole, other = schemes[group.name], self._beside(group, schemes)
                if whole.form in WHOLE_BLOCKS and other is not None:
                    raise InputError(
                        f"layer {index}: {whole.algo} quantizes all of {module_of(group)} or nothing of it, not "
                        f"{group.name} without {other}; give a pattern for *layers.{index}.{module_of(group)}"
                    )

    def _beside(self, group: Group, schemes: LayerSchemes) -> str | None:
        """A group of the same module that has another scheme."""
        same = [other.name for other in self.model.family.groups if module_of(other) == module_of(group)]
        return next((name for name in same if schemes[name] != schemes[group.name]), None)

    def check_stages(self, stages: list[range]) -> None:
        """Raise InputError unless the layers of all pipeline stages are quantized alike."""
        for layers in stages[1:]:
            for local, index in enumerate(layers):
                if self.layer(index) != self.layer(local):
                    raise InputError(
                        f"--pp_size {len(stages)}: TensorRT-LLM numbers the layers of every stage from 0, so layers "
                        f"{local} and {index} must be quantized alike; use patterns that take both, or --pp_size 1"
                    )


def mixed(
    model: Model, base: Scheme, exclude: Sequence[str] = (), layers: Sequence[tuple[str, Scheme]] = ()
) -> Precision:
    """A model quantized by one scheme, but for what patterns name.

    Args:
        exclude: shell patterns of linears that stay in floating point.
        layers: (shell pattern, scheme); a later one counts more than an earlier one, and exclude more than all.

    Raises:
        InputError: a pattern that names no linear, linears that read one input and would not be quantized alike, or a
            mixture that TensorRT-LLM cannot execute.
    """
    parts, names = dict[Place, Scheme](), Names(model)
    for places, (_, scheme) in zip(names.matched([one for one, _ in layers], "--quant_layer"), layers, strict=True):
        parts |= dict.fromkeys(places, scheme)
    for places in names.matched(exclude, "--exclude"):
        parts |= dict.fromkeys(places, Scheme(kv_cache=base.kv_cache))
    precision = of_parts(model, base, parts)
    if exclude and not precision.quantized:
        way = "give --quant" if base.form == FLOAT and not layers else "give --quant none instead"
        raise InputError(f"--exclude {shown(exclude[-1])}: nothing is quantized then; {way}")
    return precision


def of_parts(model: Model, base: Scheme, parts: Mapping[Place, Scheme]) -> Precision:
    """A model quantized by one scheme, but for some Hugging Face linears.

    Raises:
        InputError: as for ``mixed``.
    """
    family, others = model.family, dict[Place, Scheme]()
    for index in {index for index, _ in parts}:
        for group in family.groups:
            schemes = {part: parts.get((index, part), base) for part in family.parts(group)}
            first, scheme = next(iter(schemes.items()))
            for part in [part for part in schemes if schemes[part] != scheme]:
                raise InputError(
                    f"layer {index}: {first} would be {scheme.algo or 'floating point'}, {part} "
                    f"{schemes[part].algo or 'floating point'}; {' and '.join(schemes)} read one input and must be "
                    "quantized alike"
                )
            others[index, group.name] = scheme
    precision = Precision(model, base, others)
    precision.check()
    return precision


class Names:
    """Every name by which a model's linears, or modules around them, may be called: TensorRT-LLM's and Hugging Face's.

    Attributes:
        places: the linears of each name, or in the module of that name.
    """

    def __init__(self, model: Model):
        self.model = model
        self.places: dict[str, dict[Place, None]] = {}
        for index in range(model.num_hidden_layers):
            for linear in model.family.linears:
                for part in linear.parts:
                    module = model.family.view(part).tensor
                    names = (model.family.layer.format(i=index) + module, LAYER.format(i=index) + linear.name)
                    for name in around(names):
                        self.places.setdefault(name, {})[index, part] = None

    def matched(self, patterns: Sequence[str], flag: str) -> Iterator[list[Place]]:
        """For each pattern the linears that it names; none where --exclude names only the embedding or lm_head.

        Raises:
            InputError: a pattern that names no linear.
        """
        wild, family = compiled(patterns, flag), self.model.family
        for pattern in patterns:
            matches = wild.get(pattern, pattern.__eq__)
            called = [pattern] if pattern not in wild else filter(matches, self.places)
            found = dict[Place, None]()
            for name in called:
                found |= self.places.get(name, {})
            outside = any(matches(name.removesuffix(".weight")) for name in (family.head, family.embedding))
            if not found and not (outside and flag == "--exclude"):
                last = family.linears[-1]
                what = "the embedding and lm_head stay in floating point" if outside else "no linear has such a name"
                raise InputError(
                    f"{flag} {shown(pattern)}: {what}; names are like {LAYER.format(i=0)}{last.name} or "
                    f"{family.layer.format(i=0)}{family.view(last.parts[0]).tensor}, and * stands for any characters"
                )
            yield list(found)


def around(names: Sequence[str]) -> Iterator[str]:
    """Names and those of the modules around them: a.b.c -> a.b.c, a.b, a."""
    for name in names:
        words = name.split(".")
        yield from (".".join(words[:count]) for count in range(len(words), 0, -1))


def module_of(group: Group) -> str:
    """The attention or MLP that a group belongs to."""
    return group.linears[0].split(".")[0]
