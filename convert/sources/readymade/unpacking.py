"""Models that others have quantized: the integers, scales and zeros of one linear, exactly as they are.

    W = (integers - zero) * scale

Fields of b bits lie in little-endian 32-bit words, the first in the lowest bits; unsigned, 2^(b-1) above ours.

    GPTQ (AutoGPTQ, GPTQModel)     qweight [in b / 32, out] packed along in, scales [groups, out],
                                   qzeros [groups, out b / 32] along out, g_idx [in]
    AWQ (AutoAWQ's GEMM)           qweight [in, out / 8], qzeros [groups, out / 8] along out, in every word
                                   the columns 0 2 4 6 1 3 5 7; scales [groups, out]
    compressed-tensors             weight_packed [out, in b / 32] along in, weight_scale [out, groups],
    (pack-quantized)               weight_zero_point [out b / 32, groups] along out, weight_g_idx [in], weight_shape

GPTQ's first format stores every zero less one, its second as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ....plugins.lazy import torch
from ....plugins.nibbles import unpack_rows
from ...errors import InputError
from ...numbers.finite import finite
from ...numbers.quantized import QuantizedLinear

# What ModelOpt's linears that read one input multiply it by.
INPUT_FACTOR = "pre_quant_scale"
# Position in a word of AutoAWQ's column c.
_AWQ_POSITION = [0, 4, 1, 5, 2, 6, 3, 7]
Tensors = Mapping[str, "torch.Tensor"]


@dataclass(frozen=True)
class Quantized:
    """One linear as someone else quantized it.

    Attributes:
        name: of the linear, for messages.
        integers: int8 [out, in], signed.
        scale: float32 [out, groups].
        zero: int8 [out, groups], in the units of integers.
        group_of: int64 [in], the group of each input channel.
    """

    name: str
    integers: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor
    group_of: torch.Tensor

    def dequantize(self) -> torch.Tensor:
        """The weight, float32 [out, in]; what requantization starts from."""
        return (self.integers - self.zero.float()[:, self.group_of]) * self.scale[:, self.group_of]

    @property
    def in_order(self) -> bool:
        """Whether neighbouring channels are of one group each."""
        groups = self.scale.shape[1]
        if len(self.group_of) % groups:
            return False
        blocks = self.group_of.view(groups, -1)
        return torch.equal(blocks, blocks[:, :1].expand_as(blocks))

    def grouped(self) -> QuantizedLinear:
        """The same weight with every group's channels side by side, which is what TensorRT-LLM's kernels read.

        Groups may come in any order; zero is None where all are 0.

        Raises:
            InputError: neighbouring channels belong to different groups (act-order without static groups).
        """
        in_features, groups = len(self.group_of), self.scale.shape[1]
        if in_features % groups:
            raise InputError(f"{self.name}: {in_features} input channels do not make {groups} equal groups")
        blocks = self.group_of.view(groups, -1)
        order = blocks[:, 0]
        if not torch.equal(blocks, order[:, None].expand_as(blocks)):
            raise InputError(
                f"{self.name}: act-order (desc_act) has spread groups over the input channels, which TensorRT-LLM "
                "cannot execute; give --requantize to start from its dequantized weights, or a model with static groups"
            )
        zero = self.zero[:, order] if self.zero.any() else None
        return QuantizedLinear(self.integers, self.scale[:, order], zero)


def gptq(tensors: Tensors, name: str, bits: int, version: int = 1, symmetric: bool | None = None) -> Quantized:
    """AutoGPTQ's and GPTQModel's tensors of one linear.

    Args:
        tensors: int32 qweight and qzeros, floating scales, and g_idx (int32; absent or empty where groups are in
            order), by their last names.
        name: of the linear, for messages.
        bits: 4 or 8.
        version: 1, or 2 for checkpoint_format "gptq_v2".
        symmetric: what the folder says of its zero points; None where it says nothing.
    """
    _check_bits(name, bits)
    words, scale = _get(tensors, name, "qweight", torch.int32), _get(tensors, name, "scales")
    integers = fields(words.t(), bits)
    out_features, groups = integers.shape[0], scale.shape[0]
    _check_shape(f"{name}.scales", scale, (groups, out_features))
    _check_shape(f"{name}.qzeros", _get(tensors, name, "qzeros", torch.int32), (groups, out_features * bits // 32))
    version = gptq_version(tensors["qzeros"], f"{name}.qzeros", bits, version, symmetric)
    zero = fields(tensors["qzeros"], bits)
    if version == 1:
        # All ones is where readers part: some take it for 0, others for 2^b, and in some files it spilled over.
        if (zero == 2**bits - 1).any():
            raise InputError(
                f"{name}.qzeros: zero points of 0, which this format stores ambiguously; "
                'save the model with checkpoint_format "gptq_v2"'
            )
        zero = zero + 1
    return _quantized(name, "g_idx", tensors, integers, scale.t(), zero.t(), bits)


def gptq_version(qzeros: torch.Tensor, name: str, bits: int, version: int, symmetric: bool | None) -> int:
    """The version of GPTQ's format in which a linear's zero points are stored: the one that its label says, unless it
    is symmetric, where all of them are the middle in one version only.

    Raises:
        InputError: it says that it is symmetric, and is in neither.
    """
    stored, middle = fields(qzeros, bits), 2 ** (bits - 1)
    if symmetric is False or not stored.numel():
        return version
    first = int(stored.view(-1)[0])
    middles = {middle - 1: 1, middle: 2}
    if first in middles and (stored == first).all():
        return middles[first]
    if symmetric:
        raise InputError(
            f"{name}: zero points that are not all {middle - 1} (gptq) or {middle} (gptq_v2), but the folder says "
            "sym: true; correct it"
        )
    return version


def awq(tensors: Tensors, name: str) -> Quantized:
    """AutoAWQ's GEMM tensors of one linear, 4 bits: int32 qweight and qzeros, floating scales, by their last names."""
    words, scale = _get(tensors, name, "qweight", torch.int32), _get(tensors, name, "scales")
    integers = fields(words, 4).unflatten(1, (-1, 8))[..., _AWQ_POSITION].flatten(1).t()
    out_features, groups = integers.shape[0], scale.shape[0]
    _check_shape(f"{name}.scales", scale, (groups, out_features))
    _check_shape(f"{name}.qzeros", _get(tensors, name, "qzeros", torch.int32), (groups, out_features // 8))
    zero = fields(tensors["qzeros"], 4).unflatten(1, (-1, 8))[..., _AWQ_POSITION].flatten(1).t()
    return _quantized(name, None, tensors, integers, scale.t(), zero, 4)


def compressed_tensors(tensors: Tensors, name: str, bits: int) -> Quantized:
    """The pack-quantized tensors of one linear.

    Args:
        tensors: int32 weight_packed, floating weight_scale, weight_shape; weight_zero_point (int32 packed, or int8
            [out, groups]) where rounding was asymmetric; weight_g_idx where channels were reordered.
        name: of the linear, for messages.
        bits: 4 or 8.
    """
    _check_bits(name, bits)
    words, scale = _get(tensors, name, "weight_packed", torch.int32), _get(tensors, name, "weight_scale")
    out_features, in_features = (int(size) for size in _get(tensors, name, "weight_shape").flatten())
    _check_shape(f"{name}.weight_packed", words, (out_features, -(-in_features * bits // 32)))
    _check_shape(f"{name}.weight_scale", scale, (out_features, scale.shape[1]))
    integers = fields(words, bits)[:, :in_features]
    stored = tensors.get("weight_zero_point", torch.zeros(scale.shape, dtype=torch.int8))
    zero = compressed_zero(stored, bits)[:out_features] + 2 ** (bits - 1)
    _check_shape(f"{name}.weight_zero_point", zero, (out_features, scale.shape[1]))
    return _quantized(name, "weight_g_idx", tensors, integers, scale, zero, bits)


def compressed_zero(stored: torch.Tensor, bits: int) -> torch.Tensor:
    """Signed zero points, int16 [out, groups], from int32 packed along out, or int8 as they are."""
    if stored.dtype != torch.int32:
        return stored.to(torch.int16)
    signed: torch.Tensor = fields(stored.t(), bits).t().to(torch.int16) - 2 ** (bits - 1)
    return signed


def scaled_integers(tensors: Tensors, name: str) -> QuantizedLinear:
    """The same as it is; arguments as for ``scaled``."""
    weight, scale = tensors["weight"], tensors["weight_scale"].float()
    if weight.dtype == torch.uint8:
        weight = unpack_rows(weight.view(torch.int8))
    zero, factor = tensors.get("weight_zero_point"), tensors.get(INPUT_FACTOR)
    scale = scale.reshape(-1) if scale.dim() < 2 or scale.shape[1] == 1 else scale
    if factor is not None and not (factor > 0).all():
        raise InputError(f"{name}.{INPUT_FACTOR}: holds factors that are not positive; give the unquantized model")
    return QuantizedLinear(
        weight,
        scale.contiguous(),
        None if zero is None or not zero.any() else zero.reshape(scale.shape),
        smoother=None if factor is None else 1 / factor.float(),
    )


def scaled(tensors: Tensors, name: str) -> torch.Tensor:
    """(weight - zero) * scale * pre_quant_scale, float32 [out, in].

    Args:
        tensors: weight, int8 or float8 [out, in], or uint8 [out / 2, in] (row 2j in the low nibbles); weight_scale of
            one element, [out], [out, 1] or [out, groups]; weight_zero_point like it; pre_quant_scale [in].
        name: of the linear, for messages.
    """
    weight, scale = tensors["weight"], tensors["weight_scale"].float()
    if weight.dtype == torch.uint8:
        weight = unpack_rows(weight.view(torch.int8))
    if (scale < 0).any():
        raise InputError(f"{name}.weight_scale: holds negative scales; give the unquantized model")
    shape = (-1, 1) if scale.dim() < 2 else scale.shape
    values: torch.Tensor = weight.float().unflatten(1, (shape[1], -1))
    zero = tensors.get("weight_zero_point")
    if zero is not None:
        values = values - zero.float().reshape(shape)[..., None]
    values = (values * scale.reshape(shape)[..., None]).flatten(1)
    factor = tensors.get(INPUT_FACTOR)
    if factor is None:
        return values
    if not (factor > 0).all():
        raise InputError(f"{name}.{INPUT_FACTOR}: holds factors that are not positive; give the unquantized model")
    return values * factor.float()


def _quantized(
    name: str,
    index: str | None,
    tensors: Tensors,
    unsigned: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    bits: int,
) -> Quantized:
    """Unsigned fields made signed, with the group of each channel read or counted off."""
    half, in_features, groups = 2 ** (bits - 1), unsigned.shape[1], scale.shape[1]
    if not finite(scale):
        raise InputError(f"{name}: scales hold NaN or infinity")
    group_of = torch.arange(in_features) // -(-in_features // groups)
    stored = None if index is None else tensors.get(index)
    if stored is not None and stored.numel():
        _check_shape(f"{name}.{index}", stored, (in_features,))
        group_of = stored.long()
        if group_of.min() < 0 or group_of.max() >= groups:
            wrong = int(group_of.min()) if group_of.min() < 0 else int(group_of.max())
            raise InputError(f"{name}.{index}: names group {wrong}, but scales hold {groups}, from 0")
    signed, signed_zero = ((values.to(torch.int16) - half).to(torch.int8).contiguous() for values in (unsigned, zero))
    return Quantized(name, signed, scale.float().contiguous(), signed_zero, group_of)


def fields(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Unsigned fields along the last axis of int32 [..., n]: uint8 [..., n * 32 / bits]."""
    octets = words.contiguous().view(torch.uint8)
    return octets if bits == 8 else torch.stack((octets & 15, octets >> 4), -1).flatten(-2)


def _get(tensors: Tensors, name: str, suffix: str, dtype: torch.dtype | None = None) -> torch.Tensor:
    if suffix not in tensors:
        raise InputError(f"{name}.{suffix} is missing; the linear has {', '.join(sorted(tensors)) or 'no tensors'}")
    tensor = tensors[suffix]
    if dtype is not None and tensor.dtype != dtype:
        raise InputError(f"{name}.{suffix} is {tensor.dtype}; packed integers are {dtype}")
    if suffix != "weight_shape" and tensor.dim() != 2:
        raise InputError(f"{name}.{suffix} has shape {list(tensor.shape)}; a matrix is expected")
    return tensor


def _check_bits(name: str, bits: int) -> None:
    if bits not in (4, 8):
        raise InputError(f"{name}: {bits}-bit weights cannot be repacked; 4 and 8 can")


def _check_shape(name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise InputError(f"{name} has shape {list(tensor.shape)}; its neighbours want {list(shape)}")
