"""Running a recipe: convert, verify, plan, build where possible, triton.

Each step's output appears whole or not at all, and a note in .steps says what it was made from. A step whose inputs
are the same and whose output is untouched is not run again; an output without its note is made anew. So a run that was
killed goes on where it stopped, and ends with the same bytes.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ..convert.convert_options import ConvertOptions, quantizer_of
from ..convert.converter import convert, versions
from ..convert.errors import InputError
from ..convert.files import read_json, sha256, text_digest, write_json
from ..convert.joined import Checkpoint
from ..convert.source import Source
from ..convert.staging import MARK, Staging
from ..convert.text import content_hash
from ..convert.verify import gate_failures, measure, structure_problems, summary
from . import engines, gpus, releases
from .algorithms import refusal
from .build_config import check_flags
from .checkpoint_folder import CheckpointFolder
from .plan import Plan, Wishes, check_wishes, make_plan
from .recipe import BuildOptions, Recipe, VerifyOptions
from .script import write_plan
from .triton.generate import TritonOptions, generate

STATE = ".steps"
DONE, UNCHANGED, FAILED, NOT_HERE = "done", "unchanged", "failed", "not here"

OnStep = Callable[[str, str], None]
# (layer, phase, tokens)
OnProgress = Callable[[int, str, int], None]


@dataclass
class Step:
    """What became of one step.

    Attributes:
        status: DONE, UNCHANGED, FAILED, or NOT_HERE where this machine lacks what it needs.
        inputs, outputs: SHA-256 of what it was made from, and of what it made.
        result: what it found, or why it did not run.
    """

    name: str
    status: str
    inputs: str
    outputs: str | None
    result: dict[str, Any]


class Run:
    """One run of a recipe.

    Args:
        on_step: called with a step's name and status as it starts and ends.
        on_progress: called by the steps that go through the layers.
    """

    def __init__(self, recipe: Recipe, on_step: OnStep, on_progress: OnProgress):
        self.recipe, self.on_step, self.on_progress = recipe, on_step, on_progress
        self.root = recipe.output_dir
        self.checkpoint, self.plan_dir = self.root / "checkpoint", self.root / "plan"
        self.engine, self.repository = self.root / "engine", self.root / "repository"
        self.verdict = self.root / "verify.json"

    def run(self) -> list[Step]:
        """Every step of the recipe, in order, up to the first that fails.

        Raises:
            InputError: input that a step refuses, or another run at work in the same folder.
        """
        self.check()
        steps: list[Step] = []
        with only_one(self.root):
            for step in self.steps():
                steps.append(step)
                if step.status == FAILED:
                    break
        return steps

    def check(self) -> None:
        """Raise InputError for what a later step would refuse, before any step begins."""
        convert, build, source = self.recipe.convert, self.recipe.build, Source(self.recipe.model_dir)
        quantizer = quantizer_of(ConvertOptions("", "", **convert), source)
        if build is None:
            return
        release, gpu = target_of(build)
        algorithms = [scheme.algo for scheme in quantizer.precision.schemes]
        reason = refusal(algorithms, quantizer.precision.kv_cache, quantizer.dtype, release, gpu.sm)
        if reason:
            raise InputError(f"build: {reason}")
        check_flags(release, build.flags)
        check_wishes(wishes_of(build))
        if self.recipe.triton is not None and not self.tokenizer_dir().is_dir():
            raise InputError(f"triton: tokenizer_dir {self.tokenizer_dir()} is not a folder")

    def steps(self) -> Iterator[Step]:
        recipe = self.recipe
        yield self.convert()
        if recipe.verify is not None:
            yield self.verify(recipe.verify)
        if recipe.build is None:
            return
        plan = plan_of(self.checkpoint, recipe.build)
        yield self.plan(plan, recipe.build)
        if recipe.build.engine != "never":
            yield self.build(plan, recipe.build)
        if recipe.triton is not None:
            yield self.triton(recipe.triton)

    def convert(self) -> Step:
        options = ConvertOptions(str(self.recipe.model_dir), str(self.checkpoint), **self.recipe.convert)
        source = Source(options.model_dir)
        choices = {k: v for k, v in asdict(options).items() if k not in ("model_dir", "output_dir")}
        files = [*source.paths(), *tokenizer_files(source.folder)]
        inputs = [choices, versions(), hashes(files), content_hash(options.calib)]
        if not self.is_current("convert", self.checkpoint, inputs):
            for later in (self.verdict, self.plan_dir, self.engine, self.repository):
                remove(later)

        def work() -> dict[str, Any]:
            manifest = convert(options, self.on_progress).manifest
            return {"quant": manifest["quant"], "kv_cache": options.kv_cache, "files": manifest["files"]}

        return self.step("convert", self.checkpoint, inputs, work)

    def verify(self, options: VerifyOptions) -> Step:
        """Measure, unless that was done before; the gate is judged anew each time."""
        measured = {key: value for key, value in asdict(options).items() if key != "max_ppl_increase"}
        files = hashes(tokenizer_files(self.recipe.model_dir))
        inputs = [measured, tree(self.checkpoint), content_hash(options.text), files, versions()]

        def work() -> dict[str, Any]:
            checkpoint = Checkpoint(self.checkpoint)
            problems, accuracy = structure_problems(checkpoint), None
            if not problems:
                accuracy = measure(
                    checkpoint,
                    self.recipe.model_dir,
                    options.text,
                    options.chunks,
                    options.seq_len,
                    options.device,
                    lambda layer, phase: self.on_progress(layer, phase, 0),
                )
            write_whole(self.verdict, summary(accuracy, problems))
            return summary(accuracy, problems)

        step = self.step("verify", self.verdict, inputs, work)
        failures = [*step.result["structure"]["problems"]]
        failures += gate_failures(step.result.get("accuracy") or {}, options.max_ppl_increase)
        step.result = step.result | {"ok": not failures, "failures": failures}
        if failures:
            step.status = FAILED
            self.on_step("verify", FAILED)
        return step

    def plan(self, plan: Plan, options: BuildOptions) -> Step:
        inputs = [plan.as_json(), metadata.version("enginesmith")]

        def work() -> dict[str, Any]:
            with Staging(self.plan_dir) as staging:
                write_plan(plan, staging.folder, staging.final)
                staging.commit()
            return {"release": plan.release.version, "gpu": plan.gpu.name, "warnings": plan.warnings}

        return self.step("plan", self.plan_dir, inputs, work)

    def build(self, plan: Plan, options: BuildOptions) -> Step:
        """Build where TensorRT-LLM is installed; an engine of this plan that was built elsewhere is as good."""
        inputs = text_digest([tree(self.plan_dir), tree(self.checkpoint)])
        if self.serves():
            self.on_step("build", UNCHANGED)
            return Step("build", UNCHANGED, inputs, tree(self.engine), {"why": "an engine of this plan is there"})
        remove(self.engine)
        if engines.installed_release() is None:
            status = NOT_HERE if options.engine == "auto" else FAILED
            result = {"why": "TensorRT-LLM is not installed here", "command": self.script()}
        else:
            self.on_step("build", "begins")
            status = DONE if engines.build(plan, self.engine) else FAILED
            result = {"why": "" if status == DONE else f"see the logs in {self.engine}; the same run goes on"}
        self.on_step("build", status)
        return Step("build", status, inputs, tree(self.engine) if status == DONE else None, result)

    def triton(self, chosen: dict[str, Any]) -> Step:
        if not self.serves():
            remove(self.repository)
            self.on_step("triton", NOT_HERE)
            return Step("triton", NOT_HERE, text_digest(chosen), None, {"why": "there is no engine of this plan yet"})
        settings = chosen | {"tokenizer_dir": str(self.tokenizer_dir())}
        options = TritonOptions(engine_dir=str(self.engine), output_dir=str(self.repository), **settings)
        files = hashes(tokenizer_files(self.tokenizer_dir()))
        inputs = [asdict(options), tree(self.engine), files, metadata.version("enginesmith")]

        def work() -> dict[str, Any]:
            generate(options)
            return {"repository": self.repository.name}

        return self.step("triton", self.repository, inputs, work)

    def serves(self) -> bool:
        """Whether there is an engine of this very plan, whoever built it."""
        return engines.is_of(self.engine, self.plan_dir)

    def tokenizer_dir(self) -> Path:
        return Path((self.recipe.triton or {}).get("tokenizer_dir", self.recipe.model_dir))

    def script(self) -> str:
        """The command that builds the plan's engine to where the run expects it."""
        return shlex.join(["bash", str(self.plan_dir / "build.sh"), str(self.checkpoint), str(self.engine)])

    def step(
        self,
        name: str,
        output: Path,
        inputs: list[Any],
        work: Callable[[], dict[str, Any]],
    ) -> Step:
        """Run a step unless its output is there, untouched, and made from the same inputs."""
        state, digest = self.state(name), text_digest(inputs)
        if self.is_current(name, output, inputs):
            self.on_step(name, UNCHANGED)
            known = read_json(state)
            return Step(name, UNCHANGED, digest, known["outputs"], known["result"])
        self.on_step(name, "begins")
        remove(output)
        state.unlink(missing_ok=True)
        result = work()
        made = tree(output)
        write_whole(state, {"inputs": digest, "outputs": made, "result": result})
        self.on_step(name, DONE)
        return Step(name, DONE, digest, made, result)

    def is_current(self, name: str, output: Path, inputs: list[Any]) -> bool:
        """Whether a step's output was made from these inputs and is as it was made."""
        if not output.exists() or not self.state(name).exists():
            return False
        try:
            known = read_json(self.state(name))
        except InputError:
            return False
        return known.get("inputs") == text_digest(inputs) and known.get("outputs") == tree(output)

    def state(self, name: str) -> Path:
        return self.root / STATE / f"{name}.json"


def target_of(options: BuildOptions) -> tuple[releases.Release, gpus.GPU]:
    """The release and GPU that a recipe's build section names."""
    release = releases.find(options.release or engines.installed_release() or releases.LATEST)
    return release, gpus.target(options.gpu, options.sm, options.gpu_memory)


def wishes_of(options: BuildOptions) -> Wishes:
    fraction = options.kv_cache_free_gpu_mem_fraction
    return Wishes(options.flags, options.preset, options.max_output_len, options.chunked_context, fraction)


def plan_of(checkpoint: Path, options: BuildOptions) -> Plan:
    """The plan that a recipe's build section asks for."""
    return make_plan(CheckpointFolder(checkpoint), *target_of(options), wishes_of(options))


def tokenizer_files(folder: Path) -> list[Path]:
    """What decides how a folder's tokenizer reads text: every small file that is not a weight."""
    kinds = (".json", ".model", ".txt", ".jinja")
    return sorted(path for path in folder.iterdir() if path.suffix in kinds and path.is_file())


def hashes(paths: list[Path]) -> dict[str, str]:
    """SHA-256 by file name."""
    with ThreadPoolExecutor() as pool:
        return dict(zip((path.name for path in paths), pool.map(sha256, paths), strict=True))


def tree(output: Path) -> str:
    """What identifies a file, or a folder with all that lies in it."""
    files = sorted(path for path in output.rglob("*") if path.is_file()) if output.is_dir() else [output]
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(sha256, files))
    return text_digest({str(path.relative_to(output)): one for path, one in zip(files, digests, strict=True)})


def write_whole(path: Path, value: dict[str, Any]) -> None:
    """Write JSON that appears under its name only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    write_json(partial, value)
    partial.replace(path)


def remove(output: Path) -> None:
    if output.is_dir() and not output.is_symlink():
        shutil.rmtree(output)
    else:
        output.unlink(missing_ok=True)


@contextmanager
def only_one(root: Path) -> Iterator[None]:
    """Hold the run's folder for this run alone; a folder that no run made is not touched."""
    state = root / STATE
    if root.exists() and not (state / MARK).is_file() and any(root.iterdir()):
        raise InputError(f"output_dir: {root} holds files and no earlier run; choose an empty folder")
    state.mkdir(parents=True, exist_ok=True)
    (state / MARK).touch()
    lock = os.open(state, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise InputError(f"output_dir: another run is at work in {root}") from None
    try:
        yield
    finally:
        os.close(lock)
