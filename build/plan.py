"""A build plan: checkpoint and target in; build_config.json, plugins and memory out, or the reason why not.

What cannot work is refused here, before any build, with what would work instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..convert.errors import InputError, printable, shown
from ..convert.files.bounds import LARGEST
from ..convert.models.pieces import LEARNED
from ..convert.targets.trtllm.honoured import left_out, releases
from ..convert.targets.trtllm.packing import arrangement
from ..convert.targets.trtllm.releases import number
from ..plugins import catalog
from . import algorithms
from .build_config import build_config, quantization_plugins
from .checkpoint_folder import CheckpointFolder
from .engine_folder import window_list
from .features import check_features
from .gpus import GPU
from .memory import Memory, gibibytes, rank_memory
from .releases import Release
from .wishes import Wishes

LATENCY_BATCH = 8
LARGEST_BATCH = 2048
# Tokens in a step beyond which larger ones no longer raise throughput; above it upstream warns.
MOST_TOKENS = 16384
LARGE_GPU = 40 * 10**9


@dataclass(frozen=True)
class Plan:
    """A plan that holds.

    Attributes:
        build_config: the content of build_config.json.
        memory: of each rank.
        warnings: what works otherwise than one might expect.
    """

    checkpoint: CheckpointFolder
    release: Release
    gpu: GPU
    wishes: Wishes
    build_config: dict[str, Any]
    memory: list[Memory]
    warnings: list[str]

    @property
    def plugins(self) -> dict[str, Any]:
        """PluginConfig entries that the checkpoint's quantization switches on."""
        return quantization_plugins(self.checkpoint)

    def run(self, name: str, default: Any = None) -> Any:
        """A flag of how the build runs."""
        return self.wishes.given.get(name, default)

    def as_json(self) -> dict[str, Any]:
        checkpoint = self.checkpoint
        return {
            "release": self.release.version,
            "tensorrt": self.release.tensorrt,
            "build_image": self.release.build_image,
            "serve_image": self.release.serve_image,
            "gpu": {"name": self.gpu.name, "sm": self.gpu.sm, "memory": self.gpu.memory},
            "checkpoint": {
                "digest": checkpoint.digest(),
                "architecture": checkpoint.architecture,
                "dtype": checkpoint.dtype,
                "quant_algo": checkpoint.algorithm,
                "kv_cache_quant_algo": checkpoint.kv_cache,
                "sliding_window": checkpoint.sliding_window,
                "attention_windows": list(checkpoint.windows) or None,
                "tp_size": checkpoint.mapping.tp_size,
                "pp_size": checkpoint.mapping.pp_size,
            },
            "preset": self.wishes.preset,
            "chunked_context": self.wishes.chunked_context,
            "logits_dtype": self.run("logits_dtype"),
            "strip_plan": bool(self.run("strip_plan", False)),
            "log_level": self.run("log_level", "info"),
            "workers": self.run("workers"),
            "plugins": self.plugins,
            "build_config": self.build_config,
            "kv_cache_free_gpu_mem_fraction": self.wishes.fraction,
            "memory": [rank.as_json() for rank in self.memory],
            "warnings": self.warnings,
        }


def make_plan(checkpoint: CheckpointFolder, release: Release, gpu: GPU, wishes: Wishes) -> Plan:
    """The plan of a checkpoint's engines on one kind of GPU.

    Raises:
        InputError: what cannot work, and what would.
    """
    check_wishes(wishes)
    if checkpoint.family is not None and checkpoint.family.task is not None:
        raise InputError(
            f"{checkpoint.architecture} is an encoder: plans are for engines with a KV cache; give the checkpoint to "
            "trtllm-build itself"
        )
    never = left_out(checkpoint.family) if checkpoint.family is not None else ()
    reason = algorithms.refusal(checkpoint.algorithms, checkpoint.kv_cache, checkpoint.dtype, release, gpu.sm, never)
    if reason:
        raise InputError(reason)
    check_release(checkpoint, release)
    check_arrangement(checkpoint, gpu)
    check_shapes_of_plugins(checkpoint)
    checkpoint.check_structure()
    checkpoint.check_manifest(every_file=False)
    wishes = with_preset(checkpoint, release, gpu, wishes)
    config = build_config(checkpoint, release, wishes.given)
    check_sizes(checkpoint, config, wishes)
    check_features(checkpoint, release, config, wishes)
    memory = memory_of(checkpoint, config, gpu, wishes)
    check_memory(memory, config, checkpoint)
    return Plan(checkpoint, release, gpu, wishes, config, memory, list(warnings(checkpoint, config, memory, wishes)))


def check_wishes(wishes: Wishes) -> None:
    """Raise InputError for values that no plan can have."""
    if not 0 < wishes.fraction <= 1:
        raise InputError(f"--kv_cache_free_gpu_mem_fraction {wishes.fraction}: above 0 and at most 1 is needed")
    for name, value in wishes.given.items():
        if isinstance(value, int) and not isinstance(value, bool) and value > LARGEST:
            raise InputError(f"--{name}: more than {LARGEST} is no size")
        if isinstance(value, str) and not value.isprintable():
            raise InputError(f"--{name} {shown(value)}: control characters cannot be passed on")


def memory_of(checkpoint: CheckpointFolder, config: dict[str, Any], gpu: GPU, wishes: Wishes) -> list[Memory]:
    ranks = range(checkpoint.world_size)
    return [rank_memory(checkpoint, rank, config, gpu.memory, wishes.fraction) for rank in ranks]


def with_preset(checkpoint: CheckpointFolder, release: Release, gpu: GPU, wishes: Wishes) -> Wishes:
    """The wishes with a preset's flags where the user gave none, and max_seq_len from the output's length.

    latency: few sequences, steps no longer than a prompt. throughput: as many sequences of full length as the KV cache
    holds. Both let TensorRT tune several profiles.
    """
    given = dict(wishes.given)
    if wishes.max_output_len is not None:
        if "max_seq_len" in given:
            raise InputError("--max_output_len and --max_seq_len say the same thing; give one of them")
        if wishes.max_output_len < 1:
            raise InputError(f"--max_output_len {wishes.max_output_len}: at least 1 is needed")
        given["max_seq_len"] = given.get("max_input_len", 1024) + wishes.max_output_len
    if wishes.preset is None:
        return replace(wishes, given=given)
    if "opt_num_tokens" not in given:
        given.setdefault("multiple_profiles", True)
    longest = given.get("max_input_len", 1024)
    beams = given.get("max_beam_width", 1)
    if wishes.preset == "latency":
        given.setdefault("max_batch_size", LATENCY_BATCH)
        rows = given["max_batch_size"] * beams
        given.setdefault("max_num_tokens", max(longest, rows, given.get("opt_num_tokens") or 0))
    else:
        tokens = MOST_TOKENS if gpu.memory >= LARGE_GPU else MOST_TOKENS // 2
        given.setdefault("max_num_tokens", max(longest, tokens, given.get("opt_num_tokens") or 0))
        if "max_batch_size" not in given:
            fitting = fitting_batch(checkpoint, release, gpu, replace(wishes, given=given))
            given["max_batch_size"] = max(min(fitting, given["max_num_tokens"] // beams), 1)
    return replace(wishes, given=given)


def fitting_batch(checkpoint: CheckpointFolder, release: Release, gpu: GPU, wishes: Wishes) -> int:
    """How many sequences of full length every rank holds; a multiple of 8 where there are more than 8."""
    batch = 1
    for _ in range(2):  # the logits of the first answer's rows take memory too; then the second fits
        config = build_config(checkpoint, release, wishes.given | {"max_batch_size": batch})
        fitting = min(rank.sequences for rank in memory_of(checkpoint, config, gpu, wishes))
        batch = max(min(fitting // config["max_beam_width"], LARGEST_BATCH), 1)
    return batch - batch % 8 if batch > 8 else batch


def check_arrangement(checkpoint: CheckpointFolder, gpu: GPU) -> None:
    """Raise InputError for integers that conversion arranged for another generation's kernels."""
    packed = checkpoint.manifest.packed_for_sm
    if not is_arranged(checkpoint) or packed is None:
        return
    if arrangement(packed) != arrangement(gpu.sm):
        raise InputError(
            f"{checkpoint.folder}: its weights are arranged for {arrangement(packed)}, "
            f"the GPU is SM {gpu.sm}; convert again with --sm {gpu.sm}"
        )


def is_arranged(checkpoint: CheckpointFolder) -> bool:
    """Whether integers lie in the order of one GPU generation's kernels."""
    return any(map(algorithms.is_arranged, checkpoint.algorithms))


def check_release(checkpoint: CheckpointFolder, release: Release) -> None:
    """Raise InputError for a release that does not know the model, or not its experts as they are quantized."""
    if checkpoint.model is None:
        return
    schemes = () if checkpoint.precision is None else checkpoint.precision.schemes
    first, last = releases(checkpoint.model, schemes)
    what = checkpoint.architecture
    if checkpoint.model.num_experts and checkpoint.algorithm is not None:
        what += f" with {checkpoint.algorithm}"
    if number(release.version) < number(first):
        raise InputError(
            f"{what} is known to TensorRT-LLM {first} and later, not {release.version}; give another --release"
        )
    if number(release.version) > number(last):
        raise InputError(f"{what} is known to TensorRT-LLM up to {last}, not {release.version}; give another --release")


def check_shapes_of_plugins(checkpoint: CheckpointFolder) -> None:
    """Raise InputError where a rank's linears are not of sizes that a plugin's kernels take."""
    if checkpoint.family is None:
        return
    sizes = {linear: (out_features, in_features) for linear, out_features, in_features in checkpoint.linear_sizes()}
    layers = [checkpoint.layer_algorithms(index) for index in range(checkpoint.sizes.num_hidden_layers)]
    for linear, algorithm in dict.fromkeys(place for layer in layers for place in layer.items()):
        out_features, in_features = sizes[linear]
        for plugin in catalog.QUANTIZATION:
            fits = out_features % plugin.out_multiple == 0 and in_features % plugin.in_multiple == 0
            if plugin in algorithms.plugins_of(algorithm) and not fits:
                raise InputError(
                    f"{linear}: {plugin.name} takes out_features in multiples of {plugin.out_multiple} and in_features "
                    f"of {plugin.in_multiple}; on one of {checkpoint.mapping.tp_size} ranks it is {out_features} x "
                    f"{in_features}; convert with another --tp_size or --quant, or --exclude it"
                )


def check_sizes(checkpoint: CheckpointFolder, config: dict[str, Any], wishes: Wishes) -> None:
    """Raise InputError for lengths and token counts that contradict each other."""
    longest, prompt, tokens = config["max_seq_len"], config["max_input_len"], config["max_num_tokens"]
    if longest > checkpoint.positions and checkpoint.family is not None and checkpoint.family.positions == LEARNED:
        raise InputError(
            f"--max_seq_len {longest} is beyond the {checkpoint.positions} positions that the model has learned; "
            f"give at most {checkpoint.positions}"
        )
    if prompt > longest:
        limit = f"--max_seq_len {longest}" if "max_seq_len" in wishes.given else f"the model's {longest} positions"
        raise InputError(f"--max_input_len {prompt} is longer than {limit}")
    paged = config["plugin_config"]["use_paged_context_fmha"]
    if tokens < prompt and not (wishes.chunked_context and paged):
        way = "serve with --chunked_context" if paged else "use shorter prompts"
        raise InputError(
            f"--max_num_tokens {tokens} is too small for prompts of --max_input_len {prompt}; "
            f"give at least {prompt}, or {way}"
        )
    if wishes.chunked_context and not paged:
        raise InputError("--chunked_context needs --use_paged_context_fmha enable, which this plan does not have")
    rows = config["max_batch_size"] * config["max_beam_width"]
    if "max_num_tokens" in wishes.given and "max_batch_size" in wishes.given and tokens < rows:
        raise InputError(
            f"--max_num_tokens {tokens} is less than one token for each of {rows} sequences (batch times beams); "
            f"give at least {rows}"
        )
    if config["opt_num_tokens"] is not None and config["opt_num_tokens"] > tokens:
        raise InputError(f"--opt_num_tokens {config['opt_num_tokens']} is more than --max_num_tokens {tokens}")


def check_memory(memory: list[Memory], config: dict[str, Any], checkpoint: CheckpointFolder) -> None:
    """Raise InputError unless every rank holds its weights, its activations and one sequence of full length."""
    cache = {"DISABLED": 0, "CONTINUOUS": config["max_batch_size"]}.get(config["kv_cache_type"], 1)
    wanted = cache * config["max_beam_width"]
    for rank in memory:
        if rank.available > 0 and rank.sequences >= wanted:
            continue
        taken = f"{gibibytes(rank.weights)} of weights and {gibibytes(rank.activations)} of activations"
        larger = f"a larger --tp_size than {checkpoint.mapping.tp_size}"
        if rank.available <= rank.kv_per_token:
            raise InputError(
                f"rank {rank.rank}: {taken} leave no room in {gibibytes(rank.gpu)}; convert with {larger}, or give "
                "fewer --max_num_tokens"
            )
        tokens = rank.available // rank.kv_per_token
        raise InputError(
            f"rank {rank.rank}: {taken} leave room for {tokens} tokens of KV cache in {gibibytes(rank.gpu)}, "
            f"{wanted} sequences of {config['max_seq_len']} are needed; give --max_seq_len "
            f"{max(tokens // wanted, 1)} or less, or convert with {larger} or --kv_cache INT8"
        )


def warnings(
    checkpoint: CheckpointFolder, config: dict[str, Any], memory: list[Memory], wishes: Wishes
) -> Iterator[str]:
    """What works, but otherwise than one might expect."""
    fitting = min(rank.sequences for rank in memory) // config["max_beam_width"]
    if config["kv_cache_type"] == "PAGED" and fitting < config["max_batch_size"]:
        yield (
            f"the KV cache holds {fitting} sequences of {config['max_seq_len']} tokens at once, "
            f"max_batch_size is {config['max_batch_size']}: longer ones wait or are paused"
        )
    if not config["plugin_config"]["use_paged_context_fmha"]:
        yield "paged context attention is off: no KV cache reuse and no chunked context when serving"
    if config["max_seq_len"] > checkpoint.positions:
        yield f"max_seq_len {config['max_seq_len']} is beyond the model's {checkpoint.positions} positions"
    window = checkpoint.sliding_window
    if window is not None and config["max_seq_len"] > window:
        yield (
            f"max_seq_len {config['max_seq_len']} is beyond the sliding window of {window} tokens, which is not in the "
            f"engine: serve with max_attention_window_size {window} (enginesmith triton sets it)"
        )
    if checkpoint.windows and config["max_seq_len"] > min(filter(None, checkpoint.windows)):
        yield (
            "layers have different attention windows, which are not in the engine: serve with "
            f"max_attention_window_size {window_list(checkpoint.windows, config['max_seq_len'])} (enginesmith triton "
            "sets it)"
        )
    if checkpoint.precision is None:
        unknown = checkpoint.architecture if checkpoint.family is None else ", ".join(map(str, checkpoint.algorithms))
        yield (
            f"{printable(unknown, 60)} is not converted here: tensors, and what config.json says besides sizes, "
            "mapping and quantization, are left to trtllm-build"
        )
    if config["max_num_tokens"] > MOST_TOKENS:
        yield f"max_num_tokens {config['max_num_tokens']} is above {MOST_TOKENS}: more memory, hardly more throughput"
    if is_arranged(checkpoint) and checkpoint.manifest.packed_for_sm is None:
        yield "integers arranged by another tool: nothing says for which GPU generation; check with its maker"
    if wishes.chunked_context:
        yield "serve with chunked context (enginesmith triton --enable_chunked_context): prompts exceed one step"
