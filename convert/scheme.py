"""Which numbers a checkpoint holds: TensorRT-LLM's QuantAlgo names and what each one implies."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import InputError


@dataclass(frozen=True)
class Scheme:
    """What is quantized, and how finely.

    Attributes:
        algo: TensorRT-LLM's QuantAlgo, or None for floating-point weights.
        per_channel: weight scales per output channel (else one per matrix).
        per_token: activation scales computed per token at run time (else one, calibrated).
        plugin: executed by TensorRT-LLM's plugins (else by TensorRT's own quantize and dequantize layers).
        kv_cache: None, "INT8" or "FP8".
    """

    algo: str | None = None
    per_channel: bool = False
    per_token: bool = False
    plugin: bool = False
    kv_cache: str | None = None

    @property
    def smoothquant(self) -> bool:
        return self.algo is not None

    @property
    def static(self) -> bool:
        """Activations are quantized with a scale found by calibration."""
        return self.smoothquant and not self.per_token

    @property
    def gains_from_rotation(self) -> bool:
        """All output rows of a matrix share one scale, so rows that stand out cost the others their precision."""
        return self.smoothquant and not self.per_channel

    @property
    def needs_calibration(self) -> bool:
        return self.smoothquant or self.kv_cache == "INT8"


SMOOTHQUANT = {
    "W8A8_SQ_PER_CHANNEL": Scheme("W8A8_SQ_PER_CHANNEL", per_channel=True),
    "W8A8_SQ_PER_TENSOR_PLUGIN": Scheme("W8A8_SQ_PER_TENSOR_PLUGIN", plugin=True),
    "W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN": Scheme(
        "W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN", per_channel=True, plugin=True
    ),
    "W8A8_SQ_PER_TENSOR_PER_TOKEN_PLUGIN": Scheme("W8A8_SQ_PER_TENSOR_PER_TOKEN_PLUGIN", per_token=True, plugin=True),
    "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN": Scheme(
        "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", per_channel=True, per_token=True, plugin=True
    ),
}
KV_CACHE = ("INT8", "FP8")


def scheme_of(algo: str | None, kv_cache: str | None = None) -> Scheme:
    """The scheme of a QuantAlgo name and a KV cache type.

    Raises:
        InputError: a name that this version does not write.
    """
    if kv_cache is not None and not (isinstance(kv_cache, str) and kv_cache in KV_CACHE):
        raise InputError(f"KV cache type {kv_cache!r} is not supported; use one of: {', '.join(KV_CACHE)}")
    if algo is None:
        return Scheme(kv_cache=kv_cache)
    if not isinstance(algo, str) or algo not in SMOOTHQUANT:
        raise InputError(f"quantization {algo!r} is not supported; use one of: {', '.join(SMOOTHQUANT)}")
    known = SMOOTHQUANT[algo]
    return Scheme(known.algo, known.per_channel, known.per_token, known.plugin, kv_cache)


def smoothquant_algo(per_token: bool, per_channel: bool) -> str:
    """The plugin algorithm that upstream's --per_token and --per_channel flags mean."""
    weights = "PER_CHANNEL" if per_channel else "PER_TENSOR"
    if per_token:
        return f"W8A8_SQ_{weights}_PER_TOKEN_PLUGIN"
    return "W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN" if per_channel else "W8A8_SQ_PER_TENSOR_PLUGIN"
