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
from enginesmith.cli import check, check_engine, compare, convert, evaluate, families, run, verify

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
        lambda: es.evaluate(tmp_path / "nothing", es.EvaluateOptions(("any",))),
        lambda: es.plan(tmp_path / "nothing"),
        lambda: es.plugins(tmp_path / "nothing"),
        lambda: es.check(tmp_path / "nothing"),
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
    assert check.judge is jobs.check
    assert check_engine.check is jobs.check_engine
    assert verify.check is jobs.verify
    assert evaluate.ask is jobs.evaluate
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


def flags_in(**flags: Any) -> Any:
    return lambda: es.BuildOptions(flags=flags)


WRONG: dict[str, tuple[Any, str]] = {
    "a folder that is none": (lambda: es.ConvertOptions(None, "out"), "--model_dir is None"),  # type: ignore[arg-type]
    "a folder that is a number": (lambda: es.ConvertOptions("model", 3), "--output_dir is 3"),  # type: ignore[arg-type]
    "a folder with too long a name": (lambda: es.ConvertOptions("x" * 5000, "out"), "--model_dir: x.* is longer than"),
    "a word of another option": (lambda: es.ConvertOptions("model", dtype="float8"), "--dtype is 'float8'; use one"),
    "a number as a text": (lambda: es.VerifyOptions(chunks="3"), "--chunks is '3'; a whole number"),  # type: ignore[arg-type]
    "a gate that is no number": (lambda: es.VerifyOptions(max_ppl_increase=float("nan")), "--max_ppl_increase is nan"),
    "a gate that is true": (lambda: es.VerifyOptions(max_ppl_increase=True), "--max_ppl_increase is True"),
    "a device that is none": (lambda: es.VerifyOptions(device=None), "--device is None"),  # type: ignore[arg-type]
    "tasks that are numbers": (lambda: es.EvaluateOptions([3]), "--tasks is \\[3\\]; a list of names"),  # type: ignore[arg-type]
    "no tasks": (lambda: es.evaluate("x", es.EvaluateOptions()), "--tasks names none"),
    "a gate beside nothing": (lambda: es.evaluate("x", es.EvaluateOptions(("a",), max_drop=1)), "--max_drop needs"),
    "a limit of none": (lambda: es.EvaluateOptions(("a",), limit=0), "--limit is 0; a finite number above 0"),
    "a batch": (lambda: es.EvaluateOptions(("a",), batch_size=0), "--batch_size is 0; a whole number from 1"),
    "a GPU that is a number": (lambda: es.BuildOptions(gpu=3), "--gpu is 3"),  # type: ignore[arg-type]
    "a preset": (lambda: es.BuildOptions(preset="fast"), "--preset is 'fast'; use one of: latency, throughput"),
    "a flag that is none": (flags_in(max_input_leng=3), "--max_input_leng is no flag; did you mean max_input_len"),
    "a flag that quantization sets": (flags_in(smooth_quant_gemm_plugin="auto"), "--smooth_quant_gemm_plugin: "),
    "a flag's number as a text": (flags_in(max_input_len="100"), "--max_input_len is '100'; a whole number"),
    "a flag's half": (flags_in(max_input_len=1.5), "--max_input_len is 1.5; a whole number"),
    "a flag's number that is too small": (flags_in(max_batch_size=-1), "--max_batch_size is -1; a whole number from 1"),
    "one flag under two names": (flags_in(max_seq_len=3, max_decoder_seq_len=3), "are one flag; give one"),
    "flags that are a list": (lambda: es.BuildOptions(flags=[]), "--flags is \\[\\]; trtllm-build's"),  # type: ignore[arg-type]
    "algorithms that are a text": (lambda: es.compare(es.ConvertOptions("m"), "W8A16"), "algorithms is 'W8A16'; a"),
    "algorithms that are numbers": (lambda: es.compare(es.ConvertOptions("m"), [3]), "algorithms is \\[3\\]"),  # type: ignore[list-item]
    "tokens of a comparison": (lambda: es.compare(es.ConvertOptions("m"), ["W8A16"], seq_len=1), "--seq_len is 1"),
    "no folder to write": (lambda: es.convert(es.ConvertOptions("model")), "--output_dir is empty; give the folder"),
    "no options": (lambda: es.convert(None), "options is None; ConvertOptions are needed"),
    "a checkpoint that is none": (lambda: es.plugins(None), "checkpoint_dir is None"),  # type: ignore[arg-type]
    "a reference that is a number": (lambda: es.verify("x", 3), "reference is 3"),  # type: ignore[arg-type]
    "a plan's checkpoint": (lambda: es.plan(3), "checkpoint_dir is 3"),  # type: ignore[arg-type]
    "a plan's options": (lambda: es.plan("x", {"gpu": "A100"}), "options is .*; BuildOptions are needed"),  # type: ignore[arg-type]
    "a folder to check": (lambda: es.check(None), "folder is None"),  # type: ignore[arg-type]
    "runtimes that are a text": (lambda: es.check("m", "vllm"), "runtimes is 'vllm'; a list of runtimes is needed"),
    "a runtime": (lambda: es.check("m", ["colour"]), "runtime 'colour' is not known; use one of: edge, vllm"),
    "an engine": (lambda: es.check_engine(None), "engine_dir is None"),  # type: ignore[arg-type]
    "a repository": (lambda: es.check_repository(3), "folder is 3"),  # type: ignore[arg-type]
    "a recipe": (lambda: es.run(None), "recipe is None"),  # type: ignore[arg-type]
    "a tokenizer": (lambda: es.TritonOptions("e", 3, "o"), "--tokenizer_dir is 3"),  # type: ignore[arg-type]
}  # fmt: skip


@pytest.mark.parametrize(("call", "said"), WRONG.values(), ids=WRONG)
def test_whatever_a_function_cannot_use_is_one_error(call: Any, said: str) -> None:
    with pytest.raises(es.InputError, match=said):
        call()


def test_words_are_brought_into_their_own_spelling(tmp_path: Path) -> None:
    """As on the command line: what is written is TensorRT-LLM's name, whatever was typed."""
    given = es.ConvertOptions(
        tmp_path, tmp_path / "out", quant="fp8", kv_cache="int8", dtype="FLOAT16", alpha="auto", exclude=["*.down_proj"]
    )  # type: ignore[arg-type]
    same = es.ConvertOptions(
        str(tmp_path), f"{tmp_path}/out", quant="FP8", kv_cache="INT8", dtype="float16", exclude=("*.down_proj",)
    )
    assert given == same
    assert es.ConvertOptions("m", quant="none", kv_cache="none") == es.ConvertOptions("m")
    flags = {
        "max-input-len": 3,
        "use_paged_context_fmha": "ENABLE",
        "gemm_plugin": "disable",
        "multiple_profiles": True,
    }
    options = es.BuildOptions(preset="LATENCY", flags=flags)
    assert options.preset == "latency"
    assert options.flags == {
        "max_input_len": 3, "use_paged_context_fmha": True, "gemm_plugin": None, "multiple_profiles": True,
    }  # fmt: skip
    assert replace(options, gpu="A100").flags == options.flags
