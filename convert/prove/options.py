"""What enginesmith verify measures, and its gate."""

from __future__ import annotations

from dataclasses import dataclass

from ..files.bounds import Options, bounded


@dataclass(frozen=True)
class VerifyOptions(Options):
    """How a checkpoint is measured.

    Attributes:
        text: held-out text: a built-in one, a text file, or a safetensors file of token ids.
        chunks, seq_len: sequences of it, and tokens in each.
        max_ppl_increase: percent; more perplexity than that fails.
        max_distance: percent; hidden states behind the last layer further from the source's than that fail.
        device: "auto", or a torch device.
    """

    text: str = "pydoc-heldout"
    chunks: int = bounded(20, least=1)
    seq_len: int = bounded(512, least=2)
    max_ppl_increase: float | None = None
    max_distance: float | None = None
    device: str = "auto"
