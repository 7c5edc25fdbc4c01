"""The Python models as they lie in a generated repository, run as Triton runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginesmith.build.triton.generate import generate
from enginesmith.build.triton.options import TritonOptions
from enginesmith.convert.tokens.tokenization import (
    IncrementalDetokenizer,
    decode,
    decode_piece,
    encode,
    spellings,
    stack,
    word_list,
)

from .triton_backend import Brain16, Engine, InferenceResponse, Server, asked, echo, texts, tokens
from .triton_folders import KINDS, VOCABULARY, varied_strings, write_engine, write_tokenizer

STREAM = {"stream": np.array([[True]])}
STRINGS = varied_strings(1000)


def serve(
    folder: Path,
    engine: Engine = echo,
    kind: str = "sentencepiece",
    chat: bool = False,
    bare: bool = False,
    **options: Any,
) -> Server:
    """A repository of its own, served."""
    engine_dir, tokenizer_dir = write_engine(folder / "engine"), folder / "tokenizer"
    write_tokenizer(tokenizer_dir, kind, chat, bare)
    options = {"decoupled": True, **options}
    return Server(
        generate(TritonOptions(str(engine_dir), str(tokenizer_dir), str(folder / "repository"), **options)), engine
    )


@pytest.fixture(scope="module", params=KINDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """Decoupled, with an engine that echoes the prompt, once for each kind of tokenizer."""
    return serve(tmp_path_factory.mktemp("served"), kind=request.param)


def answers(responses: list[Any]) -> list[str]:
    """The first beam's text of each response."""
    assert not any(isinstance(response, InferenceResponse) for response in responses), error_of(responses)
    return [response["text_output"].flat[0].decode() for response in responses]


def error_of(responses: list[Any]) -> str:
    [error] = [response for response in responses if isinstance(response, InferenceResponse)]
    return error.error().message()


def row_of(responses: list[Any], row: int) -> str:
    return "".join(answers([response for response in responses if response["batch_index"][0, 0] == row]))


def test_a_thousand_strings_come_back_from_the_ensemble(server: Server) -> None:
    for first in range(0, len(STRINGS), 8):
        rows = STRINGS[first : first + 8]
        assert answers(server.call("ensemble", asked(*rows))) == rows


def test_a_thousand_strings_stream_back_token_by_token(server: Server) -> None:
    for text in STRINGS:
        responses = server.call("tensorrt_llm_bls", asked(text, **STREAM))
        assert "".join(answers(responses)) == text


def test_streamed_rows_do_not_mix(server: Server) -> None:
    rows = STRINGS[:8]
    streams = {"stream": np.ones((8, 1), bool)}
    responses = server.call("tensorrt_llm_bls", asked(*rows, **streams))
    assert [row_of(responses, row) for row in range(8)] == rows


def test_bls_without_streaming(server: Server) -> None:
    assert answers(server.call("tensorrt_llm_bls", asked(*STRINGS[:8]))) == STRINGS[:8]


def test_the_ensemble_streams_what_can_be_known_of_single_tokens(tmp_path: Path) -> None:
    served = serve(tmp_path)
    text = "hello the stop hello\n\nthe"
    assert "".join(answers(served.call("ensemble", asked(text, **STREAM)))) == " " + text
    assert "".join(answers(served.call("ensemble", asked("\u4e16", **STREAM)))) == " \ufffd\ufffd\ufffd"


@pytest.mark.parametrize("kind", KINDS)
def test_incremental_detokenizer_in_pieces_of_any_size(kind: str) -> None:
    tokenizer, draw = KINDS[kind](), np.random.default_rng(0)
    for text in STRINGS[:300]:
        ids = encode(tokenizer, text)
        cuts = sorted(draw.integers(0, len(ids) + 1, 3))
        detokenizer = IncrementalDetokenizer(tokenizer)
        pieces = [detokenizer.push(ids[a:b]) for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
        assert "".join(pieces) + detokenizer.finish() == text


@pytest.mark.parametrize("kind", KINDS)
def test_incomplete_characters_wait_and_are_flushed(kind: str) -> None:
    tokenizer = KINDS[kind]()
    ids = encode(tokenizer, "a\U0001d54f")
    detokenizer = IncrementalDetokenizer(tokenizer)
    pieces = [detokenizer.push([i]) for i in ids]
    assert "".join(pieces) == "a\U0001d54f"
    assert not any("\ufffd" in piece for piece in pieces)
    assert [detokenizer.push([i]) for i in ids[:-1]][-1] == ""
    assert set(detokenizer.finish().lstrip("a")) <= {"\ufffd", "\U0001d54f"}
    cut = IncrementalDetokenizer(tokenizer)
    assert "".join(cut.push([i]) for i in ids[:-1]) == "a"
    assert set(cut.finish()) == {"\ufffd"}


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_leave_no_gap(kind: str) -> None:
    tokenizer = KINDS[kind]()
    end = tokenizer.eos_token_id
    ids = [*encode(tokenizer, "the"), end, *encode(tokenizer, " stop"), end, end]
    for skip in (True, False):
        detokenizer = IncrementalDetokenizer(tokenizer, skip)
        joined = "".join(detokenizer.push([i]) for i in ids) + detokenizer.finish()
        assert joined == decode(tokenizer, ids, skip)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["the quick", "\n", "   ", "\u4e16"])
def test_the_detokenizer_keeps_only_its_window(kind: str, text: str) -> None:
    tokenizer = KINDS[kind]()
    detokenizer = IncrementalDetokenizer(tokenizer)
    for i in encode(tokenizer, text * 500):
        detokenizer.push([i])
    assert len(detokenizer.window) < 20


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_keep_their_leading_space(kind: str) -> None:
    tokenizer = KINDS[kind]()
    ids = encode(tokenizer, "the stop")
    assert "".join(decode_piece(tokenizer, [i]) for i in ids).strip() == "the stop"


def test_stop_words_match_inside_and_after_spaces() -> None:
    tokenizer = KINDS["sentencepiece"]()
    as_tokens = [tokenizer.convert_ids_to_tokens(ids) for ids in spellings(tokenizer, "stop")]
    assert as_tokens == [["\u2581stop"], ["stop"]]
    assert spellings(tokenizer, "\n\n") == [tokenizer.convert_tokens_to_ids(["<0x0A>", "<0x0A>"])]
    assert spellings(tokenizer, "</s>") == [[tokenizer.eos_token_id]]
    assert spellings(tokenizer, "") == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("word", ["stop", "\n\n", "!", "a", "\u4e16\u754c", "\U0001f600", "the stop", "):"])
@pytest.mark.parametrize("before", ["", "x", "the ", "\u4f60", "\n"])
def test_a_spelling_is_found_in_any_text_with_the_word(kind: str, word: str, before: str) -> None:
    tokenizer = KINDS[kind]()
    text = encode(tokenizer, before + word)
    assert any(text[len(text) - len(ids) :] == ids for ids in spellings(tokenizer, word))


def test_word_lists_are_flat_ids_over_cumulative_ends() -> None:
    assert word_list([[5, 6], [7]]).tolist() == [[5, 6, 7], [2, 3, -1]]
    assert word_list([]).shape == (2, 0)
    both = stack([word_list([[5, 6], [7]]), word_list([[8]])], [0, -1])
    assert both.tolist() == [[[5, 6, 7], [2, 3, -1]], [[8, 0, 0], [1, -1, -1]]]
    assert stack([np.array([1], np.int32), np.array([1, 2], np.int32)], [9]).tolist() == [[1, 9], [1, 2]]


def test_rows_are_padded_on_the_right_and_measured(server: Server) -> None:
    [prepared] = server.call(
        "preprocessing", {"QUERY": texts("the", "the stop hello"), "REQUEST_OUTPUT_LEN": lengths(2)}
    )
    ids, sizes = prepared["INPUT_ID"], prepared["REQUEST_INPUT_LEN"]
    assert ids.shape[1] == sizes.max()
    tokenizer = server.models["preprocessing"].tokenizer
    for row, size, text in zip(ids, sizes[:, 0], ["the", "the stop hello"], strict=True):
        assert row[:size].tolist() == encode(tokenizer, text, True)
        assert set(row[size:]) <= {server.models["preprocessing"].pad_id}
    assert prepared["STOP_WORDS_IDS"].shape == (2, 2, 0)
    assert prepared["EMBEDDING_BIAS"].shape == (2, 0)
    assert prepared["OUT_END_ID"].tolist() == [[tokenizer.eos_token_id]] * 2
    assert "OUT_PROMPT_TABLE_EXTRA_IDS" not in prepared


def lengths(rows: int, value: int = 5) -> np.ndarray:
    return np.full((rows, 1), value, np.int32)


def test_optional_inputs_reach_the_engine(tmp_path: Path) -> None:
    seen: dict[str, np.ndarray] = {}

    def engine(inputs: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        seen.clear()
        seen.update(inputs)
        return echo(inputs)

    served = serve(tmp_path, engine)
    more = {
        "end_id": np.array([[7]], np.int32),
        "pad_id": np.array([[8]], np.int32),
        "top_k": np.array([[3]], np.int32),
        "random_seed": np.array([[2**40]], np.uint64),
        "stop_words": np.array([[b"stop", b"\n\n", b""]], np.object_),
        "embedding_bias_words": np.array([[b"hello"]], np.object_),
        "embedding_bias_weights": np.array([[-2.5]], np.float32),
        "prompt_table_extra_id": np.array([[9]], np.uint64),
        "prompt_embedding_table": np.zeros((1, 2, 3), np.float16).view(Brain16),
    }
    for model in ("ensemble", "tensorrt_llm_bls"):
        assert answers(served.call(model, asked("the", **more))) == ["the"]
        assert (seen["end_id"].item(), seen["pad_id"].item(), seen["runtime_top_k"].item()) == (7, 8, 3)
        assert seen["random_seed"].item() == 2**40
        words, ends = seen["stop_words_list"][0]
        tokenizer = served.models["preprocessing"].tokenizer
        assert [*map(tokenizer.convert_ids_to_tokens, words)] == ["\u2581stop", "stop", "<0x0A>", "<0x0A>"]
        assert ends.tolist() == [1, 2, 4, -1]
        bias = seen["embedding_bias"][0]
        assert bias.shape == (VOCABULARY,)
        assert {*map(tokenizer.convert_ids_to_tokens, np.flatnonzero(bias))} == {"\u2581hello", "hello"}
        assert set(bias[bias != 0]) == {-2.5}
        assert seen["prompt_table_extra_ids"].shape == seen["input_ids"].shape
        assert seen["prompt_embedding_table"].shape == (1, 2, 3)
        assert seen["decoder_input_ids"].tolist() == [[8]]


def test_bad_requests_fail_alone(server: Server) -> None:
    good = {"QUERY": texts("the"), "REQUEST_OUTPUT_LEN": lengths(1)}
    bad = [
        ({**good, "QUERY": texts(b"\xff\xfe")}, "QUERY is not UTF-8 text"),
        ({**good, "REQUEST_OUTPUT_LEN": lengths(1, 0)}, "max_tokens is 0"),
        ({**good, "REQUEST_OUTPUT_LEN": lengths(2)}, "REQUEST_OUTPUT_LEN has shape [2, 1]"),
        ({**good, "STOP_WORDS_DICT": np.array([[b"\xc3"]], np.object_)}, "STOP_WORDS_DICT is not UTF-8"),
        ({**good, "EMBEDDING_BIAS_WORDS": texts("the")}, "one weight for each word"),
        ({**good, "EMBEDDING_BIAS_WEIGHTS": np.ones((1, 1), np.float32)}, "one weight for each word"),
    ]
    requests = [request for pair in ((good, case) for case, _ in bad) for request in pair]
    responses = server.calls("preprocessing", requests)
    for i, (_, words) in enumerate(bad):
        assert responses[2 * i][0]["INPUT_ID"].size
        assert words in error_of(responses[2 * i + 1])


def test_an_error_in_a_chain_reaches_the_client(server: Server) -> None:
    for model in ("ensemble", "tensorrt_llm_bls"):
        assert "max_tokens is 0" in error_of(server.call(model, asked("the", max_tokens=0)))


def test_an_engine_error_reaches_the_client(tmp_path: Path) -> None:
    served = serve(tmp_path, decoupled=False, bls=True)
    for model in ("ensemble", "tensorrt_llm_bls"):
        assert "decoupled policy" in error_of(served.call(model, asked("the", "stop")))


def test_empty_prompts(tmp_path: Path) -> None:
    served = serve(tmp_path / "a", add_special_tokens=False)
    [prepared] = served.call("preprocessing", {"QUERY": texts(""), "REQUEST_OUTPUT_LEN": lengths(1)})
    assert prepared["INPUT_ID"].tolist() == [[served.models["preprocessing"].tokenizer.bos_token_id]]
    served = serve(tmp_path / "b", kind="byte_level")
    assert "no BOS token" in error_of(served.call("ensemble", asked("")))
    assert answers(served.call("ensemble", asked(" "))) == [" "]


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_without_special_tokens(kind: str, tmp_path: Path) -> None:
    served = serve(tmp_path, kind=kind, bare=True)
    preprocessing = served.models["preprocessing"]
    assert [getattr(preprocessing.tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")] == [None] * 3
    rows = ["stop hello", "the stop hello"]
    [prepared] = served.call("preprocessing", {"QUERY": texts(*rows), "REQUEST_OUTPUT_LEN": lengths(2)})
    assert prepared["OUT_END_ID"].tolist() == [[-1], [-1]]
    assert prepared["OUT_PAD_ID"].tolist() == [[0], [0]]
    assert answers(served.call("ensemble", asked(*rows))) == rows
    assert "".join(answers(served.call("tensorrt_llm_bls", asked(rows[1], **STREAM)))) == rows[1]


@pytest.mark.parametrize(
    ("spelling", "on"), [("True", True), ("1", True), ("yes", True), ("False", False), ("0", False)]
)
def test_switches_as_nvidias_templates_spell_them(spelling: str, on: bool, tmp_path: Path) -> None:
    serve(tmp_path)
    config = tmp_path / "repository" / "preprocessing" / "config.pbtxt"
    head, name, rest = config.read_text().partition('key: "add_special_tokens"')
    config.write_text(head + name + rest.replace('"true"', f'"{spelling}"', 1))
    assert Server(tmp_path / "repository", echo).models["preprocessing"].add_special_tokens is on


CONVERSATION = '[{"role": "system", "content": "be \\u00e9"}, {"role": "user", "content": "hello"}]'


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("hello", "[user]hello\n[bot]"),
        ("[1] hello", "[user][1] hello\n[bot]"),
        ("[]", "[user][]\n[bot]"),
        ('["a"]', '[user]["a"]\n[bot]'),
        ("[" * 5000, "[user]" + "[" * 5000 + "\n[bot]"),
        (CONVERSATION, "[system]be \u00e9\n[user]hello\n[bot]"),
    ],
)
def test_chat(text: str, rendered: str, tmp_path: Path) -> None:
    served = serve(tmp_path, chat=True, **{"decoupled": False})
    preprocessing = served.models["preprocessing"]
    preprocessing.chat, preprocessing.add_special_tokens = True, False
    [prepared] = served.call("preprocessing", {"QUERY": texts(text), "REQUEST_OUTPUT_LEN": lengths(1)})
    assert decode(preprocessing.tokenizer, prepared["INPUT_ID"][0], False) == rendered


def test_chat_is_set_by_the_generator(tmp_path: Path) -> None:
    write_engine(tmp_path / "engine")
    write_tokenizer(tmp_path / "tokenizer", chat=True)
    folders = [str(tmp_path / name) for name in ("engine", "tokenizer", "repository")]
    served = Server(generate(TritonOptions(*folders, chat=True)), echo)
    assert answers(served.call("ensemble", asked("hello"))) == ["[user]hello\n[bot]"]
    for text in ('[{"role": "user"}]', '[{"role": 1, "content": "a"}]', '[{"role": "user", "content": ["a"]}]'):
        assert "both strings" in error_of(served.call("ensemble", asked(text)))


def test_a_template_that_refuses(tmp_path: Path) -> None:
    served = serve(tmp_path, chat=True)
    preprocessing = served.models["preprocessing"]
    preprocessing.chat = True
    preprocessing.tokenizer.chat_template = "{{ raise_exception('system first') }}"
    assert "the chat template refuses it (system first)" in error_of(served.call("ensemble", asked("hello")))


def test_beams_come_whole(tmp_path: Path) -> None:
    def engine(inputs: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        ids = inputs["input_ids"][0]
        return [tokens(ids[:1], ids[:2]), tokens(ids[:3], ids)]

    served = serve(tmp_path, engine, kind="byte_level")
    responses = served.call("tensorrt_llm_bls", asked("1234", **STREAM))
    assert [[text.decode() for text in response["text_output"][0]] for response in responses] == [
        ["1", "12"],
        ["123", "1234"],
    ]
    [first, _] = served.call("ensemble", asked("1234"))
    assert [text.decode() for text in first["text_output"][0]] == ["1", "12"]


def test_tokens_outside_the_tokenizer_are_no_text(tmp_path: Path) -> None:
    def engine(inputs: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        return [tokens([*inputs["input_ids"][0], VOCABULARY - 1, VOCABULARY + 99]), tokens([])]

    served = serve(tmp_path, engine)
    for model in ("ensemble", "tensorrt_llm_bls"):
        assert answers(served.call(model, asked("the stop"))) == ["the stop", ""]


def test_a_client_that_left_stops_the_engine(tmp_path: Path) -> None:
    served = serve(tmp_path)
    [sent] = served.calls("tensorrt_llm_bls", [asked("the stop hello the", **STREAM)], cancelled_after=2)
    assert (len(sent), served.stopped) == (2, 1)


def test_without_decoupled(tmp_path: Path) -> None:
    served = serve(tmp_path, decoupled=False, bls=True)
    for model in ("ensemble", "tensorrt_llm_bls"):
        assert answers(served.call(model, asked("the stop"))) == ["the stop"]
    assert "stream needs a decoupled repository" in error_of(served.call("tensorrt_llm_bls", asked("the", **STREAM)))
    served.engine = lambda _: [{}]
    assert "0 answers to one request" in error_of(served.call("tensorrt_llm_bls", asked("the stop")))


def test_special_tokens_can_be_kept(tmp_path: Path) -> None:
    served = serve(tmp_path, skip_special_tokens=False)
    assert answers(served.call("ensemble", asked("the"))) == ["<s> the"]
    assert "".join(answers(served.call("tensorrt_llm_bls", asked("the", **STREAM)))) == "<s> the"


def test_a_real_tokenizer(real_tokenizer: Path, tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "engine", vocab_size=49152)
    folders = (str(engine), str(real_tokenizer), str(tmp_path / "repository"))
    served = Server(generate(TritonOptions(*folders, decoupled=True)), echo)
    for text in STRINGS[:200]:
        assert answers(served.call("ensemble", asked(text))) == [text]
        assert "".join(answers(served.call("tensorrt_llm_bls", asked(text, **STREAM)))) == text
    tokenizer = served.models["preprocessing"].tokenizer
    as_tokens = [[tokenizer.convert_ids_to_tokens(i) for i in ids] for ids in spellings(tokenizer, "stop")]
    assert as_tokens == [["stop"], ["\u0120stop"]]
    assert spellings(tokenizer, "<|im_end|>") == [[tokenizer.library.token_to_id("<|im_end|>")]]
