"""A release recipe: one YAML file that says what to convert, how good it must be, where it runs and how it is served.

    model_dir: Llama-3.1-8B            # relative to the recipe
    output_dir: release                # everything the run makes
    convert: {quant: W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN, kv_cache: INT8}
    verify: {max_ppl_increase: 2}
    build: {gpu: A100, release: 1.2.1, preset: throughput, max_input_len: 2048}
    triton: {decoupled: true}

Keys of a section are the command's flags. verify, build and triton may be left out.
"""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from ..convert.convert_options import BY_RUN, ConvertOptions
from ..convert.errors import InputError
from .build_config import BY_NAME
from .flags import LARGEST, REFUSED, SWITCH
from .triton.generate import TritonOptions

LARGEST_FILE = 2**20
TEXTS = tuple[str, ...]
SECTIONS = ("model_dir", "output_dir", "convert", "verify", "build", "triton")


@dataclass(frozen=True)
class VerifyOptions:
    """The verify section: what enginesmith verify measures, and its gate in percent."""

    text: str = "pydoc-heldout"
    chunks: int = 20
    seq_len: int = 512
    max_ppl_increase: float | None = None
    device: str = "auto"


@dataclass(frozen=True)
class BuildOptions:
    """The build section.

    Attributes:
        engine: "auto" builds where TensorRT-LLM is installed, "required" fails elsewhere, "never" plans only.
        flags: trtllm-build's.
    """

    gpu: str | None = None
    sm: int | None = None
    gpu_memory: float | None = None
    release: str | None = None
    preset: str | None = None
    max_output_len: int | None = None
    chunked_context: bool = False
    kv_cache_free_gpu_mem_fraction: float = 0.9
    engine: str = "auto"
    flags: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A recipe whose names, types and paths have been checked.

    Attributes:
        model_dir, output_dir: absolute.
        convert, triton: their model_dir, engine_dir, tokenizer_dir and output_dir are set by the run.
        verify, build, triton: None where the recipe leaves the step out.
    """

    model_dir: Path
    output_dir: Path
    convert: dict[str, Any]
    verify: VerifyOptions | None
    build: BuildOptions | None
    triton: dict[str, Any] | None


def read_recipe(path: Path, model_dir: str | None = None, output_dir: str | None = None) -> Recipe:
    """Read a recipe; the two folders may be given instead, relative to the current folder.

    Raises:
        InputError: the file cannot be read, or a key or value is not one that a step takes.
    """
    document = read_yaml(path)
    for key in document:
        if key not in SECTIONS:
            raise InputError(f"{path.name}: unknown key {key!r}{meant(str(key), SECTIONS)}")
    folder = path.resolve().parent
    for section, key in (("convert", "calib"), ("verify", "text"), ("triton", "tokenizer_dir")):
        find_beside(folder, document.get(section), key)
    convert = typed(path, "convert", document, ConvertOptions, BY_RUN) or {}
    if convert.get("alpha") == "auto":
        convert["alpha"] = None
    convert |= {key: None for key in ("quant", "kv_cache") if convert.get(key) == "none"}
    verify = typed(path, "verify", document, VerifyOptions)
    if document.get("triton") is not None and document.get("build") is None:
        raise InputError(f"{path.name}: triton needs a build section, to know the engine")
    return Recipe(
        model_dir=Path(model_dir).resolve() if model_dir else folder / named(path, document, "model_dir"),
        output_dir=Path(output_dir).resolve() if output_dir else folder / named(path, document, "output_dir"),
        convert=convert,
        verify=None if verify is None else VerifyOptions(**verify),
        build=build_section(path, document),
        triton=typed(path, "triton", document, TritonOptions, ("engine_dir", "output_dir")),
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file of bounded size; aliases are refused, for they can unfold without bounds."""
    try:
        if not path.is_file() or path.stat().st_size > LARGEST_FILE:
            raise InputError(f"{path}: not a regular file of at most 1 MiB")
        text = path.read_text(encoding="utf-8")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise InputError(f"{path}: YAML aliases are not read; write the values out")
        document = yaml.load(text, UniqueKeys)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not readable as YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(document, dict):
        raise InputError(f"{path}: holds no mapping of {', '.join(SECTIONS)}")
    return document


class UniqueKeys(yaml.SafeLoader):
    """YAML's safe types; a key that is given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [key for index, key in enumerate(keys) if key in keys[:index]]
        if twice:
            raise yaml.YAMLError(f"{twice[0]!r} is given twice")
        return super().construct_mapping(node, deep)


def named(path: Path, document: dict[str, Any], key: str) -> str:
    value = document.get(key)
    if not isinstance(value, str) or not value or "\0" in value:
        raise InputError(f"{path.name}: {key} is needed, a folder (or give --{key})")
    return value


def find_beside(folder: Path, section: Any, key: str) -> None:
    """A path in a recipe is relative to it; names of built-in texts stay names."""
    if isinstance(section, dict) and isinstance(section.get(key), str) and (folder / section[key]).exists():
        section[key] = str(folder / section[key])


def build_section(path: Path, document: dict[str, Any]) -> BuildOptions | None:
    """The build section: our own options by type, trtllm-build's flags by what each takes."""
    given = document.get("build")
    given = given if isinstance(given, dict) else {}
    for name in [name for name in given if name in REFUSED]:
        raise InputError(f"{path.name}: build.{name}: {REFUSED[name]}")
    flags: dict[str, Any] = {}
    for name in [name for name in given if name in BY_NAME]:
        if BY_NAME[name].name in flags:
            raise InputError(f"{path.name}: build.{name} and build.{BY_NAME[name].name} are one flag; give one")
        flags[BY_NAME[name].name] = flag_value(path, name, given[name])
    own = {"build": {key: value for key, value in given.items() if key not in BY_NAME}} if given else document
    options = typed(path, "build", own, BuildOptions, ("flags",), tuple(BY_NAME))
    if options is None:
        return None
    build = BuildOptions(**options, flags=flags)
    one_of(f"{path.name}: build.engine", build.engine, ("auto", "required", "never"))
    if build.preset is not None:
        one_of(f"{path.name}: build.preset", build.preset, ("latency", "throughput"))
    return build


def one_of(where: str, value: Any, words: tuple[str, ...]) -> None:
    if value not in words:
        raise InputError(f"{where} is {value!r}; use {', '.join(words)}")


def flag_value(path: Path, name: str, value: Any) -> Any:
    """The value of one of trtllm-build's flags, as the command line would read it."""
    flag = BY_NAME[name]
    where = f"{path.name}: build.{name}"
    if flag.kind is int:
        if not isinstance(value, int) or isinstance(value, bool) or not flag.least <= value <= LARGEST:
            raise InputError(f"{where} is {value!r}, a number from {flag.least} to {LARGEST} is needed")
        return value
    if flag.kind == "flag" or (flag.kind == SWITCH and isinstance(value, bool)):
        if not isinstance(value, bool):
            raise InputError(f"{where} is {value!r}, true or false is needed")
        return value
    if isinstance(flag.kind, tuple):
        one_of(where, value, flag.kind)
        return flag.value(value)
    if not isinstance(value, str):
        raise InputError(f"{where} is {value!r}, text is needed")
    return value


def typed(
    path: Path,
    name: str,
    document: Mapping[str, Any],
    options: type[Any],
    by_run: tuple[str, ...] = (),
    also: tuple[str, ...] = (),
) -> dict[str, Any] | None:
    """A section's values, each of the type that the options' field has.

    Args:
        by_run: fields that the run sets.
        also: further names to suggest for a misspelt one.
    """
    given = document.get(name)
    if given is None:
        return {} if name in document else None
    if not isinstance(given, dict):
        raise InputError(f"{path.name}: {name} must be a mapping, not {given!r}")
    hints = get_type_hints(options)
    names = [item.name for item in fields(options) if item.name not in by_run]
    for key, value in given.items():
        if key not in names:
            raise InputError(f"{path.name}: {name} has no {key!r}{meant(str(key), (*names, *also))}")
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{path.name}: {name}.{key} is {value}, a finite number is needed")
        if isinstance(value, str) and "\0" in value:
            raise InputError(f"{path.name}: {name}.{key} holds a null character")
        if key == "alpha" and value == "auto":
            continue
        if not fits(value, hints[key]):
            raise InputError(f"{path.name}: {name}.{key} is {value!r}, which is not {described(hints[key])}")
    return {key: tuple(value) if hints[key] == TEXTS else value for key, value in given.items()}


def fits(value: Any, hint: Any) -> bool:
    kinds = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if isinstance(value, bool):
        return bool in kinds
    if hint == TEXTS:
        return isinstance(value, list) and all(isinstance(word, str) for word in value)
    return isinstance(value, kinds) or (float in kinds and isinstance(value, int))


def described(hint: Any) -> str:
    if hint == TEXTS:
        return "a list of texts"
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    kinds = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return " or ".join(words.get(kind, str(kind)) for kind in kinds)


def meant(word: str, names: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(word, names, 1)
    return f"; did you mean {close[0]}?" if close else f"; it may have {', '.join(names[:12])}"
