"""AutoAWQ's GEMM format, which GPTQModel writes too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError, shown
from ...files.reader import Reader
from . import unpacking as repack
from .gptq import HARMLESS, bits_of, check_integers, group_of, not_converted, stated_format, unreadable
from .kinds import SCALES, Expected, Packed
from .names import check_known
from .unpacking import Quantized, Tensors

AWQ = "awq"
# Names that AutoAWQ uses in its own file.
SPELLED = {"w_bit": "bits", "q_group_size": "group_size"}
READ = (
    "bits", "checkpoint_format", "data_type", "desc_act", "do_fuse", "exllama_config", "format", "fuse_max_seq_len",
    "group_size", "act_bits", "lm_head", "method", "modules_to_fuse", "modules_to_not_convert", "pack_dtype",
    "quant_method", "sym", "version", "zero_point",
)  # fmt: skip


@dataclass(frozen=True)
class Awq(Packed):
    """AutoAWQ's GEMM format, 4 bits."""

    @property
    def algo(self) -> str | None:
        return super().algo if self.zero_points else "W4A16_AWQ"

    @property
    def small(self) -> tuple[str, ...]:
        return ("qzeros",)

    def tensors(self, name: str, out_features: int, in_features: int) -> dict[str, Expected]:
        groups, packed_out = self.groups(name, in_features), out_features // 8
        return {
            "qweight": Expected.of(("I32",), in_features, packed_out),
            "qzeros": Expected.of(("I32",), groups, packed_out),
            "scales": Expected.of(SCALES, groups, out_features),
        }

    def check(self, tensors: Tensors, name: str) -> str | None:
        if not self.zero_points and (repack.fields(tensors["qzeros"], 4) != 8).any():
            raise self.no_zeros(name)
        return None

    def linear(self, tensors: Tensors, name: str) -> Quantized:
        self.check(tensors, name)
        return repack.awq(tensors, name)


def awq_config(said: Reader, file: Path) -> Awq:
    """What a configuration of AWQ's says."""
    said = spelled(said)
    check_known(said, (*HARMLESS, *READ))
    version = stated_format(said, "gemm")
    if version != "gemm":
        raise unreadable(said, "version", version, "save the model with version gemm")
    symmetric = said.flag("sym")
    zero_points = said.flag("zero_point", not symmetric)
    if symmetric and zero_points:
        raise InputError(f"{said.file}: sym true and zero_point true contradict each other; correct it")
    if bits_of(said, "bits") != 4:
        raise unreadable(said, "bits", said.values["bits"], "AWQ's format has 4")
    for key in ("desc_act", "lm_head"):
        if said.flag(key):
            raise unreadable(said, key, True, "AWQ's format has no such")
    if said.values.get("pack_dtype") not in (None, "int32"):
        raise unreadable(said, "pack_dtype", said.values["pack_dtype"], "pack the model in int32 words")
    check_integers(said)
    return Awq(file, AWQ, 4, group_of(said), zero_points, left_out=tuple(not_converted(said)))


def spelled(said: Reader) -> Reader:
    """A configuration with AutoAWQ's own names made the usual ones.

    Raises:
        InputError: it has a key by both names, with different values.
    """
    values = {key: value for key, value in said.values.items() if key not in SPELLED}
    for own, usual in SPELLED.items():
        if said.has(own) and values.setdefault(usual, said.values[own]) != said.values[own]:
            both = shown([values[usual], said.values[own]])
            raise InputError(f"{said.file}: {usual} and {own} contradict each other: {both}; correct it")
    return Reader(values, said.file)
