"""Which numbers a checkpoint holds: TensorRT-LLM's QuantAlgo names and what each one implies."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..errors import InputError, shown

FLOAT, SMOOTHQUANT_PLUGIN, SMOOTHQUANT_QDQ = "float", "smoothquant plugin", "smoothquant qdq"
WEIGHT_ONLY, AWQ, GPTQ = "weight only", "awq", "gptq"
FP8, FP8_ROWWISE = "fp8", "fp8 rowwise"
QSERVE_GROUP, QSERVE_CHANNEL = "qserve per group", "qserve per channel"


@dataclass(frozen=True)
class Scheme:
    """What is quantized, and how finely.

    Attributes:
        algo: TensorRT-LLM's QuantAlgo, or None for floating-point weights.
        form: which tensors execute a linear; one of the constants above.
        bits: of a weight.
        per_channel: weight scales per output channel (else one per matrix).
        per_token: activation scales computed per token at run time (else one, calibrated).
        fp8_activations: activations of a weight-only scheme are rounded to FP8 with one calibrated scale.
        group_size: input channels that share a scale, where scales are per group.
        sm: the GPU generation that packed integers are arranged for, where the format depends on it.
        kv_cache: None, "INT8" or "FP8".
    """

    algo: str | None = None
    form: str = FLOAT
    bits: int = 16
    per_channel: bool = False
    per_token: bool = False
    fp8_activations: bool = False
    group_size: int = 128
    sm: int = 80
    kv_cache: str | None = None

    @property
    def plugin(self) -> bool:
        """INT8 activations, executed by TensorRT-LLM's SmoothQuant plugins."""
        return self.form == SMOOTHQUANT_PLUGIN

    @property
    def smoothquant(self) -> bool:
        return self.form in (SMOOTHQUANT_PLUGIN, SMOOTHQUANT_QDQ)

    @property
    def grouped(self) -> bool:
        """Weight scales per group of input channels, executed by the group-wise plugin."""
        return self.form in (AWQ, GPTQ)

    @property
    def weight_only(self) -> bool:
        """Activations reach the plugin in the engine's dtype, which has a kernel of its own for few tokens."""
        return self.form == WEIGHT_ONLY or self.grouped

    @property
    def static(self) -> bool:
        """Activations are quantized with a scale found by calibration."""
        return (self.smoothquant and not self.per_token) or self.form == FP8 or self.fp8_activations

    @property
    def arranged(self) -> bool:
        """Stored integers are in the order of one GPU generation's kernels."""
        return self.form in (WEIGHT_ONLY, GPTQ)

    @property
    def gains_from_rotation(self) -> bool:
        """All output rows of a matrix share one scale, so rows that stand out cost the others their precision."""
        return self.smoothquant and not self.per_channel


# The scheme of each group of linears of one layer, by the group's name.
LayerSchemes = Mapping[str, Scheme]


def _smoothquant(name: str, form: str = SMOOTHQUANT_PLUGIN) -> Scheme:
    return Scheme(name, form, 8, per_channel="PER_CHANNEL" in name, per_token="PER_TOKEN" in name)


SMOOTHQUANT = {
    scheme.algo: scheme
    for scheme in (
        _smoothquant("W8A8_SQ_PER_CHANNEL", SMOOTHQUANT_QDQ),
        _smoothquant("W8A8_SQ_PER_TENSOR_PLUGIN"),
        _smoothquant("W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN"),
        _smoothquant("W8A8_SQ_PER_TENSOR_PER_TOKEN_PLUGIN"),
        _smoothquant("W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN"),
    )
    if scheme.algo is not None
}
SCHEMES = SMOOTHQUANT | {
    "W8A16": Scheme("W8A16", WEIGHT_ONLY, 8, per_channel=True),
    "W4A16": Scheme("W4A16", WEIGHT_ONLY, 4, per_channel=True),
    "W4A16_AWQ": Scheme("W4A16_AWQ", AWQ, 4),
    "W4A8_AWQ": Scheme("W4A8_AWQ", AWQ, 4, fp8_activations=True),
    "W4A16_GPTQ": Scheme("W4A16_GPTQ", GPTQ, 4),
    "W8A16_GPTQ": Scheme("W8A16_GPTQ", GPTQ, 8),
    "FP8": Scheme("FP8", FP8, 8),
    "FP8_PER_CHANNEL_PER_TOKEN": Scheme("FP8_PER_CHANNEL_PER_TOKEN", FP8_ROWWISE, 8, per_channel=True, per_token=True),
    "W4A8_QSERVE_PER_GROUP": Scheme("W4A8_QSERVE_PER_GROUP", QSERVE_GROUP, 4, per_token=True),
    "W4A8_QSERVE_PER_CHANNEL": Scheme("W4A8_QSERVE_PER_CHANNEL", QSERVE_CHANNEL, 4, True, True),
}
KV_CACHE = ("INT8", "FP8")
GROUP_SIZES = (64, 128)
GENERATIONS = (80, 86, 89, 90)


def scheme_of(algo: str | None, kv_cache: str | None = None, group_size: int = 128, sm: int = 80) -> Scheme:
    """The scheme of a QuantAlgo name and a KV cache type.

    Raises:
        InputError: a name that this version does not write, or a group size or GPU that its kernels do not know.
    """
    if kv_cache is not None and not (isinstance(kv_cache, str) and kv_cache in KV_CACHE):
        raise InputError(f"KV cache type {shown(kv_cache)} is not supported; use one of: {', '.join(KV_CACHE)}")
    if algo is None:
        return Scheme(kv_cache=kv_cache)
    if not isinstance(algo, str) or algo not in SCHEMES:
        close = difflib.get_close_matches(algo[:80].upper(), SCHEMES, 2) if isinstance(algo, str) else []
        hint = f"did you mean {' or '.join(close)}?" if close else "enginesmith convert --help lists the names"
        raise InputError(f"quantization {shown(algo)} is not supported; {hint}")
    scheme = replace(SCHEMES[algo], kv_cache=kv_cache, sm=sm)
    scheme = replace(scheme, group_size=group_size) if scheme.grouped else scheme
    sizes = (128,) if scheme.fp8_activations else GROUP_SIZES
    if scheme.grouped and group_size not in sizes:
        raise InputError(f"group_size {group_size}: the kernels of {algo} know {' and '.join(map(str, sizes))}")
    if scheme.arranged and sm not in GENERATIONS:
        raise InputError(f"sm {sm}: {algo} weights are arranged for one of: {', '.join(map(str, GENERATIONS))}")
    return scheme


def smoothquant_algo(per_token: bool, per_channel: bool) -> str:
    """The plugin algorithm that upstream's --per_token and --per_channel flags mean."""
    weights = "PER_CHANNEL" if per_channel else "PER_TENSOR"
    if per_token:
        return f"W8A8_SQ_{weights}_PER_TOKEN_PLUGIN"
    return "W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN" if per_channel else "W8A8_SQ_PER_TENSOR_PLUGIN"
