"""An engine folder and a tokenizer folder in, a Triton model repository out: complete, every value written out."""

from __future__ import annotations

import json
import os
import shutil
import stat
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from ...convert.apart import check_apart
from ...convert.bounds import bounded, check
from ...convert.errors import InputError
from ...convert.staging import Staging
from ..engine_folder import EngineFolder
from . import tensors
from .launch import docker_command, launch_script, serve_image
from .pbtxt import Message, Word, write
from .tokenizer import check_chat, largest_id, open_tokenizer, tokenizer_files

# Processes of one model on one machine.
MOST_INSTANCES = 1024
MODELS = Path(__file__).parent / "models"
POLICIES = ("guaranteed_no_evict", "max_utilization")
# Rows of one request; the engine itself batches across requests, so more brings nothing.
USUAL_BATCH = 64
# Each is a process that holds the tokenizer.
USUAL_INSTANCES, USUAL_BLS_INSTANCES = 4, 8
USUAL_FRACTION = 0.9
# Unicode categories: control characters, and surrogates, which stand for bytes that are not UTF-8.
UNSERVED = {"Cc", "Cs"}
LOGITS_TYPES = {"float32": "FP32", "float16": "FP16"}
PROMPT_TYPES = {"float32": "FP32", "float16": "FP16", "bfloat16": "BF16"}
# From this release on the prompt embedding table has the model's type.
PROMPT_TYPE_SINCE = (0, 20)


@dataclass(frozen=True)
class TritonOptions:
    """What a repository is made from, and how it shall serve.

    Attributes:
        engine_dir, tokenizer_dir, output_dir: folders; the last must not exist.
        max_batch_size: rows a request may have; the engine's, at most 64, if None.
        decoupled: several responses to a request, which streaming needs.
        max_queue_delay: microseconds that a request waits for others to be batched with.
        kv_cache_free_gpu_mem_fraction: of the GPU memory that is free once the engine is loaded; if None what the
            engine was planned for, else 0.9.
        max_tokens_in_paged_kv_cache: tokens; unlimited if None.
        enable_kv_cache_reuse, enable_chunked_context: need an engine with paged context FMHA; chunked context as the
            engine was planned for if None, else off.
        exclude_input_in_output: answers begin after the prompt.
        preprocessing_instances, postprocessing_instances, bls_instances: processes; at most 4, 4 and 8 if None.
        batch_scheduler_policy: guaranteed_no_evict or max_utilization.
        bls: with the model tensorrt_llm_bls; if None, when decoupled, for only it streams text faultlessly.
        add_special_tokens: the tokenizer's own, around each prompt.
        skip_special_tokens: leave them out of answers.
        chat: prompts go through the tokenizer's chat template.
        self_contained: copy engine and tokenizer into the repository.
        mount_dir: where a self-contained repository will be found by the server.
    """

    engine_dir: str
    tokenizer_dir: str
    output_dir: str
    max_batch_size: int | None = bounded(None, least=1)
    decoupled: bool = False
    max_queue_delay: int = bounded(0, least=0)
    kv_cache_free_gpu_mem_fraction: float | None = bounded(None, above=0, most=1)
    max_tokens_in_paged_kv_cache: int | None = bounded(None, least=1)
    enable_kv_cache_reuse: bool = False
    enable_chunked_context: bool | None = None
    exclude_input_in_output: bool = True
    preprocessing_instances: int | None = bounded(None, least=1, most=MOST_INSTANCES)
    postprocessing_instances: int | None = bounded(None, least=1, most=MOST_INSTANCES)
    bls_instances: int | None = bounded(None, least=1, most=MOST_INSTANCES)
    batch_scheduler_policy: str = bounded(POLICIES[0], words=POLICIES)
    bls: bool | None = None
    add_special_tokens: bool = True
    skip_special_tokens: bool = True
    chat: bool = False
    self_contained: bool = False
    mount_dir: str = "/models"


def generate(options: TritonOptions) -> Path:
    """Write the repository; its folder appears when it is complete.

    Returns:
        the repository.

    Raises:
        InputError: an option that the engine cannot serve, or an engine or tokenizer that cannot be read.
    """
    check_paths_apart(options)
    options, engine = checked(options)
    plan = Plan(options, engine)
    with Staging(options.output_dir) as staging:
        for name, config in plan.configs().items():
            version = staging.folder / name / "1"
            version.mkdir(parents=True)
            (version.parent / "config.pbtxt").write_text(write(config), encoding="utf-8")
        for name, source in plan.sources().items():
            version = staging.folder / name / "1"
            shutil.copyfile(MODELS / source, version / "model.py")
            shutil.copyfile(MODELS / "tokenization.py", version / "tokenization.py")
        for name in ("ensemble", "tensorrt_llm"):
            (staging.folder / name / "1" / ".keep").touch()  # Triton wants the folder; git and archives drop empty ones
        if options.self_contained:
            copy_files(engine_files(engine), staging.folder / "tensorrt_llm" / "1")
            tokenizer = staging.folder / "preprocessing" / "1" / "tokenizer"
            copy_files(tokenizer_files(Path(options.tokenizer_dir)), tokenizer)
            open_tokenizer(tokenizer, "--self_contained")
        shutil.copyfile(MODELS / "client.py", staging.folder / "try.py")
        script = staging.folder / "launch.sh"
        script.write_text(launch_script(engine.world_size, engine.version), encoding="utf-8")
        script.chmod(script.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
        staging.commit()
    return staging.final


def check_paths_apart(options: TritonOptions) -> None:
    """Raise InputError if the repository would be made in what it is made from."""
    reads = {"--engine_dir": options.engine_dir, "--tokenizer_dir": options.tokenizer_dir}
    check_apart(reads, {"--output_dir": options.output_dir})


def checked(options: TritonOptions) -> tuple[TritonOptions, EngineFolder]:
    """The options with what was left to the engine's plan filled in, and the engine.

    Raises:
        InputError: as for ``generate``.
    """
    engine = EngineFolder(options.engine_dir)
    options = settled(options, engine)
    check_bounds(options)
    check_options(options, engine)
    check_tokenizer(options, engine)
    return options, engine


def settled(options: TritonOptions, engine: EngineFolder) -> TritonOptions:
    """The options, with what was left to the engine's plan filled in."""
    plan, chunked, fraction = engine.plan(), options.enable_chunked_context, options.kv_cache_free_gpu_mem_fraction
    return replace(
        options,
        enable_chunked_context=plan.flag("chunked_context") if chunked is None else chunked,
        kv_cache_free_gpu_mem_fraction=(
            plan.number("kv_cache_free_gpu_mem_fraction", USUAL_FRACTION) if fraction is None else fraction
        ),
    )


def start_command(options: TritonOptions) -> str:
    """The docker command that serves the repository made from these options."""
    image, repository = serve_image(EngineFolder(options.engine_dir).version), absolute(options.output_dir)
    if options.self_contained:
        mount = options.mount_dir
        return docker_command(image, {repository: mount}, str(PurePosixPath(mount) / "launch.sh"))
    folders = (repository, absolute(options.engine_dir), absolute(options.tokenizer_dir))
    return docker_command(image, {folder: folder for folder in folders}, f"{repository}/launch.sh")


def check_options(options: TritonOptions, engine: EngineFolder) -> None:
    """Raise InputError for an option that makes no sense, or that the engine cannot serve."""
    if not tensors.OLDEST <= engine.release <= tensors.NEWEST:
        raise InputError(
            f"--engine_dir: built by TensorRT-LLM {engine.version}; Triton repositories are known for "
            f"{dotted(tensors.OLDEST)} to {dotted(tensors.NEWEST)}"
        )
    if engine.logits_dtype not in LOGITS_TYPES:
        raise InputError(f"--engine_dir: logits_dtype {engine.logits_dtype} cannot be served; build with float16 or 32")
    if engine.dtype not in PROMPT_TYPES:
        raise InputError(f"--engine_dir: dtype {engine.dtype} is not one of {', '.join(PROMPT_TYPES)}")
    if options.max_batch_size is not None and not 1 <= options.max_batch_size <= engine.max_batch_size:
        raise InputError(
            f"--max_batch_size {options.max_batch_size}: the engine was built for 1 to {engine.max_batch_size}"
        )
    for flag in ("enable_kv_cache_reuse", "enable_chunked_context"):
        if getattr(options, flag) and (reason := engine.why_no_paged_context()):
            raise InputError(f"--{flag}: {reason}; leave it out, or build with --use_paged_context_fmha enable")
    if not options.enable_chunked_context and (reason := engine.why_chunked_context()):
        raise InputError(f"--engine_dir: {reason}")


def check_bounds(options: TritonOptions) -> None:
    """Raise InputError for an option that makes no sense, whatever the engine."""
    check(options)
    if not PurePosixPath(options.mount_dir).is_absolute() or ".." in PurePosixPath(options.mount_dir).parts:
        raise InputError(f"--mount_dir {options.mount_dir}: an absolute path inside the container is needed")
    for flag in ("engine_dir", "tokenizer_dir", "output_dir", "mount_dir"):
        if {unicodedata.category(character) for character in getattr(options, flag)} & UNSERVED:
            raise InputError(f"--{flag}: a path with control characters, or not in UTF-8, cannot be served; rename it")


def check_tokenizer(options: TritonOptions, engine: EngineFolder) -> None:
    """Raise InputError for a tokenizer that does not load or does not fit the engine."""
    tokenizer = open_tokenizer(Path(options.tokenizer_dir), "--tokenizer_dir")
    if (largest := largest_id(tokenizer)) >= engine.vocab_size:
        raise InputError(
            f"--tokenizer_dir: {options.tokenizer_dir} has token id {largest}, the engine a vocabulary of "
            f"{engine.vocab_size}; take the tokenizer of the engine's model"
        )
    if options.chat:
        check_chat(tokenizer, options.tokenizer_dir)


class Plan:
    """The configuration of every model in a repository."""

    def __init__(self, options: TritonOptions, engine: EngineFolder):
        self.options, self.engine = options, engine
        self.batch = options.max_batch_size or min(engine.max_batch_size, USUAL_BATCH)
        self.bls = options.decoupled if options.bls is None else options.bls
        mount = PurePosixPath(options.mount_dir)
        self.engine_dir = str(mount / "tensorrt_llm/1") if options.self_contained else absolute(options.engine_dir)
        self.tokenizer_dir = (
            str(mount / "preprocessing/1/tokenizer") if options.self_contained else absolute(options.tokenizer_dir)
        )
        self.steps = tensors.ensemble_steps(engine.release)

    def sources(self) -> dict[str, str]:
        """Python model -> the file that is its model.py."""
        sources = {"preprocessing": "preprocessing.py", "postprocessing": "postprocessing.py"}
        return sources | ({"tensorrt_llm_bls": "bls.py"} if self.bls else {})

    def configs(self) -> dict[str, Message]:
        """Model -> its config.pbtxt."""
        models = [self.ensemble(), self.preprocessing(), self.tensorrt_llm(), self.postprocessing()]
        return {str(model["name"]): model for model in models + ([self.tensorrt_llm_bls()] if self.bls else [])}

    def ensemble(self) -> Message:
        return {
            "name": "ensemble",
            "platform": "ensemble",
            "max_batch_size": self.batch,
            **self.face(tensors.TEXT_INPUTS, tensors.TEXT_OUTPUTS),
            "ensemble_scheduling": {
                "step": [
                    {
                        "model_name": step.model,
                        "model_version": -1,
                        "input_map": [{"key": name, "value": source} for name, source in step.inputs.items()],
                        "output_map": [{"key": name, "value": target} for name, target in step.outputs.items()],
                    }
                    for step in self.steps
                ]
            },
        }

    def preprocessing(self) -> Message:
        return {
            **self.python_model("preprocessing", self.options.preprocessing_instances, USUAL_INSTANCES),
            "dynamic_batching": self.queue(),
            **self.face(tensors.PREPROCESSING_INPUTS, tensors.PREPROCESSING_OUTPUTS),
            "parameters": parameters(
                tokenizer_dir=self.tokenizer_dir,
                vocab_size=self.engine.vocab_size,
                add_special_tokens=self.options.add_special_tokens and not self.options.chat,
                chat=self.options.chat,
            ),
        }

    def postprocessing(self) -> Message:
        return {
            **self.python_model("postprocessing", self.options.postprocessing_instances, USUAL_INSTANCES),
            "dynamic_batching": {},
            **self.face(tensors.POSTPROCESSING_INPUTS, tensors.POSTPROCESSING_OUTPUTS),
            "parameters": parameters(
                tokenizer_dir=self.tokenizer_dir,
                skip_special_tokens=self.options.skip_special_tokens,
                decoupled=self.options.decoupled,
            ),
        }

    def tensorrt_llm(self) -> Message:
        options = self.options
        return {
            "name": "tensorrt_llm",
            "backend": "tensorrtllm",
            "max_batch_size": self.batch,
            "model_transaction_policy": {"decoupled": options.decoupled},
            "dynamic_batching": self.queue(),
            **self.face(tensors.ENGINE_INPUTS, tensors.ENGINE_OUTPUTS),
            # The backend places the engine on GPUs itself.
            "instance_group": [{"count": 1, "kind": Word("KIND_CPU")}],
            "parameters": parameters(
                FORCE_CPU_ONLY_INPUT_TENSORS="no",
                executor_worker_path="/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker",
                gpt_model_type="inflight_fused_batching",
                gpt_model_path=self.engine_dir,
                max_beam_width=self.engine.max_beam_width,
                batch_scheduler_policy=options.batch_scheduler_policy,
                kv_cache_free_gpu_mem_fraction=options.kv_cache_free_gpu_mem_fraction,
                max_tokens_in_paged_kv_cache=options.max_tokens_in_paged_kv_cache,
                enable_kv_cache_reuse=options.enable_kv_cache_reuse,
                enable_chunked_context=options.enable_chunked_context,
                exclude_input_in_output=options.exclude_input_in_output,
            ),
        }

    def tensorrt_llm_bls(self) -> Message:
        first_two = [{"model": step.model, "inputs": step.inputs, "outputs": step.outputs} for step in self.steps[:2]]
        return {
            **self.python_model("tensorrt_llm_bls", self.options.bls_instances, USUAL_BLS_INSTANCES),
            "model_transaction_policy": {"decoupled": self.options.decoupled},
            **self.face(tensors.TEXT_INPUTS, tensors.TEXT_OUTPUTS),
            "parameters": parameters(
                tokenizer_dir=self.tokenizer_dir,
                skip_special_tokens=self.options.skip_special_tokens,
                tensorrt_llm_model_name="tensorrt_llm",
                steps=json.dumps(first_two),
            ),
        }

    def python_model(self, name: str, instances: int | None, usual: int) -> Message:
        count = instances or min(self.batch, usual)
        return {
            "name": name,
            "backend": "python",
            "max_batch_size": self.batch,
            "instance_group": [{"count": count, "kind": Word("KIND_CPU")}],
        }

    def queue(self) -> Message:
        return {
            "preferred_batch_size": [self.batch],
            "max_queue_delay_microseconds": self.options.max_queue_delay,
            "default_queue_policy": {"max_queue_size": 0},
        }

    def face(self, inputs: Iterable[tensors.Tensor], outputs: Iterable[tensors.Tensor]) -> Message:
        """A model's inputs and outputs as its engine's release has them."""
        prompt = PROMPT_TYPES[self.engine.dtype] if self.engine.release >= PROMPT_TYPE_SINCE else "FP16"
        logits = LOGITS_TYPES[self.engine.logits_dtype]
        types = (self.engine.release, logits, prompt)
        return {
            "input": [input_field(tensor) for tensor in tensors.of_release(inputs, *types)],
            "output": [tensor_field(tensor) for tensor in tensors.of_release(outputs, *types)],
        }


def tensor_field(tensor: tensors.Tensor) -> Message:
    return {"name": tensor.name, "data_type": Word(f"TYPE_{tensor.dtype}"), "dims": list(tensor.dims)}


def input_field(tensor: tensors.Tensor) -> Message:
    return {
        **tensor_field(tensor),
        **({"reshape": {"shape": []}} if tensor.squeezed else {}),
        **({"allow_ragged_batch": True} if tensor.ragged else {}),
        **({"optional": True} if tensor.optional else {}),
    }


def parameters(**values: str | float | bool | None) -> list[Message]:
    """Triton's parameters are strings, whatever they mean; None is left out."""
    given = {name: value for name, value in values.items() if value is not None}
    texts = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in given.items()}
    return [{"key": name, "value": {"string_value": text}} for name, text in texts.items()]


def absolute(folder: str) -> str:
    return os.path.abspath(folder)


def dotted(release: tensors.Release) -> str:
    return ".".join(map(str, release))


def engine_files(engine: EngineFolder) -> list[Path]:
    """What the server reads of an engine folder."""
    extras = [*sorted(engine.folder.glob("rank*_managed_weights.safetensors")), engine.folder / "quant_cfg.json"]
    ranks = [engine.folder / f"rank{rank}.engine" for rank in range(engine.world_size)]
    return [engine.folder / "config.json", *ranks, *(path for path in extras if path.is_file())]


def copy_files(files: list[Path], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for path in files:
        shutil.copyfile(path, folder / path.name)
