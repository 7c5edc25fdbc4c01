"""TensorRT's plugins: what they hand over, and that kernels launched with exactly that equal the references.

On a CPU the kernels' entries are interpreted; on a GPU their PTX is loaded and launched by the CUDA driver.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")

from enginesmith.plugins import quantize_per_token, rmsnorm_quantization, smooth_quant_gemm  # noqa: E402
from enginesmith.plugins.tensorrt import ahead, launches  # noqa: E402

from . import driver  # noqa: E402

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
GENERATIONS = (80, 86, 89, 90)
DTYPES = ("float16", "bfloat16")
TOKENS = (1, 4, 5, 17, *((3, 16, 64, 300) if ON_GPU else ()))
# Rows of whole vectors and of none; sizes that fill no tile.
SIZES = ((48, 256), (37, 100), *(((1040, 4096), (4096, 1030)) if ON_GPU else ()))


@pytest.fixture(scope="module")
def layers() -> list[dict[str, Any]]:
    """Every plugin built into a layer for every generation, by a process that compiles."""
    script = Path(__file__).parent / "handed_over.py"
    command = [sys.executable, str(script), *map(str, GENERATIONS)]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "0"}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_each_plugin_is_built_for_each_generation(layers: list[dict[str, Any]]) -> None:
    built = {(one["plugin"], one["sm"], one["tactic"]) for one in layers}
    rows = ("rmsnorm_quantization", "add_rmsnorm_quantization", "quantize_per_token")
    products = {("smooth_quant_gemm", sm, tactic) for sm in GENERATIONS for tactic in (1, 2, 3, 4, 5)}
    assert built == products | {(name, sm, 0) for name in rows for sm in GENERATIONS}


def test_outputs_are_described_by_inputs(layers: list[dict[str, Any]]) -> None:
    for layer in layers:
        name, outputs, sizes = layer["plugin"], layer["outputs"], layer["sizes"][-1]
        tokens = sizes["tokens"]
        rows = [[[tokens, 512], "INT8"], [[tokens, 1], "FP32"]]
        if name == "smooth_quant_gemm":
            assert outputs == [[[tokens, 1040], {"float16": "FP16", "bfloat16": "BF16"}[layer["attributes"]["dtype"]]]]
        elif name == "quantize_per_token":
            assert outputs == [[[2, *shape], kind] for shape, kind in rows]
        else:
            assert outputs[-2:] == rows
            assert [shape for shape, _ in outputs[:-2]] == [[tokens, 512]] * (len(outputs) - 2)


def test_the_entry_takes_inputs_then_integers_then_outputs(layers: list[dict[str, Any]]) -> None:
    for layer in layers:
        integers = len(layer["integers"][0])
        wanted = [".u64"] * layer["inputs"] + [".u32"] * integers + [".u64"] * len(layer["outputs"])
        assert [parameter.split()[1] for parameter in layer["parameters"]] == wanted
        assert re.search(rf"\.entry\s+{layer['name']}\(", layer["ptx"])


def test_launches_are_what_kernels_were_compiled_for(layers: list[dict[str, Any]]) -> None:
    for layer in layers:
        threads = re.search(r"\.reqntid (\d+)", layer["ptx"])
        assert threads is not None
        for params in layer["params"]:
            assert (params["block_x"], params["block_y"], params["block_z"]) == (int(threads[1]), 1, 1)
            assert 0 <= params["shared_mem"] <= 49152
            assert ("global_smem" in layer["ptx"]) == (params["shared_mem"] > 0)


def test_grids_cover_all_tokens(layers: list[dict[str, Any]]) -> None:
    tiles = {2: (16, 32), 3: (64, 64), 4: (64, 128), 5: (128, 128)}
    for layer in layers:
        for sizes, params, integers in zip(layer["sizes"], layer["params"], layer["integers"], strict=True):
            tokens = sizes["tokens"]
            grid = [params["grid_x"], params["grid_y"], params["grid_z"]]
            if layer["tactic"] in tiles:
                rows, columns = tiles[layer["tactic"]]
                assert grid == [triton.cdiv(tokens, rows) * triton.cdiv(1040, columns), 1, 1]
                assert integers == [tokens]
            else:
                product = layer["plugin"] == "smooth_quant_gemm"
                batch = sizes["batch"] if layer["plugin"] == "quantize_per_token" else 1
                assert grid == ([260, tokens, 1] if product else [batch * tokens, 1, 1])
                assert integers == []


def test_ptx_says_how_it_rounds_and_not_where_it_was_written(layers: list[dict[str, Any]]) -> None:
    for layer in layers:
        assert not re.search(r"\b(add|sub|mul|mad|fma)\.(f16|bf16|f32|f64)", layer["ptx"])
        assert ".loc" not in layer["ptx"]
        assert str(Path(__file__).parent.parent) not in layer["ptx"]


def test_tiles_are_copied_by_whole_vectors(layers: list[dict[str, Any]]) -> None:
    """As they are where pointers are known to be aligned."""
    for layer in layers:
        tiles = layer["plugin"] == "smooth_quant_gemm" and layer["tactic"] != launches.OF_FEW
        assert ("cp.async.cg.shared.global" if tiles else ".v4.b32") in layer["ptx"]


def test_the_first_tactic_is_for_few_tokens() -> None:
    assert [launches.tactics(most) for most in (1, 4, 5, 300)] == [[1, 2], [1, 2], [2, 3, 4, 5], [2, 3, 4, 5]]


def test_scratch_that_is_read_is_refused() -> None:
    ptx = (
        ".visible .entry k(\n\t.param .u64 k_param_0,\n\t.param .u64 k_param_1\n)\n{ ld.param.b64 %rd1, [k_param_0]; }"
    )
    assert [one.split()[-1] for one in ahead.entry_of(ahead.without_scratch(ptx, 1))[1]] == ["k_param_0"]
    with pytest.raises(ValueError, match="k_param_0"):
        ahead.without_scratch(ptx, 0)
    with pytest.raises(ValueError, match="3 were declared"):
        ahead.without_scratch(ptx, 3)


KERNELS: dict[str, ahead.Kernel] = {}


def kernel_of(launch: launches.Launch) -> ahead.Kernel:
    """Compiled once for the GPU that is there, whatever number of tokens."""
    said = f"{launch.entry.__name__} {launch.types} {launch.constants}"
    if said not in KERNELS:
        major, minor = torch.cuda.get_device_capability()
        KERNELS[said] = launch.kernel(major * 10 + minor)
    return KERNELS[said]


def launched(launch: launches.Launch, inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Pass inputs, the number of tokens where it is asked for, and outputs, over the grid that it gives."""
    tokens = len(inputs[0])
    grid = launch.grid(tokens, triton.cdiv)
    passed = [one.to(DEVICE) for one in inputs], [tokens] * launch.takes_tokens, [one.to(DEVICE) for one in outputs]
    arguments = [one for part in passed for one in part]
    if ON_GPU:
        driver.launch(kernel_of(launch), grid, *arguments)
    else:
        launch.entry[(*grid, 1)](*arguments, **launch.constants)
    return [one.cpu() for one in passed[2]]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def of_int8(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


def activations(tokens: int, channels: int, dtype: str, seed: int = 0) -> torch.Tensor:
    """Rows of very different sizes, one of them of zeros."""
    x = drawn(tokens, channels, seed=seed) * 10.0 ** torch.linspace(-3, 2, tokens)[:, None]
    x[tokens // 2] *= tokens == 1
    return x.to(getattr(torch, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("out", "channels"), SIZES)
@pytest.mark.parametrize("tokens", TOKENS)
def test_products_are_equal_to_the_bit(tokens: int, out: int, channels: int, dtype: str) -> None:
    x, weight = of_int8(tokens, channels), of_int8(out, channels, seed=1)
    scales = drawn(tokens, 1).abs() * 1e-3, drawn(1, out, seed=1).abs() * 1e-2
    of_floats = getattr(torch, dtype)
    for per_token, per_channel in ((True, False), (False, True)) if out < 100 else ((True, True),):
        scale_a, scale_b = scales[0][: None if per_token else 1], scales[1][:, : None if per_channel else 1]
        wanted = smooth_quant_gemm.reference(x, weight, scale_a, scale_b, of_floats)
        for tactic in {*launches.tactics(tokens), *launches.TILES}:
            how = {"per_token": per_token, "per_channel": per_channel, "tactic": tactic}
            launch = launches.smooth_quant_gemm(out, channels, dtype, **how)
            outputs = [torch.full((tokens, out), torch.nan, dtype=of_floats)]
            (got,) = launched(launch, [x, weight, scale_a, scale_b], outputs)
            assert torch.equal(got, wanted), how


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, which interprets
@pytest.mark.parametrize("tokens", TOKENS)
def test_up_to_four_tokens_are_scaled_in_another_order(tokens: int) -> None:
    """0 is 0 where it is scaled twice, and not a number where the two scales are multiplied first."""
    x, weight = of_int8(tokens, 64) * 0, of_int8(48, 64)
    scales = torch.full((tokens, 1), 3e38), torch.full((1, 48), 3e38)
    for tactic in {*launches.tactics(tokens), *launches.TILES}:
        launch = launches.smooth_quant_gemm(48, 64, "float16", per_token=True, per_channel=True, tactic=tactic)
        (got,) = launched(launch, [x, weight, *scales], [torch.ones(tokens, 48).half()])
        assert (got == 0).all() if tokens <= 4 else got.isnan().all(), tactic


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", sorted({channels for _, channels in SIZES}))
@pytest.mark.parametrize("tokens", TOKENS)
def test_quantized_rows_are_equal_to_the_bit(tokens: int, channels: int, dtype: str) -> None:
    x, residual = activations(tokens, channels, dtype), activations(tokens, channels, dtype, seed=1)
    weight = (1 + drawn(channels, seed=2) / 8).to(x.dtype)
    q, scales = torch.full((tokens, channels), 99, dtype=torch.int8), torch.full((tokens, 1), torch.nan)
    normed = rmsnorm_quantization.reference(x, weight, 1e-5, kind="int8")
    added = rmsnorm_quantization.reference(x, weight, 1e-5, residual=residual, kind="int8")
    hidden = torch.full_like(x, torch.nan)
    for launch, inputs, outputs, wanted in (
        (launches.rmsnorm_quantization(channels, dtype, 1e-5), [x, weight], [q, scales], normed[1:]),
        (launches.add_rmsnorm_quantization(channels, dtype, 1e-5), [x, residual, weight], [hidden, q, scales], added),
        (launches.quantize_per_token(channels, dtype), [x], [q, scales], quantize_per_token.reference(x)),
    ):
        for got, right in zip(launched(launch, inputs, outputs), wanted, strict=True):
            assert torch.equal(got, right), launch.entry


@pytest.mark.gpu
def test_a_norm_and_its_product_in_a_graph_serve_any_number_of_tokens() -> None:
    """One kernel each for all of them, captured in a CUDA graph as engines are."""
    channels, out, dtype = 2048, 3072, "float16"
    norm = launches.rmsnorm_quantization(channels, dtype, 1e-5)
    product = launches.smooth_quant_gemm(out, channels, dtype, per_token=True, per_channel=True, tactic=5)
    gain, weight, scale_b = (1 + drawn(channels) / 8).half(), of_int8(out, channels), drawn(1, out).abs() * 1e-2
    on_gpu = [one.cuda() for one in (gain, weight, scale_b)]
    for tokens in (1, 4, 5, 300, 2049):
        x = activations(tokens, channels, dtype)
        there, q = x.cuda(), torch.empty((tokens, channels), dtype=torch.int8, device="cuda")
        scales, y = torch.empty((tokens, 1), device="cuda"), torch.empty((tokens, out), device="cuda").half()

        def both() -> None:
            driver.launch(kernel_of(norm), norm.grid(tokens, triton.cdiv), there, on_gpu[0], q, scales)  # noqa: B023
            grid = product.grid(tokens, triton.cdiv)  # noqa: B023
            driver.launch(kernel_of(product), grid, q, on_gpu[1], scales, on_gpu[2], tokens, y)  # noqa: B023

        both()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            both()
        y.zero_()
        graph.replay()
        normed = rmsnorm_quantization.reference(x, gain, 1e-5, kind="int8")
        assert normed.scale is not None
        wanted = smooth_quant_gemm.reference(normed.y_or_q, weight, normed.scale, scale_b, torch.float16)
        assert torch.equal(y.cpu(), wanted), tokens


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_the_example_says_what_it_lacks() -> None:
    example = Path(__file__).parents[1] / "examples" / "tensorrt_plugins.py"
    done = subprocess.run([sys.executable, str(example)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "No module named 'tensorrt': pip install 'tensorrt>=10.9' triton\n")
