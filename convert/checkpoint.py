"""A TensorRT-LLM checkpoint folder: config.json, rankN.safetensors filled in place, enginesmith.json.

The folder is made under a hidden name beside its final one and renamed when it is complete, so the
final name never holds half a checkpoint, whatever ends the process.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from re import fullmatch
from typing import Any

import torch

from .errors import InputError
from .layout import Mapping
from .model import Model
from .scheme import Scheme

# safetensors dtype names
DTYPE_NAMES = {
    "int8": "I8",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
}
ITEM_SIZE = {"int8": 1, "float32": 4, "float16": 2, "bfloat16": 2}
# What a conversion writes, and may therefore remove after a run that was killed.
MADE_HERE = r"rank\d+\.safetensors|config\.json|enginesmith\.json"


class RankFile:
    """A safetensors file laid out at once and filled tensor by tensor, in any order.

    Args:
        path: the file to create.
        tensors: name -> (shape, dtype) of everything it will hold.
    """

    def __init__(self, path: Path, tensors: dict[str, tuple[list[int], str]]):
        self.path, self.tensors = path, tensors
        self.missing = set(tensors)
        self.offset: dict[str, int] = {}
        header: dict[str, Any] = {}
        position = 0
        for name in sorted(tensors, key=lambda name: (-ITEM_SIZE[tensors[name][1]], name)):
            shape, dtype = tensors[name]
            end = position + ITEM_SIZE[dtype] * prod(shape)
            header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": shape, "data_offsets": [position, end]}
            self.offset[name], position = position, end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self.start = 8 + len(text)
        self.file = path.open("wb")
        reserve(self.file.fileno(), self.start + position, path)
        self.file.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Store one tensor; shape and dtype must be the declared ones."""
        shape, dtype = self.tensors[name]
        if list(tensor.shape) != shape or tensor.dtype != getattr(torch, dtype):
            raise AssertionError(f"{name}: {list(tensor.shape)} {tensor.dtype}, declared {shape} {dtype}")
        data = tensor.detach().to("cpu").contiguous().view(-1).view(torch.uint8).numpy()
        self.file.seek(self.start + self.offset[name])
        self.file.write(data.data)
        self.missing.discard(name)

    def close(self) -> None:
        self.file.close()
        if self.missing:
            raise AssertionError(f"{self.path.name}: never written: {sorted(self.missing)[:3]}")


class Staging:
    """The folder while it is being made: ``with Staging(final) as staging: ...; staging.commit()``.

    Leaving without commit removes it. What a killed run left behind is removed by the next one. The folder itself
    is the lock that keeps two runs apart: held from before its first file until after its last name.

    Raises:
        InputError: the final folder exists, its parent cannot be written, another run is making it, or the hidden
            name is taken by something that no run made.
    """

    def __init__(self, final: str | Path):
        self.final = Path(os.path.abspath(final))
        self.folder = self.final.parent / f".{self.final.name}.partial"
        if self.exists():
            raise InputError(f"--output_dir: {final} exists; remove it or choose another folder")

    def exists(self) -> bool:
        try:
            return os.path.lexists(self.final)
        except OSError as error:
            raise InputError(f"--output_dir: cannot use {self.final} ({error.strerror})") from None

    def __enter__(self) -> Staging:
        try:
            self.final.parent.mkdir(parents=True, exist_ok=True)
            self.lock = self.own()
            leftovers = list(self.folder.iterdir())
            for leftover in leftovers:
                if leftover.is_symlink() or not leftover.is_file() or not fullmatch(MADE_HERE, leftover.name):
                    raise InputError(f"--output_dir: {self.folder} holds {leftover.name}, which is not ours; remove it")
            for leftover in leftovers:
                leftover.unlink()
        except OSError as error:
            raise InputError(f"--output_dir: cannot write {self.folder} ({error.strerror})") from None
        return self

    def own(self) -> int:
        """A descriptor of the hidden folder, locked, the folder still having that name."""
        while True:
            with suppress(FileExistsError):
                self.folder.mkdir()
            try:
                lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.lexists(self.folder) and os.path.samestat(os.fstat(lock), os.lstat(self.folder)):
                    return lock
            except BlockingIOError:
                os.close(lock)
                raise InputError(f"--output_dir: {self.final} is being written by another process") from None
            os.close(lock)

    def commit(self) -> None:
        """Make every byte durable and give the folder its final name."""
        for path in self.folder.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        os.fsync(self.lock)
        if self.exists():
            raise InputError(f"--output_dir: {self.final} appeared while it was being made")
        self.folder.rename(self.final)

    def __exit__(self, *_: object) -> None:
        with uninterrupted():
            if os.path.lexists(self.folder) and os.path.samestat(os.fstat(self.lock), os.lstat(self.folder)):
                shutil.rmtree(self.folder, ignore_errors=True)
            os.close(self.lock)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Clean up to the end, whatever keys are pressed meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def reserve(descriptor: int, size: int, path: Path) -> None:
    """Claim the disk space of a whole file now, so that a full disk is known before any work."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            os.ftruncate(descriptor, size)
            return
        free = shutil.disk_usage(path.parent).free
        raise InputError(
            f"--output_dir: no room for {path.name}: {size / 1e6:,.1f} MB needed, {free / 1e6:,.1f} MB free "
            f"({error.strerror})"
        ) from None


def checkpoint_config(
    model: Model, scheme: Scheme, mapping: Mapping, dtype: str, smoothquant_val: float
) -> dict[str, Any]:
    """TensorRT-LLM's config.json, in the key set that releases 0.16 to 1.2.1 read."""
    return {
        "mlp_bias": model.mlp_bias,
        "attn_bias": model.attn_bias,
        "rotary_base": model.rotary_base,
        "rotary_scaling": model.rotary_scaling,
        "residual_mlp": False,
        "disable_weight_only_quant_plugin": False,
        "moe": {
            "num_experts": 0,
            "shared_expert_intermediate_size": 0,
            "top_k": 0,
            "normalization_mode": None,
            "sparse_mixer_epsilon": 0.01,
            "tp_mode": 0,
            "device_limited_n_group": 0,
            "device_limited_topk_group": 0,
            "device_limited_routed_scaling_factor": 1.0,
        },
        "remove_duplicated_kv_heads": False,
        "fc_after_embed": False,
        "use_input_layernorm_in_first_layer": True,
        "use_last_layernorm": True,
        "layer_idx_offset": 0,
        "architecture": model.architecture,
        "dtype": dtype,
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_hidden_layers,
        "num_attention_heads": model.num_attention_heads,
        "hidden_act": model.hidden_act,
        "logits_dtype": "float32",
        "norm_epsilon": model.norm_epsilon,
        "runtime_defaults": None,
        "position_embedding_type": "rope_gpt_neox",
        "num_key_value_heads": model.num_key_value_heads,
        "intermediate_size": model.intermediate_size,
        "max_position_embeddings": model.max_position_embeddings,
        "mapping": {
            "world_size": mapping.world_size,
            "gpus_per_node": 8,
            "cp_size": 1,
            "tp_size": mapping.tp_size,
            "pp_size": mapping.pp_size,
            "moe_tp_size": mapping.tp_size,
            "moe_ep_size": 1,
        },
        "quantization": {
            "quant_algo": scheme.algo,
            "kv_cache_quant_algo": scheme.kv_cache,
            "group_size": 128,
            "smoothquant_val": smoothquant_val,
            "clamp_val": None,
            "use_meta_recipe": False,
            "has_zero_point": False,
            "pre_quant_scale": False,
            "exclude_modules": None,
        },
        "use_parallel_embedding": False,
        "embedding_sharding_dim": 0,
        "share_embedding_table": False,
        "head_size": model.head_size,
        "qk_layernorm": False,
        "rotary_embedding_dim": model.head_size,
    }


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=4, allow_nan=False) + "\n", encoding="utf-8")


def prod(shape: list[int]) -> int:
    size = 1
    for axis in shape:
        size *= axis
    return size
