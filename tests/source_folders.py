"""Folders of models in the states that people have them in, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from enginesmith.convert.errors import InputError
from enginesmith.convert.sources.folder import Source

from .conftest import TINY, random_weights

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SMALL: dict[str, Any] = {"num_hidden_layers": 1}


def say(folder: Path, **changes: Any) -> None:
    """Change config.json; None takes a key out."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        Source(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


def shards(folder: Path, names: list[str], index: bool = False, seed: int = 0) -> dict[str, torch.Tensor]:
    """Spread a model with another seed over shards of these names; returns its weights."""
    weights = random_weights(TINY | SMALL, seed)
    where = {name: names[i % len(names)] for i, name in enumerate(sorted(weights))}
    for shard in names:
        save_file({name: weights[name] for name in where if where[name] == shard}, folder / shard)
    if index:
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return weights


def logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """transformers' own, in float32."""
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        found: torch.Tensor = model(ids).logits
    return found
