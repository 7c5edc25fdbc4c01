"""Families under Hugging Face's names: folding changes nothing in float, and transformers reads the folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from enginesmith.convert.errors import InputError
from enginesmith.convert.job.conversion import convert
from enginesmith.convert.job.options import ConvertOptions
from enginesmith.convert.models.families import FAMILIES
from enginesmith.convert.models.forward import LayerForward
from enginesmith.convert.models.layer import Layer
from enginesmith.convert.numbers.rounding import Grid
from enginesmith.convert.numbers.smoothing import of_rows, pooled
from enginesmith.convert.prove.folder import QuantizedFolder
from enginesmith.convert.prove.layers import computed
from enginesmith.convert.quantize import groupwise, smoothquant
from enginesmith.convert.quantize.layer import quantize_groups
from enginesmith.convert.quantize.options import QuantizeOptions
from enginesmith.convert.sources.folder import Source
from enginesmith.convert.statistics.calibrate import calibrate_layer
from enginesmith.convert.statistics.wanted import EVERYTHING
from enginesmith.convert.targets.registry import TARGETS
from enginesmith.plugins import fp8

from .family_models import write_family

CPU = torch.device("cpu")
FOLDED = TARGETS["compressed-tensors"]
# transformers has a class of its own for them.
READ = (
    "Llama, Yi, DeepSeek-LLM, SmolLM", "Mistral, Mistral-Nemo", "Qwen2, Qwen2.5", "Qwen3", "Gemma", "Gemma 2",
    "Gemma 3, text", "Phi-3, Phi-3.5, Phi-4", "Phi-4-mini", "StarCoder2", "OPT", "GPT-J", "Phi-1, Phi-1.5, Phi-2",
    "MPT", "Nemotron, Minitron", "Cohere Command R", "Cohere Command R+",
)  # fmt: skip
WRITTEN = (
    *READ, "Qwen", "InternLM", "Baichuan 1 7B", "Baichuan 1 13B", "Baichuan 2 7B", "Baichuan 2 13B", "EXAONE 3, 3.5",
    "ChatGLM2, ChatGLM3", "GLM-4", "StarCoder, SantaCoder, Granite code 20B and 34B",
)  # fmt: skip
TITLES = [family.title for family in FAMILIES]


def ids(model: object) -> torch.Tensor:
    return torch.randint(0, 100, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("title", WRITTEN)
@pytest.mark.parametrize("quant", ["W8A8_SQ_PER_CHANNEL", "W4A16_AWQ"])
def test_factors_go_whole_into_the_model(title: str, quant: str, tmp_path: Path) -> None:
    """Nothing is left for the runtime to divide, heads that share values share a factor, and the hidden states behind
    two layers stay what they were."""
    source = Source(write_family(tmp_path / "hf", title))
    model, family, scheme = source.model, source.model.family, FOLDED.scheme(quant, 64)
    plain, scaled = (LayerForward(model, 24, torch.float32, CPU) for _ in range(2))
    hidden = torch.randn(4, 24, model.hidden_size, generator=torch.Generator().manual_seed(0))
    ours = hidden.clone()
    quantize = smoothquant.quantize_groups if scheme.smooths else groupwise.quantize_groups
    for index in range(model.num_hidden_layers):
        tensors = source.layer(index)
        plain.load(index, tensors)
        seen = calibrate_layer(plain, hidden, EVERYTHING, 0, 2)
        layer, more = Layer.of(tensors, model), () if scheme.smooths else (lambda scheme, made: made.dequantize(),)
        linears, _ = quantize(layer, family.groups, seen, scheme, QuantizeOptions(), torch.float32, *more)
        assert all(made.smoother is None for made in linears.values())
        assert all(torch.equal(s, torch.ones_like(s)) for s in layer.smoothers.values())
        dense = next(group for group in family.groups if group.feeder == family.attention[2])
        factor = layer.factors[dense.name].view(model.num_key_value_heads, -1, model.head_size)
        assert torch.equal(factor, factor[:, :1].expand_as(factor))
        if scheme.smooths:
            assert not torch.equal(factor, torch.ones_like(factor))
            scaled.load(index, layer.computed())
            ours = scaled(ours)
    if scheme.smooths:
        assert (ours - hidden).norm() <= 1e-4 * hidden.norm()


@pytest.mark.parametrize("title", READ)
@pytest.mark.parametrize("quant", ["W8A8", "W4A16_AWQ", "FP8"])
def test_transformers_computes_what_we_do(title: str, quant: str, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    hf = write_family(tmp_path / "hf", title)
    options = {"calib_size": 4, "calib_seq_len": 24, "group_size": 64, "calib": str(tokens(tmp_path))}
    where = {"model_dir": str(hf), "output_dir": str(tmp_path / "out"), "target": ("compressed-tensors",)}
    convert(ConvertOptions(quant=quant, **where, **options))
    load = transformers.AutoModelForCausalLM.from_pretrained
    model, told = load(tmp_path / "out", dtype=torch.float32, output_loading_info=True)
    assert {key: sorted(told[key]) for key in ("missing_keys", "unexpected_keys") if told[key]} == {}
    with torch.inference_mode():
        wanted = model(ids(model)).logits.float()
        got = logits(tmp_path / "out", ids(model))
    # Sums of float32 in another order; a value on a tie goes to the other side, and one token's logits with it.
    assert float((got - wanted).square().mean().sqrt()) < 2e-2 * float(wanted.std())
    assert float((got - wanted).abs().median()) < 5e-3 * float(wanted.std())


def tokens(folder: Path) -> Path:
    """Calibration tokens, where --calib reads them."""
    drawn = torch.randint(0, 100, (4, 24), generator=torch.Generator().manual_seed(2))
    save_file({"input_ids": drawn}, folder / "ids.safetensors")
    return folder / "ids.safetensors"


def logits(folder: Path, of: torch.Tensor) -> torch.Tensor:
    opened = QuantizedFolder(folder, "transformers", torch.float32)
    runtime, hidden = opened.runtime(of.shape[1], CPU), opened.embedding()(of)
    for index in range(opened.model.num_hidden_layers):
        hidden = computed(runtime, index, opened.executed(index, CPU), hidden)
    head = opened.head(CPU).map(torch.Tensor.float)
    return torch.stack([runtime.logits(one, head) for one in hidden])


@pytest.mark.parametrize("title", TITLES)
def test_every_other_family_is_refused_with_its_reason(title: str, tmp_path: Path) -> None:
    hf = write_family(tmp_path / "hf", title)
    where = {"model_dir": str(hf), "output_dir": str(tmp_path / "out"), "target": ("compressed-tensors",)}
    if title in WRITTEN:
        convert(ConvertOptions(quant="W8A16", **where))
        assert QuantizedFolder(tmp_path / "out").problems() == []
        return
    with pytest.raises(InputError, match="is not written for compressed-tensors"):
        convert(ConvertOptions(quant="W8A16", **where))
    assert not (tmp_path / "out").exists()


def test_pooling() -> None:
    rows = torch.tensor([0, 1, 0, 1])
    assert pooled(torch.tensor([1.0, 2.0, 3.0, 8.0]), rows, "amax").tolist() == [3.0, 8.0, 3.0, 8.0]
    assert pooled(torch.tensor([1.0, 2.0, 3.0, 8.0]), rows, "mean").tolist() == [2.0, 5.0, 2.0, 5.0]
    assert of_rows(torch.tensor([3.0, 8.0, 3.0, 8.0]), rows).tolist() == [3.0, 8.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "quant", ["W8A8", "W8A8_SQ_PER_CHANNEL", "W4A16_AWQ", "W4A16_GPTQ", "W8A16", "FP8", "FP8_DYNAMIC"]
)
def test_integers_are_chosen_on_the_scales_that_readers_keep(quant: str, dtype: torch.dtype, tmp_path: Path) -> None:
    source = Source(write_family(tmp_path / "hf", READ[0]))
    model, scheme, forward = source.model, FOLDED.scheme(quant, 64), LayerForward(source.model, 24, torch.float32, CPU)
    tensors = source.layer(0)
    forward.load(0, tensors)
    hidden = torch.randn(4, 24, model.hidden_size, generator=torch.Generator().manual_seed(0))
    seen, layer = calibrate_layer(forward, hidden, EVERYTHING, 0, 2), Layer.of(tensors, model)
    before = {linear.name: layer.weight(linear) for linear in model.family.linears}
    how = QuantizeOptions(rounding="nearest"), dtype, lambda scheme, made: made.dequantize()
    linears, _ = quantize_groups(layer, model.family.groups, seen, scheme, *how)
    for name, made in linears.items():
        assert torch.equal(made.scale.to(dtype).float(), made.scale), name
        if not scheme.smooths and not scheme.grouped:
            step = made.scale.reshape(len(made.scale), -1)
            exact = before[name] / (step if step.numel() > 1 else step.reshape(()))
            if scheme.activations:
                assert torch.equal(made.values.float(), fp8.saturate(exact).float()), name
            else:
                assert bool(((made.values - exact).abs() <= 0.5001).all()), name


def test_zero_points_are_exact_where_readers_subtract_them() -> None:
    weight = torch.randn(8, 128, generator=torch.Generator().manual_seed(0)) + 0.3
    grid = Grid.of(weight, 64, 4, symmetric=False).kept(torch.bfloat16)
    assert grid.zero is not None
    assert torch.equal(grid.scale.bfloat16().float(), grid.scale)
    assert torch.equal(grid.offset, -grid.zero * grid.scale)


@pytest.mark.parametrize("target", ["trtllm", "compressed-tensors"])
def test_yarns_factor_is_in_the_tables_of_who_reads_it_there(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens that pass through quantized layers are turned as the runtime does; engines have the factor in queries."""
    hf = write_family(tmp_path / "hf", READ[0])
    config = json.loads((hf / "config.json").read_text())
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
    (hf / "config.json").write_text(json.dumps(config | {"rope_parameters": yarn, "rope_scaling": None}))
    made = []

    class Seen(LayerForward):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            made.append(self.attention_scaling)

    monkeypatch.setattr("enginesmith.convert.statistics.stream.LayerForward", Seen)
    options = {"calib_size": 4, "calib_seq_len": 24, "group_size": 64, "calib": str(tokens(tmp_path))}
    where = {"model_dir": str(hf), "output_dir": str(tmp_path / "out"), "target": (target,)}
    convert(ConvertOptions(quant="W4A16_GPTQ", **where, **options))
    assert (made[0] == 1.0) == (target == "trtllm")


def test_yarns_factor_is_in_our_tables_too(tmp_path: Path) -> None:
    hf = write_family(tmp_path / "hf", READ[0])
    config = json.loads((hf / "config.json").read_text())
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
    (hf / "config.json").write_text(json.dumps(config | {"rope_parameters": yarn, "rope_scaling": None}))
    where = {"model_dir": str(hf), "output_dir": str(tmp_path / "out"), "target": ("compressed-tensors",)}
    convert(ConvertOptions(quant="W8A16", **where))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.inference_mode():
        wanted, got = model(ids(model)).logits, logits(tmp_path / "out", ids(model))
    assert float((got - wanted).abs().max()) < 1e-4 * float(wanted.std())
