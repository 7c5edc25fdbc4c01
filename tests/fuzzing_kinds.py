"""The kinds of files that are fuzzed: how a valid one is made, how it is changed, what reads it, what it may mean."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as Folder
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from enginesmith.build.check_engine import Machine, reasons_against
from enginesmith.build.checkpoint_folder import CheckpointFolder
from enginesmith.build.engine_folder import EngineFolder
from enginesmith.build.network import rank_nodes
from enginesmith.build.recipe import read_recipe
from enginesmith.build.triton.check import examine
from enginesmith.build.triton.generate import generate
from enginesmith.build.triton.options import TritonOptions
from enginesmith.convert.errors import InputError
from enginesmith.convert.job.conversion import convert
from enginesmith.convert.job.options import ConvertOptions
from enginesmith.convert.job.quantization import quantization_of
from enginesmith.convert.prove.proven import ProvenCheckpoint as Checkpoint
from enginesmith.convert.prove.verify import structure_problems
from enginesmith.convert.readers.check import check_folder
from enginesmith.convert.sources.folder import Source
from enginesmith.convert.sources.special_tokens import stated_ends
from enginesmith.convert.sources.text import read_tokens
from enginesmith.convert.statistics.file import StatisticsFile
from enginesmith.convert.targets.trtllm.formats.base import Engine
from enginesmith.convert.targets.trtllm.target import TensorRTLLM

from .conftest import DATA, write_model
from .fuzzing import (
    Draw,
    Fault,
    Mutant,
    Outcome,
    mutant_of_bytes,
    mutant_of_json,
    mutant_of_safetensors,
    mutant_of_text,
    outcome,
)
from .reader_folders import Sketch, compressed, gptq, modelopt
from .triton_folders import byte_level, write_engine

CPU = torch.device("cpu")
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.5,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MODEL: dict[str, Any] = {
    "num_hidden_layers": 2,
    "rope_theta": 5000.0,
    "rope_scaling": LLAMA3,
    "sliding_window": None,
    "head_dim": 16,
    "attention_bias": False,
    "mlp_bias": False,
}
# What a Hugging Face config says that nothing here needs to read.
UNREAD = {"model_type", "sliding_window"}
# Keys whose valid value here is also what their absence means.
DEFAULTS = {
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "hidden_act",
    "head_dim",
    "torch_dtype",
    "sliding_window",
}
# What a checkpoint of one rank says that changes neither its tensors nor what they compute.
HARMLESS = {
    "disable_weight_only_quant_plugin",
    "embedding_sharding_dim",
    "exclude_modules",
    "gpus_per_node",
    "moe",
    "moe_ep_size",
    "moe_tp_size",
    "producer",
    "share_embedding_table",
    "smoothquant_val",
    "use_parallel_embedding",
    "world_size",
}


@dataclass
class Kind:
    """One kind of file, ready to be changed.

    Attributes:
        path: the file.
        mutate: a changed content.
        work: reads it and gives what was understood; an InputError is a refusal.
        judge: raises Fault for an acceptance that is wrong; given the valid file's reading, the mutant, and its own.
    """

    path: Folder
    mutate: Callable[[Draw], Mutant]
    work: Callable[[], Any]
    judge: Callable[[Any, Mutant, Any], None] = lambda valid, mutant, read: None

    def __post_init__(self) -> None:
        self.valid = outcome(self.work)
        if self.valid.refusal is not None:
            raise AssertionError(f"{self.path}: the valid file is refused: {self.valid.refusal}")

    def case(self, draw: Draw) -> Outcome:
        """Change the file, read it, and raise Fault unless what comes of it is right."""
        mutant, original = self.mutate(draw), self.path.read_bytes()
        self.path.unlink()
        self.path.write_bytes(mutant.data)
        try:
            came = outcome(self.work)
            if came.refusal is None:
                self.judge(self.valid.read, mutant, came.read)
        except Exception as error:
            raise Fault(f"{self.path.name}, {mutant.how}: {type(error).__name__}: {error}") from error
        finally:
            self.path.unlink()
            self.path.write_bytes(original)
        return came


def seen_where_it_counts(unread: set[str], defaults: set[str], valid: Any, mutant: Mutant, read: Any) -> None:
    """A changed value that is accepted must be in what was read, unless the key is one that nobody needs to read.

    Args:
        unread: those keys.
        defaults: keys whose absence means the valid file's value; empty for all.
    """
    if mutant.value is None or read != valid or not mutant.path:
        return
    key = next((word for word in reversed(mutant.path) if isinstance(word, str)), "")
    if {key, mutant.path[0]} & unread or mutant.how.startswith(("add", "rename")):
        return
    holder: Any = mutant.value
    for word in mutant.path[:-1]:
        holder = holder[word]
    now = holder.get(mutant.path[-1]) if isinstance(holder, dict) else holder
    if without_nulls(now) in (None, [], {}) and (not defaults or key in defaults):
        return
    raise Fault(f"accepted, and read as if nothing had changed: {mutant.how} is now {now!r:.80}")


def without_nulls(value: Any) -> Any:
    """An object without the keys that are null, which are as good as absent."""
    return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value


def hugging_face_config(folder: Folder) -> Kind:
    model = write_model(folder / "hf", **MODEL)
    document = json.loads((model / "config.json").read_text())
    del document["sliding_window"], document["model_type"]
    (model / "config.json").write_text(json.dumps(document))

    def work() -> Any:
        source = Source(model)
        how = quantization_of(ConvertOptions(str(model), "out"), source, TensorRTLLM)
        TensorRTLLM(how.precision, Engine(how.dtype)).check()
        return source.model, source.dtype, source.notes

    def judge(valid: Any, mutant: Mutant, read: Any) -> None:
        seen_where_it_counts(UNREAD, DEFAULTS, valid, mutant, read)

    return Kind(model / "config.json", lambda draw: mutant_of_json(draw, document), work, judge)


def weights(folder: Folder) -> Kind:
    model = write_model(folder / "weights", num_hidden_layers=1, vocab_size=9)
    data = (model / "model.safetensors").read_bytes()
    tensors = load_file(model / "model.safetensors")

    def work() -> Any:
        source = Source(model)
        return {name: source.tensor(name) for name in source.where}

    def judge(valid: Any, mutant: Mutant, read: Any) -> None:
        if read.keys() != tensors.keys():
            raise Fault("accepted with other tensors than the model has")

    return Kind(model / "model.safetensors", lambda draw: mutant_of_safetensors(draw, data), work, judge)


def index(folder: Folder) -> Kind:
    model = write_model(folder / "index", num_hidden_layers=1)
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, model / shard)
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    document = {"metadata": {"total_size": 1000}, "weight_map": weight_map}
    (model / "model.safetensors.index.json").write_text(json.dumps(document))

    def work() -> Any:
        return set(Source(model).where)

    def judge(valid: Any, mutant: Mutant, read: Any) -> None:
        if read != set(names):
            raise Fault("accepted with other tensors than the model has")

    return Kind(model / "model.safetensors.index.json", lambda draw: mutant_of_json(draw, document), work, judge)


def checkpoint_of(folder: Folder, **options: Any) -> Folder:
    source = write_model(folder / "hf", num_hidden_layers=2, vocab_size=12, intermediate_size=128, hidden_size=128)
    calib = {"calib": str(folder / "ids.safetensors"), "calib_size": 4, "calib_seq_len": 16}
    convert(ConvertOptions(str(source), str(folder / "ck"), **{**calib, **options}))
    return folder / "ck"


def verified(folder: Folder) -> tuple[Any, list[str]]:
    """What verify understands of a checkpoint, and what it finds wrong."""
    checkpoint = Checkpoint(folder)
    said = (checkpoint.model, checkpoint.precision, checkpoint.mapping, checkpoint.dtype, checkpoint.sliding_window)
    return (*said, checkpoint.embedding_axis, checkpoint.manifest), structure_problems(checkpoint)


def checkpoint_file(name: str, mutate: Callable[[Draw, Any], Mutant], keep_manifest: bool, **options: Any) -> Any:
    """A kind for one of a checkpoint's files: verify and the plan must agree about it."""
    harmless = HARMLESS if "group_size" in options else HARMLESS | {"group_size"}

    def kind(folder: Folder) -> Kind:
        made = checkpoint_of(folder / f"{name}-{'with' if keep_manifest else 'alone'}", **options)
        if not keep_manifest:
            (made / "enginesmith.json").unlink()
        data = (made / name).read_bytes()
        content = json.loads(data) if name.endswith(".json") else data

        def work() -> Any:
            said, problems = verified(made)
            try:
                planned = CheckpointFolder(made)
                rank_nodes(planned, 0)
                planned.check_structure()
                planned.check_manifest(every_file=True)
            except InputError as error:
                if not problems:
                    raise Fault(f"verify finds nothing wrong, a plan refuses: {error}") from None
            return said, problems

        def judge(valid: Any, mutant: Mutant, read: Any) -> None:
            if not read[1]:
                seen_where_it_counts(harmless, set(), valid, mutant, read)

        return Kind(made / name, lambda draw: mutate(draw, content), work, judge)

    return kind


def manifest(draw: Draw, content: Any) -> Mutant:
    """Changes of what a manifest says of the checkpoint; how it was made is for people."""
    read = {key: content[key] for key in ("files", "packed_for_sm", "rotated", "sliding_window", "options")}
    read["options"] = {"seed": content["options"]["seed"]}
    mutant = mutant_of_json(draw, read)
    return mutant if mutant.value is None else Mutant(mutant.data, mutant.how)


def ready_made(name: str) -> Any:
    def kind(folder: Folder) -> Kind:
        model = shutil.copytree(DATA / "readymade" / name, folder / name)
        path = next(
            (model / file for file in ("quantize_config.json", "quant_config.json") if (model / file).exists()), None
        )
        config = json.loads((model / "config.json").read_text())
        if path is not None and "quantization_config" in config:
            del config["quantization_config"]
            (model / "config.json").write_text(json.dumps(config))
        path = path or model / "config.json"
        document = json.loads(path.read_text())
        linear = "model.layers.0.self_attn.k_proj"

        def work() -> Any:
            source = Source(model)
            read = source.quantized(linear) if linear in source.packed else None
            held = () if read is None else (read.values, read.scale, read.zero)
            values = [None if tensor is None else tensor.tolist() for tensor in held]
            return source.model, source.ready, values

        return Kind(path, lambda draw: mutant_of_json(draw, document), work)

    return kind


def recipe(folder: Folder) -> Kind:
    folder = folder / "recipe"
    folder.mkdir()
    document = {
        "model_dir": "hf",
        "output_dir": "out",
        "convert": {"quant": "W4A16_AWQ", "group_size": 64, "kv_cache": "INT8", "exclude": ["*.0.mlp"], "alpha": 0.5},
        "verify": {"max_ppl_increase": 2, "chunks": 4},
        "build": {"gpu": "A100", "release": "1.2.1", "max_input_len": 2048, "gemm_plugin": "auto", "gpu_memory": 40.0},
        "triton": {"decoupled": True, "max_batch_size": 8, "batch_scheduler_policy": "max_utilization"},
    }
    text = yaml.safe_dump(document, sort_keys=False)
    (folder / "recipe.yaml").write_text(text)
    words = [
        "!!bool x",
        "!!int ''",
        "!!timestamp x",
        "!!python/object:os.system x",
        "&a [*a]",
        "? [x]",
        "~",
        "0x1",
        ".nan",
    ]
    path = folder / "recipe.yaml"
    return Kind(path, lambda draw: mutant_of_text(draw, text, words), lambda: read_recipe(path))


def engine(name: str) -> Any:
    def kind(folder: Folder) -> Kind:
        made = write_engine(folder / f"engine-{name}", "1.2.1")
        plan = {"memory": [{"activations": 1, "reserve": 2}], "checkpoint": {"sliding_window": 4096}}
        machine = {"sm": 80, "gpu": "A100", "tensorrt": "10.14.1", "tensorrt_llm": "1.2.1"}
        manifest = {"plan": plan, "machine": machine, "ranks": [{"rank": 0, "sha256": "x"}], "config": "y"}
        (made / "enginesmith.json").write_text(json.dumps(manifest))
        document = json.loads((made / name).read_text())

        def work() -> Any:
            found = EngineFolder(made)
            return found.plan().values, found.sliding_window(), reasons_against(found, Machine("1.2.1", "10.14.1", []))

        return Kind(made / name, lambda draw: mutant_of_json(draw, document), work)

    return kind


def repository(name: str) -> Any:
    def kind(folder: Folder) -> Kind:
        folder = folder / f"repository-{name}"
        byte_level().save_pretrained(folder / "tokenizer")
        write_engine(folder / "engine", "1.2.1")
        options = TritonOptions(str(folder / "engine"), str(folder / "tokenizer"), str(folder / "repository"))
        made = generate(options)
        path = made / name / "config.pbtxt"
        text = path.read_text()
        words = ["99", "TYPE_FP64", "KIND_GPU", "[", "{", "}", '"${x}"', '"\\000"', "-1", "true", "1e400", "# x"]
        return Kind(path, lambda draw: mutant_of_text(draw, text, words), lambda: examine(made).problems)

    return kind


def end_tokens(folder: Folder) -> Kind:
    path = folder / "generation_config.json"
    document = {"eos_token_id": [5, 7], "bos_token_id": 1, "temperature": 0.6}
    path.write_text(json.dumps(document))
    return Kind(path, lambda draw: mutant_of_json(draw, document), lambda: stated_ends(path, 100))


def statistics(folder: Folder) -> Kind:
    path, ids = folder / "stats", {"calib_size": 4, "calib_seq_len": 16}
    checkpoint_of(folder / "statistics", save_stats=str(path), **ids)
    model = Source(folder / "statistics" / "hf").model
    data = path.read_bytes()

    def work() -> Any:
        return StatisticsFile(path, model, CPU).layer(0).hidden_amax

    return Kind(path, lambda draw: mutant_of_safetensors(draw, data), work)


def texts(folder: Folder) -> Kind:
    byte_level().save_pretrained(folder / "texts")
    path = folder / "texts" / "calib.jsonl"
    lines = [
        json.dumps({"text": "the quick brown fox " * 8}),
        json.dumps({"prompt": "the", "completion": " fox " * 20}),
    ]
    path.write_text("\n".join(lines))
    data = path.read_bytes()

    def work() -> Any:
        return read_tokens(str(path), path.parent, 2, 8, 600, "--calib").ids.shape

    return Kind(path, lambda draw: mutant_of_bytes(draw, data), work)


AWQ = {"quant": "W4A16_AWQ", "group_size": 64}
MIXED = {"quant": "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", "quant_layer": ("*.1.mlp=W8A16",)}


def judged(file: str, make: Callable[[], Sketch]) -> Callable[[Folder], Kind]:
    """A file of a folder of which runtimes are said to read it or not."""

    def kind(folder: Folder) -> Kind:
        path = make().write(folder / "judged") / file
        data = path.read_bytes()

        def mutate(draw: Draw) -> Mutant:
            is_json = path.suffix == ".json"
            return mutant_of_json(draw, json.loads(data)) if is_json else mutant_of_safetensors(draw, data)

        return Kind(path, mutate, lambda: check_folder(path.parent))

    return kind


KINDS: dict[str, Callable[[Folder], Kind]] = {
    "config.json of Hugging Face": hugging_face_config,
    "model.safetensors": weights,
    "model.safetensors.index.json": index,
    "config.json of a checkpoint": checkpoint_file("config.json", mutant_of_json, False),
    "config.json of an AWQ checkpoint": checkpoint_file("config.json", mutant_of_json, False, **AWQ),
    "quant_cfg.json": checkpoint_file("quant_cfg.json", mutant_of_json, False, **MIXED),
    "enginesmith.json": checkpoint_file("enginesmith.json", manifest, True),
    "rank0.safetensors": checkpoint_file("rank0.safetensors", mutant_of_safetensors, False, quant="FP8"),
    "quantize_config.json of GPTQ": ready_made("gptqmodel-w4-symmetric-g64"),
    "quantization_config of AWQ": ready_made("autoawq-g64"),
    "quantization_config of compressed-tensors": ready_made("llmcompressor-w4-symmetric-g64"),
    "recipe": recipe,
    "config.json of an engine": engine("config.json"),
    "enginesmith.json of an engine": engine("enginesmith.json"),
    "config.pbtxt of tensorrt_llm": repository("tensorrt_llm"),
    "config.pbtxt of an ensemble": repository("ensemble"),
    "generation_config.json": end_tokens,
    "config.json that runtimes read": judged("config.json", lambda: compressed("int8_static")),
    "hf_quant_config.json that runtimes read": judged("hf_quant_config.json", lambda: modelopt("W4A16_AWQ")),
    "tensors that runtimes read": judged("model.safetensors", gptq),
    "statistics": statistics,
    "calibration records": texts,
}
