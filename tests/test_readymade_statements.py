"""What a ready-made folder says about itself, each statement held against its tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from enginesmith.convert.errors import InputError
from enginesmith.convert.prove.proven import ProvenCheckpoint as Checkpoint
from enginesmith.convert.sources.folder import Source
from enginesmith.convert.sources.readymade.names import exact_or_pattern, pattern, shell

from .readymade_folders import PART, Folder, compressed_config
from .test_readymade import check_exact
from .test_repack import pack

Converted = Callable[..., Checkpoint]


def refused(folder: Folder) -> str:
    """Refused when it is read, or before any work."""
    with pytest.raises(InputError) as caught:
        read(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    return str(caught.value)


def read(folder: Folder) -> Source:
    source = Source(folder.path)
    source.check_ready_made()
    return source


def store_zeros(folder: Folder, value: int, bits: int = 4) -> None:
    """One stored zero point everywhere."""
    shapes = {linear: packed.scale.t().shape for linear, packed in folder.linears.items()}
    folder.change(**{f"{name}.qzeros": pack(torch.full(shape, value), bits) for name, shape in shapes.items()})


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("label", ["gptq", "gptq_v2", None])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("stated", [True, None])
def test_symmetric_zeros_say_which_format_it_is(
    bits: int, label: str | None, version: int, stated: bool | None, tmp_path: Path, converted: Converted
) -> None:
    """The middle is stored as 7 or 127 in the first version, as 8 or 128 in the second, whatever the label."""
    folder = Folder(tmp_path / "hf", "gptq", bits, 64, symmetric=True, num_hidden_layers=1)
    store_zeros(folder, 2 ** (bits - 1) - (2 - version), bits)
    folder.say(sym=stated, checkpoint_format=label)
    checkpoint = converted(folder.path)
    check_exact(folder, checkpoint)
    notes = json.loads((checkpoint.folder / "enginesmith.json").read_text())["source_notes"]
    differs = version != {"gptq": 1, "gptq_v2": 2, None: 1}[label]
    words = f"config.json names version {3 - version} of GPTQ's format; zero points are stored as in {version}"
    assert notes == ([words] if differs else [])


@pytest.mark.parametrize("label", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("value", [0, 6, 9, 15])
def test_symmetric_zeros_are_in_the_middle_or_refused(label: str, value: int, tmp_path: Path) -> None:
    folder = Folder(tmp_path / "hf", "gptq", symmetric=True, num_hidden_layers=1)
    folder.say(checkpoint_format=label)
    store_zeros(folder, value)
    assert "zero points that are not all 7 (gptq) or 8 (gptq_v2), but the folder says sym: true" in refused(folder)


def test_one_zero_off_the_middle_is_refused_before_work(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "hf", "gptq", symmetric=True)
    zeros = torch.full((4, 256), 7)
    zeros[3, 255] = 8
    folder.change(qzeros=pack(zeros, 4))
    assert refused(folder).startswith(f"{PART}.qzeros: zero points that are not all 7")
    folder.say(sym=False)
    assert read(folder).packed


def test_asymmetric_zeros_are_as_the_label_says(tmp_path: Path) -> None:
    """Where no statement contradicts the label, it decides, the middle of the other version too."""
    folder = Folder(tmp_path / "hf", "gptq", symmetric=False, num_hidden_layers=1)
    store_zeros(folder, 8)
    name = "model.layers.0.self_attn.k_proj"
    assert (read(folder).quantized(name).zero == 1).all()


@pytest.mark.parametrize("kind", ["gptq", "compressed"])
def test_groups_out_of_order_must_be_stated(kind: str, tmp_path: Path) -> None:
    folder = Folder(tmp_path / "hf", kind)
    index = "g_idx" if kind == "gptq" else "weight_g_idx"
    plain = torch.arange(256) // 64
    folder.change(**{index: plain.int()})
    assert read(folder).packed
    folder.change(**{index: plain.flip(0).int()})
    key = "desc_act: true" if kind == "gptq" else "actorder: group"
    assert f"{PART}.{index}: its groups are not in order, but config.json has no {key}" in refused(folder)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (torch.arange(256) // 128, "does not make 4 groups of 64 channels each"),
        (torch.cat((torch.arange(256)[1:] // 64, torch.tensor([3]))), "does not make 4 groups"),
        (torch.full((256,), -1), "does not make 4 groups"),
        (torch.full((256,), 4), "does not make 4 groups"),
    ],
)
def test_groups_are_of_the_stated_size(index: torch.Tensor, words: str, tmp_path: Path) -> None:
    folder = Folder(tmp_path / "hf", "gptq")
    folder.change(**{f"{linear}.g_idx": packed.g_idx.int() for linear, packed in folder.linears.items()})
    folder.say(desc_act=True)
    assert read(folder).packed
    folder.change(g_idx=index.int())
    assert words in refused(folder)


def weights(**changes: Any) -> dict[str, Any]:
    """A compressed-tensors configuration with changes to its weights."""
    group = compressed_config(4, 64, True)["config_groups"]["group_0"]
    return {"config_groups": {"group_0": {**group, "weights": {**group["weights"], **changes}}}}


def test_symmetric_compressed_weights_have_no_zeros(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "hf", "compressed", symmetric=True)
    folder.change(weight_zero_point=torch.zeros(256, 4, dtype=torch.int8))
    assert read(folder).packed
    folder.change(weight_zero_point=torch.ones(256, 4, dtype=torch.int8))
    assert f"{PART}: holds zero points, but config.json says that there are none" in refused(folder)


def test_awq_without_zero_points_has_none(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "hf", "awq", symmetric=False)
    folder.say(zero_point=False)
    assert "holds zero points, but config.json says that there are none" in refused(folder)


def test_awq_that_is_symmetric_has_no_zero_points(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "hf", "awq", symmetric=False)
    folder.say(sym=True, zero_point=None)
    assert "holds zero points, but config.json says that there are none" in refused(folder)
    folder.say(sym=True, zero_point=True)
    assert "sym true and zero_point true contradict each other" in refused(folder)


@pytest.mark.parametrize(
    "said", [{"w_bit": 8, "bits": 4}, {"bits": 4, "w_bit": 8}, {"q_group_size": 128, "group_size": 64}]
)
def test_a_key_by_two_names_has_one_value(said: dict[str, Any], tmp_path: Path) -> None:
    folder = Folder(tmp_path / "hf", "awq")
    config = json.loads((folder.path / "config.json").read_text())
    rest = {key: value for key, value in folder.said.items() if key not in said}
    config["quantization_config"] = {**said, **rest}
    (folder.path / "config.json").write_text(json.dumps(config))
    assert "contradict each other" in refused(folder)
    folder.say(w_bit=4, q_group_size=64)
    assert read(folder).ready is not None


def test_lists_of_every_file_count(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "hf", "gptq", num_hidden_layers=1)
    beside = {**folder.said, "modules_to_not_convert": ["k_proj"]}
    (folder.path / "quantize_config.json").write_text(json.dumps(beside))
    assert refused(folder).startswith("quantize_config.json: modules_to_not_convert leaves model.layers.0.self_attn.k_")


LISTS: list[tuple[str, dict[str, Any]]] = [
    ("gptq", {"dynamic": {r"-:.*\.k_proj": {}}}),
    ("gptq", {"modules_to_not_convert": ["k_proj"]}),
    ("gptq", {"modules_in_block_to_quantize": [["self_attn.q_proj", "self_attn.v_proj"], ["self_attn.o_proj"]]}),
    ("awq", {"modules_to_not_convert": ["self_attn.k_proj"]}),
    ("compressed", {"ignore": ["lm_head", "model.layers.0.self_attn.k_proj"]}),
    ("compressed", {"ignore": [r"re:.*self_attn\.k_proj"]}),
    ("compressed", {"config_groups": {"a": {**weights()["config_groups"]["group_0"], "targets": ["re:.*mlp"]}}}),
    ("compressed", {"config_groups": {"a": {**weights()["config_groups"]["group_0"], "targets": []}}}),
    ("compressed", {"ignore": ["Linear"]}),
]


@pytest.mark.parametrize(("kind", "said"), LISTS)
def test_what_is_said_to_be_float_is_float(kind: str, said: dict[str, Any], tmp_path: Path) -> None:
    folder = Folder(tmp_path / "hf", kind, num_hidden_layers=1)
    folder.say(**said)
    message = refused(folder)
    assert "leaves model.layers.0.self_attn." in message
    assert "in floating point, but its tensors are quantized; correct it" in message


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("gptq", {"dynamic": {r"-:.*\.vision.*": {}}, "modules_to_not_convert": ["lm_head"]}),
        ("gptq", {"modules_in_block_to_quantize": [["self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj"],
                  ["self_attn.o_proj"], ["mlp.up_proj", "mlp.gate_proj"], ["mlp.down_proj"]]}),
        ("gptq", {"dataset": "c4", "tokenizer": None, "use_exllama": True, "exllama_config": {"version": 1},
                  "damp_percent": 0.1, "adapter": None, "rotation": None, "provider": "auto-round", "nsamples": 128}),
        ("awq", {"modules_to_not_convert": ["visual", "lm_head"], "do_fuse": False, "backend": "autoawq", "sym": True}),
        ("compressed", {"ignore": ["lm_head", "re:.*vision.*"], "version": "0.9", "quantization_status": "compressed"}),
        ("compressed", weights(observer="mse", observer_kwargs={"a": 1}, dynamic=False, actorder="weight")),
    ],
)  # fmt: skip
def test_harmless_statements_are_harmless(kind: str, said: dict[str, Any], tmp_path: Path) -> None:
    folder = Folder(tmp_path / "hf", kind, symmetric=True, num_hidden_layers=1)
    folder.say(**said)
    assert len(read(folder).packed) == 7


@pytest.mark.parametrize(
    ("kind", "said", "words"),
    [
        ("gptq", {"rotation": "hadamard"}, "unknown key 'rotation'"),
        ("gptq", {"adapter": {"name": "lora"}}, "unknown key 'adapter'"),
        ("gptq", {"sym": "yes"}, "sym must be true or false"),
        ("gptq", {"desc_act": 1}, "desc_act must be true or false"),
        ("gptq", {"dynamic": {"-:(a+)+$": {}}}, "dynamic: pattern '(a+)+$' is too complicated"),
        ("gptq", {"dynamic": {"-:[": {}}}, "dynamic: pattern '[' is no regular expression"),
        ("gptq", {"modules_in_block_to_quantize": "all"}, "modules_in_block_to_quantize must be lists of names"),
        ("gptq", {"modules_to_not_convert": "lm_head"}, "modules_to_not_convert must be a list of texts"),
        ("gptq", {"modules_to_not_convert": ["x"] * 100_001}, "must be a list of at most 100000 names"),
        ("gptq", {"data_type": "float"}, "data_type 'float'"),
        ("awq", {"desc_act": True}, "desc_act True"),
        ("awq", {"modules_to_convert": ["x"]}, "did you mean modules_to_not_convert?"),
        ("compressed", {"quantization_status": "frozen"}, "quantization_status 'frozen'"),
        ("compressed", {"format": "int-quantized", **weights(num_bits=4)}, "cannot be repacked: 8 bits do"),
        (
            "compressed",
            {"format": "int-quantized", **weights(num_bits=8, strategy="group")},
            "weights strategy 'group' cannot be repacked: tensor and channel do",
        ),
        ("compressed", weights(dynamic=True), "weights dynamic True"),
        ("compressed", weights(block_structure="2x2"), "weights block_structure '2x2'"),
        ("compressed", weights(actorder="random"), "actorder 'random'"),
        ("compressed", weights(strategy="channel"), "strategy channel and group_size 64 contradict"),
        ("compressed", weights(more=1), "unknown key 'config_groups.group_0.weights.more'"),
        ("compressed", {"ignore": ["re:(.*)*"]}, "ignore: pattern '(.*)*' is too complicated"),
        ("compressed", {"ignore": [1]}, "ignore must be a list of texts"),
    ],
)
def test_what_may_change_the_meaning_is_refused(kind: str, said: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = Folder(tmp_path / "hf", kind, num_hidden_layers=1)
    folder.say(**said)
    assert words in refused(folder)


def test_formats_of_a_group_and_of_all_agree(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "hf", "compressed", symmetric=True, num_hidden_layers=1)
    group = {**weights()["config_groups"]["group_0"], "format": "pack-quantized"}
    folder.say(config_groups={"a": group}, format="mixed-precision")
    assert read(folder).packed
    folder.say(config_groups={"a": group}, format="int-quantized")
    assert "states the formats ['pack-quantized', 'int-quantized']" in refused(folder)


def test_patterns_take_no_long_time() -> None:
    name = "model.layers.0.self_attn." + "a" * 40
    for text in (
        "(a+)+b",
        "(a|a)*b",
        ".*" * 5 + "b",
        "a" * 2000,
        r"(a)\1",
        "(?:a*)*",
        "a**",
        ".?" * 30 + "b",
        "(.|..)" * 20,
    ):
        with pytest.raises(InputError):
            pattern(text, "config.json", "ignore")
    assert pattern(r".*\.(q|k)_proj$", "config.json", "ignore").match("model.layers.0.self_attn.k_proj")
    assert not shell(["*a" * 50 + "b"], "f", "k")(name)
    assert shell(["*self_attn*"], "f", "k")(name)
    numbers = [f"*{i}" for i in range(2000)]
    with pytest.raises(InputError, match="more than 1000 patterns"):
        shell(numbers, "f", "k")
    with pytest.raises(InputError, match="more than 1000 patterns"):
        exact_or_pattern([f"re:a{number}" for number in numbers], "f", "k")
    many = exact_or_pattern([f"model.layers.{i}.x" for i in range(100_000)], "config.json", "ignore")
    assert many("model.layers.99999.x")
    assert not many(name)
