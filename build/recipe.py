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

import os
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from ..convert.errors import InputError, shown
from ..convert.files.bounds import Option, meant, usable
from ..convert.files.disk import read_text
from ..convert.job.options import BY_RUN, ConvertOptions
from ..convert.prove.options import VerifyOptions
from .build_options import BuildOptions
from .flags import BY_NAME, REFUSED, accepted
from .triton.options import TritonOptions

# Bytes; YAML is read by some hundred kilobytes a second.
LARGEST_FILE = 2**18
SECTIONS = ("model_dir", "output_dir", "convert", "verify", "build", "triton")
# What broken YAML of PyYAML's own types raises besides YAMLError.
NO_YAML = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, OverflowError, RecursionError)


@dataclass(frozen=True)
class Recipe:
    """A recipe whose names, types and paths have been checked.

    Attributes:
        path: the recipe itself.
        model_dir, output_dir: absolute.
        convert, triton: their model_dir, engine_dir, tokenizer_dir and output_dir are set by the run.
        verify, build, triton: None where the recipe leaves the step out.
    """

    path: Path
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
            raise InputError(f"{path.name}: unknown key {shown(key)}{meant(key, SECTIONS)}")
    if document.get("triton") is not None and document.get("build") is None:
        raise InputError(f"{path.name}: triton needs a build section, to know the engine")
    folder = Path(os.path.realpath(path)).parent
    convert = section(path, document, "convert", ConvertOptions, BY_RUN, folder, "calib")
    verify = section(path, document, "verify", VerifyOptions, (), folder, "text")
    by_run = ("engine_dir", "output_dir")
    return Recipe(
        path=path,
        model_dir=place(model_dir, "--model_dir") or folder / named(path, document, "model_dir"),
        output_dir=place(output_dir, "--output_dir") or folder / named(path, document, "output_dir"),
        convert=convert or {},
        verify=None if verify is None else VerifyOptions(**verify),
        build=build_section(path, document),
        triton=section(path, document, "triton", TritonOptions, by_run, folder, "tokenizer_dir"),
    )


def read_yaml(path: Path) -> dict[Any, Any]:
    """The mapping in a YAML file of bounded size; aliases are refused, for they can unfold without bounds."""
    text = read_text(path, LARGEST_FILE)
    try:
        document = yaml.load(text, PlainLoader)
    except InputError:
        raise
    except NO_YAML as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" in line {mark.line + 1}"
        hint = "; a pattern that begins with * needs quotes" if "alias" in reason else ""
        raise InputError(f"{path}: not readable as YAML ({reason}{where}{hint})") from None
    if not isinstance(document, dict):
        raise InputError(f"{path}: holds no mapping of {', '.join(SECTIONS)}")
    return document


class PlainLoader(yaml.SafeLoader):
    """YAML's safe types; an alias, or a key that is given twice, is an error."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("YAML aliases are not read; write the values out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.YAMLError(f"{shown(key)} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def place(given: str | None, flag: str) -> Path | None:
    """A folder of the command line, absolute."""
    if given is not None and not given:
        raise InputError(f"{flag} is empty; give a folder, or leave it out")
    return Path.cwd() / given if given else None


def named(path: Path, document: dict[Any, Any], key: str) -> str:
    value = document.get(key)
    if not usable(value):
        raise InputError(f"{path.name}: {key} is needed, a folder (or give --{key})")
    return str(value)


def section(
    path: Path,
    document: dict[Any, Any],
    name: str,
    options: type[Any],
    by_run: Collection[str],
    folder: Path,
    file: str,
) -> dict[str, Any] | None:
    """A section's values as the fields of a class of options; None where the recipe leaves it out.

    Args:
        by_run: fields that the run sets.
        folder: the recipe's; what the option ``file`` names is looked for there, names of built-in texts stay names.
    """
    given = mapping(path, document, name)
    if given is None:
        return None
    read = values(path, name, given, options, by_run)
    if file in read and os.path.exists(folder / read[file]):
        read[file] = str(folder / read[file])
    return read


def mapping(path: Path, document: dict[Any, Any], name: str) -> dict[Any, Any] | None:
    """A section as it is written; None where there is none."""
    given = document.get(name)
    if given is None:
        return {} if name in document else None
    if not isinstance(given, dict):
        raise InputError(f"{path.name}: {name} must be a mapping, not {shown(given)}")
    return given


def values(
    path: Path,
    name: str,
    given: dict[Any, Any],
    options: type[Any],
    by_run: Collection[str],
    also: Collection[str] = (),
) -> dict[str, Any]:
    """A section's values, each as the options' field takes it.

    Args:
        also: further names to suggest for a misspelt one.
    """
    names = [item.name for item in fields(options) if item.name not in by_run]
    read = {}
    for key, value in given.items():
        if key not in names:
            raise InputError(f"{path.name}: {name} has no {shown(key)}{meant(key, (*names, *also))}")
        read[key] = Option(options, key).accepted(value, f"{path.name}: {name}.{key}")
    return read


def build_section(path: Path, document: dict[Any, Any]) -> BuildOptions | None:
    """The build section: our own options by type, trtllm-build's flags by what each takes."""
    given = mapping(path, document, "build")
    if given is None:
        return None
    theirs = {key: value for key, value in given.items() if key in BY_NAME or key in REFUSED}
    own = {key: value for key, value in given.items() if key not in theirs}
    flags = accepted(theirs, f"{path.name}: build.")
    return BuildOptions(**values(path, "build", own, BuildOptions, ("flags",), tuple(BY_NAME)), flags=flags)
