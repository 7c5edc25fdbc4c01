"""NCCL: sums and gathers between tensor parallel ranks, hidden states between pipeline stages."""

from __future__ import annotations

from .identity import Plugin

ALL_REDUCE = Plugin(
    "AllReduce",
    ("group", "type_id", "strategy", "config", "fusion_op", "eps", "affine", "bias"),
    "nccl_plugin",
    "column linear",
)
ALL_GATHER = Plugin("AllGather", ("group", "type_id"), "nccl_plugin", "none")
SEND = Plugin("Send", ("tgt_rank", "type_id"), "nccl_plugin", "none")
RECV = Plugin("Recv", ("src_rank", "type_id"), "nccl_plugin", "none")
