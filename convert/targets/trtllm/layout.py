"""Which tensors a checkpoint holds: names, shapes and dtypes on every rank, and how each is cut."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

from ...models.dimensions import Model
from ...models.family import COLUMNS, HEADS, Group, Linear
from ...numbers import qserve
from ...numbers.rounding import check_groups
from ...quantize.precision import LAYER, Precision, module_of
from ...quantize.scheme import (
    AWQ,
    FLOAT,
    FP8,
    FP8_ROWWISE,
    GPTQ,
    QSERVE_CHANNEL,
    QSERVE_GROUP,
    SMOOTHQUANT_PLUGIN,
    SMOOTHQUANT_QDQ,
    WEIGHT_ONLY,
    LayerSchemes,
    Scheme,
)
from . import packing
from .ranks import FLOAT8, FLOAT16, FLOAT32, INT8, MODEL_DTYPE, Axis, Mapping, Tensor
from .storage import BY_GROUP, FRAGMENTS, PLAIN, ROW_PAIRS, Storage, mixed_gemm
from .values import FINITE, NOT_NEGATIVE, POSITIVE, SECOND_SCALE, SYMMETRIC, Values, Zeros

FREQUENCIES, PAIRS, UNSCALED = "rotary_inv_freq", "embed_positions_for_gpt_attention", "embed_positions"


def layer_tensors(model: Model, schemes: LayerSchemes, dtype: str) -> dict[str, Tensor]:
    """TensorRT-LLM's tensors of one decoder layer, by name inside the layer; dtype is the engine's."""
    tensors = {f"{norm}.weight": Tensor((model.hidden_size,), MODEL_DTYPE) for norm in model.family.norms}
    for group in model.family.groups:
        scheme = schemes[group.name]
        if scheme.kv_cache:
            tensors["attention.kv_cache_scaling_factor"] = Tensor((1,), FLOAT32, POSITIVE)
        if scheme.plugin and group.norm is not None:
            tensors[f"{group.norm}.scale_to_int"] = Tensor((1,), FLOAT32, POSITIVE)
        elif scheme.plugin and scheme.static:
            tensors[f"{module_of(group)}.quantization_scaling_factor"] = Tensor((1,), FLOAT32, POSITIVE)
        for linear in map(model.family.linear, group.linears):
            for suffix, tensor in linear_tensors(model, scheme, linear, dtype):
                tensors[f"{linear.name}.{suffix}"] = tensor
    return tensors


def linear_tensors(model: Model, scheme: Scheme, linear: Linear, dtype: str) -> Iterator[tuple[str, Tensor]]:
    """(suffix, tensor) of what executes one linear; dtype is the engine's."""

    def tensor(
        axes: tuple[Axis, ...], kind: str, values: Values | Zeros | None = FINITE, storage: Storage = PLAIN
    ) -> Tensor:
        return Tensor(axes, kind, values, linear, storage, scheme.group_size)

    form = scheme.form
    if model.has_bias(linear.name):
        # The group-wise plugin adds the bias itself, on every rank, also where an all-reduce follows.
        yield "bias", replace(tensor(("out",), MODEL_DTYPE), summed=scheme.grouped and linear.cut == COLUMNS)
    if form == FLOAT:
        yield "weight", tensor(("out", "in"), MODEL_DTYPE)
    elif form == SMOOTHQUANT_PLUGIN:
        per_channel = scheme.per_channel or linear.cut == HEADS
        yield "weight", tensor(("out", "in"), INT8, SYMMETRIC)
        yield "per_channel_scale", tensor((1, "out" if per_channel else 1), FLOAT32, POSITIVE)
        if scheme.static:
            yield "act_scale", tensor((1, 1), FLOAT32, POSITIVE)
        if model.family.group_of(linear.name).norm is None:
            yield "smoother", tensor((1, "in"), FLOAT32, POSITIVE)
    elif form == SMOOTHQUANT_QDQ:
        yield "weight", tensor(("out", "in"), INT8, SYMMETRIC)
        yield "activation_scaling_factor", tensor((1,), FLOAT32, POSITIVE)
        yield "weights_scaling_factor", tensor(("out",), FLOAT32, POSITIVE)
        yield "prequant_scaling_factor", tensor(("in",), MODEL_DTYPE, POSITIVE)
    elif form == WEIGHT_ONLY:
        yield "weight", tensor(("out", "in"), INT8, None, mixed_gemm(kernel_layout(scheme), scheme.sm, INT8, 1))
        yield "per_channel_scale", tensor(("out",), MODEL_DTYPE, NOT_NEGATIVE)
    elif form == AWQ:
        yield "weight", tensor(("out", "in"), INT8, None, ROW_PAIRS)
        yield "weights_scaling_factor", tensor(("groups", "out"), MODEL_DTYPE, POSITIVE)
        yield "prequant_scaling_factor", tensor((1, "in"), MODEL_DTYPE, POSITIVE)
        if scheme.fp8_activations:
            yield "activation_scaling_factor", tensor((1,), FLOAT32, POSITIVE)
            yield "weights_scaling_factor_2", tensor((1,), FLOAT32, POSITIVE)
    elif form == GPTQ:
        yield "weight", tensor(("out", "in"), MODEL_DTYPE, None, mixed_gemm(kernel_layout(scheme), scheme.sm, dtype, 2))
        yield "weights_scaling_factor", tensor(("groups", "out"), MODEL_DTYPE, POSITIVE)
        half = 2 ** (scheme.bits - 1)  # GPTQ's two versions have offsets of half - 1 and half
        yield "zero", tensor(("groups", "out"), MODEL_DTYPE, Zeros("weights_scaling_factor", -half, half))
    elif form == FP8:
        yield "weight", tensor(("out", "in"), FLOAT8)
        yield "activation_scaling_factor", tensor((1,), FLOAT32, POSITIVE)
        yield "weights_scaling_factor", tensor((1,), FLOAT32, POSITIVE)
    elif form == FP8_ROWWISE:
        yield "weight", tensor(("out", "in"), FLOAT8)
        yield "per_channel_scale", tensor(("out",), FLOAT32, POSITIVE)
    else:
        yield "weight", tensor(("out", "in"), INT8, None, FRAGMENTS)
        yield "s1_scales", tensor(("out",), FLOAT16, POSITIVE)
        if form == QSERVE_GROUP:
            yield "s2_scales", tensor(("out", "groups"), INT8, SECOND_SCALE, BY_GROUP)
            yield "s2_zeros", tensor(("out", "groups"), INT8, Zeros("s2_scales", 0, qserve.LEVELS), BY_GROUP)
        else:
            yield "s1_szeros", tensor(("out",), FLOAT16, Zeros("s1_scales", 0, qserve.LEVELS))


def kernel_layout(scheme: Scheme) -> packing.Layout:
    """The order in which a mixed GEMM reads a scheme's integers."""
    if scheme.bits == 8:
        return packing.INT8
    return packing.INT4_FP8 if scheme.fp8_activations else packing.INT4


def check_kernels(precision: Precision, mapping: Mapping) -> None:
    """Raise InputError, naming the layer and sizes that would work, where a rank's weight fits no kernel."""
    model = precision.model
    layers = map(precision.layer, range(model.num_hidden_layers))
    for name, scheme in dict.fromkeys(place for schemes in layers for place in schemes.items()):
        check_group(model, next(group for group in model.family.groups if group.name == name), scheme, mapping)


def check_group(model: Model, group: Group, scheme: Scheme, mapping: Mapping) -> None:
    """``check_kernels`` for the linears that read one input."""
    for linear in map(model.family.linear, group.linears):
        weight = Tensor(("out", "in"), INT8, linear=linear)
        out_features, in_features = weight.rank_shape(model, mapping.tp_size)
        name = f"{linear.name} on one of {mapping.tp_size} ranks" if mapping.tp_size > 1 else linear.name
        if scheme.grouped:
            check_groups(in_features, scheme.group_size, name)
        if scheme.arranged or scheme.form == AWQ:
            sm = scheme.sm if scheme.arranged else 89 if scheme.fp8_activations else 80
            packing.check(kernel_layout(scheme), sm, (out_features, in_features), name)
        if scheme.form in (QSERVE_GROUP, QSERVE_CHANNEL):
            qserve.check(out_features, in_features, name)


def padded_vocab(model: Model, tp_size: int) -> int:
    """Rows of lm_head over all ranks: the vocabulary rounded up to a multiple of tp_size."""
    return math.ceil(model.vocab_size / tp_size) * tp_size


def rotary_tables(model: Model) -> dict[str, tuple[list[int], str]]:
    """Name -> (shape, dtype) of the tables that a rank may have; TensorRT-LLM computes those that it has not."""
    positions, width = model.max_position_embeddings, model.head_size
    return {
        FREQUENCIES: ([width // 2], FLOAT32),
        PAIRS: ([1, positions * width], FLOAT32),
        UNSCALED: ([1, positions, width], FLOAT32),
    }


def rank_tensors(
    precision: Precision, mapping: Mapping, rank: int, dtype: str, embedding_axis: int | None = None
) -> dict[str, tuple[list[int], str]]:
    """Name -> (shape, dtype) of every tensor in ``rank{rank}.safetensors``.

    Args:
        dtype: the model's.
        embedding_axis: the axis along which the ranks of a stage share the embedding; None where each holds it whole.
    """
    model, stage = precision.model, rank // mapping.tp_size
    tensors: dict[str, tuple[list[int], str]] = {}
    if model.brings_rotary_tables:
        tables = rotary_tables(model)
        tensors |= {name: tables[name] for name in (FREQUENCIES, PAIRS)}
    if stage == 0:
        embedding = [model.vocab_size, model.hidden_size]
        if embedding_axis is not None:
            embedding[embedding_axis] = math.ceil(embedding[embedding_axis] / mapping.tp_size)
        tensors["transformer.vocab_embedding.weight"] = (embedding, dtype)
    shapes = cache(lambda *schemes: layer_shapes(model, dict(schemes), mapping, dtype))  # most layers are alike
    for local, index in enumerate(mapping.stages(model.num_hidden_layers)[stage]):
        for name, shape in shapes(*precision.layer(index).items()).items():
            tensors[LAYER.format(i=local) + name] = shape
    if stage == mapping.pp_size - 1:
        rows = padded_vocab(model, mapping.tp_size) // mapping.tp_size
        tensors["transformer.ln_f.weight"] = ([model.hidden_size], dtype)
        tensors["lm_head.weight"] = ([rows, model.hidden_size], dtype)
    return tensors


def layer_shapes(model: Model, schemes: LayerSchemes, mapping: Mapping, dtype: str) -> dict[str, tuple[list[int], str]]:
    """Name -> (shape, dtype) of one rank's tensors of a layer, as stored."""
    return {
        name: (
            spec.storage.shape(spec.rank_shape(model, mapping.tp_size)),
            dtype if spec.dtype == MODEL_DTYPE else spec.dtype,
        )
        for name, spec in layer_tensors(model, schemes, dtype).items()
    }
