"""The product that weight-only plugins compute for few tokens: on CUDA cores, summed in the engine's dtype.

A thread multiplies a run of neighbouring input channels, adding one product after the other in the dtype of the
activations, and goes on with the run ``run * lanes`` channels further; only the sums of threads are added in float32.
TensorRT-LLM 0.16 does so for up to four tokens. Later releases time this kernel and the one for many tokens while they
build, and may take it for up to fifteen.
"""

from __future__ import annotations

from typing import NamedTuple

from .arithmetic import fma, warp_sum
from .lazy import torch

MOST_TOKENS = 4
# Threads of a block, and the warps that they make.
THREADS, WARPS = 128, 4


class Threads(NamedTuple):
    """How the input channels of one output are dealt to threads.

    Attributes:
        run: neighbouring channels of one thread.
        lanes: threads that share the output.
    """

    run: int
    lanes: int

    @staticmethod
    def of(bits: int, sm: int, fp8: bool = False) -> Threads:
        """Those that read a weight in the arrangement of one GPU generation.

        Args:
            bits: of an integer.
            fp8: for W4A8_AWQ, whose weights up to SM 89 lie in tiles twice as long.
        """
        if sm >= 90:
            return Threads(8, THREADS)
        tile = 128 if fp8 else 64
        return Threads(128 // bits, tile * bits // 8)


def product(x: torch.Tensor, weight: torch.Tensor, threads: Threads) -> torch.Tensor:
    """x @ weight.T as that kernel sums it, before it is rounded to the engine's dtype.

    Args:
        x: [tokens, in], in the engine's dtype; in float32 the sums are as good as exact.
        weight: [out, in], dequantized.

    Returns:
        float32 [tokens, out].
    """
    pad = -x.shape[1] % (threads.run * threads.lanes)
    x, weight = (torch.nn.functional.pad(t, (0, pad)).unflatten(1, (-1, *reversed(threads))) for t in (x, weight))
    sums = x.new_zeros(len(x), len(weight), threads.lanes)
    for stride in range(x.shape[1]):
        for place in range(threads.run):
            sums = fma(x[:, None, stride, :, place], weight[None, :, stride, :, place], sums)
    first, *others = warp_sum(sums.float().unflatten(2, (WARPS, -1))).squeeze(3).unbind(2)
    for warp in others:
        first = first + warp
    return first
