"""GPTQ's rounding of one 4096 x 14336 linear (Llama-3.1-8B's down_proj), where torch finds a GPU.

python benchmarks/gptq_layer.py
"""

from __future__ import annotations

import time

import torch

from enginesmith.convert.awq import clip
from enginesmith.convert.gptq import gptq
from enginesmith.convert.rounding import Grid

OUT, IN, GROUP = 4096, 14336, 128


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    weight = torch.randn(OUT, IN, device=device)
    x = torch.randn(8192, IN, device=device) * torch.rand(IN, device=device)
    gram = x.t() @ x / len(x)
    del x
    for name in ("first", "second"):
        begin = clock(device)
        grid = Grid.of(weight, GROUP, 4, symmetric=True)
        clipped = clip(weight, gram, grid)
        between = clock(device)
        rounded = gptq(weight, gram, clipped, act_order=True)
        end = clock(device)
        change = rounded.dequantize() - weight
        nearest = clipped.round(weight).dequantize() - weight
        error = float(((change @ gram) * change).sum() / ((nearest @ gram) * nearest).sum())
        seconds = f"clip {between - begin:.2f} s, GPTQ {end - between:.2f} s"
        print(f"{name} run on {device}: {seconds}, error {error:.3f} of nearest")


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
