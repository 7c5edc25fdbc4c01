"""Parameters that the models of a repository know: a key that none of them reads has no effect, and nobody says so."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from .repository import Model

# TensorRT-LLM's backend, releases 0.16 to 1.3: parameters that are true or false, ...
SWITCHES = (
    "enable_kv_cache_reuse", "enable_chunked_context", "exclude_input_in_output", "normalize_log_probs",
    "enable_trt_overlap", "enable_context_fmha_fp32_acc", "multi_block_mode", "cuda_graph_mode",
    "kv_cache_onboard_blocks", "speculative_decoding_fast_logits", "enableContextFMHAFP32Acc", "multiBlockMode",
    "cudaGraphMode", "fail_fast_on_attention_window_too_large",
)  # fmt: skip
# ... whole numbers and the least that makes sense, ...
COUNTS = {
    "max_tokens_in_paged_kv_cache": 1, "sink_token_length": 0, "kv_cache_host_memory_bytes": 0,
    "cancellation_check_period_ms": 1, "stats_check_period_ms": 1, "recv_poll_period_ms": 0,
    "iter_stats_max_iterations": 0, "request_stats_max_iterations": 0, "lora_cache_optimal_adapter_size": 1,
    "lora_cache_max_adapter_size": 1, "lora_cache_host_memory_bytes": 0, "cuda_graph_cache_size": 0,
    "cudaGraphCacheSize": 0, "num_nodes": 1, "lookahead_window_size": 1, "lookahead_ngram_size": 1,
    "lookahead_verification_set_size": 0,
}  # fmt: skip
# ... shares of something, ...
FRACTIONS = ("kv_cache_free_gpu_mem_fraction", "cross_kv_cache_fraction", "lora_cache_gpu_memory_fraction")
# ... and choices.
DECODING_MODES = ("top_k", "top_p", "top_k_top_p", "beam_search", "medusa", "redrafter", "lookahead", "eagle")
TEXTS = (
    "FORCE_CPU_ONLY_INPUT_TENSORS", "executor_worker_path", "gpt_model_type", "gpt_model_path", "encoder_model_path",
    "max_beam_width", "max_attention_window_size", "batch_scheduler_policy", "gpu_device_ids", "participant_ids",
    "lora_prefetch_dir", "decoding_mode", "medusa_choices", "eagle_choices", "guided_decoding_backend",
    "xgrammar_tokenizer_info_path", "tokenizer_dir", "gpu_weights_percent",
)  # fmt: skip
# What the model of a preview reads besides.
PREVIEW = ("preview_release", "max_input_len", "max_seq_len", "max_batch_size")
ENGINE = (*SWITCHES, *COUNTS, *FRACTIONS, *TEXTS)
# Python models: what Triton itself reads, what NVIDIA's read, and ours.
PYTHON = (
    "EXECUTION_ENV_PATH", "FORCE_CPU_ONLY_INPUT_TENSORS", "TRITON_BATCH_STRATEGY_PATH",
    "tokenizer_dir", "tokenizer_type", "add_special_tokens", "skip_special_tokens", "multimodal_model_path",
    "visual_model_path", "engine_dir", "gpt_model_path", "max_num_images", "max_patches_per_image",
    "accumulate_tokens", "tensorrt_llm_model_name", "tensorrt_llm_draft_model_name", "multimodal_encoders_name",
    "vocab_size", "end_ids", "pad_id", "chat", "decoupled", "steps", "exclude_input_in_output",
    "max_prompt_bytes", "max_words", "max_word_bytes", "max_seconds",
)  # fmt: skip
OLD = {"worker_path": "executor_worker_path"}
LIKENESS = 0.75  # of a name to a known one, to be taken for a slip where a model may have parameters of its own


def unknown_parameters(model: Model) -> Iterator[str]:
    """Keys that nothing reads. A Python model of someone else's may read others, so there only slips are told."""
    closed = model.config.backend == "tensorrtllm" or model.has_file("tokenization.py")
    known = (*ENGINE, *PREVIEW) if "preview_release" in model.config.parameters else ENGINE
    known = known if model.is_engine() else PYTHON
    if not (closed or model.is_engine() or {"tokenizer_dir", "tensorrt_llm_model_name"} & set(model.config.parameters)):
        return
    for key in sorted(set(model.config.parameters) - set(known)):
        close = difflib.get_close_matches(key, known, 1, 0.6 if closed else LIKENESS)
        if key in OLD:
            yield f"parameter {key} is of an old release; {OLD[key]} took its place"
        elif close:
            yield f"there is no parameter {key}; did you mean {close[0]}?"
        elif closed:
            yield f"there is no parameter {key}; it would have no effect"
