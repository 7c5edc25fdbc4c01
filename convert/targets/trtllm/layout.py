"""Which tensors a checkpoint holds: names, shapes and dtypes on every rank, and how each is cut."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

from ...models.model import Model
from ...models.pieces import COLUMNS, Group, Linear, Norm
from ...quantize.precision import Precision
from ...quantize.scheme import LayerSchemes
from . import token_types
from .formats import format_of
from .formats.base import Engine, Format
from .ranks import FLOAT32, INT8, MODEL_DTYPE, Mapping, Tensor
from .values import POSITIVE

CACHE_SCALE = "attention.kv_cache_scaling_factor"
FREQUENCIES, PAIRS, UNSCALED = "rotary_inv_freq", "embed_positions_for_gpt_attention", "embed_positions"


def layer_tensors(model: Model, schemes: LayerSchemes, engine: Engine, kv_cache: str | None) -> dict[str, Tensor]:
    """TensorRT-LLM's tensors of one decoder layer, by name inside the layer."""
    tensors = {
        f"{norm.name}.{suffix}": norm_tensor(model, norm) for norm in model.family.all_norms for suffix in norm.suffixes
    }
    for gate in model.family.gates:
        tensors[f"{gate.name}.weight"] = Tensor(tuple(model.gate_shape(gate)), FLOAT32 if gate.exact else MODEL_DTYPE)
    if kv_cache is not None:
        tensors[CACHE_SCALE] = Tensor((1,), FLOAT32, POSITIVE)
    for group in model.family.groups:
        form = format_of(schemes[group.name], engine)
        scale = form.input_scale(group)
        if scale is not None:
            tensors[scale] = Tensor((1,), FLOAT32, POSITIVE)
        for linear in map(model.family.linear, group.linears):
            for suffix, tensor in linear_tensors(model, form, linear, group).items():
                tensors[f"{linear.name}.{suffix}"] = tensor
    return tensors


def norm_tensor(model: Model, norm: Norm) -> Tensor:
    """A norm's weight or bias; ranks share the heads of one that has a row for each."""
    size = model.dimension(norm.size)
    return Tensor((size,) if norm.rows is None else ("heads", size), MODEL_DTYPE, heads=norm.rows)


def linear_tensors(model: Model, form: Format, linear: Linear, group: Group) -> dict[str, Tensor]:
    """What executes one linear, by suffix."""
    tensors = form.tensors(linear, group)
    adds_everywhere = form.adds_bias or model.family.one_all_reduce
    if model.has_bias(linear.name):
        tensors["bias"] = Tensor(("out",), MODEL_DTYPE, summed=adds_everywhere and linear.cut == COLUMNS)
    size = form.scheme.group_size or 1
    return {
        suffix: replace(
            tensor, linear=linear, group_size=size, shared=linear.stacked is not None and suffix in form.shared
        )
        for suffix, tensor in tensors.items()
    }


def check_kernels(precision: Precision, engine: Engine, mapping: Mapping) -> None:
    """Raise InputError, naming the layer and sizes that would work, where a rank's weight fits no kernel."""
    model = precision.model
    layers = map(precision.executed, range(model.num_hidden_layers))
    for name, scheme in dict.fromkeys(place for schemes in layers for place in schemes.items()):
        group = next(group for group in model.family.groups if group.name == name)
        check_group(model, group, format_of(scheme, engine), mapping)


def check_group(model: Model, group: Group, form: Format, mapping: Mapping) -> None:
    """``check_kernels`` for the linears that read one input."""
    for linear in map(model.family.linear, group.linears):
        weight = Tensor(("out", "in"), INT8, linear=linear)
        out_features, in_features = weight.rank_shape(model, mapping)
        name = f"{linear.name} on one of {mapping.tp_size} ranks" if mapping.tp_size > 1 else linear.name
        form.check(out_features, in_features, name)


def padded_vocab(model: Model, tp_size: int) -> int:
    """Rows of lm_head over all ranks: its own rounded up to a multiple of tp_size."""
    return math.ceil(model.head_rows / tp_size) * tp_size


def embedding_axis(model: Model, mapping: Mapping) -> int | None:
    """The axis along which this project cuts the embedding; None where every rank holds it whole."""
    cuts = model.shares_embedding or model.family.cuts_embedding
    return 0 if cuts and mapping.tp_size > 1 else None


def rotary_tables(model: Model) -> dict[str, tuple[list[int], str]]:
    """Name -> (shape, dtype) of the tables that a rank may have; TensorRT-LLM computes those that it has not."""
    positions, width = model.max_position_embeddings, model.rotary_dim
    if not model.family.rotary:
        return {}
    return {
        FREQUENCIES: ([width // 2], FLOAT32),
        PAIRS: ([1, positions * width], FLOAT32),
        UNSCALED: ([1, positions, width], FLOAT32),
    }


def rank_tensors(
    precision: Precision, mapping: Mapping, rank: int, engine: Engine, embedding_axis: int | None = None
) -> dict[str, tuple[list[int], str]]:
    """Name -> (shape, dtype) of every tensor in ``rank{rank}.safetensors``.

    Args:
        embedding_axis: the axis along which the ranks of a stage share the embedding; None where each holds it whole.
    """
    model, stage, dtype = precision.model, rank // mapping.tp_size, engine.dtype
    tensors: dict[str, tuple[list[int], str]] = {}
    if model.brings_rotary_tables:
        tables = rotary_tables(model)
        tensors |= {name: tables[name] for name in (FREQUENCIES, PAIRS)}
    if stage == 0:
        embedding = [model.vocab_size, model.hidden_size]
        if embedding_axis is not None:
            embedding[embedding_axis] = math.ceil(embedding[embedding_axis] / mapping.tp_size)
        prefix = model.family.engine_embedding
        tensors[f"{prefix}vocab_embedding.weight"] = (embedding, dtype)
        if model.family.position_embedding is not None:
            table = [model.max_position_embeddings, model.hidden_size]
            tensors[f"{prefix}position_embedding.weight"] = (table, dtype)
        if model.family.embedding_norm is not None:
            for suffix in model.family.embedding_norm.suffixes:
                tensors[f"{prefix}{model.family.embedding_norm.name}.{suffix}"] = ([model.hidden_size], dtype)
        tensors |= token_types.shapes(precision, dtype)
    # Most layers are alike.
    shapes = cache(lambda *schemes: layer_shapes(model, dict(schemes), mapping, engine, precision.kv_cache))
    for local, index in enumerate(mapping.stages(model.num_hidden_layers)[stage]):
        for name, shape in shapes(*precision.executed(index).items()).items():
            tensors[model.family.engine_layer.format(i=local) + name] = shape
    if model.family.task is not None:
        return tensors | head_shapes(model, engine)
    if stage == mapping.pp_size - 1:
        rows = padded_vocab(model, mapping.tp_size) // mapping.tp_size
        for suffix in model.family.last_norm.suffixes:
            tensors[f"transformer.ln_f.{suffix}"] = ([model.hidden_size], dtype)
        if not model.shares_embedding:
            tensors["lm_head.weight"] = ([rows, model.hidden_size], dtype)
        if model.family.head_bias is not None:
            tensors["lm_head.bias"] = ([rows], dtype)
    return tensors


def head_shapes(model: Model, engine: Engine) -> dict[str, tuple[list[int], str]]:
    """Name -> (shape, dtype) of what stands behind an encoder's last layer."""
    found = dict[str, tuple[list[int], str]]()
    for projection in model.task.projections:
        rows, dtype = model.dimension(projection.size), projection.dtype or engine.dtype
        found[f"{projection.name}.weight"] = ([rows, model.hidden_size], dtype)
        found[f"{projection.name}.bias"] = ([rows], dtype)
    return found


def layer_shapes(
    model: Model, schemes: LayerSchemes, mapping: Mapping, engine: Engine, kv_cache: str | None
) -> dict[str, tuple[list[int], str]]:
    """Name -> (shape, dtype) of one rank's tensors of a layer, as stored."""
    shapes = dict[str, tuple[list[int], str]]()
    for name, spec in layer_tensors(model, schemes, engine, kv_cache).items():
        shape = spec.storage.shape(spec.rank_shape(model, mapping))
        stacked = [] if is_one(spec) else [len(mapping.experts(model, 0))]
        shapes[stored_name(name, spec)] = [*stacked, *shape], engine.dtype if spec.dtype == MODEL_DTYPE else spec.dtype
    return shapes


def stored_name(name: str, spec: Tensor) -> str:
    """What a file calls a tensor of a layer; experts have theirs in one."""
    linear = spec.linear
    if linear is None or linear.stacked is None:
        return name
    return linear.stacked + name.removeprefix(linear.name)


def is_one(spec: Tensor) -> bool:
    """Whether a file's tensor is this one alone, not a stack of all experts'."""
    return spec.linear is None or spec.linear.stacked is None or spec.shared
