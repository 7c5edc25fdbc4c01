"""The command as a user types it: spellings, output, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from enginesmith.convert.quantize.scheme import CHANNEL
from enginesmith.convert.targets.trtllm.formats import SCHEMES, kind_of
from enginesmith.convert.targets.trtllm.formats.smoothquant import SmoothQuant, algorithm
from tests.command import run

Tiny = Callable[..., Path]


@pytest.fixture
def inputs(tiny: Tiny, tmp_path: Path) -> list[object]:
    """--model_dir and calibration flags for a tiny model."""
    ids = tmp_path / "ids.safetensors"
    return ["--model_dir", tiny(), "--calib", ids, "--calib_size", 8, "--calib_seq_len", 24]


def test_convert_then_verify(inputs: list[object], tmp_path: Path) -> None:
    out, model = tmp_path / "out", inputs[1]
    quant = "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN"
    done = run("convert", *inputs, "--output_dir", out, "--quant", quant, "--tp_size", 2, "--kv_cache", "INT8")
    assert f"{quant}, INT8 KV cache, 2 ranks" in done.stdout
    assert "every tensor as config.json implies" in run("verify", out).stdout
    measure = ["verify", out, "--reference", model, "--text", tmp_path / "ids.safetensors", "--seq_len", 24]
    shown = run(*measure, "--chunks", 4).stdout
    assert "perplexity" in shown
    assert "top-1 agreement" in shown
    verdict = json.loads(run(*measure, "--json").stdout)
    assert verdict["ok"] is True
    assert verdict["structure"] == {"ok": True, "problems": []}
    assert 0 < verdict["accuracy"]["mean_kl"] < 0.3
    assert len(verdict["accuracy"]["layer_errors"]) == 4
    failed = run(*measure, "--max_ppl_increase", -99, expect=1)
    assert "more than --max_ppl_increase -99" in failed.stderr


def test_verify_fails_on_a_damaged_checkpoint(inputs: list[object], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("convert", *inputs, "--output_dir", out, "--quant", "W8A8_SQ_PER_CHANNEL")
    rank = out / "rank0.safetensors"
    whole = rank.read_bytes()
    rank.write_bytes(whole[:-1])
    assert "rank0.safetensors: not a whole safetensors file" in run("verify", out, expect=1).stderr
    rank.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "rank0.safetensors: differs from the one enginesmith.json recorded" in run("verify", out, expect=1).stderr
    (out / "rank1.safetensors").write_bytes(rank.read_bytes())
    assert "rank1.safetensors: config.json's mapping has only 1 ranks" in run("verify", out, expect=1).stderr
    rank.unlink()
    (out / "rank1.safetensors").unlink()
    verdict = json.loads(run("verify", out, "--json", expect=1).stdout)
    assert verdict["structure"]["problems"][0] == "rank0.safetensors: missing"


@pytest.mark.parametrize(
    ("ranks", "name", "words"),
    [
        (2, "layers.1.post_layernorm.weight", "ranks disagree about"),
        (2, "ln_f.weight", "ranks disagree about"),
        (4, "layers.1.attention.qkv.weight", "ranks that share heads disagree about"),
    ],
)
def test_verify_notices_ranks_that_disagree(
    ranks: int, name: str, words: str, inputs: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run("convert", *inputs, "--output_dir", out, "--tp_size", ranks)
    (out / "enginesmith.json").unlink()
    tensors = load_file(out / "rank1.safetensors")
    tensors[f"transformer.{name}"] *= 2
    save_file(tensors, out / "rank1.safetensors")
    assert f"{words} transformer.{name}" in run("verify", out, expect=1).stderr


def test_verify_notices_another_config(inputs: list[object], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("convert", *inputs, "--output_dir", out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"norm_epsilon": 0.5}))
    assert "config.json: differs from the one" in run("verify", out, expect=1).stderr


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "GPTForCausalLM"}, "architecture 'GPTForCausalLM' is not supported"),
        ({"mapping": 5}, "mapping must be an object"),
        ({"mapping": {"tp_size": 0}}, "tp_size must be an integer from 1"),
        ({"mapping": {"tp_size": 3}}, "--tp_size 3 does not divide"),
        ({"quantization": {"quant_algo": "NVFP4"}}, "quantization 'NVFP4' is not supported"),
        ({"quantization": {"quant_algo": []}}, "quant_algo must be a text"),
        ({"norm_epsilon": "x"}, "norm_epsilon must be a positive number"),
        ({"rotary_scaling": "x"}, "rotary_scaling must be an object"),
        ({"num_attention_heads": 10**30}, "num_attention_heads must be an integer"),
        ({"hidden_act": "gelu"}, "hidden_act must be one of silu, not 'gelu'"),
        ({"dtype": "float32"}, "dtype 'float32' is not supported"),
        ({"dtype": "int8"}, "dtype must be one of float16, bfloat16, float32, not 'int8'"),
    ],
)
def test_verify_refuses_a_config_it_cannot_execute(
    changes: dict[str, Any], words: str, inputs: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run("convert", *inputs, "--output_dir", out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | changes))
    assert words in run("verify", out, expect=2).stderr


def test_verify_refuses_another_model(inputs: list[object], tmp_path: Path, tiny: Tiny) -> None:
    out = tmp_path / "out"
    run("convert", *inputs, "--output_dir", out)
    tiny(vocab_size=103)
    words = run("verify", out, "--reference", inputs[1], expect=2).stderr
    assert "--reference: vocab_size is 103, the checkpoint's is 101" in words
    tiny(rms_norm_eps=1e-3)
    held = ["--text", tmp_path / "ids.safetensors", "--seq_len", 24, "--chunks", 4]
    assert "config.json is not the file" in run("verify", out, "--reference", inputs[1], *held, expect=2).stderr
    assert "--reference: /nowhere is not a folder" in run("verify", out, "--reference", "/nowhere", expect=2).stderr


def test_upstream_spellings(inputs: list[object], tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ["--smoothquant", 0.5, "--per-token", "--per-channel", "--int8_kv_cache", "--tp-size=2"]
    run("convert", *inputs, "--output-dir", out, *flags)
    config = json.loads((out / "config.json").read_text())
    assert config["quantization"]["quant_algo"] == "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN"
    assert config["quantization"]["kv_cache_quant_algo"] == "INT8"
    assert config["quantization"]["smoothquant_val"] == 0.5
    assert config["mapping"]["tp_size"] == 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--smoothquant", 0.5, "--quant", "W8A8_SQ_PER_CHANNEL"], "both name a quantization"),
        (["--smoothquant", 0.5, "--alpha", 0.5], "both give the migration strength"),
        (["--device", "cuda:x"], "--device: 'cuda:x' is no device"),
        (["--device", "meta"], "--device: 'meta' is not supported"),
        (["--dtype", "float32"], "use one of: auto, float16, bfloat16"),
        (["--tp_size", 0], "--tp_size is 0"),
        (["--per_token"], "go with --smoothquant"),
        (["--int8_kv_cache", "--kv_cache", "FP8"], "contradict each other"),
        (["--alpha", "2"], "--alpha is 2.0; a finite number from 0, at most 1 is needed"),
        (["--quant", "W4A16"], "mlp.fc: out_features 96 must be a multiple of 64"),
        (["--quant", "NVFP4"], "use one of: none, W8A8_SQ_PER_CHANNEL"),
        (["--quant", "w8a8_sq_per_chanel"], "did you mean W8A8_SQ_PER_CHANNEL?"),
        (["--quant", "w4a16", "--group_size", 16], "--group_size is 16; use one of: 32, 64, 128"),
        (["--quant", "W4A16_AWQ", "--group_size", 32], "group_size 32: the kernels of W4A16_AWQ know 64 and 128"),
        (["--use_weight_only", "--quant", "FP8"], "another quantization"),
        (["--tp_size", "two"], "--tp_size"),
    ],
)
def test_flags_that_make_no_sense(flags: list[object], words: str, inputs: list[object], tmp_path: Path) -> None:
    assert words in run("convert", *inputs, "--output_dir", tmp_path / "out", *flags, expect=2).stderr
    assert not (tmp_path / "out").exists()


def test_a_gate_without_what_it_measures_against(tmp_path: Path) -> None:
    told = run("verify", tmp_path, "--max_ppl_increase", 2, expect=2).stderr
    assert "--max_ppl_increase needs --reference HF_DIR" in told


def test_json_result(inputs: list[object], tmp_path: Path) -> None:
    done = run("convert", *inputs, "--output_dir", tmp_path / "out", "--quant", "W8A8_SQ_PER_CHANNEL", "--json")
    manifest = json.loads(done.stdout)
    assert manifest == json.loads((tmp_path / "out" / "enginesmith.json").read_text())
    assert done.stderr == ""
    assert set(manifest["files"]) == {"config.json", "rank0.safetensors"}
    assert len(manifest["layers"]) == 4


def test_help_names_the_commands_and_the_exit_codes() -> None:
    shown = run("--help").stdout
    assert "convert" in shown
    assert "verify" in shown
    assert "Exit codes: 0 done, 1 a check failed, 2 bad usage" in " ".join(shown.split())


def test_a_full_standard_output_is_no_traceback(inputs: list[object], tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("enginesmith")
    with open("/dev/full", "w") as full:
        words = [program, "convert", *map(str, inputs), "--output_dir", str(tmp_path / "out")]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 74
    assert done.stderr.endswith("enginesmith: standard output cannot be written (No space left on device)\n")


@pytest.mark.parametrize("per_token", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
def test_upstream_flags_name_an_algorithm(per_token: bool, per_channel: bool) -> None:
    scheme = SCHEMES[algorithm(per_token, per_channel)]
    assert kind_of(scheme) is SmoothQuant
    assert (not scheme.static, scheme.granularity == CHANNEL) == (per_token, per_channel)


def test_a_checkpoint_is_no_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
    said = run("convert", "--model_dir", tiny_checkpoint, "--output_dir", tmp_path / "out", expect=2).stderr
    assert "is a TensorRT-LLM checkpoint, not a Hugging Face model" in said


def test_names_that_find_no_room_are_in_the_help(tmp_path: Path) -> None:
    said = run(
        "convert", "--model_dir", tmp_path, "--output_dir", tmp_path / "out", "--quant", "XYZZY", expect=2
    ).stderr
    assert said.rstrip().endswith("; --help lists them all")
