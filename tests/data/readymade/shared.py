"""What the scripts of this folder share: the float model that each tool quantizes, and what is kept of the result."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY, SEQUENCES, TOKENS = 32, 64, 32
LINEAR = "_proj"


def write_source(folder: Path, intermediate_size: int = 128) -> Path:
    """A random Llama of one layer in float16, some of its channels wide as in real models, with a tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=intermediate_size,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(1 + 2 * torch.rand_like(parameter) if "norm" in name else parameter * 4)
    model.half().save_pretrained(folder)
    words = Tokenizer(models.WordLevel({str(word): word for word in range(VOCABULARY)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="0", pad_token="0").save_pretrained(folder)
    return folder


def token_ids() -> torch.Tensor:
    """Calibration tokens, int64 [SEQUENCES, TOKENS]."""
    return torch.randint(VOCABULARY, (SEQUENCES, TOKENS), generator=torch.Generator().manual_seed(1))


def keep(made: Path, target: Path, weights: Mapping[str, torch.Tensor], *packages: str) -> None:
    """Copy what matters of a tool's folder, and note the weights that the tool itself dequantizes it to.

    Args:
        made: the tool's folder.
        target: the golden folder; an older one is replaced.
        weights: by full name of the linear, [out, in] in any dtype.
        packages: whose versions are noted.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in sorted(made.iterdir()):
        if file.suffix == ".safetensors" or file.name in ("config.json", "quantize_config.json", "quant_config.json"):
            shutil.copy(file, target)
    half = {name: weight.detach().half().cpu().contiguous().numpy().tobytes() for name, weight in weights.items()}
    noted = {
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", *packages)},
        "sha256 of float16 weights": {name: hashlib.sha256(data).hexdigest() for name, data in sorted(half.items())},
    }
    (target / "dequantized.json").write_text(json.dumps(noted, indent=2) + "\n")
