"""Reading GPTQ, AWQ and compressed-tensors linears that a plain packer, one field at a time, has written."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from enginesmith.convert.errors import InputError
from enginesmith.convert.sources.readymade.unpacking import awq, compressed_tensors, gptq

OUT, IN, GROUPS = 16, 64, 4
Tensors = dict[str, torch.Tensor]


def words(fields: list[int], bits: int) -> list[int]:
    """Fields into 32-bit words, the first in the lowest bits; the last word is filled up with zeros."""
    per_word, packed = 32 // bits, []
    for start in range(0, len(fields), per_word):
        packed.append(sum(field << bits * i for i, field in enumerate(fields[start : start + per_word])))
    return packed


def pack(rows: torch.Tensor, bits: int) -> torch.Tensor:
    """int64 [n, m] of unsigned fields -> int32 [n, m bits / 32]."""
    packed = np.array([words(row.tolist(), bits) for row in rows], dtype=np.uint32)
    return torch.from_numpy(packed.view(np.int32))


def linear(bits: int, symmetric: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unsigned integers [out, in], zeros [out, groups] from 1 on, and float16 scales [out, groups]."""
    draw = torch.Generator().manual_seed(0)
    integers = torch.randint(0, 2**bits, (OUT, IN), generator=draw)
    zero = torch.randint(1, 2**bits, (OUT, GROUPS), generator=draw)
    zero = torch.full_like(zero, 2 ** (bits - 1)) if symmetric else zero
    return integers, zero, torch.rand(OUT, GROUPS, generator=draw).half()


def weight(integers: torch.Tensor, zero: torch.Tensor, scale: torch.Tensor, group_of: torch.Tensor) -> torch.Tensor:
    return (integers - zero[:, group_of]) * scale.float()[:, group_of]


PLAIN = torch.arange(IN) // (IN // GROUPS)


def gptq_tensors(bits: int, version: int, symmetric: bool = False, g_idx: torch.Tensor = PLAIN) -> Tensors:
    integers, zero, scale = linear(bits, symmetric)
    return {
        "qweight": pack(integers, bits).t().contiguous(),
        "qzeros": pack((zero - (2 - version)).t(), bits),
        "scales": scale.t().contiguous(),
        "g_idx": g_idx.int(),
    }


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("symmetric", [False, True])
def test_gptq(bits: int, version: int, symmetric: bool) -> None:
    integers, zero, scale = linear(bits, symmetric)
    read = gptq(gptq_tensors(bits, version, symmetric), "mlp.fc", bits, version)
    grouped = read.grouped()
    assert torch.equal(grouped.values.long(), integers - 2 ** (bits - 1))
    assert torch.equal(grouped.scale, scale.float())
    assert (grouped.zero is None) == symmetric
    assert torch.equal(grouped.dequantize(), weight(integers, zero, scale, PLAIN))
    assert torch.equal(read.dequantize(), grouped.dequantize())


@pytest.mark.parametrize("missing", [True, False])
def test_gptq_without_an_index_has_groups_in_order(missing: bool) -> None:
    tensors = gptq_tensors(4, 1)
    expected = gptq(tensors, "mlp.fc", 4).dequantize()
    tensors["g_idx"] = torch.zeros(0, dtype=torch.int32)
    if missing:
        del tensors["g_idx"]
    assert torch.equal(gptq(tensors, "mlp.fc", 4).grouped().dequantize(), expected)


def test_zero_point_0_is_read_where_it_is_stored_plainly() -> None:
    integers, zero, scale = linear(4)
    zero[3, 2] = 0
    tensors = gptq_tensors(4, 2) | {"qzeros": pack(zero.t(), 4)}
    read = gptq(tensors, "mlp.fc", 4, version=2)
    assert torch.equal(read.dequantize(), weight(integers, zero, scale, PLAIN))
    with pytest.raises(InputError, match=r'mlp\.fc\.qzeros: zero points of 0, .*"gptq_v2"'):
        gptq(tensors | {"qzeros": pack((zero - 1).t() & 15, 4)}, "mlp.fc", 4)


def test_whole_groups_in_another_order_are_put_in_order() -> None:
    order = torch.tensor([2, 0, 3, 1])
    integers, zero, scale = linear(4)
    g_idx = order.repeat_interleave(IN // GROUPS)
    grouped = gptq(gptq_tensors(4, 1, g_idx=g_idx), "mlp.fc", 4).grouped()
    assert torch.equal(grouped.scale, scale.float()[:, order])
    assert torch.equal(grouped.dequantize(), weight(integers, zero, scale, g_idx))


def test_act_order_is_refused_and_can_be_requantized() -> None:
    g_idx = PLAIN[torch.randperm(IN, generator=torch.Generator().manual_seed(0))]
    integers, zero, scale = linear(4)
    read = gptq(gptq_tensors(4, 1, g_idx=g_idx), "model.layers.0.mlp.up_proj", 4)
    with pytest.raises(InputError, match=r"^model\.layers\.0\.mlp\.up_proj: act-order .* --requantize"):
        read.grouped()
    assert torch.equal(read.dequantize(), weight(integers, zero, scale, g_idx))


def test_awq() -> None:
    integers, zero, scale = linear(4)
    columns = [8 * i + c for i in range(OUT // 8) for c in (0, 2, 4, 6, 1, 3, 5, 7)]
    tensors = {
        "qweight": pack(integers.t()[:, columns], 4),
        "qzeros": pack(zero.t()[:, columns], 4),
        "scales": scale.t().contiguous(),
    }
    grouped = awq(tensors, "mlp.fc").grouped()
    assert torch.equal(grouped.values.long(), integers - 8)
    assert torch.equal(grouped.dequantize(), weight(integers, zero, scale, PLAIN))


def compressed(bits: int) -> Tensors:
    integers, zero, scale = linear(bits)
    return {
        "weight_packed": pack(integers, bits),
        "weight_scale": scale,
        "weight_shape": torch.tensor([OUT, IN]),
        "weight_zero_point": pack(zero.t(), bits).t().contiguous(),
        "weight_g_idx": PLAIN.int(),
    }


@pytest.mark.parametrize("bits", [4, 8])
def test_compressed_tensors(bits: int) -> None:
    integers, zero, scale = linear(bits)
    expected, tensors, half = weight(integers, zero, scale, PLAIN), compressed(bits), 2 ** (bits - 1)
    assert torch.equal(compressed_tensors(tensors, "mlp.fc", bits).grouped().dequantize(), expected)
    plain = tensors | {"weight_zero_point": (zero - half).to(torch.int8)}
    assert torch.equal(compressed_tensors(plain, "mlp.fc", bits).grouped().dequantize(), expected)
    symmetric = {n: t for n, t in tensors.items() if n in ("weight_packed", "weight_scale", "weight_shape")}
    grouped = compressed_tensors(symmetric, "mlp.fc", bits).grouped()
    assert grouped.zero is None
    assert torch.equal(grouped.values.long(), integers - half)


def test_compressed_rows_may_end_inside_a_word() -> None:
    integers = torch.randint(0, 16, (OUT, 12))
    tensors = {
        "weight_packed": pack(integers, 4),
        "weight_scale": torch.ones(OUT, 1),
        "weight_shape": torch.tensor([OUT, 12]),
    }
    read = compressed_tensors(tensors, "mlp.fc", 4)
    assert torch.equal(read.grouped().values.long(), integers - 8)


def test_bad_input_is_named() -> None:
    good = gptq_tensors(4, 1)

    def refused(message: str, bits: int = 4, **changed: torch.Tensor) -> None:
        with pytest.raises(InputError, match=message):
            gptq(good | changed, "mlp.fc", bits).grouped()

    refused(r"mlp\.fc: 3-bit weights cannot be repacked; 4 and 8 can", bits=3)
    refused(r"mlp\.fc\.qweight is torch.float32; packed integers are torch.int32", qweight=torch.zeros(8, 16))
    refused(r"mlp\.fc\.scales has shape \[4, 15\]; its neighbours want \[4, 16\]", scales=torch.ones(4, 15))
    refused(r"mlp\.fc\.qzeros has shape \[3, 2\]", qzeros=torch.zeros(3, 2, dtype=torch.int32))
    refused(r"mlp\.fc\.g_idx has shape \[63\]", g_idx=PLAIN[1:])
    refused(r"mlp\.fc\.g_idx: names group 9, but scales hold 4", g_idx=torch.full((IN,), 9))
    refused(r"mlp\.fc: scales hold NaN", scales=torch.full((4, 16), float("nan")))
    refused(r"mlp\.fc\.scales has shape \[16\]; a matrix", scales=torch.ones(16))
    uneven = {"scales": torch.ones(5, 16), "qzeros": torch.zeros(5, 2, dtype=torch.int32), "g_idx": PLAIN}
    refused(r"mlp\.fc: 64 input channels do not make 5 equal groups", **uneven)
    with pytest.raises(InputError, match=r"mlp\.fc\.qzeros is missing; the linear has qweight, scales"):
        awq({"qweight": good["qweight"].t().repeat(1, 2)[:, :2], "scales": torch.ones(4, 16)}, "mlp.fc")
