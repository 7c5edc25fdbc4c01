"""Which files of a Hugging Face folder are the model's weights: those that transformers would load."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import InputError, printable, shown
from ..files.disk import is_there, read_json, shown_path

ADAPTER = "adapter_config.json"
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
# Files that hold something else, or the same in a form with other names.
OTHERS = re.compile(r"(adapter_|consolidated|optimizer|training_|rng_)")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


def weight_files(folder: Path, config: dict[str, Any], note: Callable[[str], None] = lambda text: None) -> list[Path]:
    """The safetensors files of a folder, as transformers chooses them: the one that config.json names, the whole file,
    those of the index; then what can be meant in one way only.

    Args:
        note: told what is done that the folder does not say.

    Raises:
        InputError: there are none, or it is not clear which; the line names the state in which the folder is.
    """
    stated = config.get("transformers_weights")
    if stated is not None:
        name = inside(folder, stated, "config.json: transformers_weights")
        return of_index(folder, name) if name.endswith(".index.json") else [folder / name]
    if is_there(folder / WHOLE):
        if is_there(folder / INDEX):
            note(f"{WHOLE} is read, as transformers does, whatever {INDEX} names")
        return [folder / WHOLE]
    if is_there(folder / INDEX):
        return of_index(folder, INDEX)
    return without_index(folder, note)


def refuse_adapter(folder: Path) -> None:
    """Raise InputError for a LoRA adapter beside the weights, which transformers would load with them."""
    if is_there(folder / ADAPTER) and any(folder.glob("adapter_model.*")):
        raise InputError(
            f"{shown_path(folder)}: holds a LoRA adapter beside the model, which transformers loads too; merge it "
            f"(peft: merge_and_unload) and save the model again, or take {ADAPTER} away"
        )


def of_index(folder: Path, index: str) -> list[Path]:
    """The shards that an index names."""
    weight_map = read_json(folder / index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: no weight_map in it")
    if not all(isinstance(name, str) for name in weight_map.values()):
        raise InputError(f"{index}: weight_map names shards that are no text")
    return [folder / inside(folder, name, index, "shard ") for name in sorted(set(weight_map.values()))]


def inside(folder: Path, name: Any, who: str, what: str = "") -> str:
    """A file name that some file gives, being a file of the folder."""
    if not isinstance(name, str) or name != Path(name).name or name in ("", ".", ".."):
        raise InputError(f"{who}: {shown(name)} points outside the folder")
    if not is_there(folder / name):
        plain = name if name.isprintable() and name == name.strip() else shown(name)
        raise InputError(f"{who}: {what}{printable(plain, 80)} is missing from {shown_path(folder)}")
    return name


def without_index(folder: Path, note: Callable[[str], None]) -> list[Path]:
    """The one complete set of shards, or the one file, that a folder without an index can mean."""
    files = sorted(path for path in folder.glob("*.safetensors") if not OTHERS.match(path.name))
    sets = defaultdict[tuple[str, int], dict[int, Path]](dict)
    for path in files:
        numbered = SHARD.fullmatch(path.name)
        if numbered:
            sets[numbered["stem"], int(numbered["count"])][int(numbered["number"])] = path
    complete = [list(found.values()) for (_, count), found in sets.items() if sorted(found) == [*range(1, count + 1)]]
    single = [path for path in files if not SHARD.fullmatch(path.name)]
    if len(complete) == 1 and not single:
        note(f"{INDEX} is not there; all {len(complete[0])} shards are read")
        return complete[0]
    if len(single) == 1 and not complete:
        note(f"{printable(single[0].name, 80)} is read: it is the folder's only file of weights")
        return single
    if len(single) + len(complete) > 1:
        names = ", ".join(printable(path.name, 40) for path in files[:3])
        raise InputError(
            f"{shown_path(folder)}: neither {WHOLE} nor {INDEX}, and several files could be meant ({names}); keep one"
        )
    for (stem, count), found in sets.items():
        gone = [number for number in range(1, min(count, 10_000) + 1) if number not in found]
        first = printable(f"{stem}-{gone[0] if gone else 0:05d}-of-{count:05d}.safetensors", 80)
        more = f" and {len(gone) - 1} more shards" if len(gone) > 1 else ""
        raise InputError(f"{shown_path(folder)}: {first}{more} missing, and no {INDEX}; download the model again")
    raise InputError(f"{shown_path(folder)}: {state_of(folder)}")


def state_of(folder: Path) -> str:
    """What a folder without weights to read is, and what to do."""

    def has(*patterns: str) -> bool:
        return any(True for pattern in patterns for _ in folder.glob(pattern))

    if has("adapter_config.json", "adapter_model.*"):
        return (
            "holds a LoRA adapter, not a model; merge it into its base model (peft: merge_and_unload) and save that "
            "with save_pretrained"
        )
    if has("*.gguf"):
        return "holds GGUF files, which are not read; give the Hugging Face folder that they were made from"
    if has("consolidated*.safetensors", "consolidated*.pth", "params.json"):
        return (
            "holds the model in its authors' own format (consolidated.*), not Hugging Face's; download the "
            "model.safetensors files, or convert it with transformers' script for the family"
        )
    if has(*PICKLES):
        return (
            "only pickled weights found, which are not read; save the model again with "
            "save_pretrained(..., safe_serialization=True)"
        )
    if has("models--*", "snapshots"):
        return "looks like a download cache; give the folder inside its snapshots that holds config.json"
    return f"no {WHOLE} or {INDEX}"
