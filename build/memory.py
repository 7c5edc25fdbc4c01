"""How much GPU memory one rank of an engine takes: weights, KV cache, activations.

    weights       = the rank's file
    KV per token  = 2 layers/pp ceil(kv_heads/tp) head_size bytes, for at most the sliding window's tokens a sequence
    activations   = max_num_tokens layer + logits

Weights and KV cache are exact. Activations are an estimate that takes everything a layer makes as kept at once: for a
7B Llama 148 kB a token, where NVIDIA's documentation shows 142 kB. The reserve is the CUDA context, and the all-reduce
workspace under tensor parallelism.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ..convert.files.disk import ITEM_SIZE
from .checkpoint_folder import CheckpointFolder

# CUDA context, kernels, the decoder's buffers.
CONTEXT = 2**30
# All-reduce workspace of one rank, for each rank it sums with.
ALL_REDUCE = 3 * 2**26
LOGITS = 4


@dataclass(frozen=True)
class Memory:
    """Bytes on the GPU of one rank.

    Attributes:
        rank: the rank.
        weights, activations, reserve: what is taken before the first request.
        kv_per_token: bytes of cache one token takes.
        kv_per_sequence: a sequence of max_seq_len, or of the sliding window if that is shorter, in whole blocks.
        kv_workload: max_batch_size * max_beam_width of them.
        available: what the runtime gives to the cache, its share of what is left.
        gpu: the GPU's memory.
    """

    rank: int
    weights: int
    activations: int
    reserve: int
    kv_per_token: int
    kv_per_sequence: int
    kv_workload: int
    available: int
    gpu: int

    @property
    def sequences(self) -> int:
        """How many sequences of full length the cache holds at once."""
        return max(self.available, 0) // self.kv_per_sequence

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"sequences": self.sequences}


def rank_memory(
    checkpoint: CheckpointFolder, rank: int, build_config: dict[str, Any], gpu_bytes: int, fraction: float
) -> Memory:
    """The memory of one rank.

    Args:
        build_config: the plan's, with explicit shapes.
        gpu_bytes: memory of the GPU.
        fraction: share of the free memory that the runtime gives to the cache (kv_cache_free_gpu_mem_fraction).
    """
    tp = checkpoint.mapping.tp_size
    kv_heads = math.ceil(checkpoint.sizes.num_key_value_heads / tp)
    element = 1 if checkpoint.kv_cache in ("INT8", "FP8") else ITEM_SIZE[checkpoint.dtype]
    per_token = 2 * len(checkpoint.layers_of(rank)) * kv_heads * checkpoint.sizes.head_size * element
    block: int = build_config["plugin_config"]["tokens_per_block"]
    longest: int = build_config["max_seq_len"]
    windows = checkpoint.windows or (checkpoint.sliding_window,)
    kept = [math.ceil(min(longest, window or longest) / block) * block for window in windows]
    per_sequence = per_token * sum(kept) // len(kept)
    weights = checkpoint.rank_bytes[rank]
    activations = activation_bytes(checkpoint, rank, build_config)
    reserve = CONTEXT + (ALL_REDUCE * tp if tp > 1 else 0)
    free = gpu_bytes - weights - activations - reserve
    return Memory(
        rank=rank,
        weights=weights,
        activations=activations,
        reserve=reserve,
        kv_per_token=per_token,
        kv_per_sequence=per_sequence,
        kv_workload=per_sequence * build_config["max_batch_size"] * build_config["max_beam_width"],
        available=int(free * fraction),
        gpu=gpu_bytes,
    )


def activation_bytes(checkpoint: CheckpointFolder, rank: int, build_config: dict[str, Any]) -> int:
    """Everything one layer makes for max_num_tokens tokens, and the logits.

    A layer makes its input and output, two norms, qkv, the attention's and dense's outputs, both MLP products, their
    product and its projection; layers share that memory. Logits are float32 for the last token of every sequence, for
    all tokens if context logits are gathered.
    """
    tp, sizes = checkpoint.mapping.tp_size, checkpoint.sizes
    query = sizes.num_attention_heads // tp * sizes.head_size
    key_value = math.ceil(sizes.num_key_value_heads / tp) * sizes.head_size
    wide = 3 * sizes.intermediate_size if checkpoint.model is None else checkpoint.model.mlp_channels
    made = 6 * sizes.hidden_size + (query + 2 * key_value) + query + wide // tp
    tokens: int = build_config["max_num_tokens"]
    layer = tokens * ITEM_SIZE[checkpoint.dtype] * made
    if rank // tp != checkpoint.mapping.pp_size - 1:
        return layer
    rows: int = build_config["max_batch_size"] * build_config["max_beam_width"]
    if build_config["gather_context_logits"]:
        rows = max(rows, tokens)
    return layer + rows * checkpoint.sizes.vocab_size * LOGITS


def gibibytes(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
