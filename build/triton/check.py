"""What is wrong with a model repository, found before a server is started; whoever wrote it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ...convert.errors import LINE, InputError, printable, shown
from ...convert.tokens.tokenization import TRUE
from .. import releases
from ..engine_folder import EngineFolder
from ..preview import Preview
from . import tensors
from .backend_rules import backend_rules_broken
from .chain import bls_problems, chain_problems
from .ensemble import ensemble_problems
from .options import LOGITS_TYPES, dotted
from .parameters import unknown_parameters
from .repository import Model, read_repository, read_text, served_path, type_name, version_number
from .server_rules import rules_broken
from .source import source_problems

SCRIPT_LIMIT = 2**20
WORLD_SIZE = re.compile(r"\bworld_size[= ](\d{1,6})\b")
LOGITS_TENSORS = ("draft_logits", "context_logits", "generation_logits")
PAGED_CONTEXT_SETTINGS = ("enable_kv_cache_reuse", "enable_chunked_context")
# Parameters of Python models that are true or false, and how they spell that.
PYTHON_SWITCHES = (
    "add_special_tokens", "skip_special_tokens", "chat", "decoupled", "accumulate_tokens", "exclude_input_in_output",
)  # fmt: skip
PYTHON_WORDS = (*TRUE, "false", "0", "no", "n", "f")
# What only the machine that serves can tell.
NEVER_CHECKED = (
    "whether the GPUs that serve are there and of the engine's kind (enginesmith check-engine, on that machine)",
    "whether engine files load, and what the memory of the GPUs holds",
)


@dataclass(frozen=True)
class Findings:
    """Lines about a repository.

    Attributes:
        problems: what is wrong.
        not_checked: what might be wrong all the same, because this check does not look at it.
    """

    problems: list[str]
    not_checked: list[str]


def check(folder: str | Path, mount_dir: str = "/models") -> list[str]:
    """The problems that examine finds."""
    return examine(folder, mount_dir).problems


def examine(folder: str | Path, mount_dir: str = "/models") -> Findings:
    """Examine a repository: every configuration, how the ensemble connects, engine and tokenizer.

    Nothing in the repository is run. Paths below mount_dir are looked up in the repository itself.

    Returns:
        a line for each problem; none means that Triton will load it, as far as can be told without a GPU.

    Raises:
        InputError: no such folder, or tritonclient is not installed.
    """
    repository = Path(folder)
    models, problems = read_repository(repository, mount_dir)
    for model in models.values():
        problems += model_problems(model, repository, mount_dir)
        if model.config.platform == "ensemble" or model.config.HasField("ensemble_scheduling"):
            problems += ensemble_problems(model, models)
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
    unique = [printable(problem, LINE - len("FAILED ")) for problem in dict.fromkeys(problems)]
    return Findings(unique, [printable(line) for line in not_checked(models)])


def not_checked(models: dict[str, Model]) -> list[str]:
    """What this check leaves open about these models."""
    lines = list(NEVER_CHECKED)
    for model in models.values():
        config = model.config
        if config.backend == "python" and not model.has_file("tokenization.py"):
            lines.append(f"{model.name}: what its model.py does with requests and parameters")
        elif config.backend not in ("", "python", "tensorrtllm"):
            lines.append(f"{model.name}: files and parameters of the backend {config.backend!r}")
        if config.model_warmup:
            lines.append(f"{model.name}: whether it answers its model_warmup")
        if any(group.gpus for group in config.instance_group):
            lines.append(f"{model.name}: whether the GPUs of its instance_group are there")
        if model.config.backend == "tensorrtllm" and not config.instance_group:
            lines.append(f"{model.name}: without an instance_group Triton makes one instance for each GPU that it sees")
    return lines


def model_problems(model: Model, repository: Path, mount_dir: str) -> list[str]:
    """What is wrong with a model by itself."""
    config = model.config
    problems = [*rules_broken(config), *unknown_parameters(model)]
    for number in config.version_policy.specific.versions:
        if number not in map(version_number, model.versions):
            problems.append(f"version_policy names {number}, but there is no {model.name}/{number}")
    if model.versions and not model.served():
        problems.append("version_policy serves no version")
    if config.backend == "python":
        problems += switch_problems(model)
        problems += environment_problems(model, repository, mount_dir)
        tokenizes = model.parameter("tokenizer_dir") is not None and model.parameter("multimodal_model_path") is None
        on_gpu = any(group.kind == group.KIND_GPU or group.gpus for group in config.instance_group)
        if tokenizes and on_gpu and not model.is_engine():
            problems.append("instance_group is on GPUs, but text needs none: KIND_CPU")
    if model.is_engine():
        problems += path_problems(model, "encoder_model_path", repository, mount_dir)
    if config.HasField("sequence_batching") and (model.is_engine() or model.parameter("tokenizer_dir") is not None):
        problems.append("sequence_batching refuses every request without a correlation id; leave it out")
    problems = [f"{model.name}: {problem}" for problem in problems]
    for version in model.served() if config.backend == "python" else ():
        problems += source_problems(model, version, repository)
    return problems


def environment_problems(model: Model, repository: Path, mount_dir: str) -> list[str]:
    """Parameters that Triton's Python backend reads itself."""
    problems, forced = [], model.parameter("FORCE_CPU_ONLY_INPUT_TENSORS")
    if forced is not None and forced not in ("yes", "no"):
        problems.append(f"FORCE_CPU_ONLY_INPUT_TENSORS is {shown(forced)}; yes or no is needed")
    where = model.parameter("EXECUTION_ENV_PATH")
    if where is not None and not where.startswith("$$TRITON_MODEL_DIRECTORY"):
        problems += path_problems(model, "EXECUTION_ENV_PATH", repository, mount_dir)
    return problems


def path_problems(model: Model, name: str, repository: Path, mount_dir: str) -> list[str]:
    """A parameter that names a file or folder, which must be there."""
    where = model.parameter(name)
    path, problem = (None, "") if where is None else served_path(where, repository, mount_dir)
    if where is None or (path is not None and path.exists()):
        return []
    return [f"{name} {shown(where)}: {problem or 'no such file'}"]


def engine_of(model: Model, repository: Path, mount_dir: str) -> tuple[EngineFolder | None, list[str]]:
    where = model.parameter("gpt_model_path")
    if where is None:
        return None, [f"{model.name}: parameter gpt_model_path does not name the engine's folder"]
    path, problem = served_path(where, repository, mount_dir)
    if path is None:
        return None, [f"{model.name}: gpt_model_path {where}: {problem}"]
    try:
        release = model.parameter("preview_release")
        if release is not None:
            return Preview(path, releases.find(release), f"{model.name}: gpt_model_path"), []
        return EngineFolder(path, f"{model.name}: gpt_model_path"), []
    except InputError as error:
        return None, [str(error)]
    except OSError as error:
        return None, [f"{model.name}: gpt_model_path {where}: cannot be read ({error.strerror})"]


def engine_problems(model: Model, engine: EngineFolder) -> list[str]:
    """Where the configuration asks of the engine what it was not built for, or of its backend what it does not know."""
    problems, batch = list(backend_rules_broken(model, engine)), model.config.max_batch_size
    if batch > engine.max_batch_size:
        problems.append(f"max_batch_size is {batch}, the engine was built for {engine.max_batch_size}")
    logits = f"TYPE_{LOGITS_TYPES.get(engine.logits_dtype, engine.logits_dtype)}"
    for tensor in [*model.config.input, *model.config.output]:
        if tensor.name in LOGITS_TENSORS and type_name(tensor.data_type) != logits:
            problems.append(f"{tensor.name} is {type_name(tensor.data_type)}, the engine's logits are {logits}")
    for name in PAGED_CONTEXT_SETTINGS:
        if (reason := engine.why_no_paged_context()) and model.is_on(name):
            problems.append(f"{name} is on, but {reason}")
    if not model.is_on("enable_chunked_context") and (reason := engine.why_chunked_context()):
        problems.append(reason)
    return [f"{model.name}: {problem}" for problem in problems]


def switch_problems(model: Model) -> list[str]:
    return [
        f"{name} is {shown(value)}; true or false is needed"
        for name in PYTHON_SWITCHES
        if (value := model.parameter(name)) is not None and value.lower() not in PYTHON_WORDS
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
