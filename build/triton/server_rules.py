"""tritonserver's own rules for one model's configuration, whatever its backend: it does not load what breaks one.

Each function yields a line for every rule that is broken, without the model's name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from ...convert.errors import shown
from .repository import enum_name, protocol

ANY = -1  # a size that a request decides
# Backends that Triton's containers bring; others may be mounted.
BACKENDS = (
    "python", "tensorrtllm", "tensorrt", "onnxruntime", "pytorch", "openvino", "dali", "fil", "vllm", "identity",
    "repeat", "square", "tensorflow",
)  # fmt: skip
AGENTS = ("checksum", "relocation")
IMAGE_FORMATS = (1, 2)  # FORMAT_NHWC, FORMAT_NCHW
BATCH_TYPES = ("TYPE_INT32", "TYPE_FP32")


def rules_broken(config: Any) -> Iterator[str]:
    """Everything in a configuration that tritonserver refuses by itself."""
    yield from kind_of_model(config)
    for tensor in [*config.input, *config.output]:
        yield from tensor_rules(tensor, config.max_batch_size)
    for tensor in config.input:
        yield from input_rules(tensor)
    yield from computed_tensors(config)
    yield from batching(config)
    if not config.HasField("ensemble_scheduling"):
        yield from instances(config)
    yield from extras(config)


def kind_of_model(config: Any) -> Iterator[str]:
    """Backend, platform and size of a batch."""
    if not (config.backend or config.platform):
        yield "names neither a backend nor a platform"
    elif config.platform == "ensemble" and config.backend:
        yield f"platform is ensemble, which has no backend; backend is {config.backend!r}"
    elif not config.backend and config.platform != "ensemble":
        yield f"platform is {config.platform!r}; a backend is needed"
    close = difflib.get_close_matches(config.backend, BACKENDS, 1)
    if close and config.backend not in BACKENDS:
        yield f"backend is {config.backend!r}; did you mean {close[0]}?"
    if config.backend in BACKENDS and config.runtime not in ("", library := f"libtriton_{config.backend}.so"):
        yield f"runtime is {shown(config.runtime)}; backend {config.backend} has {library}: leave it out"
    if config.max_batch_size < 0:
        yield f"max_batch_size is {config.max_batch_size}"
    if config.HasField("ensemble_scheduling") and config.platform != "ensemble":
        yield "ensemble_scheduling is for platform ensemble only"


def tensor_rules(tensor: Any, batch: int) -> Iterator[str]:
    """Name, type and shape of an input or output."""
    name = tensor.name or "a tensor"
    if not tensor.name:
        yield "a tensor has no name"
    if not tensor.data_type:
        yield f"{name} has no data_type"
    elif enum_name(protocol().DataType, tensor.data_type) is None:
        yield f"{name}: data_type {tensor.data_type} is none of Triton's"
    if not tensor.dims:
        yield f"{name} has no dims"
    for label, sizes in (("dims", tensor.dims), ("reshape", tensor.reshape.shape)):
        if wrong := [size for size in sizes if size < 1 and size != ANY]:
            yield f"{name}: {label} has {wrong[0]}; sizes are 1 or more, or -1 for any"
            return
    if tensor.HasField("reshape"):
        if not tensor.reshape.shape and batch == 0:
            yield f"{name}: a reshape to nothing needs a max_batch_size of 1 or more"
        elif trunks(tensor.dims) != trunks(tensor.reshape.shape):
            yield f"{name}: dims {list(tensor.dims)} cannot be reshaped to {list(tensor.reshape.shape)}"
    if tensor.is_shape_tensor or getattr(tensor, "is_non_linear_format_io", False):
        yield f"{name}: is_shape_tensor and is_non_linear_format_io are for TensorRT's own backend"


def trunks(sizes: Sequence[int]) -> list[int]:
    """The elements before, between and after the sizes that a request decides; a reshape must keep them."""
    counts = [1]
    for size in sizes:
        if size == ANY:
            counts.append(1)
        else:
            counts[-1] *= size
    return counts


def input_rules(tensor: Any) -> Iterator[str]:
    formats = protocol().ModelInput.Format
    if enum_name(formats, tensor.format) is None:
        yield f"{tensor.name}: format {tensor.format} is none of Triton's"
    elif tensor.format in IMAGE_FORMATS and len(tensor.dims) != 3:
        yield f"{tensor.name}: {enum_name(formats, tensor.format)} needs three dims"


def computed_tensors(config: Any) -> Iterator[str]:
    """batch_input and batch_output, which Triton computes of a batch."""
    inputs, outputs = {tensor.name for tensor in config.input}, {tensor.name for tensor in config.output}
    for label, items in (("batch_input", config.batch_input), ("batch_output", config.batch_output)):
        for item in items:
            if len(item.source_input) != 1:
                yield f"{label} has {len(item.source_input)} source_input; one is needed"
            yield from (
                f"{label} reads {name!r}, which is no input" for name in item.source_input if name not in inputs
            )
    for item in config.batch_input:
        if enum_name(protocol().DataType, item.data_type) not in BATCH_TYPES:
            yield f"batch_input: data_type must be {' or '.join(BATCH_TYPES)}"
    for item in config.batch_output:
        yield from (
            f"batch_output makes {name!r}, which is no output" for name in item.target_name if name not in outputs
        )


def batching(config: Any) -> Iterator[str]:
    """Dynamic and sequence batching."""
    dynamic, oldest = config.dynamic_batching, config.sequence_batching.oldest
    for sizes in (dynamic.preferred_batch_size, oldest.preferred_batch_size):
        for size in sizes:
            if size < 1:
                yield f"preferred_batch_size {size} is not positive"
            elif size > config.max_batch_size:
                yield f"preferred_batch_size {size} is above max_batch_size"
    levels = dynamic.priority_levels
    if levels and not 1 <= dynamic.default_priority_level <= levels:
        yield f"default_priority_level is {dynamic.default_priority_level}; 1 to {levels} are priority_levels"
    if levels:
        yield from (
            f"priority_queue_policy is of level {level}; 1 to {levels} are priority_levels"
            for level in sorted(dynamic.priority_queue_policy)
            if not 1 <= level <= levels
        )
    if dynamic.preserve_ordering:
        if levels > 1:
            yield "preserve_ordering allows one priority level only"
        policies = [dynamic.default_queue_policy, *dynamic.priority_queue_policy.values()]
        if any(policy.default_timeout_microseconds and policy.timeout_action for policy in policies):
            yield "preserve_ordering excludes the timeout_action DELAY"
    slots = config.sequence_batching.direct.minimum_slot_utilization
    if not 0 <= slots <= 1:
        yield f"minimum_slot_utilization is {slots:g}; 0 to 1 is needed"
    if config.response_cache.enable and config.model_transaction_policy.decoupled:
        yield "response_cache does not work with decoupled models"
    if config.response_cache.enable and config.HasField("sequence_batching"):
        yield "response_cache does not work with sequence_batching"


def instances(config: Any) -> Iterator[str]:
    """The groups of instances."""
    kinds = protocol().ModelInstanceGroup.Kind
    if config.instance_group and all(group.passive for group in config.instance_group):
        yield "instance_group is passive: no instance takes requests"
    for group in config.instance_group:
        kind = enum_name(kinds, group.kind)
        if kind is None:
            yield f"instance_group kind {group.kind} is none of Triton's"
        elif kind in ("KIND_CPU", "KIND_MODEL") and group.gpus:
            yield f"instance_group is {kind}, which takes no gpus"
        if group.count < 0:
            yield f"instance_group count is {group.count}"
        if group.profile:
            yield "instance_group: profile is for TensorRT's own backend"
        if wrong := [number for number in group.gpus if number < 0]:
            yield f"instance_group: gpus has {wrong[0]}"


def extras(config: Any) -> Iterator[str]:
    """Agents, metrics and warm-up."""
    for agent in config.model_repository_agents.agents:
        if agent.name not in AGENTS:
            yield f"model_repository_agents: {agent.name!r} is none that Triton brings ({', '.join(AGENTS)})"
    metrics = getattr(config, "model_metrics", None)  # Triton's definition has it since 2.52
    for control in metrics.metric_control if metrics else ():
        if not control.metric_identifier.family or not control.histogram_options.buckets:
            yield "model_metrics: a metric_control needs a family and buckets"
    inputs = {tensor.name for tensor in config.input}
    needed = {tensor.name for tensor in config.input if not tensor.optional}
    for sample in config.model_warmup if config.platform != "ensemble" else ():
        if wrong := sorted(set(sample.inputs) - inputs) or sorted(needed - set(sample.inputs)):
            state = "is no input" if wrong[0] not in inputs else "is missing"
            yield f"model_warmup {sample.name!r}: {wrong[0]} {state}"
