"""What must hold exactly, or to float rounding, whatever the numbers: properties rather than examples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from enginesmith.convert.errors import InputError
from enginesmith.convert.job.conversion import convert
from enginesmith.convert.job.options import ConvertOptions
from enginesmith.convert.models.dimensions import read_model
from enginesmith.convert.models.forward import LayerForward
from enginesmith.convert.models.layer import Layer
from enginesmith.convert.models.pieces import Linear
from enginesmith.convert.models.rotation import Rotation, hartley
from enginesmith.convert.numbers.smoothing import Block, Smoothing
from enginesmith.convert.prove.proven import ProvenCheckpoint as Checkpoint
from enginesmith.convert.quantize.options import QuantizeOptions as Options
from enginesmith.convert.quantize.scheme import Scheme
from enginesmith.convert.quantize.smoothquant import smooth
from enginesmith.convert.statistics.layer import LayerStatistics
from enginesmith.convert.targets.trtllm.formats import kind_of, scheme_of
from enginesmith.convert.targets.trtllm.ranks import Mapping
from enginesmith.plugins import gpt_attention, int8, rmsnorm_quantization

from .conftest import ALGORITHMS, TINY, assert_same_layers, random_weights, write_model

CPU = torch.device("cpu")


Tensors = dict[str, torch.Tensor]


def smoothed_layer(
    config: dict[str, object], scheme: Scheme, fold: bool, seed: int
) -> tuple[Tensors, Tensors, Tensors]:
    """A random float32 layer before and after smoothing by random factors, and its runtime smoothers."""
    model = read_model(config)
    prefix = model.family.layer.format(i=0)
    weights = random_weights(config | {"torch_dtype": "float32"}, seed)
    source = {name[len(prefix) :]: tensor for name, tensor in weights.items() if name.startswith(prefix)}
    draw = torch.Generator().manual_seed(seed)
    layer = Layer.of(source, model)
    for group in model.family.groups:
        width = layer.weights[model.family.linear(group.linears[0]).parts[0]].shape[1]
        factor = torch.exp(torch.randn(width, generator=draw))
        chosen = Smoothing(factor, None, None, None)
        smooth(layer, group, model.family.groups, chosen, LayerStatistics({}), scheme, Options(fold=fold))
    after = {f"{norm.tensor}.weight": layer.norms[f"{norm.name}.weight"] for norm in model.family.norms}
    after |= {f"{part}.weight": weight for part, weight in layer.weights.items()}
    after |= {f"{part}.bias": bias for part, bias in layer.biases.items()}
    return source, after, layer.smoothers


class Divided(LayerForward):
    """A layer whose linears divide what they read."""

    smoothers: Tensors

    def linear(self, linear: Linear, read: torch.Tensor) -> list[torch.Tensor]:
        return super().linear(linear, read / self.smoothers[self.family.group_of(linear.name).name])


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("algo", ["W8A8_SQ_PER_TENSOR_PLUGIN", "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN"])
@given(seed=st.integers(0, 2**31))
@settings(max_examples=5, deadline=None)
def test_smoothing_leaves_a_float_layer_unchanged(algo: str, kv_heads: int, fold: bool, seed: int) -> None:
    config = TINY | {"num_key_value_heads": kv_heads, "attention_bias": True, "mlp_bias": True}
    source, after, smoothers = smoothed_layer(config, scheme_of(algo), fold, seed)
    model = read_model(config)
    x = torch.randn(2, 16, model.hidden_size, generator=torch.Generator().manual_seed(seed))
    plain, smoothed = LayerForward(model, 16, torch.float32, CPU), Divided(model, 16, torch.float32, CPU)
    plain.load(0, source)
    smoothed.load(0, after)
    smoothed.smoothers = smoothers
    torch.testing.assert_close(smoothed(x), plain(x), rtol=1e-3, atol=1e-3)


@given(size=st.integers(1, 200), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_rotation_is_orthogonal_for_every_size(size: int, seed: int) -> None:
    rotation = Rotation(size, seed)
    x = torch.randn(3, size, generator=torch.Generator().manual_seed(seed))
    rotated = rotation.rotate(x)
    torch.testing.assert_close(rotation.restore(rotated), x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rotated.norm(dim=1), x.norm(dim=1), rtol=1e-4, atol=1e-4)
    assert hartley(torch.eye(size)).abs().max() <= (2 / size) ** 0.5 + 1e-6


def test_rotation_leaves_a_float_layer_unchanged() -> None:
    config = TINY | {"attention_bias": True, "mlp_bias": True, "torch_dtype": "float32"}
    model = read_model(config)
    prefix = model.family.layer.format(i=0)
    source = {n[len(prefix) :]: t for n, t in random_weights(config).items() if n.startswith(prefix)}
    rotation = Rotation(model.hidden_size, 0)
    plain, rotated = (LayerForward(model, 16, torch.float32, CPU) for _ in range(2))
    plain.load(0, source)
    rotated.load(0, rotation.layer(source, model))
    x = torch.randn(2, 16, model.hidden_size)
    turned = rotation.rotate(x.view(-1, model.hidden_size)).view_as(x)
    torch.testing.assert_close(rotation.restore(rotated(turned)), plain(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("algo", [None, *ALGORITHMS])
@pytest.mark.parametrize(("kv_heads", "tp", "pp"), [(2, 2, 1), (2, 4, 2), (1, 4, 1), (4, 2, 4), (4, 1, 2)])
def test_shards_put_together_equal_one_rank(
    algo: str | None,
    kv_heads: int,
    tp: int,
    pp: int,
    tiny: Callable[..., Path],
    converted: Callable[..., Checkpoint],
) -> None:
    model = tiny(num_key_value_heads=kv_heads, attention_bias=True, mlp_bias=True)
    whole = converted(model, quant=algo, kv_cache="INT8")
    shards = converted(model, quant=algo, kv_cache="INT8", tp_size=tp, pp_size=pp)
    for index in range(whole.model.num_hidden_layers):
        one, many = whole.layer(index), shards.layer(index)
        assert one.keys() == many.keys() == whole.tensors(index).keys()
        for name in one:
            assert torch.equal(one[name], many[name]), name
    assert torch.equal(whole.embedding().tokens, shards.embedding().tokens)
    assert torch.equal(whole.final_norm()["weight"], shards.final_norm()["weight"])
    assert torch.equal(whole.head().weight, shards.head().weight)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_same_run_twice_same_bytes(algo: str, tiny: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny()
    for name in ("a", "b"):
        calibration = {"calib": str(tmp_path / "ids.safetensors"), "calib_size": 8, "calib_seq_len": 24}
        convert(ConvertOptions(str(model), str(tmp_path / name), quant=algo, kv_cache="INT8", **calibration))
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["config.json", "enginesmith.json", "rank0.safetensors"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


@given(m=st.integers(1, 20), k=st.integers(1, 3000), n=st.integers(1, 20), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_integer_product_is_exact(m: int, k: int, n: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    a = torch.randint(-128, 128, (m, k), generator=draw, dtype=torch.int8)
    b = torch.randint(-127, 128, (n, k), generator=draw, dtype=torch.int8)
    assert torch.equal(int8.matmul(a, b).long(), a.long() @ b.long().t())


def test_norm_and_attention_references_equal_transformers() -> None:
    """Of no quantization: what the plugins compute in float32 is what the float model does."""
    model = read_model(TINY | {"torch_dtype": "float32"})
    forward = LayerForward(model, 16, torch.float32, CPU)
    prefix = model.family.layer.format(i=0)
    weights = random_weights(TINY | {"torch_dtype": "float32"})
    forward.load(0, {n[len(prefix) :]: t for n, t in weights.items() if n.startswith(prefix)})
    x = torch.randn(2, 16, model.hidden_size)
    norm, qkv = model.family.norms[0], model.family.linears[0]
    weight = forward.tensors[f"{norm.tensor}.weight"]
    normed = rmsnorm_quantization.rms_norm(x.view(-1, model.hidden_size), weight, model.norm_epsilon)
    torch.testing.assert_close(normed.view_as(x), forward.norm(norm, x))
    made = forward.linear(qkv, x)
    ours = gpt_attention.reference(torch.cat(made, -1), forward.cos, forward.sin, forward.heads)
    torch.testing.assert_close(ours, forward.attend(made), rtol=1e-4, atol=1e-4)


def test_stages_hold_consecutive_layers() -> None:
    assert Mapping(1, 3).stages(6) == [range(2), range(2, 4), range(4, 6)]


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0)])
def test_a_mapping_has_ranks(sizes: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="--tp_size and --pp_size must be at least 1"):
        Mapping(*sizes).check(read_model(TINY))


def test_a_search_sees_the_rows_that_stand_out() -> None:
    """A model's massive activations leave through one or two output rows; a search that misses them chooses badly."""
    weight = torch.randn(3000, 8)
    weight[1234] *= 100
    block = Block.of(weight, per_channel=True)
    assert torch.equal(block.sample[0], weight[1234])
    assert float(block.times.sum()) == pytest.approx(3000)
    assert len(block.sample) <= 1024


@pytest.mark.parametrize(
    "quant", ["W4A16_AWQ", "W4A16_GPTQ", "W8A16_GPTQ", "W8A16", "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN"]
)
def test_biases_behind_an_all_reduce_are_added_once(
    quant: str, tmp_path: Path, converted: Callable[..., Checkpoint]
) -> None:
    """The group-wise plugin adds them on every rank, before the ranks' outputs are summed; others do so after."""
    model = write_model(tmp_path / "hf", attention_bias=True, mlp_bias=True, intermediate_size=256, hidden_size=128)
    options = {"quant": quant, "group_size": 64, "propagate": "float"}
    whole, many = converted(model, **options), converted(model, tp_size=2, **options)
    for linear in ("attention.dense", "mlp.proj"):
        name = f"transformer.layers.1.{linear}.bias"
        first, second = many.read(0, name), many.read(1, name)
        assert torch.equal(first, whole.read(0, name))
        assert torch.equal(second, first * (not kind_of(whole.precision.layer(1)[linear]).adds_bias))
    assert_same_layers(whole, many)


@pytest.mark.parametrize(
    ("sizes", "works"),
    [
        ({"intermediate_size": 48}, [1, 2, 4, 12]),  # 3 and 6 would cut a KV head's queries apart
        ({"intermediate_size": 40}, [1, 2, 4]),
        ({"intermediate_size": 48, "num_key_value_heads": 12}, [1, 2, 3, 4, 6, 12]),
        ({"intermediate_size": 48, "num_key_value_heads": 1}, [1, 2, 3, 4, 6, 12]),
    ],
)
def test_ranks_that_cut_heads_evenly(sizes: dict[str, int], works: list[int]) -> None:
    heads = {"hidden_size": 96, "num_attention_heads": 12, "num_key_value_heads": 4, "num_hidden_layers": 6}
    model = read_model(TINY | heads | sizes)
    for size in range(1, 15):
        if size in works:
            Mapping(size, 1).check(model)
            continue
        with pytest.raises(InputError, match=rf"--tp_size {size} .*; sizes that do: {', '.join(map(str, works))}$"):
            Mapping(size, 1).check(model)
    for size in (1, 2, 3, 6):
        Mapping(1, size).check(model)
    with pytest.raises(InputError, match=r"--pp_size 4 does not divide 6 layers; sizes that do: 1, 2, 3, 6$"):
        Mapping(1, 4).check(model)
