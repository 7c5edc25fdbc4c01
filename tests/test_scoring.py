"""Log-likelihoods of continuations are those of whole sequences, however they share contexts and passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from enginesmith.convert.generate import scoring
from enginesmith.convert.generate.network import Network
from enginesmith.convert.generate.scoring import Continuation, log_likelihoods
from enginesmith.convert.prove.folder import FloatFolder
from enginesmith.convert.prove.proven import opened

from .family_models import converted
from .generating import CPU, computed_anew, prompts

LLAMA = "Llama, Yi, DeepSeek-LLM, SmolLM"


def asked(vocab_size: int) -> list[Continuation]:
    """Several answers to one question, of one token and of more; and texts on their own, some of them long."""
    shared, other, *alone = (tuple(ids) for ids in prompts(vocab_size, (9, 1, 20, 3, 2, 30)))
    answers = [tuple(ids) for ids in prompts(vocab_size, (1, 4, 1, 2, 2, 6))]
    together = [Continuation(context, ids) for ids in answers for context in (shared, other)]
    return [*together, *(Continuation(ids[:1], ids[1:]) for ids in alone), Continuation(shared, answers[1])]


def anew(proven: Any, one: Continuation) -> tuple[float, bool]:
    """The same of the whole sequence, alone."""
    logits = computed_anew(proven, [*one.context, *one.ids[:-1]])[len(one.context) - 1 :]
    own = logits.log_softmax(-1).gather(1, torch.tensor(one.ids)[:, None])
    return float(own.sum()), logits.argmax(-1).tolist() == list(one.ids)


@pytest.mark.parametrize("most", [None, 1, 4])
def test_as_whole_sequences(most: int | None, models: Callable[[str], Path]) -> None:
    proven = FloatFolder(models(LLAMA))
    wanted = asked(proven.model.vocab_size)
    done = list[int]()
    found = log_likelihoods(Network(proven, CPU, 40), wanted, most, done.append)
    for one, (log_prob, greedy) in zip(wanted, found, strict=True):
        own, most_likely = anew(proven, one)
        assert log_prob == pytest.approx(own, abs=1e-3)
        assert greedy == most_likely
    assert done[-1] == len(wanted)
    assert done == sorted(done)


@pytest.mark.parametrize("kv_cache", [None, "INT8", "FP8"])
@pytest.mark.parametrize("quant", ["W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", "W4A16", "FP8"])
def test_of_integers(quant: str, kv_cache: str | None, models: Callable[[str], Path], tmp_path: Path) -> None:
    converted(models(LLAMA), tmp_path / "ck", quant=quant, kv_cache=kv_cache)
    proven = opened(tmp_path / "ck")
    wanted = asked(proven.model.vocab_size)
    found = log_likelihoods(Network(proven, CPU, 40), wanted)
    for one, (log_prob, _) in zip(wanted, found, strict=True):
        assert log_prob == pytest.approx(anew(proven, one)[0], abs=0.02 * len(one.ids))


def test_a_checkpoint_in_float32_is_its_source(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Weights that float16 holds: nothing is rounded, the embedding neither."""
    converted(tiny(), tmp_path / "ck")
    networks = [Network(one, CPU, 40) for one in (opened(tmp_path / "ck", dtype="float32"), FloatFolder(tiny()))]
    ours, theirs = (log_likelihoods(network, asked(network.model.vocab_size)) for network in networks)
    assert [log_prob for log_prob, _ in ours] == pytest.approx([log_prob for log_prob, _ in theirs], abs=1e-3)


def test_what_greedy_decoding_says_is_known(models: Callable[[str], Path]) -> None:
    proven = FloatFolder(models(LLAMA))
    (context,) = prompts(proven.model.vocab_size, (5,))
    ids = list(context)
    for _ in range(4):
        ids.append(int(computed_anew(proven, ids)[-1].argmax()))
    said, other = tuple(ids[5:]), (*ids[5:8], (ids[8] + 1) % proven.model.vocab_size)
    wanted = [Continuation(tuple(context), one) for one in (said, other, said[:1])]
    found = log_likelihoods(Network(proven, CPU, 40), wanted)
    assert [greedy for _, greedy in found] == [True, False, True]


def test_a_shared_context_is_read_once(models: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    proven = FloatFolder(models(LLAMA))
    (context,) = prompts(proven.model.vocab_size, (30,))
    answers = [Continuation(tuple(context), (n, 2 * n)) for n in range(4)] + [Continuation(tuple(context), (7,))]
    read = list[int]()
    through = Network.__call__
    monkeypatch.setattr(
        Network, "__call__", lambda self, pieces, ids: (read.append(len(ids)), through(self, pieces, ids))[1]
    )
    log_likelihoods(Network(proven, CPU, 40), answers)
    assert read == [30 + 1, 3]


def test_the_cache_is_bounded(models: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """One long text and many short ones: never the slots of these with the length of that."""
    monkeypatch.setattr(scoring, "TOKENS", 64)
    proven = FloatFolder(models(LLAMA))
    (long,) = prompts(proven.model.vocab_size, (39,))
    network, sizes = Network(proven, CPU, 40), list[int]()
    wanted = [Continuation((0,), tuple(long)), *(Continuation((n,), (5,)) for n in range(1, 65))]
    log_likelihoods(network, wanted, None, lambda done: sizes.append(network.cache.slots))
    assert sizes[0] == 1
    assert max(sizes) == 64
    assert network.cache.tokens == 64
