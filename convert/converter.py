"""The whole conversion: one decoder layer in memory at a time, from mapped shards to files filled in place."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from .calibrate import LayerStatistics, Wanted, calibrate_layer
from .checkpoint import RankFile, checkpoint_config
from .device import fast_dtype, pick_device
from .errors import InputError
from .files import MANIFEST, Hashes, write_json
from .forward import LayerForward, rotary_frequencies
from .layer import Layer
from .layout import MODEL_DTYPE, Mapping, Tensor, check_kernels, cut, layer_tensors, padded_vocab, rank_tensors
from .options import QuantizeOptions
from .quantize import quantize_layer, wanted
from .ranges import METHODS
from .readymade import ANEW, ReadyMade, quant_of
from .rotation import Rotation
from .scheme import FLOAT, SMOOTHQUANT, WEIGHT_ONLY, Scheme, scheme_of
from .source import Source
from .staging import MARK, Staging
from .storage import PLAIN
from .text import Tokens, read_tokens

# Calibration tokens in one forward pass: large enough for the matrix units, small enough for the cache.
BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}

# (layer, phase, tokens done in that layer)
OnProgress = Callable[[int, str, int], None]


@dataclass(frozen=True)
class ConvertOptions:
    """What to convert and how. Fields are the command line's flags.

    Attributes:
        quant: TensorRT-LLM's QuantAlgo, or None for floating-point weights.
        kv_cache: None, "INT8" or "FP8".
        alpha: SmoothQuant's migration strength; None searches it for every smoothing group.
        act_range: "auto" or a method of ranges.METHODS, for static activation scales.
        fold, rounding, symmetric: see options.QuantizeOptions.
        group_size: input channels that share a scale, for AWQ and GPTQ.
        sm: the GPU generation that W8A16, W4A16 and GPTQ integers are arranged for.
        propagate: "float": later layers are calibrated on the source's hidden states; "quantized": on those of the
            layers quantized before, for weight-only schemes; "auto": quantized where GPTQ rounds.
        requantize: quantize the dequantized weights of a folder that is quantized already, instead of repacking it.
        rotate: rotate the residual stream (see rotation); None does so where weights have one scale a matrix.
        calib: a built-in text, a text file, or a safetensors file of token ids.
    """

    model_dir: str
    output_dir: str
    dtype: str = "auto"
    quant: str | None = None
    kv_cache: str | None = None
    tp_size: int = 1
    pp_size: int = 1
    alpha: float | None = None
    act_range: str = "auto"
    fold: bool = True
    rounding: str = "auto"
    symmetric: bool = False
    group_size: int = 128
    sm: int = 80
    propagate: str = "auto"
    rotate: bool | None = None
    requantize: bool = False
    calib: str = "pydoc"
    calib_size: int = 64
    calib_seq_len: int = 512
    device: str = "auto"
    seed: int = 0


@dataclass(frozen=True)
class Converted:
    """What a conversion made.

    Attributes:
        folder: the checkpoint.
        manifest: the content of its enginesmith.json.
    """

    folder: Path
    manifest: dict[str, Any]


def convert(options: ConvertOptions, on_progress: OnProgress = lambda layer, phase, tokens: None) -> Converted:
    """Convert a Hugging Face folder into a TensorRT-LLM checkpoint folder.

    Everything that can be refused is refused before any work; the output folder appears when complete.

    Raises:
        InputError: any input that cannot be converted, or a disk that cannot hold the result.
    """
    job = Job(options)
    with Staging(options.output_dir) as staging, Hashes() as hashes, torch.inference_mode(), plain_disk_errors(options):
        hashes.add("source", job.source.paths())
        layers = job.run(staging.folder, on_progress)
        on_progress(job.model.num_hidden_layers, "hash", 0)
        write_json(staging.folder / "config.json", job.config())
        hashes.add("files", sorted(path for path in staging.folder.iterdir() if path.name != MARK))
        manifest = job.manifest(layers) | hashes.wait()
        write_json(staging.folder / MANIFEST, manifest)
        staging.commit()
    return Converted(Path(options.output_dir), manifest)


class Job:
    """A checked conversion: the source, the target layout, and the calibration tokens."""

    def __init__(self, options: ConvertOptions):
        self.options = options
        check_options(options)
        self.device = pick_device(options.device)
        self.source = Source(options.model_dir)
        self.model = self.source.model
        algo = quant_of(self.source.ready, options.quant, options.requantize)
        self.ready: ReadyMade | None = None if options.requantize else self.source.ready
        group_size = self.ready.engine_group(options.group_size) if self.ready else options.group_size
        self.scheme: Scheme = scheme_of(algo, options.kv_cache, group_size, options.sm)
        self.choices = QuantizeOptions(
            options.alpha, options.act_range, options.fold, options.rounding, options.symmetric, self.ready is not None
        )
        check_apart(self.source.folder, Path(options.output_dir))
        self.mapping = Mapping(options.tp_size, options.pp_size)
        self.mapping.check(self.model)
        check_kernels(self.model, self.scheme, self.mapping)
        self.dtype = output_dtype(options.dtype, self.source.dtype)
        if self.ready is not None:
            self.check_repackable()
        rotate = options.rotate if options.rotate is not None else (options.fold and self.scheme.gains_from_rotation)
        self.rotation = Rotation(self.model.hidden_size, options.seed) if rotate else None
        self.tokens: Tokens | None = self.read_calibration() if wanted(self.scheme, self.choices) != Wanted() else None
        self.requantized = self.propagates_quantized()

    def check_repackable(self) -> None:
        """Raise InputError for what would change a ready-made folder's weights, before any work."""
        options = self.options
        changes = {
            "--rotate": bool(options.rotate),
            "--symmetric": options.symmetric,
            f"--rounding {options.rounding}": options.rounding != "auto",
            f"--propagate {options.propagate}": options.propagate != "auto",
        }
        for flag in [flag for flag, there in changes.items() if there]:
            raise InputError(f"{flag}: a folder that is quantized already keeps its integers; leave it away, or {ANEW}")
        if rotary_frequencies(self.model)[1] != 1:
            raise InputError(f"config.json: yarn's attention factor would go into q_proj's scales; {ANEW}")
        if left := self.source.left_in_float():
            raise InputError(f"{left[0]} is not quantized, others are: engines want all or none; {ANEW}")
        # What the packer did to one layer it did to all.
        self.source.ready_layer(0, self.scheme.group_size, getattr(torch, self.dtype))

    def read_calibration(self) -> Tokens:
        options, model = self.options, self.model
        limit = model.sliding_window or model.max_position_embeddings
        if options.calib_seq_len > min(limit, model.max_position_embeddings):
            raise InputError(f"--calib_seq_len {options.calib_seq_len} is longer than the model's {limit} positions")
        return read_tokens(
            options.calib,
            self.source.folder,
            options.calib_size,
            options.calib_seq_len,
            model.vocab_size,
            "--calib",
        )

    def run(self, folder: Path, on_progress: OnProgress) -> list[dict[str, Any]]:
        """Write every rank's file; returns what was chosen for each layer."""
        model, mapping, report = self.model, self.mapping, []
        with ExitStack() as open_files:
            files = [
                RankFile(
                    folder / f"rank{rank}.safetensors",
                    rank_tensors(model, self.scheme, mapping, rank, self.dtype),
                )
                for rank in range(mapping.world_size)
            ]
            for file in files:
                open_files.callback(file.file.close)
            on_progress(-1, "embedding", 0)
            self.write_rotary_tables(files)
            hidden = self.write_embedding(files)
            forward = self.layer_forward()
            specs = layer_tensors(model, self.scheme, self.dtype)
            for stage, layers in enumerate(mapping.stages(model.num_hidden_layers)):
                ranks = files[stage * mapping.tp_size : (stage + 1) * mapping.tp_size]
                for local, index in enumerate(layers):
                    tensors, chosen = self.layer(index, forward, hidden, on_progress)
                    report.append(chosen)
                    on_progress(index, "write", 0)
                    write_layer(ranks, local, tensors, specs, self)
            on_progress(model.num_hidden_layers, "head", 0)
            self.write_head(files[-mapping.tp_size :])
            for file in files:
                file.close()
        return report

    def layer_forward(self) -> LayerForward | None:
        if self.tokens is None:
            return None
        return LayerForward(self.model, self.tokens.ids.shape[1], fast_dtype(self.device), self.device)

    def layer(
        self, index: int, forward: LayerForward | None, hidden: torch.Tensor | None, on_progress: OnProgress
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """One layer's whole tensors, and what was chosen for it."""
        on_progress(index, "read", 0)
        source = self.source.layer(index, self.device)
        if self.rotation is not None:
            source = self.rotation.layer(source, self.model)
        statistics = LayerStatistics({})
        if forward is not None and hidden is not None:
            forward.load(source)
            on_progress(index, "calibrate", 0)
            length = hidden.shape[1]
            statistics = calibrate_layer(
                forward,
                hidden,
                self.model,
                wanted(self.scheme, self.choices),
                self.options.seed,
                max(1, BATCH_TOKENS[self.device.type] // length),
                lambda tokens: on_progress(index, "calibrate", tokens),
                stay=self.requantized,
            )
            check_range(hidden, self.dtype, index)
        self.fold_attention_scaling(source)
        if self.scheme.form != FLOAT:
            on_progress(index, "quantize", 0)
        layer = Layer.of(source, self.model)
        dtype: torch.dtype = getattr(torch, self.dtype)
        ready = self.source.ready_layer(index, self.scheme.group_size, dtype) if self.ready else None
        tensors, chosen = quantize_layer(layer, statistics, self.scheme, self.choices, dtype, ready)
        if self.requantized and forward is not None and hidden is not None:
            self.advance(layer, forward, hidden)
        return tensors, chosen

    def propagates_quantized(self) -> bool:
        """Whether later layers see what the quantized ones before them compute."""
        asked, scheme = self.options.propagate, self.scheme
        possible = scheme.grouped or scheme.form == WEIGHT_ONLY
        if asked == "quantized" and not possible:
            raise InputError(f"--propagate quantized is for weight-only schemes, not {scheme.algo}")
        return (
            possible
            and self.tokens is not None
            and (asked == "quantized" or (asked == "auto" and self.choices.gptq(scheme)))
        )

    def advance(self, layer: Layer, forward: LayerForward, hidden: torch.Tensor) -> None:
        """Replace the hidden states by what the quantized layer makes of them."""
        forward.load(layer.computed())
        batch = max(1, BATCH_TOKENS[self.device.type] // hidden.shape[1])
        calibrate_layer(forward, hidden, self.model, Wanted(), self.options.seed, batch)

    def fold_attention_scaling(self, source: dict[str, torch.Tensor]) -> None:
        """Yarn multiplies cos and sin, hence each attention score twice; the engine's tables do not: q does it here."""
        scaling = rotary_frequencies(self.model)[1]
        if scaling != 1:
            for name in ("self_attn.q_proj.weight", "self_attn.q_proj.bias"):
                if name in source:
                    source[name] = source[name].float() * scaling**2

    def write_rotary_tables(self, files: list[RankFile]) -> None:
        """Store frequencies and (cos, sin) pairs on every rank, where TensorRT-LLM's own would be wrong."""
        if not self.model.brings_rotary_tables:
            return
        frequencies, _ = rotary_frequencies(self.model)
        angles = torch.outer(torch.arange(self.model.max_position_embeddings).float(), frequencies)
        pairs = torch.stack((angles.cos(), angles.sin()), -1).view(1, -1)
        for file in files:
            file.write("rotary_inv_freq", frequencies)
            file.write("embed_positions_for_gpt_attention", pairs)

    def write_embedding(self, files: list[RankFile]) -> torch.Tensor | None:
        """Store the embedding on the first stage; returns the calibration tokens' hidden states."""
        name = self.model.family.embedding
        embedding = self.source.tensor(name)
        if self.rotation is not None:
            embedding = self.rotation.rotate(embedding)
        stored = to_dtype(embedding, self.dtype, name)
        for file in files[: self.mapping.tp_size]:
            file.write("transformer.vocab_embedding.weight", stored)
        if self.tokens is None:
            return None
        hidden = functional.embedding(self.tokens.ids, embedding)
        return hidden.to(self.device, fast_dtype(self.device))

    def write_head(self, files: list[RankFile]) -> None:
        """Store the final norm and each rank's rows of the output projection, zero rows at its end."""
        family, tp = self.model.family, self.mapping.tp_size
        norm, head = self.source.tensor(family.final_norm), self.source.head()
        if self.rotation is not None:
            norm, head = torch.ones_like(norm), self.rotation.rotate(head.float() * norm.float())
        norm, head = to_dtype(norm, self.dtype, family.final_norm), to_dtype(head, self.dtype, family.head)
        share = padded_vocab(self.model, tp) // tp
        for tp_rank, file in enumerate(files):
            rows = head[tp_rank * share : (tp_rank + 1) * share]
            file.write("transformer.ln_f.weight", norm)
            file.write("lm_head.weight", functional.pad(rows, (0, 0, 0, share - rows.shape[0])))

    def config(self) -> dict[str, Any]:
        alpha = 0.5 if self.options.alpha is None else self.options.alpha
        return checkpoint_config(self.model, self.scheme, self.mapping, self.dtype, alpha)

    def manifest(self, layers: list[dict[str, Any]]) -> dict[str, Any]:
        """How it was made, so that the same run can be recognized and repeated."""
        options = {k: v for k, v in asdict(self.options).items() if k not in ("model_dir", "output_dir")}
        calibration = None
        if self.tokens is not None:
            sequences, length = self.tokens.ids.shape
            calibration = {
                "text": self.tokens.name,
                "sha256": self.tokens.sha256,
                "sequences": sequences,
                "tokens_per_sequence": length,
                "dtype": str(fast_dtype(self.device)).removeprefix("torch."),
            }
        return {
            "versions": {name: metadata.version(name) for name in ("enginesmith", "torch", "transformers")},
            "options": options,
            "calibration": calibration,
            "quant": self.scheme.algo,
            "repacked_from": self.ready.method if self.ready else None,
            "rotated": self.rotation is not None,
            "packed_for_sm": self.scheme.sm if self.scheme.arranged else None,
            "layers": layers if any(layers) else [],
        }


def write_layer(
    files: list[RankFile], local: int, tensors: dict[str, torch.Tensor], specs: dict[str, Tensor], job: Job
) -> None:
    """Cut a layer's whole tensors over the ranks of its stage and store them."""
    for name, tensor in tensors.items():
        spec = specs[name]
        dtype = job.dtype if spec.dtype == MODEL_DTYPE else spec.dtype
        whole = (to_dtype(tensor, dtype, name) if spec.storage is PLAIN else tensor).cpu()
        for tp_rank, file in enumerate(files):
            piece = spec.storage.store(cut(whole, spec, job.model, job.mapping.tp_size, tp_rank))
            file.write(f"transformer.layers.{local}.{name}", piece)


def to_dtype(tensor: torch.Tensor, dtype: str, name: str) -> torch.Tensor:
    """Cast, refusing anything that would not be a finite number in the checkpoint."""
    cast = tensor.to(getattr(torch, dtype))
    if cast.is_floating_point() and cast.element_size() > 1 and not torch.isfinite(cast).all():
        largest = float(tensor.abs().max())
        if math.isfinite(largest) and dtype == "float16":
            raise InputError(f"tensor {name} does not fit float16 (it reaches {largest:.3g}); use --dtype bfloat16")
        raise InputError(f"tensor {name} is not finite in {dtype} (it reaches {largest:.3g}); the weights are unusable")
    return cast


def check_options(options: ConvertOptions) -> None:
    given = {"--alpha": options.alpha is not None, "--act_range": options.act_range != "auto"}
    for flag in [flag for flag, there in given.items() if there and options.quant not in SMOOTHQUANT]:
        raise InputError(f"{flag} belongs to SmoothQuant: give --quant, or --smoothquant ALPHA as upstream has it")
    if options.alpha is not None and not 0 <= options.alpha <= 1:
        raise InputError(f"--alpha {options.alpha} is not between 0 and 1")
    if not 0 <= options.seed < 2**63:
        raise InputError(f"--seed {options.seed} is not between 0 and 2**63 - 1")
    for flag, words in (("rounding", ("auto", "nearest", "gptq")), ("propagate", ("auto", "float", "quantized"))):
        if getattr(options, flag) not in words:
            raise InputError(f"--{flag} {getattr(options, flag)!r}: use {', '.join(words)}")
    if options.act_range != "auto" and options.act_range not in METHODS:
        raise InputError(f"--act_range {options.act_range!r}: use auto, {', '.join(METHODS)}")


def check_apart(source: Path, output: Path) -> None:
    resolved, inside = output.resolve(), source.resolve()
    if resolved == inside or inside in resolved.parents:
        raise InputError(f"--output_dir: {output} lies in --model_dir, which is never written to")


def check_range(hidden: torch.Tensor, dtype: str, layer: int) -> None:
    """The engine keeps hidden states in its dtype: they must be numbers, and fit."""
    largest = float(torch.maximum(hidden.max(), -hidden.min()))
    if not math.isfinite(largest):
        raise InputError(f"hidden states of layer {layer} are not finite; the model does not work on this text")
    if dtype == "float16" and largest > torch.finfo(torch.float16).max:
        raise InputError(f"hidden states of layer {layer} reach {largest:.3g}, beyond float16; use --dtype bfloat16")


def output_dtype(asked: str, source: str) -> str:
    """The engine's dtype: as asked, else the source's, float32 becoming float16 as upstream has it."""
    if asked == "auto":
        return "float16" if source == "float32" else source
    if asked not in ("float16", "bfloat16"):
        raise InputError(f"--dtype {asked!r} is not supported; use auto, float16 or bfloat16")
    return asked


@contextmanager
def plain_disk_errors(options: ConvertOptions) -> Iterator[None]:
    """A full disk or a quota is bad input, not a crash."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise InputError(f"--output_dir: cannot write {options.output_dir} ({error.strerror})") from None
        raise
