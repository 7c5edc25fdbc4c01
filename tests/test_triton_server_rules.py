"""check() knows what tritonserver and TensorRT-LLM's backend check, and says what it leaves open.

``benchmarks/triton_check.py`` compares it with a real tritonserver.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tritonclient.grpc import model_config_pb2

from enginesmith.build.triton.check import check, examine

from .test_triton_check import (
    Damage,
    add,
    dtype,
    edit,
    group,
    mapped,
    parameter,
    remove,
    repository,
    with_parameter,
)

__all__ = ["repository"]

QUERY = r'(name: "QUERY"\n  data_type: TYPE_STRING\n)  dims: \[1\]'
LENGTH = r'(name: "input_lengths"\n  data_type: TYPE_INT32\n)  dims: \[1\]\n  reshape \{\n    shape: \[\]'
# What tritonserver and TensorRT-LLM's backend make of a configuration.
SERVER_FAULTS: list[tuple[Damage, str]] = [
    (edit("preprocessing", r'(name: "QUERY"\n  data_type: )TYPE_STRING', r"\g<1>99"),
     "data_type 99 is none of Triton's"),
    (edit("tensorrt_llm", dtype("context_logits"), r"\g<1>99"), "context_logits is data_type 99, the engine's logits"),
    (edit("preprocessing", 'name: "DECODER_QUERY"', ""), "preprocessing: a tensor has no name"),
    (edit("preprocessing", QUERY, r"\1"), "QUERY has no dims"),
    (edit("preprocessing", QUERY, r"\1  dims: [0]"), "QUERY: dims has 0"),
    (edit("preprocessing", QUERY, r"\1  dims: [1]\n  format: FORMAT_NHWC"), "FORMAT_NHWC needs three dims"),
    (edit("preprocessing", QUERY, r"\1  dims: [1]\n  format: 99"), "format 99 is none of Triton's"),
    (edit("preprocessing", QUERY, r"\1  dims: [1]\n  is_shape_tensor: true"), "is_shape_tensor"),
    (edit("tensorrt_llm", LENGTH, r"\1  dims: [1]\n  reshape {\n    shape: [2]"), "cannot be reshaped to [2]"),
    (edit("tensorrt_llm", LENGTH, r"\1  dims: [-1]\n  reshape {\n    shape: []"), "dims [-1] cannot be reshaped to []"),
    (edit("tensorrt_llm", r"max_batch_size: \d+", "max_batch_size: 0"), "a reshape to nothing needs a max_batch_size"),
    (edit("preprocessing", r"preferred_batch_size: \[8\]", "preferred_batch_size: [0]"), "size 0 is not positive"),
    (edit("preprocessing", "\n  default_queue", "\n  priority_levels: 2\n  default_queue"),
     "default_priority_level is 0"),
    (edit("preprocessing", "\n  default_queue", "\n  preserve_ordering: true\n  priority_levels: 2\n"
          "  default_priority_level: 1\n  default_queue"), "preserve_ordering allows one priority level"),
    (edit("preprocessing", "\n  default_queue", "\n  preserve_ordering: true\n  priority_queue_policy { key: 1 value "
          "{ timeout_action: DELAY default_timeout_microseconds: 9 } }\n  default_queue"),
     "preserve_ordering excludes the timeout_action DELAY"),
    (add("tensorrt_llm", "response_cache { enable: true }"), "response_cache does not work with decoupled"),
    (add("tensorrt_llm_bls", "response_cache { enable: true } sequence_batching {}"),
     "response_cache does not work with sequence_batching"),
    (add("tensorrt_llm_bls", "sequence_batching { direct { minimum_slot_utilization: 1.5 } }"),
     "minimum_slot_utilization is 1.5; 0 to 1"),
    (add("tensorrt_llm_bls", "ensemble_scheduling {}"), "ensemble_scheduling is for platform ensemble only"),
    (add("preprocessing", "batch_input { data_type: TYPE_INT32 }"), "batch_input has 0 source_input; one is needed"),
    (group("preprocessing", "kind: KIND_CPU count: -1"), "instance_group count is -1"),
    (group("preprocessing", "kind: KIND_GPU gpus: [-1]"), "instance_group: gpus has -1"),
    (add("preprocessing", 'batch_input { data_type: TYPE_INT64 source_input: "NONE" }'),
     "reads 'NONE', which is no input"),
    (add("preprocessing", 'batch_input { data_type: TYPE_INT64 source_input: "QUERY" }'),
     "batch_input: data_type must be"),
    (edit("preprocessing", r'(name: "QUERY"\n)  data_type: \w+\n', r"\1"), "QUERY has no data_type"),
    (edit("ensemble", mapped("output_ids").replace("input_map", "output_map"), ""), "_TOKENS_BATCH"),
    (add("preprocessing", 'model_warmup { name: "w" }'), "model_warmup 'w': QUERY is missing"),
    (add("preprocessing", 'model_repository_agents { agents [ { name: "none" } ] }'),
     "'none' is none that Triton brings"),
    (edit("preprocessing", 'backend: "python"', 'backend: "pyhton"'), "'pyhton'; did you mean python?"),
    (edit("preprocessing", 'backend: "python"', 'platform: "text"'), "platform is 'text'; a backend is needed"),
    (add("ensemble", 'backend: "python"'), "platform is ensemble, which has no backend"),
    (add("ensemble", "instance_group { kind: KIND_CPU }"), "an ensemble has no instance_group"),
    (add("ensemble", "optimization {}"), "an ensemble has no optimization"),
    (add("ensemble", 'input { name: "nothing" data_type: TYPE_STRING dims: [1] }'), "no step reads the input nothing"),
    (add("ensemble", 'output { name: "text_input" data_type: TYPE_STRING dims: [1] }'),
     "text_input is both an input and an output"),
    (edit("ensemble", mapped("stop_words_list"), ""), "_STOP_WORDS_IDS, made by preprocessing, is read by nothing"),
    (edit("ensemble", '(key: "QUERY"\n      value: )"text_input"', r'\1"_INPUT_ID"'), "waits for what depends on it"),
    (edit("ensemble", 'model_name: "postprocessing"', 'model_name: "ensemble"'), "cannot be a step of itself"),
    (edit("ensemble", "model_version: -1", "model_version: 0"), "version 0 is not served"),
    (add("preprocessing", "version_policy { specific {} }"), "preprocessing: version_policy serves no version"),
    (add("preprocessing", "version_policy { latest { num_versions: 0 } }"), "version_policy serves no version"),
    (add("preprocessing", r'default_model_filename: "a\000b"'), "a name with NUL is no file"),
    (with_parameter("preprocessing", "EXECUTION_ENV_PATH", "/none.tar.gz"),
     "EXECUTION_ENV_PATH '/none.tar.gz': no such"),
    (with_parameter("preprocessing", "FORCE_CPU_ONLY_INPUT_TENSORS", "maybe"), "yes or no is needed"),
    (lambda repository: (repository / "loop").symlink_to("loop"), "loop: a link that leads nowhere"),
    # Where models run.
    (group("tensorrt_llm", "kind: KIND_GPU"), "tensorrt_llm: instance_group is KIND_GPU: an instance on each GPU"),
    (group("tensorrt_llm", "count: 1"), "tensorrt_llm: instance_group has no kind"),
    (edit("tensorrt_llm", r"instance_group \{.*?\n\}\n", ""), "tensorrt_llm: instance_group has no kind"),
    (group("preprocessing", "kind: KIND_GPU"), "preprocessing: instance_group is on GPUs, but text"),
    (group("preprocessing", "gpus: [0]"), "preprocessing: instance_group is on GPUs, but text"),
    (add("postprocessing", 'output { name: "OUTPUT" data_type: TYPE_STRING dims: [-1] }'),
     "OUTPUT, which postprocessing has twice"),
    (group("preprocessing", "kind: KIND_CPU gpus: [0]"), "KIND_CPU, which takes no gpus"),
    (group("preprocessing", "kind: 99"), "kind 99 is none of Triton's"),
    (group("preprocessing", "kind: KIND_CPU profile: '0'"), "profile is for TensorRT's own backend"),
    (group("tensorrt_llm", "count: 2 kind: KIND_CPU"), "2 instances share GPUs and each takes 0.9"),
    (with_parameter("tensorrt_llm", "gpu_device_ids", "0"), "gpu_device_ids has '0'; the engine has 2 ranks"),
    (with_parameter("tensorrt_llm", "gpu_device_ids", "0,0"), "gpu_device_ids has '0,0'; the engine has 2 ranks"),
    (with_parameter("tensorrt_llm", "gpu_device_ids", "0,1,2"), "the engine has 2 ranks"),
    (with_parameter("tensorrt_llm", "gpu_device_ids", "0,1;2,3"), "is for 2 instances, instance_group makes 1"),
    (with_parameter("tensorrt_llm", "gpu_device_ids", "0,x"), "gpu_device_ids is '0,x'; numbers with commas"),
    (with_parameter("tensorrt_llm", "gpu_device_ids", "0,-1"), "numbers with commas"),
    (with_parameter("tensorrt_llm", "gpu_device_ids", f"0,1,{10**20}"), "numbers with commas"),
    (with_parameter("tensorrt_llm", "gpu_device_ids", f"0,{2**31}"), "numbers with commas"),
    (with_parameter("tensorrt_llm", "gpu_device_ids", "0,1_0"), "numbers with commas"),
    (with_parameter("tensorrt_llm", "gpu_device_ids", "0,\u0661"), "numbers with commas"),
    (with_parameter("tensorrt_llm", "max_tokens_in_paged_kv_cache", "1_000"), "paged_kv_cache is '1_000'; at least"),
    (with_parameter("tensorrt_llm", "kv_cache_free_gpu_mem_fraction", "0.8_5"), "mem_fraction is '0.8_5'; above 0"),
    (with_parameter("tensorrt_llm", "participant_ids", "1"), "participant_ids has '1'"),
    # Parameters.
    (edit("tensorrt_llm", 'key: "kv_cache_free_gpu_mem', 'key: "kv_cache_free_gpu_memory'),
     "there is no parameter kv_cache_free_gpu_memory_fraction; did you mean kv_cache_free_gpu_mem_fraction?"),
    (edit("preprocessing", 'key: "add_special_tokens"', 'key: "add_special_token"'),
     "did you mean add_special_tokens?"),
    (with_parameter("postprocessing", "xyzzy", "1"), "there is no parameter xyzzy; it would have no effect"),
    (with_parameter("tensorrt_llm", "worker_path", "/x"), "executor_worker_path took its place"),
    (with_parameter("tensorrt_llm", "decoding_mode", "greedy"), "decoding_mode is 'greedy'"),
    (with_parameter("tensorrt_llm", "sink_token_length", str(2**31)), "at least 0, at most 2147483647"),
    (add("tensorrt_llm", 'runtime: "libtriton_other.so"'), "runtime is 'libtriton_other.so'; backend tensorrtllm has"),
    (group("preprocessing", "kind: KIND_CPU passive: true"), "instance_group is passive: no instance takes requests"),
    (with_parameter("tensorrt_llm", "encoder_model_path", "/nowhere"), "encoder_model_path '/nowhere': no such file"),
    (add("tensorrt_llm_bls", "sequence_batching {}"), "sequence_batching refuses every request without"),
    (with_parameter("tensorrt_llm", "sink_token_length", "-1"), "sink_token_length is '-1'; at least 0"),
    (with_parameter("tensorrt_llm", "cross_kv_cache_fraction", "0.5"),
     "cross_kv_cache_fraction is for encoder-decoder"),
    (with_parameter("tensorrt_llm", "max_attention_window_size", "0"), "max_attention_window_size is '0'; tokens"),
    (with_parameter("tensorrt_llm", "max_attention_window_size", f"8,{10**20}"), "window_size is '8,1000"),
    (with_parameter("tensorrt_llm", "max_attention_window_size", "8,x"), "max_attention_window_size is '8,x'"),
    (edit("preprocessing", parameter("end_ids"), r'\1"2,600"'), "end_ids is '2,600'; token ids below"),
    (edit("preprocessing", parameter("pad_id"), r'\1"-1"'), "pad_id is '-1'; token ids below"),
    (edit("preprocessing", parameter("max_prompt_bytes"), r'\1"0"'), "max_prompt_bytes is '0'; at least 1"),
    (remove("tensorrt_llm_bls/1/stopping.py"), "tensorrt_llm_bls/1/stopping.py: no such file; model.py imports it"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "words"), SERVER_FAULTS, ids=[words for _, words in SERVER_FAULTS])
def test_what_the_server_or_the_backend_would_not_take(damage: Damage, words: str, repository: Path) -> None:
    damage(repository)
    problems = check(repository)
    assert any(words in problem for problem in problems), problems
    assert all(problem.isprintable() and len(problem) < 400 for problem in problems)


def test_streams_are_not_joined_with_what_does_not_stream(repository: Path) -> None:
    edit("ensemble", r'(key: "SEQUENCE_LENGTH"\n      value: )"_SEQUENCE_LENGTH"', r'\1"_REQUEST_INPUT_LEN"')(
        repository
    )
    assert any("step postprocessing joins what tensorrt_llm streams" in problem for problem in check(repository))


def test_a_window_that_the_engine_was_planned_for(repository: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "engine" / "enginesmith.json"
    manifest.write_text('{"plan": {"checkpoint": {"sliding_window": 512}}}')
    wanted = "the model's sliding window is 512 tokens"
    assert check(repository) == [f"tensorrt_llm: max_attention_window_size is missing; {wanted}"]
    with_parameter("tensorrt_llm", "max_attention_window_size", "512,1024")(repository)
    assert check(repository) == [f"tensorrt_llm: max_attention_window_size is 1024; {wanted}"]
    edit("tensorrt_llm", "512,1024", "512, 256")(repository)
    assert check(repository) == []
    manifest.write_text('{"plan": {"checkpoint": {"sliding_window": "x"}}}')
    assert any("checkpoint.sliding_window must be an integer from 1" in problem for problem in check(repository))


@pytest.mark.skipif(not hasattr(model_config_pb2, "ModelMetrics"), reason="an older tritonclient")
@pytest.mark.parametrize(
    ("control", "whole"),
    [
        ("metric_identifier { family: 'f' } histogram_options { buckets: [1, 2] }", True),
        ("metric_identifier { family: 'f' }", False),
        ("histogram_options { buckets: [1, 2] }", False),
    ],
)
def test_metrics_need_a_family_and_buckets(control: str, whole: bool, repository: Path) -> None:
    add("preprocessing", f"model_metrics {{ metric_control [ {{ {control} }} ] }}")(repository)
    fault = "preprocessing: model_metrics: a metric_control needs a family and buckets"
    assert check(repository) == ([] if whole else [fault])


def test_what_is_not_checked_is_said(repository: Path) -> None:
    assert len(examine(repository).not_checked) == 2
    add("preprocessing", 'model_warmup { name: "w" }')(repository)
    group("preprocessing", "kind: KIND_GPU gpus: [7]")(repository)
    edit("postprocessing", 'backend: "python"', 'backend: "mine"')(repository)
    remove("tensorrt_llm_bls/1/tokenization.py")(repository)
    left_open = " ".join(examine(repository).not_checked)
    for words in ("answers its model_warmup", "GPUs of its instance_group", "backend 'mine'", "what its model.py does"):
        assert words in left_open
