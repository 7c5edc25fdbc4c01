"""Statistics of one layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from enginesmith.convert.job.options import ConvertOptions
from enginesmith.convert.job.quantization import quantization_of
from enginesmith.convert.models.forward import LayerForward
from enginesmith.convert.models.rotary import rotary_frequencies, rotary_tables
from enginesmith.convert.quantize.quantizer import Quantizer
from enginesmith.convert.sources.folder import Source
from enginesmith.convert.statistics.layer import calibrate_layer
from enginesmith.convert.statistics.stream import Calibration
from enginesmith.convert.statistics.wanted import Wanted


def test_a_pass_that_stays_sees_the_same_and_moves_nothing(tiny: Callable[..., Path]) -> None:
    source = Source(tiny())
    forward = LayerForward(source.model, 24, torch.float32, torch.device("cpu"))
    forward.load(source.layer(0))
    hidden = torch.randn(4, 24, source.model.hidden_size, generator=torch.Generator().manual_seed(0))
    before, seen, done = hidden.clone(), [], []
    for stay in (True, False):
        assert torch.equal(hidden, before)
        wanted = Wanted(gram=True, ranges=True, cache=True)
        seen.append(calibrate_layer(forward, hidden, source.model, wanted, 0, 2, done.append, stay))
    assert not torch.equal(hidden, before)
    assert done == [48] * 4
    stayed, moved = seen
    for name, inputs in moved.inputs.items():
        assert torch.equal(stayed.inputs[name].gram_matrix(), inputs.gram_matrix())
        assert torch.equal(stayed.inputs[name].amax, inputs.amax)
    assert stayed.key_amax is not None
    assert torch.equal(stayed.key_amax, moved.key_amax)


def test_a_layer_with_scaled_queries_computes_what_the_source_does(tiny: Callable[..., Path]) -> None:
    """Yarn's attention factor is in the tables of the float model, and in the queries of what an engine computes."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    model = tiny(rope_scaling=yarn, torch_dtype="float32")
    source = Source(model)
    quantizer = Quantizer(quantization_of(ConvertOptions(str(model), "", quant="W8A16"), source))
    ids = torch.arange(48).view(2, 24)
    streams = [Calibration(source.model, ids, source.embedding(), Wanted(), torch.device("cpu"), 0) for _ in range(2)]
    for stream in streams:
        stream.forward.dtype, stream.hidden = torch.float32, stream.hidden.float()
        stream.forward.cos, stream.forward.sin = (
            table * stream.forward.attention_scaling
            for table in rotary_tables(rotary_frequencies(source.model)[0], ids.shape[1])
        )
    tensors = source.layer(0)
    streams[0].layer(tensors)
    streams[1].advance(quantizer.float_layer(tensors))
    assert streams[0].forward.attention_scaling > 1.1
    torch.testing.assert_close(streams[1].hidden, streams[0].hidden, rtol=1e-4, atol=1e-5)
