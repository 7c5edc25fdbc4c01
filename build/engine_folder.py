"""An engine folder as trtllm-build leaves it: config.json and one rankN.engine for every rank."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..convert.errors import InputError, shown
from ..convert.files.disk import is_there, read_json
from ..convert.files.reader import Reader
from ..convert.targets.trtllm.manifest import windows_of
from .build_engine import MANIFEST

CONFIG_LIMIT = 16 * 2**20
VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})(?!\d)[\w.+-]*", re.ASCII)
RANK_FILE = re.compile(r"rank(0|[1-9]\d{0,9})\.engine", re.ASCII)


class EngineFolder:
    """What an engine can do, as its config.json states it; the engine files are counted, never opened.

    Attributes:
        version: TensorRT-LLM's version that built it ("0.16.0").
        release: its first two numbers ((0, 16)).
        architecture, dtype, logits_dtype: as in pretrained_config (a class, "bfloat16", "float32").
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
        path = self.folder / "config.json"
        if not path.exists() and (self.folder / "plan.json").exists():
            raise InputError(f"{flag}: {self.folder} is a plan; bash {self.folder / 'build.sh'} makes an engine of it")
        config = Reader(read_json(path, CONFIG_LIMIT), str(path))
        if "pretrained_config" not in config.values:
            raise InputError(f"{path} has no pretrained_config, as an engine's has; enginesmith build plans engines")
        self.read(config)
        if self.world_size != self.ranks:
            raise InputError(f"{path}: world_size {self.world_size} is not tp * pp * cp = {self.ranks}")
        self._check_rank_files()

    def read(self, config: Reader) -> None:
        """Take what config.json states."""
        pretrained, built = config.section("pretrained_config"), config.section("build_config")
        self.version = config.text("version")
        self.release = release_of(self.version, self.folder)
        self.architecture = pretrained.text("architecture")
        self.dtype = pretrained.text("dtype")
        self.logits_dtype = pretrained.text("logits_dtype", "float32")
        self.vocab_size = pretrained.integer("vocab_size")
        quantization = pretrained.section("quantization")
        self.quant_algo = quantization.text_or_none("quant_algo")
        self.kv_cache_quant_algo = quantization.text_or_none("kv_cache_quant_algo")
        self.max_batch_size = built.integer("max_batch_size")
        self.max_beam_width = built.integer("max_beam_width", 1)
        self.max_input_len = built.integer("max_input_len")
        self.max_seq_len = built.integer("max_seq_len")
        self.max_num_tokens = built.integer("max_num_tokens")
        self.gather_context_logits = built.values.get("gather_context_logits") is True
        self.plugin_config = built.section("plugin_config").values
        mapping = pretrained.section("mapping")
        self.tp_size, self.pp_size = mapping.integer("tp_size", 1), mapping.integer("pp_size", 1)
        self.ranks = self.tp_size * self.pp_size * mapping.integer("cp_size", 1)
        self.world_size = mapping.integer("world_size", self.ranks)

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
        return Reader(read_json(path, CONFIG_LIMIT) if is_there(path) else {}, str(path)).section("plan")

    def sliding_window(self) -> int | None:
        """Tokens that each token of the planned model attends to; None if to all, or if no plan says.

        Raises:
            InputError: the plan is broken.
        """
        checkpoint = self.plan().section("checkpoint")
        return checkpoint.integer("sliding_window") if checkpoint.has("sliding_window") else None

    def windows(self) -> str | None:
        """max_attention_window_size of the planned model: one for all layers, or a list that goes round them; None
        where all attend to all.

        Raises:
            InputError: the plan is broken.
        """
        checkpoint = self.plan().section("checkpoint")
        different = windows_of(checkpoint, "attention_windows")
        if different:
            return window_list(different, self.max_seq_len)
        window = self.sliding_window()
        return None if window is None else str(window)

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


def release_of(version: str, folder: Path) -> tuple[int, int]:
    """ "1.2.0rc3" -> (1, 2)."""
    numbers = VERSION.fullmatch(version)
    if numbers is None:
        raise InputError(f"{folder / 'config.json'}: version {shown(version)} is no version of TensorRT-LLM")
    return int(numbers[1]), int(numbers[2])


def window_list(windows: Sequence[int | None], longest: int) -> str:
    """Windows as the backend reads them: tokens of each, as many as there may be where a layer has none."""
    return ",".join(str(window or longest) for window in windows)
