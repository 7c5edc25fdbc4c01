"""The harness's tasks: figures and log-likelihoods as its own Hugging Face model gives them, gates, windows."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import enginesmith as es
from enginesmith.convert.evaluate.options import EvaluateOptions
from enginesmith.convert.generate.job import Speaker
from enginesmith.convert.job.conversion import convert
from enginesmith.convert.prove.verify import measure

from .command import run
from .evaluating import RECORDS, TASKS, assert_same, of_transformers, write_speaker, write_task, write_tasks

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'enginesmith[evaluate]'")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from enginesmith.convert.evaluate.model import Answering

ALL = tuple(TASKS)


@pytest.fixture(scope="module", params=["byte_level", "sentencepiece"])
def speaker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_speaker(tmp_path_factory.mktemp("speaker") / "hf", request.param, chat=True)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks") / "tasks")


def options(tasks: Path, *names: str, **more: Any) -> EvaluateOptions:
    return EvaluateOptions(names or ALL, include_path=str(tasks), **more)


def answering(folder: Path, **more: Any) -> Answering:
    how = EvaluateOptions(("any",), **more)
    return Answering(Speaker(folder, None), how, lambda what, done, total: None)


def asked(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]


@pytest.mark.parametrize("more", [{}, {"max_length": 20}, {"add_bos_token": False}], ids=["plain", "windows", "no_bos"])
def test_as_transformers(more: dict[str, Any], speaker: Path, tasks: Path) -> None:
    how = options(tasks, **more)
    assert_same(es.evaluate(speaker, how), of_transformers(speaker, how, **more))


def test_examples_and_chats_as_transformers(speaker: Path, tasks: Path) -> None:
    write_task(tasks, "answers_taught", "answers", fewshot_split="test", description="say")
    how = options(tasks, "answers_taught", num_fewshot=1, apply_chat_template=True, limit=3)
    found = es.evaluate(speaker, how, reference=speaker)
    assert_same(found, of_transformers(speaker, how))
    assert "[bot]" in found.samples["answers_taught"][0]["arguments"][0][0]
    assert found.samples == found.reference_samples


def test_an_unquantized_checkpoint_as_transformers(tasks: Path, tmp_path: Path) -> None:
    speaker = write_speaker(tmp_path / "hf", torch_dtype="float16")
    convert(es.ConvertOptions(str(speaker), str(tmp_path / "ck"), tp_size=2, dtype="float16"))
    how = options(tasks, dtype="float32")
    assert_same(es.evaluate(tmp_path / "ck", how, tokenizer_dir=speaker), of_transformers(speaker, how))


def test_a_quantized_folder_of_hugging_faces(tasks: Path, tmp_path: Path) -> None:
    speaker = write_speaker(tmp_path / "hf")
    convert(es.ConvertOptions(str(speaker), str(tmp_path / "ct"), quant="W8A16", target=("compressed-tensors",)))
    made = es.evaluate(tmp_path / "ct", options(tasks), reference=speaker)
    wanted = [one.reference for one in made.figures if one.task == "texts"]
    assert [one.value for one in made.figures if one.task == "texts"] == pytest.approx(wanted, rel=0.02)


def test_batches_change_nothing(speaker: Path, tasks: Path) -> None:
    one, many = (es.evaluate(speaker, options(tasks, batch_size=size)) for size in (1, None))
    assert [f.value for f in one.figures] == pytest.approx([f.value for f in many.figures], rel=1e-5)
    assert [s["resps"] for s in one.samples["answers"]] == [s["resps"] for s in many.samples["answers"]]


def test_texts_without_context(speaker: Path) -> None:
    pairs = [("", "hello the"), ("the ", "hello"), ("hello", " <s>the"), ("<s>the", " fox")]
    ours = answering(speaker).loglikelihood(asked("loglikelihood", *pairs))
    theirs = HFLM(pretrained=str(speaker), device="cpu", dtype="float32").loglikelihood(
        asked("loglikelihood", *pairs), disable_tqdm=True
    )
    assert [log_prob for log_prob, _ in ours] == pytest.approx([log_prob for log_prob, _ in theirs], abs=1e-3)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


@pytest.mark.parametrize("quant", [None, "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", "W4A16"])
def test_perplexity_is_verifys(quant: str | None, tasks: Path, tmp_path: Path) -> None:
    """Windows of a text are verify's sequences: each begins with the last token of the one before, the first with the
    token before every text."""
    speaker, length = write_speaker(tmp_path / "hf", intermediate_size=128), 16
    convert(es.ConvertOptions(str(speaker), str(tmp_path / "ck"), quant=quant, dtype="float16", kv_cache="INT8",
                              calib=str(tmp_path / "ids.safetensors"), calib_size=8, calib_seq_len=24))  # fmt: skip
    lm = Answering(Speaker(tmp_path / "ck", speaker), EvaluateOptions(("any",), max_length=length), print)
    ids = lm.tok_encode("the quick brown fox stops here, def f(x): " * 40)[: 4 * length]
    text = lm.tokenizer.decode(ids)
    assert lm.tok_encode(text) == ids
    behind = [lm.prefix_token_id, *ids]
    rows = torch.tensor([behind[start : start + length + 1] for start in range(0, len(ids), length)])
    save_file({"input_ids": rows}, tmp_path / "rows.safetensors")
    accuracy = measure(lm.speaker.proven, speaker, str(tmp_path / "rows.safetensors"), len(rows), length + 1)
    wanted = accuracy.perplexity
    (direct,) = lm.loglikelihood_rolling(asked("loglikelihood_rolling", (text,)))
    assert math.exp(-direct / len(ids)) == pytest.approx(wanted, rel=1e-4)
    (tasks / "one_text.jsonl").write_text(json.dumps({"text": text}))
    write_task(tasks, "one_text", "texts", dataset_kwargs={"data_files": {"test": "one_text.jsonl"}})
    made = es.evaluate(tmp_path / "ck", options(tasks, "one_text", max_length=length), reference=speaker)
    by_bytes = {one.metric: one for one in made.figures}["byte_perplexity"]
    a_byte = len(text.encode()) / len(ids)
    assert by_bytes.value**a_byte == pytest.approx(wanted, rel=1e-4)
    assert by_bytes.reference is not None
    assert by_bytes.reference**a_byte == pytest.approx(accuracy.reference_perplexity, rel=1e-4)


def test_answers_end_where_they_should(speaker: Path) -> None:
    lm = answering(speaker)
    (whole,) = lm.generate_until(asked("generate_until", ("hello", {"max_gen_toks": 20})))
    word = whole[3:5]
    how: dict[str, Any] = {"until": word, "max_gen_toks": 20}
    (cut,) = lm.generate_until(asked("generate_until", ("hello", how)))
    assert word not in cut
    assert whole.startswith(cut + word)
    (short,) = lm.generate_until(asked("generate_until", ("hello", {"max_new_tokens": 2})))
    assert len(short) < len(whole)
    assert lm.generate_until(asked("generate_until", ("hello " * 200, how)))


def test_answers_are_drawn(speaker: Path) -> None:
    how = {"do_sample": True, "temperature": 1.5, "max_gen_toks": 20}
    first, again, other = (
        answering(speaker, seed=seed).generate_until(asked("generate_until", ("hello", how), ("hello", how)))
        for seed in (None, None, 7)
    )
    assert first == again != other
    assert first[0] != first[1]  # repeats of a question are draws of their own
    greedy = [{**how, "do_sample": False}, {"max_gen_toks": 20}, {**how, "temperature": 0.0}]
    said = answering(speaker).generate_until(asked("generate_until", *(("hello", one) for one in greedy)))
    assert len(set(said)) == 1


@pytest.mark.parametrize(
    ("how", "said"),
    [({"num_beams": 4}, "num_beams is not known here"), ({"max_gen_toks": 64}, "max_gen_toks is 64; 1 to 63")],
)
def test_what_an_answer_cannot_be(how: dict[str, Any], said: str, speaker: Path) -> None:
    with pytest.raises(es.InputError, match=said):
        answering(speaker).generate_until(asked("generate_until", ("hello", how)))


def test_the_command(tasks: Path, tmp_path: Path) -> None:
    speaker = write_speaker(tmp_path / "hf")
    words = ["evaluate", speaker, "--tasks", "choices,texts", "--tasks", "answers", "--include_path", tasks]
    shown = run(*words, "--reference", speaker, "--max_drop", 0, "--output", tmp_path / "out.json").stdout
    assert "acc_norm *" in shown
    assert "+0.00 points" in shown
    told = json.loads((tmp_path / "out.json").read_text())
    assert len(told["samples"]["choices"]) == len(RECORDS["choices"])
    alone = json.loads(run(*words, "--json", "--limit", 2).stdout)
    assert [one["task"] for one in alone["figures"] if one["main"]] == ["choices", "texts", "answers"]
    assert {one["documents"] for one in alone["figures"]} == {2}
    (tmp_path / "folder").mkdir()
    for taken in (tmp_path / "folder", tmp_path / "ids.safetensors"):
        assert "exists and is no .json file" in run(*words, "--output", taken, expect=2).stderr
    assert "lies in" in run(*words, "--output", speaker / "out.json", expect=2).stderr
    assert "needs --reference" in run(*words, "--max_drop", 1, expect=2).stderr
    assert "--tasks: choice is none; did you mean choices?" in run(
        "evaluate", speaker, "--tasks", "choice", "--include_path", tasks, expect=2
    ).stderr.replace("\n", " ")


def test_a_gate(tasks: Path, tmp_path: Path) -> None:
    """Of two models one is the worse, and fails beside the other."""
    one, other = (write_speaker(tmp_path / name, rms_norm_eps=eps) for name, eps in (("one", 1e-5), ("other", 1.0)))
    task = ["--tasks", "texts", "--include_path", tasks, "--json"]
    values = [json.loads(run("evaluate", folder, *task).stdout)["figures"][0]["value"] for folder in (one, other)]
    better, worse = (one, other) if values[0] < values[1] else (other, one)
    run("evaluate", better, *task, "--reference", worse, "--max_drop", 0)
    run("evaluate", worse, *task, "--reference", better, "--max_drop", 1000)
    verdict = json.loads(run("evaluate", worse, *task, "--reference", better, "--max_drop", 0, expect=1).stdout)
    assert not verdict["ok"]
    (said,) = verdict["failures"]
    assert said.startswith("texts: word_perplexity is")
    assert "%, more than --max_drop 0" in said


def test_without_the_harness(tmp_path: Path) -> None:
    speaker = write_speaker(tmp_path / "hf")
    code = "import sys; sys.modules['lm_eval'] = None; from enginesmith.cli.main import main; main()"
    command = [sys.executable, "-c", code, "evaluate", str(speaker), "--tasks", "any"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'enginesmith[evaluate]'" in done.stderr


def test_the_page_of_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its task files as it names them, its command."""
    page = (Path(__file__).parent.parent / "docs" / "evaluating.md").read_text()
    files = re.findall(r"`(tasks/\w+\.\w+)`:\n\n```\w+\n(.*?)```", page, re.DOTALL)
    assert len(files) == 4
    monkeypatch.chdir(tmp_path)
    Path("tasks").mkdir()
    for name, content in files:
        Path(name).write_text(content)
    write_speaker(tmp_path / "model")
    (command,) = re.findall(r"\$ enginesmith (evaluate .*)", page)
    shown = run(*command.replace("out/ckpt", "model").split()).stdout
    assert "exact_match (number) *" in shown
    assert "acc_norm *" in shown
