"""Which runtimes read a folder right: every kind of folder, every trap, and files that nobody should trust."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import enginesmith as es
from enginesmith.convert.readers.check import RUNTIMES, Reading

from .command import run
from .conftest import DATA
from .reader_folders import Sketch, awq, compressed, engines, gptq, modelopt, plain
from .reader_traps import TRAPS, Change, Make

WORDS = {"r": "reads", "x": "refuses", "M": "misreads", "?": "unknown"}
# In the order of RUNTIMES: Edge-LLM, vLLM, SGLang, TensorRT-LLM, transformers.
KINDS: dict[str, tuple[Make, str]] = {
    "floating point": (plain, "rrrrr"),
    "INT8, dynamic": (lambda: compressed("int8"), "MrrMr"),
    "INT8, static": (lambda: compressed("int8_static"), "Mrxxr"),
    "INT8, asymmetric activations": (lambda: compressed("int8_asym"), "MrMMr"),
    "W4A16": (lambda: compressed("w4"), "Mrrxr"),
    "W4A16, asymmetric": (lambda: compressed("w4_asym"), "Mrrxr"),
    "W8A16": (lambda: compressed("w8"), "Mrrxr"),
    "FP8, dynamic": (lambda: compressed("fp8"), "Mrrrr"),
    "FP8, static": (lambda: compressed("fp8_static"), "Mrrxr"),
    "ModelOpt FP8": (lambda: modelopt("FP8"), "rrrrM"),
    "ModelOpt FP8 by channel and token": (lambda: modelopt("FP8_PER_CHANNEL_PER_TOKEN"), "MrxrM"),
    "ModelOpt W4A16_AWQ": (lambda: modelopt("W4A16_AWQ"), "rxxrx"),
    "ModelOpt W4A16_AWQ, groups of 64": (lambda: modelopt("W4A16_AWQ", 64), "rxxrx"),
    "ModelOpt W8A16": (lambda: modelopt("W8A16"), "MxxrM"),
    "ModelOpt SmoothQuant": (lambda: modelopt("W8A8_SQ_PER_CHANNEL"), "rxxxM"),
    "ModelOpt NVFP4": (lambda: modelopt("NVFP4"), "????M"),
    "GPTQ": (gptq, "rrrx?"),
    "AWQ, symmetric": (awq, "rr?x?"),
    "AWQ": (lambda: awq(b"\x35" * 4), "Mr?x?"),
    "TensorRT-LLM checkpoint": (engines, "xxxxx"),
}  # fmt: skip


def readings(made: Sketch, folder: Path) -> dict[str, Reading]:
    return {one.runtime: one for one in es.check(made.write(folder / "model")).readings}


@pytest.mark.parametrize(("make", "expected"), KINDS.values(), ids=KINDS)
def test_every_kind_of_folder(make: Make, expected: str, tmp_path: Path) -> None:
    found = readings(make(), tmp_path)
    assert [found[name].verdict for name in RUNTIMES] == [WORDS[letter] for letter in expected]
    assert all(bool(one.reasons) == (one.verdict != "reads") for one in found.values())


GOLDEN: dict[str, Any] = json.loads((DATA / "readers" / "golden.json").read_text())
# What llm-compressor and ModelOpt wrote, as far as it was run in these readers.
WRITTEN = {
    "base": "rrrrr",
    "compressed/fp8_dynamic": "Mrrrr",
    "compressed/fp8_static": "Mrrxr",
    "compressed/fp8_static_kv": "Mrrxr",
    "compressed/w4a16_g128_asym": "Mrrxr",
    "compressed/w4a16_g128_sym": "Mrrxr",
    "compressed/w4a16_g64_asym": "Mrrxr",
    "compressed/w8a16_channel": "Mrrxr",
    "compressed/w8a8_dynamic_asym": "MrMMr",
    "compressed/w8a8_dynamic_smoothquant": "MrrMr",
    "compressed/w8a8_static": "Mrxxr",
    "modelopt/fp8": "rrrrM",
    "modelopt/fp8_kv": "rrrrM",
    "modelopt/fp8_pc_pt": "MrxrM",
    "modelopt/int4_awq_g128": "rxxrx",
    "modelopt/int8_sq": "rxxxM",
    "modelopt/int8_wo": "MxxrM",
    "gptq_sym_g128": "rrrx?",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_folders_that_the_readers_were_given(name: str, tmp_path: Path) -> None:
    golden = GOLDEN[name]
    made = Sketch(golden["config"], beside=golden.get("hf_quant_config"))
    for tensor, (dtype, shape) in golden["tensors"].items():
        made.put(tensor, dtype, *shape, element=b"\x77" * 4 if tensor.endswith("qzeros") else None)
    assert [one.verdict for one in readings(made, tmp_path).values()] == [WORDS[letter] for letter in WRITTEN[name]]


TOOLS = {
    "autoawq-g128": "Mr?x?",
    "autogptq-w4-symmetric-g64": "xrrx?",
    "autogptq-w4-asymmetric-g64-act-order": "xx?x?",
    "gptqmodel-w4-asymmetric-g64-v2": "Mx?x?",
    "gptqmodel-w8-symmetric-row": "xr?x?",
    "llmcompressor-w4-symmetric-g64": "Mrrxr",
    "llmcompressor-0.8-w4-symmetric-g64-act-order": "Mxxxx",
}


@pytest.mark.parametrize("name", TOOLS)
def test_what_tools_wrote(name: str) -> None:
    """They have no chat template, which Edge-LLM needs."""
    found = es.check(DATA / "readymade" / name).readings
    assert [one.verdict for one in found] == [WORDS[letter] for letter in TOOLS[name]]


@pytest.mark.parametrize(("make", "change", "runtime", "verdict", "words"), TRAPS.values(), ids=TRAPS)
def test_every_trap(make: Make, change: Change, runtime: str, verdict: str, words: str, tmp_path: Path) -> None:
    made = make()
    change(made)
    found = readings(made, tmp_path)[runtime]
    assert found.verdict == verdict, found
    assert words in "\n".join(found.reasons + found.notes)


@pytest.mark.parametrize(
    ("made", "what"),
    [
        (plain(), "floating point"),
        (compressed("int8_asym"), "compressed-tensors, int-quantized: INT8 weights by channel, dynamic asymmetric act"),
        (compressed("fp8_static"), "compressed-tensors, float-quantized: FP8 weights by tensor, static activations"),
        (compressed("w4"), "compressed-tensors, pack-quantized: INT4 weights by group, no activations"),
        (modelopt("FP8"), "ModelOpt, FP8"),
        (gptq(), "gptq, 4 bits, groups of 128, symmetric"),
        (awq(), "awq, 4 bits, groups of 128, asymmetric"),
        (engines(), "TensorRT-LLM checkpoint"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_what_it_is(made: Sketch, what: str, tmp_path: Path) -> None:
    assert es.check(made.write(tmp_path / "model")).what.startswith(what)


def test_templates_that_the_exporter_finds(tmp_path: Path) -> None:
    made = modelopt("FP8")
    made.template = False
    folder = made.write(tmp_path / "model")
    for template, verdict in (
        ("{{ messages }}", "reads"),
        ([{"name": "default", "template": ""}], "reads"),
        ([{"name": "tools", "template": ""}], "refuses"),
        ([3], "refuses"),
    ):
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
        assert es.check(folder, ["edge"]).readings[0].verdict == verdict


def test_shards_are_one_folder(tmp_path: Path) -> None:
    folder = modelopt("FP8").write(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert es.check(folder, ["edge"]).ok


def test_the_exit_code_is_the_verdict(tmp_path: Path) -> None:
    folder = compressed("int8").write(tmp_path / "model")
    told = run("check", folder).stdout
    assert "vLLM 0.33            reads" in told
    assert "TensorRT-LLM 1.3 misreads it:\n  config.json" in told
    run("check", folder, "--for", "vllm", "--for", "sglang")
    run("check", folder, "--for", "vllm", "--for", "edge", expect=1)
    run("check", gptq().write(tmp_path / "other"), "--for", "transformers", expect=1)
    run("check", engines().write(tmp_path / "engines"), expect=1)
    assert "sglang" in run("check", folder, "--for", "colour", expect=2).stderr


def test_json_is_one_object(tmp_path: Path) -> None:
    told = json.loads(run("check", compressed("int8").write(tmp_path / "model"), "--json", "--for", "vllm").stdout)
    (reading,) = told["readings"]
    assert told["ok"] is True
    assert {"runtime": "vllm", "title": "vLLM 0.33", "verdict": "reads", "reasons": []}.items() <= reading.items()
