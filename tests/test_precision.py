"""--exclude and --quant_layer: what patterns take, what TensorRT-LLM is told, and that the mixture is executed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from enginesmith.build.checkpoint_folder import CheckpointFolder
from enginesmith.build.gpus import find as find_gpu
from enginesmith.build.network import rank_nodes, totals
from enginesmith.build.plan import make_plan
from enginesmith.build.releases import find as find_release
from enginesmith.build.wishes import Wishes
from enginesmith.convert.errors import InputError
from enginesmith.convert.job.compare import compare
from enginesmith.convert.job.options import ConvertOptions
from enginesmith.convert.models.dimensions import read_model
from enginesmith.convert.models.families.llama import LLAMA
from enginesmith.convert.models.model import Model
from enginesmith.convert.prove.proven import ProvenCheckpoint as Checkpoint
from enginesmith.convert.prove.verify import measure, structure_problems
from enginesmith.convert.quantize.precision import Precision, mixed
from enginesmith.convert.sources.folder import Source
from enginesmith.convert.targets.trtllm import mixture
from enginesmith.convert.targets.trtllm.formats import SCHEMES, scheme_of
from tests.command import run
from tests.conftest import TINY, assert_same_layers

Tiny = Callable[..., Path]
Converted = Callable[..., Checkpoint]
# Two ranks of it suit every kernel.
WIDE: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "num_key_value_heads": 4}
PER_TOKEN, STATIC = "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", "W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN"

# (--quant, --exclude, --quant_layer) -> plugin nodes of all four layers as TensorRT-LLM 0.16's builder made them of
# these checkpoints, beside 4 GPTAttention.
MIXTURES: dict[str, tuple[str, list[str], list[str], dict[str, int]]] = {
    "weight only": ("W8A16", ["*.down_proj"], [], {"WeightOnlyQuantMatmul": 16, "Gemm": 5}),
    "awq": ("W4A16_AWQ", ["model.layers.0"], [], {"WeightOnlyGroupwiseQuantMatmul": 15, "Gemm": 6}),
    "fp8": ("FP8", ["*.o_proj", "*layers.1.mlp"], [], {"Gemm": 8}),
    "qdq": ("W8A8_SQ_PER_CHANNEL", ["*.down_proj"], [], {"Gemm": 5}),
    "fp8 rowwise": (
        "FP8_PER_CHANNEL_PER_TOKEN",
        ["*layers.3.mlp", "*layers.0.self_attn"],
        [],
        {"Fp8RowwiseGemm": 15, "RmsnormQuantization": 6, "QuantizePerToken": 6, "Gemm": 6},
    ),
    "smoothquant": (
        PER_TOKEN,
        ["*layers.3.mlp"],
        [],
        {"SmoothQuantGemm": 17, "RmsnormQuantization": 7, "QuantizePerToken": 7, "Gemm": 4},
    ),
    "two of smoothquant": (
        PER_TOKEN,
        [],
        [f"*.mlp={STATIC}"],
        {"SmoothQuantGemm": 20, "RmsnormQuantization": 8, "QuantizePerToken": 4, "QuantizeTensor": 4, "Gemm": 1},
    ),
    "smoothquant and weight only": (
        "W8A8_SQ_PER_TENSOR_PLUGIN",
        [],
        ["*layers.1=W8A16"],
        {
            "SmoothQuantGemm": 15,
            "RmsnormQuantization": 6,
            "QuantizeTensor": 6,
            "WeightOnlyQuantMatmul": 5,
            "Gemm": 1,
        },
    ),
    "awq and fp8": (
        "FP8",
        ["*layers.0.self_attn"],
        ["*.mlp=W4A16_AWQ"],
        {"WeightOnlyGroupwiseQuantMatmul": 12, "Gemm": 3},
    ),
    "both weight-only plugins": (
        "W4A16_AWQ",
        [],
        ["*.down_proj=W8A16"],
        {"WeightOnlyGroupwiseQuantMatmul": 16, "WeightOnlyQuantMatmul": 4, "Gemm": 1},
    ),
}


@pytest.fixture
def model() -> Model:
    return read_model(TINY)


def groups(precision: Precision) -> dict[tuple[int, str], str | None]:
    """The algorithm of each group that is not quantized as most are."""
    layers = range(precision.model.num_hidden_layers)
    schemes = {(i, name): scheme for i in layers for name, scheme in precision.layer(i).items()}
    return {place: scheme.name for place, scheme in schemes.items() if scheme != precision.base}


@pytest.mark.parametrize(
    ("patterns", "taken"),
    [
        (["model.layers.2.mlp.down_proj"], {(2, "mlp.proj")}),
        (["transformer.layers.2.mlp.proj"], {(2, "mlp.proj")}),
        (["*layers.1.mlp"], {(1, "mlp.fc+gate"), (1, "mlp.proj")}),
        (["model.layers.3"], {(3, group.name) for group in LLAMA.groups}),
        (["*.0.*.[qkv]_proj"], {(0, "attention.qkv")}),
        (["*.0.*.q_proj", "*.0.*.k_proj", "*.0.*.v_proj"], {(0, "attention.qkv")}),
        (["*.o_proj", "lm_head"], {(i, "attention.dense") for i in range(4)}),
        (["lm_head"], set()),
    ],
)  # fmt: skip
def test_patterns_name_linears_or_modules_in_either_vocabulary(
    patterns: list[str], taken: set[tuple[int, str]], model: Model
) -> None:
    assert groups(mixed(model, scheme_of("W8A16"), patterns)) == dict.fromkeys(taken)


def test_later_patterns_count_more_and_exclude_most(model: Model) -> None:
    layers = [("*.mlp", scheme_of("W8A16")), ("*.1.mlp", scheme_of("FP8"))]
    found = groups(mixed(model, scheme_of("W4A16"), ["*.2.*down_proj"], layers))
    assert found[0, "mlp.proj"] == "W8A16"
    assert found[1, "mlp.proj"] == "FP8"
    assert found[2, "mlp.fc+gate"] == "W8A16"
    assert found[2, "mlp.proj"] is None
    assert (3, "attention.qkv") not in found


@pytest.mark.parametrize(
    ("algo", "exclude", "layers", "line"),
    [
        ("W8A16", ["*.k_proj"], [], "self_attn.k_proj floating point; .* read one input and must be quantized alike"),
        ("FP8", ["*.gate_proj"], [], "mlp.gate_proj and mlp.up_proj read one input"),
        ("W8A16", ["*.downproj"], [], "--exclude .*: no linear has such a name; names are like transformer.layers.0"),
        ("W8A16", ["*"], [], "nothing is quantized then; give --quant none instead"),
        (None, ["*.mlp"], [], "nothing is quantized then; give --quant$"),
        ("W8A16", ["x" * 10**5], [], r"--exclude 'x{56}\.\.\.: no linear has such a name"),
        ("W8A16", [], [("lm_head", "FP8")], "--quant_layer 'lm_head': the embedding and lm_head stay in floating"),
        (PER_TOKEN, ["*.0.*.o_proj"], [], "layer 0: .* quantizes all of attention or nothing of it"),
        ("FP8", [], [("*.2.*down_proj", PER_TOKEN)], "layer 2: .* not mlp.proj without mlp.fc"),
        ("W4A8_QSERVE_PER_GROUP", ["*.0.*"], [], "quantizes every layer"),
        ("W8A16", [], [("*.0.*", "W4A8_QSERVE_PER_CHANNEL")], "W4A8_QSERVE_PER_CHANNEL quantizes every layer"),
    ],
)
def test_what_cannot_be_mixed_is_refused(
    algo: str | None, exclude: list[str], layers: list[tuple[str, str]], line: str, model: Model
) -> None:
    with pytest.raises(InputError, match=line):
        mixture.check(mixed(model, scheme_of(algo), exclude, [(pattern, scheme_of(name)) for pattern, name in layers]))


@pytest.mark.parametrize("case", MIXTURES)
def test_a_mixture_is_written_read_executed_and_planned(case: str, tiny: Tiny, converted: Converted) -> None:
    quant, exclude, layers, nodes = MIXTURES[case]
    source = tiny(**WIDE)
    options: dict[str, Any] = {"exclude": tuple(exclude), "quant_layer": tuple(layers), "group_size": 64}
    checkpoint = converted(source, quant=quant, **options)
    asked = [(pattern, scheme_of(algo, 64)) for pattern, algo in (text.split("=") for text in layers)]
    wanted = mixed(checkpoint.model, scheme_of(quant, 64), exclude, asked)
    for index in range(4):
        ours = {name: scheme.name for name, scheme in checkpoint.precision.layer(index).items()}
        assert ours == {name: scheme.name for name, scheme in wanted.layer(index).items()}
    assert structure_problems(checkpoint) == []
    accuracy = measure(checkpoint, source, str(source.parent / "ids.safetensors"), 4, 24)
    assert 0 < accuracy.kl < 0.3
    folder = CheckpointFolder(checkpoint.folder)
    assert totals(rank_nodes(folder, 0)) == {"GPTAttention": 4} | nodes
    plan = make_plan(folder, find_release("1.2.1"), find_gpu("L40S"), Wishes({"max_input_len": 32}))
    config = plan.build_config["plugin_config"]
    assert not config["use_fused_mlp"]
    needed = {"WeightOnlyQuantMatmul": "weight_only_quant_matmul_plugin", "SmoothQuantGemm": "smooth_quant_gemm_plugin"}
    needed |= {"WeightOnlyGroupwiseQuantMatmul": "weight_only_groupwise_quant_matmul_plugin"}
    assert [config[key] for name, key in needed.items() if name in nodes] == [
        "float16" for name in needed if name in nodes
    ]


@pytest.mark.parametrize("case", ["weight only", "smoothquant", "awq and fp8"])
def test_ranks_of_a_mixture_put_together_are_the_whole(case: str, tiny: Tiny, converted: Converted) -> None:
    quant, exclude, layers, _ = MIXTURES[case]
    source, options = tiny(**WIDE), {"exclude": tuple(exclude), "quant_layer": tuple(layers), "group_size": 64}
    whole, many = (converted(source, quant=quant, kv_cache="INT8", tp_size=tp, **options) for tp in (1, 2))
    assert structure_problems(many) == []
    assert_same_layers(whole, many)


def test_excluded_linears_hold_the_source_weights(tiny: Tiny, converted: Converted) -> None:
    source = tiny(**WIDE)
    checkpoint = converted(source, quant="W4A16_AWQ", group_size=64, exclude=("*.1.mlp", "*.2.*.o_proj"))
    tensors = Source(source).layer(1)
    assert torch.equal(checkpoint.layer(1)["mlp.fc.weight"], tensors["mlp.gate_proj.weight"])
    assert torch.equal(checkpoint.layer(1)["post_layernorm.weight"], tensors["post_attention_layernorm.weight"])
    assert torch.equal(
        checkpoint.layer(2)["attention.dense.weight"], Source(source).layer(2)["self_attn.o_proj.weight"]
    )
    assert not torch.equal(
        checkpoint.layer(2)["input_layernorm.weight"], Source(source).layer(2)["input_layernorm.weight"]
    )


def test_more_in_float_is_nearer_to_the_source(tiny: Tiny, converted: Converted) -> None:
    source, kl = tiny(**WIDE), []
    for exclude in ((), ("*.mlp",), ("*.mlp", "*.[qkv]_proj")):
        checkpoint = converted(source, quant="W4A16", exclude=exclude)
        kl.append(measure(checkpoint, source, str(source.parent / "ids.safetensors"), 8, 24).kl)
    assert kl[0] > 1.1 * kl[1] > 1.1 * kl[2] > 0


def quantization(checkpoint: Checkpoint) -> dict[str, Any]:
    said: dict[str, Any] = json.loads((checkpoint.folder / "config.json").read_text())["quantization"]
    return said


def test_what_tensorrt_llm_is_told(tiny: Tiny, converted: Converted) -> None:
    """Names and keys that its 0.16 classes read: the loader of weight-only checkpoints matches tensors' names too, the
    fused MLP wants exact names, and the default list is replaced."""
    source = tiny(**WIDE)
    said = quantization(converted(source, quant="W8A16", exclude=("*.1.*.o_proj",)))
    assert said["quant_algo"] == "W8A16"
    assert said["exclude_modules"][0] == "*lm_head"
    assert said["exclude_modules"][6:] == ["transformer.layers.1.attention.dense*"]
    said = quantization(converted(source, quant="FP8", exclude=("*.1.*.o_proj",)))
    assert said["exclude_modules"][6:] == ["transformer.layers.1.attention.dense"]
    said = quantization(converted(source, quant="FP8_PER_CHANNEL_PER_TOKEN", exclude=("*.1.mlp",)))
    assert said["exclude_modules"] == [
        "*ln_f",
        "*ln_embed",
        "*lm_head",
        "transformer.layers.1.post_layernorm",
        "transformer.layers.1.mlp",
    ]
    folder = converted(source, quant="W4A16_AWQ", group_size=64, quant_layer=("*.mlp=none", "*.1.mlp=FP8")).folder
    config = json.loads((folder / "config.json").read_text())["quantization"]
    assert (config["quant_algo"], config["exclude_modules"]) == ("MIXED_PRECISION", None)
    told = json.loads((folder / "quant_cfg.json").read_text())
    assert told["quant_algo"] == "MIXED_PRECISION"
    assert len(told["quantized_layers"]) == 4 * 2 + 3
    assert told["quantized_layers"]["transformer.layers.1.mlp.fc"] == {"quant_algo": "FP8"}
    assert told["quantized_layers"]["transformer.layers.0.attention.qkv"] == {
        "quant_algo": "W4A16_AWQ",
        "group_size": 64,
        "has_zero_point": False,
        "pre_quant_scale": True,
    }
    assert "quant_cfg.json" in json.loads((folder / "enginesmith.json").read_text())["files"]


def test_stages_are_numbered_from_0(tiny: Tiny, converted: Converted) -> None:
    source = tiny(**WIDE)
    with pytest.raises(InputError, match=r"--pp_size 2: .* layers 0 and 2 must be quantized alike"):
        converted(source, quant="W8A16", exclude=("*.0.mlp",), pp_size=2)
    checkpoint = converted(source, quant="W8A16", exclude=("*.1.mlp", "*.3.mlp"), pp_size=2)
    assert quantization(checkpoint)["exclude_modules"][6:] == [
        f"transformer.layers.1.mlp.{name}*" for name in ("fc", "gate", "proj")
    ]
    assert [scheme.name for scheme in checkpoint.precision.layer(3).values()] == ["W8A16", "W8A16", None, None]
    assert structure_problems(checkpoint) == []


def test_sizes_that_no_kernel_takes_may_be_excluded(tiny: Tiny, converted: Converted) -> None:
    odd = tiny(**WIDE | {"intermediate_size": 480})
    with pytest.raises(InputError, match=r"mlp.fc: out_features 480 must be a multiple of 64"):
        converted(odd, quant="W4A16_GPTQ", group_size=64)
    assert structure_problems(converted(odd, quant="W4A16_GPTQ", group_size=64, exclude=("*.mlp",))) == []


FIRST, LAST = "transformer.layers.0.mlp.fc", "transformer.layers.9.mlp.fc"


def change(path: Path, module: str, entry: dict[str, Any]) -> None:
    """Give quant_cfg.json an entry."""
    said = json.loads(path.read_text())
    said["quantized_layers"][module] = entry
    path.write_text(json.dumps(said))


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda path: path.unlink(), "quant_cfg.json: no such file"),
        (lambda path: path.write_text("[]"), "quant_cfg.json: holds no JSON object"),
        (lambda path: path.write_text("{}"), "no quantized_layers in it"),
        (lambda path: path.write_text('{"quantized_layers": {"a": 1}}'), "a module's entry must be an object"),
        (lambda path: path.write_text('{"quantized_layers": {"a": {"quant_algo": "X"}}}'), "'X' is not supported"),
        (lambda path: change(path, LAST, {"quant_algo": "FP8"}), "'transformer.layers.9.mlp.fc' names more or less"),
        (lambda path: change(path, "lm_head", {"quant_algo": "FP8"}), "'lm_head' names more or less than modules"),
        (lambda path: change(path, "*", {"quant_algo": "FP8"}), "'*' names more or less than modules"),
        (
            lambda path: change(path, FIRST, {"quant_algo": "W4A16_AWQ", "group_size": 32}),
            f"{FIRST}: group_size 32: the",
        ),
        (lambda path: change(path, FIRST, {"quant_algo": "W4A16_AWQ", "group_size": "x"}), f"{FIRST}: group_size must"),
        (lambda path: change(path, FIRST, {"quant_algo": "W4A16_AWQ"}), "pre_quant_scale must be true for W4A16_AWQ"),
        (
            lambda path: path.write_text(path.read_text().replace('_algo": null', '_algo": "INT8"')),
            "quant_cfg.json: kv_cache_quant_algo is 'INT8', config.json's is None",
        ),
    ],
)
def test_a_damaged_quant_cfg_is_named(
    damage: Callable[[Path], None], line: str, tiny: Tiny, converted: Converted
) -> None:
    source = tiny(**WIDE)
    folder = converted(source, quant="W8A16", quant_layer=("*.mlp=FP8",)).folder
    damage(folder / "quant_cfg.json")
    assert line in run("verify", folder, expect=2).stderr


def test_plugins_of_an_unknown_mixture_are_refused(tiny: Tiny, converted: Converted) -> None:
    folder = converted(tiny(**WIDE), quant="W8A16", quant_layer=("*.mlp=FP8",)).folder
    change(folder / "quant_cfg.json", FIRST, {"quant_algo": "NVFP4"})
    assert "the plugins of W8A16, NVFP4, FP8 are not known here" in run("plugins", folder, expect=2).stderr


@pytest.mark.parametrize(("key", "value"), [("has_zero_point", True), ("pre_quant_scale", False), ("group_size", 32)])
def test_settings_that_contradict_the_algorithm_are_refused(
    key: str, value: Any, tiny: Tiny, converted: Converted
) -> None:
    folder = converted(tiny(**WIDE), quant="W4A16_AWQ", group_size=64).folder
    config = json.loads((folder / "config.json").read_text())
    config["quantization"][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    for command in ("verify", "plugins"):
        assert f"config.json: {key}" in run(command, folder, expect=2).stderr


def test_a_changed_quant_cfg_is_noticed(tiny: Tiny, converted: Converted) -> None:
    folder = converted(tiny(**WIDE), quant="W8A16", quant_layer=("*.mlp=FP8",)).folder
    path = folder / "quant_cfg.json"
    path.write_text(path.read_text() + " ")
    assert any("quant_cfg.json" in problem for problem in structure_problems(Checkpoint(folder)))
    assert "quant_cfg.json" in run("build", "--checkpoint_dir", folder, "--output_dir", folder.parent / "engine",
                                   "--gpu", "L40S", "--plan_only", expect=2).stderr  # fmt: skip


def test_a_mixture_is_planned_for_what_all_of_it_runs_on(tiny: Tiny, converted: Converted) -> None:
    folder = CheckpointFolder(converted(tiny(**WIDE), quant="W8A16", quant_layer=("*.mlp=FP8",)).folder)
    with pytest.raises(InputError, match="FP8 cannot be built for SM 80"):
        make_plan(folder, find_release("1.2.1"), find_gpu("A100"), Wishes({"max_input_len": 32}))
    with pytest.raises(InputError, match="--use_fused_mlp enable: MIXED_PRECISION"):
        make_plan(folder, find_release("1.2.1"), find_gpu("L40S"), Wishes({"max_input_len": 32, "use_fused_mlp": True}))


def test_the_command_takes_both_flags_several_times(tiny: Tiny, tmp_path: Path) -> None:
    source = tiny(**WIDE)
    base = ["convert", "--model_dir", source, "--output_dir", tmp_path / "out", "--quant", "W8A16"]
    shown = run(*base, "--exclude", "*.0.mlp", "--exclude", "*.o_proj", "--quant-layer", "*.1.mlp=W4A16").stdout
    assert "MIXED_PRECISION" in shown
    assert "MIXED_PRECISION" in run("plugins", tmp_path / "out").stdout
    for text, line in (
        ("*.mlp", "give PATTERN=ALGO, such as '*.mlp=W8A16'"),
        ("=W8A16", "give PATTERN=ALGO"),
        ("*.mlp=INT3", "'INT3' is not supported"),
    ):
        again = [*base[:4], tmp_path / "other", *base[5:]]
        assert line in run(*again, "--quant_layer", text, expect=2).stderr
        assert not (tmp_path / "other").exists()


def test_comparison_takes_exclude(tiny: Tiny) -> None:
    source = tiny(**WIDE)
    ids = str(source.parent / "ids.safetensors")
    options = ConvertOptions(str(source), "", calib=ids, calib_size=8, calib_seq_len=24, exclude=("*.mlp",))
    none, some = compare(options, ["none", "W4A16"], ids, 4, 24).results
    assert 4 < some.size.bits < 13 < none.size.bits
    assert some.accuracy.kl > none.accuracy.kl


def test_every_scheme_alone_is_no_mixture(model: Model) -> None:
    for name in SCHEMES:
        precision = Precision(model, scheme_of(name))
        assert mixture.quant_algo(precision) == name
        assert len(precision.schemes) == 1
