"""Bad input: one clear line, exit code 2, nothing under the final name, the source untouched."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from enginesmith.convert.errors import InputError, reason
from enginesmith.convert.job import making
from enginesmith.convert.job.conversion import convert
from enginesmith.convert.job.options import ConvertOptions

from .conftest import TINY, random_weights, write_model

QUANT = "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN"


def refuse(model: Path, output: Path, words: str, **options: Any) -> None:
    """The conversion must be refused in one line that has these words, and leave nothing behind."""
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    settings: dict[str, Any] = {
        "quant": QUANT,
        "calib": str(model.parent / "ids.safetensors"),
        "calib_size": 8,
        "calib_seq_len": 24,
        **options,
    }
    with pytest.raises(InputError) as caught:
        convert(ConvertOptions(str(model), str(output), **settings))
    message = str(caught.value)
    assert words in message
    assert "\n" not in message
    assert not output.exists() or output.parent == model
    assert not list(output.parent.glob(".*partial"))
    assert before == {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}


def split_in_shards(model: Path) -> dict[str, str]:
    """Rewrite a single-file model as two shards with an index; returns the weight map."""
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names = sorted(weights)
    where = {name: f"model-{1 + (i % 2)}.safetensors" for i, name in enumerate(names)}
    for shard in set(where.values()):
        save_file({name: weights[name] for name in names if where[name] == shard}, model / shard)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return where


def test_sharded_model_converts(tiny: Callable[..., Path], converted: Callable[..., Any]) -> None:
    model = tiny()
    split_in_shards(model)
    assert converted(model, quant=QUANT).layer(0)


def test_missing_shard(tiny: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny()
    split_in_shards(model)
    (model / "model-2.safetensors").unlink()
    refuse(model, tmp_path / "out", "shard model-2.safetensors is missing")


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "sub/model.safetensors", "..", ""])
def test_index_that_points_outside(name: str, tiny: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny()
    where = split_in_shards(model)
    where["lm_head.weight"] = name
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    refuse(model, tmp_path / "out", "points outside the folder")


@pytest.mark.parametrize("keep", [0, 5, 300, 0.5, 0.999])
def test_truncated_file(keep: float, tiny: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny()
    path = model / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep >= 1 else keep * len(data))])
    refuse(model, tmp_path / "out", "model.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"]
)
def test_not_finite_weights(name: str, value: float, tmp_path: Path) -> None:
    weights = random_weights(TINY)
    weights[name].view(-1)[7] = value
    refuse(write_model(tmp_path / "hf", weights), tmp_path / "out", f"tensor {name} holds NaN or Inf")


def test_wrong_shape(tmp_path: Path) -> None:
    weights = random_weights(TINY)
    weights["model.layers.0.self_attn.k_proj.weight"] = torch.zeros(7, 64, dtype=torch.float16)
    refuse(write_model(tmp_path / "hf", weights), tmp_path / "out", "has shape [7, 64], config.json implies [32, 64]")


def test_missing_and_unexpected_tensor(tmp_path: Path) -> None:
    weights = random_weights(TINY)
    norm = weights.pop("model.layers.2.input_layernorm.weight")
    refuse(write_model(tmp_path / "a" / "hf", weights), tmp_path / "out", "input_layernorm.weight missing")
    weights["model.layers.2.input_layernorm.weight"] = norm
    weights["model.layers.0.self_attn.q_norm.weight"] = norm.clone()
    refuse(write_model(tmp_path / "b" / "hf", weights), tmp_path / "out", "q_norm.weight is not part of")


def test_integer_weights(tmp_path: Path) -> None:
    weights = random_weights(TINY)
    weights["lm_head.weight"] = torch.zeros(101, 64, dtype=torch.int8)
    refuse(write_model(tmp_path / "hf", weights), tmp_path / "out", "only floating-point weights")


def test_pickled_weights(tiny: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny()
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    refuse(model, tmp_path / "out", "only pickled weights found")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["T5ForConditionalGeneration"]}, "'T5ForConditionalGeneration' is not supported"),
        ({"architectures": None, "model_type": None}, "is not supported; enginesmith families lists"),
        ({"hidden_size": "64"}, "hidden_size must be an integer from 1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be an integer from 1"),
        ({"num_key_value_heads": 3}, "does not divide num_attention_heads"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope type 'longrope' is not supported"),
        ({"rope_scaling": {"type": "linear"}}, "factor must be a positive number"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"torch_dtype": "float8"}, "dtype 'float8' is not supported"),
    ],
)
def test_config_that_cannot_be_converted(
    changes: dict[str, Any], words: str, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    model = tiny()
    (model / "config.json").write_text(json.dumps(TINY | changes))
    refuse(model, tmp_path / "out", words)


def test_config_that_is_no_json(tiny: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny()
    (model / "config.json").write_text("{")
    refuse(model, tmp_path / "out", "config.json: not readable as JSON")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tp_size": 3}, "--tp_size 3 does not divide"),
        ({"pp_size": 3}, "--pp_size 3 does not divide 4 layers; sizes that do: 1, 2, 4"),
        ({"quant": "W4A4"}, "--quant is 'W4A4'; "),
        ({"kv_cache": "INT4"}, "--kv_cache is 'INT4'; "),
        ({"calib_seq_len": 65}, "--calib_seq_len 65 is longer than the model's 64 positions"),
        ({"alpha": 1.5}, "--alpha is 1.5; a finite number from 0, at most 1"),
        ({"act_range": "best"}, "use one of: auto, absmax"),
        ({"dtype": "float64"}, "--dtype is 'float64'; "),
        ({"device": "tpu"}, "--device"),
        ({"calib": "nowhere.txt"}, "no such file nowhere.txt"),
        ({"calib": "nowhere.safetensors"}, "--calib"),
    ],
)
def test_options_that_cannot_work(
    options: dict[str, Any], words: str, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    refuse(tiny(), tmp_path / "out", words, **options)


def test_a_device_that_is_not_there(tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refuse(tiny(), tmp_path / "out", "torch finds no CUDA device; use --device cpu", device="cuda")


@pytest.mark.parametrize(("content", "words"), [(b"", "is empty"), (b" \n ", "is empty"), (b"\xff\xfe\x00", "UTF-8")])
def test_unusable_calibration_text(content: bytes, words: str, tiny: Callable[..., Path], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(content)
    refuse(tiny(), tmp_path / "out", words, calib=str(text))


def test_calibration_without_a_tokenizer(tiny: Callable[..., Path], tmp_path: Path) -> None:
    refuse(tiny(), tmp_path / "out", "no usable tokenizer for --calib", calib="pydoc")


def test_ids_beyond_the_vocabulary(tiny: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny()
    save_file({"input_ids": torch.full((8, 24), 101)}, tmp_path / "ids.safetensors")
    refuse(model, tmp_path / "out", "outside the vocabulary of 101")


def test_existing_output(tiny: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny()
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="exists; remove it or choose another"):
        convert(ConvertOptions(str(model), str(tmp_path / "out")))
    assert not list((tmp_path / "out").iterdir())


def test_output_inside_the_source(tiny: Callable[..., Path]) -> None:
    model = tiny()
    refuse(model, model / "out", "lies in --model_dir")


def test_weights_beyond_float16(tmp_path: Path) -> None:
    weights = random_weights(TINY | {"torch_dtype": "bfloat16"})
    weights["model.embed_tokens.weight"][3, 3] = 1e30
    model = write_model(tmp_path / "hf", weights, torch_dtype="bfloat16")
    refuse(model, tmp_path / "out", "use --dtype bfloat16", dtype="float16", quant=None)


def test_weights_beyond_bfloat16(tmp_path: Path) -> None:
    """The largest float32 numbers are rounded to infinity."""
    weights = random_weights(TINY | {"torch_dtype": "float32"})
    weights["model.embed_tokens.weight"][3, 3] = torch.finfo(torch.float32).max
    model = write_model(tmp_path / "hf", weights, torch_dtype="float32")
    refuse(model, tmp_path / "out", "is not finite in bfloat16 (it reaches 3.4e+38)", dtype="bfloat16", quant=None)


def test_full_disk_is_known_before_any_work(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    refuse(tiny(), tmp_path / "out", "no room for rank0.safetensors")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_that_is_full_at_the_end(
    number: int, tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(making, "write_json", full)
    refuse(tiny(), tmp_path / "out", f"--output_dir: cannot write {tmp_path / 'out'} ({os.strerror(number)})")


def command(model: Path, output: Path, *options: str) -> list[str]:
    program = [str(Path(sys.executable).with_name("enginesmith")), "convert"]
    program += ["--model_dir", str(model), "--output_dir", str(output), "--quant", QUANT]
    return [*program, "--calib", str(model.parent / "ids.safetensors"), "--calib_seq_len", "24", *options]


def test_a_file_size_limit_is_one_line(tiny: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny()

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = subprocess.run(command(model, tmp_path / "out"), capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def take_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_run_that_is_stopped_leaves_nothing(sent: int, code: int, tmp_path: Path) -> None:
    model = write_model(tmp_path / "hf", num_hidden_layers=120)
    output = tmp_path / "out"
    # A test run in the background has Ctrl-C ignored, which children inherit.
    process = subprocess.Popen(command(model, output), stderr=subprocess.PIPE, text=True, preexec_fn=take_interrupts)
    partial = tmp_path / ".out.partial" / "out" / "rank0.safetensors"
    deadline = time.monotonic() + 120
    while not partial.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(sent)
    _, error = process.communicate(timeout=120)
    assert process.returncode == code, error
    assert not output.exists()
    if sent != signal.SIGKILL:
        assert error.strip().endswith("interrupted; nothing unfinished stands under its name")
        assert not partial.parent.parent.exists()
    shutil.rmtree(model)
    again = subprocess.run(command(write_model(tmp_path / "hf"), output), capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "ids.safetensors", "out"]


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("One of:\n(1) a file,\n(2) an object", "One of: (1) a file, (2) an object"),
        ("No such thing.\nTraceback: much", "No such thing."),
        (" \n", "ValueError"),
    ],
)
def test_what_a_library_announces_is_told_too(said: str, shown: str) -> None:
    assert reason(ValueError(said)) == shown
