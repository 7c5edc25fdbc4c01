"""trtllm-build's flags as data: what each sets, which values it takes, and which releases have it.

Source: the argument parsers of TensorRT-LLM 0.16 and 1.0 to 1.2 (tensorrt_llm/commands/build.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..convert.errors import InputError, printable, shown
from ..convert.files.bounds import LARGEST, meant, usable

DTYPES = ("auto", "float16", "float32", "bfloat16", "int32", "disable")
SWITCH = ("enable", "disable")
FP8_GEMM = ("fp8", "disable")


@dataclass(frozen=True)
class Flag:
    """One flag.

    Attributes:
        into: what it sets: a BuildConfig key, a PluginConfig key, or how the build runs.
        kind: int; "flag" for one without a value; "text"; or the words it takes.
        least: the smallest integer.
        aliases: other spellings.
        since, until: releases that have it.
    """

    name: str
    into: Literal["build", "plugin", "run"]
    kind: type[int] | str | tuple[str, ...]
    help: str
    least: int = 0
    aliases: tuple[str, ...] = ()
    since: str = "0.16.0"
    until: str = "1.2.1"

    def accepted(self, value: Any, where: str) -> Any:
        """The JSON value that a word of the command line, or a recipe's value, means.

        Args:
            where: what gave it, for messages ("--max_batch_size", "recipe.yaml: build.max_batch_size").

        Raises:
            InputError: a value that the flag does not take.
        """
        if self.kind is int:
            if not isinstance(value, int) or isinstance(value, bool) or not self.least <= value <= LARGEST:
                raise InputError(f"{where} is {shown(value)}; a whole number from {self.least} to {LARGEST} is needed")
            return value
        if self.kind == "flag" or (self.kind == SWITCH and isinstance(value, bool)):
            if not isinstance(value, bool):
                raise InputError(f"{where} is {shown(value)}; true or false is needed")
            return value
        if isinstance(self.kind, tuple):
            return self.meaning(value, where)
        if not usable(value):
            raise InputError(f"{where} is {shown(value)}; a text that is not empty is needed")
        return value

    def meaning(self, word: Any, where: str) -> Any:
        """The JSON value of one of the words that the flag takes, or that it has already."""
        assert isinstance(self.kind, tuple)
        if word is None and "disable" in self.kind and self.kind != SWITCH:
            return None
        small = word.lower() if isinstance(word, str) else word
        if small not in self.kind:
            raise InputError(f"{where} is {shown(word)}; use one of: {', '.join(self.kind)}")
        if small == "disable":
            return False if self.kind == SWITCH else None
        return True if small == "enable" else small


SHAPES = (
    Flag("max_batch_size", "build", int, "Most sequences in one step.", 1),
    Flag("max_input_len", "build", int, "Longest prompt, in tokens.", 1),
    Flag(
        "max_seq_len",
        "build",
        int,
        "Longest sequence, prompt and output; default the model's positions, of ALiBi 2048.",
        1,
        aliases=("max_decoder_seq_len",),
    ),
    Flag("max_beam_width", "build", int, "Widest beam search.", 1),
    Flag("max_num_tokens", "build", int, "Most tokens in one step, over all sequences.", 1),
    Flag("opt_num_tokens", "build", int, "Tokens in a step that TensorRT tunes for.", 1),
    Flag(
        "max_prompt_embedding_table_size",
        "build",
        int,
        "Rows of the prompt embedding table.",
        aliases=("max_multimodal_len",),
    ),
    Flag("kv_cache_type", "build", ("continuous", "paged", "disabled"), "How the KV cache is laid out."),
)
BUILD = (
    Flag("input_timing_cache", "build", "text", "Timing cache to start from."),
    Flag("output_timing_cache", "build", "text", "Timing cache to write; default beside the engine."),
    Flag(
        "profiling_verbosity", "build", ("layer_names_only", "detailed", "none"), "What the engine tells of its layers."
    ),
    Flag("weight_sparsity", "build", "flag", "Use sparse weights where the checkpoint has them."),
    Flag("weight_streaming", "build", "flag", "Let weights be streamed from host memory."),
    Flag("enable_debug_output", "build", "flag", "Mark debug outputs."),
    Flag("gather_context_logits", "build", "flag", "Return logits of the prompt."),
    Flag("gather_generation_logits", "build", "flag", "Return logits of the output."),
    Flag("gather_all_token_logits", "run", "flag", "Both of these."),
    Flag("monitor_memory", "build", "flag", "Log memory while building."),
    Flag("strip_plan", "run", "flag", "Leave the weights out of the engine."),
    Flag("logits_dtype", "run", ("float16", "float32"), "Type of the logits."),
    Flag("workers", "run", int, "Ranks built at once, one GPU each; default all GPUs.", 1),
    Flag(
        "log_level",
        "run",
        ("internal_error", "error", "warning", "info", "verbose", "debug"),
        "How much TensorRT-LLM logs.",
    ),
)
PLUGINS = (
    Flag("gpt_attention_plugin", "plugin", DTYPES, "Attention."),
    Flag(
        "gemm_plugin",
        "plugin",
        ("auto", "float16", "float32", "bfloat16", "int32", "fp8", "nvfp4", "disable"),
        "Matrix products that are not quantized.",
    ),
    Flag("nccl_plugin", "plugin", DTYPES, "Communication between ranks."),
    Flag("bert_attention_plugin", "plugin", DTYPES, "Attention of encoders."),
    Flag("moe_plugin", "plugin", DTYPES, "Mixture of experts."),
    Flag("mamba_conv1d_plugin", "plugin", DTYPES, "Mamba's convolution."),
    Flag("gemm_swiglu_plugin", "plugin", FP8_GEMM, "Fused MLP product, FP8 on Hopper."),
    Flag("fp8_rowwise_gemm_plugin", "plugin", DTYPES, "FP8 product with row scales; set by FP8_PER_CHANNEL_PER_TOKEN."),
    Flag("low_latency_gemm_plugin", "plugin", FP8_GEMM, "FP8 product for small batches."),
    Flag("low_latency_gemm_swiglu_plugin", "plugin", FP8_GEMM, "Fused MLP product for small batches, FP8."),
    Flag("context_fmha", "plugin", SWITCH, "Fused attention for prompts."),
    Flag("bert_context_fmha_fp32_acc", "plugin", SWITCH, "Its float32 sums, in encoders."),
    Flag("remove_input_padding", "plugin", SWITCH, "Pack prompts without padding."),
    Flag("paged_kv_cache", "plugin", SWITCH, "Deprecated: use --kv_cache_type."),
    Flag("tokens_per_block", "plugin", int, "Tokens in a block of the KV cache.", 1),
    Flag("use_paged_context_fmha", "plugin", SWITCH, "Prompts read the paged cache: KV reuse and chunked context."),
    Flag("use_fp8_context_fmha", "plugin", SWITCH, "Prompt attention in FP8."),
    Flag("multiple_profiles", "plugin", SWITCH, "Several optimization profiles: better kernels, longer build."),
    Flag("paged_state", "plugin", SWITCH, "Page the state of recurrent models."),
    Flag("streamingllm", "plugin", SWITCH, "Attention sinks."),
    Flag("reduce_fusion", "plugin", SWITCH, "Fuse all-reduce and norm, where the model's class can: tp > 1, pp 1."),
    Flag("use_fused_mlp", "plugin", SWITCH, "Fuse gate and up; only FP8 and unquantized models can."),
    Flag("pp_reduce_scatter", "plugin", SWITCH, "Scatter sums between stages, where the model's class can."),
    Flag("norm_quant_fusion", "plugin", SWITCH, "Fuse norm and FP4 quantization.", since="0.20.0"),
    Flag("user_buffer", "plugin", SWITCH, "All-reduce in registered buffers."),
    Flag("fuse_fp4_quant", "plugin", SWITCH, "Fuse FP4 quantization into attention.", since="0.20.0"),
    Flag(
        "gemm_allreduce_plugin",
        "plugin",
        ("float16", "bfloat16", "disable"),
        "Fuse product and all-reduce.",
        since="0.20.0",
    ),
)
FLAGS = SHAPES + BUILD + PLUGINS
BY_NAME = {name: flag for flag in FLAGS for name in (flag.name, *flag.aliases)}

# Flags that are refused, and what to do instead.
REFUSED = {
    "smooth_quant_gemm_plugin": "the checkpoint's quant_algo enables it; leave the flag out",
    "rmsnorm_quantization_plugin": "the checkpoint's quant_algo enables it; leave the flag out",
    "layernorm_quantization_plugin": "the checkpoint's quant_algo enables it; leave the flag out",
    "quantize_per_token_plugin": "the checkpoint's quant_algo enables it; leave the flag out",
    "quantize_tensor_plugin": "the checkpoint's quant_algo enables it; leave the flag out",
    "weight_only_quant_matmul_plugin": "the checkpoint's quant_algo enables it; leave the flag out",
    "weight_only_groupwise_quant_matmul_plugin": "the checkpoint's quant_algo enables it; leave the flag out",
    "qserve_gemm_plugin": "the checkpoint's quant_algo enables it; leave the flag out",
    "smooth_quant_plugins": "the checkpoint's quant_algo decides; leave the flag out",
    "build_config": "a plan writes it; give the flags that you want in it",
    "model_config": "an engine without weights is not planned; give --checkpoint_dir",
    "model_cls_file": "code from a file is not run",
    "model_cls_name": "code from a file is not run",
    "auto_parallel": "it is not planned; convert with --tp_size and --pp_size",
    "cluster_key": "it belongs to --auto_parallel, which is not planned",
    "gpus_per_node": "it belongs to --auto_parallel, which is not planned",
    "speculative_decoding_mode": "speculative decoding is not planned; use trtllm-build itself",
    "max_draft_len": "speculative decoding is not planned; use trtllm-build itself",
    "max_encoder_input_len": "encoder-decoder models are not planned; use trtllm-build itself",
    "lora_plugin": "LoRA is not planned (and SmoothQuant engines refuse it); use trtllm-build itself",
    "lora_dir": "LoRA is not planned (and SmoothQuant engines refuse it); use trtllm-build itself",
    "dora_plugin": "LoRA is not planned (and SmoothQuant engines refuse it); use trtllm-build itself",
    "lora_ckpt_source": "LoRA is not planned (and SmoothQuant engines refuse it); use trtllm-build itself",
    "lora_target_modules": "LoRA is not planned (and SmoothQuant engines refuse it); use trtllm-build itself",
    "max_lora_rank": "LoRA is not planned (and SmoothQuant engines refuse it); use trtllm-build itself",
    "fast_build": "its weights lie outside the engine, where the manifest cannot vouch for them; leave it out",
    "visualize_network": "use trtllm-build itself with the build_config.json of --plan_only",
    "dry_run": "use --plan_only",
    "enable_xqa": "upstream removed it in 0.16; leave it out",
    "use_custom_all_reduce": "upstream removed it in 0.12; leave it out",
}


def accepted(given: Any, before: str) -> dict[str, Any]:
    """trtllm-build's flags with the values that they mean, each under its first name.

    Args:
        given: flags by name, words joined by - or _.
        before: what stands before a name in messages ("--", "recipe.yaml: build.").

    Raises:
        InputError: no mapping, a name that is no flag, or a value that it does not take.
    """
    if not isinstance(given, Mapping):
        raise InputError(f"{before}flags is {shown(given)}; trtllm-build's flags by name are needed")
    flags: dict[str, Any] = {}
    for said, value in given.items():
        name = said.replace("-", "_") if isinstance(said, str) else said
        if name in REFUSED:
            raise InputError(f"{before}{name}: {REFUSED[name]}")
        flag = BY_NAME.get(name)
        if flag is None:
            raise InputError(f"{before}{printable(str(said), 60)} is no flag{meant(name, BY_NAME)}")
        if flag.name in flags:
            raise InputError(f"{before}{name} and {before}{flag.name} are one flag; give one")
        flags[flag.name] = flag.accepted(value, f"{before}{name}")
    return flags
