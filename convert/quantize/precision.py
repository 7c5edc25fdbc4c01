"""Which scheme every linear has: one for the whole model, but for layers left in float or quantized otherwise.

Linears that read one input are quantized alike, for runtimes fuse q, k and v, and gate with up where they can: a
scheme belongs to a group of linears of one layer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from ..errors import InputError, shown
from ..files.patterns import compiled
from ..models.model import Model
from .scheme import LayerSchemes, Scheme

# What a KV cache can be quantized to.
KV_CACHE = ("INT8", "FP8")

# A group of linears, or a Hugging Face linear: (layer, name inside it).
Place = tuple[int, str]


@dataclass(frozen=True)
class Precision:
    """The scheme of each group of linears of each layer.

    Attributes:
        base: of every group that ``others`` does not name.
        others: by (layer, group name).
        kv_cache: one of KV_CACHE, or None for a cache in the engine's dtype.
    """

    model: Model
    base: Scheme
    others: Mapping[Place, Scheme] = field(default_factory=dict)
    kv_cache: str | None = None

    def layer(self, index: int) -> LayerSchemes:
        """The schemes of one layer, by group name."""
        return {group.name: self.others.get((index, group.name), self.base) for group in self.model.family.groups}

    def executed(self, index: int) -> LayerSchemes:
        """The same, with what experts have under them."""
        schemes = dict(self.layer(index))
        for name in self.model.family.of_experts:
            schemes[name] = schemes[name].experts or schemes[name]
        return schemes

    def without(self, places: Iterable[Place]) -> Precision:
        """The same, with some groups of linears, each (layer, group name), in floating point."""
        return replace(self, others={**self.others, **dict.fromkeys(places, Scheme())})

    def only(self, index: int, groups: Collection[str]) -> Precision:
        """The same, with nothing of one layer quantized but some groups."""
        return self.without((index, name) for name in self.layer(index) if name not in groups)

    @cached_property
    def schemes(self) -> tuple[Scheme, ...]:
        """Every scheme that some group has, once."""
        layers = range(self.model.num_hidden_layers)
        return tuple(dict.fromkeys(scheme for index in layers for scheme in self.layer(index).values()))

    @property
    def quantized(self) -> tuple[Scheme, ...]:
        """Those of the schemes that are not floating point."""
        return tuple(scheme for scheme in self.schemes if scheme.quantized)


def mixed(
    model: Model,
    base: Scheme,
    exclude: Sequence[str] = (),
    layers: Sequence[tuple[str, Scheme]] = (),
    kv_cache: str | None = None,
) -> Precision:
    """A model quantized by one scheme, but for what patterns name.

    Args:
        exclude: shell patterns of linears that stay in floating point.
        layers: (shell pattern, scheme); a later one counts more than an earlier one, and exclude more than all.

    Raises:
        InputError: a pattern that names no linear, or linears that read one input and would not be quantized alike.
    """
    parts, names = dict[Place, Scheme](), Names(model)
    for places, (_, scheme) in zip(names.matched([one for one, _ in layers], "--quant_layer"), layers, strict=True):
        parts |= dict.fromkeys(places, scheme)
    for places in names.matched(exclude, "--exclude"):
        parts |= dict.fromkeys(places, Scheme())
    precision = of_parts(model, base, parts, kv_cache)
    if exclude and not precision.quantized:
        way = "give --quant" if not base.quantized and not layers else "give --quant none instead"
        raise InputError(f"--exclude {shown(exclude[-1])}: nothing is quantized then; {way}")
    return precision


def of_parts(model: Model, base: Scheme, parts: Mapping[Place, Scheme], kv_cache: str | None = None) -> Precision:
    """A model quantized by one scheme, but for some Hugging Face linears.

    Raises:
        InputError: linears that read one input and would not be quantized alike.
    """
    family, others = model.family, dict[Place, Scheme]()
    for index in {index for index, _ in parts}:
        for group in family.groups:
            schemes = {part: parts.get((index, part), base) for part in family.parts(group)}
            first, scheme = next(iter(schemes.items()))
            for part in [part for part in schemes if schemes[part] != scheme]:
                raise InputError(
                    f"layer {index}: {first} would be {scheme.name or 'floating point'}, {part} "
                    f"{schemes[part].name or 'floating point'}; {' and '.join(schemes)} read one input and must be "
                    "quantized alike"
                )
            others[index, group.name] = scheme
    return Precision(model, base, others, kv_cache)


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
                    names = (
                        model.family.layer.format(i=index) + module,
                        model.family.engine_layer.format(i=index) + linear.name,
                    )
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
            outside = any(matches(name.removesuffix(".weight")) for name in family.outside)
            if not found and not (outside and flag == "--exclude"):
                last = family.linears[-1]
                what = "the embedding and lm_head stay in floating point" if outside else "no linear has such a name"
                raise InputError(
                    f"{flag} {shown(pattern)}: {what}; names are like {family.engine_layer.format(i=0)}{last.name} or "
                    f"{family.layer.format(i=0)}{family.view(last.parts[0]).tensor}, and * stands for any characters"
                )
            yield list(found)


def around(names: Sequence[str]) -> Iterator[str]:
    """Names and those of the modules around them: a.b.c -> a.b.c, a.b, a."""
    for name in names:
        words = name.split(".")
        yield from (".".join(words[:count]) for count in range(len(words), 0, -1))
