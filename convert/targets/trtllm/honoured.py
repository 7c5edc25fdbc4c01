"""What of a model TensorRT-LLM computes under each algorithm, and what it would drop without a word.

Most algorithms replace single linears and keep every model whole. SmoothQuant's plugins, FP8 per channel and token, and
QServe replace whole modules: attention, MLP and norms. Of the old ones' arguments they take only those that both name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from ...errors import InputError
from ...models.family import Family
from ...models.model import Model
from ...models.pieces import BEHIND, LAYER, SANDWICHED, SCALED_ALIBI
from ...quantize.precision import Precision
from ...quantize.scheme import Scheme
from .formats import SCHEMES, kind_of
from .formats.fp8_rowwise import Fp8Rowwise
from .formats.qserve import QServeChannel, QServeGroup
from .formats.smoothquant import SmoothQuant
from .releases import LAST, number

PLUGINS = tuple(str(scheme.name) for scheme in SmoothQuant.schemes)
ROWWISE = tuple(str(scheme.name) for scheme in Fp8Rowwise.schemes)
QSERVE = tuple(str(scheme.name) for kind in (QServeGroup, QServeChannel) for scheme in kind.schemes)
REPLACING = PLUGINS + ROWWISE + QSERVE
EVERY = tuple(str(scheme.name) for scheme in SCHEMES.values())
EXPERTS = "no release that knows the family executes experts in it; use FP8, W8A16 or W4A16_AWQ"
KEPT_BY = "use W8A8_SQ_PER_CHANNEL, FP8 or W8A16"

FamilyRule = tuple[Callable[[Family], bool], tuple[str, ...], str]
ModelRule = tuple[Callable[[Model], bool], tuple[str, ...], str]

# (of which families, which algorithms, why not)
FAMILIES: tuple[FamilyRule, ...] = (
    (
        lambda family: any(norm.kind == LAYER for norm in family.norms),
        ROWWISE + QSERVE,
        "TensorRT-LLM has no LayerNorm for it; use W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN, FP8 or W8A16",
    ),
    (
        lambda family: family.query_key_norms is not None,
        REPLACING,
        f"its attention drops the norms of queries and keys without a word; {KEPT_BY}",
    ),
    (
        lambda family: family.arrangement == SANDWICHED,
        REPLACING,
        f"TensorRT-LLM quantizes the norms behind attention and MLP too, and cannot add them then; {KEPT_BY}",
    ),
    (
        lambda family: family.positions == SCALED_ALIBI,
        REPLACING,
        f"its attention has no ALiBi that is scaled; {KEPT_BY}",
    ),
    (
        lambda family: family.arrangement == BEHIND,
        REPLACING,
        f"TensorRT-LLM quantizes its MLP alone and cannot build that; {KEPT_BY}",
    ),
    (
        lambda family: family.task is not None and bool(family.task.projections),
        EVERY,
        "TensorRT-LLM quantizes the head behind the last layer too, and that is not written here; leave --quant away",
    ),
)
MODELS: tuple[ModelRule, ...] = (
    (
        lambda model: model.q_scaling != 1,
        REPLACING,
        f"its attention drops the model's own scaling of scores without a word; {KEPT_BY}",
    ),
    (
        lambda model: model.rotary_scaling is not None and model.rotary_scaling["rope_type"] == "longrope",
        REPLACING,
        f"its attention drops the factors of long sequences without a word; {KEPT_BY}",
    ),
    (
        lambda model: model.clip_qkv is not None,
        REPLACING,
        f"its attention drops clip_qkv without a word; {KEPT_BY}",
    ),
    (
        lambda model: model.attention_cap is not None,
        REPLACING,
        f"its attention drops the soft cap of scores without a word; {KEPT_BY}",
    ),
    (
        lambda model: model.family.alibi and model.alibi_bias_max != 8,
        REPLACING,
        f"its attention takes alibi_bias_max for 8 without a word; {KEPT_BY}",
    ),
)


def left_out(family: Family) -> dict[str, str]:
    """Algorithms that no model of a family can have, and why."""
    found = dict[str, str]()
    for holds, algorithms, reason in FAMILIES:
        if holds(family):
            found |= dict.fromkeys(algorithms, reason)
    if family.mixture is not None:
        found |= dict.fromkeys(without_experts(family), EXPERTS)
    return found | dict(family.refused)


def without_experts(family: Family) -> Iterator[str]:
    """Algorithms that no release which knows a family executes its experts in."""
    for name, scheme in SCHEMES.items():
        span = kind_of(scheme).experts(scheme)
        if span is None or number(span[1]) < number(family.since):
            yield name


def releases(model: Model, schemes: Iterable[Scheme]) -> tuple[str, str]:
    """The first and the last release that can build a model that is quantized so."""
    spans = [(model.family.since, LAST)]
    if model.num_experts:
        spans += [span for scheme in schemes if (span := kind_of(scheme).experts(scheme)) is not None]
    return max((first for first, _ in spans), key=number), min((last for _, last in spans), key=number)


def refused(model: Model) -> Mapping[str, str]:
    """Algorithms that a model cannot have, and why."""
    found = dict[str, str]()
    for holds, algorithms, reason in MODELS:
        if holds(model):
            found |= dict.fromkeys(algorithms, reason)
    return found | left_out(model.family)


def check(precision: Precision) -> None:
    """Raise InputError where an algorithm would not compute the model, or its engine has no cache to quantize."""
    if precision.kv_cache is not None and precision.model.family.task is not None:
        architecture = precision.model.architecture
        raise InputError(f"--kv_cache {precision.kv_cache}: {architecture} is an encoder, whose engine has no KV cache")
    reasons = refused(precision.model)
    for scheme in precision.schemes:
        reason = reasons.get(scheme.name or "")
        if reason is not None:
            raise InputError(f"{scheme.name}: not for {precision.model.architecture}: {reason}")
