"""A model repository as Triton reads it, from files that are not trusted."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ...convert.errors import InputError
from ...convert.tokens.tokenization import TRUE

CONFIG_LIMIT = 2 * 2**20
SHOWN_NAMES = 5
PLACEHOLDER = re.compile(r"\$\{[^}\n]{0,80}\}?")
VERSION = re.compile(r"0|[1-9]\d{0,18}", re.ASCII)
COMMENT_OR_STRING = re.compile(r'"(?:\\.|[^"\\\n])*"?|#[^\n]*')


@dataclass
class Model:
    """One model's folder.

    Attributes:
        name: the folder's.
        config: its parsed inference.ModelConfig.
        versions: its numbered folders, the latest last.
    """

    name: str
    folder: Path
    config: Any
    versions: list[Path]

    def parameter(self, name: str) -> str | None:
        """A parameter's value; None if it is absent, empty or an unfilled placeholder."""
        value: str = self.config.parameters[name].string_value if name in self.config.parameters else ""
        return None if not value or value.startswith("${") else value

    def is_on(self, name: str) -> bool:
        """Whether a parameter that is true or false says true."""
        return (self.parameter(name) or "").lower() in TRUE

    def served(self) -> list[Path]:
        """The versions that Triton loads: those that version_policy names, the latest if it says nothing."""
        policy = self.config.version_policy
        if policy.HasField("specific"):
            return [version for version in self.versions if version_number(version) in policy.specific.versions]
        newest = policy.latest.num_versions if policy.HasField("latest") else 1
        return self.versions if policy.HasField("all") else self.versions[len(self.versions) - newest :][:newest]

    def is_engine(self) -> bool:
        return self.config.backend == "tensorrtllm" or "gpt_model_type" in self.config.parameters

    def has_file(self, name: str) -> bool:
        """Whether a file lies where a served version finds it beside its own."""
        return any((place / name).is_file() for place in (*self.served(), self.folder))

    def inputs(self) -> dict[str, Any]:
        return {tensor.name: tensor for tensor in self.config.input}

    def outputs(self) -> dict[str, Any]:
        return {tensor.name: tensor for tensor in self.config.output}


def read_repository(folder: Path, mount_dir: str) -> tuple[dict[str, Model], list[str]]:
    """Every model whose configuration can be read, and a line for each problem met on the way.

    Raises:
        InputError: no such folder, or tritonclient is not installed.
    """
    try:
        if not folder.is_dir():
            raise InputError(f"--check: {folder} is not a folder")
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        names = [entry.name for entry in entries if entry.is_dir()]
    except OSError as error:
        raise InputError(f"--check: {folder} cannot be read ({error.strerror})") from None
    protocol()
    problems = [f"{entry.name}: a link that leads nowhere" for entry in entries if not os.path.exists(entry)]
    if not names:
        return {}, [*problems, f"{folder} holds no model"]
    models = {}
    for name in names:
        try:
            model, found = read_model(folder, name, mount_dir)
        except OSError as error:
            model, found = None, [f"{name}: cannot be read ({error.strerror})"]
        problems += found
        if model is not None:
            models[name] = model
    return models, problems


def protocol() -> Any:
    """Triton's own definition of a model configuration.

    Raises:
        InputError: tritonclient is not installed.
    """
    try:
        from tritonclient.grpc import model_config_pb2
    except ImportError:
        raise InputError("--check needs Triton's protobuf: pip install 'tritonclient[grpc]'") from None
    return model_config_pb2


def enum_name(enum: Any, number: int) -> str | None:
    """What an enum of the protocol calls a number; None for one that it does not know."""
    return enum.Name(number) if number in enum.values() else None


def type_name(number: int) -> str:
    """ "TYPE_INT32" for a number of DataType, known or not."""
    return enum_name(protocol().DataType, number) or f"data_type {number}"


def read_model(repository: Path, name: str, mount_dir: str) -> tuple[Model | None, list[str]]:
    folder = repository / name
    text, problem = read_text(folder / "config.pbtxt", repository, CONFIG_LIMIT)
    if text is None:
        return None, [f"{name}/config.pbtxt: {problem}"]
    unfilled = placeholders(text, lambda path: exists(path, repository, mount_dir))
    more = f" and {len(unfilled) - SHOWN_NAMES} more" if len(unfilled) > SHOWN_NAMES else ""
    problems = [f"{name}/config.pbtxt: {', '.join(unfilled[:SHOWN_NAMES])}{more} not filled"] if unfilled else []
    config, problem = parse(text)
    if config is None:
        return None, problems or [f"{name}/config.pbtxt: {problem}"]
    numbered = [entry for entry in folder.iterdir() if VERSION.fullmatch(entry.name) and entry.is_dir()]
    versions = sorted(numbered, key=version_number)
    if not versions:
        problems.append(f"{name}: no version folder; make {name}/1, empty if the model has no files")
    unnamed = not (config.backend or config.platform) and config.default_model_filename in ("", "model.py")
    if unnamed and any((version / "model.py").exists() for version in versions):
        config.backend = "python"  # as Triton concludes
    if config.name and config.name != name:
        problems.append(f"{name}/config.pbtxt: name is {config.name!r}; Triton wants the folder's name")
    return Model(name, folder, config, versions), problems


def version_number(folder: Path) -> int:
    return int(folder.name)


def read_text(path: Path, repository: Path, limit: int) -> tuple[str | None, str]:
    """A UTF-8 text file inside the repository, or None and what is wrong with it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None, "no such file"
    except ValueError:
        return None, "a name with NUL is no file"
    except OSError as error:
        return None, f"cannot be opened ({error.strerror})"
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None, "not a regular file"
    with os.fdopen(descriptor, "rb") as file:
        if not path.resolve().is_relative_to(repository.resolve()):
            return None, "a link that leads out of the repository"
        data = file.read(limit + 1)
    if len(data) > limit:
        return None, f"larger than {limit // 2**20} MiB"
    try:
        return data.decode("utf-8"), ""
    except UnicodeDecodeError:
        return None, "not UTF-8 text"


def parse(text: str) -> tuple[Any, str]:
    """The text as an inference.ModelConfig, or None and what is wrong with it."""
    from google.protobuf import text_format

    try:
        return text_format.Parse(text, protocol().ModelConfig()), ""
    except RecursionError:
        return None, "nested too deeply"
    except (text_format.ParseError, ValueError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        return None, f"not a model configuration ({reason[:200]})"


def placeholders(text: str, is_path: Callable[[str], bool]) -> list[str]:
    """The template's ${names} that were left in, each once; in comments and in paths that exist they do no harm."""

    def code(found: re.Match[str]) -> str:
        value = re.sub(r'\\(["\\])', r"\1", found[0][1:-1])
        return "" if found[0].startswith("#") or ("${" in value and is_path(value)) else found[0]

    return list(dict.fromkeys(PLACEHOLDER.findall(COMMENT_OR_STRING.sub(code, text))))


def exists(path: str, repository: Path, mount_dir: str) -> bool:
    """Whether this is a path of the server, and something lies there."""
    here, _ = served_path(path, repository, mount_dir)
    return here is not None and os.path.exists(here)


def served_path(path: str, repository: Path, mount_dir: str) -> tuple[Path | None, str]:
    """Where a path of the server lies on this machine: below mount_dir in the repository, unless only it itself exists.

    Returns:
        the path, or None and what is wrong with it.
    """
    pure = PurePosixPath(path)
    if "\0" in path or ".." in pure.parts:
        return None, "an absolute path without .. is needed"
    if not pure.is_absolute():
        return None, "a relative path depends on where tritonserver is started"
    if pure.is_relative_to(mount_dir):
        inside = repository / pure.relative_to(mount_dir)
        if os.path.exists(inside) or not os.path.exists(pure):
            return inside, ""
    return Path(path), ""
