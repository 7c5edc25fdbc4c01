"""The model to convert: a Hugging Face folder, its tensors read one at a time.

Files are untrusted. Only safetensors are read (no pickles, no remote code), an index may only name
files that lie in the folder, and every tensor is checked against the architecture before any work.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from .errors import InputError, printable, shown
from .files import headers, read_json
from .layout import hugging_face_shapes
from .model import Model, read_model
from .readymade import Expected, ReadyMade, read_ready_made
from .repack import Quantized
from .rounding import Grouped

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class Source:
    """A Hugging Face folder whose structure has been checked.

    Attributes:
        model: the dimensions that config.json states.
        dtype: "float16", "bfloat16" or "float32": what the config states, else what the weights are.
        ready: how its linears are quantized already; None in floating point.
        packed: the full names of the linears that are.

    Raises:
        InputError: a file, tensor, shape, dtype or config value that cannot be converted.
    """

    def __init__(self, folder: str | Path, flag: str = "--model_dir"):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"{flag}: {self.folder} is not a folder")
        self.config = read_json(self.folder / "config.json")
        self.model: Model = read_model(self.config)
        self.ready: ReadyMade | None = read_ready_made(self.folder, self.config)
        self.files = weight_files(self.folder)
        self.where: dict[str, Path] = {}
        self.packed: set[str] = set()
        self._check_tensors()
        self.dtype = self._dtype()

    def tensor(self, name: str, device: str | torch.device = "cpu") -> torch.Tensor:
        """One tensor, mapped from its file and released with its last reference.

        Raises:
            InputError: it holds NaN or Inf.
        """
        with safe_open(self.where[name], framework="pt", device=str(device)) as file:
            tensor: torch.Tensor = file.get_tensor(name)
        if not torch.isfinite(tensor).all():
            raise InputError(f"{self.where[name].name}: tensor {name} holds NaN or Inf")
        return tensor

    def layer(self, index: int, device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
        """The tensors of one decoder layer, named as inside the layer ("self_attn.q_proj.weight"); weights that are
        quantized already are dequantized, in float32."""
        prefix = self.model.family.layer.format(i=index)
        floats = [name for name in self.where if name.startswith(prefix) and name in self.shapes]
        tensors = {name[len(prefix) :]: self.tensor(name, device) for name in floats}
        for linear in sorted(name for name in self.packed if name.startswith(prefix)):
            tensors[f"{linear[len(prefix) :]}.weight"] = self.quantized(linear).dequantize().to(device)
        return tensors

    def quantized(self, linear: str) -> Quantized:
        """A linear of a ready-made folder, by its full name, as it is.

        Raises:
            InputError: its tensors contradict each other or config.json.
        """
        assert self.ready is not None
        suffixes = self.ready.tensors(linear, *self.shapes[f"{linear}.weight"])
        names = {suffix: f"{linear}.{suffix}" for suffix in suffixes}
        tensors = {suffix: self.tensor(name) for suffix, name in names.items() if name in self.where}
        read = self.ready.linear(tensors, linear)
        if list(read.integers.shape) != self.shapes[f"{linear}.weight"]:
            raise InputError(
                f"{linear}: holds a weight {list(read.integers.shape)}, "
                f"config.json implies {self.shapes[f'{linear}.weight']}"
            )
        return read

    def ready_layer(self, index: int, group_size: int, dtype: torch.dtype) -> dict[str, Grouped]:
        """A ready-made layer's linears, by name inside the layer, as an engine of this dtype computes with them.

        Raises:
            InputError: a linear is not quantized in a way that the engine can keep.
        """
        assert self.ready is not None
        prefix = self.model.family.layer.format(i=index)
        names = [name for name in self._linears() if name.startswith(prefix) and name in self.packed]
        return {name[len(prefix) :]: self.ready.exact(self.quantized(name), group_size, dtype) for name in names}

    def left_in_float(self) -> list[tuple[int, str]]:
        """(layer, name inside it) of the linears that a ready-made folder has not quantized."""
        layer, layers = self.model.family.layer, range(self.model.num_hidden_layers)
        parts = [part for linear in self.model.family.linears for part in linear.parts]
        return [(i, part) for i in layers for part in parts if f"{layer.format(i=i)}{part}" not in self.packed]

    def head(self, device: str | torch.device = "cpu") -> torch.Tensor:
        """The output projection [vocab_size, hidden_size]; the embedding where the two are tied."""
        family = self.model.family
        return self.tensor(family.head if family.head in self.where else family.embedding, device)

    def paths(self) -> list[Path]:
        """config.json, every weight file, and the file beside them that says how they are quantized."""
        said = [] if self.ready is None or self.ready.file.name == "config.json" else [self.ready.file]
        return [self.folder / "config.json", *self.files, *said]

    def _check_tensors(self) -> None:
        found = self._found()
        self.shapes = hugging_face_shapes(self.model)
        expected = self._expected(set(found))
        hint = "a bias or an extra module that config.json does not declare?"
        if self.ready is not None:
            hint = f"only decoder linears may be quantized, each in {self.ready.method}'s tensors alone"
        for name, (path, shape, dtype) in found.items():
            if name not in expected:
                raise InputError(
                    f"{path.name}: tensor {name} is not part of {self.model.architecture} as config.json "
                    f"describes it ({hint})"
                )
            shapes = [form for kind, form in expected[name].forms if kind == dtype]
            if not shapes:
                raise InputError(
                    f"{path.name}: tensor {name} is {dtype}; only {expected[name].kinds()} can be converted"
                )
            if shape not in shapes:
                raise InputError(f"{path.name}: tensor {name} has shape {shape}, config.json implies {shapes[0]}")
            self.where[name] = path
        missing = [name for name, tensor in expected.items() if name not in found and not tensor.optional]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise InputError(f"{self.folder}: tensor {missing[0]}{more} missing from the safetensors files")
        self._drop_empty_biases()

    def _found(self) -> dict[str, tuple[Path, list[int], str]]:
        """(file, shape, dtype) of every tensor that counts, by name."""
        family, found = self.model.family, dict[str, tuple[Path, list[int], str]]()
        for path in self.files:
            for name, shape, dtype in headers(path):
                if (name == family.head and self.model.tied) or name.endswith(family.ignored):
                    continue
                if name in found:
                    raise InputError(f"{path.name}: tensor {name} is also in {found[name][0].name}")
                found[name] = path, shape, dtype
        return found

    def _expected(self, found: set[str]) -> dict[str, Expected]:
        """Every tensor that config.json implies; a ready-made folder may leave some linears in floating point."""
        expected = {name: Expected.of(tuple(FLOATS), *shape) for name, shape in self.shapes.items()}
        if self.model.tied:
            expected.pop(self.model.family.head)
        for linear in self._linears() if self.ready is not None else []:
            weight, bias = f"{linear}.weight", f"{linear}.bias"
            expected.setdefault(bias, Expected.of(tuple(FLOATS), self.shapes[weight][0], optional=True))
            if weight not in found and self.ready is not None:
                self.packed.add(linear)
                expected.pop(weight)
                packed = self.ready.tensors(linear, *self.shapes[weight])
                expected |= {f"{linear}.{suffix}": tensor for suffix, tensor in packed.items()}
        return expected

    def _linears(self) -> list[str]:
        """The full names of the decoder layers' linears."""
        family = self.model.family
        parts = [part for linear in family.linears for part in linear.parts]
        return [f"{family.layer.format(i=i)}{part}" for i in range(self.model.num_hidden_layers) for part in parts]

    def _drop_empty_biases(self) -> None:
        """Old AutoGPTQ writes a bias of zeros for each linear that has none."""
        for name in [name for name in self.where if name.endswith(".bias") and name not in self.shapes]:
            if self.tensor(name).any():
                raise InputError(f"{self.where[name].name}: tensor {name} is not 0, but config.json declares no bias")
            del self.where[name]

    def _dtype(self) -> str:
        stated = self.model.dtype
        if stated is not None:
            name = str(stated).removeprefix("torch.")
            if name not in DTYPES:
                raise InputError(f"config.json: dtype {shown(stated)} is not supported; use {', '.join(DTYPES)}")
            return name
        embedding = self.model.family.embedding
        with safe_open(self.where[embedding], framework="pt") as file:
            stored = FLOATS[file.get_slice(embedding).get_dtype()]
        return next((name for name, dtype in DTYPES.items() if dtype == stored), "float32")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, those of the index if there is one."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{index.name}: no weight_map in it")
        names = sorted({str(name) for name in weight_map.values()})
        for name in names:
            if name != Path(name).name or name in ("", ".", ".."):
                raise InputError(f"{index.name}: {shown(name)} points outside the folder")
            if not (folder / name).is_file():
                raise InputError(f"{index.name}: shard {printable(name, 80)} is missing from {folder}")
        return [folder / name for name in names]
    # The second is AutoGPTQ's older name.
    for single in (folder / "model.safetensors", *sorted(folder.glob("gptq_model-*bit-*g.safetensors"))):
        if single.is_file():
            return [single]
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        raise InputError(
            f"{folder}: only pickled weights found, which are not read; save the model again with "
            "save_pretrained(..., safe_serialization=True)"
        )
    raise InputError(f"{folder}: no model.safetensors or model.safetensors.index.json")
