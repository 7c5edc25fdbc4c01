"""QServeGemm: INT8 activations times 4-bit weights that unfold to INT8, group by group, or scale per channel."""

from __future__ import annotations

from . import fragments, int8, smooth_quant_gemm
from .arithmetic import fma
from .identity import INTEGER, Plugin
from .kernels import beside
from .lazy import torch

# group_size is 128, or -1 for per channel. Both read and write float16 only. The kernel for larger batches computes 128
# outputs at a time and leaves out what remains.
PLUGIN = Plugin(
    "QServeGemm",
    ("type_id", "group_size"),
    "qserve_gemm_plugin",
    "linear",
    gpus=INTEGER,
    dtypes=("float16",),
    in_multiple=128,
    out_multiple=128,
)


def unfolded(weight: torch.Tensor, s2_scales: torch.Tensor, s2_zeros: torch.Tensor) -> torch.Tensor:
    """weight * s2 + z2 modulo 256, int8 [out, in]; as for ``reference_per_group``."""
    grouped = weight.int().unflatten(1, (s2_scales.shape[1], -1))
    unfolded: torch.Tensor = (grouped * s2_scales[..., None] + s2_zeros[..., None]).flatten(1).to(torch.int8)
    return unfolded


def scaled_product(
    x: torch.Tensor, act_scales: torch.Tensor, unfolded: torch.Tensor, s1_scales: torch.Tensor
) -> torch.Tensor:
    """y = (x @ unfolded.T) * s1 * s_x, float16 [tokens, out]; as for ``reference_per_group``."""
    return smooth_quant_gemm.run(x, unfolded, act_scales.float(), s1_scales.float(), torch.float16, most_few=0)


def reference_per_group(
    x: torch.Tensor,
    act_scales: torch.Tensor,
    weight: torch.Tensor,
    s1_scales: torch.Tensor,
    s2_scales: torch.Tensor,
    s2_zeros: torch.Tensor,
) -> torch.Tensor:
    """y = (x @ (weight * s2 + z2).T) * s1 * s_x; the inner sum is formed modulo 256, in bytes.

    Args:
        x: int8 [tokens, in].
        act_scales: s_x, float16 [tokens, 1].
        weight: 4-bit values in [0, 15] as int8 [out, in], unpacked.
        s1_scales: float16 [out].
        s2_scales: int8 [out, in / 128], unpacked.
        s2_zeros: z2 = -zero point * s2 modulo 256, int8 [out, in / 128], unpacked.

    Returns:
        float16 [tokens, out].
    """
    return scaled_product(x, act_scales, unfolded(weight, s2_scales, s2_zeros), s1_scales)


def reference_per_channel(
    x: torch.Tensor,
    act_scales: torch.Tensor,
    act_sums: torch.Tensor,
    weight: torch.Tensor,
    s1_scales: torch.Tensor,
    s1_szeros: torch.Tensor,
) -> torch.Tensor:
    """y = (x @ weight.T) * s1 * s_x - szeros * sum(x), the last two operations one fused multiply-add.

    The sum is that of the activations before they were rounded.

    Args:
        x: int8 [tokens, in].
        act_scales: s_x, float16 [tokens, 1].
        act_sums: float16 [tokens, 1].
        weight: 4-bit values in [0, 15] as int8 [out, in], unpacked.
        s1_scales: float16 [out].
        s1_szeros: zero point * s1, float16 [out].

    Returns:
        float16 [tokens, out].
    """
    product = int8.matmul(x, weight).float() * s1_scales.float()
    return fma(product, act_scales, -s1_szeros.float() * act_sums.float()).half()


def reference_packed_per_group(
    x: torch.Tensor,
    act_scales: torch.Tensor,
    packed: torch.Tensor,
    s1_scales: torch.Tensor,
    s2_scales: torch.Tensor,
    s2_zeros: torch.Tensor,
) -> torch.Tensor:
    """``reference_per_group`` of what a checkpoint holds.

    Args:
        packed: int8 [out, in / 2], in fragments.
        s2_scales, s2_zeros: int8 [in / 128, out], in the kernel's order.
    """
    second = fragments.by_channel(s2_scales), fragments.by_channel(s2_zeros)
    return reference_per_group(x, act_scales, fragments.unpack(packed), s1_scales, *second)


def reference_packed_per_channel(
    x: torch.Tensor,
    act_scales: torch.Tensor,
    act_sums: torch.Tensor,
    packed: torch.Tensor,
    s1_scales: torch.Tensor,
    s1_szeros: torch.Tensor,
) -> torch.Tensor:
    """``reference_per_channel`` of what a checkpoint holds: packed is int8 [out, in / 2], in fragments."""
    return reference_per_channel(x, act_scales, act_sums, fragments.unpack(packed), s1_scales, s1_szeros)


run_packed_per_group = beside(reference_packed_per_group, "qserve_gemm_triton", "run_per_group")
run_packed_per_channel = beside(reference_packed_per_channel, "qserve_gemm_triton", "run_per_channel")
