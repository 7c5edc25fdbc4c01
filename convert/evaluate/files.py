"""Task files of one's own: lm-evaluation-harness's YAML, read without running what it names.

The harness would import the Python that ``!function`` names, fetch metrics that are programs, and hand data to loaders
of which some unpickle or fetch. Here such a file is refused unless its folder is trusted, and records are read by this
project: from files in the folder, named from the task file's own place or from where the command runs.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError, naming, reason, shown
from ..files.disk import open_regular, read_text, shown_path
from ..sources.records import ARROW, JSON, JsonValues, arrow_records

LARGEST = 2**22
# The loaders of a task file that are this project's.
FILES = ("json", "parquet", "arrow")
HUB_NAME, HUB_OPTIONS = re.compile(r"\w[\w.-]*/\w[\w.-]*"), {"revision", "trust_remote_code"}
# Keys of names, and those whose value the harness runs, or reads a file by.
NAMES, CODE = ("task", "group", "tag"), ("class", "custom_dataset", "unsafe_code", "use_prompt")
REMEDY = "; --allow_task_code permits it, where you trust the folder"


@dataclass(frozen=True)
class Code:
    """A value that names a function."""

    spec: str
    folder: Path

    def function(self) -> Any:
        """What a Python file beside the task file defines."""
        stem, _, name = self.spec.rpartition(".")
        path = self.folder / f"{stem.replace('.', '/')}.py"
        spec = importlib.util.spec_from_file_location(f"task_{path.stem}", path)
        if not stem or not path.is_file() or spec is None or spec.loader is None:
            raise InputError(f"!function {shown(self.spec)}: no such file beside it")
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
            return getattr(module, name)
        except Exception as error:
            raise InputError(f"!function {shown(self.spec)}: cannot be imported ({reason(error)})") from None


class TaskFolder:
    """The task files in a folder and those below it.

    Args:
        trusted: its files may name functions, metrics and files elsewhere.

    Raises:
        InputError: there is no such folder.
    """

    def __init__(self, folder: str | Path, trusted: bool = False):
        self.folder, self.trusted = Path(folder), trusted
        if not self.folder.is_dir():
            raise InputError(f"--include_path: {shown_path(self.folder)} is not a folder")

    def configs(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Every task and group with its file, ready for the harness.

        Raises:
            InputError: a file that cannot be read, or that is not safe to use.
        """
        for path in sorted(self.folder.glob("**/*.yaml")):
            with naming(f"--include_path: {shown_path(path)}"):
                config = self.read(path, ())
                if "task" in config or "group" in config:
                    yield path, self.usable(config, path)

    def read(self, path: Path, within: tuple[Path, ...]) -> dict[str, Any]:
        """A file's keys, and those of the files that it includes."""
        if path in within:
            raise InputError("includes itself")
        self.check_inside(path)
        try:
            config = yaml.load(read_text(path, LARGEST), loader_of(path.parent))
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise InputError(f"cannot be read ({reason(error)})") from None
        if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
            return {}
        merged: dict[str, Any] = {}
        included = config.pop("include", [])
        for name in included if isinstance(included, list) else [included]:
            more = self.read(self.inside(name, path), (*within, path))
            merged |= {key: value for key, value in more.items() if key != "task_list"}
        return merged | config

    def inside(self, name: Any, path: Path) -> Path:
        """The file that a task file names, beside it or from here, which lies in the folder."""
        if not isinstance(name, str) or not name:
            raise InputError(f"{shown(name)} is no name of a file")
        places = [path.parent / name, Path(name)]
        found = next((place.resolve() for place in places if place.is_file()), None)
        if found is None:
            raise InputError(f"{shown(name)}: no such file beside it")
        self.check_inside(found)
        return found

    def check_inside(self, path: Path) -> None:
        """Raise InputError for a file that lies elsewhere, links followed."""
        if not self.trusted and not path.resolve().is_relative_to(self.folder.resolve()):
            raise InputError(f"{shown_path(path)} lies outside of {shown_path(self.folder)}{REMEDY}")

    def usable(self, config: dict[str, Any], path: Path) -> dict[str, Any]:
        """A task, or a group and what it says of its tasks, with functions and records in place of their names."""
        if not self.trusted:
            self.refuse_code(config)
        for key in NAMES:
            if not isinstance(config.get(key, ""), (str, list)):
                raise InputError(f"{key} is {shown(config[key])}; a name is needed")
        made = {key: functions(value) for key, value in config.items()}
        if isinstance(config.get("task"), list):
            made["task"] = [self.usable(one, path) if isinstance(one, dict) else one for one in made["task"]]
        source, options = made.get("dataset_path"), made.get("dataset_kwargs") or {}
        if source in FILES:
            files = self.data_files(options, path)
            made |= {"custom_dataset": partial(read_splits, files), "dataset_kwargs": {}}
        elif not self.trusted:
            refuse_loader(source, options)
        return made

    def refuse_code(self, config: dict[str, Any]) -> None:
        """Raise InputError for what the harness would run."""
        from lm_eval.api import metrics  # noqa: F401  # it fills the registry
        from lm_eval.api.registry import metric_registry

        for key, value in config.items():
            if code := next(codes(value), None):
                raise InputError(f"{key} is code, !function {shown(code.spec)}{REMEDY}")
        for key in CODE:
            if config.get(key):
                raise InputError(f"{key} makes the harness run code, or read files{REMEDY}")
        for metric in config.get("metric_list") or []:
            name = metric.get("metric") if isinstance(metric, dict) else metric
            if not isinstance(metric, dict) or metric.get("hf_evaluate") or name not in metric_registry:
                raise InputError(f"metric {shown(name)} is not the harness's own, but a program to be fetched{REMEDY}")

    def data_files(self, options: Any, path: Path) -> dict[str, list[Path]]:
        """The files of every split."""
        if not isinstance(options, dict) or options.keys() != {"data_files"}:
            raise InputError(f"dataset_kwargs is {shown(options)}; data_files alone is needed")
        given = options["data_files"]
        splits = given if isinstance(given, dict) else {"train": given}
        return {
            split: [self.inside(name, path) for name in (names if isinstance(names, list) else [names])]
            for split, names in splits.items()
        }


def loader_of(folder: Path) -> Any:
    """A loader of plain YAML, to which whatever has a tag is code."""

    class Loader(yaml.SafeLoader):
        """For one folder."""

    def code(loader: Any, suffix: str, node: Any) -> Code:
        return Code(str(getattr(node, "value", suffix)), folder)

    Loader.add_multi_constructor("!", code)
    return Loader


def codes(value: Any) -> Iterator[Code]:
    """The functions that a value names; a group's own tasks are looked at one by one."""
    if isinstance(value, Code):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from codes(inner)


def functions(value: Any) -> Any:
    """A value with functions in place of their names."""
    if isinstance(value, dict):
        return {key: functions(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [functions(inner) for inner in value]
    return value.function() if isinstance(value, Code) else value


def refuse_loader(source: Any, options: Any) -> None:
    """Raise InputError for data that is neither a file in the folder nor a data set of the Hub."""
    if source is not None and (not isinstance(source, str) or not HUB_NAME.fullmatch(source) or Path(source).exists()):
        raise InputError(
            f"dataset_path is {shown(source)}; {', '.join(FILES)} with data_files, or a data set's name on the Hub, "
            f"owner/name, is needed{REMEDY}"
        )
    if not isinstance(options, dict) or options.keys() - HUB_OPTIONS:
        raise InputError(f"dataset_kwargs is {shown(options)}, and dataset_path names no files{REMEDY}")


def read_splits(files: dict[str, list[Path]], /, **_: Any) -> dict[str, Any]:
    """The records of every split as the harness has them."""
    from datasets import Dataset

    splits = {}
    for split, paths in files.items():
        records = [record for path in paths for record in rows(path)]
        if not records or not all(isinstance(record, dict) for record in records):
            raise InputError(f"{shown_path(paths[0])}: has no records, objects one a line")
        splits[split] = Dataset.from_list(records)
    return splits


def rows(path: Path) -> Iterator[Any]:
    """The records of a file."""
    name, ending = shown_path(path), path.suffix.lower()
    if ending in ARROW:
        yield from (record for _, record in arrow_records(path, name, ()))
    elif ending in JSON:
        with open_regular(path) as file:
            values = JsonValues(file, name)
            yield from (record for _, record in (values.array() if values.peek() == "[" else values))
    else:
        raise InputError(f"{name}: {', '.join((*JSON, *ARROW))} files are read")
