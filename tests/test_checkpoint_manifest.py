"""enginesmith.json read back: its form, the files that it names, the sliding window that it carries to the plan."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enginesmith.build.checkpoint_folder import CheckpointFolder
from enginesmith.convert.errors import InputError
from enginesmith.convert.files.disk import sha256
from enginesmith.convert.prove.proven import ProvenCheckpoint as Checkpoint
from enginesmith.convert.prove.verify import measure
from tests.checkpoint_folders import (
    MANIFEST,
    checkpoint_of,
    planned,
    refused,
    rewrite,
    state,
)

MANIFESTS: list[tuple[dict[str, Any], str]] = [
    *(({"packed_for_sm": value}, "packed_for_sm must be") for value in ("90", [80], 80.0, True, 1, {})),
    *(({"rotated": value}, "rotated must be true or false") for value in ("x", 1, [])),
    *(({"rotated": True, "options": {"seed": value}}, "options.seed must be") for value in (True, "1", -1, None)),
    *(({"sliding_window": value}, "sliding_window must be") for value in (True, "4096", 0, 2.5)),
    *(({"files": value}, "files must be") for value in (None, [], "x")),
    ({"files": {}}, "no SHA-256 of config.json"),
    ({"files": {"config.json": "0" * 64}}, "no SHA-256 of rank0.safetensors"),
    ({"files": {"../config.json": "0" * 64}}, "is no file of a checkpoint"),
    ({"files": {"rank\u0663.safetensors": "0" * 64}}, "is no file of a checkpoint"),
    ({"options": []}, "options must be an object"),
    ({"source": {"model.safetensors\x1b": 1}}, "is no SHA-256 of"),
]


@pytest.mark.parametrize(("said", "words"), MANIFESTS)
def test_manifests_of_a_wrong_form_are_refused(said: dict[str, Any], words: str, made: Path) -> None:
    rewrite(made / MANIFEST, lambda manifest: manifest.update(said))
    if said.get("options") == []:
        rewrite(made / MANIFEST, lambda manifest: manifest.update(rotated=True))
    refused(made, words)


def test_manifests_name_every_file_and_no_other(made: Path) -> None:
    def put(name: str, digest: Any) -> Callable[[dict[str, Any]], object]:
        return lambda manifest: manifest["files"].update({name: digest})

    good = sha256(made / "config.json")
    rewrite(made / MANIFEST, put("rank2.safetensors", good))
    refused(made, "files has rank2.safetensors")
    for digest in (good[1:], good.upper(), 7, None):
        rewrite(made / MANIFEST, lambda manifest: manifest["files"].pop("rank2.safetensors", None))
        rewrite(made / MANIFEST, put("config.json", digest))
        refused(made, "is no SHA-256 of 'config.json'")


@pytest.mark.parametrize("target", ["nowhere", MANIFEST])
def test_a_manifest_that_leads_nowhere_is_not_absent(target: str, made: Path) -> None:
    (made / MANIFEST).unlink()
    (made / MANIFEST).symlink_to(target)
    refused(made, MANIFEST)


def test_a_sliding_window_goes_from_the_model_to_the_plan(tmp_path: Path) -> None:
    model = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 24}
    folder = checkpoint_of(tmp_path, model)
    assert json.loads((folder / MANIFEST).read_text())["sliding_window"] == 24
    plan = planned(folder)
    assert plan.as_json()["checkpoint"]["sliding_window"] == 24
    assert plan.build_config["max_seq_len"] == 64
    assert any("sliding window of 24 tokens" in w and "max_attention_window_size 24" in w for w in plan.warnings)
    memory = plan.memory[0]
    assert memory.kv_per_sequence == 32 * memory.kv_per_token  # one block of 32 tokens instead of two
    within = planned(folder, max_seq_len=24)
    assert not any("sliding window" in warning for warning in within.warnings)
    with pytest.raises(InputError, match="24"):
        measure(Checkpoint(folder), tmp_path / "hf", str(tmp_path / "ids.safetensors"), 2, 25)
    rewrite(folder / MANIFEST, lambda manifest: manifest.pop("sliding_window"))
    assert planned(folder).as_json()["checkpoint"]["sliding_window"] is None


def test_a_sliding_window_may_be_the_runtimes_default(tmp_path: Path) -> None:
    folder = checkpoint_of(tmp_path)
    assert json.loads((folder / MANIFEST).read_text())["sliding_window"] is None
    (folder / MANIFEST).unlink()
    state(folder, "runtime_defaults", {"max_attention_window": [32, 32]})
    assert CheckpointFolder(folder).sliding_window == 32
    with pytest.raises(InputError, match="longer than the sliding window of 32 tokens"):
        measure(Checkpoint(folder), tmp_path / "hf", str(tmp_path / "ids.safetensors"), 2, 40)
    state(folder, "runtime_defaults", {"max_attention_window": [32, 64]})
    refused(folder, "max_attention_window")
