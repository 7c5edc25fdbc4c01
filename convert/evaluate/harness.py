"""lm-evaluation-harness, with nothing fetched, no code in templates, and nothing printed."""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from fnmatch import filter as matching
from importlib import import_module
from traceback import walk_tb
from typing import Any
from unittest import mock

import numpy as np
import torch
from jinja2 import StrictUndefined
from jinja2.sandbox import SandboxedEnvironment
from lm_eval import evaluator, utils
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Kind, TaskIndex

from ..errors import InputError, reason, shown
from ..files.bounds import meant
from . import model
from .files import TaskFolder
from .options import EvaluateOptions

# What says that the Hub is not asked, where a library has read the environment already.
OFFLINE = (
    ("huggingface_hub.constants", "HF_HUB_OFFLINE"),
    ("datasets.config", "HF_HUB_OFFLINE"),
    ("datasets.config", "HF_DATASETS_OFFLINE"),
    ("evaluate.config", "HF_EVALUATE_OFFLINE"),
)
OFFLINE_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
# The harness's own seeds: of Python, and of everything else.
PYTHON_SEED, SEED = 0, 1234
# Draws for standard errors that have no formula.
BOOTSTRAP = 1000


@contextmanager
def surroundings(allow_downloads: bool = False, allow_task_code: bool = False) -> Iterator[None]:
    """Where the harness works: offline unless downloads are allowed, with no metrics that are programs unless code is,
    templates in Jinja's sandbox, in this process, without progress bars, with nothing on standard output."""
    sandbox = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    sandbox.filters |= utils.env.filters
    logging.getLogger("lm_eval").setLevel(logging.CRITICAL)
    environment = {"DISABLE_MULTIPROC": "1"} | ({} if allow_downloads else OFFLINE_ENVIRONMENT)
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict("os.environ", environment))
        stack.enter_context(mock.patch.object(utils, "env", sandbox))
        stack.enter_context(mock.patch("lm_eval.api.task.tqdm", lambda rows, **_: rows))
        stack.enter_context(redirect_stdout(sys.stderr))
        if not allow_task_code:
            stack.enter_context(mock.patch("evaluate.load", refuse_program))
        for module, name in () if allow_downloads else OFFLINE:
            stack.enter_context(mock.patch.object(import_module(module), name, True))
        yield


def refuse_program(name: str, *_: Any, **__: Any) -> None:
    """In the place of what fetches metrics, or finds them where the command runs."""
    raise InputError(
        f"--tasks: the metric {shown(name)} is a program; --allow_task_code permits it, where you trust it"
    )


def load(options: EvaluateOptions) -> tuple[list[str], Any]:
    """The names of what is asked, and its tasks as the harness has them.

    Raises:
        InputError: a name that nothing has, a task file that cannot be used, data that is not here.
    """
    own = index_of(options)
    local = all(name in own and own[name].kind is not Kind.GROUP for name in options.tasks)
    manager = TaskManager(include_defaults=not local)
    manager.task_index.update(own)
    asked = list[str]()
    for name in options.tasks:
        found = sorted(matching(manager.task_index, name))
        if not found:
            raise InputError(f"--tasks: {name} is none{meant(name, manager.task_index)}")
        asked += [one for one in found if one not in asked]
    with refusals("it, or its data, cannot be used", options):
        return asked, manager.load(asked)


def index_of(options: EvaluateOptions) -> dict[str, Any]:
    """The tasks, groups and tags of one's own folder."""
    own: dict[str, Any] = {}
    if options.include_path is not None:
        for path, config in TaskFolder(options.include_path, options.allow_task_code).configs():
            TaskIndex.process_cfg(config, path, own)
    for entry in own.values():
        entry.yaml_path = None  # the harness takes what was read, and reads no file again
    return own


def run(lm: model.Answering, loaded: Any, options: EvaluateOptions) -> dict[str, Any]:
    """What the harness makes of a model's answers; the same questions for every model.

    Raises:
        InputError: a task that cannot be asked.
    """
    seed = SEED if options.seed is None else options.seed
    random.seed(PYTHON_SEED if options.seed is None else seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    for task in loaded["tasks"].values():
        stated = task.get_config("num_fewshot")
        if stated is None or (options.num_fewshot is not None and stated != 0):
            task.set_config("num_fewshot", options.num_fewshot or 0)
        task.set_fewshot_seed(seed)
    with refusals("the harness cannot ask it", options):
        results: dict[str, Any] = evaluator.evaluate(
            lm=lm,
            task_dict=loaded,
            limit=options.limit,
            bootstrap_iters=BOOTSTRAP,
            apply_chat_template=options.apply_chat_template,
            fewshot_as_multiturn=options.apply_chat_template,
            confirm_run_unsafe_code=options.allow_task_code,
        )
    return results


@contextmanager
def refusals(what: str, options: EvaluateOptions) -> Iterator[None]:
    """What the harness raises is one line; what the model raises stays as it is."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if any(frame.f_globals.get("__name__") == model.__name__ for frame, _ in walk_tb(error.__traceback__)):
            raise
        missing = isinstance(error, OSError) and not options.allow_downloads
        remedy = "; --allow_downloads fetches from the Hugging Face Hub what is not here" if missing else ""
        raise InputError(f"--tasks {','.join(options.tasks)}: {what} ({reason(error)}){remedy}") from None


def judged(results: dict[str, Any], asked: Sequence[str]) -> list[str]:
    """The tasks and groups whose figures count: those asked for, and the tasks of a group that has none of its own."""
    below, members = set[str](), results.get("group_subtasks", {})
    named = [name for name in asked if any("," in key for key in results["results"].get(name, {}))]
    rest = [child for name in named for child in members.get(name, ())]
    while rest:
        below.add(child := rest.pop())
        rest += members.get(child, ())
    return named + [task for task in results["n-samples"] if task not in below and task not in named]
