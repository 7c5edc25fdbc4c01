"""A folder as a language model of lm-evaluation-harness.

Texts become tokens as the harness's own Hugging Face model (``HFLM``) has them: special tokens as the tokenizer puts
them, none before a text that begins with one; a text without context behind BOS, or EOS where there is none; what is
longer than the model's positions loses its beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from ..device import pick_device
from ..errors import InputError, shown
from ..files.disk import shown_path
from ..generate.flight import Flight, Request
from ..generate.job import Speaker
from ..generate.network import Network
from ..generate.options import GenerateOptions
from ..generate.scoring import Continuation, log_likelihoods
from ..generate.text import Stream, advancing
from ..tokens.stopping import cut
from .options import EvaluateOptions

# Told what is computed, how many requests are done, and of how many.
OnProgress = Callable[[str, int, int], None]
# Tokens of an answer, where a task does not say.
MAX_TOKENS = 256
# What a task may say of an answer, besides where and when it ends.
SAMPLING = {"temperature", "top_k", "top_p", "repetition_penalty"}
FLIGHT = 16
# Tokens that a network has room for from the beginning, if the model does.
ROOM = 2048


class Answering(TemplateLM):  # type: ignore[misc]  # the harness has no types
    """Answers the harness's requests.

    Args:
        speaker: the folder that answers.
    """

    def __init__(self, speaker: Speaker, options: EvaluateOptions, on_progress: OnProgress):
        super().__init__()
        self.speaker, self.options, self.on_progress = speaker, options, on_progress
        self.tokenizer = speaker.tokenizer.loaded
        self.max_length = options.max_length or speaker.model.longest
        if self.max_length > speaker.model.longest:
            raise InputError(
                f"--max_length {self.max_length} is more than the {speaker.model.longest} positions of the model"
            )
        if self.prefix_token_id is None:
            raise InputError(
                f"{shown_path(speaker.tokenizer.folder)}: its tokenizer has neither BOS nor EOS to stand before a text"
            )
        self.network: Network | None = None

    @property
    def eot_token_id(self) -> Any:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> Any:
        """What stands before a text without context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return str(self.speaker.tokenizer.folder)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """A text's ids, with special tokens as ``add_special_tokens`` says, or as HFLM has them."""
        if add_special_tokens is None and string.startswith(self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        if add_special_tokens is None:
            add_special_tokens = self.options.add_bos_token
        ids: list[int] = self.tokenizer.encode(string, add_special_tokens=add_special_tokens is not False)
        bos = self.tokenizer.bos_token_id
        return [bos, *ids] if add_special_tokens and bos is not None and ids[:1] != [bos] else ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A chat as its template writes it; without its system messages where the template knows none."""
        how = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        others = [message for message in chat_history if message["role"] != "system"]
        try:
            return self.speaker.tokenizer.render(chat_history, "--apply_chat_template", **how)
        except InputError:
            if others == chat_history:
                raise
            return self.speaker.tokenizer.render(others, "--apply_chat_template", **how)

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        scores: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return scores

    def _loglikelihood_tokens(self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any) -> list[Any]:
        asked = [self.continuation(*request) for request in requests]
        return self.scored("loglikelihood", asked)

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """Every text's log-likelihood: each token predicted once, in windows of ``max_length`` that begin with the
        last token of the one before."""
        asked, numbers = list[Continuation](), list[int]()
        for number, request in enumerate(requests):
            (text,) = request.args
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            pairs = [self.continuation(text, *make_disjoint_window(window)) for window in windows]
            asked, numbers = asked + pairs, numbers + [number] * len(pairs)
        totals = [0.0] * len(requests)
        for number, (log_prob, _) in zip(numbers, self.scored("loglikelihood_rolling", asked), strict=True):
            totals[number] += log_prob
        return totals

    def continuation(self, texts: Any, context: Sequence[int], ids: Sequence[int]) -> Continuation:
        """What is read of a context and its continuation: the last ``max_length`` tokens that predict something."""
        if not ids:
            raise InputError(f"--tasks: {shown(texts)}: an answer of no tokens has no likelihood")
        if len(ids) > self.max_length:
            raise InputError(f"--tasks: {shown(texts)}: {len(ids)} tokens are more than the model's {self.max_length}")
        whole = [*context, *ids][-self.max_length - 1 :]
        return Continuation(tuple(whole[: -len(ids)]), tuple(ids))

    def scored(self, what: str, asked: Sequence[Continuation]) -> list[tuple[float, bool]]:
        """``log_likelihoods`` of continuations."""
        longest = max((one.tokens for one in asked), default=1)
        self.check_ids(one.context + one.ids for one in asked)
        return log_likelihoods(
            self.loaded(longest), asked, self.options.batch_size, lambda done: self.on_progress(what, done, len(asked))
        )

    def generate_until(self, requests: list[Any]) -> list[str]:
        """What follows every prompt, up to the first of its stop words, an end token, or its most tokens."""
        asked = [self.request(number, *request.args) for number, request in enumerate(requests)]
        self.check_ids(request.ids for request, _ in asked)
        network = self.loaded(max((len(request.ids) + request.max_tokens for request, _ in asked), default=1))
        flight = Flight(network, self.options.batch_size or FLIGHT)
        streams = {
            answer: Stream(answer, self.speaker.tokenizer, stop)
            for answer, stop in [(flight.add(request), stop) for request, stop in asked]
        }
        for _ in advancing(flight, streams):
            self.on_progress("generate_until", sum(answer.reason is not None for answer in streams), len(streams))
        texts = (self.tokenizer.decode(answer.ids, skip_special_tokens=True) for answer in streams)
        return [cut(text, stop)[0] for text, (_, stop) in zip(texts, asked, strict=True)]

    def request(self, number: int, prompt: str, said: dict[str, Any]) -> tuple[Request, list[str]]:
        """A prompt's request, and the texts that end its answer.

        Args:
            number: of the request; each draws its own tokens.
            said: of it by the task, ``generation_kwargs``.
        """
        how: dict[str, Any] = dict(normalize_gen_kwargs(said, MAX_TOKENS))
        most, until, samples = how.pop("max_gen_toks"), how.pop("until"), how.pop("do_sample")
        if unknown := sorted(how.keys() - SAMPLING):
            raise InputError(f"generation_kwargs: {unknown[0]} is not known here; give {', '.join(sorted(SAMPLING))}")
        if not 0 < most < self.max_length:
            raise InputError(f"generation_kwargs: max_gen_toks is {most}; 1 to {self.max_length - 1} are possible")
        chosen = how if samples else {"repetition_penalty": how.get("repetition_penalty", 1.0)}
        sampling = GenerateOptions(max_tokens=most, **chosen).sampling
        seed = (1234 if self.options.seed is None else self.options.seed) + number
        ids = self.tok_encode(prompt)[most - self.max_length :] or [self.prefix_token_id]
        return Request(ids, most, replace(sampling, seed=seed), self.speaker.ends), [word for word in until if word]

    def check_ids(self, sequences: Any) -> None:
        """Raise InputError for tokens that the model does not have."""
        most, size = max((max(ids) for ids in sequences), default=0), self.speaker.model.vocab_size
        if most >= size:
            raise InputError(f"token {most} is beyond the model's vocabulary of {size}; give its own --tokenizer_dir")

    def loaded(self, longest: int) -> Network:
        """The network for sequences of so many tokens; layers are read again where it was made for shorter ones."""
        if self.network is None or self.network.longest < longest:
            self.network = None
            room = max(longest, min(self.max_length, ROOM))
            self.network = Network(self.speaker.proven, pick_device(self.options.device), room)
        return self.network
