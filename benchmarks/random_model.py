"""Write a random model of a given shape, one shard a layer, for benchmarks of memory and time.

python benchmarks/random_model.py FOLDER --shape llama-2-7b [--layers N]

One layer's weights are drawn and every layer holds them in another order, so that writing is quick and memory
stays at one layer. Token ids to calibrate on are written beside the model (FOLDER/ids.safetensors).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from enginesmith.convert.models.dimensions import read_model
from enginesmith.convert.models.shapes import hugging_face_shapes

SHAPES: dict[str, dict[str, Any]] = {
    "llama-2-7b": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 32000,
    },
    "llama-3.1-8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "smollm2-135m": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True, "torch_dtype": "float32",
    },
    "qwen3-30b-a3b": {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 2048,
        "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True,
        "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
        "vocab_size": 151936, "intermediate_size": 6144, "torch_dtype": "bfloat16",
    },
    "narrow": {
        "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24, "num_attention_heads": 16,
        "num_key_value_heads": 4, "vocab_size": 32000,
    },
}  # fmt: skip
SEQUENCES, TOKENS = 128, 2048


def write(folder: Path, shape: str, layers: int | None) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        **SHAPES[shape],
    }
    if layers is not None:
        config["num_hidden_layers"] = layers
    model = read_model(config)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    shapes = hugging_face_shapes(model)
    if model.tied:
        shapes.pop(model.family.head)
    dtype = getattr(torch, config["torch_dtype"])
    draw = torch.Generator().manual_seed(0)

    def tensor(name: str) -> torch.Tensor:
        if name.endswith("norm.weight"):
            return (1 + 0.1 * torch.randn(shapes[name], generator=draw)).to(dtype)
        return (torch.randn(shapes[name], generator=draw) / shapes[name][-1] ** 0.5).to(dtype)

    where = {}
    prefix = model.family.layer.format(i=0)
    first = {name[len(prefix) :]: tensor(name) for name in shapes if name.startswith(prefix)}
    for i in range(model.num_hidden_layers):
        shard = f"layer-{i:03d}.safetensors"
        rolled = {model.family.layer.format(i=i) + name: weight.roll(i, 0) for name, weight in first.items()}
        save_file(rolled, folder / shard)
        where |= dict.fromkeys(rolled, shard)
    rest = {name: tensor(name) for name in shapes if name not in where}
    save_file(rest, folder / "rest.safetensors")
    where |= dict.fromkeys(rest, "rest.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    ids = torch.randint(model.vocab_size, (SEQUENCES, TOKENS), generator=draw)
    save_file({"input_ids": ids}, folder / "ids.safetensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--layers", type=int)
    arguments = parser.parse_args()
    if arguments.folder.exists() or (arguments.layers is not None and arguments.layers < 1):
        parser.error("a folder that is not there yet and at least one layer are needed")
    write(arguments.folder, arguments.shape, arguments.layers)
