"""How a repository shall serve: what can be chosen, what the engine's plan decides, and what no engine can do."""

from __future__ import annotations

import unicodedata
from dataclasses import MISSING, dataclass, replace
from pathlib import PurePosixPath

from ...convert.errors import InputError
from ...convert.files.bounds import Options, bounded
from .. import releases
from ..engine_folder import EngineFolder
from ..preview import Preview
from . import tensors

POLICIES = ("guaranteed_no_evict", "max_utilization")
USUAL_FRACTION = 0.9
# Processes of one model on one machine.
MOST_INSTANCES = 1024
# Unicode categories: control characters, and surrogates, which stand for bytes that are not UTF-8.
UNSERVED = {"Cc", "Cs"}
LOGITS_TYPES = {"float32": "FP32", "float16": "FP16"}
PROMPT_TYPES = {"float32": "FP32", "float16": "FP16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class TritonOptions(Options):
    """What a repository is made from, and how it shall serve.

    Attributes:
        engine_dir, tokenizer_dir, output_dir: folders; the last must not exist.
        preview: engine_dir is a checkpoint, which stands in for its engine.
        release: of TensorRT-LLM that will build the engine of a preview; the latest if None.
        max_batch_size: rows a request may have; the engine's, at most 64, if None.
        decoupled: several responses to a request, which streaming needs.
        max_queue_delay: microseconds that a request waits for others to be batched with.
        kv_cache_free_gpu_mem_fraction: of the GPU memory that is free once the engine is loaded; if None what the
            engine was planned for, else 0.9.
        max_tokens_in_paged_kv_cache: tokens; unlimited if None.
        max_attention_window_size: tokens that a token attends to; if None the model's windows, as planned.
        enable_kv_cache_reuse, enable_chunked_context: need an engine with paged context FMHA; chunked context as the
            engine was planned for if None, else off.
        exclude_input_in_output: answers begin after the prompt.
        preprocessing_instances, postprocessing_instances, bls_instances: processes; at most 4, 4 and 8 if None.
        batch_scheduler_policy: guaranteed_no_evict or max_utilization.
        bls: with the model tensorrt_llm_bls; if None, when decoupled, for only it streams text faultlessly.
        add_special_tokens: the tokenizer's own, around each prompt; with chat its BOS only.
        skip_special_tokens: leave them out of answers.
        chat: prompts go through the tokenizer's chat template.
        self_contained: copy engine and tokenizer into the repository.
        mount_dir: where a self-contained repository will be found by the server.
    """

    engine_dir: str = bounded(MISSING, path=True)
    tokenizer_dir: str = bounded(MISSING, path=True)
    output_dir: str = bounded(MISSING, path=True)
    preview: bool = False
    release: str | None = None
    max_batch_size: int | None = bounded(None, least=1)
    decoupled: bool = False
    max_queue_delay: int = bounded(0, least=0)
    kv_cache_free_gpu_mem_fraction: float | None = bounded(None, above=0, most=1)
    max_tokens_in_paged_kv_cache: int | None = bounded(None, least=1)
    max_attention_window_size: int | None = bounded(None, least=1)
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


def engine_of(options: TritonOptions) -> EngineFolder:
    """The engine to serve, or what stands in for it.

    Raises:
        InputError: a folder that is none, or a release that is not known.
    """
    if options.preview:
        return Preview(options.engine_dir, releases.find(options.release or releases.LATEST))
    if options.release is not None:
        raise InputError("--release is for --preview; an engine says which release built it")
    return EngineFolder(options.engine_dir)


def settled(options: TritonOptions, engine: EngineFolder) -> TritonOptions:
    """The options, with what was left to the engine's plan filled in."""
    plan, chunked, fraction = engine.plan(), options.enable_chunked_context, options.kv_cache_free_gpu_mem_fraction
    window = options.max_attention_window_size
    return replace(
        options,
        enable_chunked_context=plan.flag("chunked_context") if chunked is None else chunked,
        kv_cache_free_gpu_mem_fraction=(
            plan.number("kv_cache_free_gpu_mem_fraction", USUAL_FRACTION) if fraction is None else fraction
        ),
        max_attention_window_size=engine.sliding_window() if window is None else window,
    )


def check_options(options: TritonOptions, engine: EngineFolder) -> None:
    """Raise InputError for an option that the engine cannot serve."""
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
    window, planned = options.max_attention_window_size, engine.sliding_window()
    if window is not None and planned is not None and window > planned:
        raise InputError(f"--max_attention_window_size {window}: the model's sliding window is {planned} tokens")


def check_bounds(options: TritonOptions) -> None:
    """Raise InputError for an option that makes no sense, whatever the engine."""
    if not PurePosixPath(options.mount_dir).is_absolute() or ".." in PurePosixPath(options.mount_dir).parts:
        raise InputError(f"--mount_dir {options.mount_dir}: an absolute path inside the container is needed")
    for flag in ("engine_dir", "tokenizer_dir", "output_dir", "mount_dir"):
        if {unicodedata.category(character) for character in getattr(options, flag)} & UNSERVED:
            raise InputError(f"--{flag}: a path with control characters, or not in UTF-8, cannot be served; rename it")


def dotted(release: tensors.Release) -> str:
    return ".".join(map(str, release))
