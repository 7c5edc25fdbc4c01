"""The model to convert: a Hugging Face folder, its tensors read one at a time.

Files are untrusted. Only safetensors are read (no pickles, no remote code), an index may only name
files that lie in the folder, and every tensor is checked against the architecture before any work. Each file is
opened once: what is hashed, parsed and read is one content, or an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from ...plugins.lazy import torch
from ..errors import InputError, shown
from ..files.disk import is_there, parse_json, shown_path
from ..files.pinned import Pinned
from ..files.reader import Reader
from ..files.shard import DTYPES as STORED
from ..files.shard import Shard
from ..models.dimensions import read_model
from ..models.encoder_head import EncoderHead, read_head
from ..models.ends import Embedding, Head
from ..models.model import Model
from ..models.pieces import Norm
from ..models.shapes import (
    hugging_face_shapes,
    layer_shapes,
    logical,
    modules,
    multiplied,
    part_sizes,
    shifted,
    whole_rows,
)
from ..numbers.finite import finite
from ..numbers.quantized import QuantizedLinear
from .ahead import Ahead
from .readymade.detect import FILES, read_ready_made
from .readymade.kinds import Expected, ReadyMade
from .readymade.unpacking import INPUT_FACTOR
from .weight_files import refuse_adapter, state_of, weight_files
from .weight_names import check_tensors, find, settle_biases, settle_head, sign

FLOATS = ("F32", "F16", "BF16", "F64")
DTYPES = ("float16", "bfloat16", "float32")


class Source:
    """A Hugging Face folder whose structure has been checked.

    Attributes:
        model: the dimensions that config.json states.
        dtype: "float16", "bfloat16" or "float32": what the config states, else what the weights are.
        ready: how its linears are quantized already; None in floating point.
        packed: the full names of the linears that are.
        where: each tensor by its family's name; shapes: what config.json implies.
        zeros: biases that config.json declares and no file holds.
        prefix: what stood before every tensor's name.
        notes: what was done that the folder does not say in so many words.

    Raises:
        InputError: a file, tensor, shape, dtype or config value that cannot be converted.
    """

    def __init__(self, folder: str | Path, flag: str = "--model_dir"):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"{flag}: {shown_path(self.folder)} is not a folder; nothing is downloaded")
        self.notes: list[str] = []
        if not is_there(self.folder / "config.json"):
            raise InputError(f"{flag}: {shown_path(self.folder)}: no config.json; {state_of(self.folder)}")
        self.config_file = Pinned(self.folder / "config.json")
        self.config = parse_json(self.config_file.text(), self.config_file.path)
        if "architecture" in self.config and "architectures" not in self.config:
            raise InputError(
                f"{flag}: {shown_path(self.folder)} is a TensorRT-LLM checkpoint, not a Hugging Face model"
            )
        self.model: Model = read_model(self.config)
        if self.config.get(self.model.family.key("max_position_embeddings")) is None:
            self.note(f"max_position_embeddings {self.model.max_position_embeddings}, transformers' default")
        if self.config.get("sliding_window") is not None and self.model.sliding_window is None:
            self.note(f"sliding_window is not used: attention of {self.model.architecture} has none")
        files = weight_files(self.folder, self.config, self.note)
        refuse_adapter(self.folder)
        self.shards = [Shard(path) for path in files]
        self.where, self.prefix = find(self.shards, self.model.family, self.note)
        self.model = settle_head(self.where, self.model, self.note)
        self.model, self.zeros = settle_biases(self.where, self.model, self.config, self.note)
        self.ahead = Ahead(self.where)
        self.beside = {name: Pinned(self.folder / name) for name in FILES if is_there(self.folder / name)}
        self.ready: ReadyMade | None = self._read_ready_made()
        self.shapes = hugging_face_shapes(self.model)
        expected, self.packed = self._expected()
        check_tensors(self.where, expected, self._about, shown_path(self.folder))
        self._drop_empty_biases()
        self.dtype = self._dtype()

    def note(self, text: str) -> None:
        self.notes.append(text)

    def tensor(self, name: str, device: str | torch.device = "cpu") -> torch.Tensor:
        """One tensor, in memory of its own.

        Raises:
            InputError: it holds NaN or Inf, or its file changed.
        """
        if torch.device(device).type == "cuda":
            tensor = self.ahead.take(name).to(device, non_blocking=True)
        else:
            tensor = self.where[name].read().to(device)
        if not finite(tensor):
            raise InputError(f"{self.where[name].file}: tensor {name} holds NaN or Inf")
        return tensor

    def layer(self, index: int, device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
        """The tensors of one decoder layer, by logical linear and norm inside the layer; weights that are quantized
        already are dequantized, in float32."""
        prefix = self.model.family.layer.format(i=index)
        if torch.device(device).type == "cuda":
            self.ahead.begin(self._names_of(index))  # in their order, where nobody has begun
            self.ahead.begin(self._names_of(index + 1))

        def read(inside: str) -> torch.Tensor:
            name, linear = prefix + inside, prefix + inside.removesuffix(".weight")
            if name in self.zeros:
                return torch.zeros(self.shapes[name], dtype=getattr(torch, self.dtype), device=device)
            return self.dequantized(linear).to(device) if linear in self.packed else self.tensor(name, device)

        return logical(self.model, read)

    def unquantized_layer(self, index: int) -> dict[str, torch.Tensor]:
        """``layer``, with weights that are quantized already left out: tensors of their shape without numbers."""
        prefix = self.model.family.layer.format(i=index)

        def read(inside: str) -> torch.Tensor:
            name, linear = prefix + inside, prefix + inside.removesuffix(".weight")
            if name in self.zeros:
                return torch.zeros(self.shapes[name], dtype=getattr(torch, self.dtype))
            return torch.empty(self.shapes[name], device="meta") if linear in self.packed else self.tensor(name)

        return logical(self.model, read)

    def dequantized(self, linear: str) -> torch.Tensor:
        """The weight of a linear of a ready-made folder, by its full name, float32 [out, in].

        Raises:
            InputError: its tensors contradict each other or the configuration.
        """
        assert self.ready is not None
        return self._whole(linear, self.ready.weight(self._tensors_of(linear), linear))

    def quantized(self, linear: str) -> QuantizedLinear:
        """The same, as its runtime computes with it."""
        assert self.ready is not None
        return self.ready.quantized(self._tensors_of(linear), linear)

    def ready_layer(self, index: int, group_size: int, dtype: torch.dtype) -> dict[str, QuantizedLinear]:
        """A ready-made layer's linears, by name inside the layer, as an engine of this dtype computes with them.

        Raises:
            InputError: a linear is not quantized in a way that the engine can keep.
        """
        ready = self.ready
        assert ready is not None
        return self._parts(index, lambda name: ready.kept(self._tensors_of(name), name, group_size, dtype))

    def quantized_layer(self, index: int) -> dict[str, QuantizedLinear]:
        """The same as its runtime computes with them."""
        return self._parts(index, self.quantized)

    def _parts(self, index: int, read: Callable[[str], QuantizedLinear]) -> dict[str, QuantizedLinear]:
        """A layer's logical linears, of the modules that are quantized; read: gives one by its full name."""
        prefix, found = self.model.family.layer.format(i=index), dict[str, QuantizedLinear]()
        for group in self.model.family.groups:
            for module, parts in modules(self.model, group).items():
                if prefix + module in self.packed:
                    made = read(prefix + module)
                    self._whole(prefix + module, made.values)
                    found |= dict(zip(parts, made.rows(part_sizes(self.model, parts)), strict=True))
        times = {part: of for part, of in self.model.multipliers.items() if part in found}
        return found | {part: replace(found[part], scale=found[part].scale * of) for part, of in times.items()}

    def check_ready_made(self) -> None:
        """Hold every quantized linear's zero points and groups against the configuration, before any work.

        Raises:
            InputError: they contradict each other.
        """
        assert self.ready is not None
        told = dict[str, None]()
        for linear in sorted(self.packed):
            own = self.ready.of(linear)
            note = own.check(self._those_of(linear, own.small), linear)
            if note is not None:
                told[note] = None
        self.notes += told
        self._check_input_factors()

    def _check_input_factors(self) -> None:
        """Raise InputError where some linears that read one input multiply it by a factor, and others do not."""
        family = self.model.family
        for index in range(self.model.num_hidden_layers):
            prefix = family.layer.format(i=index)
            for group in family.groups:
                linears = [prefix + part for part in family.parts(group) if prefix + part in self.packed]
                have = [linear for linear in linears if f"{linear}.{INPUT_FACTOR}" in self.where]
                if have and len(have) < len(linears):
                    lacking = next(linear for linear in linears if linear not in have)
                    raise InputError(
                        f"tensor {lacking}.{INPUT_FACTOR} is missing, though {have[0]} has one and reads the same input"
                    )

    def left_in_float(self) -> list[tuple[int, str]]:
        """(layer, name inside it) of the linears that a ready-made folder has not quantized."""
        family, left = self.model.family, list[tuple[int, str]]()
        for index in range(self.model.num_hidden_layers):
            prefix, parts = family.layer.format(i=index), [part for of in family.linears for part in of.parts]
            left += [(index, part) for part in parts if prefix + family.view(part).tensor not in self.packed]
        return left

    def _names_of(self, index: int) -> list[str]:
        """The tensors of one layer that are in floating point; none behind the last."""
        names = layer_shapes(self.model) if index < self.model.num_hidden_layers else ()
        prefix = self.model.family.layer.format(i=index)
        return [prefix + name for name in names if prefix + name in self.where]

    def embedding(self, device: str | torch.device = "cpu") -> Embedding:
        """What stands before the first layer."""
        family = self.model.family
        if torch.device(device).type == "cuda":
            self.ahead.begin([family.embedding, *self._names_of(0)])
        positions = None if family.position_embedding is None else self.tensor(family.position_embedding, device)
        norm = {} if family.embedding_norm is None else self._norm(family.embedding_norm, device)
        tokens = multiplied(self.model, family.embedding, self.tensor(family.embedding, device))
        types = None if family.type_embedding is None else self.tensor(family.type_embedding, device)
        return Embedding(self.model, tokens, positions, norm, types)

    def encoder_head(self, device: str | torch.device = "cpu") -> EncoderHead:
        """What stands behind an encoder's last layer."""
        return read_head(self.model, lambda projection, suffix: self.tensor(f"{projection.tensor}.{suffix}", device))

    def head(self, device: str | torch.device = "cpu") -> Head:
        """What stands behind the last layer; the output projection is the embedding where the two are tied."""
        family = self.model.family
        assert family.head is not None
        stored = self.tensor(family.head if family.head in self.where else family.embedding, device)
        weight = multiplied(self.model, family.head, stored)
        if family.normalized_head:
            exact = weight if weight.dtype == torch.float16 else weight.float()  # its authors' code, but for bfloat16
            weight = torch.nn.functional.normalize(exact)
        bias = None if family.head_bias is None else self.tensor(family.head_bias, device)
        return Head(self.model, self._norm(family.last_norm, device), weight, bias)

    def _norm(self, norm: Norm, device: str | torch.device) -> dict[str, torch.Tensor]:
        """A norm's tensors [hidden_size], by last name; it stands outside the layers."""
        read = {suffix: self.tensor(f"{norm.tensor}.{suffix}", device) for suffix in norm.suffixes}
        return {suffix: shifted(self.model, suffix, tensor) for suffix, tensor in read.items()}

    def paths(self) -> list[Path]:
        """config.json, every weight file, and the files beside them that say how they are quantized."""
        return [file.path for file in self.files()]

    def files(self) -> list[Pinned]:
        """``paths``, open."""
        return [self.config_file, *(shard.file for shard in self.shards), *self.beside.values()]

    def digests(self) -> dict[str, Callable[[], str]]:
        """What hashes each of these files, by name."""
        return {file.path.name: file.sha256 for file in self.files()}

    def check_unchanged(self) -> None:
        """Raise InputError unless every file is still there as it was when it was opened."""
        for file in self.files():
            file.check_unchanged()

    def linears(self, index: int) -> list[str]:
        """The full names of one decoder layer's linears, as the files have them."""
        family = self.model.family
        parts = [part for linear in family.linears for part in linear.parts]
        return list(dict.fromkeys(family.layer.format(i=index) + family.view(part).tensor for part in parts))

    def _all_linears(self) -> list[str]:
        return [name for index in range(self.model.num_hidden_layers) for name in self.linears(index)]

    def _whole(self, linear: str, weight: torch.Tensor) -> torch.Tensor:
        """Raise InputError unless a weight read from packed tensors is as large as config.json implies."""
        if list(weight.shape) != self.shapes[f"{linear}.weight"]:
            raise InputError(
                f"{linear}: holds a weight {list(weight.shape)}, config.json implies {self.shapes[f'{linear}.weight']}"
            )
        return weight

    def _tensors_of(self, linear: str) -> dict[str, torch.Tensor]:
        """The tensors that a quantized linear consists of, by last name."""
        assert self.ready is not None
        return self._those_of(linear, self.ready.tensors(linear, *self.shapes[f"{linear}.weight"]))

    def _those_of(self, linear: str, suffixes: Iterable[str]) -> dict[str, torch.Tensor]:
        names = {suffix: f"{linear}.{suffix}" for suffix in suffixes}
        return {suffix: self.tensor(name) for suffix, name in names.items() if name in self.where}

    def _read_ready_made(self) -> ReadyMade | None:
        """How the linears are quantized; a configuration beside floating-point weights is a leftover."""
        section = Reader(self.config).section("quantization_config").values
        if not section and not self.beside:
            return None
        weights = [f"{linear}.weight" for linear in self._all_linears()]
        plain = all(name in self.where and self.where[name].dtype in FLOATS for name in weights)
        if plain and self.where.keys() <= hugging_face_shapes(self.model).keys():
            if section.get("transform_config"):
                transforms = shown(section["transform_config"])
                raise InputError(f"config.json: transform_config {transforms} changes what the weights mean")
            said = "quantization_config" if section else next(iter(self.beside))
            self.note(f"{said} is not used: every weight is in floating point")
            self.beside = {}
            return None
        ready = read_ready_made(self.config_file.path, self.config, self.beside)
        if ready is not None and not whole_rows(self.model.family):
            what = f"{self.model.architecture} quantized by {ready.method}"
            raise InputError(f"{shown_path(self.folder)}: {what} is not read; give the unquantized model")
        return ready

    def _expected(self) -> tuple[dict[str, Expected], set[str]]:
        """Every tensor that config.json implies, and the linears whose tensors are a ready-made folder's; such a folder
        may leave some in floating point."""
        expected = {
            name: Expected.of(FLOATS, *shape, optional=name in self.zeros) for name, shape in self.shapes.items()
        }
        if self.model.tied and self.model.family.head is not None:
            expected.pop(self.model.family.head)
        packed = set[str]()
        for linear in [] if self.ready is None else self._all_linears():
            weight, bias = f"{linear}.weight", f"{linear}.bias"
            expected.setdefault(bias, Expected.of(FLOATS, self.shapes[weight][0], optional=True))
            expected |= {} if self.ready is None else self.ready.cache_names(linear)
            if self.ready is not None and not (weight in self.where and self.where[weight].dtype in FLOATS):
                self.ready.check_left_out(linear)
                packed.add(linear)
                expected.pop(weight)
                expected |= self.ready.full_names(linear, *self.shapes[weight])
        return expected, packed

    def _about(self, name: str) -> str:
        """Why a tensor is refused that config.json does not imply."""
        hint = sign(name) or "a bias or an extra module that config.json does not declare?"
        if any(name.endswith(f".{known}") for known in self.shapes):
            hint = "its name has a prefix that not all names have; save the model without what is wrapped around it"
        elif self.ready is not None:
            hint = f"only decoder linears may be quantized, each in {self.ready.method}'s tensors alone"
        return f"is not part of {self.model.architecture} as config.json describes it ({hint})"

    def _drop_empty_biases(self) -> None:
        """Old AutoGPTQ writes a bias of zeros for each linear that has none."""
        for name in [name for name in self.where if name.endswith(".bias") and name not in self.shapes]:
            if self.tensor(name).any():
                raise InputError(f"{self.where[name].file}: tensor {name} is not 0, but config.json declares no bias")
            del self.where[name]

    def _dtype(self) -> str:
        stated = self.model.dtype
        if stated is not None:
            name = stated.removeprefix("torch.")
            if name not in DTYPES:
                raise InputError(f"config.json: dtype {shown(stated)} is not supported; use {', '.join(DTYPES)}")
            return name
        stored = STORED[self.where[self.model.family.embedding].dtype]
        return stored if stored in DTYPES else "float32"
