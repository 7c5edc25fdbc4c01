"""Texts that a model makes of prompts, as they come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..sources.tokenizer import Tokenizer
from ..tokens.stopping import StopWatch
from ..tokens.tokenization import IncrementalDetokenizer
from .flight import CANCELLED, STOP, Answer, Flight, Request
from .network import Network
from .options import GenerateOptions

# Told the number of a prompt, and what text its answer goes on with.
OnPiece = Callable[[int, str], None]


@dataclass(frozen=True)
class Written:
    """An answer.

    Attributes:
        text: without the end token, and what stop words cut off.
        ids: its tokens.
        prompt_tokens: of the prompt.
        reason: why it ended: end (an end token), stop (a stop word), length, or beyond (the checkpoint's dtype).
    """

    text: str
    ids: list[int]
    prompt_tokens: int
    reason: str


@dataclass(frozen=True)
class Speed:
    """How fast answers came.

    Attributes:
        first: seconds until every prompt of the first batch had been read and its first token was there.
        rate: tokens a second after that, of all answers together; 0 where there was none.
        cache: bytes of keys and values in the end.
    """

    first: float
    rate: float
    cache: int


class Stream:
    """The text of one answer on its way."""

    def __init__(self, answer: Answer, tokenizer: Tokenizer, stop: Sequence[str]):
        self.answer, self.text, self.taken = answer, "", 0
        self.detokenizer = IncrementalDetokenizer(tokenizer.loaded)
        self.watch = StopWatch(stop)

    def advance(self) -> str:
        """What has come since; the rest where the answer has ended."""
        ids, answer = self.answer.ids[self.taken :], self.answer
        self.taken = len(answer.ids)
        piece = self.watch.push(self.detokenizer.push(ids)) if ids else ""
        if answer.reason is not None and not self.watch.ended:
            piece += self.watch.push(self.detokenizer.finish()) + self.watch.finish()
        self.text += piece
        return piece


def advancing(flight: Flight, streams: Mapping[Answer, Stream]) -> Iterator[tuple[Answer, str]]:
    """Pass after pass until all have ended: every answer that went on, and what its text went on with; one that comes
    to a stop word is given up."""
    while flight.busy:
        for answer in flight.step():
            piece = streams[answer].advance()
            if streams[answer].watch.ended:
                flight.cancel(answer)
            yield answer, piece


def continued(
    network: Network,
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    ends: Sequence[int],
    options: GenerateOptions,
    on_piece: OnPiece = lambda number, piece: None,
) -> tuple[list[Written], Speed]:
    """What a network writes behind each of some prompts, ``options.batch`` of them at once.

    Args:
        prompts: their token ids.
        ends: end tokens.
        on_piece: told every piece of text as it comes.
    """
    flight, sampling = Flight(network, options.batch), options.sampling
    answers = [flight.add(Request(ids, options.max_tokens, sampling, ends)) for ids in prompts]
    streams = {answer: Stream(answer, tokenizer, options.stop) for answer in answers}
    numbers = {answer: number for number, answer in enumerate(answers)}
    first_batch, started, first, early = answers[: options.batch], time.perf_counter(), 0.0, 0
    for answer, piece in advancing(flight, streams):
        if piece:
            on_piece(numbers[answer], piece)
        if not first and all(answer.ids or answer.reason for answer in first_batch):
            first, early = time.perf_counter() - started, sum(len(answer.ids) for answer in answers)
    rest, seconds = sum(len(answer.ids) for answer in answers) - early, time.perf_counter() - started - first
    written = [
        Written(streams[a].text, a.ids, len(a.request.ids), STOP if streams[a].watch.ended else a.reason or CANCELLED)
        for a in answers
    ]
    return written, Speed(first, rest / seconds if rest else 0.0, network.cache.size)
