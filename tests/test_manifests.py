"""Every parameter that TensorRT-LLM 0.16's classes declare, per algorithm, cache and rank: none missing, none extra."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from enginesmith.convert.errors import InputError
from enginesmith.convert.files.reader import Reader
from enginesmith.convert.models.dimensions import family_of, read_model
from enginesmith.convert.models.family import Family
from enginesmith.convert.models.model import Model
from enginesmith.convert.quantize.precision import Precision
from enginesmith.convert.targets.trtllm import honoured
from enginesmith.convert.targets.trtllm.config import checkpoint_config
from enginesmith.convert.targets.trtllm.formats import SCHEMES, scheme_of
from enginesmith.convert.targets.trtllm.formats.base import Engine
from enginesmith.convert.targets.trtllm.honoured import left_out
from enginesmith.convert.targets.trtllm.layout import embedding_axis, rank_tensors
from enginesmith.convert.targets.trtllm.ranks import Mapping

from .conftest import DATA

MANIFESTS = sorted(path for path in DATA.glob("*.json"))


def family_of_manifest(manifest: dict[str, Any]) -> Family:
    return family_of(manifest["architecture"], Reader(described(manifest)))


def described(manifest: dict[str, Any]) -> dict[str, Any]:
    """The model's config.json, with what upstream had to be told beside it."""
    config: dict[str, Any] = manifest["hf_config"]
    return config | manifest.get("from_hugging_face_arguments", {})


def cases() -> list[Any]:
    """What upstream accepts, and this project too."""
    found = []
    for path in MANIFESTS:
        manifest = json.loads(path.read_text())
        family = family_of_manifest(manifest)
        for case in manifest["cases"]:
            staged = manifest["mappings"][case["map"]]["pp"] > 1 and not family.pipelined
            known = case["algo"] == "none" or (case["algo"] in SCHEMES and case["algo"] not in left_out(family))
            if family.mixture is not None and case["algo"] == "W4A16_AWQ":
                continue  # 0.16 declares experts that its own loader cannot read; later releases have them in groups
            cached = case["kv"] != "none" and family.task is not None
            if known and not staged and not cached and "error" not in case:
                found.append(pytest.param(manifest, case, id=f"{path.stem}-{case['algo']}-{case['kv']}-{case['map']}"))
    return found


def model_of(manifest: dict[str, Any], layers: int) -> Model:
    """The manifest's model, with another depth."""
    return read_model(described(manifest) | {family_of_manifest(manifest).key("num_hidden_layers"): layers})


def declared(manifest: dict[str, Any], case: dict[str, Any]) -> dict[str, tuple[list[int], str]]:
    """What the class declares, buffers left out; scale_to_int is float32 in every file."""
    table = manifest["param_tables"][case["params"]]
    entries, prefix = dict(table["top"]), manifest.get("layer_prefix", "transformer.layers.")
    for i, layer in enumerate(table.get("per_layer") or [table["layer"]] * table["layers"]):
        entries |= {f"{prefix}{i}.{suffix}": entry for suffix, entry in layer.items()}
    held = {
        name: (entry[0], "float32" if name.endswith("scale_to_int") else entry[1])
        for name, entry in entries.items()
        if len(entry) == 2
    }
    return as_stored(held) if case["algo"] in ("W4A16_AWQ", "W4A8_AWQ") else held


def as_stored(held: dict[str, tuple[list[int], str]]) -> dict[str, tuple[list[int], str]]:
    """What the file of an AWQ checkpoint holds: the loader packs weights, turns scales, and makes alpha of W4A8's two
    factors."""
    stored = {}
    for name, (shape, dtype) in held.items():
        if name.endswith(".alpha"):
            for factor in ("activation_scaling_factor", "weights_scaling_factor_2"):
                stored[name.removesuffix("alpha") + factor] = ([1], "float32")
        elif name.removesuffix(".weight") + ".prequant_scaling_factor" in held:
            stored[name] = ([shape[1] * 2, shape[0]], "int8")
        elif name.endswith(".weights_scaling_factor"):
            stored[name] = (shape[::-1], dtype)
        else:
            stored[name] = (shape, dtype)
    return stored


@pytest.mark.parametrize(("manifest", "case"), cases())
def test_rank_tensors(manifest: dict[str, Any], case: dict[str, Any]) -> None:
    place = manifest["mappings"][case["map"]]
    model = model_of(manifest, place["layers"])
    algo, cache = (None if value == "none" else value for value in (case["algo"], case["kv"]))
    precision = Precision(model, scheme_of(algo), kv_cache=cache)
    mapping = Mapping(place["tp"], place["pp"])
    mapping.check(model)
    axis = embedding_axis(model, mapping)
    assert rank_tensors(precision, mapping, place["rank"], Engine("float16"), axis) == declared(manifest, case)


@pytest.mark.parametrize(("manifest", "case"), cases())
def test_config(manifest: dict[str, Any], case: dict[str, Any]) -> None:
    patch = manifest["config_patches"][case["config"]]
    theirs = {**manifest["config_base"], **patch["set"]}
    for key in patch.get("removed", []):
        theirs.pop(key, None)
    place = manifest["mappings"][case["map"]]
    model = model_of(manifest, theirs["num_hidden_layers"])
    algo, cache = (None if value == "none" else value for value in (case["algo"], case["kv"]))
    precision = Precision(model, scheme_of(algo), kv_cache=cache)
    assert checkpoint_config(precision, Mapping(place["tp"], place["pp"]), "float16", 0.5) == theirs


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_what_upstream_does_not_build_is_refused(path: Path) -> None:
    """Stages of a class that has one, algorithms of a class that has not."""
    manifest = json.loads(path.read_text())
    model, family = model_of(manifest, 4), family_of_manifest(manifest)
    errors = {(case["algo"], manifest["mappings"][case["map"]]["pp"]) for case in manifest["cases"] if "error" in case}
    single = model.shares_embedding or not family.pipelined
    assert all(algo in left_out(family) or (pp > 1 and single) for algo, pp in errors)
    for algo in left_out(family):
        with pytest.raises(InputError, match=f"{algo}: not for {model.architecture}: "):
            honoured.check(Precision(model, scheme_of(algo)))
    if single:
        with pytest.raises(InputError, match=r"--pp_size 2: engines of \w+ have one stage"):
            Mapping(1, 2).check(model)
