"""Task files are anybody's: no code of theirs runs, nothing is fetched, no file elsewhere is read, unless asked for."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import enginesmith as es
from enginesmith.convert.evaluate.files import TaskFolder
from enginesmith.convert.evaluate.options import EvaluateOptions

from .command import run
from .evaluating import EACH, RECORDS, write_speaker, write_task, write_tasks

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'enginesmith[evaluate]'")

TOUCH = "from pathlib import Path\nPath({!r}).touch()\ndef text(doc): return 'question: ' + doc['question']\n"
OTHERS = {"data_files": {"test": "choices.jsonl"}}


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_speaker(tmp_path_factory.mktemp("speaker") / "hf")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        pytest.fail("something was to be fetched")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


def with_code(folder: Path) -> Path:
    """A task whose questions a function writes, which leaves a mark where it is imported."""
    file = write_task(folder, "coded", "choices", doc_to_text=None)
    file.write_text(file.read_text() + "doc_to_text: !function words.text\n")
    (folder / "words.py").write_text(TOUCH.format(str(folder / "ran")))
    return file


def text(old: str, new: str) -> Callable[[Path], None]:
    """What exchanges a text in a task file."""
    return lambda file: file.write_text(file.read_text().replace(old, new)) and None  # type: ignore[return-value]


def key(line: str) -> Callable[[Path], None]:
    """What adds a line to a task file."""
    return lambda file: file.write_text(file.read_text() + line + "\n") and None  # type: ignore[return-value]


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a function": (key("process_docs: !function os.system"), "process_docs is code, !function 'os.system'"),
    "a function deep inside": (key("fewshot_config: {samples: !function a.b}"), "fewshot_config is code"),
    "an object of Python's": (key("x: !!python/object/apply:os.system [ls]"), "cannot be read"),
    "a class": (key("class: os.system"), "class makes the harness run code"),
    "code that the model writes": (key("unsafe_code: true"), "unsafe_code makes the harness run code"),
    "a prompt file": (key("use_prompt: ../secret.yaml:x"), "use_prompt makes the harness"),
    "a program as metric": (text("metric: acc\n", "metric: ./evil\n"), "metric './evil' is not the harness's own"),
    "a metric to be fetched": (text("metric: acc\n", "metric: acc\n  hf_evaluate: true\n"), "metric 'acc' is not the"),
    "pickled data": (text("dataset_path: json", "dataset_path: pandas"), "dataset_path is 'pandas'; json, parquet"),
    "a folder": (text("dataset_path: json", "dataset_path: ./data"), "dataset_path is './data'"),
    "another machine": (text("choices.jsonl", "https://example.com/a.jsonl"), "no such file beside it"),
    "a file elsewhere": (text("choices.jsonl", "../secret.jsonl"), "lies outside of"),
    "a link elsewhere": (text("choices.jsonl", "link.jsonl"), "lies outside of"),
    "an included file elsewhere": (key("include: ../secret.yaml"), "lies outside of"),
    "a file that includes itself": (key("include: choices.yaml"), "includes itself"),
    "files of a data set of the Hub": (text("dataset_path: json", "dataset_path: owner/name"), "dataset_kwargs is"),
    "another option of a loader": (text("data_files:", "data_dir: x\n  data_files:"), "data_files alone is needed"),
    "a name that is none": (text("task: choices", "task: 5"), "task is 5; a name is needed"),
    "no YAML": (key("x: [1"), "cannot be read"),
    "no such file": (text("choices.jsonl", "other.jsonl"), "'other.jsonl': no such file beside it"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "said"), HOSTILE.values(), ids=HOSTILE)
def test_what_a_file_may_not_say(change: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    (tmp_path / "secret.jsonl").write_text("{}\n")
    (tmp_path / "secret.yaml").write_text("prompts: {x: y}\n")
    file = write_task(tmp_path / "tasks", "choices", "choices")
    (tmp_path / "tasks" / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    change(file)
    with pytest.raises(es.InputError) as error:
        list(TaskFolder(tmp_path / "tasks").configs())
    assert said in str(error.value)
    assert str(error.value).isprintable()


def test_what_a_group_may_not_say_of_its_tasks(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path / "tasks")
    for own in ("process_docs: !function os.system", "dataset_kwargs: {data_files: /etc/passwd}", "class: x"):
        (folder / "group.yaml").write_text(
            f"group: all\ntask:\n  - group: inner\n    task:\n    - task: choices\n      {own}\n"
        )
        with pytest.raises(es.InputError, match=r"group\.yaml"):
            list(TaskFolder(folder).configs())


def test_a_task_file_elsewhere(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path / "tasks")
    (folder / "choices.yaml").rename(tmp_path / "choices.yaml")
    (folder / "choices.yaml").symlink_to(tmp_path / "choices.yaml")
    with pytest.raises(es.InputError, match="lies outside of"):
        list(TaskFolder(folder).configs())


def test_no_metric_is_looked_for_where_the_command_runs(
    speaker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task of the harness's own loads one, and the library would run a file of that name."""
    (tmp_path / "code_eval").mkdir()
    (tmp_path / "code_eval" / "code_eval.py").write_text(TOUCH.format(str(tmp_path / "ran")))
    monkeypatch.chdir(tmp_path)
    assert "'code_eval' is a program" in run("evaluate", speaker, "--tasks", "humaneval", expect=2).stderr
    assert not (tmp_path / "ran").exists()


def test_code_runs_only_when_asked_for(speaker: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    with_code(folder)
    words = ["evaluate", speaker, "--tasks", "coded", "--include_path", folder, "--json"]
    assert "--allow_task_code permits it" in run(*words, expect=2).stderr
    assert not (folder / "ran").exists()
    assert json.loads(run(*words, "--allow_task_code").stdout)["ok"]
    assert (folder / "ran").exists()


def test_templates_are_in_a_sandbox(speaker: Path, tmp_path: Path) -> None:
    """The harness renders them with all of Python in reach."""
    mark = tmp_path / "ran"
    escape = f"{{{{ cycler.__init__.__globals__.os.system('touch {mark}') }}}}"
    write_task(tmp_path / "tasks", "escapes", "choices", doc_to_text=escape)
    with pytest.raises(es.InputError, match="is unsafe"):
        es.evaluate(speaker, EvaluateOptions(("escapes",), include_path=str(tmp_path / "tasks")))
    assert not mark.exists()
    assert "Sandbox" not in type(__import__("lm_eval").utils.env).__name__  # as it was, for whoever uses it besides


def test_nothing_is_fetched(speaker: Path, tmp_path: Path) -> None:
    """Neither for a file of one's own nor for a task of the harness."""
    write_task(tmp_path / "tasks", "hub", "choices", dataset_path="owner/name", dataset_kwargs=None)
    for name in ("hub", "sciq"):
        said = run("evaluate", speaker, "--tasks", name, "--include_path", tmp_path / "tasks", expect=2).stderr
        assert f"--tasks {name}: it, or its data, cannot be used" in said
        assert "--allow_downloads fetches" in said


def test_groups_tags_and_patterns(speaker: Path, tmp_path: Path) -> None:
    folder = write_tasks(tmp_path / "tasks")
    write_task(folder, "more_choices", "choices", tag="questions")
    counted = "aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]"
    (folder / "group.yaml").write_text(f"group: both\ntask: [choices, more_choices]\n{counted}\n")
    (folder / "shared.txt").write_text("metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n")
    for names, tasks in (
        (("both",), {"both", "choices", "more_choices"}),
        (("questions",), {"more_choices"}),
        (("*choices",), {"choices", "more_choices"}),
    ):
        made = es.evaluate(speaker, EvaluateOptions(names, include_path=str(folder), limit=1))
        assert {one.task for one in made.figures} == tasks


def test_records_of_every_kind(speaker: Path, tmp_path: Path) -> None:
    """JSON lines, one record alone, an array, parquet; beside the file, or named from where the command runs."""
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    folder, records = tmp_path / "tasks", RECORDS["choices"]
    write_task(folder, "choices", "choices")
    (folder / "one.jsonl").write_text(json.dumps(records[0]))
    (folder / "all.json").write_text(json.dumps(records, indent=1))
    parquet.write_table(arrow.Table.from_pylist(records), folder / "all.parquet")
    for name, path, files, count in (
        ("one", "json", "one.jsonl", 1), ("array", "json", {"test": ["all.json"]}, 6),
        ("rows", "parquet", {"test": "all.parquet"}, 6), ("twice", "json", {"test": ["one.jsonl", "all.json"]}, 7),
    ):  # fmt: skip
        split = "test" if isinstance(files, dict) else "train"
        how = {"dataset_path": path, "dataset_kwargs": {"data_files": files}, "test_split": split}
        write_task(folder, name, "choices", **how, metric_list=[{"metric": "acc", **EACH}])
        made = es.evaluate(speaker, EvaluateOptions((name,), include_path=str(folder)))
        assert [one.documents for one in made.figures] == [count]


def test_records_that_are_none(speaker: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    write_task(folder, "choices", "choices")
    for content, said in (("", "has no records"), ("[1, 2]", "has no records"), ("{", "line 1: not JSON")):
        (folder / "choices.jsonl").write_text(content)
        with pytest.raises(es.InputError, match=said):
            es.evaluate(speaker, EvaluateOptions(("choices",), include_path=str(folder)))


def test_a_template_that_does_not_fit_is_one_line(speaker: Path, tmp_path: Path) -> None:
    write_task(tmp_path / "tasks", "choices", "choices", doc_to_text="{{colour}}", metadata={"files": 1, "version": 2})
    said = run("evaluate", speaker, "--tasks", "choices", "--include_path", tmp_path / "tasks", expect=2).stderr
    assert "'colour' is undefined" in said
