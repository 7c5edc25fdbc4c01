"""Every kernel beside its memory floor and its peers, in one run.

python benchmarks/kernels.py [SECTION ...] [--tokens 1 16]
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from gpu_timing import floor, replayed, sets_of

from enginesmith.plugins import (
    gated_activation,
    gpt_attention,
    gpt_attention_triton,
    layernorm_quantization,
    quantize_per_token,
    quantize_tensor,
    rmsnorm_quantization,
    scaled_gemm_triton,
    smooth_quant_gemm,
)
from enginesmith.plugins import weight_only_groupwise_quant_matmul_triton as grouped
from enginesmith.plugins import weight_only_quant_matmul_triton as by_channel
from enginesmith.plugins.packed_fields_triton import sums_exactly

# out x in of Llama-3.1-8B's and 70B's linears.
LLAMA_8B = [(4096, 4096), (6144, 4096), (14336, 4096), (4096, 14336)]
LLAMA_70B = [(8192, 8192), (10240, 8192), (28672, 8192), (8192, 28672)]
Row = dict[str, Any]


TOKENS: list[int] = []


def numbers(*tokens: int) -> list[int]:
    """Numbers of tokens that a section tries, of those that were asked for."""
    return [one for one in tokens if not TOKENS or one in TOKENS]


def integers(*shape: int) -> torch.Tensor:
    return torch.randint(-127, 128, shape, dtype=torch.int8, device="cuda")


def gemm() -> Iterator[Row]:
    """SmoothQuantGemm beside torch._int_mm, which scales nothing, and a bfloat16 product."""
    for tokens in numbers(1, 4, 16, 64, 256, 2048, 4096, 8192, 16384):
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


def norms() -> Iterator[Row]:
    """RMSNorm, quantized per token or with a static scale, with a residual or without."""
    for tokens in numbers(1, 16, 2048, 8192, 16384):
        for channels in (4096, 8192):
            sets = sets_of(4 * tokens * channels)
            x = [torch.randn(tokens, channels, device="cuda", dtype=torch.float16) for _ in range(sets)]
            residual, weight = torch.randn_like(x[0]), torch.randn(channels, device="cuda", dtype=torch.float16)
            scale = torch.tensor([0.02], device="cuda")
            for kind, static in (("int8", None), ("int8", scale), ("fp8", None), ("fp8", scale)):
                for added in (None, residual):
                    yield norm_row(x, added, weight, kind, static)


def norm_row(
    x: list[torch.Tensor], residual: torch.Tensor | None, weight: torch.Tensor, kind: str, scale: torch.Tensor | None
) -> Row:
    tokens, channels = x[0].shape

    def ours(i: int) -> object:
        return rmsnorm_quantization.run(x[i % len(x)], weight, 1e-5, residual=residual, kind=kind, scale=scale)

    moved = tokens * channels * (3 if residual is None else 7)
    what = f"{kind} {'per token' if scale is None else 'static'}{'' if residual is None else ', residual'}"
    row = {"tokens": tokens, "channels": channels, "what": what, "floor": floor(moved), "ours": replayed(ours, len(x))}
    return row | {"ours / floor": row["ours"] / row["floor"]}


def activations() -> Iterator[Row]:
    """Quantization of what a linear reads: divided by a smoother; SiLU and product first; layer norm."""
    for tokens in numbers(1, 16, 2048, 8192):
        for channels in (4096, 14336):
            sets = sets_of(4 * tokens * channels)
            x = [torch.randn(tokens, 2 * channels, device="cuda", dtype=torch.float16) for _ in range(sets)]
            smoother = torch.rand(channels, device="cuda") + 0.5
            yield from activation_rows(x, smoother)


def activation_rows(x: list[torch.Tensor], smoother: torch.Tensor) -> Iterator[Row]:
    tokens, channels = len(x[0]), len(smoother)
    halves = [(one[:, :channels], one[:, channels:]) for one in x]
    weight, scale = smoother.half(), torch.tensor([20.0], device="cuda")
    calls = {
        "per token, smoother": (3, lambda i: quantize_per_token.run(halves[i % len(x)][0], smoother)),
        "static, smoother": (3, lambda i: quantize_tensor.run(halves[i % len(x)][0], scale, smoother)),
        "SiLU x up, per token, smoother": (
            5,
            lambda i: gated_activation.run(*halves[i % len(x)], smoother, kind="int8"),
        ),
        "SiLU x up, static FP8": (5, lambda i: gated_activation.run(*halves[i % len(x)], kind="fp8", scale=scale)),
        "layer norm, per token": (
            3,
            lambda i: layernorm_quantization.run(halves[i % len(x)][0], weight, weight, 1e-5, kind="int8"),
        ),
    }
    for name, (values, call) in calls.items():
        least, ours = floor(tokens * channels * values), replayed(call, len(x))
        yield {"tokens": tokens, "channels": channels, "what": name, "floor": least, "ours": ours, "x": ours / least}


def weights() -> Iterator[Row]:
    """INT4 groups of 128, AWQ and (with zeros) GPTQ, and W8A16, in several layouts; beside float16."""
    kinds = (
        ("AWQ", 4, "rows"),
        ("AWQ", 4, "sm80"),
        ("GPTQ", 4, "rows"),
        ("W8A16", 8, "sm90"),
    )
    for tokens in numbers(1, 2, 4, 8, 16, 32, 64, 256):
        for out, channels in LLAMA_8B + LLAMA_70B:
            for name, bits, layout in kinds:
                yield weight_row(tokens, out, channels, name, bits, layout)


def weight_row(tokens: int, out: int, channels: int, name: str, bits: int, layout: str) -> Row:
    size = out * channels * bits // 8
    sets = sets_of(size)
    packed = [torch.randint(-128, 128, (size,), dtype=torch.int8, device="cuda") for _ in range(sets)]
    x, groups = torch.randn(tokens, channels, device="cuda", dtype=torch.float16), channels // 128
    by_group = name in ("AWQ", "GPTQ")
    scales = (torch.rand(out, groups if by_group else 1, device="cuda", dtype=torch.float16) * 1e-2).t()
    zeros = scales * 3 if name == "GPTQ" else None
    once = zeros is not None and sums_exactly(scales, zeros)
    wide = torch.randn(2, out, channels, device="cuda", dtype=torch.float16)

    def ours(i: int) -> torch.Tensor:
        if by_group:
            return grouped.run(x, packed[i % sets], scales, zero=zeros, bits=bits, layout=layout, once=once)
        return by_channel.run(x, packed[i % sets], scales[0], bits=bits, layout=layout)

    least = floor(size + scales.nbytes * (1 if zeros is None else 2) + x.nbytes + 2 * tokens * out)
    times = {"ours": replayed(ours, sets), "float16": replayed(lambda i: x @ wide[i % 2].t(), sets)}
    return {
        "tokens": tokens,
        "out": out,
        "in": channels,
        "what": f"{name} {layout}",
        "floor": least,
        **times,
        "x": times["ours"] / least,
    }


def attention() -> Iterator[Row]:
    """Llama-3.1-8B's attention of single tokens: the cache is written, and read by 32 heads."""
    heads = gpt_attention.Heads(32, 8, 128, 128**-0.5)
    for kind, dtype in ((None, torch.float16), ("INT8", torch.int8), ("FP8", torch.float8_e4m3fn)):
        for batch in (1, 16, 64):
            for length in (128, 1024, 8192):
                yield attention_row(heads, kind, dtype, batch, length)


def attention_row(heads: gpt_attention.Heads, kind: str | None, dtype: torch.dtype, batch: int, length: int) -> Row:
    bytes_read = 2 * batch * heads.kv_heads * length * heads.size * dtype.itemsize
    sets = sets_of(bytes_read)
    shape = (batch, heads.kv_heads, length, heads.size)
    caches = [tuple(torch.randn(shape, device="cuda").to(dtype) for _ in range(2)) for _ in range(sets)]
    qkv = torch.randn(batch, (heads.heads + 2 * heads.kv_heads) * heads.size, device="cuda", dtype=torch.float16)
    table, scales = torch.randn(length, heads.size, device="cuda"), torch.tensor([0.02], device="cuda")
    slots, places = torch.arange(batch, device="cuda"), torch.full((batch,), length - 1, device="cuda")

    def store(i: int) -> torch.Tensor:
        return gpt_attention_triton.store(qkv, table, table, places, slots, *caches[i % sets], heads, scales, kind)

    q = store(0)

    def decode(i: int) -> torch.Tensor:
        return gpt_attention_triton.decode(q, *caches[i % sets], slots, places + 1, heads, scales, kind)

    times = {"store": replayed(store, sets), "decode": replayed(decode, sets)}
    return {"cache": str(kind), "batch": batch, "length": length, "floor": floor(bytes_read), **times}


SECTIONS = {"gemm": gemm, "norms": norms, "activations": activations, "weights": weights, "attention": attention}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}; all unless named")
    parser.add_argument("--tokens", type=int, nargs="+", default=[], help="all that a section knows, unless named")
    given = parser.parse_args()
    wanted = given.sections or list(SECTIONS)
    if unknown := set(wanted) - SECTIONS.keys():
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    if not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU here")
    TOKENS.extend(given.tokens)
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
