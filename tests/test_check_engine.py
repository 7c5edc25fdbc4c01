"""check-engine on another GPU model of the generation that an engine was built on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from enginesmith.build.check_engine import Machine, reasons_against, warnings_about
from enginesmith.build.engine_folder import EngineFolder
from enginesmith.build.gpus import GPU, KNOWN, same_model
from enginesmith.build.releases import find
from enginesmith.convert.files.disk import sha256

from .command import run
from .triton_folders import write_engine


def built_on(folder: Path, gpu: Any, sm: int = 80) -> Path:
    engine = write_engine(folder / "engine", "1.2.1")
    ranks = [{"rank": 0, "sha256": sha256(engine / "rank0.engine")}]
    machine = {"gpu": gpu, "sm": sm, "tensorrt": find("1.2.1").tensorrt}
    manifest = {"machine": machine, "ranks": ranks, "config": sha256(engine / "config.json"), "plan": {}}
    (engine / "enginesmith.json").write_text(json.dumps(manifest))
    return engine


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("A100-SXM4-80GB", "A100-SXM4-80GB", True),
        ("A100-SXM4-80GB", "A100-80GB", True),
        ("A100-SXM4-80GB", "A100-40GB", False),
        ("A100-SXM4-80GB", "A100-PCIE-80GB", False),
        ("H100 80GB HBM3", "H100", True),
        ("H100 80GB HBM3", "H200", False),
        ("H100 NVL", "H100", False),
        ("GeForce RTX 4090", "RTX-4090", True),
        ("L40", "L40S", False),
        ("A10", "A10G", False),
    ],
)
def test_names_of_one_model(one: str, other: str, same: bool) -> None:
    assert same_model(one, other) is same_model(other, one) is same


def test_another_model_of_the_generation_is_worth_a_warning(tmp_path: Path) -> None:
    engine = EngineFolder(built_on(tmp_path, "A100-SXM4-80GB"))
    here = Machine("1.2.1", "10.14.1.48", [GPU("A30", 80, 24 * 2**30)])
    assert warnings_about(engine, here) == [
        "GPU 0 is A30, the engine was built and tuned on 'A100-SXM4-80GB'; it runs, perhaps slower"
    ]
    assert not any("A30" in reason for reason in reasons_against(engine, here))
    for gpus in ([KNOWN["A100-80GB"]], [GPU("A100-SXM4-80GB", 80, 0)], [KNOWN["H100"]], []):
        assert warnings_about(engine, Machine(None, None, gpus)) == []


@pytest.mark.parametrize("gpu", [None, 5, [], {"a": 1}])
def test_a_manifest_without_a_model(gpu: Any, tmp_path: Path) -> None:
    engine = EngineFolder(built_on(tmp_path, gpu))
    assert warnings_about(engine, Machine(None, None, [KNOWN["A30"]])) == []


def test_the_command_says_it(tmp_path: Path) -> None:
    engine = built_on(tmp_path, "A100-SXM4-80GB")
    words = ["check-engine", engine, "--gpu", "A30", "--release", "1.2.1"]
    verdict = json.loads(run(*words, "--json").stdout)
    assert (verdict["ok"], verdict["reasons"], len(verdict["warnings"])) == (True, [], 1)
    told = run(*words)
    assert told.stdout.startswith("yes: ")
    assert told.stderr.startswith("note: GPU 0 is A30, ")


def test_a_manifest_that_is_a_loop_is_not_absent(tmp_path: Path) -> None:
    engine = built_on(tmp_path, "A100-SXM4-80GB")
    (engine / "enginesmith.json").unlink()
    (engine / "enginesmith.json").symlink_to("enginesmith.json")
    assert "enginesmith.json" in run("check-engine", engine, "--gpu", "A30", expect=2).stderr


@pytest.mark.parametrize("bytes_", [10**400, -1, "5"])
def test_memory_that_no_gpu_has(bytes_: Any, tmp_path: Path) -> None:
    engine = built_on(tmp_path, "A100-SXM4-80GB")
    manifest = json.loads((engine / "enginesmith.json").read_text())
    manifest["plan"] = {"memory": [{"activations": bytes_, "reserve": 7}]}
    (engine / "enginesmith.json").write_text(json.dumps(manifest))
    told = run("check-engine", engine, "--gpu", "A30", "--release", "1.2.1", expect=2).stderr
    assert "plan.memory[0].activations must be an integer" in told


def test_a_gpu_that_is_too_small(tmp_path: Path) -> None:
    engine = built_on(tmp_path, "A100-SXM4-80GB")
    manifest = json.loads((engine / "enginesmith.json").read_text())
    manifest["plan"] = {"memory": [{"activations": 30 * 2**30, "reserve": 0}]}
    (engine / "enginesmith.json").write_text(json.dumps(manifest))
    told = run("check-engine", engine, "--gpu", "A30", "--release", "1.2.1", expect=1)
    assert "rank 0 takes 30.00 GiB, GPU 0 (A30) has 24.00 GiB" in told.stdout + told.stderr


def test_a_rank_under_another_spelling_is_none(tmp_path: Path) -> None:
    engine = built_on(tmp_path, "A100-SXM4-80GB")
    (engine / "rank0.engine").rename(engine / "rank00.engine")
    assert "rank0.engine is missing" in run("check-engine", engine, expect=2).stderr
