"""What the commands do, as functions; ``import enginesmith`` offers them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .build.build_options import BuildOptions
from .build.triton.options import TritonOptions
from .convert.errors import InputError, shown
from .convert.evaluate.options import EvaluateOptions
from .convert.files.bounds import path_of
from .convert.generate.options import BenchOptions, GenerateOptions
from .convert.job.options import ConvertOptions
from .convert.models.families import FAMILIES
from .convert.models.family import Family
from .convert.prove.options import VerifyOptions
from .convert.readers.check import CheckedFolder, check_folder

if TYPE_CHECKING:
    from .build.network import Nodes
    from .build.plan import Plan
    from .build.steps import Step
    from .build.triton.check import Findings
    from .convert.evaluate.job import Evaluated
    from .convert.generate.bench import Measured
    from .convert.generate.job import Generated
    from .convert.generate.prompts import Prompt
    from .convert.job.compare import Comparison
    from .convert.job.conversion import Converted
    from .convert.prove.encoders import EncoderAccuracy
    from .convert.prove.execution import Accuracy

Kind = TypeVar("Kind")
# Told the layer that a job is at, and what it does there.
OnLayer = Callable[..., None]


def quiet(*_: object) -> None:
    """No progress."""


@dataclass(frozen=True)
class Verdict:
    """What ``verify`` found.

    Attributes:
        problems: what is wrong with the files; empty where each rank holds exactly what its config implies.
        accuracy: beside the source; None where none was given, or the files are wrong.
        failures: the problems, and a gate that the accuracy does not pass.
    """

    problems: list[str]
    accuracy: Accuracy | EncoderAccuracy | None
    failures: list[str]

    @property
    def ok(self) -> bool:
        return not self.failures


@dataclass(frozen=True)
class CheckedEngine:
    """Whether an engine runs on a machine.

    Attributes:
        reasons: why it does not; empty where it does.
        warnings: what is worth knowing all the same.
    """

    reasons: list[str]
    warnings: list[str]

    @property
    def ok(self) -> bool:
        return not self.reasons


def families() -> tuple[Family, ...]:
    """The models that can be converted."""
    return FAMILIES


def convert(options: ConvertOptions, on_progress: OnLayer = quiet) -> Converted:
    """Convert a Hugging Face folder into one for TensorRT-LLM or other runtimes; it appears when it is complete.

    Args:
        on_progress: called with (layer, phase, tokens).
    """
    from .convert.job.checked import checked

    found = checked(kind(options, ConvertOptions))
    from .convert.job.conversion import Job, convert_job

    return convert_job(Job(options, found), on_progress)


def verify(
    checkpoint_dir: str | Path,
    reference: str | Path | None = None,
    options: VerifyOptions | None = None,
    on_progress: OnLayer = quiet,
) -> Verdict:
    """Check a checkpoint: every tensor that its config implies, then what its integers compute beside the source.

    Args:
        reference: the Hugging Face folder that it was made of; None checks the structure alone.
        on_progress: called with (layer, phase).
    """
    from .convert.peers import started
    from .convert.prove.proven import opened
    from .convert.prove.verify import (
        accuracy_failures,
        both,
        check_gate,
        check_same_files,
        idle_beside,
        measure_beside,
        reference_of,
        structure_problems,
    )

    options = kind(options or VerifyOptions(), VerifyOptions)
    how = options.text, options.chunks, options.seq_len, options.device
    reference = None if reference is None else path_of(reference, "reference")
    checkpoint = opened(path_of(checkpoint_dir, "checkpoint_dir"), options.reader, peers=started())
    check_gate(checkpoint.model, options.max_ppl_increase)
    source = None
    with ThreadPoolExecutor(2) as beside:
        if reference is not None:
            try:
                source = reference_of(checkpoint, reference, *how)
            except InputError:  # at once, unless files are wrong: then that is the verdict
                if not structure_problems(checkpoint, values=False):
                    raise
        changed = beside.submit(checkpoint.manifest.problems)

        def wrong() -> list[str]:
            if source is not None:
                check_same_files(checkpoint, source)
            return structure_problems(checkpoint, changed=changed.result)

        def measured() -> Accuracy | EncoderAccuracy | None:
            return None if source is None else measure_beside(checkpoint, source, *how, on_progress)

        if source is not None and idle_beside(options.device) and not structure_problems(checkpoint, values=False):
            problems, accuracy = both(beside, wrong, measured)
        else:
            problems = wrong()
            accuracy = None if problems else measured()
    limits = options.max_ppl_increase, options.max_distance
    return Verdict(problems, accuracy, problems + accuracy_failures(accuracy, *limits))


def read_prompts(file: str | Path) -> list[Prompt]:
    """The prompts of a file: lines of text, or records with prompt, or with messages, tools, chat_template_kwargs."""
    from .convert.generate.prompts import read_prompts

    return read_prompts(path_of(file, "file"))


def generate(
    checkpoint_dir: str | Path,
    prompts: Sequence[str | Prompt],
    options: GenerateOptions | None = None,
    tokenizer_dir: str | Path | None = None,
    reference: str | Path | None = None,
    on_piece: Callable[[int, str], None] | None = None,
) -> Generated:
    """Continue prompts with what a checkpoint computes, without TensorRT.

    Args:
        prompts: texts, or what ``read_prompts`` gives.
        tokenizer_dir: a folder with the tokenizer; the reference, or the checkpoint, if None.
        reference: the Hugging Face folder that it was made of, which answers too, in float32.
        on_piece: called with (number of a prompt, text that its answer goes on with), as it comes.
    """
    from .convert.generate.job import generate as job
    from .convert.generate.prompts import Prompt

    options = kind(options or GenerateOptions(), GenerateOptions)
    if not isinstance(prompts, (list, tuple)) or not all(isinstance(one, (str, Prompt)) for one in prompts):
        raise InputError(f"prompts is {shown(prompts)}; a list of texts is needed")
    asked = [Prompt("the prompt", one) if isinstance(one, str) else one for one in prompts]
    words, source = (None if one is None else path_of(one, "folder") for one in (tokenizer_dir, reference))
    return job(path_of(checkpoint_dir, "checkpoint_dir"), asked, options, words, source, on_piece or quiet)


def bench(
    checkpoint_dir: str | Path, options: BenchOptions | None = None, reference: str | Path | None = None
) -> list[Measured]:
    """Time how a checkpoint reads prompts and continues them, without TensorRT.

    Args:
        reference: the Hugging Face folder that it was made of, which transformers executes in the checkpoint's dtype.
    """
    from .convert.generate.bench import bench as job

    source = None if reference is None else path_of(reference, "folder")
    return job(path_of(checkpoint_dir, "checkpoint_dir"), kind(options or BenchOptions(), BenchOptions), source)


def evaluate(
    checkpoint_dir: str | Path,
    options: EvaluateOptions,
    tokenizer_dir: str | Path | None = None,
    reference: str | Path | None = None,
    on_answers: Callable[[str, str, int, int], None] | None = None,
) -> Evaluated:
    """Have a checkpoint answer tasks of lm-evaluation-harness with what it computes, without TensorRT.

    Args:
        tokenizer_dir: a folder with the tokenizer; the reference, or the checkpoint, if None.
        reference: the Hugging Face folder that it was made of, which answers too, in float32.
        on_answers: called with (who, kind of request, how many are done, of how many).
    """
    from .convert.evaluate.job import evaluate as job

    words, source = (None if one is None else path_of(one, "folder") for one in (tokenizer_dir, reference))
    options = kind(options, EvaluateOptions)
    return job(path_of(checkpoint_dir, "checkpoint_dir"), options, words, source, on_answers or quiet)


def compare(
    options: ConvertOptions,
    algorithms: Sequence[str],
    text: str = VerifyOptions.text,
    chunks: int = 20,
    seq_len: int = 512,
    on_progress: OnLayer = quiet,
) -> Comparison:
    """Compare quantizations of a model: size, and accuracy beside the float32 source; no checkpoint is written.

    Args:
        options: of every one of them; output_dir and quant do not count.
        algorithms: QuantAlgo names with settings of their own, such as "W4A16_AWQ:rounding=gptq".
        text, chunks, seq_len: held-out text, sequences of it, and tokens in each.
    """
    from .convert.job.algorithms import CheckedComparison

    options, how = replace(kind(options, ConvertOptions), propagate="float"), VerifyOptions(text, chunks, seq_len)
    checked = CheckedComparison(
        options, names(algorithms, "algorithms", "QuantAlgo names"), how.text, how.chunks, how.seq_len
    )
    from .convert.job.compare import compare_checked

    return compare_checked(checked, on_progress)


def plugins(checkpoint_dir: str | Path) -> Mapping[int, list[Nodes]]:
    """The TensorRT-LLM plugins of a checkpoint's engines: by rank, each layer's nodes and those outside."""
    from .build.checkpoint_folder import CheckpointFolder
    from .build.network import rank_nodes

    checkpoint = CheckpointFolder(path_of(checkpoint_dir, "checkpoint_dir"))
    return {rank: rank_nodes(checkpoint, rank) for rank in range(checkpoint.world_size)}


def plan(checkpoint_dir: str | Path, options: BuildOptions | None = None) -> Plan:
    """The plan of a checkpoint's engines on one kind of GPU; what cannot work is refused here.

    Args:
        options: ``flags`` are trtllm-build's, by name.
    """
    from .build.build_options import plan_of
    from .build.checkpoint_folder import CheckpointFolder

    options = kind(options or BuildOptions(), BuildOptions)
    return plan_of(CheckpointFolder(path_of(checkpoint_dir, "checkpoint_dir")), options)


def write_plan(plan: Plan, output_dir: str | Path) -> Path:
    """Write build_config.json, and a build.sh that builds in NVIDIA's container, into a folder that is new."""
    from .build import script
    from .convert.files.staging import Staging

    with Staging(path_of(output_dir, "output_dir")) as staging:
        script.write_plan(plan, staging.folder, staging.final)
        staging.commit()
    return Path(output_dir)


def build(plan: Plan, output_dir: str | Path) -> bool:
    """Build a plan's engines where TensorRT-LLM is installed; False if a rank failed, after which it can go on."""
    from .build import engines

    return engines.build(plan, Path(path_of(output_dir, "output_dir")))


def check(folder: str | Path, runtimes: Sequence[str] = ()) -> CheckedFolder:
    """Which runtimes read a folder right, which refuse it, and which would misread it without a word.

    Args:
        runtimes: names of RUNTIMES; all of them if none is named.
    """
    return check_folder(path_of(folder, "folder"), names(runtimes, "runtimes", "runtimes"))


def check_engine(engine_dir: str | Path, gpu: str | None = None, release: str | None = None) -> CheckedEngine:
    """Whether an engine can run on this machine, or with another GPU or release than this machine has."""
    from .build import gpus, releases
    from .build.check_engine import Machine, reasons_against, this_machine, warnings_about
    from .build.engine_folder import EngineFolder

    engine, machine = EngineFolder(path_of(engine_dir, "engine_dir"), "ENGINE_DIR"), this_machine()
    wanted = BuildOptions(gpu=gpu, release=release)
    if wanted.gpu is not None:
        machine = replace(machine, gpus=[gpus.find(wanted.gpu)] * engine.world_size)
    if wanted.release is not None:
        known = releases.find(wanted.release)
        machine = Machine(known.version, known.tensorrt, machine.gpus, f"in release {known.version}")
    return CheckedEngine(list(reasons_against(engine, machine)), list(warnings_about(engine, machine)))


def triton(options: TritonOptions) -> Path:
    """Make a model repository for Triton Inference Server: text in, text out."""
    from .build.triton.generate import generate

    return generate(kind(options, TritonOptions))


def check_repository(folder: str | Path, mount_dir: str = "/models") -> Findings:
    """Examine a model repository as tritonserver and TensorRT-LLM's backend read it.

    Args:
        mount_dir: where the server will find it.
    """
    from .build.triton.check import examine

    return examine(path_of(folder, "folder"), path_of(mount_dir, "mount_dir"))


def run(
    recipe: str | Path,
    model_dir: str | Path | None = None,
    output_dir: str | Path | None = None,
    on_step: Callable[[str, str], None] = quiet,
    on_progress: OnLayer = quiet,
) -> list[Step]:
    """Run a release recipe; steps whose inputs did not change are skipped, and a step that failed ends it.

    Args:
        model_dir, output_dir: instead of the recipe's.
        on_step: called with (step, status).
    """
    from .build.pipeline import Run
    from .build.recipe import read_recipe

    model_dir = None if model_dir is None else path_of(model_dir, "model_dir")
    output_dir = None if output_dir is None else path_of(output_dir, "output_dir")
    return Run(read_recipe(Path(path_of(recipe, "recipe")), model_dir, output_dir), on_step, on_progress).run()


def kind(given: Any, wanted: type[Kind]) -> Kind:
    """Options of the class that a function takes, or InputError."""
    if not isinstance(given, wanted):
        raise InputError(f"options is {shown(given)}; {wanted.__name__} are needed")
    return given


def names(given: Any, flag: str, what: str) -> list[str]:
    """Names in any sequence but a text, or InputError."""
    if not isinstance(given, (list, tuple)) or not all(isinstance(name, str) for name in given):
        raise InputError(f"{flag} is {shown(given)}; a list of {what} is needed")
    return list(given)
