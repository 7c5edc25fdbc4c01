"""Build plans: the whole grid of algorithm, release and GPU; shapes, features, memory; what is refused and why."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from enginesmith.build import algorithms, gpus, releases
from enginesmith.build.checkpoint_folder import CheckpointFolder
from enginesmith.build.flags import BY_NAME, FLAGS, REFUSED
from enginesmith.build.gpus import GIB, GPU, KNOWN, find
from enginesmith.build.plan import Plan, make_plan
from enginesmith.build.wishes import Wishes
from enginesmith.convert.errors import InputError
from tests.build_folders import write_checkpoint, write_manifest
from tests.conftest import ALGORITHMS

HOPPER = {80, 86, 89, 90}
FIRST_SM = {
    75: None,
    80: "0.16.0",
    86: "0.16.0",
    89: "0.16.0",
    90: "0.16.0",
    100: "0.17.0",
    103: "1.0.0",
    120: "0.17.0",
}
# Where TensorRT-LLM's engine backend builds each algorithm (support tables and the builder's guard on SM 100 to 119).
BUILDS: dict[str | None, set[int]] = {
    None: {*HOPPER, 100, 103, 120},
    **{name: {*HOPPER, 120} for name in ("W8A16", "W4A16", "W4A16_AWQ", "W4A16_GPTQ", "W8A16_GPTQ", *ALGORITHMS)},
    "W4A8_AWQ": {89, 90},
    "W4A8_QSERVE_PER_GROUP": {*HOPPER, 120},
    "W4A8_QSERVE_PER_CHANNEL": {*HOPPER, 120},
    "FP8": {89, 90, 100, 103, 120},
    "FP8_PER_CHANNEL_PER_TOKEN": {89, 90, 120},
    "NVFP4": {100, 103, 120},
    "FP8_BLOCK_SCALES": set(),
    "W4A16_MXFP4": set(),
}


def sized(sm: int) -> GPU:
    return GPU(f"SM {sm}", sm, 80 * GIB)


def plan(folder: Path, release: str = "1.2.1", gpu: str = "A100", **given: Any) -> Plan:
    """The plan of a checkpoint folder; flags as the user gives them."""
    own = ("preset", "max_output_len", "chunked_context", "fraction")
    wishes = {name: given.pop(name) for name in own if name in given}
    return make_plan(CheckpointFolder(folder), releases.find(release), find(gpu), Wishes(given, **wishes))


@pytest.mark.parametrize("algorithm", BUILDS)
def test_every_triple_builds_or_is_refused_as_the_tables_say(algorithm: str | None, tmp_path: Path) -> None:
    checkpoint = CheckpointFolder(write_checkpoint(tmp_path / "ck", algorithm))
    for release, sm in product(releases.RELEASES, FIRST_SM):
        first = FIRST_SM[sm]
        known = first is not None and releases.number(first) <= releases.number(release.version)
        new_enough = algorithm != "NVFP4" or release.version != "0.16.0"
        if known and new_enough and sm in BUILDS[algorithm]:
            config = make_plan(checkpoint, release, sized(sm), Wishes({})).build_config
            enabled = config["plugin_config"].get("smooth_quant_gemm_plugin")
            assert enabled == ("float16" if algorithm in ALGORITHMS[1:] else None)
        else:
            with pytest.raises(InputError, match=f"SM {sm}|TensorRT-LLM 0.17|PyTorch"):
                make_plan(checkpoint, release, sized(sm), Wishes({}))


@pytest.mark.parametrize(
    ("cache", "sm", "builds"),
    [
        ("INT8", 90, True),
        ("INT8", 100, False),
        ("INT8", 120, True),
        ("FP8", 80, False),
        ("FP8", 89, True),
        ("FP8", 100, True),
    ],
)
def test_kv_caches_by_gpu(cache: str, sm: int, builds: bool) -> None:
    reason = algorithms.refusal([None], cache, "float16", releases.find("1.2.1"), sm)
    assert (reason is None) == builds
    assert builds or f"SM {sm}" in str(reason)


def test_plugins_agree_with_the_algorithms_about_gpus() -> None:
    """A plugin runs wherever an algorithm that needs it builds."""
    for algorithm in algorithms.WEIGHTS:
        for plugin in algorithms.plugins_of(algorithm):
            first, last = plugin.gpus[0][0], plugin.gpus[-1][1]
            for known_first, known_last in algorithms.WEIGHTS[algorithm].gpus:
                assert first <= known_first
                assert known_last <= last


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match=r"1\.2\.1 is the last stable release"):
        releases.find("1.3.0")
    with pytest.raises(InputError, match="use one of: 0"):
        releases.find("latest")
    assert releases.find("1.2").version == "1.2.1"
    assert releases.find("0.17.0.post1").version == "0.17.0"
    with pytest.raises(InputError, match="A100-80GB"):
        find("V100")
    assert find("nvidia a100") is KNOWN["A100-80GB"]
    listed = (Path(__file__).parent.parent / "docs" / "serving.md").read_text()
    assert [name for name in KNOWN if name not in listed] == []


def test_a_gpu_whose_memory_is_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "present", lambda: [gpus.Present(0, GPU("L4", 89, 0), "580")])
    with pytest.raises(InputError, match="does not report the memory of L4; give --gpu_memory GIB"):
        gpus.target(None, None, None)
    assert gpus.target(None, None, 24).memory == 24 * 2**30


@pytest.mark.parametrize("memory", [0.5, 5000, math.inf, math.nan])
def test_memory_that_no_gpu_has(memory: float) -> None:
    with pytest.raises(InputError, match="GiB between 1 and 4096 are needed"):
        gpus.target(None, 80, memory)


@pytest.mark.parametrize("release", [release.version for release in releases.RELEASES])
def test_build_config_has_what_the_release_requires(release: str, tmp_path: Path) -> None:
    config = plan(write_checkpoint(tmp_path / "ck", ALGORITHMS[1]), release).build_config
    required = {"max_input_len", "max_seq_len", "max_batch_size", "max_beam_width", "max_num_tokens", "opt_num_tokens"}
    assert required | {"kv_cache_type", "plugin_config"} <= set(config)
    assert config["kv_cache_type"] == "PAGED"
    old = release.startswith(("0.16", "0.17", "0.18"))
    assert config["plugin_config"]["tokens_per_block"] == (64 if old else 32)
    assert config["plugin_config"]["use_paged_context_fmha"] is not old
    assert ("use_fused_mlp" in config) == (release == "0.16.0")
    assert not {"auto_parallel_config", "speculative_decoding_mode", "visualize_network"} & set(config)
    json.dumps(config, allow_nan=False)


def test_the_checkpoint_switches_its_plugins_on(tmp_path: Path) -> None:
    bfloat16 = plan(write_checkpoint(tmp_path / "a", ALGORITHMS[4], dtype="bfloat16")).build_config["plugin_config"]
    assert bfloat16["smooth_quant_gemm_plugin"] == bfloat16["rmsnorm_quantization_plugin"] == "bfloat16"
    assert bfloat16["quantize_per_token_plugin"] is bfloat16["quantize_tensor_plugin"] is True
    native = plan(write_checkpoint(tmp_path / "b", "W8A8_SQ_PER_CHANNEL")).build_config["plugin_config"]
    assert not {"smooth_quant_gemm_plugin", "quantize_tensor_plugin"} & set(native)


def test_an_int8_cache_switches_paged_context_attention_off(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "ck", ALGORITHMS[1], "INT8")
    for release in ("0.16.0", "1.2.1"):
        planned = plan(folder, release)
        assert planned.build_config["plugin_config"]["use_paged_context_fmha"] is False
        assert any("no KV cache reuse" in warning for warning in planned.warnings)
        with pytest.raises(InputError, match="cannot read an INT8 KV cache"):
            plan(folder, release, use_paged_context_fmha=True)


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"max_input_len": 4096, "max_num_tokens": 2048, "use_paged_context_fmha": False}, "give at least 4096"),
    ({"max_input_len": 4096, "max_num_tokens": 2048}, "serve with --chunked_context"),
    ({"max_input_len": 4096, "max_seq_len": 2048}, "longer than --max_seq_len 2048"),
    ({"max_seq_len": 1024, "max_output_len": 512}, "give one of them"),
    ({"max_num_tokens": 16, "max_batch_size": 64, "max_input_len": 8}, "give at least 64"),
    ({"opt_num_tokens": 9000}, "more than --max_num_tokens 8192"),
    ({"opt_num_tokens": 64, "multiple_profiles": True}, "exclude each other"),
    ({"reduce_fusion": True}, "tp_size > 1"),
    ({"streamingllm": True}, "no longer has it"),
    ({"use_fused_mlp": True}, "scales for gate and up apart"),
    ({"tokens_per_block": 48}, "no power of two"),
    ({"gpt_attention_plugin": "bfloat16"}, "the checkpoint is float16"),
    ({"gpt_attention_plugin": None, "use_paged_context_fmha": False}, "a paged KV cache needs it"),
    ({"pp_reduce_scatter": True}, "MixtralForCausalLM only"),
    ({"gemm_allreduce_plugin": "float16"}, "tp_size > 1"),
    ({"fuse_fp4_quant": True}, "NVFP4 models only"),
    ({"gemm_plugin": "nvfp4"}, "NVFP4 models only"),
    ({"max_output_len": 0}, "at least 1 is needed"),
    ({"input_timing_cache": "a\nb"}, "control characters"),
    ({"max_seq_len": 10**40}, "is no size"),
    ({"fraction": 1.5}, "mem_fraction 1.5: above 0 and at most 1"),
    ({"kv_cache_type": "continuous", "max_batch_size": 4096}, "4096 sequences of 8192 are needed"),
    ({"gemm_plugin": "fp8"}, "FP8 models only"),
    ({"gemm_swiglu_plugin": "fp8"}, "FP8 models only"),
    ({"low_latency_gemm_plugin": "fp8"}, "FP8 models only"),
    ({"use_fp8_context_fmha": True}, "FP8 model with an FP8 KV cache"),
    ({"kv_cache_type": "continuous", "paged_kv_cache": True}, "contradict each other"),
    ({"kv_cache_type": "continuous", "use_paged_context_fmha": True}, "kv_cache_type paged"),
    ({"context_fmha": False}, "give --use_paged_context_fmha disable too"),
    ({"chunked_context": True, "use_paged_context_fmha": False}, "needs --use_paged_context_fmha enable"),
    ({"max_seq_len": 2_000_000}, "give --max_seq_len"),
    ({"max_num_tokens": 10_000_000}, "fewer --max_num_tokens"),
]


@pytest.mark.parametrize(("given", "reason"), REFUSALS)
def test_what_cannot_work_is_refused(given: dict[str, Any], reason: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "ck", ALGORITHMS[1])
    with pytest.raises(InputError, match=reason):
        plan(folder, **given)


def test_flags_belong_to_releases(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "ck")
    with pytest.raises(InputError, match=r"--fuse_fp4_quant: TensorRT-LLM 0\.16\.0 has no such flag; releases 0\.20"):
        plan(folder, "0.16.0", fuse_fp4_quant=True)
    assert plan(folder, "1.2.1", user_buffer=True).build_config["plugin_config"]["user_buffer"] is True
    assert not {flag.name for flag in FLAGS} & set(REFUSED)
    switches = [flag for flag in FLAGS if isinstance(flag.kind, tuple) and "disable" in flag.kind]
    assert all(flag.accepted("disable", "") in (None, False) for flag in switches)
    assert BY_NAME["max_decoder_seq_len"].name == "max_seq_len"


def test_chunked_context_lets_prompts_exceed_a_step(tmp_path: Path) -> None:
    planned = plan(write_checkpoint(tmp_path / "ck"), max_input_len=4096, max_num_tokens=2048, chunked_context=True)
    assert any("chunked context" in warning for warning in planned.warnings)


@pytest.mark.parametrize(("algorithm", "cache", "readable"), [("FP8", "FP8", True), (None, "FP8", False),
                                                                ("W4A8_AWQ", "FP8", True)])  # fmt: skip
def test_an_fp8_cache_needs_an_fp8_model(algorithm: str, cache: str, readable: bool, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "ck", algorithm, cache)
    config = plan(folder, "1.2.1", "H100").build_config["plugin_config"]
    assert config["use_paged_context_fmha"] is config["use_fp8_context_fmha"] is readable
    if not readable:
        with pytest.raises(InputError, match="an FP8 KV cache needs an FP8 model there"):
            plan(folder, "1.2.1", "H100", use_paged_context_fmha=True)


@pytest.mark.parametrize(
    ("given", "warning"),
    [
        ({}, r"the KV cache holds \d+ sequences of 8192 tokens at once, max_batch_size is 2048"),
        ({"max_seq_len": 9000, "max_batch_size": 4}, "max_seq_len 9000 is beyond the model's 8192 positions"),
        ({"max_num_tokens": 20000, "max_batch_size": 4}, "max_num_tokens 20000 is above 16384"),
    ],
)
def test_what_works_otherwise_than_expected_is_said(given: dict[str, Any], warning: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "ck", ALGORITHMS[1])
    told, usual = (plan(folder, **words).warnings for words in (given, {"max_batch_size": 4}))
    assert len(told) == len(usual) + 1
    assert any(re.match(warning, line) for line in told)


def test_memory_by_hand(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "ck", ALGORITHMS[1], "INT8", tp=2, pp=2)
    planned = plan(folder, max_batch_size=16, max_seq_len=4000, max_num_tokens=4096)
    memory = planned.memory[3]
    assert memory.weights == (folder / "rank3.safetensors").stat().st_size
    assert memory.kv_per_token == 2 * 16 * 4 * 128
    assert memory.kv_per_sequence == memory.kv_per_token * math.ceil(4000 / 32) * 32
    assert memory.kv_workload == 16 * memory.kv_per_sequence
    layer = 4096 * 2 * (6 * 4096 + (16 + 2 * 4) * 128 + 16 * 128 + 3 * 14336 // 2)
    assert planned.memory[0].activations == layer
    assert memory.activations == layer + 16 * 128256 * 4
    free = memory.gpu - memory.weights - memory.activations - memory.reserve
    assert memory.available == int(0.9 * free)
    assert memory.sequences == memory.available // memory.kv_per_sequence


def test_float32_and_odd_heads_take_what_they_take(tmp_path: Path) -> None:
    wide = plan(write_checkpoint(tmp_path / "a", dtype="float32")).memory[0]
    assert wide.kv_per_token == 2 * 32 * 8 * 128 * 4
    odd = write_checkpoint(tmp_path / "b", tp=4, num_key_value_heads=2, num_attention_heads=32)
    assert plan(odd).memory[0].kv_per_token == 2 * 32 * 1 * 128 * 2


def test_releases_between_the_known_ones_are_refused() -> None:
    for version in ("1.1.0rc2", "1.2.foo", "1.x", ""):
        with pytest.raises(InputError, match="is not a release"):
            releases.find(version)


def test_presets(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "ck", ALGORITHMS[1])
    latency = plan(folder, preset="latency", max_input_len=2000, max_output_len=500).build_config
    assert (latency["max_batch_size"], latency["max_num_tokens"], latency["max_seq_len"]) == (8, 2000, 2500)
    throughput = plan(folder, preset="throughput", max_input_len=1000, max_output_len=1000)
    fitting = min(rank.sequences for rank in throughput.memory)
    assert 0.9 * fitting <= throughput.build_config["max_batch_size"] <= fitting
    assert throughput.build_config["plugin_config"]["multiple_profiles"] is True
    few = plan(folder, preset="throughput", max_num_tokens=512, max_input_len=8, max_output_len=8).build_config
    assert few["max_batch_size"] == few["max_num_tokens"] == 512
    tuned = plan(folder, preset="latency", opt_num_tokens=2000).build_config
    assert tuned["max_num_tokens"] == tuned["opt_num_tokens"] == 2000
    given = plan(folder, preset="throughput", max_batch_size=3, multiple_profiles=False).build_config
    assert given["max_batch_size"] == 3
    assert given["plugin_config"]["multiple_profiles"] is False


def test_weights_arranged_for_another_gpu_are_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "ck", "W4A16_GPTQ")
    assert any("arranged by another tool" in warning for warning in plan(folder).warnings)
    write_manifest(folder, packed_for_sm=80)
    assert not any("arranged by" in warning for warning in plan(folder, gpu="L4").warnings)
    with pytest.raises(InputError, match="arranged for SM 75 to 89, the GPU is SM 90"):
        plan(folder, gpu="H100")


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"mapping": {"world_size": 4, "tp_size": 2, "pp_size": 2}}, "needs ranks 0 to 3, there are files for 0"),
    ({"mapping": {"world_size": 3, "tp_size": 1}}, "world_size 3 is not"),
    ({"mapping": {"cp_size": 2}}, "cp_size"),
    ({"mapping": []}, "mapping must be an object"),
    ({"quantization": {"quant_algo": 8}}, "quant_algo must be a text"),
    ({"quantization": {"quant_algo": "W3A16"}}, "not one of the engine backend"),
    ({"quantization": {"kv_cache_quant_algo": "NVFP4"}}, "kv_cache_quant_algo 'NVFP4'"),
    ({"num_hidden_layers": 0}, "num_hidden_layers must be"),
    ({"hidden_size": "wide"}, "hidden_size must be"),
    ({"mapping": {"tp_size": 10**9, "world_size": 10**9}}, "tp_size must be"),
    ({"num_hidden_layers": 10**8}, "num_hidden_layers must be"),
    ({"quantization": {"colour": "red"}}, "unknown key 'quantization.colour'"),
    ({"num_key_value_heads": 5}, "num_key_value_heads 5 does not divide"),
    ({"logits_dtype": "float8"}, "logits_dtype must be one of float16, float32, not 'float8'"),
    ({"dtype": "float32", "quantization": {"quant_algo": ALGORITHMS[1]}}, "needs dtype float16 or bfloat16"),
    ({"dtype": "bfloat16", "quantization": {"quant_algo": "W4A8_QSERVE_PER_GROUP"}}, "needs dtype float16"),
]


@pytest.mark.parametrize(("changes", "reason"), BROKEN)
def test_broken_checkpoints_are_refused(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "ck", **changes)
    with pytest.raises(InputError, match=reason):
        plan(folder)


def test_w4a8_in_bfloat16_needs_a_later_release_on_hopper(tmp_path: Path) -> None:
    checkpoint = CheckpointFolder(write_checkpoint(tmp_path / "ck", "W4A8_AWQ", dtype="bfloat16"))
    with pytest.raises(InputError, match=r"SM 90 with TensorRT-LLM 0\.16\.0, .* --dtype float16, or use a later"):
        make_plan(checkpoint, releases.find("0.16.0"), sized(90), Wishes({}))
    for release, sm in (("0.16.0", 89), ("0.17.0", 90), ("1.2.1", 90)):
        make_plan(checkpoint, releases.find(release), sized(sm), Wishes({}))


def test_surplus_ranks_are_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "ck", tp=2)
    (folder / "rank2.safetensors").write_bytes((folder / "rank1.safetensors").read_bytes())
    with pytest.raises(InputError, match="needs ranks 0 to 1, there are files for 0, 1, 2"):
        CheckpointFolder(folder)


def test_a_plan_needs_no_torch(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "ck", ALGORITHMS[1], num_hidden_layers=100)
    words = ["build", "--checkpoint_dir", str(folder), "--output_dir", str(tmp_path / "plan"), "--plan_only"]
    code = (
        "import sys; from enginesmith.cli.main import cli\n"
        f"cli.main({[*words, '--gpu', 'A100']!r}, standalone_mode=False)\n"
        "sys.exit(7 if {'torch', 'transformers'} & set(sys.modules) else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
