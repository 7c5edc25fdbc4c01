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

from ..convert.converter import ConvertOptions, convert
from ..convert.errors import InputError
from ..convert.files import read_json, sha256, text_digest, write_json
from ..convert.joined import Checkpoint
from ..convert.source import Source
from ..convert.staging import Staging
from ..convert.text import BUILT_IN
from ..convert.verify import accuracy_failures, measure, structure_problems, summary
from . import engines, gpus, releases
from .checkpoint_folder import CheckpointFolder
from .plan import Plan, Wishes, make_plan
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
        steps: list[Step] = []
        with only_one(self.root):
            for step in self.steps():
                steps.append(step)
                if step.status == FAILED:
                    break
        return steps

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
        versions = {name: metadata.version(name) for name in ("enginesmith", "torch", "transformers")}
        inputs = [choices, versions, hashes(source.paths()), text_hash(options.calib)]

        def work() -> dict[str, Any]:
            manifest = convert(options, self.on_progress).manifest
            return {"quant": options.quant, "kv_cache": options.kv_cache, "files": manifest["files"]}

        return self.step("convert", self.checkpoint, inputs, work)

    def verify(self, options: VerifyOptions) -> Step:
        inputs = [asdict(options), tree(self.checkpoint), text_hash(options.text), metadata.version("enginesmith")]

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
            failures = problems + accuracy_failures(accuracy, options.max_ppl_increase)
            found = summary(accuracy, problems) | {"ok": not failures, "failures": failures}
            write_whole(self.verdict, found)
            return found

        return self.step("verify", self.verdict, inputs, work)

    def plan(self, plan: Plan, options: BuildOptions) -> Step:
        inputs = [plan.as_json(), metadata.version("enginesmith")]

        def work() -> dict[str, Any]:
            with Staging(self.plan_dir) as staging:
                write_plan(plan, staging.folder, staging.final)
                staging.commit()
            return {"release": plan.release.version, "gpu": plan.gpu.name, "warnings": plan.warnings}

        return self.step("plan", self.plan_dir, inputs, work)

    def build(self, plan: Plan, options: BuildOptions) -> Step:
        inputs = [tree(self.plan_dir), tree(self.checkpoint), engines.installed_release()]
        if engines.installed_release() is None and engines.is_of(self.engine, self.plan_dir):
            self.on_step("build", UNCHANGED)
            return Step("build", UNCHANGED, text_digest(inputs), tree(self.engine), {"why": "built elsewhere"})
        if engines.installed_release() is None and not self.is_current("build", self.engine, inputs):
            why = {
                "ok": options.engine == "auto",
                "why": "TensorRT-LLM is not installed here",
                "command": self.script(),
            }
            status = NOT_HERE if options.engine == "auto" else FAILED
            self.on_step("build", status)
            return Step("build", status, text_digest(inputs), None, why)

        def work() -> dict[str, Any]:
            return {"ok": engines.build(plan, self.engine)}

        return self.step("build", self.engine, inputs, work)

    def triton(self, chosen: dict[str, Any]) -> Step:
        if not self.engine.exists():
            self.on_step("triton", NOT_HERE)
            return Step("triton", NOT_HERE, text_digest(chosen), None, {"why": "there is no engine to serve yet"})
        settings = {"tokenizer_dir": str(self.recipe.model_dir)} | chosen
        options = TritonOptions(engine_dir=str(self.engine), output_dir=str(self.repository), **settings)
        tokenizer = [path for path in Path(options.tokenizer_dir).glob("*token*") if path.is_file()]
        inputs = [chosen, tree(self.engine), hashes(tokenizer), metadata.version("enginesmith")]

        def work() -> dict[str, Any]:
            generate(options)
            return {"repository": self.repository.name}

        return self.step("triton", self.repository, inputs, work)

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
        if result.get("ok") is False:
            self.on_step(name, FAILED)
            return Step(name, FAILED, digest, None, result)
        made = tree(output)
        write_whole(state, {"inputs": digest, "outputs": made, "result": result})
        self.on_step(name, DONE)
        return Step(name, DONE, digest, made, result)

    def is_current(self, name: str, output: Path, inputs: list[Any]) -> bool:
        """Whether a step's output was made from these inputs and is as it was made."""
        state = self.state(name)
        if not output.exists() or not state.exists():
            return False
        known = read_json(state)
        return known.get("inputs") == text_digest(inputs) and known.get("outputs") == tree(output)

    def state(self, name: str) -> Path:
        return self.root / STATE / f"{name}.json"


def plan_of(checkpoint: Path, options: BuildOptions) -> Plan:
    """The plan that a recipe's build section asks for."""
    release = releases.find(options.release or engines.installed_release() or releases.LATEST)
    gpu = gpus.target(options.gpu, options.sm, options.gpu_memory)
    fraction = options.kv_cache_free_gpu_mem_fraction
    wishes = Wishes(options.flags, options.preset, options.max_output_len, options.chunked_context, fraction)
    return make_plan(CheckpointFolder(checkpoint), release, gpu, wishes)


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


def text_hash(source: str) -> str:
    """What identifies a text: its file's hash, or the name of a built-in one."""
    if source in BUILT_IN:
        return source
    if not Path(source).is_file():
        raise InputError(f"text {source}: no such file; give a file, or one of: {', '.join(BUILT_IN)}")
    return sha256(Path(source))


def write_whole(path: Path, value: dict[str, Any]) -> None:
    """Write JSON that appears under its name only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
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
    if root.exists() and not state.is_dir() and any(root.iterdir()):
        raise InputError(f"output_dir: {root} holds files and no earlier run; choose an empty folder")
    state.mkdir(parents=True, exist_ok=True)
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
