"""What is wrong with a model repository, found before a server is started; whoever wrote it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

from ...convert.errors import InputError
from ..engine_folder import EngineFolder
from . import tensors
from .ensemble import ensemble_problems
from .generate import LOGITS_TYPES, POLICIES, dotted, largest_id, open_tokenizer
from .repository import Model, protocol, read_repository, read_text, served_path

SOURCE_LIMIT = 4 * 2**20
TOKENIZER_LIMIT = 256 * 2**20
LINE_LIMIT = 500  # characters
LOGITS_TENSORS = ("draft_logits", "context_logits", "generation_logits")
MODEL_TYPES = ("inflight_fused_batching", "inflight_batching", "V1", "v1")
PAGED_CONTEXT_SETTINGS = ("enable_kv_cache_reuse", "enable_chunked_context")


def check(folder: str | Path, mount_dir: str = "/models") -> list[str]:
    """Examine a repository: every configuration, how the ensemble connects, engine and tokenizer.

    Nothing in the repository is run. Paths below mount_dir are looked up in the repository itself.

    Returns:
        one line for each problem; none means that Triton will load it, as far as can be told without a GPU.

    Raises:
        InputError: no such folder, or tritonclient is not installed.
    """
    repository = Path(folder)
    models, problems = read_repository(repository)
    for model in models.values():
        problems += model_problems(model, repository)
        if model.config.platform == "ensemble" or model.config.HasField("ensemble_scheduling"):
            problems += ensemble_problems(model, models, protocol().DataType.Name)
    engines = []
    for model in models.values():
        if model.is_engine():
            engine, found = engine_of(model, repository, mount_dir)
            problems += found
            if engine is not None:
                engines.append(engine)
                problems += engine_problems(model, engine) + release_problems(models.values(), engine, model)
    problems += bls_problems(models) + tokenizer_problems(models, engines, repository, mount_dir)
    return [printable(problem) for problem in problems]


def printable(problem: str) -> str:
    """One line of bounded length; names come from files, which may hold anything."""
    line = "".join(character if character.isprintable() else "?" for character in problem[: LINE_LIMIT + 1])
    return line if len(line) <= LINE_LIMIT else f"{line[:LINE_LIMIT]}..."


def model_problems(model: Model, repository: Path) -> list[str]:
    """What is wrong with a model by itself."""
    config, problems = model.config, []
    preferred = [size for size in config.dynamic_batching.preferred_batch_size if size > config.max_batch_size]
    if preferred:
        problems.append(f"{model.name}: preferred_batch_size {preferred[0]} is above max_batch_size")
    if not (config.backend or config.platform):
        problems.append(f"{model.name}: names neither a backend nor a platform")
    if config.max_batch_size < 0:
        problems.append(f"{model.name}: max_batch_size is {config.max_batch_size}")
    for tensor in [*config.input, *config.output]:
        if not tensor.data_type:
            problems.append(f"{model.name}: {tensor.name or 'a tensor'} has no data_type")
    for group in config.instance_group:
        if group.count < 0:
            problems.append(f"{model.name}: instance_group count is {group.count}")
    if config.backend == "python":
        for version in model.versions:
            problems += source_problems(model, version, repository)
    return problems


def source_problems(model: Model, version: Path, repository: Path) -> list[str]:
    """A Python model's file must be there and compile; it is not run."""
    path = version / (model.config.default_model_filename or "model.py")
    name = f"{model.name}/{version.name}/{path.name}"
    text, problem = read_text(path, repository, SOURCE_LIMIT)
    if text is None:
        return [f"{name}: {problem}"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(text, name, "exec", dont_inherit=True)
    except SyntaxError as error:
        return [f"{name}: line {error.lineno} is not Python ({error.msg})"]
    except (ValueError, RecursionError, MemoryError) as error:
        return [f"{name}: does not compile ({str(error) or type(error).__name__})"]
    return [] if "TritonPythonModel" in text else [f"{name}: has no class TritonPythonModel"]


def engine_of(model: Model, repository: Path, mount_dir: str) -> tuple[EngineFolder | None, list[str]]:
    where = model.parameter("gpt_model_path")
    if where is None:
        return None, [f"{model.name}: parameter gpt_model_path does not name the engine's folder"]
    path, problem = served_path(where, repository, mount_dir)
    if path is None:
        return None, [f"{model.name}: gpt_model_path {where}: {problem}"]
    try:
        return EngineFolder(path, f"{model.name}: gpt_model_path"), []
    except InputError as error:
        return None, [str(error)]
    except OSError as error:
        return None, [f"{model.name}: gpt_model_path {where}: cannot be read ({error.strerror})"]


def engine_problems(model: Model, engine: EngineFolder) -> list[str]:
    """Where the configuration asks of the engine what it was not built for."""
    problems, batch = [], model.config.max_batch_size
    if batch > engine.max_batch_size:
        problems.append(f"{model.name}: max_batch_size is {batch}, the engine was built for {engine.max_batch_size}")
    logits = LOGITS_TYPES.get(engine.logits_dtype, engine.logits_dtype)
    for tensor in [*model.config.input, *model.config.output]:
        stated = protocol().DataType.Name(tensor.data_type).removeprefix("TYPE_")
        if tensor.name in LOGITS_TENSORS and stated != logits:
            problems.append(f"{model.name}: {tensor.name} is TYPE_{stated}, the engine's logits are TYPE_{logits}")
    for name in PAGED_CONTEXT_SETTINGS:
        reason = engine.why_no_paged_context()
        if reason and (model.parameter(name) or "").lower() in ("true", "1"):
            problems.append(f"{model.name}: {name} is on, but {reason}")
    problems += choice_problems(model, "gpt_model_type", MODEL_TYPES) if model.config.backend == "tensorrtllm" else []
    problems += choice_problems(model, "batch_scheduler_policy", POLICIES)
    problems += number_problems(model, "max_beam_width", 1, engine.max_beam_width)
    problems += number_problems(model, "kv_cache_free_gpu_mem_fraction", 0, 1)
    return problems + number_problems(model, "max_tokens_in_paged_kv_cache", 1, float("inf"))


def choice_problems(model: Model, name: str, choices: tuple[str, ...]) -> list[str]:
    value = model.parameter(name)
    if value is None or value in choices:
        return []
    return [f"{model.name}: {name} is {value!r}; one of {', '.join(choices)} is needed"]


def number_problems(model: Model, name: str, least: float, most: float) -> list[str]:
    value = model.parameter(name)
    try:
        good = value is None or least <= float(value) <= most
    except ValueError:
        good = False
    limits = f"{least:g} to {most:g}" if most != float("inf") else f"at least {least:g}"
    return [] if good else [f"{model.name}: {name} is {value!r}; {limits} is what the engine can take"]


def release_problems(models: Iterable[Model], engine: EngineFolder, owner: Model) -> list[str]:
    """Tensors that belong to templates of another release than the engine's."""
    problems = []
    for model in models:
        if model is owner:
            known = [*tensors.ENGINE_INPUTS, *tensors.ENGINE_OUTPUTS]
        elif uses(model, owner.name):
            known = [*tensors.TEXT_INPUTS, *tensors.TEXT_OUTPUTS]
        else:
            continue
        declared = set(model.inputs()) | set(model.outputs())
        for tensor in known:
            if tensor.name in declared and not tensor.exists(engine.release):
                releases = f"{dotted(tensor.since)} to {dotted(tensor.until)}"
                problems.append(
                    f"{model.name}: {tensor.name} is of TensorRT-LLM {releases}, the engine of {engine.version}"
                )
    return problems


def uses(model: Model, engine: str) -> bool:
    """An ensemble with the engine as a step, or a BLS model that calls it."""
    steps = [step.model_name for step in model.config.ensemble_scheduling.step]
    return engine in steps or model.parameter("tensorrt_llm_model_name") == engine


def bls_problems(models: dict[str, Model]) -> list[str]:
    """A BLS model and the engine that it calls must both be decoupled, or both not."""
    problems = []
    for model in models.values():
        called = model.parameter("tensorrt_llm_model_name")
        if called is None and model.name == "tensorrt_llm_bls":
            called = "tensorrt_llm"
        if called is None:
            continue
        if called not in models:
            problems.append(f"{model.name}: tensorrt_llm_model_name {called!r} is no model of this repository")
        elif decoupled(model) != decoupled(models[called]):
            states = f"{str(decoupled(model)).lower()}, {called}'s is {str(decoupled(models[called])).lower()}"
            problems.append(f"{model.name}: decoupled is {states}; make them equal")
        elif model.config.max_batch_size != models[called].config.max_batch_size:
            sizes = f"{model.config.max_batch_size}, {called}'s is {models[called].config.max_batch_size}"
            problems.append(f"{model.name}: max_batch_size is {sizes}; make them equal")
    return problems


def decoupled(model: Model) -> bool:
    return bool(model.config.model_transaction_policy.decoupled)


def tokenizer_problems(
    models: dict[str, Model], engines: list[EngineFolder], repository: Path, mount_dir: str
) -> list[str]:
    """Every tokenizer named must load without running code, fit every engine, and be the same throughout."""
    users: dict[str, str] = {}
    problems = []
    for model in models.values():
        where = model.parameter("tokenizer_dir")
        if where is not None and model.config.backend == "python":
            users.setdefault(where, model.name)
        elif where is None and model.name in ("preprocessing", "postprocessing"):
            problems.append(f"{model.name}: parameter tokenizer_dir does not name the tokenizer's folder")
    if len(users) > 1:
        problems.append("tokenizer_dir differs: " + ", ".join(f"{where} in {name}" for where, name in users.items()))
    for where, name in users.items():
        path, problem = served_path(where, repository, mount_dir)
        if path is None:
            problems.append(f"{name}: tokenizer_dir {where}: {problem}")
            continue
        try:
            refuse_odd_files(path, name)
            largest = largest_id(open_tokenizer(path, f"{name}: tokenizer_dir"))
        except InputError as error:
            problems.append(str(error))
            continue
        except OSError as error:
            problems.append(f"{name}: tokenizer_dir {where}: cannot be read ({error.strerror})")
            continue
        problems += [
            f"{name}: the tokenizer has token id {largest}, the engine a vocabulary of {engine.vocab_size}"
            for engine in engines
            if largest >= engine.vocab_size
        ]
    return problems


def refuse_odd_files(folder: Path, owner: str) -> None:
    """Raise InputError for what no tokenizer has: huge files, pipes, devices."""
    for path in folder.glob("*"):
        if not (path.is_file() or path.is_dir()):
            raise InputError(f"{owner}: tokenizer_dir {folder}: {path.name} is not a regular file")
        if path.is_file() and path.stat().st_size > TOKENIZER_LIMIT:
            raise InputError(f"{owner}: tokenizer_dir {folder}: {path.name} is too large for a tokenizer")
