"""The tensors of a Hugging Face model: names and shapes, as its dimensions imply."""

from __future__ import annotations

from .dimensions import Model


def hugging_face_shapes(model: Model) -> dict[str, list[int]]:
    """Name and shape of every tensor of the Hugging Face model."""
    family = model.family
    shapes = {
        family.embedding: [model.vocab_size, model.hidden_size],
        family.final_norm: [model.hidden_size],
        family.head: [model.vocab_size, model.hidden_size],
    }
    for i in range(model.num_hidden_layers):
        prefix = family.layer.format(i=i)
        for norm in family.norms.values():
            shapes[f"{prefix}{norm}.weight"] = [model.hidden_size]
        for linear in family.linears:
            for part, rows in zip(linear.parts, model.out_features(linear.name), strict=True):
                shapes[f"{prefix}{part}.weight"] = [rows, model.dimension(linear.in_features)]
                if model.has_bias(linear.name):
                    shapes[f"{prefix}{part}.bias"] = [rows]
    return shapes
