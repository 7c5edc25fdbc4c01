"""What is known of the input of some linears."""

from __future__ import annotations

from dataclasses import dataclass

from ...plugins.lazy import torch


@dataclass
class InputStatistics:
    """The input of a group of linears, over all calibration tokens.

    Attributes:
        amax: float32 [sequences, in]; the largest |x| of each channel in each sequence.
        tokens: float32 [kept, in]; a sample of whole input rows: tokens drawn evenly, and of every
            sequence the token with the largest activation; none of them unless asked for.
        weight: float32 [kept]; how many calibration tokens each kept one stands for.
        gram: X'X over the number of tokens, float32 [in, in]; None unless asked for.
        magnitude: mean |x|, float32 [in]; None unless asked for.
    """

    amax: torch.Tensor
    tokens: torch.Tensor
    weight: torch.Tensor
    gram: torch.Tensor | None = None
    magnitude: torch.Tensor | None = None

    def gram_matrix(self) -> torch.Tensor:
        """float32 [in, in]."""
        assert self.gram is not None
        return self.gram

    def channel_amax(self) -> torch.Tensor:
        """float32 [in]: the largest |x| per channel."""
        return self.amax.amax(0)
