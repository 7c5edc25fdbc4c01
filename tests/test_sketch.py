"""What a run knows of a checkpoint and an engine before it makes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from enginesmith.build import checkpoint_folder, sketch
from enginesmith.build.build_options import BuildOptions, plan_of
from enginesmith.build.checkpoint_folder import CheckpointFolder
from enginesmith.build.engine_folder import EngineFolder
from enginesmith.convert.errors import InputError
from enginesmith.convert.files.shard import Shard
from enginesmith.convert.job.checked import Checked
from enginesmith.convert.job.conversion import Job, convert
from enginesmith.convert.job.options import ConvertOptions

Tiny = Callable[..., Path]


@pytest.mark.parametrize(
    "chosen",
    [
        {"quant": None, "tp_size": 2},
        {"quant": "W8A16", "exclude": ("*.mlp",), "sm": 90},
        {"quant": "FP8", "quant_layer": ("*.1.mlp=W8A8_SQ_PER_CHANNEL",), "kv_cache": "FP8"},
    ],
)
def test_a_sketch_is_planned_as_the_checkpoint_is(
    chosen: dict[str, Any], tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen |= {"calib": str(tmp_path / "ids.safetensors"), "calib_size": 8, "calib_seq_len": 24}
    options = ConvertOptions(str(tiny()), str(tmp_path / "out"), **chosen)
    real = convert(options).folder
    build = BuildOptions(gpu="H100", release="1.2.1", flags={"max_input_len": 32})
    planned = plan_of(CheckpointFolder(real), build)

    def not_of_weights(path: Path) -> str:
        assert path.suffix != ".safetensors", "holes are not worth reading"
        return whole(path)

    whole = checkpoint_folder.sha256
    monkeypatch.setattr(checkpoint_folder, "sha256", not_of_weights)
    other = replace(options, output_dir=str(tmp_path / "other"))
    job = Job(other, [Checked(other)])
    with sketch.sketched(tmp_path / "other", lambda folder: sketch.checkpoint(job, folder)) as drawn:
        for path in real.glob("rank*.safetensors"):
            assert Shard(path).forms() == Shard(drawn / path.name).forms()
            assert (drawn / path.name).stat().st_size == path.stat().st_size
            assert (drawn / path.name).stat().st_blocks * 512 <= 2**17
        assert (real / "config.json").read_bytes() == (drawn / "config.json").read_bytes()
        plan = plan_of(CheckpointFolder(drawn), build)
        assert plan.build_config == planned.build_config
        assert plan.memory == planned.memory
        assert plan.warnings == planned.warnings
        with sketch.sketched(tmp_path / "engine", lambda folder: sketch.engine(plan, folder)) as engine:
            found = EngineFolder(engine)
            assert found.max_input_len == 32
            assert found.plan().values["build_config"] == json.loads(json.dumps(plan.build_config))
    assert not drawn.exists()
    assert not (tmp_path / "other").exists()


def test_refusals_speak_of_what_will_be_made(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=f"^{tmp_path}/made: cannot be"),
        sketch.sketched(tmp_path / "made", lambda folder: None) as folder,
    ):
        raise InputError(f"{folder}: cannot be")
