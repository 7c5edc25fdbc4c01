"""check(): every fault that is put into a repository is told, and no input makes it fall over."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from enginesmith.build.triton.check import check, examine
from enginesmith.build.triton.generate import generate
from enginesmith.build.triton.options import TritonOptions
from enginesmith.convert.errors import InputError

from .triton_folders import VOCABULARY, write_engine, write_tokenizer

Damage = Callable[[Path], object]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Decoupled, with BLS, for a 0.16 engine with an INT8 KV cache; free of problems."""
    engine = write_engine(tmp_path / "engine", kv_cache="INT8", ranks=2)
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    made = generate(TritonOptions(str(engine), str(tokenizer), str(tmp_path / "repository"), decoupled=True))
    assert check(made) == []
    return made


def edit(model: str, pattern: str, replacement: str, count: int = 1) -> Damage:
    """Replace what a pattern finds in a model's configuration."""

    def damage(repository: Path) -> None:
        path = repository / model / "config.pbtxt"
        text, found = re.subn(pattern, replacement, path.read_text(), count=count, flags=re.DOTALL)
        assert found
        path.write_text(text)

    return damage


def mapped(name: str) -> str:
    return rf'    input_map {{\n      key: "{name}".*?}}\n'


def dtype(name: str) -> str:
    return rf'(name: "{name}"\n  data_type: )TYPE_\w+'


def parameter(name: str) -> str:
    return rf'(key: "{name}"\n  value {{\n    string_value: )"[^"]*"'


def write(name: str, content: bytes) -> Damage:
    return lambda repository: (repository / name).write_bytes(content)


def remove(name: str) -> Damage:
    return lambda repository: (repository / name).unlink()


def instead(name: str, make: Callable[[Path], object]) -> Damage:
    def damage(repository: Path) -> None:
        (repository / name).unlink()
        make(repository / name)

    return damage


def link(name: str, target: str) -> Damage:
    return instead(name, lambda path: path.symlink_to(target))


FAULTS: list[tuple[Damage, str]] = [
    # What a model's folder must hold.
    (remove("ensemble/config.pbtxt"), "ensemble/config.pbtxt: no such file"),
    (remove("preprocessing/1/model.py"), "preprocessing/1/model.py: no such file"),
    (write("postprocessing/1/model.py", b"def f(:\n"), "line 1 is not Python"),
    (write("postprocessing/1/model.py", b"pass\n"), "no class TritonPythonModel"),
    (lambda repository: (repository / "ensemble/1").rename(repository / "ensemble/one"), "ensemble: no version folder"),
    (lambda repository: (repository / "new").mkdir(), "new/config.pbtxt: no such file"),
    # Configurations by themselves.
    (edit("preprocessing", 'name: "preprocessing"', 'name: "pre"'), "name is 'pre'"),
    (edit("tensorrt_llm", parameter("gpt_model_path"), r'\1"${engine_dir}"'), "${engine_dir} not filled"),
    (edit("ensemble", r"max_batch_size: \d+", "max_batch_size: ${batch}"), "${batch} not filled"),
    (edit("ensemble", "TYPE_STRING", "TYPE_TEXT"), "ensemble/config.pbtxt: not a model configuration"),
    (edit("tensorrt_llm", r"preferred_batch_size: \[8\]", "preferred_batch_size: [99]"), "preferred_batch_size 99"),
    # The ensemble's connections.
    (edit("preprocessing", 'name: "QUERY"', 'name: "PROMPT"'), "maps input QUERY, which preprocessing does not have"),
    (edit("preprocessing", 'name: "INPUT_ID"', 'name: "INPUT_IDS"'), "maps output INPUT_ID, which preprocessing"),
    (edit("ensemble", mapped("input_lengths"), ""), "required input input_lengths is not mapped"),
    (edit("ensemble", 'value: "_INPUT_ID"', 'value: "_IDS"', 1), "reads _INPUT_ID, which nothing makes"),
    (edit("ensemble", 'value: "text_output"', 'value: "answer"'), "no step makes the output text_output"),
    (edit("postprocessing", "TYPE_INT32", "TYPE_INT64"), "TYPE_INT32 in tensorrt_llm's output_ids, TYPE_INT64"),
    (edit("postprocessing", r"dims: \[-1, -1\]", "dims: [-1]"), "_TOKENS_BATCH has dims [-1, -1]"),
    (edit("ensemble", 'model_name: "postprocessing"', 'model_name: "detokenizer"'), "'detokenizer' is no model"),
    (edit("ensemble", 'value: "batch_index"', 'value: "sequence_index"'), "sequence_index is made by"),
    (edit("ensemble", r"  dims: \[1\]\n", "  dims: [1]\n  optional: true\n"), "text_input is optional, but"),
    # What must agree between models.
    (edit("preprocessing", r"max_batch_size: \d+", "max_batch_size: 2"), "is 8, preprocessing's is 2"),
    (edit("tensorrt_llm_bls", "decoupled: true", "decoupled: false"), "tensorrt_llm_bls: decoupled is false"),
    (edit("tensorrt_llm_bls", r"max_batch_size: \d+", "max_batch_size: 4"), "tensorrt_llm_bls: max_batch_size is 4"),
    (edit("tensorrt_llm_bls", parameter("tensorrt_llm_model_name"), r'\1"llm"'), "'llm' is no model"),
    (edit("ensemble", "max_batch_size", "model_transaction_policy {}\nmax_batch_size"), "decoupled is false, but"),
    # The engine.
    (edit("tensorrt_llm", parameter("gpt_model_path"), r'\1"/nowhere"'), "gpt_model_path: /nowhere is not a folder"),
    (edit("tensorrt_llm", parameter("gpt_model_path"), r'\1"engine"'), "relative path"),
    (edit("tensorrt_llm", parameter("gpt_model_path"), r'\1"/models/../etc"'), "without .."),
    (edit("tensorrt_llm", parameter("gpt_model_path"), r'\1""'), "does not name the engine's folder"),
    (remove("../engine/rank1.engine"), "rank1.engine is missing"),
    (edit("tensorrt_llm", r"max_batch_size: \d+", "max_batch_size: 64"), "the engine was built for 8"),
    (edit("tensorrt_llm", dtype("context_logits"), r"\1TYPE_FP16"), "context_logits is TYPE_FP16"),
    (edit("tensorrt_llm", 'name: "min_length"', 'name: "min_tokens"'), "min_tokens is of TensorRT-LLM 0.20 to 1.3"),
    (edit("ensemble", 'name: "random_seed"', 'name: "seed"'), "ensemble: seed is of TensorRT-LLM"),
    (edit("tensorrt_llm", parameter("enable_kv_cache_reuse"), r'\1"True"'), "reuse is on, but the engine has an INT8"),
    (edit("tensorrt_llm", parameter("enable_chunked_context"), r'\1"true"'), "enable_chunked_context is on"),
    (edit("tensorrt_llm", parameter("max_beam_width"), r'\1"9"'), "max_beam_width is '9'"),
    (edit("tensorrt_llm", parameter("kv_cache_free_gpu_mem_fraction"), r'\1"most"'), "is 'most'"),
    (edit("tensorrt_llm", parameter("batch_scheduler_policy"), r'\1"fair"'), "batch_scheduler_policy is 'fair'"),
    (edit("tensorrt_llm", parameter("gpt_model_type"), r'\1"V2"'), "gpt_model_type is 'V2'"),
    # The tokenizer.
    (edit("preprocessing", parameter("tokenizer_dir"), r'\1"/nowhere"'), "tokenizer_dir: /nowhere is not a folder"),
    (edit("postprocessing", parameter("tokenizer_dir"), r'\1""'), "parameter tokenizer_dir is missing"),
    (write("../tokenizer/tokenizer.json", b"{}"), "no usable tokenizer"),
    (edit("preprocessing", parameter("chat"), r'\1"true"'), "preprocessing: chat is on, but"),
    # What Python models need beside their model.py.
    (remove("preprocessing/1/tokenization.py"), "preprocessing/1/tokenization.py: no such file; model.py imports it"),
    (write("tensorrt_llm_bls/1/tokenization.py", b"def f(:\n"), "tensorrt_llm_bls/1/tokenization.py: line 1 is not"),
    (write("postprocessing/1/model.py", b"from lib.a import TritonPythonModel\n"), "1/lib.py: no such file; model.py"),
    (edit("tensorrt_llm_bls", 'key: "steps"', 'key: "stages"'), "tensorrt_llm_bls: parameter steps is missing"),
    (edit("preprocessing", 'key: "vocab_size"', 'key: "size"'), "preprocessing: parameter vocab_size is missing"),
    (edit("tensorrt_llm_bls", parameter("steps").replace('[^"]*"', '.*?"\n'), r'\1"["\n'), "steps is not JSON"),
    (edit("tensorrt_llm_bls", parameter("steps").replace('[^"]*"', '.*?"\n'), r'\1"[1, 2]"\n'), "steps is not a list"),
    (edit("tensorrt_llm_bls", r'\\"preprocessing\\"', r'\\"pre\\"'), "steps: 'pre' is no model"),
    (edit("tensorrt_llm_bls", r'\\"QUERY\\"', r'\\"PROMPT\\"'), "steps: preprocessing has no tensor PROMPT"),
    # Versions.
    (edit("ensemble", "model_version: -1", "model_version: 7"), "step preprocessing: version 7 is not served"),
    (edit("tensorrt_llm", "max_batch_size", "version_policy { specific { versions: 3 } }\nmax_batch_size"),
     "version_policy names 3, but there is no tensorrt_llm/3"),
    # Values of parameters.
    (edit("preprocessing", parameter("vocab_size"), r'\1"abc"'), "preprocessing: vocab_size is 'abc', the engine's is"),
    (edit("preprocessing", parameter("vocab_size"), r'\1"599"'), "preprocessing: vocab_size is '599', the engine's is"),
    (edit("tensorrt_llm", parameter("enable_kv_cache_reuse"), r'\1"maybe"'), "enable_kv_cache_reuse is 'maybe'"),
    (edit("preprocessing", parameter("add_special_tokens"), r'\1"maybe"'), "add_special_tokens is 'maybe'; true or"),
    (edit("tensorrt_llm", "KIND_CPU", "KIND_MODEL"), "tensorrt_llm: instance_group is KIND_MODEL"),
    (edit("tensorrt_llm", parameter("kv_cache_free_gpu_mem_fraction"), r'\1"0"'), "fraction is '0'; above 0, up to 1"),
    (edit("tensorrt_llm", parameter("kv_cache_free_gpu_mem_fraction"), r'\1"1.01"'), "fraction is '1.01'"),
    # How it is started.
    (write("launch.sh", b"world_size=1\n"), "launch.sh: world_size is 1, the engine of tensorrt_llm has 2 ranks"),
    (write("launch.sh", b"python3 launch_triton_server.py --world_size 4\n"), "launch.sh: world_size is 4"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "words"), FAULTS, ids=[words for _, words in FAULTS])
def test_each_fault_is_found(damage: Damage, words: str, repository: Path) -> None:
    damage(repository)
    problems = check(repository)
    assert any(words in problem for problem in problems), problems
    assert all("\n" not in problem for problem in problems)


def test_a_vocabulary_that_does_not_fit(repository: Path) -> None:
    config = repository.parent / "engine" / "config.json"
    config.write_text(config.read_text().replace('"vocab_size": 600', '"vocab_size": 300'))
    assert check(repository) == [
        "postprocessing: the tokenizer has token id 310, the engine a vocabulary of 300",
        "preprocessing: vocab_size is '600', the engine's is 300",
    ]


def test_a_fault_that_shows_in_two_places_is_told_once(repository: Path) -> None:
    edit("preprocessing", parameter("tokenizer_dir"), r'\1""')(repository)
    assert check(repository) == ["preprocessing: parameter tokenizer_dir is missing or empty"]


def test_an_engine_whose_prompts_need_chunks(repository: Path) -> None:
    config = repository.parent / "engine" / "config.json"
    config.write_text(config.read_text().replace('"max_num_tokens": 8192', '"max_num_tokens": 512'))
    [problem] = check(repository)
    assert problem.startswith("tensorrt_llm: max_num_tokens 512 is less than max_input_len 1024")


def add(model: str, text: str) -> Damage:
    def damage(repository: Path) -> None:
        path = repository / model / "config.pbtxt"
        path.write_text(path.read_text() + text + "\n")

    return damage


def with_parameter(model: str, name: str, value: str) -> Damage:
    return add(model, f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}')


def group(model: str, text: str) -> Damage:
    return edit(model, r"instance_group \{.*?\n\}", f"instance_group {{ {text} }}")


HARMLESS: list[Damage] = [
    with_parameter("tensorrt_llm", "gpu_device_ids", "0, 1"),
    with_parameter("tensorrt_llm", "max_attention_window_size", "4096"),
    with_parameter("tensorrt_llm", "lora_cache_max_adapter_size", "64"),
    lambda repository: [
        group("tensorrt_llm", "count: 2 kind: KIND_CPU")(repository),
        with_parameter("tensorrt_llm", "gpu_device_ids", "0,1;2,3")(repository),
    ],
    edit("preprocessing", 'backend: "python"\n', ""),
    edit("postprocessing", r"max_batch_size: \d+", "max_batch_size: 16"),
    lambda repository: (repository / "ensemble/1").rename(repository / "ensemble/0"),
    group("preprocessing", "count: 2 kind: KIND_MODEL"),
    edit("tensorrt_llm", parameter("kv_cache_free_gpu_mem_fraction"), r'\1"1"'),
    edit("preprocessing", '(string_value: ".*?/tokenizer)"', r'\1/"'),
    edit("preprocessing", "/tokenizer", "/./tokenizer"),
    edit("preprocessing", parameter("add_special_tokens"), r'\1"Yes"'),
    remove("launch.sh"),
    write("launch.sh", b"tritonserver --model-repository=.\n"),
    lambda repository: (repository / "preprocessing/1/tokenization.py").rename(
        repository / "preprocessing/tokenization.py"
    ),
    lambda repository: (repository / "preprocessing/1").rename(repository / "preprocessing/10"),
    edit("ensemble", "model_version: -1", "model_version: 1"),
    edit("preprocessing", "max_batch_size", "version_policy { all {} }\nmax_batch_size"),
]


@pytest.mark.parametrize("change", HARMLESS, ids=range(len(HARMLESS)))
def test_what_is_no_fault(change: Damage, repository: Path) -> None:
    change(repository)
    assert check(repository) == []


def test_only_the_latest_version_is_served(repository: Path) -> None:
    (repository / "preprocessing/9").mkdir()
    (repository / "preprocessing/1").rename(repository / "preprocessing/10")
    edit("ensemble", "model_version: -1", "model_version: 9")(repository)
    assert check(repository) == ["ensemble: step preprocessing: version 9 is not served; -1 is the latest"]
    edit("preprocessing", "max_batch_size", "version_policy { latest { num_versions: 2 } }\nmax_batch_size")(repository)
    assert check(repository) == ["preprocessing/9/model.py: no such file"]


def test_a_tokenizer_among_a_models_weights(repository: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "pytorch_model.bin"):
        with (tmp_path / "tokenizer" / name).open("wb") as file:
            file.truncate(2**30)
    (tmp_path / "tokenizer" / "model-00001-of-00002.safetensors").symlink_to("../blobs/not fetched")
    assert check(repository) == []
    with (tmp_path / "tokenizer" / "vocab.json").open("wb") as file:
        file.truncate(2**30)
    assert any("vocab.json: larger than any tokenizer's file" in problem for problem in check(repository))


def add_second_set(repository: Path, folder: Path) -> None:
    """Another engine and tokenizer, under names that end in _b."""
    engine, tokenizer = write_engine(folder / "engine", vocab_size=VOCABULARY), folder / "tokenizer"
    write_tokenizer(tokenizer, "byte_level")
    other = generate(TritonOptions(str(engine), str(tokenizer), str(folder / "repository"), decoupled=True))
    for model in [path.parent for path in other.glob("*/config.pbtxt")]:
        config = model / "config.pbtxt"
        names = r'(?<!platform: )(\\?")(ensemble|preprocessing|postprocessing|tensorrt_llm|tensorrt_llm_bls)(\\?")'
        config.write_text(re.sub(names, r"\1\2_b\3", config.read_text()))
        model.rename(repository / f"{model.name}_b")


def test_two_complete_sets_are_judged_apart(repository: Path, tmp_path: Path) -> None:
    config = tmp_path / "engine" / "config.json"
    config.write_text(config.read_text().replace('"vocab_size": 600', '"vocab_size": 311'))
    edit("preprocessing", parameter("vocab_size"), r'\1"311"')(repository)
    (repository / "launch.sh").unlink()
    add_second_set(repository, tmp_path / "b")
    assert check(repository) == []
    edit("postprocessing_b", "/b/tokenizer", "/tokenizer")(repository)
    [problem] = check(repository)
    assert problem.startswith("tokenizer_dir differs: ")
    assert problem.endswith("/b/tokenizer in preprocessing_b") or problem.endswith("in tensorrt_llm_bls_b")


def test_folders_below_the_mount_that_are_not_in_the_repository(repository: Path, tmp_path: Path) -> None:
    assert check(repository, str(tmp_path)) == []
    (tmp_path / "engine").rename(repository / "engine")
    assert check(repository, str(tmp_path)) == ["engine/config.pbtxt: no such file"]


@pytest.mark.parametrize("self_contained", [False, True])
def test_a_folder_that_is_named_like_a_placeholder(self_contained: bool, tmp_path: Path) -> None:
    odd = tmp_path / "${x}"
    folders = write_engine(odd / "engine"), write_tokenizer(odd / "tokenizer"), odd / "repository"
    options = {"self_contained": self_contained, "mount_dir": "/${models}"}
    made = generate(TritonOptions(*map(str, folders), **options))
    assert check(made, "/${models}") == []
    edit("postprocessing", parameter("skip_special_tokens"), r'\1"${skip}"')(made)
    assert check(made, "/${models}") == ["postprocessing/config.pbtxt: ${skip} not filled"]


HOSTILE: list[tuple[Damage, str]] = [
    (write("ensemble/config.pbtxt", b"\x00\xff" * 100), "not UTF-8 text"),
    (write("ensemble/config.pbtxt", b"name: \x00"), "not a model configuration"),
    (write("ensemble/config.pbtxt", b""), "ensemble: names neither a backend nor a platform"),
    (write("ensemble/config.pbtxt", b" " * (3 * 2**20)), "larger than 2 MiB"),
    (write("ensemble/config.pbtxt", b"x {" * 50_000), "ensemble/config.pbtxt: "),
    (write("ensemble/config.pbtxt", b"ensemble_scheduling {" * 50_000), "ensemble/config.pbtxt: "),
    (write("ensemble/config.pbtxt", b'name: "' + b"\\" * 99_999), "ensemble/config.pbtxt: "),
    (write("ensemble/config.pbtxt", b"max_batch_size: 99999999999999999999"), "not a model configuration"),
    (write("ensemble/config.pbtxt", b"max_batch_size: -1\nplatform: 'ensemble'"), "max_batch_size is -1"),
    (write("ensemble/config.pbtxt", b"$" * 100_000 + b"${" * 100_000), "not filled"),
    (write("ensemble/config.pbtxt", b'"' * 100_001), "ensemble/config.pbtxt: "),
    (write("preprocessing/1/model.py", b"\x00"), "preprocessing/1/model.py: "),
    (write("preprocessing/1/model.py", b"(" * 100_000), "preprocessing/1/model.py: "),
    (write("preprocessing/1/model.py", b"-" * 100_000 + b"1"), "preprocessing/1/model.py: "),
    (write("preprocessing/1/model.py", b"x = '\xff'"), "not UTF-8 text"),
    (write("preprocessing/1/model.py", b"#" * (5 * 2**20)), "larger than 4 MiB"),
    (link("preprocessing/1/model.py", "/etc/hostname"), "a link that leads out of the repository"),
    (link("ensemble/config.pbtxt", "config.pbtxt"), "cannot be opened"),
    (link("ensemble/config.pbtxt", "/dev/zero"), "not a regular file"),
    (instead("ensemble/config.pbtxt", os.mkfifo), "not a regular file"),
    (instead("ensemble/config.pbtxt", os.mkdir), "not a regular file"),
    (edit("tensorrt_llm", parameter("gpt_model_path"), r'\1"/dev/null"'), "is not a folder"),
    (edit("tensorrt_llm", parameter("gpt_model_path"), r'\1"/\\000"'), "gpt_model_path"),
    (edit("preprocessing", parameter("tokenizer_dir"), r'\1"/proc/self"'), "tokenizer"),
    (edit("preprocessing", parameter("tokenizer_dir"), r'\1"tokenizer"'), "depends on where tritonserver is started"),
    (edit("preprocessing", parameter("tokenizer_dir"), r'\1"/a/../b"'), "an absolute path without .. is needed"),
    (edit("preprocessing", parameter("tokenizer_dir"), rf'\1"/{"a" * 5000}"'), "tokenizer"),
    (write("../engine/config.json", b"{" * 100_000), "not readable as JSON"),
    (write("../engine/config.json", b'{"version": ' + b"9" * 5000 + b"}"), "config.json"),
    (write("../tokenizer/tokenizer.json", b"[" * 100_000), "no usable tokenizer"),
    (instead("../tokenizer/tokenizer.json", os.mkfifo), "tokenizer.json: not a regular file"),
    (instead("../engine/config.json", os.mkfifo), "config.json: not a regular file"),
    (instead("../engine/config.json", os.mkdir), "config.json: not a regular file"),
    (write("ensemble/config.pbtxt", b'"' + b'\\"' * 900_000), "ensemble/config.pbtxt: "),
    (edit("tensorrt_llm", 'name: "tensorrt_llm"', r'name: "\\033[2J\\n"'), r"x1b[2J"),
    (edit("ensemble", 'key: "QUERY"', r'key: "\\033\\n"'), "maps input ? , which"),
    (edit("ensemble", 'key: "QUERY"', f'key: "{"Q" * 9999}"'), "QQQ..."),
    (write("../tokenizer/tokenizer.json", b"\xff" * 1000), "no usable tokenizer"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "words"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_repositories_give_lines_not_tracebacks(damage: Damage, words: str, repository: Path) -> None:
    damage(repository)
    problems = check(repository)
    assert any(words in problem for problem in problems), problems
    assert all("\n" not in problem and problem.isprintable() and len(problem) <= 400 for problem in problems)


def test_nothing_in_a_repository_is_run(repository: Path, tmp_path: Path) -> None:
    (repository / "preprocessing/1/model.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nTritonPythonModel = 1\n"
    )
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", null]}}'
    )
    (tmp_path / "tokenizer" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    check(repository)
    assert not (tmp_path / "ran").exists()


def test_no_repository(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        check(tmp_path / "none")
    assert check(tmp_path) == [f"{tmp_path} holds no model"]
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is not a folder"):
        check(tmp_path / "file")


def test_a_repository_that_cannot_be_read(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "iterdir", broken)
    with pytest.raises(InputError, match=r"--check: .* cannot be read \(Input/output error\)"):
        check(repository)


def test_without_tritonclient(repository: Path) -> None:
    missing = dict.fromkeys(("tritonclient", "tritonclient.grpc", "tritonclient.grpc.model_config_pb2"))
    with mock.patch.dict(sys.modules, missing), pytest.raises(InputError, match=r"pip install .tritonclient"):
        check(repository)


def test_a_minimal_repository_made_by_hand(tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "engine", "1.2.1")
    (tmp_path / "repository/tensorrt_llm/1").mkdir(parents=True)
    (tmp_path / "repository/tensorrt_llm/config.pbtxt").write_text(
        f"""# token ids in, token ids out: ${{nothing}} to fill in a comment
        name: "tensorrt_llm" backend: "tensorrtllm" max_batch_size: 4
        input [
          {{ name: "input_ids" data_type: TYPE_INT32 dims: [ -1 ] allow_ragged_batch: true }},
          {{ name: "input_lengths" data_type: TYPE_INT32 dims: [ 1 ] reshape: {{ shape: [ ] }} }},
          {{ name: "request_output_len" data_type: TYPE_INT32 dims: [ 1 ] reshape: {{ shape: [ ] }} }}
        ]
        output [ {{ name: "output_ids" data_type: TYPE_INT32 dims: [ -1, -1 ] }} ]
        parameters: {{ key: "gpt_model_type" value: {{ string_value: "inflight_fused_batching" }} }}
        parameters: {{ key: "gpt_model_path" value: {{ string_value: "{engine}" }} }}
        """
    )
    assert check(tmp_path / "repository") == []
    left_open = examine(tmp_path / "repository").not_checked
    assert "tensorrt_llm: without an instance_group Triton makes one instance for each GPU that it sees" in left_open
    edit("tensorrt_llm", "gpt_model_type", "gpt_model")(tmp_path / "repository")
    assert check(tmp_path / "repository") == [
        "tensorrt_llm: there is no parameter gpt_model; did you mean gpt_model_type?",
        "tensorrt_llm: parameter gpt_model_type is missing; inflight_fused_batching is usual",
    ]


def test_an_ensemble_without_steps_and_a_step_without_maps(repository: Path) -> None:
    config = repository / "ensemble" / "config.pbtxt"
    text = config.read_text()
    config.write_text(text[: text.index("ensemble_scheduling")] + "ensemble_scheduling {}\n")
    assert any("ensemble: no ensemble_scheduling step" in problem for problem in check(repository))
    config.write_text(
        text[: text.index("ensemble_scheduling")] + 'ensemble_scheduling { step { model_name: "postprocessing" } }\n'
    )
    problems = check(repository)
    for side in ("input_map", "output_map"):
        assert any(f"step 0, 'postprocessing', has no {side}" in problem for problem in problems), problems


def test_an_output_of_another_type_than_the_ensembles(repository: Path) -> None:
    edit("ensemble", dtype("text_output"), r"\1TYPE_INT32")(repository)
    assert any(
        "text_output is TYPE_INT32 in ensemble, TYPE_STRING in postprocessing" in line for line in check(repository)
    )


def test_models_of_nvidias_templates_need_a_tokenizer_too(repository: Path) -> None:
    write("postprocessing/1/model.py", b"class TritonPythonModel:\n    pass\n")(repository)
    edit("postprocessing", parameter("tokenizer_dir"), r'\1""')(repository)
    assert "postprocessing: parameter tokenizer_dir is missing or empty" in check(repository)
