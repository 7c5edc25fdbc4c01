"""Triton's rules for an ensemble: what flows from step to step must exist, fit and be produced exactly once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .repository import Model, version_number


@dataclass
class Flow:
    """A tensor of the ensemble: its type, where that was learnt, and who makes it."""

    dtype: int
    dims: tuple[int, ...]
    owner: str
    made_by: str | None = None
    optional: bool = False


def ensemble_problems(ensemble: Model, models: dict[str, Model], type_name: Any) -> list[str]:
    """A line for everything that would keep Triton from loading an ensemble, or from answering.

    Args:
        models: every model that could be read; steps of others are reported.
        type_name: DataType number -> "TYPE_INT32".
    """
    config, problems = ensemble.config, []
    flows = {
        tensor.name: Flow(tensor.data_type, dims_of(tensor), ensemble.name, "the request", tensor.optional)
        for tensor in config.input
    }
    for tensor in config.output:
        if tensor.name in flows and flows[tensor.name].made_by:
            problems.append(f"{ensemble.name}: {tensor.name} is both an input and an output")
        flows.setdefault(tensor.name, Flow(tensor.data_type, dims_of(tensor), ensemble.name))
    steps = list(config.ensemble_scheduling.step)
    if not steps:
        problems.append(f"{ensemble.name}: no ensemble_scheduling step")
    known = [(step, models[step.model_name]) for step in steps if step.model_name in models]
    problems += [
        f"{ensemble.name}: step {step.model_name!r} is no model of this repository"
        for step in steps
        if step.model_name not in models
    ]
    problems += [
        f"{ensemble.name}: step {model.name}: version {step.model_version} is not served; -1 is the latest"
        for step, model in known
        if step.model_version > 0 and step.model_version not in map(version_number, model.served())
    ]
    # Outputs first: a step may read what a later one in the list makes.
    for step, model in known:
        problems += output_problems(ensemble.name, step, model, flows, type_name)
    for step, model in known:
        problems += input_problems(ensemble.name, step, model, flows, type_name, complete=len(known) == len(steps))
    if len(known) == len(steps):
        problems += [
            f"{ensemble.name}: no step makes the output {tensor.name}"
            for tensor in config.output
            if not flows[tensor.name].made_by
        ]
    return problems + batch_problems(ensemble, known) + decoupled_problems(ensemble, known)


def output_problems(name: str, step: Any, model: Model, flows: dict[str, Flow], type_name: Any) -> list[str]:
    problems, outputs = [], model.outputs()
    for output, target in sorted(step.output_map.items()):
        if output not in outputs:
            problems.append(f"{name}: step {model.name} maps output {output}, which {model.name} does not have")
            continue
        tensor = outputs[output]
        flow = flows.setdefault(target, Flow(tensor.data_type, tuple(tensor.dims), f"{model.name}'s {output}"))
        if flow.made_by:
            problems.append(f"{name}: {target} is made by {flow.made_by} and by {model.name}")
        flow.made_by = f"{model.name}'s {output}"
        problems += mismatch(name, target, flow, f"{model.name}'s {output}", tensor, type_name)
    return problems


def input_problems(
    name: str, step: Any, model: Model, flows: dict[str, Flow], type_name: Any, complete: bool
) -> list[str]:
    problems, inputs = [], model.inputs()
    for tensor_name, source in sorted(step.input_map.items()):
        if tensor_name not in inputs:
            problems.append(f"{name}: step {model.name} maps input {tensor_name}, which {model.name} does not have")
            continue
        flow = flows.get(source)
        if flow is None or not flow.made_by:
            if complete:
                problems.append(f"{name}: {model.name}'s {tensor_name} reads {source}, which nothing makes")
            continue
        problems += mismatch(name, source, flow, f"{model.name}'s {tensor_name}", inputs[tensor_name], type_name)
        if flow.optional and not inputs[tensor_name].optional:
            problems.append(
                f"{name}: {source} is optional, but {model.name}'s {tensor_name} is not; requests without it fail"
            )
    problems += [
        f"{name}: {model.name}'s required input {tensor_name} is not mapped"
        for tensor_name, tensor in inputs.items()
        if not tensor.optional and tensor_name not in step.input_map
    ]
    return problems


def mismatch(name: str, target: str, flow: Flow, owner: str, tensor: Any, type_name: Any) -> list[str]:
    """What keeps a model's tensor from being this one of the ensemble."""
    problems = []
    if flow.dtype != tensor.data_type:
        types = f"{type_name(flow.dtype)} in {flow.owner}, {type_name(tensor.data_type)} in {owner}"
        problems.append(f"{name}: {target} is {types}")
    if not compatible(flow.dims, tuple(tensor.dims)):
        dims = f"{list(flow.dims)} in {flow.owner}, {list(tensor.dims)} in {owner}"
        problems.append(f"{name}: {target} has dims {dims}")
    return problems


def compatible(left: tuple[int, ...], right: tuple[int, ...]) -> bool:
    return len(left) == len(right) and all(a == b or -1 in (a, b) for a, b in zip(left, right, strict=True))


def dims_of(tensor: Any) -> tuple[int, ...]:
    return tuple(tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims)


def batch_problems(ensemble: Model, known: list[tuple[Any, Model]]) -> list[str]:
    batch = ensemble.config.max_batch_size
    return [
        f"{ensemble.name}: max_batch_size is {batch}, {model.name}'s is {model.config.max_batch_size}; make them equal"
        for _, model in known
        if model.config.max_batch_size != batch
    ]


def decoupled_problems(ensemble: Model, known: list[tuple[Any, Model]]) -> list[str]:
    decoupled = [model.name for _, model in known if model.config.model_transaction_policy.decoupled]
    if ensemble.config.HasField("model_transaction_policy"):
        stated = ensemble.config.model_transaction_policy.decoupled
        if stated != bool(decoupled):
            steps = f"{', '.join(decoupled)} is" if decoupled else "no step is"
            return [f"{ensemble.name}: decoupled is {str(stated).lower()}, but {steps} decoupled; leave it out"]
    return []
