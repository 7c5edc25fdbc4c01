"""Plugins as data: node counts as upstream's builder has them, and references against PyTorch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from enginesmith.build.checkpoint_folder import CheckpointFolder
from enginesmith.build.network import rank_nodes, totals
from enginesmith.convert.errors import InputError
from enginesmith.convert.prove.proven import ProvenCheckpoint as Checkpoint
from enginesmith.plugins import catalog, layernorm_quantization
from enginesmith.plugins.identity import within
from tests.build_folders import write_checkpoint
from tests.command import run

Tiny = Callable[..., Path]
Converted = Callable[..., Checkpoint]

# Nodes of one Llama decoder layer, counted in TensorRT-LLM 0.16's network.
LAYER = {
    "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN": {"SmoothQuantGemm": 5, "RmsnormQuantization": 2, "QuantizePerToken": 2},
    "W8A8_SQ_PER_TENSOR_PER_TOKEN_PLUGIN": {"SmoothQuantGemm": 5, "RmsnormQuantization": 2, "QuantizePerToken": 2},
    "W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN": {"SmoothQuantGemm": 5, "RmsnormQuantization": 2, "QuantizeTensor": 2},
    "W8A8_SQ_PER_TENSOR_PLUGIN": {"SmoothQuantGemm": 5, "RmsnormQuantization": 2, "QuantizeTensor": 2},
    "W8A8_SQ_PER_CHANNEL": {},
}


@pytest.mark.parametrize("algorithm", LAYER)
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 2)])
def test_node_counts_are_upstreams(algorithm: str, tp: int, pp: int, tiny: Tiny, converted: Converted) -> None:
    checkpoint = CheckpointFolder(converted(tiny(), quant=algorithm, tp_size=tp, pp_size=pp).folder)
    layers = 4 // pp
    for rank in range(tp * pp):
        wanted = {name: count * layers for name, count in LAYER[algorithm].items()} | {"GPTAttention": layers}
        last, first = rank // tp == pp - 1, rank // tp == 0
        if tp > 1:
            wanted["AllReduce"] = 2 * layers
        wanted |= {"Gemm": 1} if last else {"Send": 1}
        wanted |= {"AllGather": 1} if last and tp > 1 else {}
        wanted |= {} if first else {"Recv": 1}
        assert totals(rank_nodes(checkpoint, rank)) == wanted


def test_the_table_names_every_layer(tiny: Tiny, converted: Converted) -> None:
    folder = converted(tiny(), quant="W8A8_SQ_PER_TENSOR_PLUGIN", pp_size=2).folder
    shown = run("plugins", folder).stdout
    assert "layers 0 to 1" in shown
    assert "layers 2 to 3" in shown
    assert "attention.dense, mlp.proj" in shown
    assert re.search(r"outside +Send ", shown)
    data = json.loads(run("plugins", folder, "--rank", 1, "--json").stdout)
    assert list(data) == ["1"]
    assert data["1"]["totals"]["QuantizeTensor"] == 4
    assert {node["layer"] for node in data["1"]["nodes"]} == {2, 3, None}
    assert "the checkpoint has ranks 0 to 1" in run("plugins", folder, "--rank", 2, expect=2).stderr
    assert "CHECKPOINT_DIR: /no is not a folder" in run("plugins", "/no", expect=2).stderr


def test_an_unknown_family_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "ck")
    with pytest.raises(InputError, match="layers of SomeForCausalLM are not known"):
        rank_nodes(CheckpointFolder(folder), 0)


def test_identities_are_complete() -> None:
    for plugin in (*catalog.QUANTIZATION, catalog.ATTENTION):
        assert plugin.config_key.endswith("_plugin")
        assert plugin.namespace == "tensorrt_llm"
        assert plugin.version == "1"
        assert plugin.gpus
        assert within(90, plugin.gpus)


@pytest.mark.parametrize("per_token", [True, False])
def test_layernorm_quantization_is_layer_norm_then_rounding(per_token: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(size, generator=draw) for size in ((5, 32), (32,), (32,)))
    exact = torch.nn.functional.layer_norm(x, (32,), weight, bias, 1e-5)
    scale = torch.tensor([127 / float(exact.abs().max())])
    given = None if per_token else scale
    hidden, integers, scales = layernorm_quantization.reference(x, weight, bias, 1e-5, kind="int8", scale=given)
    assert hidden is x
    assert integers.dtype == torch.int8
    restored = integers.float() * scales if scales is not None else integers.float() / scale
    assert float((restored - exact).abs().max()) <= 0.51 * float(exact.abs().max()) / 127
