"""GPTQ's rounding of one linear, where torch finds a GPU; beside llm-compressor's, where that can be imported.

python benchmarks/gptq_layer.py [OUT IN]    (4096 14336, Llama-3.1-8B's down_proj)

Symmetric 4 bits in groups of 128, channels taken by activation while groups stay in place (act-order with static
groups, llm-compressor's default). Both get the same weight and Gram matrix, and each its own grid: ours is clipped
beforehand, llm-compressor's just covers each group. Without a C compiler, LLMCOMPRESSOR_DISABLE_GPTQ_TRITON=1.
"""

from __future__ import annotations

import sys
import time

import torch

from enginesmith.convert.numbers.awq import clip
from enginesmith.convert.numbers.gptq import gptq, output_error
from enginesmith.convert.numbers.rounding import Grid

try:
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.utils import calculate_qparams
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight
except ImportError:
    quantize_weight = None

GROUP, BITS, TOKENS = 128, 4, 8192


def ours(weight: torch.Tensor, gram: torch.Tensor) -> tuple[torch.Tensor, str]:
    """weight [out, in] as `convert --quant W4A16_GPTQ --symmetric` rounds it, and what took how long."""
    begin = clock()
    grid = clip(weight, gram, Grid.of(weight, GROUP, BITS, symmetric=True))
    between = clock()
    rounded = gptq(weight, gram, grid, act_order=True).dequantize()
    return rounded, f" (clip {between - begin:.2f} s, GPTQ {clock() - between:.2f} s)"


def llmcompressor(weight: torch.Tensor, gram: torch.Tensor) -> tuple[torch.Tensor, str]:
    """weight [out, in] as llm-compressor's GPTQModifier rounds it, and a remark."""
    settings = QuantizationArgs(num_bits=BITS, strategy="group", group_size=GROUP, actorder="static")
    groups = weight.unflatten(1, (-1, GROUP))
    scale, zero = calculate_qparams(groups.amin(2), groups.amax(2), settings)
    # It works in place on both, which its caller makes anew for every call.
    copies = weight[None].clone(), gram[None].clone()
    rounded, _, failed = quantize_weight(*copies, scale[None], zero[None], None, settings)
    return rounded[0], " (factorization failed: rounded to nearest)" if failed.any() else ""


def main(out_features: int, in_features: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    weight = torch.randn(out_features, in_features, device=device)
    x = torch.randn(TOKENS, in_features, device=device) * torch.rand(in_features, device=device)
    gram = x.t() @ x / len(x)
    del x
    plain = Grid.of(weight, GROUP, BITS, symmetric=True).round(weight).dequantize()
    nearest = output_error(plain - weight, gram)
    for name in ("first", "second"):
        took, errors = [], []
        for who in (ours, llmcompressor)[: 1 if quantize_weight is None else 2]:
            begin = clock()
            rounded, remark = who(weight, gram)
            took.append(clock() - begin)
            errors.append(float(output_error(rounded - weight, gram) / nearest))
            done = f"{took[-1]:.2f} s{remark}, error {errors[-1]:.3f} of nearest"
            print(f"{name} run on {device}, {who.__name__}: {done}")
        if len(took) == 2:
            print(f"    ours / llm-compressor: seconds {took[0] / took[1]:.3f}, error {errors[0] / errors[1]:.3f}")


def clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main(*(map(int, sys.argv[1:]) if len(sys.argv) == 3 else (4096, 14336)))
