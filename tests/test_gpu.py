"""Conversion and verification on a CUDA device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from enginesmith.convert.numbers import gptq
from enginesmith.convert.numbers.rounding import Grid
from enginesmith.convert.prove.verify import measure
from enginesmith.convert.targets.trtllm.checkpoint import Checkpoint
from enginesmith.plugins import few_tokens, fp8, int8, quantize_per_token

from .conftest import ALGORITHMS
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
