"""Lists of patterns, which come from files: what they match, and that long ones end at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from enginesmith.convert.errors import InputError
from enginesmith.convert.files.patterns import LONGEST, MOST, compiled
from tests.command import run

Tiny = Callable[..., Path]


def test_patterns_are_kept_in_order_and_names_left_out() -> None:
    made = compiled(["b*", "plain", "a?c", "[x-z]"], "--exclude")
    assert list(made) == ["b*", "a?c", "[x-z]"]
    assert made["a?c"]("abc")
    assert not made["a?c"]("abcd")


def test_too_many_or_too_long_ones() -> None:
    compiled(["n" * 9999, *map(str, range(10**5))], "--exclude")
    with pytest.raises(InputError, match=f"at most {MOST}"):
        compiled((f"{number}*" for number in range(MOST + 1)), "--exclude")
    with pytest.raises(InputError, match="is longer than"):
        compiled(["*a" * LONGEST], "--exclude")


@pytest.mark.parametrize("end", ["", "*"])
def test_a_checkpoint_with_200000_of_them(end: str, tiny: Tiny, tmp_path: Path) -> None:
    """Each against each module, translated anew every time, took minutes."""
    out = tmp_path / "out"
    words: list[object] = ["convert", "--model_dir", tiny(num_hidden_layers=2), "--output_dir", out, "--quant", "FP8"]
    run(*words, "--exclude", "*.1.mlp", "--calib", tmp_path / "ids.safetensors", "--calib_seq_len", 24)
    (out / "enginesmith.json").unlink()
    config = json.loads((out / "config.json").read_text())
    config["quantization"]["exclude_modules"] += [f"{number}{end}" for number in range(200_000)]
    (out / "config.json").write_text(json.dumps(config))
    for words in (["verify", out], ["plugins", out]):
        done = run(*words, expect=2 if end else 0)
        assert not end or "patterns with wildcards" in done.stderr


def test_a_mixed_checkpoint_with_many_of_them(tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("convert", "--model_dir", tiny(num_hidden_layers=2), "--output_dir", out, "--quant", "FP8",
        "--quant_layer", "*.1.mlp=W8A8_SQ_PER_CHANNEL",
        "--calib", tmp_path / "ids.safetensors", "--calib_seq_len", 24)  # fmt: skip
    (out / "enginesmith.json").unlink()
    described = json.loads((out / "quant_cfg.json").read_text())
    described["quantized_layers"] |= {f"{number}*": {"quant_algo": "FP8"} for number in range(20_000)}
    (out / "quant_cfg.json").write_text(json.dumps(described))
    assert "patterns with wildcards" in run("verify", out, expect=2).stderr


def test_many_excludes_on_the_command_line(tiny: Tiny, tmp_path: Path) -> None:
    """Names are looked up; a pattern looks at each name once."""
    words: list[object] = ["convert", "--model_dir", tiny(), "--output_dir", tmp_path / "out", "--quant", "FP8"]
    words += ["--calib", tmp_path / "ids.safetensors", "--calib_seq_len", 24]
    for number in range(1_000):
        words += ["--exclude", "model.layers.0.mlp.up_proj", "--exclude", f"*.{number % 4}.mlp"]
    run(*words)
