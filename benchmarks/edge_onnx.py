"""What TensorRT Edge-LLM makes of a folder: its own exporter's graph, executed in ONNX Runtime, without a GPU.

Run in an environment of its own (pip install 'tensorrt-edgellm[export]==0.11.0' onnxruntime==1.32.0):

python benchmarks/edge_onnx.py FOLDER IDS [--reference LOGITS] [--float32] [--onnx DIR] [--exporter PYTHON]

IDS is a safetensors file with input_ids [chunks, tokens], LOGITS what `reader_transformers.py --save` kept of the float
model. The graph computes in float16, as the engine does; --float32 leaves out its rounding. --onnx keeps the export, or
takes one that is there. --exporter is another environment's interpreter. Exit code 1 where the exporter fails, loads
fewer tensors than the folder has, or quantizes other than as many linears. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from edge_ops import executable
from logits import measured
from safetensors import safe_open
from safetensors.torch import load_file

LOADED = re.compile(r"Loaded (\d+) tensors, skipped (\d+)")
QUANTIZED = (".weight_scale", ".qweight")
DTYPES = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(int32)": np.int32}


def names(folder: Path) -> list[str]:
    """Those of the tensors in a folder."""
    found: list[str] = []
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            found += tensors.keys()
    return found


def export(folder: Path, onnx_dir: Path, python: str) -> None:
    """Edge-LLM's own command; every tensor of the folder must have found its place."""
    command = [python, "-m", "tensorrt_edgellm.scripts.export", str(folder), str(onnx_dir)]
    done = subprocess.run([*command, "--int4-gemm-plugin-version", "1"], capture_output=True, text=True)
    said, wanted = done.stdout + done.stderr, (str(len(names(folder))), "0")
    if done.returncode:
        sys.exit(f"{folder}: the exporter failed\n{said[-3000:]}")
    if (loaded := LOADED.findall(said)) != [wanted]:
        sys.exit(f"{folder}: tensors loaded and skipped are {loaded}, not {wanted}")


def check(nodes: Counter[str], folder: Path) -> int:
    """How many linears the graph quantizes: as many as the folder."""
    own = nodes["DequantizeLinear"] - nodes["QuantizeLinear"] + nodes["Int4GroupwiseGemmPlugin"]
    wanted = sum(name.endswith(QUANTIZED) for name in names(folder))
    if own != wanted:
        sys.exit(f"{folder}: {wanted} linears are quantized, the graph has {own}: {dict(nodes)}")
    return own


def rotary(config: dict[str, Any], length: int) -> np.ndarray:
    """[length, head size]: cosines, then sines, of the positions that the runtime reads in the exported config."""
    size, scaling = config["head_dim"], config.get("rope_scaling") or {}
    frequencies = config["rope_theta"] ** -(np.arange(0, size, 2) / size)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "linear":
        frequencies /= scaling["factor"]
    elif kind == "llama3":
        turns = scaling["original_max_position_embeddings"] * frequencies / (2 * np.pi)
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        share = np.clip((turns - low) / (high - low), 0, 1)
        frequencies *= share + (1 - share) / scaling["factor"]
    elif kind != "default":
        sys.exit(f"no reference for {kind} rope")
    angles = np.outer(np.arange(length), frequencies)
    return np.concatenate([np.cos(angles), np.sin(angles)], 1)


class Graph:
    """An exported model, executed a whole prompt at a time."""

    def __init__(self, exported: Path, float32: bool, work: Path) -> None:
        model, self.nodes = executable(exported / "model.onnx", float32)
        file = work / "executable.onnx"
        onnx.save(model, file, save_as_external_data=True, location="executable.data", size_threshold=1024)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", 0))
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.config = json.loads((exported / "config.json").read_text(encoding="utf-8"))
        self.embedding = load_file(exported / "embedding.safetensors")["embedding"].half().numpy()

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        length = len(ids)
        given = {
            "inputs_embeds": self.embedding[ids],
            "rope_rotary_cos_sin": rotary(self.config, length),
            "logits_indices": np.arange(length),
            "positions": np.arange(length),
            "query_start_offsets": np.array([0, length]),
            "query_lengths": np.array([length]),
        }
        feed = {}
        for entry in self.session.get_inputs():
            shape = [size if isinstance(size, int) else 1 for size in entry.shape]
            value = given.get(entry.name, np.zeros(shape))
            feed[entry.name] = value.astype(DTYPES.get(entry.type, np.int64))
        return torch.from_numpy(self.session.run(["logits"], feed)[0])


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("ids", type=Path)
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--float32", action="store_true")
    parser.add_argument("--onnx", type=Path)
    parser.add_argument("--exporter", default=sys.executable)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        exported = given.onnx or Path(work) / "export"
        if not (exported / "llm" / "model.onnx").exists():
            export(given.folder, exported, given.exporter)
        graph = Graph(exported / "llm", given.float32, Path(work))
        quantized = check(graph.nodes, given.folder)
        ids = load_file(given.ids)["input_ids"]
        found = measured(graph.logits, ids, given.reference, given.save)
    print(json.dumps({"quantized_linears": quantized, "nodes": dict(graph.nodes)} | found))


if __name__ == "__main__":
    main()
