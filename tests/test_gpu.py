"""Conversion and verification on a CUDA device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from enginesmith.convert import gptq
from enginesmith.convert.joined import Checkpoint
from enginesmith.convert.rounding import Grid
from enginesmith.convert.verify import measure
from enginesmith.plugins import int8

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


@pytest.mark.parametrize("shape", [(24, 128), (130, 192), (64, 4224)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_gptq_is_the_same_with_and_without_its_kernel(
    shape: tuple[int, int], symmetric: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(512, shape[1], generator=draw), torch.randn(shape, generator=draw).cuda()
    gram, grid = (x.t() @ x).cuda(), Grid.of(weight, 64, 4, symmetric)
    with_kernel = gptq.gptq(weight, gram, grid, act_order=True).integers
    monkeypatch.setattr(gptq, "compiled", lambda: gptq.one_by_one)
    without = gptq.gptq(weight, gram, grid, act_order=True).integers
    assert float((with_kernel != without).float().mean()) < 1e-3
