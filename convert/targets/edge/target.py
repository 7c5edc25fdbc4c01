"""TensorRT Edge-LLM as what a quantized model is for.

It scales any linear's input, computes in float16 throughout, and gives what is missing or misshapen a default without a
word: what it would misread is refused here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from ....plugins.lazy import torch
from ...errors import InputError
from ...files.disk import is_there, read_json
from ...quantize.quantization import Quantization
from ...sources.readymade.kinds import ANEW
from ..huggingface.format import Format
from ..huggingface.target import HuggingFace
from ..modelopt.formats import Fp8
from ..modelopt.target import Unified
from .formats import EdgeAwq, EdgeGptq, SmoothQuant

HALF = "float16"
# Output channels of linears in the default plugin for 4 bits.
PLUGIN_ROWS = 64


class Edge(Unified):
    """A folder for TensorRT Edge-LLM's exporter."""

    name = "edge"
    title = "TensorRT Edge-LLM"
    formats: ClassVar[tuple[type[Format], ...]] = (SmoothQuant, Fp8, EdgeAwq, EdgeGptq)
    mixture: ClassVar[str | None] = None
    wider: ClassVar[str] = "TensorRT Edge-LLM has no wider one; use another --target"

    @classmethod
    def output_dtype(cls, asked: str, source: str) -> str:
        if asked not in ("auto", HALF):
            raise InputError(
                f"--dtype {asked}: {cls.title} computes in float16; leave it away, or use another --target"
            )
        return HALF

    def check(self, how: Quantization) -> None:
        super().check(how)
        if self.gptq and not (how.choices.symmetric or how.choices.repacks):
            raise InputError(f"--quant W4A16_GPTQ: {self.title} clamps zero points; give --symmetric")
        if self.precision.kv_cache is not None and not any(scheme.activations for scheme in self.precision.quantized):
            works = " and ".join(dict.fromkeys(str(s.name) for s in self.schemes().values() if s.activations))
            raise InputError(f"--kv_cache: {self.title} reads its scales with {works} only; leave it away")

    def check_scale(self, scale: torch.Tensor, name: str) -> None:
        """The same for scales that its graphs hold in float16: those of FP8 and of groups."""
        super().check_scale(scale, name)
        half = torch.finfo(torch.float16)
        kept = all(s.activations == "int8" for s in self.precision.quantized) or name.endswith("pre_quant_scale")
        if not kept and not ((scale >= half.smallest_normal) & (scale <= half.max)).all():
            raise InputError(f"{name}: holds scales beyond float16's range, in which {self.title} has them; {ANEW}")

    @property
    def gptq(self) -> bool:
        """Whether linears are held as GPTQ's tools do."""
        return any(scheme.name in EdgeGptq.schemes for scheme in self.precision.quantized)

    def quantization(self) -> dict[str, Any]:
        if not self.gptq:
            return super().quantization()
        return {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": self.precision.quantized[0].group_size,
            "desc_act": False,
            "sym": True,
            "lm_head": False,
            "checkpoint_format": "gptq",
        }

    def configs(self) -> dict[str, dict[str, Any]]:
        return HuggingFace.configs(self) if self.gptq else super().configs()

    @property
    def notes(self) -> list[str]:
        found = []
        if not has_chat_template(self.source.folder):
            found.append(f"no chat template: {self.title}'s exporter wants a chat_template.jinja beside the model")
        narrow = [rows for rows in self.rows() if rows % PLUGIN_ROWS]
        if narrow and any(scheme.bits == 4 for scheme in self.precision.quantized):
            found.append(
                f"linears of {min(narrow)} rows, no multiple of {PLUGIN_ROWS}: give {self.title}'s exporter "
                "--int4-gemm-plugin-version 1"
            )
        return found

    def rows(self) -> list[int]:
        """Output channels of the linears."""
        model = self.precision.model
        return [size for linear in model.family.linears for size in model.out_features(linear.name)]


def has_chat_template(folder: Path) -> bool:
    """Whether a folder's tokenizer has a chat template, in a file of its own or in its configuration."""
    if is_there(folder / "chat_template.jinja"):
        return True
    path = folder / "tokenizer_config.json"
    return is_there(path) and bool(read_json(path).get("chat_template"))
