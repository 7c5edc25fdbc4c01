"""Schemes side by side in one model: which of them TensorRT-LLM executes, and what it calls that."""

from __future__ import annotations

from ...errors import InputError
from ...models.pieces import Group
from ...quantize.precision import Precision
from ...quantize.scheme import LayerSchemes
from . import honoured
from .formats import kind_of
from .formats.base import Engine, module_of, modules_of

MIXED_PRECISION = "MIXED_PRECISION"


def quant_algo(precision: Precision) -> str | None:
    """TensorRT-LLM's QuantAlgo of the whole model; its SmoothQuant knows exceptions only as mixed precision."""
    if not precision.quantized:
        return None
    first = precision.quantized[0]
    alone = len(precision.schemes) == 1 or (len(precision.quantized) == 1 and kind_of(first).excludes)
    return first.name if alone else MIXED_PRECISION


def packed_for_sm(precision: Precision, engine: Engine) -> int | None:
    """The GPU generation that packed integers are arranged for; None where none are."""
    return engine.sm if any(kind_of(scheme).arranged for scheme in precision.schemes) else None


def check(precision: Precision) -> None:
    """Raise InputError for what TensorRT-LLM cannot execute: of this model, or as a mixture."""
    honoured.check(precision)
    check_experts(precision)
    for scheme in precision.schemes if len(precision.schemes) > 1 else ():
        if kind_of(scheme).whole_model:
            raise InputError(
                f"{scheme.name} quantizes every layer, TensorRT-LLM knows no exceptions from it; "
                "leave --exclude and --quant_layer away, or use another --quant"
            )
    for index in range(precision.model.num_hidden_layers):
        schemes = precision.layer(index)
        for group in precision.model.family.groups:
            whole, other = schemes[group.name], beside(precision, group, schemes)
            if kind_of(whole).whole_block and other is not None:
                raise InputError(
                    f"layer {index}: {whole.name} quantizes all of {module_of(group)} or nothing of it, not "
                    f"{group.name} without {other}; give a pattern for *layers.{index}.{module_of(group)}"
                )


def check_experts(precision: Precision) -> None:
    """Raise InputError where experts are not quantized as the model is: TensorRT-LLM names no module of theirs."""
    if precision.model.family.experts and quant_algo(precision) == MIXED_PRECISION:
        raise InputError(
            "--quant_layer: TensorRT-LLM knows no mixture of algorithms in a model with experts; --exclude "
            "'*.self_attn.*' leaves what is no expert in floating point"
        )
    for (index, name), scheme in precision.others.items():
        if name in precision.model.family.of_experts and scheme != precision.base:
            raise InputError(
                f"layer {index}: {name}: TensorRT-LLM knows experts under the model's algorithm alone; give a pattern "
                f"without them, as model.layers.{index}.self_attn"
            )


def beside(precision: Precision, group: Group, schemes: LayerSchemes) -> str | None:
    """A group of the same module that has another scheme."""
    same = [other.name for other in precision.model.family.groups if modules_of(other) & modules_of(group)]
    return next((name for name in same if schemes[name] != schemes[group.name]), None)


def check_stages(precision: Precision, stages: list[range]) -> None:
    """Raise InputError unless the layers of all pipeline stages are quantized alike."""
    for layers in stages[1:]:
        for local, index in enumerate(layers):
            if precision.layer(index) != precision.layer(local):
                raise InputError(
                    f"--pp_size {len(stages)}: TensorRT-LLM numbers the layers of every stage from 0, so layers "
                    f"{local} and {index} must be quantized alike; use patterns that take both, or --pp_size 1"
                )
