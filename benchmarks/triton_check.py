"""Does ``enginesmith triton --check`` judge as tritonserver does? Mutated repositories, both verdicts side by side.

A valid repository is changed in one place at a time. Every copy is checked, and loaded by a real tritonserver, which
needs no GPU for that: its engine and its Python models are replaced by Python models that do nothing, so that what is
compared are the rules for configurations. Rules of TensorRT-LLM's backend, of engines and of tokenizers are the check's
alone; those rows say so.

    pip install --no-deps --target server nvidia-pytriton    # tritonserver with its Python backend; glibc 2.35
    python benchmarks/triton_check.py --server server --libpython DIR

Without a tritonserver it says so and ends with exit code 0.
"""

# ruff: noqa: E501 (one change a line)

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from enginesmith.build.triton.check import check
from enginesmith.build.triton.generate import generate
from enginesmith.build.triton.options import TritonOptions
from tests.triton_folders import write_engine, write_tokenizer

Change = Callable[[Path], None]
MODELS = ("ensemble", "preprocessing", "tensorrt_llm", "postprocessing", "tensorrt_llm_bls")
STAND_IN = """
class TritonPythonModel:
    def execute(self, requests):
        return []
"""
PATIENCE = 45  # seconds for a server to have tried every model
BATCH = 12  # repositories that one server loads


def edit(model: str, pattern: str, replacement: str, count: int = 1) -> Change:
    def change(repository: Path) -> None:
        path = repository / model / "config.pbtxt"
        text, found = re.subn(pattern, replacement, path.read_text(), count=count, flags=re.DOTALL)
        if not found:
            raise ValueError(f"{model}: {pattern} is not there")
        path.write_text(text)

    return change


def add(model: str, text: str) -> Change:
    return edit(model, r"\Z", lambda _: text + "\n")  # type: ignore[arg-type]


def both(*changes: Change) -> Change:
    return lambda repository: [change(repository) for change in changes] and None


GROUP = r"instance_group \{.*?\n\}"
QUERY = r'(name: "QUERY"\n  data_type: TYPE_STRING\n)  dims: \[1\]'
LENGTH = r'(name: "input_lengths"\n  data_type: TYPE_INT32\n  dims: )\[1\](\n  reshape \{)\n    shape: \[\]'
STEP = r'(model_name: "preprocessing"\n    model_version: -1\n)'
POLICY = "\n  default_queue_policy {"


def parameter(name: str) -> str:
    return rf'(key: "{name}"\n  value {{\n    string_value: )"[^"]*"'


def group(model: str, text: str) -> Change:
    return edit(model, GROUP, text)


def mapped(name: str) -> str:
    return rf'    input_map {{\n      key: "{name}".*?}}\n'


CHANGES: dict[str, Change] = {
    "nothing": lambda repository: None,
    # Tensors.
    "a tensor without a name": edit("preprocessing", 'name: "DECODER_QUERY"\n', ""),
    "a tensor without data_type": edit("preprocessing", '(name: "DECODER_QUERY"\n)  data_type: TYPE_STRING\n', r"\1"),
    "data_type 99": edit("preprocessing", '(name: "DECODER_QUERY"\n  data_type: )TYPE_STRING', r"\g<1>99"),
    "a tensor without dims": edit("preprocessing", '(name: "DECODER_QUERY"\n  data_type: TYPE_STRING\n)  dims: \\[1\\]\n', r"\1"),
    "dims 0": edit("preprocessing", QUERY, r"\1  dims: [0]"),
    "dims -2": edit("preprocessing", QUERY, r"\1  dims: [-2]"),
    "a tensor twice": add("preprocessing", 'input { name: "QUERY" data_type: TYPE_STRING dims: [1] }'),
    "an output twice": add("postprocessing", 'output { name: "OUTPUT" data_type: TYPE_STRING dims: [-1] }'),
    "reshape to other sizes": edit("tensorrt_llm", LENGTH, r"\1[1]\2\n    shape: [2]"),
    "reshape to 0": edit("tensorrt_llm", LENGTH, r"\1[1]\2\n    shape: [0]"),
    "reshape [2] to []": edit("tensorrt_llm", LENGTH, r"\1[2]\2\n    shape: []"),
    "reshape [-1] to [1]": edit("tensorrt_llm", LENGTH, r"\1[-1]\2\n    shape: [1]"),
    "reshape [4] to [2, 2]": edit("preprocessing", '(name: "IMAGE|name: "DECODER_QUERY"\n  data_type: TYPE_STRING\n)  dims: \\[1\\]', r"\1  dims: [4]\n  reshape { shape: [2, 2] }"),
    "format NHWC of a vector": edit("preprocessing", QUERY, r"\1  dims: [1]\n  format: FORMAT_NHWC"),
    "format 99": edit("preprocessing", QUERY, r"\1  dims: [1]\n  format: 99"),
    "is_shape_tensor": edit("preprocessing", QUERY, r"\1  dims: [1]\n  is_shape_tensor: true"),
    "is_non_linear_format_io": edit("preprocessing", QUERY, r"\1  dims: [1]\n  is_non_linear_format_io: true"),
    "batch_input of an unknown tensor": add("preprocessing", 'batch_input { kind: BATCH_ELEMENT_COUNT target_name: "N" data_type: TYPE_INT32 source_input: "NONE" }'),
    "batch_input of INT64": add("preprocessing", 'batch_input { kind: BATCH_ELEMENT_COUNT target_name: "N" data_type: TYPE_INT64 source_input: "QUERY" }'),
    "batch_output to an unknown tensor": add("preprocessing", 'batch_output { target_name: "NONE" source_input: "QUERY" }'),
    # Batching.
    "max_batch_size 0 with empty reshapes": edit("tensorrt_llm", r"max_batch_size: \d+", "max_batch_size: 0"),
    "max_batch_size 0 everywhere": both(*(edit(model, r"max_batch_size: \d+", "max_batch_size: 0") for model in MODELS)),
    "max_batch_size 0 of a tokenizer": edit("postprocessing", r"max_batch_size: \d+", "max_batch_size: 0"),
    "max_batch_size -1": edit("preprocessing", r"max_batch_size: \d+", "max_batch_size: -1"),
    "a step with a smaller batch": edit("postprocessing", r"max_batch_size: \d+", "max_batch_size: 2"),
    "a step with a larger batch": edit("postprocessing", r"max_batch_size: \d+", "max_batch_size: 16"),
    "preferred_batch_size 0": edit("preprocessing", r"preferred_batch_size: \[\d+\]", "preferred_batch_size: [0]"),
    "preferred_batch_size 99": edit("preprocessing", r"preferred_batch_size: \[\d+\]", "preferred_batch_size: [99]"),
    "default_priority_level above the levels": edit("preprocessing", POLICY, "\n  priority_levels: 2\n  default_priority_level: 3" + POLICY),
    "priority_levels without a default": edit("preprocessing", POLICY, "\n  priority_levels: 2" + POLICY),
    "priority_queue_policy of level 5": edit("preprocessing", POLICY, "\n  priority_levels: 2\n  default_priority_level: 1\n  priority_queue_policy { key: 5 value {} }" + POLICY),
    "preserve_ordering with priorities": edit("preprocessing", POLICY, "\n  preserve_ordering: true\n  priority_levels: 2\n  default_priority_level: 1" + POLICY),
    "preserve_ordering that delays": edit("preprocessing", r"default_queue_policy \{\n    max_queue_size: 0", "preserve_ordering: true\n  default_queue_policy {\n    timeout_action: DELAY\n    default_timeout_microseconds: 5"),
    "sequence_batching in place of dynamic": edit("postprocessing", r"dynamic_batching \{\}", "sequence_batching {}"),
    "oldest with preferred_batch_size 99": edit("postprocessing", r"dynamic_batching \{\}", "sequence_batching { oldest { max_candidate_sequences: 4 preferred_batch_size: [99] } }"),
    "minimum_slot_utilization 2": edit("postprocessing", r"dynamic_batching \{\}", "sequence_batching { direct { minimum_slot_utilization: 2 } }"),
    "dynamic and sequence batching": add("postprocessing", "sequence_batching {}"),
    "response_cache of a decoupled model": add("tensorrt_llm", "response_cache { enable: true }"),
    # Where a model runs.
    "KIND_GPU of the engine": group("tensorrt_llm", "instance_group { count: 1 kind: KIND_GPU }"),
    "KIND_GPU of a tokenizer": group("preprocessing", "instance_group { count: 1 kind: KIND_GPU }"),
    "KIND_GPU on GPU 7": group("tensorrt_llm", "instance_group { count: 1 kind: KIND_GPU gpus: [7] }"),
    "KIND_CPU on GPU 0": group("tensorrt_llm", "instance_group { count: 1 kind: KIND_CPU gpus: [0] }"),
    "KIND_MODEL on GPU 0": group("preprocessing", "instance_group { count: 1 kind: KIND_MODEL gpus: [0] }"),
    "KIND_AUTO on GPU 0": group("preprocessing", "instance_group { count: 1 gpus: [0] }"),
    "KIND_MODEL of a tokenizer": group("preprocessing", "instance_group { count: 1 kind: KIND_MODEL }"),
    "kind 99": group("preprocessing", "instance_group { count: 1 kind: 99 }"),
    "count -1": group("preprocessing", "instance_group { count: -1 kind: KIND_CPU }"),
    "profile of a Python model": group("preprocessing", 'instance_group { count: 1 kind: KIND_CPU profile: "0" }'),
    "instance_group of an ensemble": add("ensemble", "instance_group { count: 1 kind: KIND_CPU }"),
    "no instance_group of the engine": edit("tensorrt_llm", GROUP + "\n", ""),
    "two groups of one name": group("preprocessing", 'instance_group { name: "a" count: 1 kind: KIND_CPU }\ninstance_group { name: "a" count: 1 kind: KIND_CPU }'),
    # The ensemble.
    "optimization of an ensemble": add("ensemble", "optimization {}"),
    "warm-up of an ensemble": add("ensemble", 'model_warmup { name: "w" batch_size: 1 }'),
    "dynamic_batching of an ensemble": add("ensemble", "dynamic_batching {}"),
    "backend of an ensemble": add("ensemble", 'backend: "python"'),
    "ensemble_scheduling elsewhere": edit("ensemble", 'platform: "ensemble"', 'backend: "python"'),
    "an ensemble without a step": edit("ensemble", r"ensemble_scheduling \{.*\n\}", ""),
    "an empty ensemble_scheduling": edit("ensemble", r"ensemble_scheduling \{.*\n\}", "ensemble_scheduling {}"),
    "a step without a model": edit("ensemble", 'model_name: "preprocessing"\n', ""),
    "a step without an input": edit("ensemble", STEP + r"(?:    input_map \{.*?\n    \}\n)+", r"\1"),
    "a step without an output": edit("ensemble", r"(key: \"SEQUENCE_LENGTH\".*?\n    \}\n)    output_map \{.*?\n    \}\n", r"\1"),
    "an input that no step reads": add("ensemble", 'input { name: "nothing" data_type: TYPE_STRING dims: [1] }'),
    "an output that no step reads": edit("ensemble", mapped("stop_words_list"), ""),
    "an optional input that is not mapped": edit("ensemble", mapped("lora_config"), ""),
    "a required input that is not mapped": edit("ensemble", mapped("input_lengths"), ""),
    "a tensor that nothing makes": edit("ensemble", 'value: "_INPUT_ID"', 'value: "_IDS"'),
    "an output made twice": edit("ensemble", 'value: "batch_index"', 'value: "sequence_index"'),
    "a step that reads its own output": edit("ensemble", '(key: "QUERY"\n      value: )"text_input"', r'\1"_INPUT_ID"'),
    "an ensemble that is its own step": edit("ensemble", 'model_name: "postprocessing"', 'model_name: "ensemble"'),
    "a step that is not there": edit("ensemble", 'model_name: "postprocessing"', 'model_name: "detokenizer"'),
    "model_version 0": edit("ensemble", "model_version: -1", "model_version: 0"),
    "model_version 7": edit("ensemble", "model_version: -1", "model_version: 7"),
    "model_version -2": edit("ensemble", "model_version: -1", "model_version: -2"),
    "another type in a step": edit("postprocessing", "TYPE_INT32", "TYPE_INT64"),
    "another shape in a step": edit("postprocessing", r"dims: \[-1, -1\]", "dims: [-1]"),
    "a step that joins decoupled and plain": edit("ensemble", r'(key: "TOKENS_BATCH"\n.*?)(    output_map \{\n      key: "OUTPUT")', lambda found: found[0].replace('"_SEQUENCE_LENGTH"', '"_REQUEST_INPUT_LEN"')),  # type: ignore[arg-type]
    "decoupled: false of an ensemble that streams": add("ensemble", "model_transaction_policy { decoupled: false }"),
    # The model itself.
    "another name": edit("preprocessing", 'name: "preprocessing"', 'name: "other"'),
    "no name": edit("preprocessing", 'name: "preprocessing"\n', ""),
    "no backend": edit("preprocessing", 'backend: "python"\n', ""),
    "backend pyhton": edit("preprocessing", 'backend: "python"', 'backend: "pyhton"'),
    "platform of another backend": edit("preprocessing", 'backend: "python"', 'backend: "python"\nplatform: "tensorrt_plan"'),
    "platform python": edit("preprocessing", 'backend: "python"', 'backend: "python"\nplatform: "python"'),
    "an unknown platform": edit("preprocessing", 'backend: "python"', 'platform: "text"'),
    "no version folder": lambda repository: shutil.rmtree(repository / "preprocessing/1"),
    "version folder 01": lambda repository: (repository / "preprocessing/1").rename(repository / "preprocessing/01") and None,
    "version folder 0": lambda repository: (repository / "preprocessing/1").rename(repository / "preprocessing/0") and None,
    "version_policy without a version": add("preprocessing", "version_policy { specific {} }"),
    "version_policy of version 3": add("preprocessing", "version_policy { specific { versions: 3 } }"),
    "version_policy: the latest 0": add("preprocessing", "version_policy { latest { num_versions: 0 } }"),
    "default_model_filename in the parent": add("preprocessing", 'default_model_filename: "../1/model.py"'),
    "an agent that is not there": add("preprocessing", 'model_repository_agents { agents [ { name: "none" } ] }'),
    "an EXECUTION_ENV_PATH that is not there": add("preprocessing", 'parameters { key: "EXECUTION_ENV_PATH" value { string_value: "/none.tar.gz" } }'),
    "FORCE_CPU_ONLY_INPUT_TENSORS maybe": add("preprocessing", 'parameters { key: "FORCE_CPU_ONLY_INPUT_TENSORS" value { string_value: "maybe" } }'),
    "warm-up without a tensor": add("preprocessing", 'model_warmup { name: "w" batch_size: 1 }'),
    "warm-up of an unknown tensor": add("preprocessing", 'model_warmup { name: "w" batch_size: 1 inputs { key: "NONE" value { data_type: TYPE_INT32 dims: [1] zero_data: true } } }'),
    "metrics without a family": add("preprocessing", "model_metrics { metric_control { metric_identifier {} } }"),
    "an unknown field": add("preprocessing", "max_batch: 3"),
    "a text that ends early": edit("preprocessing", r"\n\}\n\Z", "\n"),
    # TensorRT-LLM's backend.
    "no gpt_model_type": edit("tensorrt_llm", 'key: "gpt_model_type"', 'key: "gpt_model_typo"'),
    "a misspelt parameter": edit("tensorrt_llm", 'key: "kv_cache_free_gpu_mem_fraction"', 'key: "kv_cache_free_gpu_memory_fraction"'),
    "gpu_device_ids of one GPU for two ranks": add("tensorrt_llm", 'parameters { key: "gpu_device_ids" value { string_value: "0" } }'),
    "gpu_device_ids that name a GPU twice": add("tensorrt_llm", 'parameters { key: "gpu_device_ids" value { string_value: "0,0" } }'),
    "two instances of an engine on the same GPUs": group("tensorrt_llm", "instance_group { count: 2 kind: KIND_CPU }"),
    "worker_path": add("tensorrt_llm", 'parameters { key: "worker_path" value { string_value: "/x" } }'),
    "max_attention_window_size 0": add("tensorrt_llm", 'parameters { key: "max_attention_window_size" value { string_value: "0" } }'),
    "a misspelt parameter of ours": edit("preprocessing", 'key: "add_special_tokens"', 'key: "add_special_token"'),
    "end_ids beyond the vocabulary": add("preprocessing", 'parameters { key: "end_ids" value { string_value: "1,99999" } }'),
    # Last, for tritonserver 2.51 waits without end for a Python model whose file is not there.
    "no model.py": lambda repository: (repository / "preprocessing/1/model.py").unlink(),
    "default_model_filename of another file": add("preprocessing", 'default_model_filename: "other.py"'),
    "default_model_filename with NUL": add("preprocessing", r'default_model_filename: "a\000b"'),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", type=Path, default=Path("server"), help="where nvidia-pytriton is unpacked")
    parser.add_argument("--libpython", type=Path, help="folder of libpython3.N.so of the models' interpreter")
    parser.add_argument(
        "--python", type=Path, default=Path(sys.executable), help="its packages are the models': numpy < 2"
    )
    parser.add_argument("--only", default="", help="changes whose names contain this")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not (options.server / "pytriton/tritonserver/bin/tritonserver").exists():
        print(f"skipped: no tritonserver in {options.server}")
        return
    chosen = {name: change for name, change in CHANGES.items() if options.only in name}
    with tempfile.TemporaryDirectory() as scratch:
        rows = compare(chosen, options, Path(scratch))
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    print("| change | tritonserver | check | what the check says |\n| --- | --- | --- | --- |")
    for row in rows:
        print(f"| {row['change']} | {row['server']} | {row['check']} | {row['line'][:100]} |")
    missed = [row["change"] for row in rows if row["server"] == "refuses" and row["check"] == "passes"]
    extra = [row["change"] for row in rows if row["server"] == "loads" and row["check"] == "refuses"]
    print(f"\n{len(rows)} changes; tritonserver refuses {sum(row['server'] == 'refuses' for row in rows)}")
    print(f"refused by tritonserver and passed by the check: {len(missed)} {missed}")
    print(f"refused by the check alone: {len(extra)} {extra}")
    sys.exit(1 if missed else 0)


def compare(chosen: dict[str, Change], options: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    """Both verdicts on every change."""
    engine = write_engine(scratch / "engine", "1.2.1", ranks=2)
    tokenizer = write_tokenizer(scratch / "tokenizer")
    made = generate(TritonOptions(str(engine), str(tokenizer), str(scratch / "made"), decoupled=True))
    rows, served = [], []
    for index, (name, change) in enumerate(chosen.items()):
        copy = scratch / f"copy{index}"
        shutil.copytree(made, copy)
        change(copy)
        problems = check(copy)
        rows.append({"change": name, "check": "refuses" if problems else "passes", "line": "; ".join(problems)})
        served.append(scratch / f"served{index}")
        stand_in(copy, served[-1], f"_{index}")
    for first in range(0, len(rows), BATCH):
        states = load(served[first : first + BATCH], options, scratch)
        print(f"{min(first + BATCH, len(rows))} of {len(rows)}", file=sys.stderr, flush=True)
        for index, row in enumerate(rows[first : first + BATCH], first):
            state = {name: states.get(f"{name}_{index}", ("not in the index", "")) for name in MODELS}
            row["server"] = "loads" if all(word == "READY" for word, _ in state.values()) else "refuses"
            row["why"] = "; ".join(f"{name}: {word} {why}" for name, (word, why) in state.items() if word != "READY")
    return rows


def stand_in(copy: Path, served: Path, suffix: str) -> None:
    """A repository's models under other names beside those of other copies, none of them computing anything."""
    for model in [path.parent for path in copy.glob("*/config.pbtxt")]:
        target = served / f"{model.name}{suffix}"
        shutil.copytree(model, target, symlinks=True)
        names = rf'((?:^|\n)name|model_name): "({"|".join(MODELS)})"'
        text = re.sub(names, rf'\1: "\2{suffix}"', (target / "config.pbtxt").read_text())
        text = text.replace('backend: "tensorrtllm"', 'backend: "python"')
        text = re.sub(r"(instance_group \{\n  count: )\d+", r"\g<1>1", text)
        (target / "config.pbtxt").write_text(text)
        for version in [path for path in target.iterdir() if path.is_dir()]:
            for file in version.glob("*.py"):
                file.unlink()
            if (model / version.name / "model.py").exists() or model.name == "tensorrt_llm":
                (version / "model.py").write_text(STAND_IN)


def load(repositories: list[Path], options: argparse.Namespace, scratch: Path) -> dict[str, tuple[str, str]]:
    """What a tritonserver says of every model: (state, reason). One that dies or hangs is asked of half as many."""
    found = serve(repositories, options, scratch)
    if found is not None:
        return found
    if len(repositories) == 1:
        return {model.name: ("the server dies or hangs", "") for model in repositories[0].iterdir()}
    half = len(repositories) // 2
    return load(repositories[:half], options, scratch) | load(repositories[half:], options, scratch)


def serve(repositories: list[Path], options: argparse.Namespace, scratch: Path) -> dict[str, tuple[str, str]] | None:
    """The index of a server of these repositories; None if it does not come up."""
    root = options.server.absolute()
    port, backends, python = free_port(), scratch / "backends", root / "pytriton/tritonserver"
    packages, version = subprocess.run(
        [options.python, "-c", "import sys, sysconfig as s; print(s.get_path('purelib'), s.get_python_version())"],
        capture_output=True, text=True, check=True,
    ).stdout.rsplit(maxsplit=1)  # fmt: skip
    if not backends.exists():
        shutil.copytree(python / "backends", backends)
        stub = python / "python_backend_stubs" / version / "triton_python_backend_stub"
        (backends / "python" / stub.name).write_bytes(stub.read_bytes())
        (backends / "python" / stub.name).chmod(0o755)
    server = python / "bin/tritonserver"
    server.chmod(0o755)
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": ":".join(map(str, filter(None, (options.libpython, root / "nvidia_pytriton.libs")))),
        "PYTHONPATH": packages,
        "PATH": f"{server.parent}:{options.python.parent}:{os.environ['PATH']}",
    }
    command = [
        server, *(f"--model-repository={path}" for path in repositories), f"--backend-directory={backends}",
        "--disable-auto-complete-config", "--strict-readiness=false", "--exit-on-error=false", f"--http-port={port}",
        "--http-address=127.0.0.1", "--allow-grpc=false", "--allow-metrics=false",
    ]  # fmt: skip
    with (scratch / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        return index_of(port, process)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def index_of(port: int, process: subprocess.Popen[bytes]) -> dict[str, tuple[str, str]] | None:
    """The server's index; it answers when it has tried to load everything, None if it does not."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and process.poll() is None:
        try:
            request = urllib.request.Request(f"http://127.0.0.1:{port}/v2/repository/index", b"{}")
            with urllib.request.urlopen(request, timeout=10) as answer:
                found = json.load(answer)
            return {model["name"]: (model.get("state", "?"), model.get("reason", "")) for model in found}
        except OSError:
            time.sleep(0.3)
    return None


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


if __name__ == "__main__":
    main()
