"""A Llama layer in float32, written out in full, and what calibration should see of it; shared by tests."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from safetensors.torch import load_file

from enginesmith.convert.job.algorithms import of_algorithm
from enginesmith.convert.job.options import ConvertOptions
from enginesmith.convert.numbers.inputs import InputStatistics
from enginesmith.convert.quantize.layer import QuantizedLayer
from enginesmith.convert.quantize.quantizer import Quantizer
from enginesmith.convert.sources.folder import Source
from enginesmith.convert.statistics.layer import LayerStatistics
from enginesmith.convert.targets.trtllm.target import TensorRTLLM

from .conftest import TINY, random_weights, write_model

Tensors = dict[str, torch.Tensor]
T = TypeVar("T")
HEADS, SIZES = 4, {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1}
# TensorRT-LLM's linears, what each stacks, and the groups of them that read one input.
LINEARS = {"attention.qkv": "qkv", "attention.dense": "o", "mlp.fc": "g", "mlp.gate": "u", "mlp.proj": "d"}
GROUPS = {"attention.qkv": "qkv", "attention.dense": "o", "mlp.fc+gate": "gu", "mlp.proj": "d"}
NORMS = {"attention.qkv": "input_layernorm", "mlp.fc+gate": "post_layernorm"}
HALVES = pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
HUGGING_FACE = {
    **{letter: f"self_attn.{letter}_proj" for letter in "qkvo"},
    "g": "mlp.gate_proj",
    "u": "mlp.up_proj",
    "d": "mlp.down_proj",
}


def group_of(linear: str) -> str:
    return next(group for group, parts in GROUPS.items() if LINEARS[linear][0] in parts)


@dataclass
class Layer:
    """One layer: its tensors by short names, what its linears read and make, and the hidden states before it.

    Attributes:
        folder: of the model.
        source: the Hugging Face tensors.
        w, b: weights and biases by letter, float32; n: the norms' weights by TensorRT-LLM's name.
        reads: by group, makes: by letter; [sequences, tokens, channels].
        stream: the hidden states that each norm reads.
        keys: as the cache holds them, rotated.
    """

    folder: Path
    source: Tensors
    hidden: torch.Tensor
    w: Tensors
    b: Tensors
    n: Tensors
    reads: Tensors
    makes: Tensors
    stream: Tensors
    keys: torch.Tensor

    @property
    def shares_values(self) -> bool:
        """Heads share values, so that no channel of o_proj's input is one row of v_proj."""
        return len(self.w["v"]) < len(self.w["q"])

    def copies(self) -> tuple[Tensors, Tensors, Tensors]:
        """w, b and n, to be changed."""
        return dict(self.w), dict(self.b), dict(self.n)


def model_folder(folder: Path, kv_heads: int) -> Path:
    """A model with biases everywhere, keys that reach further than values, and wide channels behind its norms."""
    changes = {**SIZES, "num_key_value_heads": kv_heads, "attention_bias": True, "mlp_bias": True}
    weights = random_weights({**TINY, **changes})
    for name in [name for name in weights if "k_proj" in name]:
        weights[name] *= 6
    return write_model(folder, weights, **changes)


def float_layer(folder: Path) -> Layer:
    """Everything that the first layer of a model computes, from token ids on."""
    source, ids = load_file(folder / "model.safetensors"), load_file(folder.parent / "ids.safetensors")["input_ids"]
    prefix = "model.layers.0."
    tensors = {name.removeprefix(prefix): tensor for name, tensor in source.items() if name.startswith(prefix)}
    w = {letter: tensors[f"{name}.weight"].float() for letter, name in HUGGING_FACE.items()}
    b = {letter: tensors[f"{name}.bias"].float() for letter, name in HUGGING_FACE.items()}
    n = {
        "input_layernorm": tensors["input_layernorm.weight"].float(),
        "post_layernorm": tensors["post_attention_layernorm.weight"].float(),
    }
    reads, makes, stream = {}, {}, {}

    def normed(name: str, x: torch.Tensor) -> torch.Tensor:
        stream[name] = x
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * n[name]

    def linears(group: str, x: torch.Tensor) -> list[torch.Tensor]:
        reads[group] = x
        makes.update({letter: x @ w[letter].t() + b[letter] for letter in GROUPS[group]})
        return [makes[letter] for letter in GROUPS[group]]

    hidden = source["model.embed_tokens.weight"].float()[ids]
    q, k, v = (x.unflatten(-1, (-1, 32)) for x in linears("attention.qkv", normed("input_layernorm", hidden)))
    q, k = turned(q), turned(k)
    shared = HEADS // k.shape[2]
    scores = torch.einsum("bthd,bshd->bhts", q, k.repeat_interleave(shared, 2)) / 32**0.5
    scores += torch.full(scores.shape[-2:], float("-inf")).triu(1)
    mixed = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v.repeat_interleave(shared, 2)).flatten(2)
    x = hidden + linears("attention.dense", mixed)[0]
    gate, up = linears("mlp.fc+gate", normed("post_layernorm", x))
    linears("mlp.proj", gate * torch.sigmoid(gate) * up)
    return Layer(folder, tensors, hidden, w, b, n, reads, makes, stream, k.flatten(2))


def turned(x: torch.Tensor) -> torch.Tensor:
    """The rotary embedding of [batch, tokens, heads, size]: channels j and j + size / 2 are one complex number."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[1])[:, None, None] / 10000 ** (torch.arange(half) / half)
    z = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((z.real, z.imag), -1)


def balanced(layer: Layer) -> Layer:
    """The layer with values that reach as far as keys, up to a power of two, and an o_proj that takes it back."""
    c = 2.0 ** round(math.log2(float(layer.makes["v"].abs().max()) / float(layer.keys.abs().max())))
    w = layer.w | {"v": layer.w["v"] / c, "o": layer.w["o"] * c}
    reads = layer.reads | {"attention.dense": layer.reads["attention.dense"] / c}
    return replace(
        layer, w=w, b=layer.b | {"v": layer.b["v"] / c}, reads=reads, makes=layer.makes | {"v": layer.makes["v"] / c}
    )


def channel_amax(x: torch.Tensor) -> torch.Tensor:
    return x.abs().flatten(0, -2).amax(0)


def statistics_of(layer: Layer) -> LayerStatistics:
    """What calibration with seed 0 should gather of the layer."""
    inputs = {group: input_statistics(x) for group, x in layer.reads.items()}
    return LayerStatistics(
        inputs,
        {HUGGING_FACE[letter]: channel_amax(y) for letter, y in layer.makes.items()},
        {norm: float(x.abs().max()) for norm, x in layer.stream.items()},
        channel_amax(layer.keys),
        channel_amax(layer.makes["v"]),
        channel_amax(layer.makes["q"]),
    )


def input_statistics(x: torch.Tensor) -> InputStatistics:
    """Of every sequence four tokens are drawn, each of which stands for a quarter of all but one, and the token with
    the largest value stands for itself."""
    drawn = torch.randint(x.shape[1], (len(x), 4), generator=torch.Generator().manual_seed(0)).tolist()
    kept, weight = [], []
    for sequence, positions in zip(x, drawn, strict=True):
        largest = int(sequence.abs().amax(1).argmax())
        kept += [sequence[position] for position in (*positions, largest)]
        weight += [(x.shape[1] - 1) / 4] * 4 + [1.0]
    rows = x.flatten(0, 1)
    gram, magnitude = rows.t() @ rows / len(rows), rows.abs().mean(0)
    return InputStatistics(x.abs().amax(1), torch.stack(kept), torch.tensor(weight), gram, magnitude)


def quantized(layer: Layer, algorithm: str, **options: Any) -> tuple[TensorRTLLM, QuantizedLayer]:
    """The layer through the quantizer that an algorithm's name and options make, and the target that stores it."""
    source = Source(layer.folder)
    how, target = of_algorithm(algorithm, ConvertOptions(str(layer.folder), "", rotate=False, **options), source)
    quantizer = Quantizer(how)
    made = quantizer.quantize(0, quantizer.float_layer(layer.source), statistics_of(layer), target.computed)
    return target, made


def fused(of: Tensors, linear: str) -> torch.Tensor:
    return torch.cat([of[letter] for letter in LINEARS[linear]])


def common(b: Tensors, n: Tensors, dtype: torch.dtype) -> Tensors:
    """Norms and biases as every format stores them."""
    tensors = {f"{linear}.bias": fused(b, linear).to(dtype) for linear in LINEARS}
    return tensors | {f"{norm}.weight": weight.to(dtype) for norm, weight in n.items()}


def known(value: T | None) -> T:
    assert value is not None
    return value


def assert_same(got: Tensors, expected: Tensors) -> None:
    """The same tensors of the same types, to the bit."""
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (name, got[name].dtype, got[name].shape) == (name, tensor.dtype, tensor.shape)
        assert torch.equal(got[name].float(), tensor.float()), name


def stored(layer: Layer, algorithm: str, **options: Any) -> Tensors:
    target, made = quantized(layer, algorithm, **options)
    return target.layer(0, made)


def grams(layer: Layer) -> Tensors:
    return {group: seen.gram_matrix() for group, seen in statistics_of(layer).inputs.items()}
