"""The library's face: what a release pipeline calls, and that the commands call it too."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import enginesmith as es
from enginesmith import jobs
from enginesmith.cli import check_engine, compare, convert, families, run, verify

Tiny = Callable[..., Path]
SQ = "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN"


@pytest.fixture
def options(tiny: Tiny, tmp_path: Path) -> Any:
    calib = str(tmp_path / "ids.safetensors")
    return es.ConvertOptions(str(tiny()), str(tmp_path / "ck"), quant=SQ, calib=calib, calib_size=4, calib_seq_len=16)


def test_a_release(options: Any, tmp_path: Path) -> None:
    seen = []
    done = es.convert(options, lambda layer, phase, tokens: seen.append(phase))
    assert {"calibrate", "quantize", "write"} <= set(seen)
    how = es.VerifyOptions(text=options.calib, chunks=4, seq_len=16, max_ppl_increase=50.0)
    verdict = es.verify(done.folder, reference=options.model_dir, options=how)
    assert verdict.ok
    assert verdict.accuracy is not None
    assert verdict.accuracy.kl < 0.1
    (nodes,) = es.plugins(done.folder).values()
    assert {"SmoothQuantGemm", "RmsnormQuantization"} <= {node.plugin.name for node in nodes}
    plan = es.plan(done.folder, es.BuildOptions(gpu="A100", flags={"max_input_len": 32, "max_seq_len": 64}))
    assert plan.build_config["max_seq_len"] == 64
    assert (es.write_plan(plan, tmp_path / "plan") / "build.sh").exists()
    with pytest.raises(es.InputError, match="exists"):
        es.write_plan(plan, tmp_path / "plan")


def test_a_verdict_is_no_exception(options: Any, tmp_path: Path) -> None:
    done = es.convert(options)
    (tmp_path / "ck" / "rank7.safetensors").write_bytes(b"")
    verdict = es.verify(done.folder, reference=options.model_dir)
    assert not verdict.ok
    assert verdict.accuracy is None
    assert verdict.failures == verdict.problems == ["rank7.safetensors: config.json's mapping has only 1 ranks"]


def test_a_gate(options: Any) -> None:
    done = es.convert(options)
    how = es.VerifyOptions(text=options.calib, chunks=4, seq_len=16, max_ppl_increase=-99.0)
    verdict = es.verify(done.folder, reference=options.model_dir, options=how)
    assert verdict.problems == []
    assert not verdict.ok


def test_comparing(options: Any) -> None:
    comparison = es.compare(options, [SQ, "none"], options.calib, 4, 16)
    assert [result.name for result in comparison.results] == [SQ, "none"]


def test_bad_input_is_one_error(options: Any, tmp_path: Path) -> None:
    for act in (
        lambda: es.convert(replace(options, quant="W9")),
        lambda: es.verify(tmp_path / "nothing"),
        lambda: es.plan(tmp_path / "nothing"),
        lambda: es.plugins(tmp_path / "nothing"),
        lambda: es.check_engine(tmp_path / "nothing"),
        lambda: es.check_repository(tmp_path / "nothing"),
        lambda: es.run(tmp_path / "nothing.yaml"),
        lambda: es.compare(options, ["W9"]),
    ):
        with pytest.raises(es.InputError) as error:
            act()
        assert str(error.value).isprintable()


def test_what_plans_loads_no_pytorch() -> None:
    used = "es.families(); es.BuildOptions(); es.ConvertOptions('model', 'checkpoint')"
    code = f"import sys, enginesmith as es; {used}; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_packages_are_called_as_the_jobs_of_their_name() -> None:
    import enginesmith.convert.files.reader as reader

    assert es.convert.files.reader is reader  # type: ignore[attr-defined]
    for name in ("build", "convert", "plugins"):
        assert callable(getattr(es, name))
        assert getattr(es, name).__name__ == f"enginesmith.{name}"
    assert set(es.__all__) <= set(dir(es))
    with pytest.raises(AttributeError, match="colour"):
        es.colour  # noqa: B018


def test_commands_call_the_library(tmp_path: Path) -> None:
    assert check_engine.check is jobs.check_engine
    assert verify.check is jobs.verify
    assert convert.run is jobs.convert
    assert compare.run is jobs.compare
    assert run.run_recipe is jobs.run
    assert families.known is jobs.families


def test_the_page_of_the_documentation_runs(options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parent.parent / "docs" / "library.md").read_text()
    code = page.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hf").rename(tmp_path / "model")
    (tmp_path / "release").mkdir()
    small = {"calib": options.calib, "calib_size": 4, "calib_seq_len": 16}
    monkeypatch.setattr(
        es,
        "ConvertOptions",
        lambda *words, **given: replace(
            options, **dict(zip(("model_dir", "output_dir"), words, strict=True)), **given | small
        ),
    )
    how = es.VerifyOptions(text=options.calib, chunks=4, seq_len=16)
    monkeypatch.setattr(es, "VerifyOptions", lambda **given: replace(how, **given))
    exec(
        compile(code.replace('max_seq_len": 2048', 'max_seq_len": 64').replace("1024", "32"), "library.md", "exec"), {}
    )
    numbers = json.loads((tmp_path / "release" / "numbers.json").read_text())
    assert numbers["kl"] < 0.1
    assert (tmp_path / "release" / "plan" / "build.sh").exists()
