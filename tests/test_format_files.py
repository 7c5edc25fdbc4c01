"""Formats: what each stores of a quantized linear can be read back, and is told of nowhere but in its file."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from enginesmith.convert.quantize.precision import KV_CACHE
from enginesmith.convert.targets.registry import NAMES
from enginesmith.convert.targets.trtllm.formats import FORMATS, SCHEMES, format_of
from enginesmith.plugins import catalog

from .test_computed import quantized_layer
from .test_formats import WIDE, group_size

ROOT = Path(__file__).parent.parent
Tiny = Callable[..., Path]
# Parts of tensors' names that mean something to TensorRT-LLM alone.
TENSORS = re.compile(r"scale_to_int|act_scale|per_channel_scale|prequant|s[12]_|szeros|scaling_factor")
# What is said elsewhere of one algorithm: upstream's flags, what a family's engine does not compute, what a folder of
# another tool becomes, what its readers take, what would work instead of a refused one, and which attention reads an
# FP8 cache.
FAMILIES = "convert/models/families"
NAMED = (
    "cli/convert.py",
    FAMILIES,
    "convert/readers",
    "convert/sources/readymade",
    "build/algorithms.py",
    "build/build_config.py",
    "build/features.py",
    "build/plan.py",
)


@pytest.mark.parametrize("algo", SCHEMES)
def test_what_is_stored_is_declared_and_reads_back(algo: str, tiny: Tiny) -> None:
    target, quantized = quantized_layer(tiny(**WIDE), algo, dtype="float16", group_size=group_size(algo))
    form, family = format_of(target.precision.base, target.engine), target.precision.model.family
    tensors = target.layer(0, quantized)
    for group in family.groups:
        name = form.input_scale(group)
        scale = None if name is None else tensors[name]
        for linear in map(family.linear, group.linears):
            specs = form.tensors(linear, group)
            own = {suffix: tensors[f"{linear.name}.{suffix}"] for suffix in specs}
            assert own.keys() == form.store(quantized.linears[linear.name]).keys()
            read = form.read(own, scale)
            again = form.store(read)
            assert again.keys() == own.keys()
            for suffix, tensor in again.items():
                ours = target.cast(tensor, specs[suffix], suffix)
                exact = ours.dtype != torch.float32  # integers, e4m3, and what was rounded to 16 bits
                torch.testing.assert_close(ours.float(), own[suffix].float(), rtol=0 if exact else 1e-5, atol=0)
            if name is not None:
                torch.testing.assert_close(form.stored_input_scale(read), scale)
            weight = form.weight(own, scale)
            step = float((read.dequantize() - weight).abs().max() / weight.abs().max())
            assert step < (0.05 if algo == "W4A8_AWQ" else 2e-3)  # whose weights pass through FP8 too


def test_tensors_are_named_by_their_formats_alone() -> None:
    rooms = [ROOT / "convert" / room for room in ("models", "numbers", "statistics", "quantize", "prove", "job")]
    for path in [path for room in (*rooms, ROOT / "build", ROOT / "cli") for path in room.rglob("*.py")]:
        found = TENSORS.findall(path.read_text().replace("device_limited_routed_scaling_factor", ""))
        assert found == [], path


def test_algorithms_are_named_by_their_formats_alone() -> None:
    names = re.compile("|".join(rf'"{name}"' for name in NAMES if name not in KV_CACHE))  # which are of caches too
    formats = re.compile(r"convert/targets/\w+/formats(/\w+)?\.py")
    for path in [path for floor in ("plugins", "convert", "build", "cli") for path in (ROOT / floor).rglob("*.py")]:
        place = str(path.relative_to(ROOT))
        if not formats.fullmatch(place) and not place.startswith(NAMED):
            assert names.findall(path.read_text()) == [], place


def test_every_plugin_of_a_format_is_in_the_catalog_and_runs_where_it_does() -> None:
    for kind in FORMATS:
        for scheme in kind.schemes:
            assert set(kind.plugins(scheme)) <= set(kind.enables(scheme)) <= set(catalog.QUANTIZATION)
