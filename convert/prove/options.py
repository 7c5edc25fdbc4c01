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
        reader: whose arithmetic a Hugging Face folder is executed with: "kernels" (vLLM's, SGLang's, TensorRT-LLM's),
            "transformers", which divides the range of an int8 token by 127.5 instead of 127, or "edge", which keeps
            scales of FP8 and of groups in float16.
    """

    text: str = "pydoc-heldout"
    chunks: int = bounded(20, least=1)
    seq_len: int = bounded(512, least=2)
    max_ppl_increase: float | None = None
    max_distance: float | None = None
    device: str = "auto"
    reader: str = bounded("kernels", words=("kernels", "transformers", "edge"))
