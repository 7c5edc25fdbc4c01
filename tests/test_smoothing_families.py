"""Smoothing changes nothing in float: every family's layer, its biases and norms included, before rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from enginesmith.convert.models.families import FAMILIES
from enginesmith.convert.models.forward import LayerForward
from enginesmith.convert.models.layer import Layer
from enginesmith.convert.quantize import smoothquant
from enginesmith.convert.quantize.options import QuantizeOptions
from enginesmith.convert.sources.folder import Source
from enginesmith.convert.statistics.calibrate import calibrate_layer
from enginesmith.convert.statistics.wanted import EVERYTHING
from enginesmith.convert.targets.trtllm.formats import scheme_of
from enginesmith.convert.targets.trtllm.honoured import left_out

from .family_models import write_family

CPU = torch.device("cpu")
QDQ, PLUGIN = "W8A8_SQ_PER_CHANNEL", "W8A8_SQ_PER_TENSOR_PLUGIN"


@pytest.mark.parametrize("alpha", [None, 0.5, 1.0])
@pytest.mark.parametrize("title", [family.title for family in FAMILIES])
def test_a_smoothed_layer_computes_what_it_did(title: str, alpha: float | None, tmp_path: Path) -> None:
    """Factors lie in norms, in rows of the linears before, or are divided out at run time: the hidden states behind two
    layers stay what they were, within 1e-4."""
    source = Source(write_family(tmp_path / "hf", title))
    model, family = source.model, source.model.family
    algorithm = QDQ if PLUGIN in left_out(family) else PLUGIN
    if algorithm in left_out(family):
        pytest.skip("has no SmoothQuant")
    plain, smoothed = (LayerForward(model, 24, torch.float32, CPU) for _ in range(2))
    hidden = torch.randn(4, 24, model.hidden_size, generator=torch.Generator().manual_seed(0))
    ours, options = hidden.clone(), QuantizeOptions(alpha=alpha)
    for index in range(model.num_hidden_layers):
        tensors = source.layer(index)
        plain.load(index, tensors)
        seen = calibrate_layer(plain, hidden, EVERYTHING, 0, 2)
        layer, scheme = Layer.of(tensors, model), scheme_of(algorithm)
        experts = {linear.name for mlp in family.experts for linear in (*mlp.first, mlp.last)}
        groups = [group for group in family.groups if group.linears[0] not in experts]
        smoothquant.quantize_groups(layer, groups, seen, scheme, options, torch.float16)
        assert any(not torch.equal(s, torch.ones_like(s)) for s in layer.factors.values())
        smoothed.load(index, layer.computed())
        ours = smoothed(ours)
        assert (ours - hidden).norm() <= 1e-4 * hidden.norm()
