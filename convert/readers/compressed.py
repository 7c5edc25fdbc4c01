"""compressed-tensors' configuration, and the rules that all of its readers share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from ..sources.readymade.compressed import COMPRESSED, PACKED, WEIGHTS, left_out
from ..sources.readymade.names import names
from .common import contradicted, mixed, smoothed
from .findings import Finding, Findings, refuses, unknown
from .folder import FLOATS, Folder
from .layouts import ANY, COLUMN, FLOAT8, GROUPS, INT8, MATRIX, NUMBER, WORDS, Faults, Layout, Wanted, damaged, faults

INTEGERS, FLOATING = "int-quantized", "float-quantized"
CACHE = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}


class Compressed:
    """What config.json says of a folder of compressed-tensors.

    Attributes:
        format: how weights are stored.
        weights, inputs: how they are quantized; inputs are None where only weights are.
        static: activations have one fixed scale a linear; asymmetric: they have zero points.
    """

    def __init__(self, folder: Folder):
        self.folder, self.said = folder, folder.embedded
        groups = self.said.section("config_groups")
        self.groups = len(groups.values)
        self.group = groups.section(next(iter(groups.values), ""))
        self.weights = self.group.section("weights")
        self.inputs = self.group.section("input_activations") if self.group.values.get("input_activations") else None
        self.format = self.group.text_or_none("format") or self.said.text_or_none("format") or ""
        self.bits = self.weights.integer_or_none("num_bits")
        self.floating = self.weights.text("type", "int") == "float"
        implied = "group" if self.weights.has("group_size") else "tensor"
        self.strategy = self.weights.text("strategy", implied)
        self.static = self.inputs is not None and not self.inputs.values.get("dynamic")
        self.asymmetric = self.inputs is not None and not self.inputs.flag("symmetric", True)

    @property
    def title(self) -> str:
        inputs = "no activations"
        if self.inputs is not None:
            kind = "static" if self.static else "dynamic"
            inputs = f"{kind} {'asymmetric ' if self.asymmetric else ''}activations"
        kind = "FP8" if self.floating else f"INT{self.bits}"
        return f"{COMPRESSED}, {self.format}: {kind} weights by {self.strategy}, {inputs}"

    @property
    def known(self) -> bool:
        """Whether it is one of the schemes that were tried in these readers."""
        if self.format == PACKED:
            tried = self.bits == 4 or (self.bits == 8 and self.weights.flag("symmetric", True))
            return tried and not self.floating and self.strategy in ("group", "channel")
        if self.bits != 8 or self.inputs is None or not self.weights.flag("symmetric", True):
            return False
        of_inputs = self.inputs.text("strategy", "tensor") == ("tensor" if self.static else "token")
        if self.format == INTEGERS:
            return not self.floating and self.strategy == "channel" and of_inputs
        pairs = ("tensor", True), ("channel", False)
        return self.format == FLOATING and self.floating and (self.strategy, self.static) in pairs and of_inputs

    @property
    def layout(self) -> Layout:
        """The tensors of a linear."""
        if self.format == PACKED:
            group = self.weights.integer("group_size") if self.strategy == "group" else None
            asymmetric = not self.weights.flag("symmetric", True)
            tensors = {
                "weight_packed": Wanted((WORDS,), MATRIX),
                "weight_scale": Wanted(FLOATS, COLUMN if group is None else GROUPS),
                "weight_shape": Wanted(("I64", WORDS), ANY),
                "weight_zero_point": Wanted((WORDS, INT8), ANY, optional=not asymmetric),
            }
            per_word = 32 // (self.bits or 32)
            return Layout(tensors, "weight_packed", lambda shape: (shape[0], shape[1] * per_word), group)
        tensors = {
            "weight": Wanted((FLOAT8 if self.floating else INT8,), MATRIX),
            "weight_scale": Wanted(FLOATS, NUMBER if self.strategy == "tensor" else COLUMN),
        }
        if self.static:
            tensors["input_scale"] = Wanted(FLOATS, NUMBER)
            tensors["input_zero_point"] = Wanted((INT8,), NUMBER, optional=not self.asymmetric)
        return Layout(tensors)

    @cached_property
    def faults(self) -> Faults:
        return faults(self.folder.linears, self.layout)

    @cached_property
    def outside(self) -> set[str]:
        """The linears that ignore and targets leave in floating point."""
        entries = [*names(self.said, "ignore"), *names(self.group, "targets")]
        self.folder.check_tries(self.said, "ignore", [entry for entry in entries if entry.startswith("re:")])
        said = left_out(self.said, self.group)
        linears = [linear.name for linear in [*self.folder.linears, *self.folder.plain]]
        return {name for name in linears if any(one.holds(name) for one in said)}

    @property
    def forgotten(self) -> list[str]:
        """The linears in floating point that are not listed."""
        return [linear.name for linear in self.folder.plain if linear.name not in self.outside]

    @property
    def ignores_head(self) -> bool:
        return any(one.holds("lm_head") for one in left_out(self.said, self.group))

    @property
    def mixed(self) -> list[str]:
        return mixed(self.folder, self.outside)

    @property
    def odd_cache(self) -> bool:
        """Whether its KV cache is quantized otherwise than by one static FP8 scale."""
        scheme = self.said.section("kv_cache_scheme").values
        return bool(scheme) and any(scheme.get(key, wanted) != wanted for key, wanted in CACHE.items())


def read_at_all(one: Compressed) -> Findings:
    """What keeps compressed-tensors itself, which vLLM, SGLang and transformers read it with, from a folder."""
    for section in (one.weights, one.inputs):
        for key in [] if section is None else sorted(section.values.keys() - set(WEIGHTS)):
            yield refuses(f"config.json: unknown key {section.prefix if section else ''}{key}; remove it")
    if one.weights.values.get("actorder") not in (None, False, "static", "weight"):
        yield refuses('config.json: actorder "group" is refused; quantize with actorder "static"')
    for key in ("sparsity_config", "transform_config"):
        if one.said.section(key).values.get("format", "") != "dense" and one.said.values.get(key):
            yield unknown(f"config.json: {key} is not empty, which was not tried; make the folder without it")
    if one.groups != 1 or not one.known:
        what = f"{one.groups} config_groups" if one.groups != 1 else one.title
        yield unknown(f"config.json: {what}: not tried; quantize every linear alike, by a scheme of docs/check.md")


def by_the_library(
    one: Compressed, missing: Callable[[str], Finding], own: Callable[[Compressed], Findings]
) -> Findings:
    """What keeps all of these readers from a folder, or else what is wrong with it in all, and in one by its own rules.

    Args:
        missing: what the reader does about tensors that are not there.
    """
    stop = list(read_at_all(one))
    yield from stop
    if not stop:
        yield from smoothed(one.folder)
        yield from contradicted(one.folder, one.outside, one.forgotten, "ignore")
        yield from damaged(one.faults, missing, refuses)
        yield from own(one)
