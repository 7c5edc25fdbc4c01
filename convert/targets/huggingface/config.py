"""config.json of a folder, in words that every runtime reads, and the files that are copied beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import InputError
from ...files.disk import open_regular
from ...models.model import Model
from ...sources.tokenizer import tokenizer_files

LARGEST_BESIDE = 2**28
# What config.json says that is not so of the folder: its quantization, and code that is not copied.
DROPPED = ("quantization_config", "compression_config", "auto_map")


def model_config(source: dict[str, Any], model: Model, dtype: str) -> dict[str, Any]:
    """The source's config.json, of another dtype, in the words of transformers 4 and 5 alike.

    transformers 5 says rope_parameters and dtype, transformers 4 and runtimes that were built with it rope_theta,
    rope_scaling and torch_dtype; each takes a default where it does not find its own word.
    """
    config = {key: value for key, value in source.items() if key not in DROPPED}
    config |= {"dtype": dtype, "torch_dtype": dtype, "tie_word_embeddings": model.tied}
    return config | rope(source)


def rope(source: dict[str, Any]) -> dict[str, Any]:
    """The rotary embedding in both versions' words, where a config.json says it in one of them."""
    given = source.get("rope_parameters")
    if isinstance(given, dict) and ("rope_theta" in given or "rope_type" in given):
        scaling = {key: value for key, value in given.items() if key not in ("rope_theta", "partial_rotary_factor")}
        scaled = scaling.get("rope_type", "default") != "default"
        theta = {"rope_theta": given["rope_theta"]} if "rope_theta" in given and "rope_theta" not in source else {}
        return theta | ({"rope_scaling": scaling} if scaled and "rope_scaling" not in source else {})
    scaling = source.get("rope_scaling") or {}
    if given is None and "rope_theta" in source and isinstance(scaling, dict):
        kind = {"rope_type": scaling.get("type", "default")}
        return {"rope_parameters": kind | scaling | {"rope_theta": source["rope_theta"]}}
    return {}


def check_beside(folder: Path) -> None:
    """Raise InputError for a file beside the model that cannot be copied: no regular file, too large, or outside.

    Links of a hub's cache lead from snapshots to blobs of the same model.
    """
    root = folder.resolve()
    for path in tokenizer_files(folder):
        real = path.resolve()
        if not (real.is_relative_to(root) or real.parent == root.parent.parent / "blobs"):
            raise InputError(f"--model_dir: {path.name} is a link that leads out of the folder; put the file there")
        with open_regular(path) as file:
            if file.seek(0, 2) > LARGEST_BESIDE:
                raise InputError(f"--model_dir: {path.name} is larger than {LARGEST_BESIDE >> 20} MiB; what is it?")
