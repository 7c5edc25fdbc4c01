"""What a build is asked for, besides its checkpoint, release and GPU."""

from __future__ import annotations

from dataclasses import dataclass

from .build_config import Given


@dataclass(frozen=True)
class Wishes:
    """What the user asks of an engine.

    Attributes:
        given: trtllm-build's flags, by name.
        preset: "latency", "throughput" or None.
        max_output_len: tokens of output; with max_input_len it gives max_seq_len.
        chunked_context: serving will cut long prompts into chunks (needs paged context attention).
        fraction: share of the free memory that serving gives to the KV cache.
    """

    given: Given
    preset: str | None = None
    max_output_len: int | None = None
    chunked_context: bool = False
    fraction: float = 0.9
