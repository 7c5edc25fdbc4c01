"""Every kernel beside its memory floor and its peers, in one run: ``python benchmarks/kernels.py [SECTION ...]``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from gpu_timing import floor, replayed, sets_of

from enginesmith.plugins import scaled_gemm_triton, smooth_quant_gemm

# out x in of Llama-3.1-8B's and 70B's linears.
LLAMA_8B = [(4096, 4096), (6144, 4096), (14336, 4096), (4096, 14336)]
LLAMA_70B = [(8192, 8192), (10240, 8192), (28672, 8192), (8192, 28672)]
Row = dict[str, Any]


def integers(*shape: int) -> torch.Tensor:
    return torch.randint(-127, 128, shape, dtype=torch.int8, device="cuda")


def gemm() -> Iterator[Row]:
    """SmoothQuantGemm beside torch._int_mm, which scales nothing, and a bfloat16 product."""
    for tokens in (1, 4, 16, 64, 256, 2048, 4096, 8192, 16384):
        for out, channels in LLAMA_8B + LLAMA_70B:
            yield gemm_row(tokens, out, channels)


def gemm_row(tokens: int, out: int, channels: int) -> Row:
    sets = sets_of(out * channels)
    x, weights = integers(tokens, channels), [integers(out, channels) for _ in range(sets)]
    scale_a, scale_b = torch.rand(tokens, 1, device="cuda") * 1e-2, torch.rand(1, out, device="cuda") * 1e-3
    padded = x if tokens > 16 else x.repeat(17, 1)[:17].contiguous()
    floats, wide = x.bfloat16(), [weight.bfloat16() for weight in weights]

    def ours(i: int) -> torch.Tensor:
        return scaled_gemm_triton.run(x, weights[i % sets], scale_a, scale_b, torch.float16)

    wanted = smooth_quant_gemm.reference(x, weights[0], scale_a, scale_b, torch.float16)
    assert torch.equal(ours(0), wanted), (tokens, out, channels)
    times = {
        "ours": replayed(ours, sets),
        "torch._int_mm": replayed(lambda i: torch._int_mm(padded, weights[i % sets].t()), sets),
        "bfloat16": replayed(lambda i: floats @ wide[i % sets].t(), sets),
    }
    moved = out * channels + tokens * (channels + 2 * out)
    return {"tokens": tokens, "out": out, "in": channels, "floor": floor(moved), **times}


SECTIONS = {"gemm": gemm}


def main() -> None:
    wanted = sys.argv[1:] or list(SECTIONS)
    print(torch.cuda.get_device_name(), torch.__version__)
    results: dict[str, list[Row]] = {}
    for name in wanted:
        results[name] = []
        for row in SECTIONS[name]():
            if not results[name]:
                print(f"\n{SECTIONS[name].__doc__}\n| " + " | ".join(row) + " |\n|" + " --- |" * len(row))
            results[name].append(row)
            print(
                "| " + " | ".join(f"{v:.1f}" if isinstance(v, float) else str(v) for v in row.values()) + " |",
                flush=True,
            )
    Path(os.environ.get("OUT", "."), "kernels.json").write_text(json.dumps(results, indent=0))


if __name__ == "__main__":
    main()
