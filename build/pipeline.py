"""Running a recipe: convert, verify, plan, build where possible, triton.

Each step's output appears whole or not at all, and a note in .steps says what it was made from. A step whose inputs
are the same and whose output is untouched is not run again; an output without its note is made anew. So a run that was
killed goes on where it stopped, and ends with the same bytes.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from ..convert.device import pick_device
from ..convert.errors import InputError
from ..convert.files.apart import check_apart
from ..convert.files.disk import is_there, read_json, text_digest
from ..convert.files.staging import Staging
from ..convert.job.checked import Checked
from ..convert.job.conversion import Job, convert_job
from ..convert.job.making import versions
from ..convert.job.options import ConvertOptions
from ..convert.prove.execution import held_out
from ..convert.prove.options import VerifyOptions
from ..convert.prove.proven import opened
from ..convert.prove.verify import check_gate, gate_failures, measure, structure_problems, summary
from ..convert.sources.documents import BUILT_IN
from ..convert.sources.text import content_hash
from . import engines, gpus, sketch
from .build_options import BuildOptions, plan_of
from .checkpoint_folder import CheckpointFolder
from .kept import STATE, check_free, discard, hashes, note, only_one, removed_of, tokenizer_files, tree, write_whole
from .plan import Plan
from .recipe import Recipe
from .script import write_plan
from .sketch import sketched
from .steps import DONE, FAILED, NOT_HERE, UNCHANGED, Step
from .triton.generate import generate, prepare
from .triton.options import TritonOptions, check_bounds

OnStep = Callable[[str, str], None]
# (layer, phase, tokens)
OnProgress = Callable[[int, str, int], None]


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
        self.outputs = (self.checkpoint, self.verdict, self.plan_dir, self.engine, self.repository)
        self.convert_options = ConvertOptions(str(recipe.model_dir), str(self.checkpoint), **recipe.convert)

    def run(self) -> list[Step]:
        """Every step of the recipe, in order, up to the first that fails.

        Raises:
            InputError: input that a step refuses, or another run at work in the same folder.
        """
        job = self.check()
        steps: list[Step] = []
        with only_one(self.root, self.outputs):
            for step in self.steps(job):
                steps.append(step)
                if step.status == FAILED:
                    break
        return steps

    def check(self) -> Job:
        """The conversion, once it is known that no step will refuse anything; nothing is made before.

        Raises:
            InputError: what a step would refuse, by the checks of that step.
        """
        recipe = self.recipe
        self.check_apart()
        check_free(self.root)
        self.check_target()
        job = Job(self.convert_options, [Checked(self.convert_options)])
        if recipe.verify is not None:
            pick_device(recipe.verify.device)
            check_gate(job.model, recipe.verify.max_ppl_increase)
            held_out(job.source, recipe.verify.text, recipe.verify.chunks, recipe.verify.seq_len)
        if recipe.build is not None:
            with about("build"), sketched(self.checkpoint, partial(sketch.checkpoint, job)) as checkpoint:
                plan = plan_of(CheckpointFolder(checkpoint), recipe.build)
                if self.builds(recipe.build) and not self.engine.exists():
                    engines.check_here(plan, gpus.present())
                if recipe.triton is not None:
                    self.check_triton(plan, recipe.triton)
        return job

    def check_target(self) -> None:
        """Raise InputError for targets whose folders a later step does not take."""
        targets, recipe = self.convert_options.target, self.recipe
        if len(targets) > 1:
            raise InputError(f"convert.target: a recipe makes one, not {', '.join(targets)}; write a recipe for each")
        if recipe.build is not None and targets != ("trtllm",):
            raise InputError(
                f"build: engines are built of --target trtllm, not {targets[0]}; leave build and triton away"
            )

    def check_apart(self) -> None:
        """Raise InputError if a step would write over, or remove, what the recipe reads."""
        recipe, verify, build = self.recipe, self.recipe.verify, self.recipe.build
        reads = self.convert_options.reads() | {"the recipe": recipe.path}
        reads["verify.text"] = verify.text if verify is not None and verify.text not in BUILT_IN else None
        reads["triton.tokenizer_dir"] = self.tokenizer_dir()
        reads["build.input_timing_cache"] = build.flags.get("input_timing_cache") if build is not None else None
        places = [*self.outputs, *map(removed_of, self.outputs), self.root / STATE]
        written = {f"output_dir, {path.name}": path for path in places}
        check_apart(reads, written)
        cache = build.flags.get("output_timing_cache") if build is not None else None
        check_apart(reads | {"build.input_timing_cache": None}, written | {"build.output_timing_cache": cache})

    def check_triton(self, plan: Plan, chosen: dict[str, Any]) -> None:
        """Raise InputError for what the repository of the plan's engine would refuse."""
        with about("triton"), sketched(self.engine, partial(sketch.engine, plan)) as engine:
            options = self.triton_options(chosen)
            check_bounds(options)
            prepare(replace(options, engine_dir=str(engine)))

    def builds(self, options: BuildOptions) -> bool:
        """Whether this machine builds engines, as far as the recipe lets it."""
        return options.engine != "never" and engines.installed_release() is not None

    def triton_options(self, chosen: dict[str, Any]) -> TritonOptions:
        settings = chosen | {"tokenizer_dir": str(self.tokenizer_dir())}
        return TritonOptions(engine_dir=str(self.engine), output_dir=str(self.repository), **settings)

    def steps(self, job: Job) -> Iterator[Step]:
        recipe = self.recipe
        yield self.convert(job)
        if recipe.verify is not None:
            yield self.verify(recipe.verify)
        if recipe.build is None:
            return
        plan = plan_of(CheckpointFolder(self.checkpoint), recipe.build)
        yield self.plan(plan, recipe.build)
        if recipe.build.engine != "never":
            yield self.build(plan, recipe.build)
        if recipe.triton is not None:
            yield self.triton(recipe.triton)

    def convert(self, job: Job) -> Step:
        options, source = job.options, job.source
        choices = {k: v for k, v in asdict(options).items() if k not in ("model_dir", "output_dir")}
        files = [*source.paths(), *tokenizer_files(source.folder)]
        inputs = [choices, versions(), hashes(files), content_hash(options.calib)]
        if self.current("convert", self.checkpoint, inputs) is None:
            for later in (self.verdict, self.plan_dir, self.engine, self.repository):
                discard(later)

        def work() -> dict[str, Any]:
            manifest = convert_job(job, self.on_progress).manifest
            return {"quant": manifest["quant"], "kv_cache": options.kv_cache, "files": manifest["files"]}

        return self.step("convert", self.checkpoint, inputs, work)

    def verify(self, options: VerifyOptions) -> Step:
        """Measure, unless that was done before; the gate is judged anew each time."""
        measured = {
            key: value for key, value in asdict(options).items() if key not in ("max_ppl_increase", "max_distance")
        }
        files = hashes(tokenizer_files(self.recipe.model_dir))
        inputs = [measured, tree(self.checkpoint), content_hash(options.text), files, versions()]

        def work() -> dict[str, Any]:
            checkpoint = opened(self.checkpoint)
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
        failures += gate_failures(step.result.get("accuracy") or {}, options.max_ppl_increase, options.max_distance)
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
        discard(self.engine)
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
            discard(self.repository)
            self.on_step("triton", NOT_HERE)
            return Step("triton", NOT_HERE, text_digest(chosen), None, {"why": "there is no engine of this plan yet"})
        options = self.triton_options(chosen)
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
        known = self.current(name, output, inputs)
        if known is not None:
            self.on_step(name, UNCHANGED)
            return Step(name, UNCHANGED, digest, known["outputs"], known["result"])
        self.on_step(name, "begins")
        discard(output)
        state.unlink(missing_ok=True)
        result = work()
        made = tree(output)
        write_whole(state, note(digest, made, result))
        self.on_step(name, DONE)
        return Step(name, DONE, digest, made, result)

    def current(self, name: str, output: Path, inputs: list[Any]) -> dict[str, Any] | None:
        """The note of a step whose output was made from these inputs and is as it was made; else None."""
        if not output.exists() or not is_there(self.state(name)):
            return None
        try:
            known = read_json(self.state(name))
        except InputError:
            return None
        whole = known == note(known.get("inputs"), known.get("outputs"), known.get("result"))
        same = known.get("inputs") == text_digest(inputs) and known.get("outputs") == tree(output)
        return known if whole and same else None

    def state(self, name: str) -> Path:
        return self.root / STATE / f"{name}.json"


@contextmanager
def about(section: str) -> Iterator[None]:
    """Say of a refusal which section of the recipe it is about, unless it says so."""
    try:
        yield
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith(("build: ", "triton: ")) else f"{section}: {text}") from None
