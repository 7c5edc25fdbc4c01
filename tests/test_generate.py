"""Tokens one after the other are those that the whole prefix gives, whatever the format, the cache and the crowd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from enginesmith.convert.errors import InputError
from enginesmith.convert.generate.flight import Flight, Request
from enginesmith.convert.generate.network import Network
from enginesmith.convert.generate.passes import Piece
from enginesmith.convert.models.ends import Embedding
from enginesmith.convert.models.families import FAMILIES
from enginesmith.convert.prove.folder import FloatFolder
from enginesmith.convert.prove.proven import opened
from enginesmith.convert.targets.trtllm.formats import SCHEMES
from enginesmith.convert.targets.trtllm.honoured import left_out

from .family_models import MODELS, converted, write_family
from .generating import CPU, answered, assert_as_computed_anew, prompts
from .target_folders import made

LLAMA = "Llama, Yi, DeepSeek-LLM, SmolLM"
DECODERS = [family.title for family in FAMILIES if family.predicts_tokens]
FAMILY = {family.title: family for family in FAMILIES}


@pytest.mark.parametrize("kv_cache", [None, "INT8", "FP8"])
@pytest.mark.parametrize("quant", [None, *SCHEMES])
def test_every_format_and_cache(
    quant: str | None, kv_cache: str | None, models: Callable[[str], Path], tmp_path: Path
) -> None:
    converted(models(LLAMA), tmp_path / "ck", quant=quant, kv_cache=kv_cache)
    proven = opened(tmp_path / "ck")
    assert_as_computed_anew(proven, answered(proven, prompts(proven.model.vocab_size)))


@pytest.mark.parametrize("title", DECODERS)
def test_every_family(title: str, models: Callable[[str], Path], tmp_path: Path) -> None:
    quant = None if "W8A16" in left_out(FAMILY[title]) else "W8A16"
    converted(models(title), tmp_path / "ck", quant=quant)
    proven = opened(tmp_path / "ck")
    assert_as_computed_anew(proven, answered(proven, prompts(proven.model.vocab_size)))


@pytest.mark.parametrize("target", ["compressed-tensors", "edge", "modelopt"])
def test_every_target(target: str, tmp_path: Path) -> None:
    proven = opened(made(target, "FP8", tmp_path, kv_cache="FP8"))
    assert_as_computed_anew(proven, answered(proven, prompts(proven.model.vocab_size)))


def test_long_prompts_are_read_in_pieces(
    models: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt that is longer than a pass goes on while others are answered."""
    monkeypatch.setattr("enginesmith.convert.generate.flight.PROMPT_TOKENS", 4)
    converted(models(LLAMA), tmp_path / "ck", quant="W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", kv_cache="INT8")
    proven = opened(tmp_path / "ck")
    answers = answered(proven, prompts(proven.model.vocab_size), keeps_prompt_logits=True)
    assert_as_computed_anew(proven, answers)
    assert [sum(map(len, answer.prompt_logits)) for answer in answers] == [
        len(answer.request.ids) for answer in answers
    ]


@pytest.mark.parametrize("title", sorted(set(DECODERS) & set(MODELS)))
def test_greedy_as_transformers(title: str, tmp_path: Path) -> None:
    """A float model says token for token what transformers' generate says."""
    folder = write_family(tmp_path / "hf", title)
    try:
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    except (ValueError, KeyError, OSError, ImportError):
        pytest.skip("transformers has no class for it without remote code")
    proven = FloatFolder(folder)
    asked = prompts(proven.model.vocab_size)
    for ids, answer in zip(asked, answered(proven, asked, tokens=8), strict=True):
        how = {"do_sample": False, "max_new_tokens": len(answer.ids), "eos_token_id": None, "pad_token_id": 0}
        whole = theirs.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), **how)
        assert whole[0, len(ids) :].tolist() == answer.ids


@pytest.mark.parametrize("title", ["Gemma 2", "Gemma 3, text", "BLOOM, BLOOMZ"])
def test_windows_and_slopes_in_pieces(title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows shorter than prompts and answers, and distances that count, where prompts are read in pieces."""
    monkeypatch.setattr("enginesmith.convert.generate.flight.PROMPT_TOKENS", 5)
    window = {} if "BLOOM" in title else {"sliding_window": 6}
    proven = FloatFolder(write_family(tmp_path / "hf", title, **window))
    assert (proven.model.sliding_window == 6) == bool(window)
    asked = prompts(proven.model.vocab_size, (3, 17, 12))
    assert_as_computed_anew(proven, answered(proven, asked, tokens=14))


def test_a_mixture_in_float32(models: Callable[[str], Path], tmp_path: Path) -> None:
    converted(models("Mixtral"), tmp_path / "ck", quant="W8A16")
    proven = opened(tmp_path / "ck", dtype="float32")
    assert_as_computed_anew(proven, answered(proven, prompts(proven.model.vocab_size)))


def test_a_pass_reads_no_more_than_its_share(models: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts wait for a pass with room, and are cut behind their own tokens; who leaves early disturbs nobody."""
    monkeypatch.setattr("enginesmith.convert.generate.flight.PROMPT_TOKENS", 8)
    proven = FloatFolder(models(LLAMA))
    lengths = (8, 5, 3, 11, 2)
    asked = prompts(proven.model.vocab_size, lengths)
    flight = Flight(Network(proven, CPU, 40), 8)
    answers = [flight.add(Request(ids, 1 + n % 2)) for n, ids in enumerate(asked)]
    read = []
    while flight.busy:
        flight.aboard += [flight.waiting.popleft() for _ in range(len(flight.waiting))]
        read.append([piece.count for piece in flight.pieces() if not flight.aboard[piece.slot].ids])
        flight.step()
    assert all(sum(counts) <= 8 for counts in read)
    assert sorted(count for counts in read for count in counts) == sorted((8, 5, 3, 8, 3, 2))
    for answer, ids in zip(answers, asked, strict=True):
        (alone,) = answered(proven, [ids], tokens=2)
        assert answer.ids == alone.ids[: len(answer.ids)]


def test_who_came_first_is_read_first(models: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where one that came later has taken the place of one that left."""
    monkeypatch.setattr("enginesmith.convert.generate.flight.PROMPT_TOKENS", 8)
    proven = FloatFolder(models(LLAMA))
    flight = Flight(Network(proven, CPU, 60), 3)
    short, *rest = (flight.add(Request(ids, 1)) for ids in prompts(proven.model.vocab_size, (2, 20, 20, 20, 20)))
    flight.step()
    assert short.reason == "length"
    ended = []
    while flight.busy:
        ended += flight.step()
    assert ended == rest


@pytest.mark.parametrize("quant", ["W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", "W8A8_SQ_PER_TENSOR_PLUGIN"])
def test_integers_do_not_depend_on_company(quant: str, models: Callable[[str], Path], tmp_path: Path) -> None:
    """Hidden states of a prompt and of what follows are the same to the bit, whoever is beside it."""
    converted(models(LLAMA), tmp_path / "ck", quant=quant, kv_cache="INT8")
    proven = opened(tmp_path / "ck")
    asked = prompts(proven.model.vocab_size)

    def hidden(some: list[list[int]]) -> list[torch.Tensor]:
        network, starts = Network(proven, CPU, 40), [0]
        for ids in some:
            starts.append(starts[-1] + len(ids))
        first = network([Piece(slot, 0, len(ids)) for slot, ids in enumerate(some)], [i for ids in some for i in ids])
        then = network([Piece(slot, len(ids), 1) for slot, ids in enumerate(some)], [7] * len(some))
        return [torch.cat((first[a:b], then[n : n + 1])) for n, (a, b) in enumerate(pairwise(starts))]

    for ids, beside in zip(asked, hidden(asked), strict=True):
        assert torch.equal(hidden([ids])[0], beside)


def test_a_cache_that_could_not_grow_is_as_it_was(
    models: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    proven = FloatFolder(models(LLAMA))
    network = Network(proven, CPU, 60)
    (ids,) = prompts(proven.model.vocab_size, (30,))
    network([Piece(0, 0, 30)], ids)
    room = network.cache.room
    monkeypatch.setattr(network.cache, "room", lambda *of: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        network([Piece(1, 0, 30)], ids)
    monkeypatch.setattr(network.cache, "room", room)
    one, other = network([Piece(1, 0, 30), Piece(0, 0, 30)], [*ids, *ids]).chunk(2)
    assert torch.equal(one, other)


def test_a_request_in_a_crowd_is_answered_as_alone(models: Callable[[str], Path], tmp_path: Path) -> None:
    converted(models(LLAMA), tmp_path / "ck", quant="W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", kv_cache="INT8")
    proven = opened(tmp_path / "ck")
    asked = prompts(proven.model.vocab_size, range(1, 24))
    together = answered(proven, asked, most=8)
    for n, ids in enumerate(asked):
        (alone,) = answered(proven, [ids])
        same = min(len(alone.ids), len(together[n].ids))
        assert alone.ids[:same] == together[n].ids[:same]


def test_who_leaves_makes_room(models: Callable[[str], Path], tmp_path: Path) -> None:
    """Cancelled, ended by an end token, by a stop word: the others go on as if nothing had been."""
    converted(models(LLAMA), tmp_path / "ck", quant="W8A16")
    proven = opened(tmp_path / "ck")
    asked = prompts(proven.model.vocab_size)
    plain = [answer.ids for answer in answered(proven, asked, tokens=10)]
    network = Network(proven, CPU, 40)
    flight = Flight(network, 4)
    gone = flight.add(Request(asked[0], 10))
    ended = flight.add(Request(asked[1], 10, ends=(plain[1][2],)))
    stopped = flight.add(Request(asked[2], 10, stop=((plain[2][1], plain[2][2]),)))
    stays = flight.add(Request(asked[3], 7))
    waits = flight.add(Request(asked[4], 6))
    never = flight.add(Request(asked[0], 5))
    flight.step()
    flight.cancel(gone)
    flight.cancel(never)
    while flight.busy:
        flight.step()
    assert (gone.reason, len(gone.ids), never.reason, never.ids) == ("cancelled", 1, "cancelled", [])
    first = plain[1].index(plain[1][2])
    assert (ended.reason, ended.ids) == ("end", plain[1][:first])
    assert stopped.reason == "stop"
    assert stopped.ids == plain[2][: len(stopped.ids)]
    assert stopped.ids[-2:] == [plain[2][1], plain[2][2]]
    assert (stays.reason, stays.ids) == ("length", plain[3][:7])
    assert waits.ids == plain[4][:6]


def test_values_beyond_the_dtype_end_one_answer(models: Callable[[str], Path], tmp_path: Path) -> None:
    """An answer whose logits are no numbers ends; those beside it are answered as alone."""
    folder = models(LLAMA)
    proven = FloatFolder(folder)
    embedding = proven.embedding()

    class Broken(FloatFolder):
        def embedding(self) -> Embedding:
            tokens = embedding.tokens.clone()
            tokens[7] = float("nan")
            return replace(embedding, tokens=tokens)

    good, bad = [3, 5, 9], [3, 7, 9]
    (alone,) = answered(proven, [good])
    broken, beside = answered(Broken(folder), [bad, good])
    assert (broken.reason, broken.ids) == ("beyond", [])
    same = min(len(alone.ids), len(beside.ids))
    assert same > 3
    assert alone.ids[:same] == beside.ids[:same]


def test_more_tokens_than_positions(models: Callable[[str], Path]) -> None:
    proven = FloatFolder(models(LLAMA))
    with pytest.raises(InputError, match="positions of the model"):
        Network(proven, CPU, proven.model.longest + 1)
