"""Folders that others have quantized, written here by a plain packer: repacked to the bit, executed, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from enginesmith.convert.errors import InputError
from enginesmith.convert.models.shapes import hugging_face_shapes
from enginesmith.convert.numbers.quantized import QuantizedLinear, stacked
from enginesmith.convert.prove.folder import QuantizedFolder
from enginesmith.convert.prove.proven import ProvenCheckpoint as Checkpoint
from enginesmith.convert.prove.verify import measure, structure_problems
from enginesmith.convert.sources.folder import Source

from .command import run
from .conftest import write_model
from .readymade_folders import PART, Folder, compressed_config

Converted = Callable[..., Checkpoint]


def check_exact(folder: Folder, checkpoint: Checkpoint, times: int = 1) -> None:
    """Every integer, scale and zero point of the checkpoint is the folder's."""
    for index in range(checkpoint.model.num_hidden_layers):
        layer = checkpoint.layer(index)
        for linear in checkpoint.model.family.linears:
            packed = folder.fused(index, *linear.parts)
            scale = layer[f"{linear.name}.weights_scaling_factor"].t()
            expected = torch.cat([p.integers - p.half for p in packed])
            assert torch.equal(layer[f"{linear.name}.weight"].long(), expected)
            assert torch.equal(scale, torch.cat([p.scale for p in packed]).repeat_interleave(times, 1).to(scale.dtype))
            zeros = torch.cat([p.zero - p.half for p in packed]).repeat_interleave(times, 1)
            if checkpoint.precision.base.name == "W4A16_AWQ":
                assert not zeros.any()
                assert (layer[f"{linear.name}.prequant_scaling_factor"] == 1).all()
                continue
            stored = layer[f"{linear.name}.zero"].t()
            assert torch.equal(stored, (-zeros * scale.float()).to(scale.dtype))
            assert torch.equal((-stored.float() / scale.float()).round().long(), zeros)


CASES = [
    ("gptq", 4, 64, False, "W4A16_GPTQ"),
    ("gptq", 4, 128, True, "W4A16_GPTQ"),
    ("gptq", 8, 128, False, "W8A16_GPTQ"),
    ("gptq_v2", 4, 128, False, "W4A16_GPTQ"),
    ("gptq_v2", 8, 64, True, "W8A16_GPTQ"),
    ("awq", 4, 64, False, "W4A16_GPTQ"),
    ("awq", 4, 128, True, "W4A16_AWQ"),
    ("compressed", 4, 64, True, "W4A16_GPTQ"),
    ("compressed", 4, 128, False, "W4A16_GPTQ"),
    ("compressed", 8, 128, True, "W8A16_GPTQ"),
]


@pytest.mark.parametrize(("kind", "bits", "group", "symmetric", "algo"), CASES)
@pytest.mark.parametrize("tp", [1, 2])
def test_what_was_quantized_is_kept_and_executed(
    kind: str, bits: int, group: int, symmetric: bool, algo: str, tp: int, tmp_path: Path, converted: Converted
) -> None:
    folder = Folder(tmp_path / "hf", kind, bits, group, symmetric)
    checkpoint = converted(folder.path, tp_size=tp)
    assert (checkpoint.precision.base.name, checkpoint.precision.base.group_size) == (algo, group)
    assert structure_problems(checkpoint) == []
    check_exact(folder, checkpoint)
    accuracy = measure(checkpoint, folder.path, str(tmp_path / "ids.safetensors"), 4, 24)
    assert accuracy.kl < 1e-4
    assert json.loads((checkpoint.folder / "enginesmith.json").read_text())["calibration"] is None


@pytest.mark.parametrize("kind", ["gptq", "awq", "compressed"])
def test_the_source_gives_dequantized_weights(kind: str, tmp_path: Path) -> None:
    folder = Folder(tmp_path / "hf", kind)
    source = Source(folder.path)
    layer = source.layer(1)
    wanted = {name.split(".", 3)[3] for name in hugging_face_shapes(source.model) if ".layers.1." in name}
    assert layer.keys() == wanted
    for linear, packed in folder.linears.items():
        if ".layers.1." in linear:
            assert torch.equal(layer[f"{linear.split('.', 3)[3]}.weight"], packed.dequantized())


@pytest.mark.parametrize(("group", "asked", "stored"), [(128, 64, 64), (-1, 128, 128), (-1, 64, 64), (256, 128, 128)])
def test_larger_groups_repeat_their_scale(
    group: int, asked: int, stored: int, tmp_path: Path, converted: Converted
) -> None:
    folder = Folder(tmp_path / "hf", "gptq", 4, group, intermediate_size=256)
    checkpoint = converted(folder.path, group_size=asked)
    assert checkpoint.precision.base.group_size == stored
    check_exact(folder, checkpoint, (256 if group == -1 else group) // stored)


def test_a_group_size_that_mixes_scales_is_refused(tmp_path: Path, converted: Converted) -> None:
    folder = Folder(tmp_path / "hf", "gptq", 4, 64)
    with pytest.raises(InputError, match=r"--group_size 128 would mix .* one every 64 channels; use 64, or give --req"):
        converted(folder.path, group_size=128)
    assert converted(folder.path, group_size=128, requantize=True, quant="W4A16_GPTQ").precision.base.group_size == 128
    words = ["--model_dir", folder.path, "--output_dir", tmp_path / "out"]
    assert "--group_size 128 would mix" in run("convert", *words, "--group-size", 128, expect=2).stderr
    assert "repacked" in run("convert", *words).stdout


def test_groups_that_no_kernel_of_an_engine_takes_are_executed_and_not_repacked(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "hf", "gptq", 4, 32)
    assert QuantizedFolder(folder.path).problems() == []
    told = run("convert", "--model_dir", folder.path, "--output_dir", tmp_path / "out", expect=2).stderr
    assert "group_size 32 cannot be repacked: multiples of 64, and -1, do; give --requantize" in told


def test_biases_cache_and_pipeline_come_along(tmp_path: Path, converted: Converted) -> None:
    folder = Folder(tmp_path / "hf", "gptq", attention_bias=True, mlp_bias=True)
    checkpoint = converted(folder.path, kv_cache="INT8", pp_size=2, sm=90)
    check_exact(folder, checkpoint)
    assert (checkpoint.layer(0)["attention.kv_cache_scaling_factor"] > 0).all()
    assert measure(checkpoint, folder.path, str(tmp_path / "ids.safetensors"), 4, 24).kl < 0.01


def test_quantize_config_beside_config(tmp_path: Path, converted: Converted) -> None:
    folder = Folder(tmp_path / "hf", "gptq")
    config = json.loads((folder.path / "config.json").read_text())
    said = config.pop("quantization_config")
    said.pop("quant_method")
    (folder.path / "config.json").write_text(json.dumps(config))
    (folder.path / "quantize_config.json").write_text(json.dumps(said))
    (folder.path / "model.safetensors").rename(folder.path / "gptq_model-4bit-64g.safetensors")
    checkpoint = converted(folder.path)
    check_exact(folder, checkpoint)
    assert "quantize_config.json" in json.loads((checkpoint.folder / "enginesmith.json").read_text())["source"]
    folder.say(bits=8)
    with pytest.raises(InputError, match=r"quantize_config\.json and config\.json describe different quantizations"):
        Source(folder.path)


@pytest.mark.parametrize(
    ("name", "said", "words"),
    [
        ("quantize_config.json", {"desc_act": "no"}, "desc_act must be true or false, not 'no'"),
        ("quantize_config.json", {"bits": 4.0}, "bits must be an integer"),
        ("quant_config.json", {"zero_point": 1}, "zero_point must be true or false, not 1"),
        (
            "quantize_config.json",
            {"quant_method": "compressed-tensors", "config_groups": [], "bits": None, "group_size": None},
            "config_groups must be an",
        ),
    ],
)
def test_a_wrong_value_is_told_with_its_file(name: str, said: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = Folder(tmp_path / "hf", "awq" if name == "quant_config.json" else "gptq", num_hidden_layers=1).path
    (folder / name).write_text(json.dumps({"bits": 4, "group_size": 64, **said}))
    with pytest.raises(InputError) as refused:
        Source(folder)
    assert str(refused.value).startswith(f"{name}: {words}")


def test_old_autogptqs_biases_of_zeros_are_dropped(tmp_path: Path, converted: Converted) -> None:
    folder = Folder(tmp_path / "hf", "gptq")
    folder.change(bias=torch.zeros(256).half())
    check_exact(folder, converted(folder.path))
    folder.change(bias=torch.ones(256).half())
    with pytest.raises(InputError, match=r"k_proj\.bias is not 0, but config\.json declares no bias"):
        Source(folder.path)


def test_another_quantization_wants_requantize(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "hf", "awq")
    words = ["convert", "--model_dir", folder.path, "--calib", tmp_path / "ids.safetensors", "--calib_size", 8]
    words += ["--calib_seq_len", 24]
    refused = run(*words, "--quant", "W8A16", "--output_dir", tmp_path / "out", expect=2).stderr
    assert "--quant W8A16: the folder's awq weights become W4A16_GPTQ as they are" in refused
    assert "--requantize" in refused
    done = run(*words, "--quant", "W8A16", "--requantize", "--output_dir", tmp_path / "anew").stdout
    assert "W8A16" in done
    accuracy = measure(Checkpoint(tmp_path / "anew"), folder.path, str(tmp_path / "ids.safetensors"), 4, 24)
    assert 0 < accuracy.kl < 0.01
    done = run(*words, "--quant", "W4A16_GPTQ", "--output_dir", tmp_path / "same").stdout
    assert "W4A16_GPTQ repacked from awq" in done


def act_order(folder: Folder) -> None:
    """PART again, its groups spread over the channels."""
    packed = folder.linears[PART]
    g_idx = packed.g_idx[torch.randperm(256, generator=torch.Generator().manual_seed(0))]
    for linear in ("model.layers.0.self_attn.q_proj", PART):
        folder.change(**{f"{linear}.g_idx": g_idx.int()})
    folder.say(desc_act=True)


def left_in_float(folder: Folder) -> None:
    gone: dict[str, torch.Tensor | None] = dict.fromkeys(f"{PART}.{name}" for name in folder.linears[PART].gptq())
    folder.change(**gone, **{f"{PART}.weight": torch.randn(256, 256).half() / 16})


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(act_order, "model.layers.0.self_attn.q_proj: act-order"), (left_in_float, "self_attn.k_proj floating point; ")],
)
def test_what_cannot_be_kept_can_be_requantized(
    spoil: Callable[[Folder], None], words: str, tmp_path: Path, converted: Converted
) -> None:
    folder = Folder(tmp_path / "hf", "gptq")
    spoil(folder)
    with pytest.raises(InputError) as refused:
        converted(folder.path)
    assert words in str(refused.value)
    assert "--requantize" in str(refused.value)
    checkpoint = converted(folder.path, quant="W8A16", requantize=True)
    assert measure(checkpoint, folder.path, str(tmp_path / "ids.safetensors"), 4, 24).kl < 0.01


def test_linears_left_in_float_stay_so(tmp_path: Path, converted: Converted) -> None:
    folder = Folder(tmp_path / "hf", "gptq")
    for linear in [
        name for name in folder.linears if name.endswith(("layers.0.mlp.down_proj", "layers.1.self_attn.o_proj"))
    ]:
        gone: dict[str, torch.Tensor | None] = {f"{linear}.{name}": None for name in folder.linears[linear].gptq()}
        shape = folder.linears[linear].integers.shape
        folder.change(**gone, **{f"{linear}.weight": torch.randn(shape).half() / 16})
    checkpoint = converted(folder.path)
    excluded = json.loads((checkpoint.folder / "config.json").read_text())["quantization"]["exclude_modules"]
    assert excluded[6:] == ["transformer.layers.0.mlp.proj", "transformer.layers.1.attention.dense"]
    assert structure_problems(checkpoint) == []
    assert measure(checkpoint, folder.path, str(tmp_path / "ids.safetensors"), 4, 24).kl < 1e-3
    for flag in ({"exclude": ("*.o_proj",)}, {"quant_layer": ("*.mlp=FP8",)}):
        with pytest.raises(InputError, match="a folder that is quantized already keeps its integers"):
            converted(folder.path, **flag)


def test_scales_must_be_exact_in_the_engines_dtype(tmp_path: Path, converted: Converted) -> None:
    folder = Folder(tmp_path / "hf", "gptq", torch_dtype="bfloat16")
    with pytest.raises(
        InputError, match=r"q_proj: scales are not exact in bfloat16; use --dtype float16, or give --req"
    ):
        converted(folder.path)
    check_exact(folder, converted(folder.path, dtype="float16"))
    folder.change(**{"model.layers.0.self_attn.q_proj.scales": torch.full((4, 256), 0.1)})
    with pytest.raises(InputError, match="not exact in float16; give --requantize"):
        converted(folder.path, dtype="float16")


def test_bfloat16_scales_make_a_bfloat16_engine(tmp_path: Path, converted: Converted) -> None:
    folder = Folder(tmp_path / "hf", "compressed", torch_dtype="bfloat16")
    for linear, packed in folder.linears.items():
        packed.scale = packed.scale.bfloat16()
        folder.change(**{f"{linear}.weight_scale": packed.scale})
    checkpoint = converted(folder.path)
    assert checkpoint.dtype == "bfloat16"
    check_exact(folder, checkpoint)


def test_parts_without_zeros_are_fused_with_parts_that_have_them() -> None:
    integers, scale = torch.ones(2, 64, dtype=torch.int8), torch.ones(2, 1)
    zero = torch.tensor([[3], [-3]], dtype=torch.int8)
    whole = stacked([QuantizedLinear(integers, scale), QuantizedLinear(integers, scale, zero)], ["a", "b"])
    assert torch.equal(whole.zero, torch.tensor([[0], [0], [3], [-3]]))
    assert stacked([QuantizedLinear(integers, scale)] * 2, ["a", "b"]).zero is None


def test_zero_scales_and_contradicted_zeros_are_refused(tmp_path: Path, converted: Converted) -> None:
    folder = Folder(tmp_path / "hf", "awq")
    folder.say(zero_point=False)
    with pytest.raises(InputError, match=r"holds zero points, but config\.json says that there are none"):
        converted(folder.path)
    folder.say(zero_point=True)
    folder.change(scales=torch.zeros(4, 256).half())
    with pytest.raises(InputError, match="scales that are not positive"):
        converted(folder.path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rotate": True}, "--rotate: a folder that is quantized already"),
        ({"symmetric": True}, "--symmetric: "),
        ({"rounding": "nearest"}, "--rounding nearest: "),
        ({"propagate": "quantized"}, "--propagate quantized: "),
        ({"tp_size": 4, "group_size": 128}, "--group_size 128 cannot cut 64 input channels; 64 can"),
    ],
)
def test_options_that_would_change_the_weights(
    options: dict[str, Any], words: str, tmp_path: Path, converted: Converted
) -> None:
    folder = Folder(tmp_path / "hf", "gptq", group=128)
    with pytest.raises(InputError) as refused:
        converted(folder.path, **options)
    assert words in str(refused.value)


def test_yarns_attention_factor_would_change_the_scales(tmp_path: Path, converted: Converted) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    folder = Folder(tmp_path / "hf", "gptq", rope_scaling=yarn)
    with pytest.raises(InputError, match="yarn's attention factor would go into the scales of queries"):
        converted(folder.path)


def test_dequantized_weights_can_be_had(tmp_path: Path, converted: Converted) -> None:
    folder = Folder(tmp_path / "hf", "gptq_v2")
    folder.say(desc_act=True)
    checkpoint = converted(folder.path, requantize=True)
    assert checkpoint.precision.base.name is None
    expected = folder.linears["model.layers.1.mlp.down_proj"].dequantized()
    assert torch.equal(checkpoint.layer(1)["mlp.proj.weight"], expected.half())


def test_act_order_must_say_which_group(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "hf", "gptq")
    folder.say(desc_act=True)
    folder.change(g_idx=None)
    with pytest.raises(InputError, match=rf"tensor {PART}\.g_idx missing"):
        Source(folder.path)


def test_a_recipe_repacks(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "hf", "gptq", num_hidden_layers=1)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model_dir: {folder.path}\noutput_dir: {tmp_path / 'out'}\nconvert: {{}}\n")
    assert run("run", recipe, "--json").stdout
    check_exact(folder, Checkpoint(tmp_path / "out" / "checkpoint"))
    recipe.write_text(recipe.read_text().replace("{}", "{quant: W8A16}"))
    assert "or give --requantize" in run("run", recipe, expect=2).stderr
    recipe.write_text(recipe.read_text().replace("W8A16", "W8A16, requantize: true"))
    assert run("run", recipe, "--json").stdout


def test_requantize_is_for_quantized_folders(tmp_path: Path, converted: Converted) -> None:
    with pytest.raises(InputError, match="--requantize is for folders that are already quantized"):
        converted(write_model(tmp_path / "hf"), quant="W8A16", requantize=True)


def group(**changes: Any) -> dict[str, Any]:
    """A compressed-tensors config group with changes to it, or to its weights."""
    inner = compressed_config(4, 64, True)["config_groups"]["group_0"]
    outer = {key: changes.pop(key) for key in list(changes) if key in ("input_activations", "format")}
    return {"config_groups": {"group_0": {**inner, **outer, "weights": {**inner["weights"], **changes}}}}


@pytest.mark.parametrize(
    ("kind", "said", "words"),
    [
        ("gptq", {"bits": 3}, "config.json: bits 3 cannot be repacked: 4 and 8 do"),
        ("gptq", {"bits": None}, "bits None"),
        ("gptq", {"group_size": 12}, "group_size 12 cannot be repacked: multiples of 8, and -1, do"),
        ("gptq", {"group_size": "128"}, "group_size '128'"),
        ("gptq", {"group_size": 192}, "group_size 192 does not divide the 256 input channels of model.layers.0"),
        ("gptq", {"checkpoint_format": "marlin"}, "checkpoint_format 'marlin' cannot be repacked: save the model with"),
        ("gptq", {"is_marlin_format": True}, "checkpoint_format 'marlin'"),
        ("gptq", {"checkpoint_format": "exllama"}, "checkpoint_format 'exllama'"),
        ("gptq", {"format": "gptq_v2", "checkpoint_format": "gptq"}, "states the formats ['gptq', 'gptq_v2']"),
        ("gptq", {"checkpoint_format": ["gptq"]}, "checkpoint_format \"['gptq']\""),
        ("gptq", {"pack_dtype": "int16"}, "pack_dtype 'int16'"),
        ("gptq", {"lm_head": True}, "lm_head True"),
        ("gptq", {"dynamic": {"down_proj": {"bits": 8}}}, "quantize every linear with the same bits and groups"),
        ("gptq", {"quant_method": "eetq"}, "already quantized ('eetq'); give the unquantized model"),
        ("gptq", {"quant_method": ["gptq"]}, "already quantized (['gptq'])"),
        ("awq", {"version": "gemv"}, "version 'gemv' cannot be repacked: save the model with version gemm"),
        ("awq", {"version": "marlin"}, "version 'marlin'"),
        ("awq", {"bits": 8}, "AWQ's format has 4"),
        ("awq", {"pack_dtype": "int16"}, "pack_dtype 'int16' cannot be repacked: pack the model in int32 words"),
        ("awq", {"zero_point": "yes"}, "zero_point must be true or false"),
        ("compressed", {"format": "marlin-24"}, "format 'marlin-24' cannot be repacked: save the model as pack-quan"),
        ("compressed", {"config_groups": {}}, "config_groups []"),
        ("compressed", {"config_groups": {"a": {}, "b": {}}}, "config_groups ['a', 'b']"),
        ("compressed", group(input_activations={"num_bits": 8}), "only weights may be quantized"),
        ("compressed", group(type="float"), "weights type 'float'"),
        ("compressed", group(strategy="tensor"), "weights strategy 'tensor'"),
        ("compressed", group(num_bits=2), "num_bits 2"),
        ("compressed", {"transform_config": {"config_groups": {"u": {}}}}, "transform_config"),
        ("compressed", {"sparsity_config": {"format": "sparse-24-bitmask"}}, "without sparsity"),
        ("compressed", {"config_groups": ["Linear"]}, "config_groups must be an object"),
    ],
)
def test_what_a_configuration_may_not_say(kind: str, said: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = Folder(tmp_path / "hf", kind, num_hidden_layers=1)
    folder.say(**said)
    with pytest.raises(InputError) as refused:
        Source(folder.path)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "tensors", "words"),
    [
        ("gptq", {"qzeros": None}, f"tensor {PART}.qzeros missing"),
        ("gptq", {"qweight": torch.zeros(32, 255, dtype=torch.int32)}, "has shape [32, 255], config.json implies [32,"),
        ("gptq", {"scales": torch.ones(2, 256).half()}, f"{PART}.scales has shape [2, 256], config.json implies [4,"),
        ("gptq", {"qweight": torch.zeros(32, 256)}, f"{PART}.qweight is F32; only integers (I32)"),
        ("gptq", {"scales": torch.ones(4, 256).int()}, f"{PART}.scales is I32; only floating-point weights (F16, BF16"),
        ("gptq", {"weight": torch.ones(256, 256).half()}, f"{PART}.g_idx is not part of LlamaForCausalLM"),
        ("gptq", {"lm_head.qweight": torch.zeros(1).int()}, "lm_head.qweight is not part of LlamaForCausalLM"),
        ("gptq", {"lm_head.weight": None}, "tensor lm_head.weight missing"),
        ("awq", {"g_idx": torch.zeros(256).int()}, f"{PART}.g_idx is not part of"),
        ("compressed", {"weight_zero_point": None}, f"tensor {PART}.weight_zero_point missing"),
        ("compressed", {"weight_shape": None}, f"tensor {PART}.weight_shape missing"),
        ("compressed", {"weight_shape": torch.tensor([256, 255])}, "holds a weight [256, 255], config.json implies"),
        ("compressed", {"weight_scale": torch.full((256, 4), float("nan")).half()}, "holds NaN or Inf"),
    ],
)
def test_tensors_that_do_not_fit(
    kind: str, tensors: dict[str, torch.Tensor | None], words: str, tmp_path: Path, converted: Converted
) -> None:
    folder = Folder(tmp_path / "hf", kind)
    folder.change(**tensors)
    with pytest.raises(InputError) as refused:
        converted(folder.path)
    assert words in str(refused.value)
