"""What is wrong with a model repository, found before a server is started; whoever wrote it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from ...convert.errors import InputError
from ..engine_folder import EngineFolder
from . import tensors
from .chain import bls_problems, chain_problems
from .ensemble import ensemble_problems
from .models.tokenization import TRUE
from .options import LOGITS_TYPES, POLICIES, dotted
from .repository import Model, protocol, read_repository, read_text, served_path, version_number
from .source import source_problems

LINE_LIMIT = 500  # characters
SCRIPT_LIMIT = 2**20
WORLD_SIZE = re.compile(r"\bworld_size[= ](\d{1,6})\b")
LOGITS_TENSORS = ("draft_logits", "context_logits", "generation_logits")
MODEL_TYPES = ("inflight_fused_batching", "inflight_batching", "V1", "v1")
PAGED_CONTEXT_SETTINGS = ("enable_kv_cache_reuse", "enable_chunked_context")
# Parameters that are true or false, and how the backend of each kind of model spells that.
ENGINE_SWITCHES = (
    *PAGED_CONTEXT_SETTINGS, "exclude_input_in_output", "normalize_log_probs", "enable_trt_overlap",
    "enable_context_fmha_fp32_acc", "multi_block_mode", "cuda_graph_mode",
)  # fmt: skip
PYTHON_SWITCHES = ("add_special_tokens", "skip_special_tokens", "chat", "decoupled", "accumulate_tokens")
ENGINE_WORDS = ("true", "1", "false", "0")
PYTHON_WORDS = (*TRUE, "false", "0", "no", "n", "f")


def check(folder: str | Path, mount_dir: str = "/models") -> list[str]:
    """Examine a repository: every configuration, how the ensemble connects, engine and tokenizer.

    Nothing in the repository is run. Paths below mount_dir are looked up in the repository itself.

    Returns:
        one line for each problem; none means that Triton will load it, as far as can be told without a GPU.

    Raises:
        InputError: no such folder, or tritonclient is not installed.
    """
    repository = Path(folder)
    models, problems = read_repository(repository, mount_dir)
    for model in models.values():
        problems += model_problems(model, repository)
        if model.config.platform == "ensemble" or model.config.HasField("ensemble_scheduling"):
            problems += ensemble_problems(model, models, protocol().DataType.Name)
    engines = {}
    for model in models.values():
        if model.is_engine():
            engine, found = engine_of(model, repository, mount_dir)
            problems += found
            if engine is not None:
                engines[model.name] = engine
                problems += engine_problems(model, engine) + release_problems(models.values(), engine, model)
    problems += bls_problems(models) + chain_problems(models, engines, repository, mount_dir)
    problems += launch_problems(engines, repository)
    return [printable(problem) for problem in dict.fromkeys(problems)]


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
    for number in config.version_policy.specific.versions:
        if number not in map(version_number, model.versions):
            problems.append(f"{model.name}: version_policy names {number}, but there is no {model.name}/{number}")
    if config.backend == "python":
        problems += switch_problems(model, PYTHON_SWITCHES, PYTHON_WORDS)
        for version in model.served():
            problems += source_problems(model, version, repository)
    return problems


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
        if reason and model.is_on(name):
            problems.append(f"{model.name}: {name} is on, but {reason}")
    if not model.is_on("enable_chunked_context") and (reason := engine.why_chunked_context()):
        problems.append(f"{model.name}: {reason}")
    if model.config.backend == "tensorrtllm":
        problems += choice_problems(model, "gpt_model_type", MODEL_TYPES)
        problems += switch_problems(model, ENGINE_SWITCHES, ENGINE_WORDS)
        if any(group.kind == group.KIND_MODEL for group in model.config.instance_group):
            problems.append(f"{model.name}: instance_group is KIND_MODEL; the backend places the engine: KIND_CPU")
    problems += choice_problems(model, "batch_scheduler_policy", POLICIES)
    beams = engine.max_beam_width
    problems += number_problems(model, "max_beam_width", lambda beam: 1 <= beam <= beams, f"1 to {beams}")
    problems += number_problems(model, "kv_cache_free_gpu_mem_fraction", lambda part: 0 < part <= 1, "above 0, up to 1")
    return problems + number_problems(model, "max_tokens_in_paged_kv_cache", lambda count: count >= 1, "at least 1")


def choice_problems(model: Model, name: str, choices: tuple[str, ...]) -> list[str]:
    value = model.parameter(name)
    if value is None or value in choices:
        return []
    return [f"{model.name}: {name} is {value!r}; one of {', '.join(choices)} is needed"]


def number_problems(model: Model, name: str, fits: Callable[[float], bool], limits: str) -> list[str]:
    value = model.parameter(name)
    try:
        good = value is None or fits(float(value))
    except ValueError:
        good = False
    return [] if good else [f"{model.name}: {name} is {value!r}; {limits} is what the engine can take"]


def switch_problems(model: Model, names: tuple[str, ...], words: tuple[str, ...]) -> list[str]:
    return [
        f"{model.name}: {name} is {value!r}; true or false is needed"
        for name in names
        if (value := model.parameter(name)) is not None and value.lower() not in words
    ]


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


def launch_problems(engines: dict[str, EngineFolder], repository: Path) -> list[str]:
    """A launch.sh, where there is one that says how many processes it starts, must start one for each rank."""
    text, _ = read_text(repository / "launch.sh", repository, SCRIPT_LIMIT)
    stated = WORLD_SIZE.search(text or "")
    return [
        f"launch.sh: world_size is {stated[1]}, the engine of {name} has {engine.world_size} ranks"
        for name, engine in engines.items()
        if stated and int(stated[1]) != engine.world_size
    ]
