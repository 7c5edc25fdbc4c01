"""How TensorRT-LLM is told which layers are quantized: config.json's quantization, and quant_cfg.json beside it.

    one algorithm         config.json: quant_algo, and in exclude_modules what stays in floating point
    several algorithms    config.json: MIXED_PRECISION; quant_cfg.json: the algorithm of each module that has one

Modules are named inside one rank, layers numbered from the first of its pipeline stage. exclude_modules replaces a
default list of TensorRT-LLM's own, so that has to be in it. Source: TensorRT-LLM 0.16 and 1.3 (modeling_utils.py,
quantize.py).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ...errors import InputError, printable, shown
from ...files.disk import read_json
from ...files.patterns import compiled
from ...files.reader import Reader
from ...models.model import Model
from ...models.pieces import Group
from ...quantize.precision import KV_CACHE, Precision
from ...quantize.scheme import Scheme
from . import mixture
from .formats import kind_of, scheme_of
from .formats.base import module_of
from .manifest import QUANT_CFG
from .mixture import MIXED_PRECISION

OUTSIDE = ("lm_head", "transformer.vocab_embedding", "transformer.ln_f")
# group_size of what has no groups.
NO_GROUPS = 128
NAME = re.compile(r"[A-Z0-9_]{1,40}")
# TensorRT-LLM's QuantConfig of 0.16 to 1.2; another key is an error when it loads the checkpoint.
KEYS = (
    "quant_algo",
    "kv_cache_quant_algo",
    "group_size",
    "smoothquant_val",
    "clamp_val",
    "use_meta_recipe",
    "has_zero_point",
    "pre_quant_scale",
    "exclude_modules",
    "mamba_ssm_cache_dtype",
)
QUANT_CFG_KEYS = ("quant_algo", "kv_cache_quant_algo", "quantized_layers", "exclude_modules")


def quantization(precision: Precision, smoothquant_val: float, layers: range) -> dict[str, Any]:
    """The section of config.json, in the key set that releases 0.16 to 1.2.1 read.

    Args:
        layers: those of one pipeline stage; all stages are quantized alike.
    """
    algorithm = mixture.quant_algo(precision)
    known = precision.quantized[0] if algorithm not in (None, MIXED_PRECISION) else precision.base
    return {
        "quant_algo": algorithm,
        "kv_cache_quant_algo": precision.kv_cache,
        "group_size": known.group_size or NO_GROUPS,
        "smoothquant_val": smoothquant_val,
        "clamp_val": None,
        "use_meta_recipe": False,
        "has_zero_point": kind_of(known).has_zero_point,
        "pre_quant_scale": kind_of(known).pre_quant_scale,
        "exclude_modules": excluded(precision, layers),
    }


def excluded(precision: Precision, layers: range) -> list[str] | None:
    """exclude_modules; None where every layer is quantized by one algorithm, or none is."""
    if len(precision.schemes) == 1 or mixture.quant_algo(precision) == MIXED_PRECISION:
        return None
    scheme, names = precision.quantized[0], []
    for index in range(len(layers)):
        for group in precision.model.family.groups:
            if not precision.layer(index)[group.name].quantized:
                names += modules(precision.model, index, group, scheme)
    kind = kind_of(scheme)
    return [*kind.never, *(name + kind.ending for name in dict.fromkeys(names))]


def quant_cfg(precision: Precision, layers: range) -> dict[str, Any] | None:
    """The content of quant_cfg.json; None without mixed precision. Args as for ``quantization``."""
    if mixture.quant_algo(precision) != MIXED_PRECISION:
        return None
    described: dict[str, Any] = {}
    for index in range(len(layers)):
        for group in precision.model.family.groups:
            scheme = precision.layer(index)[group.name]
            if scheme.quantized:
                described |= dict.fromkeys(
                    modules(precision.model, index, group, scheme), kind_of(scheme).entry(scheme)
                )
    return {
        "quant_algo": MIXED_PRECISION,
        "kv_cache_quant_algo": precision.kv_cache,
        "quantized_layers": described,
    }


def modules(model: Model, index: int, group: Group, scheme: Scheme) -> list[str]:
    """TensorRT-LLM's modules that make a group quantized by a scheme."""
    names = list(group.linears)
    if kind_of(scheme).whole_block:
        names = [module_of(group)] if group.norm is None else [group.norm, module_of(group)]
    return [model.family.engine_layer.format(i=index) + name for name in names]


def read_precision(folder: Path, config: dict[str, Any], model: Model, stages: list[range]) -> Precision:
    """What a checkpoint's files say of its layers.

    Args:
        config: config.json.
        stages: the layers of each pipeline stage.

    Raises:
        InputError: an algorithm or a mixture that this version does not know.
    """
    section = Reader(config).section("quantization")
    said, kv_cache = section.values, algorithm_of(section, "kv_cache_quant_algo")
    if said.get("quant_algo") == MIXED_PRECISION:
        in_config, said = kv_cache, read_quant_cfg(folder)
        kv_cache = algorithm_of(Reader(said, QUANT_CFG), "kv_cache_quant_algo")
        if kv_cache != in_config:
            raise InputError(
                f"{QUANT_CFG}: kv_cache_quant_algo is {shown(kv_cache)}, config.json's is {shown(in_config)}"
            )
        check_cache(kv_cache)
        base, entries = Scheme(), said["quantized_layers"].items()
        schemes = {name: scheme_from(entry, kv_cache, f"{QUANT_CFG}: {printable(name, 80)}") for name, entry in entries}
        places = Places(schemes, QUANT_CFG)
        places.check_names(model, stages[0])
    else:
        base = scheme_from(said, kv_cache, "config.json")
        left = Reader(said, prefix="quantization.").texts("exclude_modules")
        places = Places(dict.fromkeys(left, Scheme()), "config.json: exclude_modules")
    others = {}
    for layers in stages:
        for local, index in enumerate(layers):
            for group in model.family.groups:
                scheme = scheme_at(model, local, group, base, places)
                if scheme is not None:
                    others[index, group.name] = scheme
    precision = Precision(model, base, others, kv_cache)
    mixture.check(precision)
    return precision


class Places:
    """Schemes by name or pattern of modules, as a checkpoint's files give them.

    Args:
        where: the file, for messages.
    """

    def __init__(self, schemes: dict[str, Scheme], where: str):
        self.schemes, self.patterns = schemes, compiled(schemes, where)

    def scheme(self, name: str) -> Scheme | None:
        """What is said of a module by its name, else by the first pattern that it matches."""
        if name in self.schemes:
            return self.schemes[name]
        return next((self.schemes[pattern] for pattern, matches in self.patterns.items() if matches(name)), None)

    def check_names(self, model: Model, layers: range) -> None:
        """Raise InputError for an entry of quant_cfg.json that TensorRT-LLM would read otherwise than it is read
        here."""
        groups = model.family.groups
        inside = {name for group in groups for name in (*group.linears, module_of(group), group.norm) if name}
        known = {model.family.engine_layer.format(i=index) + name for index in range(len(layers)) for name in inside}
        for name in self.schemes:
            matches = self.patterns.get(name, name.__eq__)
            taken = name in known or (name in self.patterns and any(map(matches, known)))
            if not taken or any(map(matches, OUTSIDE)):
                raise InputError(
                    f"{QUANT_CFG}: {shown(name)} names more or less than modules of this model's decoder layers"
                )


def scheme_at(model: Model, local: int, group: Group, base: Scheme, places: Places) -> Scheme | None:
    """The scheme that a checkpoint gives to a group besides its base; None where it gives none."""
    prefix = model.family.engine_layer.format(i=local)
    found = {places.scheme(prefix + name) for name in group.linears}
    if len(found) > 1:
        raise InputError(f"{prefix}{group.name}: its linears are not quantized alike, which is not supported")
    scheme, around = found.pop(), places.scheme(prefix + module_of(group))
    if scheme is None and around is not None and whole_block(around, base):
        scheme = around
    if group.norm is not None:
        check_norm(prefix + group.norm, places.scheme(prefix + group.norm) or base, scheme or base)
    return scheme


def check_norm(name: str, norm: Scheme, behind: Scheme) -> None:
    """Raise InputError for a norm that would quantize what nobody behind it reads so, or the other way round."""
    if norm != behind and whole_block(norm, behind):
        own, readers = (scheme.name or "no quantization" for scheme in (norm, behind))
        raise InputError(f"{name} has {own}, what reads its output {readers}; they must be quantized alike")


def whole_block(*schemes: Scheme) -> bool:
    """Whether one of them makes an attention, MLP or norm of its own."""
    return any(kind_of(scheme).whole_block for scheme in schemes)


def check_cache(kind: str | None) -> None:
    """Raise InputError for a type of KV cache that this version does not write."""
    if kind is not None and kind not in KV_CACHE:
        raise InputError(f"KV cache type {shown(kind)} is not supported; use one of: {', '.join(KV_CACHE)}")


def scheme_from(entry: dict[str, Any], kv_cache: str | None, where: str) -> Scheme:
    """The scheme of a quantization section, or of one module's entry in quant_cfg.json.

    Args:
        where: file and module, for messages.
    """
    said = Reader(entry, where)
    check_quantization(said)
    try:
        check_cache(kv_cache)
        scheme = scheme_of(algorithm_of(said, "quant_algo"), said.integer("group_size", NO_GROUPS))
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    kind = kind_of(scheme)
    for key, implied in (("has_zero_point", kind.has_zero_point), ("pre_quant_scale", kind.pre_quant_scale)):
        if said.flag(key) != implied and kind.flagged:
            name = scheme.name or "no quantization"
            raise InputError(f"{where}: {key} must be {str(implied).lower()} for {name} as it is written here")
    if said.has("clamp_val"):
        raise said.wrong("clamp_val", "null: activations are not clamped here")
    if said.flag("use_meta_recipe"):
        raise said.wrong("use_meta_recipe", "false: Meta's recipe is not executed here")
    if algorithm_of(said, "kv_cache_quant_algo") not in (None, kv_cache):
        raise said.wrong("kv_cache_quant_algo", f"{kv_cache or 'null'}: all layers have one kind of cache")
    return scheme


def check_quantization(said: Reader) -> None:
    """Raise InputError for a key that QuantConfig does not have, or a value of a wrong type."""
    said.check_keys(KEYS)
    said.integer("group_size", NO_GROUPS)
    strength, clamp = said.values.get("smoothquant_val"), said.values.get("clamp_val")
    if strength is not None and not (is_number(strength) and 0 <= strength <= 1):
        raise said.wrong("smoothquant_val", "a number from 0 to 1")
    if clamp is not None and not (isinstance(clamp, list) and len(clamp) == 2 and all(map(is_number, clamp))):
        raise said.wrong("clamp_val", "null or two numbers")
    for key in ("use_meta_recipe", "has_zero_point", "pre_quant_scale"):
        said.flag(key)
    said.texts("exclude_modules")
    said.text_or_none("mamba_ssm_cache_dtype")


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def algorithm_of(said: Reader, key: str) -> str | None:
    """A QuantAlgo name; None for NO_QUANT too."""
    name = said.text_or_none(key)
    if name is not None and not NAME.fullmatch(name):
        raise said.wrong(key, "the name of a QuantAlgo")
    return None if name == "NO_QUANT" else name


def read_quant_cfg(folder: Path) -> dict[str, Any]:
    """quant_cfg.json, with an object of quantized_layers in it, of which each is an object."""
    said = Reader(read_json(folder / QUANT_CFG), QUANT_CFG)
    said.check_keys(QUANT_CFG_KEYS)
    said.choice("quant_algo", (MIXED_PRECISION,), MIXED_PRECISION)
    if said.texts("exclude_modules"):
        raise said.wrong("exclude_modules", "empty: what quantized_layers does not name is in floating point")
    layers = said.section("quantized_layers").values
    if not layers:
        raise InputError(f"{folder}/{QUANT_CFG}: no quantized_layers in it, which MIXED_PRECISION needs")
    for name, entry in layers.items():
        if not isinstance(entry, dict):
            raise InputError(
                f"{QUANT_CFG}: {printable(name, 80)}: a module's entry must be an object, not {shown(entry)}"
            )
    return said.values
