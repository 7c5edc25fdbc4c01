"""Requests in flight: each pass takes one token of every answer further, and pieces of prompts besides.

A request that arrives joins the next pass, one that ends leaves its place to another, as TensorRT-LLM's in-flight
batching has it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

import torch

from ..errors import InputError
from .network import Network
from .passes import Piece
from .sampling import GREEDY, Chooser, Sampling, Words, ends_with

# Tokens of prompts in one pass: answers in flight wait no longer than for so many.
PROMPT_TOKENS = 512
END, STOP, LENGTH, CANCELLED, BEYOND = "end", "stop", "length", "cancelled", "beyond"


@dataclass(frozen=True)
class Request:
    """A prompt to be continued.

    Attributes:
        ids: of the prompt, at least one.
        max_tokens: of the answer, at least one.
        ends: tokens that end an answer and are no part of it.
        stop, bad: sequences of tokens: the answer ends with the first of the former, which it keeps, and never
            completes one of the latter.
        bias: float32 [vocab_size], added to logits.
        keeps_logits, keeps_prompt_logits: logits of the answer, and of the prompt, are kept.
    """

    ids: Sequence[int]
    max_tokens: int
    sampling: Sampling = GREEDY
    ends: Sequence[int] = ()
    stop: Words = ()
    bad: Words = ()
    bias: torch.Tensor | None = None
    keeps_logits: bool = False
    keeps_prompt_logits: bool = False


@dataclass(eq=False)
class Answer:
    """What is made of a request.

    Attributes:
        number: of those that came before it.
        ids: tokens so far.
        log_probs: of each, among all tokens.
        reason: why it ended: an end token, a stop word, its length, that it was cancelled, or that its logits were no
            numbers, for a value was beyond the checkpoint's dtype; None while it goes on.
        seen: tokens of prompt and answer that are in the cache.
        logits: of every token of the answer, float32 [vocab_size], where they are kept.
        prompt_logits: pieces of those behind the prompt's tokens, float32 [tokens, vocab_size].
    """

    request: Request
    chooser: Chooser
    number: int
    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    reason: str | None = None
    seen: int = 0
    logits: list[torch.Tensor] = field(default_factory=list)
    prompt_logits: list[torch.Tensor] = field(default_factory=list)

    @property
    def longest(self) -> int:
        """Tokens of prompt and answer at most."""
        return len(self.request.ids) + self.request.max_tokens

    def take(self, token: int, log_prob: float) -> None:
        """The next token; it may be the last."""
        request = self.request
        if not math.isfinite(log_prob):
            self.reason = BEYOND
            return
        if token in request.ends:
            self.reason = END
            return
        self.ids.append(token)
        self.log_probs.append(log_prob)
        if any(ends_with(self.ids, word) for word in request.stop):
            self.reason = STOP
        elif len(self.ids) >= request.max_tokens:
            self.reason = LENGTH


def check(request: Request, vocab_size: int) -> None:
    """Raise InputError for what no choice of a token survives."""
    how, words = request.sampling, [*request.bad, *request.stop, request.ends, request.ids]
    for word in words:
        for token in word:
            if not 0 <= token < vocab_size:
                raise InputError(f"token {token} is none of the model's, which are 0 to {vocab_size - 1}")
    numbers = {"temperature": (1e-4, 1e4), "repetition": (1e-3, 1e3), "presence": (-1e6, 1e6), "frequency": (-1e6, 1e6)}
    for name, (least, most) in numbers.items():
        if not least <= getattr(how, name) <= most:
            raise InputError(f"{name} is {getattr(how, name)}; {least:g} to {most:g} are possible")
    if request.bias is not None and not bool(torch.isfinite(request.bias).all()):
        raise InputError("a bias holds what is no finite number")


class Flight:
    """The requests of one network that are under way.

    Args:
        most: so many answers are in a pass; others wait.
    """

    def __init__(self, network: Network, most: int = 64):
        self.network, self.most = network, most
        self.numbers, self.waiting = count(), deque[Answer]()
        self.aboard: list[Answer] = []  # by slot of the cache

    def add(self, request: Request) -> Answer:
        """A request joins as soon as there is room.

        Raises:
            InputError: tokens that the model does not have, or numbers that are none.
        """
        check(request, self.network.model.vocab_size)
        chooser = Chooser(request.sampling, request.ids, request.ends, request.bad, request.bias)
        answer = Answer(request, chooser, next(self.numbers))
        self.waiting.append(answer)
        return answer

    def cancel(self, answer: Answer) -> None:
        """It takes part in no pass any more."""
        if answer.reason is None:
            answer.reason = CANCELLED
            if answer in self.waiting:
                self.waiting.remove(answer)
            self.leave()

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.aboard)

    @torch.inference_mode()
    def step(self) -> list[Answer]:
        """One pass; the answers that it brought a token, or their end."""
        while self.waiting and len(self.aboard) < self.most:
            self.aboard.append(self.waiting.popleft())
        self.network.reserve(len(self.aboard), max(answer.longest for answer in self.aboard))
        pieces = self.pieces()
        ids = [token for piece in pieces for token in self.tokens(piece)]
        hidden = self.network(pieces, ids)
        advanced = self.choose(pieces, hidden)
        self.leave()
        return advanced

    def pieces(self) -> list[Piece]:
        """What the next pass computes: the last token of every answer, and prompts as they came, until it is enough.

        A prompt is cut behind every PROMPT_TOKENS of its own tokens and nowhere else, whoever is beside it.
        """
        single, prompts, left = [], list[Piece](), PROMPT_TOKENS
        for slot, answer in sorted(enumerate(self.aboard), key=lambda place: place[1].number):
            if answer.ids:
                single.append(Piece(slot, answer.seen, 1))
                continue
            tokens = min(len(answer.request.ids) - answer.seen, PROMPT_TOKENS)
            if tokens <= left or not prompts:
                prompts.append(Piece(slot, answer.seen, tokens))
                left -= tokens
        return single + prompts

    def tokens(self, piece: Piece) -> list[int]:
        """The ids of a piece."""
        answer = self.aboard[piece.slot]
        prompt = answer.request.ids
        if piece.first >= len(prompt):
            return answer.ids[piece.first - len(prompt) :][: piece.count]
        return list(prompt[piece.first : piece.end])

    def choose(self, pieces: Sequence[Piece], hidden: torch.Tensor) -> list[Answer]:
        """The next token of every answer whose last one, or whose whole prompt, has been seen."""
        rows, advanced, start = [], [], 0
        for piece in pieces:
            answer = self.aboard[piece.slot]
            answer.seen = piece.end
            if answer.request.keeps_prompt_logits and piece.first < len(answer.request.ids):
                answer.prompt_logits.append(self.network.logits(hidden[start : start + piece.count]).cpu())
            start += piece.count
            if piece.end >= len(answer.request.ids):
                rows.append(start - 1)
                advanced.append(answer)
        if advanced:
            logits = self.network.logits(hidden[rows])
            for answer, own, largest in zip(advanced, logits, self.largest(logits), strict=True):
                if answer.request.keeps_logits:
                    answer.logits.append(own.cpu())
                answer.take(*(largest if answer.chooser.plain else answer.chooser.choose(own.cpu(), answer.ids)))
        return advanced

    def largest(self, logits: torch.Tensor) -> list[tuple[int, float]]:
        """Of every row the most likely token, and the logarithm of its probability."""
        values, tokens = logits.max(-1)
        log_probs = values - logits.logsumexp(-1)
        return list(zip(tokens.tolist(), log_probs.tolist(), strict=True))

    @torch.inference_mode()
    def leave(self) -> None:
        """Answers that have ended leave; the last take their places."""
        for slot in reversed(range(len(self.aboard))):
            if self.aboard[slot].reason is not None:
                last = len(self.aboard) - 1
                if slot < last and self.aboard[last].seen:
                    self.network.cache.move(last, slot)
                self.aboard[slot] = self.aboard[last]
                self.aboard.pop()
