"""GPTQ's format, as AutoGPTQ, GPTQModel, optimum and AutoRound write it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...errors import InputError, shown
from ...files.reader import Reader
from . import unpacking as repack
from .kinds import SCALES, WHOLE_ROW, Expected, LeftOut, Packed
from .names import check_known, holding, last_names, names, pattern
from .unpacking import Quantized, Tensors

GPTQ, AUTO_ROUND = "gptq", "auto-round"
VERSIONS = {"gptq": 1, "gptq_v2": 2}
# Tools make no smaller groups; kernels of TensorRT-LLM take multiples of 64 (see ``ReadyMade.engine_group``).
LEAST_GROUP = 8
PACKINGS = {"auto_round:auto_gptq": 1, "auto_round:gptq": 1, "auto_round:gptqmodel": 1, "auto_round:gptq_v2": 2}
# Keys that say how a tool went about it, or how a loader should, and nothing about what the tensors mean.
TUNING = (
    "amp", "autoround_version", "batch_size", "dataset", "enable_minmax_tuning", "enable_norm_bias_tuning",
    "enable_quanted_input", "enable_torch_compile", "gradient_accumulate_steps", "iters", "low_cpu_mem_usage",
    "low_gpu_mem_usage", "lr", "minmax_lr", "model_free", "momentum", "nsamples", "not_use_best_mse", "provider",
    "scale_dtype", "seed", "seqlen", "train_bs", "act_dynamic", "act_sym", "act_group_size", "act_data_type",
)  # fmt: skip
HARMLESS = (
    *TUNING, "act_group_aware", "backend", "block_name_to_quantize", "cache_block_outputs", "compile",
    "damp_auto_increment", "damp_percent", "desc_act_by", "disable_exllama", "exllama_config", "failsafe", "fallback",
    "foem", "gptaq", "gptaq_alpha", "hessian", "hyb_act", "max_input_length", "meta", "mock_quantization",
    "model_file_base_name", "model_name_or_path", "model_seqlen", "module_name_preceding_first_block", "mse",
    "offload_to_disk", "offload_to_disk_path", "pack_impl", "pad_token_id", "parallel_packing", "quantizer",
    "static_groups", "tokenizer", "true_sequential", "uri", "use_cuda_fp16", "use_exllama", "v2", "v2_alpha",
    "v2_memory_device",
)  # fmt: skip
READ = (
    "act_bits", "bits", "checkpoint_format", "data_type", "desc_act", "dynamic", "extra_config", "format", "group_size",
    "is_marlin_format", "lm_head", "method", "modules_in_block_to_quantize", "modules_to_not_convert", "pack_dtype",
    "packing_format", "quant_method", "sym", "to_quant_block_names", "version",
)  # fmt: skip


@dataclass(frozen=True)
class Gptq(Packed):
    """GPTQ's format.

    Attributes:
        version: 1, or 2 for "gptq_v2", as the configuration says.
        symmetric: what it says of the zero points; None where it says nothing.
    """

    version: int = 1
    symmetric: bool | None = None

    @property
    def algo(self) -> str | None:
        return super().algo if self.method == GPTQ else None

    @property
    def small(self) -> tuple[str, ...]:
        return "qzeros", "g_idx"

    def tensors(self, name: str, out_features: int, in_features: int) -> dict[str, Expected]:
        groups, words = self.groups(name, in_features), ("I32",)
        return {
            "qweight": Expected.of(words, in_features * self.bits // 32, out_features),
            "qzeros": Expected.of(words, groups, out_features * self.bits // 32),
            "scales": Expected.of(SCALES, groups, out_features),
            "g_idx": self.index(in_features),
        }

    def check(self, tensors: Tensors, name: str) -> str | None:
        self.check_index(tensors.get("g_idx"), f"{name}.g_idx", "desc_act: true")
        held = repack.gptq_version(tensors["qzeros"], f"{name}.qzeros", self.bits, self.version, self.symmetric)
        if held == self.version:
            return None
        return f"{self.file.name} names version {self.version} of GPTQ's format; zero points are stored as in {held}"

    def linear(self, tensors: Tensors, name: str) -> Quantized:
        self.check_index(tensors.get("g_idx"), f"{name}.g_idx", "desc_act: true")
        return repack.gptq(tensors, name, self.bits, self.version, self.symmetric)


def gptq_config(said: Reader, file: Any) -> Gptq:
    """What a configuration of GPTQ's says."""
    check_known(said, (*HARMLESS, *READ))
    stored = "marlin" if said.flag("is_marlin_format") else stated_format(said, "gptq")
    if stored not in VERSIONS:
        raise unreadable(said, "checkpoint_format", stored, 'save the model with checkpoint_format "gptq_v2"')
    left = [*dynamic(said), *outside_blocks(said), *not_converted(said)]
    return gptq_format(said, file, GPTQ, VERSIONS[stored], left)


def auto_round_config(said: Reader, file: Any) -> Gptq:
    """What a configuration of AutoRound's says, where it packs as GPTQ does."""
    check_known(said, (*HARMLESS, *READ))
    packing = said.text_or_none("packing_format") or "auto_round:gptq"
    if packing not in PACKINGS:
        works = f"those of GPTQ do ({', '.join(PACKINGS)})"
        raise unreadable(said, "packing_format", packing, works)
    left = [*extra_config(said), *not_converted(said)]
    return gptq_format(said, file, AUTO_ROUND, PACKINGS[packing], left)


def gptq_format(said: Reader, file: Any, method: str, version: int, left: list[LeftOut]) -> Gptq:
    """What the tools have in common."""
    if said.has("pack_dtype") and said.values["pack_dtype"] != "int32":
        raise unreadable(said, "pack_dtype", said.values["pack_dtype"], "pack the model in int32 words")
    if said.flag("lm_head"):
        raise unreadable(said, "lm_head", True, "quantize the model without lm_head, which engines keep in float")
    check_integers(said)
    symmetric = said.flag("sym") if said.has("sym") else None
    return Gptq(
        file,
        method,
        bits_of(said, "bits"),
        group_of(said),
        symmetric is not True,
        said.flag("desc_act"),
        version,
        symmetric,
        left_out=tuple(left),
    )


def check_integers(said: Reader) -> None:
    """Raise InputError where weights are no integers, or activations are quantized too."""
    if said.has("data_type") and said.values["data_type"] not in ("int", "int_sym", "int_asym"):
        raise unreadable(said, "data_type", said.values["data_type"], "int does")
    if said.has("act_bits") and said.integer("act_bits") < 16:
        raise unreadable(said, "act_bits", said.values["act_bits"], "only weights may be quantized")


def stated_format(said: Reader, default: str) -> str:
    """GPTQModel has called it checkpoint_format, and calls it format; AutoAWQ calls it version."""
    keys = ("checkpoint_format", "format", "version")
    stated = [said.values[key] for key in keys if said.has(key)]
    if any(other != stated[0] for other in stated):
        raise InputError(f"{said.file}: states the formats {shown(stated)}; correct it to one")
    return str(stated[0]).lower() if stated else default


def dynamic(said: Reader) -> list[LeftOut]:
    """GPTQModel's exceptions: patterns that begin with "-" leave modules in float, others give them other bits."""
    value = said.values.get("dynamic")
    if not value:
        return []
    if not isinstance(value, dict) or not all(str(text).startswith("-:") for text in value):
        raise unreadable(said, "dynamic", value, "quantize every linear with the same bits and groups")
    patterns = [pattern(text[2:], said.file, "dynamic") for text in value]
    return [LeftOut("dynamic", lambda name: any(one.match(name) for one in patterns))]


def outside_blocks(said: Reader) -> list[LeftOut]:
    """optimum's list of the linears of a block that are quantized: others are not."""
    key = "modules_in_block_to_quantize"
    if not said.has(key):
        return []
    inside = last_names(said.values[key])
    if inside is None:
        raise said.wrong(key, "lists of names")
    ends = tuple(f".{name}" for name in inside)
    return [LeftOut(key, lambda name: not name.endswith(ends))]


def not_converted(said: Reader) -> list[LeftOut]:
    """The list of names that are left in float."""
    key = "modules_to_not_convert"
    return [LeftOut(key, holding(names(said, key)))]


def extra_config(said: Reader) -> list[LeftOut]:
    """AutoRound's exceptions: 16 bits leave a module in float, other settings give it other bits."""
    float_names = set()
    for name, settings in said.section("extra_config").values.items():
        one = Reader(settings if isinstance(settings, dict) else {}, said.file, "extra_config.")
        if not one.has("bits") or one.integer("bits") < 16:
            raise unreadable(said, "extra_config", {name: settings}, "quantize every linear with the same bits")
        float_names.add(name)
    return [LeftOut("extra_config", float_names.__contains__)]


def bits_of(said: Reader, key: str) -> int:
    if said.values.get(key) not in (4, 8):
        raise unreadable(said, key, said.values.get(key), "4 and 8 do")
    return said.integer(key)


def group_of(said: Reader) -> int:
    size = said.values.get("group_size")
    if size == WHOLE_ROW:
        return WHOLE_ROW
    if not isinstance(size, int) or size <= 0 or size % LEAST_GROUP:
        raise unreadable(said, "group_size", size, f"multiples of {LEAST_GROUP}, and -1, do")
    return said.integer("group_size")


def unreadable(said: Reader, key: str, value: Any, works: str) -> InputError:
    """The refusal of a value that no reader here understands."""
    return InputError(f"{said.file}: {key} {shown(value)} cannot be repacked: {works}; or give the unquantized model")
