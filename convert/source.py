"""The model to convert: a Hugging Face folder, its tensors read one at a time.

Files are untrusted. Only safetensors are read (no pickles, no remote code), an index may only name
files that lie in the folder, and every tensor is checked against the architecture before any work.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from .errors import InputError
from .files import headers, read_json
from .layout import hugging_face_shapes
from .model import Model, read_model

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class Source:
    """A Hugging Face folder whose structure has been checked.

    Attributes:
        model: the dimensions that config.json states.
        dtype: "float16", "bfloat16" or "float32": what the config states, else what the weights are.

    Raises:
        InputError: a file, tensor, shape, dtype or config value that cannot be converted.
    """

    def __init__(self, folder: str | Path, flag: str = "--model_dir"):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"{flag}: {self.folder} is not a folder")
        self.config = read_json(self.folder / "config.json")
        self.model: Model = read_model(self.config)
        self.files = weight_files(self.folder)
        self.where: dict[str, Path] = {}
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
        """The tensors of one decoder layer, named as inside the layer ("self_attn.q_proj.weight")."""
        prefix = self.model.family.layer.format(i=index)
        names = [name for name in self.where if name.startswith(prefix)]
        return {name[len(prefix) :]: self.tensor(name, device) for name in names}

    def head(self, device: str | torch.device = "cpu") -> torch.Tensor:
        """The output projection [vocab_size, hidden_size]; the embedding where the two are tied."""
        family = self.model.family
        return self.tensor(family.head if family.head in self.where else family.embedding, device)

    def paths(self) -> list[Path]:
        """config.json and every weight file."""
        return [self.folder / "config.json", *self.files]

    def _check_tensors(self) -> None:
        expected = hugging_face_shapes(self.model)
        family = self.model.family
        if self.model.tied:
            expected.pop(family.head)
        for path in self.files:
            for name, shape, dtype in headers(path):
                if (name == family.head and self.model.tied) or name.endswith(family.ignored):
                    continue
                if name not in expected:
                    raise InputError(
                        f"{path.name}: tensor {name} is not part of {self.model.architecture} as config.json "
                        "describes it (a bias or an extra module that config.json does not declare?)"
                    )
                if name in self.where:
                    raise InputError(f"{path.name}: tensor {name} is also in {self.where[name].name}")
                if shape != expected[name]:
                    raise InputError(
                        f"{path.name}: tensor {name} has shape {shape}, config.json implies {expected[name]}"
                    )
                if dtype not in FLOATS:
                    raise InputError(
                        f"{path.name}: tensor {name} is {dtype}; only floating-point weights "
                        f"({', '.join(FLOATS)}) can be converted"
                    )
                self.where[name] = path
        missing = [name for name in expected if name not in self.where]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise InputError(f"{self.folder}: tensor {missing[0]}{more} missing from the safetensors files")

    def _dtype(self) -> str:
        stated = self.model.dtype
        if stated is not None:
            name = str(stated).removeprefix("torch.")
            if name not in DTYPES:
                raise InputError(f"config.json: dtype {stated!r} is not supported; use {', '.join(DTYPES)}")
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
                raise InputError(f"{index.name}: {name!r} points outside the folder")
            if not (folder / name).is_file():
                raise InputError(f"{index.name}: shard {name} is missing from {folder}")
        return [folder / name for name in names]
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        raise InputError(
            f"{folder}: only pickled weights found, which are not read; save the model again with "
            "save_pretrained(..., safe_serialization=True)"
        )
    raise InputError(f"{folder}: no model.safetensors or model.safetensors.index.json")
