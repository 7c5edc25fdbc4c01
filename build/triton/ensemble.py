"""Triton's rules for an ensemble: what flows from step to step must exist, fit and be produced exactly once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .repository import Model, type_name, version_number

LATEST = -1


@dataclass
class Flow:
    """A tensor of the ensemble: its type, where that was learnt, and who makes it."""

    dtype: int
    dims: tuple[int, ...]
    owner: str
    made_by: str | None = None
    optional: bool = False


def ensemble_problems(ensemble: Model, models: dict[str, Model]) -> list[str]:
    """A line for everything that would keep Triton from loading an ensemble, or from answering.

    Args:
        models: every model that could be read; steps of others are reported.
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
        if step.model_version != LATEST and step.model_version not in map(version_number, model.served())
    ]
    # Outputs first: a step may read what a later one in the list makes.
    for step, model in known:
        problems += output_problems(ensemble.name, step, model, flows)
    for step, model in known:
        problems += input_problems(ensemble.name, step, model, flows, complete=len(known) == len(steps))
    if len(known) == len(steps):
        problems += [
            f"{ensemble.name}: no step makes the output {tensor.name}"
            for tensor in config.output
            if not flows[tensor.name].made_by
        ]
        problems += graph_problems(ensemble, known)
    problems += misplaced(ensemble)
    return problems + batch_problems(ensemble, known) + decoupled_problems(ensemble, known)


def misplaced(ensemble: Model) -> list[str]:
    """What an ensemble must not have, for only its steps run anything."""
    config, name = ensemble.config, ensemble.name
    given = {
        "instance_group": bool(config.instance_group),
        "optimization": config.HasField("optimization"),
        "model_warmup": bool(config.model_warmup),
    }
    problems = [f"{name}: an ensemble has no {field}; leave it out" for field, is_given in given.items() if is_given]
    for index, step in enumerate(config.ensemble_scheduling.step):
        empty = [side for side in ("input_map", "output_map") if not getattr(step, side)]
        problems += [f"{name}: step {index}, {step.model_name!r}, has no {side}" for side in empty]
        if step.model_name == name:
            problems.append(f"{name}: an ensemble cannot be a step of itself")
    return problems


def graph_problems(ensemble: Model, known: list[tuple[Any, Model]]) -> list[str]:
    """Tensors that nothing reads, steps that wait for themselves, and streams that would have to be joined."""
    name, inputs = ensemble.name, [tensor.name for tensor in ensemble.config.input]
    read = {source for step, _ in known for source in step.input_map.values()}
    wanted = read | {tensor.name for tensor in ensemble.config.output}
    problems = [f"{name}: no step reads the input {tensor}" for tensor in inputs if tensor not in read]
    problems += [
        f"{name}: {target}, made by {model.name}, is read by nothing"
        for step, model in known
        for target in sorted(step.output_map.values())
        if target not in wanted
    ]
    streams = dict.fromkeys(inputs, "")  # tensor that is known by now -> the decoupled model that it streams from
    waiting = list(known)
    while runnable := [pair for pair in waiting if streams.keys() >= set(pair[0].input_map.values())]:
        for step, model in runnable:
            sources = {streams[source] for source in step.input_map.values()}
            if len(sources) > 1:
                problems.append(f"{name}: step {model.name} joins what {max(sources)} streams with what it does not")
            stream = model.name if model.config.model_transaction_policy.decoupled else max(sources, default="")
            streams |= dict.fromkeys(step.output_map.values(), stream)
        waiting = [pair for pair in waiting if pair not in runnable]
    made = {target for step, _ in known for target in step.output_map.values()}
    problems += [
        f"{name}: step {model.name} waits for what depends on it"
        for step, model in waiting
        if made.union(inputs) >= set(step.input_map.values())
    ]
    return problems


def output_problems(name: str, step: Any, model: Model, flows: dict[str, Flow]) -> list[str]:
    problems, outputs = [], model.outputs()
    for output, target in sorted(step.output_map.items()):
        if output not in outputs:
            problems.append(f"{name}: step {model.name} maps output {output}, which {model.name} does not have")
            continue
        tensor = outputs[output]
        if sum(declared.name == output for declared in model.config.output) > 1:
            problems.append(f"{name}: step {model.name} maps output {output}, which {model.name} has twice")
        flow = flows.setdefault(target, Flow(tensor.data_type, tuple(tensor.dims), f"{model.name}'s {output}"))
        if flow.made_by:
            problems.append(f"{name}: {target} is made by {flow.made_by} and by {model.name}")
        flow.made_by = f"{model.name}'s {output}"
        problems += mismatch(name, target, flow, f"{model.name}'s {output}", tensor)
    return problems


def input_problems(name: str, step: Any, model: Model, flows: dict[str, Flow], complete: bool) -> list[str]:
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
        problems += mismatch(name, source, flow, f"{model.name}'s {tensor_name}", inputs[tensor_name])
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


def mismatch(name: str, target: str, flow: Flow, owner: str, tensor: Any) -> list[str]:
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
        if model.config.max_batch_size < batch
    ]


def decoupled_problems(ensemble: Model, known: list[tuple[Any, Model]]) -> list[str]:
    decoupled = [model.name for _, model in known if model.config.model_transaction_policy.decoupled]
    if ensemble.config.HasField("model_transaction_policy"):
        stated = ensemble.config.model_transaction_policy.decoupled
        if stated != bool(decoupled):
            steps = f"{', '.join(decoupled)} is" if decoupled else "no step is"
            return [f"{ensemble.name}: decoupled is {str(stated).lower()}, but {steps} decoupled; leave it out"]
    return []
