"""The next token of a sequence, from its logits, as TensorRT-LLM's decoder chooses it.

    l  <- (l + bias) / temperature                         of all tokens
    l  <- l / r where l > 0, l r elsewhere                 of tokens that are there already (repetition penalty r)
    l  <- l - presence - frequency * count                 of these too, prompt included
    l  <- -inf                                             of bad words, and of end tokens before min_tokens

then the largest, or a draw from the softmax of the ``top_k`` largest, cut to the fewest whose sum reaches ``top_p``
(Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...plugins.lazy import torch


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: logits are divided by it.
        top_k: of so many tokens; 1 is greedy, 0 takes all.
        top_p: of the fewest tokens whose probability reaches it.
        seed: of the draws.
        repetition, presence, frequency: penalties, as above.
        min_tokens: none of the end tokens before so many.
    """

    temperature: float = 1.0
    top_k: int = 1
    top_p: float = 1.0
    seed: int = 0
    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    min_tokens: int = 0

    @property
    def penalizes(self) -> bool:
        return (self.repetition, self.presence, self.frequency) != (1.0, 0.0, 0.0)

    @property
    def plain(self) -> bool:
        """Whether the largest logit is the token, whatever came before, and its probability that of the logits."""
        return self.top_k == 1 and self.temperature == 1 and not self.penalizes and not self.min_tokens


GREEDY = Sampling()
Words = tuple[tuple[int, ...], ...]


class Chooser:
    """Chooses one sequence's tokens.

    Args:
        prompt: its ids.
        ends: end tokens.
        bad: sequences of tokens of which none may be completed.
        bias: float32 [vocab_size], added to logits; None for none.
    """

    def __init__(
        self,
        how: Sampling,
        prompt: Sequence[int],
        ends: Sequence[int],
        bad: Words = (),
        bias: torch.Tensor | None = None,
    ):
        self.how, self.prompt, self.ends, self.bad, self.bias = how, prompt, list(ends), bad, bias
        self.draws = torch.Generator().manual_seed(how.seed % 2**63)

    @property
    def plain(self) -> bool:
        """Whether it takes the largest logit, whatever came before."""
        return self.how.plain and not self.bad and self.bias is None

    def choose(self, logits: torch.Tensor, made: Sequence[int]) -> tuple[int, float]:
        """The next token, and the logarithm of its probability among all; no number where logits are none.

        Args:
            logits: float32 [vocab_size].
            made: tokens behind the prompt.
        """
        logits = self.changed(logits, made)
        if not math.isfinite(float(logits.amax())):
            return 0, math.nan
        token = int(logits.argmax()) if self.how.top_k == 1 else self.drawn(logits)
        return token, float(logits[token] - logits.logsumexp(0))

    def changed(self, logits: torch.Tensor, made: Sequence[int]) -> torch.Tensor:
        """Logits behind bias, temperature, penalties and what is forbidden."""
        how = self.how
        logits = (logits if self.bias is None else logits + self.bias) / how.temperature
        if how.penalizes:
            count = torch.bincount(torch.tensor([*self.prompt, *made]), minlength=len(logits)).to(logits)
            there = count > 0
            penalized = torch.where(logits > 0, logits / how.repetition, logits * how.repetition)
            logits = torch.where(there, penalized - how.presence - how.frequency * count, logits)
        if forbidden := self.forbidden(made):
            logits[forbidden] = -math.inf
        return logits

    def forbidden(self, made: Sequence[int]) -> list[int]:
        """Tokens that may not come next."""
        ends = self.ends if len(made) < self.how.min_tokens else []
        return [*ends, *(word[-1] for word in self.bad if ends_with(made, word[:-1]))]

    def drawn(self, logits: torch.Tensor) -> int:
        """A draw from the tokens that top_k and top_p leave."""
        how = self.how
        likely, which = logits.topk(min(how.top_k or len(logits), len(logits)))
        shares = likely.softmax(0)
        kept = shares.cumsum(0) - shares < how.top_p
        kept[0] = True
        return int(which[torch.multinomial(shares * kept, 1, generator=self.draws)])


def ends_with(tokens: Sequence[int], word: Sequence[int]) -> bool:
    """Whether these are the last tokens."""
    return len(tokens) >= len(word) and list(tokens[len(tokens) - len(word) :]) == list(word)
