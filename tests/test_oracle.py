"""The float model, from token ids to logits, beside transformers' own: every family, float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from enginesmith.convert.models.ends import engine_norm
from enginesmith.convert.models.families import FAMILIES
from enginesmith.convert.prove.execution import Reference
from enginesmith.convert.sources.folder import Source

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 101, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
CASES: dict[str, list[dict[str, Any]]] = {
    "LlamaForCausalLM": [
        {},
        {"attention_bias": True, "mlp_bias": True, "head_dim": 24},
        {"tie_word_embeddings": True, "num_key_value_heads": 4},
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e3}, "num_key_value_heads": 1},
    ],
    "MistralForCausalLM": [{"sliding_window": None}],
    "Qwen2ForCausalLM": [{}, {"tie_word_embeddings": True}],
    "Qwen3ForCausalLM": [{"head_dim": 24}, {"head_dim": 16, "tie_word_embeddings": True, "num_key_value_heads": 4}],
    "GPTBigCodeForCausalLM": [{}, {"n_inner": 80, "tie_word_embeddings": False, "activation_function": "gelu_new"}],
    "Starcoder2ForCausalLM": [{}, {"num_key_value_heads": 4, "tie_word_embeddings": False, "sliding_window": None}],
    "GPT2LMHeadModel": [{}, {"n_inner": 80, "tie_word_embeddings": False, "activation_function": "gelu_pytorch_tanh"}],
}


def random_model(folder: Path, architecture: str, changes: dict[str, Any]) -> Any:
    """A random float32 model of transformers, saved; its norms and biases are not what they start as."""
    torch.manual_seed(0)
    kind = getattr(transformers, architecture)
    model = kind(kind.config_class(**SIZES | changes)).eval()
    for name, weight in model.named_parameters():
        if "norm" in name or "ln_" in name or name.endswith("bias"):
            weight.data += torch.randn_like(weight) * 0.3
    model.save_pretrained(folder)
    return model


def logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """What the family's description makes of a folder, [sequences, tokens, vocab_size]."""
    source = Source(folder)
    reference, family = Reference(source, ids, CPU), source.model.family
    for index in range(source.model.num_hidden_layers):
        reference.layer(source.layer(index))
    norm, head = reference.head()
    hidden = reference.hidden.flatten(0, 1)
    made = engine_norm(family.final_norm, hidden, norm, source.model.norm_epsilon) @ head.t()
    return made.view(*ids.shape, -1)


def test_every_family_has_a_case() -> None:
    assert CASES.keys() == {name for family in FAMILIES for name in family.architectures}


@pytest.mark.parametrize(
    ("architecture", "changes"), [(name, changes) for name, cases in CASES.items() for changes in cases]
)
def test_logits_are_transformers(architecture: str, changes: dict[str, Any], tmp_path: Path) -> None:
    model = random_model(tmp_path, architecture, changes)
    ids = torch.randint(SIZES["vocab_size"], (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        theirs = model(ids).logits
    ours = logits(tmp_path, ids)
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
