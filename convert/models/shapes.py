"""The tensors of a Hugging Face model: names and shapes, as its dimensions imply, and the linears seen in them."""

from __future__ import annotations

from collections.abc import Callable

from ...plugins.lazy import torch
from .family import Family
from .model import Model
from .pieces import EVEN, STACKED, Group, View

SUFFIXES = ("weight", "bias")


def hugging_face_shapes(model: Model) -> dict[str, list[int]]:
    """Name and shape of every tensor of the Hugging Face model."""
    family, hidden = model.family, model.hidden_size
    shapes = {family.embedding: [model.vocab_size, hidden]}
    if family.position_embedding is not None:
        shapes[family.position_embedding] = [family.first_position + model.max_position_embeddings, hidden]
    if family.type_embedding is not None:
        shapes[family.type_embedding] = [model.type_vocab_size, hidden]
    for norm in (family.embedding_norm, family.final_norm):
        if norm is not None:
            shapes |= {f"{norm.tensor}.{suffix}": [hidden] for suffix in norm.suffixes}
    for projection in family.task.projections if family.task else ():
        rows = model.dimension(projection.size)
        shapes |= {f"{projection.tensor}.weight": [rows, hidden], f"{projection.tensor}.bias": [rows]}
    if family.head is not None:
        shapes[family.head] = [model.head_rows, hidden]
    if family.head_bias is not None:
        shapes[family.head_bias] = [model.head_rows]
    layer = layer_shapes(model)
    for i in range(model.num_hidden_layers):
        prefix = family.layer.format(i=i)
        shapes |= {prefix + name: shape for name, shape in layer.items()}
    return shapes


def layer_shapes(model: Model) -> dict[str, list[int]]:
    """Name inside the layer and shape of every tensor of a layer."""
    family, shapes = model.family, dict[str, list[int]]()
    for norm in family.all_norms:
        shapes |= {f"{norm.tensor}.{suffix}": model.norm_shape(norm) for suffix in norm.suffixes}
    for gate in family.gates:
        shapes[f"{gate.tensor}.weight"] = model.gate_shape(gate)
    for linear in family.linears:
        width, rows = model.dimension(linear.in_features), dict[str, int]()
        for part, size in zip(linear.parts, model.out_features(linear.name), strict=True):
            rows[family.view(part).tensor] = rows.get(family.view(part).tensor, 0) + size
        for part in linear.parts:
            view = family.view(part)
            size = rows[view.tensor]
            shape = [width, size] if view.transposed else [size, width]
            many = model.num_experts if view.order == EVEN else 1
            shapes[view.named("weight")] = [shape[0] * many, shape[1]]
            if model.has_bias(linear.name):
                shapes[f"{view.tensor}.bias"] = [size]
    return shapes


def logical(model: Model, read: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
    """A layer's tensors by logical linear and by norm, whatever the file stacks or transposes.

    Args:
        read: a tensor of the file by its name inside the layer; each is read once.

    Returns:
        Weights [out, in] and biases [out] by logical linear and suffix, and what norms hold, [hidden].
    """
    family, held = model.family, dict[str, torch.Tensor]()
    tensors = {name: held.setdefault(name, read(name)) for name in layer_shapes(model)}
    for linear in family.linears:
        sizes = model.out_features(linear.name)
        for part in linear.parts:
            view = family.view(part)
            for suffix in SUFFIXES if model.has_bias(linear.name) else SUFFIXES[:1]:
                tensor = held[view.named(suffix)]
                if view.order == EVEN and view.piece is not None:
                    tensor = tensor.chunk(model.num_experts)[view.piece]
                tensor = tensor.t() if view.transposed and suffix == "weight" else tensor
                own = seen(tensor, view, sizes, model).contiguous()
                tensors[f"{part}.{suffix}"] = multiplied(model, part, own)
    for norm in family.all_norms:
        for suffix in norm.suffixes:
            name = f"{norm.tensor}.{suffix}"
            tensors[name] = shifted(model, suffix, tensors[name])
    stacked = {view.named(suffix) for view in family.views.values() if view.piece is not None for suffix in SUFFIXES}
    return {name: tensor for name, tensor in tensors.items() if name not in stacked}


def seen(rows: torch.Tensor, view: View, sizes: list[int], model: Model) -> torch.Tensor:
    """A logical linear's rows of a module's, [out, ...]; sizes: rows of each that the module stacks."""
    if view.piece is None or view.order == EVEN:
        return rows
    if view.order == STACKED:
        stacked: torch.Tensor = rows.split(sizes)[view.piece]
        return stacked
    heads = rows.unflatten(0, (model.num_key_value_heads, -1, model.head_size))
    queries = heads.shape[1] - 2
    own: torch.Tensor = heads.split([queries, 1, 1], 1)[view.piece].flatten(0, 2)
    return own


def shifted(model: Model, suffix: str, tensor: torch.Tensor) -> torch.Tensor:
    """A norm's tensor as it multiplies; some families store how far it is from 1."""
    offset = model.family.norm_offset
    return tensor.float() + offset if offset and suffix == "weight" else tensor


def multiplied(model: Model, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor times what its family has it multiplied by, in float32 where it is."""
    times = model.multipliers.get(name, 1.0)
    return tensor if times == 1 else tensor.float() * times


def modules(model: Model, group: Group) -> dict[str, tuple[str, ...]]:
    """The modules that hold a group's linears, and the logical linears that each stacks, in their order."""
    held: dict[str, list[tuple[int, str]]] = {}
    for part in model.family.parts(group):
        view = model.family.view(part)
        held.setdefault(view.tensor, []).append((view.piece or 0, part))
    return {module: tuple(part for _, part in sorted(parts)) for module, parts in held.items()}


def module_sizes(model: Model, parts: tuple[str, ...]) -> tuple[int, int]:
    """Output and input channels of the logical linears that a module stacks."""
    return sum(part_sizes(model, parts)), model.dimension(model.family.linear_of_part(parts[0]).in_features)


def part_sizes(model: Model, parts: tuple[str, ...]) -> list[int]:
    """Output channels of each logical linear."""
    linears = [model.family.linear_of_part(part) for part in parts]
    return [model.out_features(of.name)[of.parts.index(part)] for part, of in zip(parts, linears, strict=True)]


def whole_rows(family: Family) -> bool:
    """Whether every logical linear is some rows of a Hugging Face module, as they are."""
    views = [family.view(part) for linear in family.linears for part in linear.parts]
    return not any(view.transposed or view.bare or view.order != STACKED for view in views)
