"""Which quantization runs where: QuantAlgo values of the engine backend, by release and GPU generation.

Source: TensorRT-LLM 0.16 to 1.2 (quantization/mode.py, builder.py, _torch/modules/linear.py), release notes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from ..convert.quantize.scheme import Scheme
from ..convert.targets.trtllm.formats import SCHEMES, kind_of
from ..convert.targets.trtllm.releases import number
from ..plugins import catalog
from ..plugins.identity import ANY, FP8, FP8_INTEGER, FP8_SCALED, INTEGER, Generations, Plugin, within
from .releases import RELEASES, Release

# Until then the plugin had bfloat16 with FP8 for Ada alone (0.16's release notes, and its sources).
W4A8_BFLOAT16_ON_HOPPER = "0.17.0"


@dataclass(frozen=True)
class Algorithm:
    """Where a quantization of weights, or of the KV cache, can be built.

    Attributes:
        gpus: the GPU generations.
        why: what keeps it from the others.
        instead: what would work there; the first that the model can have.
        since: the first release that has it.
    """

    gpus: Generations = ANY
    why: str = ""
    instead: tuple[str, ...] = ()
    since: str = "0.16.0"


INTEGERS = Algorithm(
    INTEGER,
    "TensorRT-LLM's builder refuses INT8 and INT4 on SM 100 to 119",
    ("FP8 there, or an Ampere, Ada or Hopper GPU",),
)
EIGHT_BITS = Algorithm(
    FP8,
    "FP8 needs Ada, Hopper or Blackwell (SM 89 or above)",
    ("W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", "W8A8_SQ_PER_CHANNEL", "W8A16"),
)
# By the generations that run them.
EXPLAINED = {
    of.gpus: of
    for of in (
        Algorithm(),
        INTEGERS,
        EIGHT_BITS,
        Algorithm(FP8_SCALED, "TensorRT-LLM's builder refuses scales per channel or token on SM 100 to 119", ("FP8",)),
        Algorithm(FP8_INTEGER, "its kernels are for Ada and Hopper (SM 89 and 90)", ("W4A16_AWQ",)),
    )
}
WEIGHTS: dict[str | None, Algorithm] = {
    None: Algorithm(),
    **{name: EXPLAINED[kind_of(scheme).gpus(scheme)] for name, scheme in SCHEMES.items()},
    "NVFP4": Algorithm(((100, 121),), "NVFP4 needs Blackwell (SM 100 or above)", ("FP8",), since="0.17.0"),
}
PYTORCH_ONLY = (
    "FP8_BLOCK_SCALES",
    "NVFP4_AWQ",
    "W4A8_NVFP4_FP8",
    "W4A8_MXFP4_FP8",
    "W4A8_MXFP4_MXFP8",
    "W4A16_MXFP4",
)
KV_CACHE: dict[str | None, Algorithm] = {
    None: Algorithm(),
    "INT8": INTEGERS,
    "FP8": replace(EIGHT_BITS, instead=("an INT8 cache",)),
}


def refusal(
    algorithms: Iterable[str | None],
    kv_cache: str | None,
    dtype: str,
    release: Release,
    sm: int,
    never: Collection[str] = (),
) -> str | None:
    """Why this cannot be built, and what would; None if it can.

    Args:
        algorithms: QuantAlgo names of the layers, None for floating point.
        kv_cache: a QuantAlgo name, or None.
        dtype: the engine's dtype.
        sm: the GPU's generation.
        never: algorithms that this model cannot have.
    """
    reasons = (refusal_of(algorithm, kv_cache, dtype, release, sm, never) for algorithm in algorithms)
    return next((reason for reason in reasons if reason), None)


def refusal_of(
    algorithm: str | None, kv_cache: str | None, dtype: str, release: Release, sm: int, never: Collection[str]
) -> str | None:
    """``refusal`` of one algorithm."""
    if algorithm in PYTORCH_ONLY:
        return f"{algorithm} exists only in the PyTorch backend; the engine backend has {listed(WEIGHTS)}"
    if algorithm not in WEIGHTS:
        return f"quant_algo {algorithm!r} is not one of the engine backend; it has {listed(WEIGHTS)}"
    if kv_cache not in KV_CACHE:
        return f"kv_cache_quant_algo {kv_cache!r} is not supported; use one of: {listed(KV_CACHE)}, or none"
    if not within(sm, release.gpus):
        return f"TensorRT-LLM {release.version} builds no engine for SM {sm}; {releases_for(sm)}"
    for plugin in plugins_of(algorithm):
        if dtype not in plugin.dtypes:
            return f"{algorithm} needs dtype {' or '.join(plugin.dtypes)}, not {dtype}; convert with --dtype"
        if not number(plugin.since) <= number(release.version) <= number(plugin.until):
            return f"TensorRT-LLM {release.version} has no {plugin.name}; {plugin.since} to {plugin.until} have it"
    for what, known in ((algorithm, WEIGHTS[algorithm]), (f"{kv_cache} KV cache", KV_CACHE[kv_cache])):
        if number(release.version) < number(known.since):
            return f"{what} begins with TensorRT-LLM {known.since}; {release.version} does not know it"
        if not within(sm, known.gpus):
            instead = next((name for name in known.instead if name not in never), "another GPU")
            return f"{what} cannot be built for SM {sm}: {known.why}; use {instead}"
    new_enough = number(release.version) >= number(W4A8_BFLOAT16_ON_HOPPER)
    if (algorithm, dtype, sm) == ("W4A8_AWQ", "bfloat16", 90) and not new_enough:
        return (
            f"{algorithm} in bfloat16 cannot be built for SM 90 with TensorRT-LLM {release.version}, whose plugin has "
            "that for SM 89 only; convert with --dtype float16, or use a later release"
        )
    return None


def converted(algorithm: str | None) -> Scheme | None:
    """The scheme of an algorithm, floating point included; None of what is not converted here."""
    return Scheme() if algorithm is None else SCHEMES.get(algorithm)


def plugins_of(algorithm: str | None) -> list[Plugin]:
    """The plugins of which a layer of this algorithm has nodes."""
    scheme = converted(algorithm)
    used = () if scheme is None else kind_of(scheme).plugins(scheme)
    return [plugin for plugin in catalog.QUANTIZATION if plugin in used]


def enabled_by(algorithm: str | None) -> tuple[Plugin, ...]:
    """The plugins that a build of this algorithm switches on."""
    scheme = converted(algorithm)
    return () if scheme is None else kind_of(scheme).enables(scheme)


def is_arranged(algorithm: str | None) -> bool:
    """Whether integers are stored in the order of one GPU generation's kernels."""
    scheme = converted(algorithm)
    return scheme is not None and kind_of(scheme).arranged


def fuses_mlp(algorithm: str | None) -> bool:
    """Whether gate and up products may be one matrix, where every layer has this algorithm."""
    scheme = converted(algorithm)
    return scheme is not None and kind_of(scheme).fuses_mlp


def listed(names: dict[str | None, Algorithm]) -> str:
    return ", ".join(name for name in names if name)


def releases_for(sm: int) -> str:
    fitting = [release.version for release in RELEASES if within(sm, release.gpus)]
    if not fitting:
        return "no release from 0.16 on has kernels for it" + (" (0.14 was the last for T4)" if sm == 75 else "")
    return f"use {fitting[0]} to {fitting[-1]}"
