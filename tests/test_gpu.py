"""Conversion and verification on a CUDA device."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from enginesmith.convert.errors import InputError
from enginesmith.convert.files import behind
from enginesmith.convert.files.tensors import TensorFile
from enginesmith.convert.generate.network import Network
from enginesmith.convert.generate.passes import Piece
from enginesmith.convert.job.conversion import convert
from enginesmith.convert.job.options import ConvertOptions
from enginesmith.convert.models.dimensions import read_model
from enginesmith.convert.models.forward import LayerForward
from enginesmith.convert.models.layer import Layer
from enginesmith.convert.numbers import gptq
from enginesmith.convert.numbers.rounding import Grid
from enginesmith.convert.prove.encoders import EncoderAccuracy
from enginesmith.convert.prove.folder import FloatFolder
from enginesmith.convert.prove.proven import ProvenCheckpoint as Checkpoint
from enginesmith.convert.prove.proven import opened
from enginesmith.convert.prove.verify import measure, structure_problems
from enginesmith.convert.quantize.precision import Precision
from enginesmith.convert.sources.folder import Source
from enginesmith.convert.statistics import calibrate
from enginesmith.convert.statistics.wanted import EVERYTHING
from enginesmith.convert.targets.trtllm.formats import SCHEMES, scheme_of
from enginesmith.convert.targets.trtllm.formats.base import Engine
from enginesmith.convert.targets.trtllm.ranks import MODEL_DTYPE, Mapping, cut
from enginesmith.convert.targets.trtllm.storage import PLAIN
from enginesmith.convert.targets.trtllm.target import TensorRTLLM
from enginesmith.plugins import few_tokens, fp8, int8, quantize_per_token

from .conftest import ALGORITHMS, TINY
from .family_models import write_family
from .generating import answered, assert_as_computed_anew, prompts
from .target_folders import BASE, IDS, SAME, forms, made
from .test_formats import FORMATS, WIDE, group_size

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("shape", [(5, 64, 24), (64, 4096, 128), (33, 100, 7)])
def test_integer_product_is_exact(shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    a = torch.randint(-128, 128, (m, k), dtype=torch.int8)
    b = torch.randint(-127, 128, (n, k), dtype=torch.int8)
    assert torch.equal(int8.matmul(a.cuda(), b.cuda()).cpu().long(), a.long() @ b.long().t())


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_converts_and_executes_as_on_the_cpu(
    algo: str, tiny: Callable[..., Path], converted: Callable[..., Checkpoint]
) -> None:
    model = tiny(num_hidden_layers=2)
    text = str(model.parent / "ids.safetensors")
    results = {}
    for device in ("cpu", "cuda"):
        checkpoint = converted(model, quant=algo, kv_cache="INT8", device=device)
        results[device] = measure(checkpoint, model, text, chunks=4, length=24, device=device)
    cpu, cuda = results["cpu"], results["cuda"]
    assert cuda.reference_perplexity == pytest.approx(cpu.reference_perplexity, rel=1e-3)
    assert cuda.perplexity == pytest.approx(cpu.perplexity, rel=2e-2)
    assert cuda.kl < 0.05


@pytest.mark.parametrize("algo", FORMATS)
def test_every_format_converts_and_executes_as_on_the_cpu(
    algo: str, tiny: Callable[..., Path], converted: Callable[..., Checkpoint]
) -> None:
    model = tiny(**WIDE)
    text = str(model.parent / "ids.safetensors")
    results = {}
    for device in ("cpu", "cuda"):
        checkpoint = converted(model, quant=algo, group_size=group_size(algo), device=device)
        results[device] = measure(checkpoint, model, text, chunks=4, length=24, device=device)
    assert results["cuda"].kl == pytest.approx(results["cpu"].kl, rel=0.3, abs=2e-3)


@pytest.mark.parametrize("symmetric", [True, False])
def test_gptq_rounds_halves_as_on_the_cpu(symmetric: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    scale = (torch.rand(40, 2, generator=draw) + 0.5).half().float()
    zero = None if symmetric else torch.randint(-8, 8, (40, 2), generator=draw).float()
    on_cpu = Grid(scale, zero, -8, 7).stored(torch.float16)
    on_gpu = Grid(scale.cuda(), None if zero is None else zero.cuda(), -8, 7).stored(torch.float16)
    halves = torch.randint(-9, 9, (40, 128), generator=draw) + 0.5
    weight = halves.unflatten(1, (2, 64)) * scale[..., None]
    weight = (weight if on_cpu.offset is None else weight + on_cpu.offset[..., None]).flatten(1)
    expected = halves.round().clamp(-8, 7).to(torch.int8)
    for grid, device in ((on_cpu, "cpu"), (on_gpu, "cuda")):
        rounded = gptq.gptq(weight.to(device), torch.eye(128, device=device), grid)
        assert torch.equal(rounded.values.cpu(), expected), device


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_references_are_the_same_to_the_bit_as_on_the_cpu(dtype: torch.dtype) -> None:
    x = torch.randn(40, 1536, generator=torch.Generator().manual_seed(0)).to(dtype)
    for quantize in (quantize_per_token.reference, fp8.quantize_per_token):
        for ours, theirs in zip(quantize(x), quantize(x.cuda()), strict=True):
            assert torch.equal(ours.float(), theirs.cpu().float())
    weight = torch.randn(16, 1536, generator=torch.Generator().manual_seed(1)).to(dtype)
    for threads in (few_tokens.Threads.of(4, 80), few_tokens.Threads.of(8, 90)):
        ours, theirs = (few_tokens.product(x[:4].to(d), weight.to(d), threads).cpu() for d in ("cpu", "cuda"))
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("shape", [(24, 128), (130, 192), (64, 4224)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_gptq_is_the_same_with_and_without_its_kernel(
    shape: tuple[int, int], symmetric: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(512, shape[1], generator=draw), torch.randn(shape, generator=draw).cuda()
    gram, grid = (x.t() @ x).cuda(), Grid.of(weight, 64, 4, symmetric)
    with_kernel = gptq.gptq(weight, gram, grid, act_order=True).values
    monkeypatch.setattr(gptq, "compiled", lambda: gptq.one_by_one)
    without = gptq.gptq(weight, gram, grid, act_order=True).values
    assert float((with_kernel != without).float().mean()) < 1e-3


@pytest.mark.parametrize("quant", [None, *SCHEMES])
def test_what_a_gpu_packs_is_packed_as_on_the_cpu(quant: str | None, tmp_path: Path) -> None:
    """A layer's tensors, as a GPU and a CPU write them for two ranks, and as both read them again."""
    model = read_model({**TINY, **WIDE, "attention_bias": True})
    scheme, engine = scheme_of(quant, group_size(quant or "W8A16")), Engine("float16")
    target, mapping = TensorRTLLM(Precision(model, scheme), engine), Mapping(tp_size=2)
    draw, tensors = torch.Generator().manual_seed(0), {}
    for name, spec in target.tensors(0).items():
        stored = engine.dtype if spec.dtype == MODEL_DTYPE else spec.dtype
        dtype = getattr(torch, stored if spec.storage is PLAIN else "int8")
        tensors[name] = torch.randint(-8, 8, spec.shape(model), generator=draw).to(dtype)
    for name, tensor in tensors.items():
        spec = target.tensors(0)[name]
        for rank in range(mapping.tp_size):
            ours, theirs = (cut(whole, spec, model, mapping, rank) for whole in (tensor, tensor.cuda()))
            packed = spec.storage.store(theirs)
            assert torch.equal(spec.storage.store(ours).view(torch.uint8), packed.cpu().view(torch.uint8)), name
            read = spec.storage.read(spec.storage.store(ours))
            assert torch.equal(spec.storage.read(packed).cpu().float(), read.float()), name


def test_a_file_holds_what_a_gpu_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than may wait for the disk, beside what comes from the CPU."""
    monkeypatch.setattr(behind, "MOST_WAITING", 3000)
    made = {f"t{i}": torch.randn(i + 1, 100, generator=torch.Generator().manual_seed(i)) for i in range(20)}
    file = TensorFile(tmp_path / "a", {name: (list(tensor.shape), "float32") for name, tensor in made.items()})
    for number, (name, tensor) in enumerate(made.items()):
        file.fill(name, iter(tensor.split(3)) if number % 3 == 0 else iter(tensor.cuda().split(2)))
    file.close()
    assert all(torch.equal(tensor, made[name]) for name, tensor in load_file(tmp_path / "a").items())


def test_a_file_that_is_given_up_is_closed(tmp_path: Path) -> None:
    file = TensorFile(tmp_path / "a", {"t": ([1000, 1000], "float32")})
    file.write("t", torch.randn(1000, 1000, device="cuda"))
    file.abandon()
    assert file.file.closed


@pytest.mark.parametrize("options", [{"tp_size": 2, "pp_size": 2}, {"kv_cache": "INT8"}, {"kv_cache": "FP8"}], ids=str)
@pytest.mark.parametrize("quant", ["W4A16_GPTQ", "W4A16_AWQ"])
def test_ranks_and_caches(
    quant: str, options: dict[str, Any], tiny: Callable[..., Path], converted: Callable[..., Checkpoint]
) -> None:
    model = tiny(**WIDE | {"hidden_size": 256, "num_key_value_heads": 4})
    checkpoint = converted(model, quant=quant, group_size=64, device="cuda", **options)
    assert structure_problems(checkpoint) == []
    assert measure(checkpoint, model, str(model.parent / "ids.safetensors"), 4, 24, device="cuda").kl < 0.4


def test_tokens_find_room_or_come_again(monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., Path]) -> None:
    source = Source(tiny(**WIDE))
    seen = []
    for share in (0.5, 0.0):
        monkeypatch.setattr(calibrate, "WAITING_SHARE", share)
        forward = LayerForward(source.model, 24, torch.float32, torch.device("cuda"))
        hidden = torch.randn(5, 24, 128, generator=torch.Generator().manual_seed(0)).cuda()
        layer = Layer.of(source.layer(0, "cuda"), source.model)
        walk = calibrate.Walk(forward, 0, layer, hidden, EVERYTHING, 0, 2)
        assert len(list(walk.groups())) == 4
        seen.append((hidden, walk.seen.inputs["mlp.proj"].gram_matrix(), walk.seen.inputs["mlp.proj"].amax))
    for one, other in zip(*seen, strict=True):
        assert torch.equal(one, other)


def test_nan_is_found_on_a_gpu(tiny: Callable[..., Path]) -> None:
    model = tiny()
    weights = load_file(model / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(weights, model / "model.safetensors")
    source = Source(model)
    assert source.layer(0, "cuda")
    with pytest.raises(InputError, match=r"tensor model\.layers\.1\.mlp\.up_proj\.weight holds NaN"):
        source.layer(1, "cuda")


# One of each arrangement, of each kind of position, of fused matrices, experts, and an encoder.
TITLES = (
    "Gemma 2", "Gemma 3, text", "GPT-J", "GPT-NeoX, Pythia, Dolly", "BLOOM, BLOOMZ", "OPT", "Falcon 40B, 180B",
    "Falcon RW", "Cohere Command R+", "Phi-3, Phi-3.5, Phi-4", "Granite 3, dense", "Baichuan 2 13B", "Mixtral",
    "Qwen1.5-MoE, Qwen2-MoE", "Qwen3-MoE", "BERT",
)  # fmt: skip


@pytest.mark.parametrize("algo", [None, "FP8", "W4A16_AWQ", "W8A16"])
@pytest.mark.parametrize("title", TITLES)
def test_families_are_converted_and_executed(title: str, algo: str | None, tmp_path: Path) -> None:
    """What a GPU writes computes, on the GPU, what its source does."""
    model, text = write_family(tmp_path / "hf", title), str(tmp_path / "ids.safetensors")
    settings = {"calib": text, "calib_size": 8, "calib_seq_len": 24, "device": "cuda", "dtype": "float16"}
    convert(ConvertOptions(str(model), str(tmp_path / "ck"), quant=algo, tp_size=2, group_size=64, **settings))
    checkpoint = Checkpoint(tmp_path / "ck")
    assert structure_problems(checkpoint) == []
    found = measure(checkpoint, model, text, chunks=4, length=24, device="cuda")
    distance = found.distance if isinstance(found, EncoderAccuracy) else found.kl
    assert distance < 0.1
    assert found.beyond is None


@pytest.mark.parametrize(("target", "quant", "options"), SAME, ids=[" ".join(map(str, key)) for key in SAME])
def test_targets_are_made_and_executed_as_on_the_cpu(
    target: str, quant: str, options: tuple[tuple[str, Any], ...], tmp_path: Path
) -> None:
    """The same tensors, and a folder that is as far from its source whichever machine made and executed it."""
    ids, found = tmp_path / "ids.safetensors", []
    save_file({"input_ids": IDS["token_ids"].long()}, ids)
    for device in ("cpu", "cuda"):
        folder = made(target, quant, tmp_path / device, device=device, **dict(options))
        accuracy = measure(opened(folder), BASE, str(ids), 2, 48, device)
        found.append((forms(folder), accuracy.kl))
    assert found[0][0] == found[1][0]
    assert found[1][1] == pytest.approx(found[0][1], rel=0.5)


def test_a_budget_is_spent_as_on_the_cpu(tmp_path: Path) -> None:
    for target in ("trtllm", "edge"):
        chosen = [
            made(target, "W8A8_SQ_PER_CHANNEL", tmp_path / (target + device), device=device, float_budget=20.0)
            for device in ("cpu", "cuda")
        ]
        kept = [json.loads((folder / "enginesmith.json").read_text())["float_budget"]["in_float"] for folder in chosen]
        assert [part["linears"] for part in kept[0]] == [part["linears"] for part in kept[1]]


@pytest.mark.parametrize("kv_cache", [None, "INT8", "FP8"])
@pytest.mark.parametrize("title", ["Llama, Yi, DeepSeek-LLM, SmolLM", "Gemma 2", "BLOOM, BLOOMZ", "Mixtral"])
def test_text_is_generated_as_on_the_cpu(title: str, kv_cache: str | None, tmp_path: Path) -> None:
    """Nearly the same logits at the same tokens, several prompts in flight."""
    text, quant = str(tmp_path / "ids.safetensors"), "W8A16" if title == "Mixtral" else "W4A16_AWQ"
    options = {"calib": text, "calib_size": 8, "calib_seq_len": 24, "dtype": "float16", "group_size": 64}
    model = write_family(tmp_path / "hf", title)
    convert(ConvertOptions(str(model), str(tmp_path / "ck"), quant=quant, kv_cache=kv_cache, **options))
    proven = opened(tmp_path / "ck")
    asked = prompts(proven.model.vocab_size)
    assert_as_computed_anew(proven, answered(proven, asked, device=torch.device("cuda")))


@pytest.mark.parametrize("dtype", [None, "float32"])
@pytest.mark.parametrize(
    ("target", "quant"),
    [
        ("modelopt", "FP8"),
        ("compressed-tensors", "W8A8_SQ_PER_CHANNEL"),
        ("compressed-tensors", "W4A16_AWQ"),
        ("trtllm", "FP8"),
        ("trtllm", "W4A16"),
    ],
)
def test_every_kind_of_input_is_generated_with(target: str, quant: str, dtype: str | None, tmp_path: Path) -> None:
    """Recorded passes, also of folders whose scales are numbers of the host, and of values in float32."""
    proven = opened(made(target, quant, tmp_path), dtype=dtype)
    asked = prompts(proven.model.vocab_size, (3, 10))
    assert_as_computed_anew(proven, answered(proven, asked, device=torch.device("cuda")))


def test_passes_are_recorded_anew_where_the_cache_has_grown(tmp_path: Path) -> None:
    """Over more chunks of keys, for which kernels are compiled that were not there."""
    title = "Llama, Yi, DeepSeek-LLM, SmolLM"
    source = FloatFolder(write_family(tmp_path / "hf", title, max_position_embeddings=512), torch.float16)
    network, anew = (Network(source, torch.device("cuda"), 300) for _ in range(2))
    anew.graphs = None
    passes = [Piece(0, place, 1) for place in range(4)]
    passes += [Piece(0, 4, 196), *(Piece(0, place, 1) for place in range(200, 204))]
    for piece in passes:
        ids = [(7 * place) % 50 for place in range(piece.first, piece.end)]
        got, wanted = (one([piece], ids).clone() for one in (network, anew))
        assert torch.equal(got, wanted)
