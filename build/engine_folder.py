"""An engine folder as trtllm-build leaves it: config.json and one rankN.engine for every rank."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from ..convert.errors import InputError
from ..convert.model import shown
from .build_engine import MANIFEST

CONFIG_LIMIT = 16 * 2**20
NAME_LIMIT = 100  # characters
VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})(?!\d)[\w.+-]*", re.ASCII)
RANK_FILE = re.compile(r"rank(\d+)\.engine")


class EngineFolder:
    """What an engine can do, as its config.json states it; the engine files are counted, never opened.

    Attributes:
        version: TensorRT-LLM's version that built it ("0.16.0").
        release: its first two numbers ((0, 16)).
        architecture, dtype, logits_dtype: as in pretrained_config ("LlamaForCausalLM", "bfloat16", "float32").
        vocab_size: number of token ids.
        quant_algo, kv_cache_quant_algo: TensorRT-LLM's names, or None.
        max_batch_size: sequences; max_beam_width: beams; max_input_len, max_seq_len, max_num_tokens: tokens.
        gather_context_logits: the engine can return logits of the prompt.
        plugin_config: build_config's plugin_config.
        tp_size, pp_size, world_size: ranks, one GPU each.

    Raises:
        InputError: no such folder, a config.json that is not an engine's, or rank files that do not fit it.
    """

    def __init__(self, folder: str | Path, flag: str = "--engine_dir"):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"{flag}: {self.folder} is not a folder")
        config = Reader(read_config(self.folder / "config.json"), self.folder / "config.json")
        pretrained, built = config.section("pretrained_config"), config.section("build_config")
        self.version = config.text("version")
        self.release = release_of(self.version, self.folder)
        self.architecture = pretrained.text("architecture")
        self.dtype = pretrained.text("dtype")
        self.logits_dtype = pretrained.text("logits_dtype", "float32")
        self.vocab_size = pretrained.count("vocab_size")
        quantization = pretrained.section("quantization", {})
        self.quant_algo = quantization.text_or_none("quant_algo")
        self.kv_cache_quant_algo = quantization.text_or_none("kv_cache_quant_algo")
        self.max_batch_size = built.count("max_batch_size")
        self.max_beam_width = built.count("max_beam_width", 1)
        self.max_input_len = built.count("max_input_len")
        self.max_seq_len = built.count("max_seq_len")
        self.max_num_tokens = built.count("max_num_tokens")
        self.gather_context_logits = built.values.get("gather_context_logits") is True
        self.plugin_config = built.section("plugin_config", {}).values
        mapping = pretrained.section("mapping", {})
        self.tp_size, self.pp_size = mapping.count("tp_size", 1), mapping.count("pp_size", 1)
        ranks = self.tp_size * self.pp_size * mapping.count("cp_size", 1)
        self.world_size = mapping.count("world_size", ranks)
        if self.world_size != ranks:
            raise InputError(f"{config.path}: world_size {self.world_size} is not tp * pp * cp = {ranks}")
        self._check_rank_files()

    def why_no_paged_context(self) -> str | None:
        """Why KV cache reuse and chunked context cannot work with this engine; None if they can."""
        if self.kv_cache_quant_algo == "INT8":
            return "the engine has an INT8 KV cache, which excludes paged context FMHA"
        if self.plugin_config.get("use_paged_context_fmha") is not True:
            return "the engine was built without use_paged_context_fmha"
        return None

    def why_chunked_context(self) -> str | None:
        """Why this engine must be served with chunked context, and what to do; None if it need not."""
        if self.max_num_tokens >= self.max_input_len:
            return None
        way = f"build with --max_num_tokens {self.max_input_len}, or shorter prompts"
        if self.why_no_paged_context() is None:
            way = "serve with --enable_chunked_context"
        sizes = f"max_num_tokens {self.max_num_tokens} is less than max_input_len {self.max_input_len}"
        return f"{sizes}, so its longest prompts do not fit into one step; {way}"

    def plan(self) -> Reader:
        """The plan in the enginesmith.json that building leaves; empty for other engines.

        Raises:
            InputError: the file is broken.
        """
        path = self.folder / MANIFEST
        return Reader(read_config(path) if os.path.lexists(path) else {}, path).section("plan", {})

    def sliding_window(self) -> int | None:
        """Tokens that each token of the planned model attends to; None if to all, or if no plan says.

        Raises:
            InputError: the plan is broken.
        """
        return self.plan().section("checkpoint", {}).count_or_none("sliding_window")

    def _check_rank_files(self) -> None:
        numbers = {int(found[1]): path for path in self.folder.iterdir() if (found := RANK_FILE.fullmatch(path.name))}
        for rank in range(self.world_size):
            if rank not in numbers or not numbers[rank].is_file():
                raise InputError(
                    f"{self.folder}: rank{rank}.engine is missing; config.json needs {self.world_size} of them"
                )
            if numbers[rank].stat().st_size == 0:
                raise InputError(f"{numbers[rank]}: is empty; build the engine again")
        if extra := sorted(set(numbers) - set(range(self.world_size))):
            raise InputError(
                f"{self.folder}: rank{extra[0]}.engine belongs to another build, for config.json's world size is "
                f"{self.world_size}"
            )


class Reader:
    """A JSON object whose values are asked for by type; errors name the file and the key."""

    def __init__(self, values: dict[str, Any], path: Path, name: str = ""):
        self.values, self.path, self.name = values, path, name

    def section(self, key: str, default: dict[str, Any] | None = None) -> Reader:
        value = self.values.get(key)
        value = default if value is None else value
        if not isinstance(value, dict):
            raise InputError(f"{self.path}: no {self.name}{key} in it; is this the folder that trtllm-build wrote?")
        return Reader(value, self.path, f"{self.name}{key}.")

    def text(self, key: str, default: str | None = None) -> str:
        value = self.values.get(key, default)
        if not isinstance(value, str) or not value:
            raise InputError(f"{self.path}: {self.name}{key} is {shown(value)}, a string is needed")
        if not value.isprintable() or len(value) > NAME_LIMIT:
            raise InputError(f"{self.path}: {self.name}{key} is {shown(value)}, which is no name")
        return value

    def text_or_none(self, key: str) -> str | None:
        return None if self.values.get(key) is None else self.text(key)

    def count(self, key: str, default: int | None = None) -> int:
        value = self.values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
            raise InputError(f"{self.path}: {self.name}{key} is {shown(value)}, a positive number is needed")
        return value

    def count_or_none(self, key: str) -> int | None:
        return None if self.values.get(key) is None else self.count(key)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise InputError(f"{self.path}: {self.name}{key} is {shown(value)}, true or false is needed")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.values.get(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise InputError(f"{self.path}: {self.name}{key} is {shown(value)}, a number is needed")
        return value


def release_of(version: str, folder: Path) -> tuple[int, int]:
    """ "1.2.0rc3" -> (1, 2)."""
    numbers = VERSION.fullmatch(version)
    if numbers is None:
        raise InputError(f"{folder / 'config.json'}: version {shown(version)} is no version of TensorRT-LLM")
    return int(numbers[1]), int(numbers[2])


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in a file of bounded size."""
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: not a regular file")
        with path.open("rb") as file:
            data = file.read(CONFIG_LIMIT + 1)
        if len(data) > CONFIG_LIMIT:
            raise InputError(f"{path}: larger than any config.json ({CONFIG_LIMIT // 2**20} MiB)")
        value = json.loads(data.decode("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (RecursionError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds no JSON object")
    return value
