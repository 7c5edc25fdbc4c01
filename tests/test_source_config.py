"""What config.json says in its own way, or leaves to transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from enginesmith.convert.models.dimensions import read_model
from enginesmith.convert.prove.proven import ProvenCheckpoint as Checkpoint
from enginesmith.convert.prove.verify import measure
from enginesmith.convert.sources.folder import Source

from .command import run
from .conftest import TINY, write_model
from .source_folders import SMALL, logits, refused, say


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"architectures": None}, {"architecture": "LlamaForCausalLM"}),
        ({"architectures": [], "model_type": "mistral"}, {"architecture": "MistralForCausalLM"}),
        ({"architectures": ["LLaMAForCausalLM"]}, {"architecture": "LlamaForCausalLM"}),
        ({"architectures": "LlamaForCausalLM"}, {"architecture": "LlamaForCausalLM"}),
        ({"max_position_embeddings": None}, {"max_position_embeddings": 2048}),
        ({"hidden_act": "swish"}, {"hidden_act": "silu"}),
        ({"sliding_window": 8}, {"sliding_window": None}),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 8}, {"sliding_window": 8}),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": None}, {"sliding_window": None}),
        ({"architectures": ["MistralForCausalLM"]}, {"sliding_window": 4096}),
        ({"torch_dtype": None, "dtype": "torch.bfloat16"}, {"dtype": "torch.bfloat16"}),
    ],
)
def test_read_as_transformers_reads_it(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    model = read_model(TINY | changes)
    assert {name: getattr(model, name) for name in expected} == expected


def test_a_default_that_was_taken_is_noted(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "hf", **SMALL)
    say(folder, max_position_embeddings=None)
    assert Source(folder).notes == ["max_position_embeddings 2048, transformers' default"]


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "MistralForCausalLM"])
def test_the_window_is_the_one_that_transformers_model_has(architecture: str, tmp_path: Path) -> None:
    """Beyond the window the logits change with what lies before it, or do not."""
    kind = architecture.removesuffix("ForCausalLM").lower()
    folder = write_model(
        tmp_path / "hf", architectures=[architecture], model_type=kind, sliding_window=4, torch_dtype="float32", **SMALL
    )
    ids = torch.randint(101, (1, 24), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[0, 0] = (ids[0, 0] + 1) % 101
    sees = not torch.equal(logits(folder, ids)[0, -1], logits(folder, other)[0, -1])
    source = Source(folder)
    assert (source.model.sliding_window is None) == sees
    words = f"sliding_window is not used: attention of {architecture} has none"
    assert source.notes == ([words] if sees else [])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"architectures": ["LlavaForConditionalGeneration"], "text_config": {}},
            "holds its text model in text_config",
        ),
        ({"architectures": None, "model_type": "phi9"}, "architecture 'phi9' is not supported"),
        ({"architectures": ["LlamaForCausalLM", "Other"]}, "is not supported"),
        ({"architectures": [["LlamaForCausalLM"]]}, "is not supported"),
        ({"architectures": {"a": 1}}, "is not supported"),
        ({"torch_dtype": {"": "float16"}}, "torch_dtype must be a text, not {'': 'float16'}"),
        ({"attention_bias": 1}, "attention_bias must be true or false"),
        ({"bias": "yes"}, "bias must be true or false"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings must be true or false"),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": "4096"}, "sliding_window must be an integer"),
        ({"hidden_size": 66}, "hidden_size 66 is no multiple of num_attention_heads 4; state head_dim"),
        ({"head_dim": 15}, "head size 15 is odd; the rotary embedding needs pairs"),
        ({"head_dim": 0}, "head_dim must be an integer from 1"),
        ({"hidden_act": ["silu"]}, "hidden_act ['silu'] is not supported"),
        ({"quantization_config": "gptq"}, "quantization_config must be an object"),
        ({"quantization_config": 0}, "quantization_config must be an object"),
    ],
)
def test_what_a_config_may_not_say(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "hf", **SMALL)
    say(folder, **changes)
    if changes.get("architectures", 1) is None:
        assert "architectures" not in json.loads((folder / "config.json").read_text())
    assert words in refused(folder)


# Attention heads of their own size.


def test_a_hidden_size_that_is_no_multiple_of_the_heads(tmp_path: Path) -> None:
    """Its heads, 3 of 16, are wider together than it is, as are 24 of 128 in 1792."""
    shape = {"hidden_size": 40, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16}
    shape |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "num_hidden_layers": 2}
    folder = write_model(tmp_path / "hf", **shape)
    ids, out = tmp_path / "ids.safetensors", tmp_path / "out"
    run("convert", "--model_dir", folder, "--output_dir", out, "--quant", "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN",
        "--calib", ids, "--calib_seq_len", 24)  # fmt: skip
    run("verify", out, "--reference", folder, "--text", ids, "--chunks", 4, "--seq_len", 24)
    accuracy = measure(Checkpoint(out), folder, str(ids), 4, 24)
    assert accuracy.kl < 0.02
    tokens = load_file(ids)["input_ids"][:4]
    predicted = logits(folder, tokens)[:, :-1].flatten(0, 1)
    nll = torch.nn.functional.cross_entropy(predicted, tokens[:, 1:].flatten())
    assert abs(float(nll.exp()) - accuracy.reference_perplexity) < 1e-3 * accuracy.reference_perplexity
    say(folder, head_dim=None)
    assert "hidden_size 40 is no multiple of num_attention_heads 3; state head_dim" in refused(folder)
