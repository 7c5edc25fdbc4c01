"""Repositories as generate writes them: read by Triton's protobuf, free of problems, complete or not there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from enginesmith.build.engine_folder import EngineFolder
from enginesmith.build.triton import pbtxt, tensors
from enginesmith.build.triton.check import check
from enginesmith.build.triton.generate import generate
from enginesmith.build.triton.options import TritonOptions
from enginesmith.build.triton.repository import parse
from enginesmith.convert.errors import InputError

from .triton_folders import write_engine, write_tokenizer

VERSIONS = ["0.16.0", "0.17.0.post1", "0.18.2", "0.19.0", "0.20.0", "0.21.0", "1.0.0", "1.2.1", "1.3.0rc20"]


def made(tmp_path: Path, engine: dict[str, Any] | None = None, chat: bool = False, **options: Any) -> Path:
    """A repository in tmp_path/repository."""
    engine_dir = write_engine(tmp_path / "engine", **(engine or {}))
    tokenizer_dir = write_tokenizer(tmp_path / "tokenizer", chat=chat)
    return generate(TritonOptions(str(engine_dir), str(tokenizer_dir), str(tmp_path / "repository"), **options))


def config_of(repository: Path, model: str) -> Any:
    config, problem = parse((repository / model / "config.pbtxt").read_text())
    assert config is not None, problem
    return config


def parameters(config: Any) -> dict[str, str]:
    return {name: value.string_value for name, value in config.parameters.items()}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("decoupled", [False, True])
def test_every_release_is_free_of_problems(version: str, decoupled: bool, tmp_path: Path) -> None:
    repository = made(tmp_path, {"version": version, "dtype": "bfloat16"}, decoupled=decoupled)
    assert check(repository) == []
    names = {"ensemble", "preprocessing", "tensorrt_llm", "postprocessing"} | (
        {"tensorrt_llm_bls"} if decoupled else set()
    )
    assert {path.parent.name for path in repository.glob("*/config.pbtxt")} == names
    assert {path.name for path in repository.iterdir()} == names | {"launch.sh", "local_server.py", "try.py"}
    for name in names:
        assert "${" not in (repository / name / "config.pbtxt").read_text()
    engine = config_of(repository, "tensorrt_llm")
    inputs = {tensor.name: tensor for tensor in engine.input}
    old = version < "0.20"
    assert ("min_length" in inputs, "random_seed" in inputs) == (old, old)
    assert ("min_tokens" in inputs, "seed" in inputs) == (not old, not old)
    assert ("return_num_input_tokens" in inputs) == version.startswith("1.")
    assert ("return_perf_metrics" in inputs) == (version >= "0.19")
    assert inputs["prompt_embedding_table"].data_type == (10 if old else 14)  # TYPE_FP16, TYPE_BF16
    assert engine.model_transaction_policy.decoupled == decoupled


def test_values_come_from_the_engine(tmp_path: Path) -> None:
    repository = made(tmp_path, {"logits_dtype": "float16", "max_batch_size": 4, "max_beam_width": 3, "ranks": 2})
    engine = config_of(repository, "tensorrt_llm")
    assert engine.max_batch_size == 4
    assert list(engine.dynamic_batching.preferred_batch_size) == [4]
    assert {tensor.data_type for tensor in engine.output if tensor.name.endswith("_logits")} == {10}
    assert parameters(engine)["max_beam_width"] == "3"
    assert parameters(engine)["gpt_model_path"] == str(tmp_path / "engine")
    assert parameters(engine)["exclude_input_in_output"] == "true"
    assert parameters(config_of(repository, "preprocessing"))["vocab_size"] == "600"
    assert config_of(repository, "preprocessing").instance_group[0].count == 4
    assert "world_size=2" in (repository / "launch.sh").read_text()


def test_a_huge_engine_batch_is_capped(tmp_path: Path) -> None:
    assert config_of(made(tmp_path, {"max_batch_size": 2048}), "ensemble").max_batch_size == 64


def test_same_input_same_bytes(tmp_path: Path) -> None:
    repository = made(tmp_path)
    folders = (str(tmp_path / "engine"), str(tmp_path / "tokenizer"))
    again = generate(TritonOptions(*folders, str(tmp_path / "again")))
    for path in repository.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (again / path.relative_to(repository)).read_bytes()


def test_self_contained(tmp_path: Path) -> None:
    repository = made(tmp_path, {"ranks": 2}, self_contained=True, mount_dir="/srv/m", bls=True)
    assert {path.name for path in (repository / "tensorrt_llm/1").iterdir()} >= {"config.json", "rank1.engine"}
    assert parameters(config_of(repository, "tensorrt_llm"))["gpt_model_path"] == "/srv/m/tensorrt_llm/1"
    moved = repository.rename(tmp_path / "elsewhere")
    (tmp_path / "engine").rename(tmp_path / "gone")
    (tmp_path / "tokenizer").rename(tmp_path / "gone too")
    assert check(moved, "/srv/m") == []
    assert any("gpt_model_path: /srv/m/tensorrt_llm/1 is not a folder" in problem for problem in check(moved))


@pytest.mark.parametrize(
    ("engine", "options", "words"),
    [
        ({}, {"max_batch_size": 9}, "--max_batch_size 9: the engine was built for 1 to 8"),
        ({"use_paged_context_fmha": False}, {"enable_kv_cache_reuse": True}, "without use_paged_context_fmha"),
        ({"use_paged_context_fmha": False}, {"enable_chunked_context": True}, "--enable_chunked_context"),
        ({"kv_cache": "INT8"}, {"enable_kv_cache_reuse": True}, "INT8 KV cache"),
        ({}, {"kv_cache_free_gpu_mem_fraction": 1.5}, "above 0, at most 1"),
        ({}, {"kv_cache_free_gpu_mem_fraction": 0.0}, "above 0, at most 1"),
        ({}, {"kv_cache_free_gpu_mem_fraction": float("nan")}, "above 0, at most 1"),
        ({}, {"batch_scheduler_policy": "fair"}, "guaranteed_no_evict"),
        ({}, {"max_queue_delay": -1}, "--max_queue_delay is -1"),
        ({}, {"max_attention_window_size": 0}, "--max_attention_window_size is 0"),
        ({}, {"bls_instances": 0}, "--bls_instances is 0"),
        ({}, {"mount_dir": "models"}, "--mount_dir models"),
        ({}, {"chat": True}, "has no chat template"),
        ({"version": "0.15.0"}, {}, "0.15.0"),
        ({"version": "2.0.0"}, {}, "0.16 to 1.3"),
        ({"logits_dtype": "bfloat16"}, {}, "logits_dtype bfloat16"),
        ({"dtype": "float8"}, {}, "dtype float8 is not one of float32, float16, bfloat16"),
        ({"vocab_size": 100}, {}, "a vocabulary of 100"),
        ({"vocab_size": 310}, {}, "has token id 310, the engine a vocabulary of 310"),
        ({"max_num_tokens": 512}, {}, "less than max_input_len 1024, so its longest prompts do not fit into one step"),
        ({"max_num_tokens": 512}, {"enable_chunked_context": False}, "serve with --enable_chunked_context"),
        ({"max_num_tokens": 512, "kv_cache": "INT8"}, {}, "build with --max_num_tokens 1024"),
        ({}, {"mount_dir": "/a\x1bb"}, "--mount_dir: a path with control characters"),
        ({}, {"mount_dir": "/a\udcffb"}, "--mount_dir: a path with control characters, or not in"),
        ({}, {"tokenizer_dir": "/nowhere"}, "--tokenizer_dir: /nowhere is not a folder"),
    ],
)
def test_what_cannot_be_served(engine: dict[str, Any], options: dict[str, Any], words: str, tmp_path: Path) -> None:
    folders = {
        "engine_dir": str(write_engine(tmp_path / "engine", **engine)),
        "tokenizer_dir": str(write_tokenizer(tmp_path / "tokenizer")),
        "output_dir": str(tmp_path / "repository"),
    }
    with pytest.raises(InputError, match=r"^--") as raised:
        generate(TritonOptions(**{**folders, **options}))
    assert words in str(raised.value)
    assert not (tmp_path / "repository").exists()


SEVERAL = {"chat_template": [{"name": "rag", "template": "{{ messages }}"}, {"name": "tool", "template": "hello"}]}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (SEVERAL, "several chat templates and no default among them"),
        ({"chat_template": "{% for m in messages %}{{ m.content }}"}, "does not render (Unexpected end of template"),
        ({"chat_template": "{{ raise_exception('system first') }}"}, "does not render (system first)"),
        ({"chat_template": "{{ messages[1].content }}"}, "does not render ("),
        ({"chat_template": "{{ messages.__class__.__mro__[1].__subclasses__() }}"}, "does not render ("),
    ],
)
def test_a_chat_template_that_does_not_work(config: dict[str, Any], words: str, tmp_path: Path) -> None:
    folders = write_engine(tmp_path / "engine"), write_tokenizer(tmp_path / "tokenizer"), tmp_path / "repository"
    settings = tmp_path / "tokenizer" / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **config}))
    with pytest.raises(InputError, match=r"^--chat: ") as raised:
        generate(TritonOptions(*map(str, folders), chat=True))
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def planned(folder: Path, **plan: Any) -> None:
    """What building leaves beside an engine."""
    (folder / "enginesmith.json").write_text(json.dumps({"plan": plan}))


@pytest.mark.parametrize(
    ("plan", "options", "fraction", "chunked"),
    [
        (None, {}, "0.9", "false"),
        ({}, {}, "0.9", "false"),
        ({"chunked_context": True, "kv_cache_free_gpu_mem_fraction": 1}, {}, "1", "true"),
        ({"chunked_context": True}, {"enable_chunked_context": False}, "0.9", "false"),
        ({"kv_cache_free_gpu_mem_fraction": 0.5}, {"kv_cache_free_gpu_mem_fraction": 1.0}, "1.0", "false"),
    ],
)
def test_the_engine_is_served_as_it_was_planned(
    plan: dict[str, Any] | None, options: dict[str, Any], fraction: str, chunked: str, tmp_path: Path
) -> None:
    engine, tokenizer = write_engine(tmp_path / "engine"), write_tokenizer(tmp_path / "tokenizer")
    if plan is not None:
        planned(engine, **plan)
    repository = generate(TritonOptions(str(engine), str(tokenizer), str(tmp_path / "repository"), **options))
    stated = parameters(config_of(repository, "tensorrt_llm"))
    assert (stated["kv_cache_free_gpu_mem_fraction"], stated["enable_chunked_context"]) == (fraction, chunked)
    assert check(repository) == []


@pytest.mark.parametrize(
    ("planned_window", "option", "served"),
    [(4096, None, "4096"), (None, None, None), (None, 512, "512"), (4096, 512, "512"), (4096, 4096, "4096")],
)
def test_a_sliding_window_is_served_as_planned(
    planned_window: int | None, option: int | None, served: str | None, tmp_path: Path
) -> None:
    engine = write_engine(tmp_path / "engine", max_seq_len=8192)
    planned(engine, checkpoint={"sliding_window": planned_window})
    folders = str(engine), str(write_tokenizer(tmp_path / "tokenizer")), str(tmp_path / "repository")
    repository = generate(TritonOptions(*folders, max_attention_window_size=option))
    assert parameters(config_of(repository, "tensorrt_llm")).get("max_attention_window_size") == served
    assert check(repository) == []


def test_windows_of_some_layers_are_served_as_planned(tmp_path: Path) -> None:
    """A list that goes round the layers: as many tokens as there may be where a layer has no window."""
    engine = write_engine(tmp_path / "engine", max_seq_len=8192)
    planned(engine, checkpoint={"sliding_window": None, "attention_windows": [512, 512, None]})
    folders = str(engine), str(write_tokenizer(tmp_path / "tokenizer")), str(tmp_path / "repository")
    repository = generate(TritonOptions(*folders))
    assert parameters(config_of(repository, "tensorrt_llm"))["max_attention_window_size"] == "512,512,8192"
    assert check(repository) == []
    one_for_all = generate(TritonOptions(*folders[:2], str(tmp_path / "other"), max_attention_window_size=512))
    assert any("the model's layers have 512,512,8192 in turn" in problem for problem in check(one_for_all))


def test_a_window_wider_than_the_models(tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "engine")
    planned(engine, checkpoint={"sliding_window": 4096})
    folders = str(engine), str(write_tokenizer(tmp_path / "tokenizer")), str(tmp_path / "repository")
    with pytest.raises(InputError, match="--max_attention_window_size 8192: the model's sliding window is 4096 tokens"):
        generate(TritonOptions(*folders, max_attention_window_size=8192))


def test_prompts_of_several_chunks_as_planned(tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "engine", max_num_tokens=512)
    planned(engine, chunked_context=True)
    folders = engine, write_tokenizer(tmp_path / "tokenizer"), tmp_path / "repository"
    assert check(generate(TritonOptions(*map(str, folders)))) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[", "not readable as JSON"),
        ('{"plan": []}', "plan must be an object"),
        ('{"plan": {"checkpoint": {"sliding_window": 0}}}', "checkpoint.sliding_window must be an integer from 1"),
        ('{"plan": {"checkpoint": {"sliding_window": true}}}', "checkpoint.sliding_window must be an integer from 1"),
        ('{"plan": {"checkpoint": []}}', "plan.checkpoint must be an object"),
        ('{"plan": {"chunked_context": "yes"}}', "plan.chunked_context must be true or false, not 'yes'"),
        ('{"plan": {"kv_cache_free_gpu_mem_fraction": "most"}}', "fraction must be a positive number"),
        ('{"plan": {"kv_cache_free_gpu_mem_fraction": NaN}}', "NaN is no number of JSON"),
    ],
)
def test_a_broken_plan(content: str, words: str, tmp_path: Path) -> None:
    folders = write_engine(tmp_path / "engine"), write_tokenizer(tmp_path / "tokenizer"), tmp_path / "repository"
    (tmp_path / "engine" / "enginesmith.json").write_text(content)
    with pytest.raises(InputError) as raised:
        generate(TritonOptions(*map(str, folders)))
    assert words in str(raised.value)


def test_an_engine_with_pipeline_parallelism(tmp_path: Path) -> None:
    mapping = {"world_size": 4, "tp_size": 2, "pp_size": 2}
    repository = made(tmp_path, {"ranks": 4, "mapping": mapping}, self_contained=True, bls=True)
    assert EngineFolder(tmp_path / "engine").pp_size == 2
    assert len(list(repository.glob("tensorrt_llm/1/rank*.engine"))) == 4
    assert "world_size=4" in (repository / "launch.sh").read_text()
    assert check(repository) == []


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json: no such file"),
        (lambda folder: (folder / "config.json").rename(folder / "plan.json"), "engine is a plan; bash "),
        (lambda folder: (folder / "config.json").write_text("[" * 100_000), "not readable as JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "holds no JSON object"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), "not UTF-8 text"),
        (
            lambda folder: (folder / "config.json").write_text('{"version": "1.0.0"}'),
            "config.json has no pretrained_config, as an engine's has; enginesmith build plans engines",
        ),
        (lambda folder: (folder / "rank1.engine").unlink(), "rank1.engine is missing"),
        (lambda folder: (folder / "rank2.engine").touch(), "rank2.engine belongs to another build"),
        (lambda folder: (folder / "rank0.engine").write_bytes(b""), "rank0.engine: is empty"),
    ],
)
def test_broken_engine_folders(damage: Any, words: str, tmp_path: Path) -> None:
    folder = write_engine(tmp_path / "engine", ranks=2)
    damage(folder)
    with pytest.raises(InputError) as raised:
        EngineFolder(folder)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": ""}, "version"),
        ({"version": "latest"}, "'latest' is no version"),
        ({"version": "0.16." + "0" * 5000}, "a printable name of at most"),
        ({"logits_dtype": "\x1b[2J"}, "logits_dtype must be a printable name"),
        ({"version": "0.16.0; echo"}, "'0.16.0; echo' is no version"),
        ({"max_batch_size": True}, "max_batch_size must be an integer from 1 to 2147483648, not True"),
        ({"max_input_len": -1}, "max_input_len must be an integer from 1 to 2147483648, not -1"),
        ({"vocab_size": "many"}, "pretrained_config.vocab_size must be an integer from 1 to 2147483648, not 'many'"),
        ({"mapping": {"world_size": 3, "tp_size": 2}}, "world_size 3 is not"),
        ({"quantization": "none"}, "pretrained_config.quantization must be an object"),
    ],
)
def test_engine_configs_that_make_no_sense(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        EngineFolder(write_engine(tmp_path / "engine", **changes))
    assert words in str(raised.value)


def test_engine_folder_says_what_config_json_says(tmp_path: Path) -> None:
    engine = EngineFolder(write_engine(tmp_path / "engine", "1.2.0rc3", ranks=2, kv_cache="FP8"))
    assert (engine.version, engine.release, engine.world_size, engine.tp_size) == ("1.2.0rc3", (1, 2), 2, 2)
    assert (engine.quant_algo, engine.kv_cache_quant_algo) == ("W8A8_SQ_PER_CHANNEL", "FP8")
    assert (engine.dtype, engine.logits_dtype, engine.vocab_size) == ("float16", "float32", 600)
    assert engine.why_no_paged_context() is None


@pytest.mark.parametrize("text", ['a"b', "a\\b", "a\nb", "\x01\x7f", "${x}", "é 你好 \U0001f600", "'", "\\n", ""])
def test_strings_survive_the_text_format(text: str) -> None:
    written = pbtxt.write({"name": text, "parameters": [{"key": "k", "value": {"string_value": text}}]})
    config, problem = parse(written)
    assert config is not None, problem
    assert config.name == text
    assert config.parameters["k"].string_value == text


def test_paths_with_odd_characters(tmp_path: Path) -> None:
    odd = tmp_path / 'it\'s "a" $(touch x); `b` \\ 你\u200d'
    repository = made(odd, bls=True)
    assert check(repository) == []
    assert parameters(config_of(repository, "tensorrt_llm"))["gpt_model_path"] == str(odd / "engine")


def test_try_script_compiles_and_explains_itself(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, made(tmp_path) / "try.py", "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--max_tokens" in done.stdout


def test_the_ensemble_maps_every_shared_tensor() -> None:
    for release in [(0, 16), (0, 19), (0, 20), (1, 2)]:
        declared = {tensor.name for tensor in tensors.TEXT_INPUTS if tensor.exists(release)}
        used = {source for step in tensors.ensemble_steps(release) for source in step.inputs.values()}
        assert declared <= used
        made_by = {target for step in tensors.ensemble_steps(release) for target in step.outputs.values()}
        assert {tensor.name for tensor in tensors.TEXT_OUTPUTS if tensor.exists(release)} <= made_by
        assert used - declared <= made_by
