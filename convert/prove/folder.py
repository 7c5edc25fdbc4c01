"""A quantized Hugging Face folder, whoever made it, executed as the runtimes that read it do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ...plugins.float_product import FloatProduct
from ..errors import InputError
from ..files.disk import shown_path
from ..models.encoder_head import EncoderHead
from ..models.ends import Embedding, Head
from ..models.layer import Layer
from ..models.mixture import Gate
from ..models.model import Model
from ..models.pieces import Group, Norm
from ..models.rotary import rotary_frequencies
from ..models.rotation import Rotation
from ..numbers.quantized import QuantizedLinear
from ..peers import ALONE, Peers
from ..sources.folder import Source
from ..sources.readymade.compressed import COMPRESSED
from ..sources.readymade.kinds import FP8, Inputs
from ..targets.huggingface.linear import READERS, FolderLinear
from ..targets.trtllm.formats.base import Activation, Product, Rounding
from ..targets.trtllm.manifest import Manifest, read_manifest
from .engine_layer import PreparedLayer, Tensors
from .runtime import Runtime


@dataclass(frozen=True)
class FolderLayer:
    """A layer of a folder, as ``ExecutedLayer`` has it.

    Attributes:
        dtype: the runtime's.
        common: norms and biases by the family's names, in that.
        linears: by logical linear.
        scales: of keys and values in the cache, float32 [2]; None for a cache in the runtime's dtype.
    """

    model: Model
    dtype: torch.dtype
    common: Tensors
    linears: Mapping[str, FolderLinear]
    scales: torch.Tensor | None

    def norm(self, norm: Norm) -> Tensors:
        return {suffix: self.common[f"{norm.name}.{suffix}"] for suffix in norm.suffixes}

    def gate(self, gate: Gate) -> torch.Tensor:
        return self.common[f"{gate.name}.weight"]

    def rounding(self, group: Group) -> Rounding:
        return Rounding()

    def divisor(self, linear: str) -> torch.Tensor | None:
        return None

    def product(self, linear: str, read: Activation) -> torch.Tensor:
        return self.joined(linear, [one.product for one in self.parts(linear)])(read)

    def parts(self, linear: str) -> list[FolderLinear]:
        return [self.linears[part] for part in self.model.family.linear(linear).parts]

    def joined(self, linear: str, products: Sequence[FloatProduct]) -> Product:
        """What a linear computes whose logical ones compute these: side by side, its bias added."""
        bias = self.common.get(f"{linear}.bias")

        def product(read: Activation) -> torch.Tensor:
            made = [one(read.x) for one in products]
            y = made[0] if len(made) == 1 else torch.cat(made, 1)
            return y if bias is None else y + bias

        return product

    def prepared(self) -> PreparedLayer:
        names = [linear.name for linear in self.model.family.linears]
        made = {name: self.joined(name, [one.prepared(self.dtype) for one in self.parts(name)]) for name in names}
        return PreparedLayer.of(self, self.model, made)

    def cache(self) -> tuple[str, torch.Tensor] | None:
        return None if self.scales is None else ("FP8", self.scales)


class FloatFolder:
    """A Hugging Face folder in floating point, executed as transformers computes it.

    Args:
        dtype: of weights, and of values between operations.
        flag: the option that gave the folder.
    """

    def __init__(self, folder: str | Path, dtype: torch.dtype = torch.float32, flag: str = "CHECKPOINT"):
        self.source, self.folder, self.dtype = Source(folder, flag), Path(folder), dtype
        self.model, self.reader = self.source.model, READERS["kernels"]
        self.peers: Peers = ALONE

    def runtime(self, tokens: int, device: torch.device) -> Runtime:
        """What executes its layers on sequences of so many tokens."""
        frequencies, turned = rotary_frequencies(self.model)
        return Runtime(self.model, self.dtype, frequencies, tokens, device, turned, engine=False)

    def embedding(self) -> Embedding:
        return self.source.embedding().map(self.cast)

    def head(self, device: torch.device) -> Head:
        return self.source.head(device).map(self.cast)

    def cast(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.dtype)

    def executed(self, index: int, device: torch.device) -> FolderLayer:
        """A layer, on a device."""
        return self.layer_of(self.source.layer(index), {}, lambda part: Inputs(), None, device)

    def layer_of(
        self,
        tensors: Tensors,
        quantized: Mapping[str, QuantizedLinear],
        inputs: Callable[[str], Inputs],
        scales: torch.Tensor | None,
        device: torch.device,
    ) -> FolderLayer:
        """A layer of some tensors, by logical linear and norm, of which some linears are quantized."""
        common = {name: self.cast(one).to(device) for name, one in Layer.of(tensors, self.model).common().items()}
        linears = dict[str, FolderLinear]()
        for part in [part for linear in self.model.family.linears for part in linear.parts]:
            if part in quantized:
                made, how = quantized[part], inputs(part)
            else:
                weight = self.cast(tensors[f"{part}.weight"]).float()
                made, how = QuantizedLinear(weight, weight.new_ones(1)), Inputs()
            linears[part] = FolderLinear.of(made.to(device), how, self.reader)
        return FolderLayer(self.model, self.dtype, common, linears, scales)


class QuantizedFolder(FloatFolder):
    """A folder whose linears are quantized: by this project, llm-compressor, ModelOpt, GPTQModel, AutoAWQ or AutoRound.

    Args:
        reader: one of READERS.
        dtype: of what is not quantized; None for what config.json states.

    Attributes:
        quant: what it is quantized by, as its configuration says.

    Raises:
        InputError: a folder that its configuration does not describe, or that is not quantized.
    """

    def __init__(self, folder: str | Path, reader: str = "kernels", dtype: torch.dtype | None = None):
        super().__init__(folder)
        self.reader = READERS[reader]
        if self.source.ready is None:
            raise InputError(
                f"{shown_path(self.folder)}: its weights are in floating point; there is nothing to verify"
            )
        if not self.model.family.predicts_tokens or self.model.family.mixture is not None:
            raise InputError(f"{shown_path(self.folder)}: {self.model.architecture} is not executed from such folders")
        if self.source.ready.cache not in (None, FP8):
            raise InputError(f"{self.source.ready.file.name}: only an FP8 KV cache with fixed scales is executed here")
        if reader == "edge" and self.source.ready.method.startswith(COMPRESSED):
            raise InputError(f"--reader edge: TensorRT Edge-LLM does not read {COMPRESSED}; leave it away")
        self.source.check_ready_made()
        self.ready = self.source.ready
        self.quant: str | None = self.ready.method
        self.dtype = dtype or getattr(torch, self.source.dtype)
        self.kv_cache, self.cut = self.ready.cache, ""
        self.dtype_name = str(self.dtype).removeprefix("torch.")
        self.manifest: Manifest = read_manifest(self.folder)
        self.sliding_window: int | None = None

    def rotation(self) -> Rotation | None:
        return None

    def encoder_head(self) -> EncoderHead:
        raise AssertionError("encoders are refused before")

    def executed(self, index: int, device: torch.device) -> FolderLayer:
        """A layer, on a device."""
        quantized, scales = self.source.quantized_layer(index), self.cache_scales(index, device)
        return self.layer_of(
            self.source.unquantized_layer(index), quantized, partial(self.inputs, index), scales, device
        )

    def inputs(self, index: int, part: str) -> Inputs:
        """How the input of a quantized logical linear is rounded."""
        family = self.model.family
        inputs = self.ready.of(family.layer.format(i=index) + family.view(part).tensor).inputs
        assert inputs is not None
        return inputs

    def cache_scales(self, index: int, device: torch.device) -> torch.Tensor | None:
        """Of keys and values, float32 [2], wherever tools put them; 1 where they did not."""
        if self.kv_cache is None:
            return None
        prefix, (_, key, value) = self.model.family.layer.format(i=index), self.model.family.attention
        around = key.rpartition(".")[0]
        names = {
            "k_scale": (f"{around}.k_scale", f"{key}.k_scale"),
            "v_scale": (f"{around}.v_scale", f"{value}.v_scale"),
        }
        scales = []
        for places in names.values():
            held = [prefix + place for place in places if prefix + place in self.source.where]
            if held and not float(self.source.tensor(held[0])) > 0:
                raise InputError(f"{held[0]}: is no scale of a KV cache; it must be above 0")
            scales.append(self.source.tensor(held[0]).float().reshape(()) if held else torch.tensor(1.0))
        return torch.stack(scales).to(device)

    def problems(self, values: bool = True) -> list[str]:
        """What is wrong with the numbers of its linears; their names, shapes and dtypes were checked before."""
        if not values:
            return []
        try:
            for linear in sorted(self.source.packed):
                self.source.quantized(linear)
            for index in range(self.model.num_hidden_layers):
                self.cache_scales(index, torch.device("cpu"))
        except InputError as error:
            return [str(error)]
        return []
