"""Models that serve a request together: an ensemble's steps, or a BLS model and those that it calls.

A repository may hold several such chains, each with an engine and a tokenizer of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from ...convert.errors import InputError, shown
from ...convert.sources.special_tokens import MOST_ENDS
from ..engine_folder import EngineFolder
from .backend_rules import whole_numbers
from .configs import LIMITS
from .repository import Model, served_path
from .tokenizer import largest_id, open_tokenizer

# What NVIDIA's BLS model calls beside the engine; ours says so in its parameter steps.
CALLED_BY_BLS = ("preprocessing", "postprocessing")


def chain_problems(
    models: dict[str, Model], engines: dict[str, EngineFolder], repository: Path, mount_dir: str
) -> list[str]:
    """Tokenizers must load without running code; in a chain they must be the same and fit the engine."""
    folders, problems = tokenizer_folders(models, repository, mount_dir)
    tokenizers: dict[str, Any] = {}
    owners: dict[str, str] = {}
    for name, (folder, _) in folders.items():
        if owners.setdefault(folder, name) == name:
            tokenizers[folder], problem = open_untrusted(Path(folder), name)
            problems += [problem] if problem else []
        tokenizer = tokenizers[folder]
        if tokenizer is not None and models[name].is_on("chat") and not tokenizer.chat_template:
            problems.append(f"{name}: chat is on, but the tokenizer has no chat template")
    largest = {folder: largest_id(tokenizer) for folder, tokenizer in tokenizers.items() if tokenizer is not None}
    for chain in chains(models):
        users: dict[str, str] = {}
        for model in chain:
            if model.name in folders:
                users.setdefault(folders[model.name][0], model.name)
        if len(users) > 1:
            places = ", ".join(f"{folders[name][1]} in {name}" for name in users.values())
            problems.append(f"tokenizer_dir differs: {places}")
        sizes = [engines[model.name].vocab_size for model in chain if model.name in engines]
        problems += [
            f"{owners[folder]}: the tokenizer has token id {largest[folder]}, the engine a vocabulary of {size}"
            for folder, size in product(users, sizes)
            if largest.get(folder, -1) >= size
        ]
        for model, size in product(chain, sizes):
            if model.config.backend == "python":
                problems += [f"{model.name}: {problem}" for problem in own_problems(model, size)]
    return problems


def own_problems(model: Model, vocab_size: int) -> Iterator[str]:
    """What is wrong with the parameters that our Python models read, for an engine of this vocabulary."""
    for name, most in (("end_ids", MOST_ENDS), ("pad_id", 1)):
        stated = model.parameter(name)
        ids = [] if stated is None else whole_numbers(stated)
        if ids is None or not all(0 <= i < vocab_size for i in ids) or len(ids) > most:
            yield f"{name} is {shown(stated)}; token ids below the engine's vocabulary of {vocab_size} are needed"
    for name in ("max_prompt_bytes", *LIMITS):
        stated = model.parameter(name)
        numbers = [1] if stated is None else whole_numbers(stated)
        if numbers is None or len(numbers) != 1 or numbers[0] < 1:
            yield f"{name} is {shown(stated)}; at least 1 is needed"
    stated = model.parameter("vocab_size")
    if stated is not None and stated.strip() != str(vocab_size):
        yield f"vocab_size is {shown(stated)}, the engine's is {vocab_size}"


def open_untrusted(folder: Path, owner: str) -> tuple[Any, str]:
    """A tokenizer, or None and what is wrong with it."""
    try:
        return open_tokenizer(folder, f"{owner}: tokenizer_dir"), ""
    except InputError as error:
        return None, str(error)
    except OSError as error:
        return None, f"{owner}: tokenizer_dir {folder}: cannot be read ({error.strerror})"


def tokenizer_folders(
    models: dict[str, Model], repository: Path, mount_dir: str
) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Model -> where its tokenizer really lies on this machine, and what its configuration says; and problems."""
    folders, problems = {}, []
    for model in models.values():
        where = model.parameter("tokenizer_dir")
        if where is not None and model.config.backend == "python":
            path, problem = served_path(where, repository, mount_dir)
            if path is None:
                problems.append(f"{model.name}: tokenizer_dir {where}: {problem}")
            else:
                folders[model.name] = os.path.realpath(path), where
        elif where is None and model.name in CALLED_BY_BLS:
            problems.append(f"{model.name}: parameter tokenizer_dir is missing or empty")
    return folders, problems


def chains(models: dict[str, Model]) -> list[list[Model]]:
    """The models of each chain; all of them where nothing connects them."""
    found = [members(model) for model in models.values()]
    return [[model for name, model in models.items() if name in names] for names in found if names] or [
        list(models.values())
    ]


def members(model: Model) -> set[str]:
    """The names of the chain that an ensemble or a BLS model makes; empty for others."""
    names = {step.model_name for step in model.config.ensemble_scheduling.step}
    if called := called_engine(model):
        steps, _ = bls_steps(model)
        names |= {model.name, called, *([step["model"] for step in steps] or CALLED_BY_BLS)}
    return names


def called_engine(model: Model) -> str | None:
    """The engine that a BLS model calls; None for other models."""
    usual = "tensorrt_llm" if model.name == "tensorrt_llm_bls" else None
    return model.parameter("tensorrt_llm_model_name") or usual


def bls_steps(model: Model) -> tuple[list[dict[str, Any]], str]:
    """The two steps in our BLS model's parameter, and what is wrong with it; no steps where it is absent."""
    text = model.parameter("steps")
    try:
        steps = [] if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return [], "steps is not JSON"
    if text is not None and not (isinstance(steps, list) and len(steps) == 2 and all(map(is_step, steps))):
        return [], 'steps is not a list of two {"model", "inputs", "outputs"}'
    return steps, ""


def is_step(step: Any) -> bool:
    return (
        isinstance(step, dict)
        and isinstance(step.get("model"), str)
        and all(isinstance(step.get(side), dict) for side in ("inputs", "outputs"))
    )


def bls_problems(models: dict[str, Model]) -> list[str]:
    """A BLS model and the engine that it calls must agree; so must the steps that it names."""
    problems = []
    for model in models.values():
        called = called_engine(model)
        if called is None:
            continue
        if called not in models:
            problems.append(f"{model.name}: tensorrt_llm_model_name {called!r} is no model of this repository")
        elif decoupled(model) != decoupled(models[called]):
            states = f"{str(decoupled(model)).lower()}, {called}'s is {str(decoupled(models[called])).lower()}"
            problems.append(f"{model.name}: decoupled is {states}; make them equal")
        elif model.config.max_batch_size != models[called].config.max_batch_size:
            sizes = f"{model.config.max_batch_size}, {called}'s is {models[called].config.max_batch_size}"
            problems.append(f"{model.name}: max_batch_size is {sizes}; make them equal")
        steps, problem = bls_steps(model)
        problems += [f"{model.name}: {problem}"] if problem else []
        for step in steps:
            problems += step_problems(model, step, models)
    return problems


def step_problems(model: Model, step: dict[str, Any], models: dict[str, Model]) -> list[str]:
    if step["model"] not in models:
        return [f"{model.name}: steps: {step['model']!r} is no model of this repository"]
    target = models[step["model"]]
    unknown = [*(step["inputs"].keys() - target.inputs().keys()), *(step["outputs"].keys() - target.outputs().keys())]
    return [f"{model.name}: steps: {target.name} has no tensor {name}" for name in sorted(unknown)]


def decoupled(model: Model) -> bool:
    return bool(model.config.model_transaction_policy.decoupled)
