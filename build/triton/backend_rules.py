"""What TensorRT-LLM's backend makes of a model's configuration: refused, silently replaced, or a GPU wasted.

Each function yields a line for everything that is wrong, without the model's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial

from ...convert.errors import InputError, shown
from ..engine_folder import EngineFolder
from .options import POLICIES, USUAL_FRACTION
from .parameters import COUNTS, DECODING_MODES, FRACTIONS, SWITCHES
from .repository import Model

MODEL_TYPES = ("inflight_fused_batching", "inflight_batching", "V1", "v1")
WORDS = ("True", "true", "TRUE", "1", "False", "false", "FALSE", "0")
# Numbers as C++ reads them; Python would take 1_000, other scripts' digits and "nan" as well.
NUMBER, LARGEST = re.compile(r"\s*[-+.\deE]+\s*", re.ASCII), 2**31 - 1
CHOICES = {"gpt_model_type": MODEL_TYPES, "batch_scheduler_policy": POLICIES, "decoding_mode": DECODING_MODES}


def backend_rules_broken(model: Model, engine: EngineFolder) -> Iterator[str]:
    """Everything in an engine's configuration that its backend does not take as it is meant."""
    if model.config.backend == "tensorrtllm":
        if "gpt_model_type" not in model.config.parameters:
            yield f"parameter gpt_model_type is missing; {MODEL_TYPES[0]} is usual"
        yield from switches(model)
        yield from placement(model, engine)
    for name, choices in CHOICES.items():
        value = model.parameter(name)
        if value is not None and value not in choices:
            yield f"{name} is {value!r}; one of {', '.join(choices)} is needed"
    yield from numbers(model, engine)
    yield from windows(model, engine)
    if model.parameter("cross_kv_cache_fraction") is not None and model.parameter("encoder_model_path") is None:
        yield "cross_kv_cache_fraction is for encoder-decoder models; leave it out"


def switches(model: Model) -> Iterator[str]:
    for name in SWITCHES:
        value = model.parameter(name)
        if value is not None and value not in WORDS:
            yield f"{name} is {shown(value)}; true or false is needed"


def numbers(model: Model, engine: EngineFolder) -> Iterator[str]:
    beams = engine.max_beam_width
    yield from unless(model, "max_beam_width", lambda beam: 1 <= int(beam) <= beams, f"1 to {beams}")
    yield from unless(model, "gpu_weights_percent", lambda part: 0 <= float(part) <= 1, "0 to 1")
    for name in FRACTIONS:
        yield from unless(model, name, lambda part: 0 < float(part) <= 1, "above 0, up to 1")
    for name, least in COUNTS.items():
        most = 2**63 - 1 if name.endswith("_bytes") else LARGEST
        yield from unless(model, name, partial(is_count, least, most), f"at least {least}, at most {most},")


def is_count(least: int, most: int, word: str) -> bool:
    return len(word) < 20 and least <= int(word) <= most


def unless(model: Model, name: str, fits: Callable[[str], bool], limits: str) -> Iterator[str]:
    """A line unless a parameter is absent or fits."""
    value = model.parameter(name)
    try:
        good = value is None or (NUMBER.fullmatch(value) is not None and fits(value))
    except ValueError:
        good = False
    if not good:
        yield f"{name} is {shown(value)}; {limits} is what the engine can take"


def windows(model: Model, engine: EngineFolder) -> Iterator[str]:
    """max_attention_window_size: tokens, or a list of them that goes round the layers."""
    stated = model.parameter("max_attention_window_size")
    sizes = whole_numbers(stated) if stated is not None else []
    if sizes is None or any(size < 1 for size in sizes):
        yield f"max_attention_window_size is {shown(stated)}; tokens, or a list of them with commas, are needed"
        return
    try:
        planned, different = engine.sliding_window(), engine.windows()
    except InputError as error:
        yield str(error)
        return
    if planned is None and different is not None and whole_numbers(different) != sizes:
        yield f"max_attention_window_size is {shown(stated)}; the model's layers have {different} in turn"
    if planned is None or planned >= engine.max_seq_len:
        return
    if not sizes or max(sizes) > planned:
        state = f"is {max(sizes)}" if sizes else "is missing"
        yield f"max_attention_window_size {state}; the model's sliding window is {planned} tokens"


def placement(model: Model, engine: EngineFolder) -> Iterator[str]:
    """Instances and GPUs: the backend places the engine by gpu_device_ids, whatever instance_group says."""
    groups, ranks = list(model.config.instance_group), engine.world_size
    if any(group.kind == group.KIND_GPU for group in groups):
        yield "instance_group is KIND_GPU: an instance on each GPU, all of one engine; the backend places it: KIND_CPU"
        return
    if any(group.kind == group.KIND_MODEL for group in groups):
        yield "instance_group is KIND_MODEL; the backend places the engine: KIND_CPU"
    if ranks > 1 and (not groups or any(group.kind == group.KIND_AUTO for group in groups)):
        yield f"instance_group has no kind: an instance on each GPU, all of one engine of {ranks} ranks; KIND_CPU"
        return
    instances = sum(max(group.count, 1) for group in groups) or 1
    devices: list[tuple[int, ...]] = []
    for name in ("gpu_device_ids", "participant_ids"):
        stated = model.parameter(name)
        lists = [] if stated is None else [whole_numbers(part) for part in stated.split(";")]
        if not all(lists) or any(number < 0 for part in lists if part for number in part):
            yield f"{name} is {shown(stated)}; numbers with commas are needed, semicolons between instances"
            return
        parts = [tuple(part) for part in lists if part]
        for part in parts:
            if len(part) != ranks or len(set(part)) != ranks:
                yield f"{name} has {shown(','.join(map(str, part)))}; the engine has {ranks} ranks, each needs its own"
                return
        if len(parts) > instances:
            yield f"{name} is for {len(parts)} instances, instance_group makes {instances}; the other GPUs stay idle"
        devices = parts if name == "gpu_device_ids" else devices
    sharing = -(-instances // max(len(set(devices)), 1))
    fraction = model.parameter("kv_cache_free_gpu_mem_fraction") or str(USUAL_FRACTION)
    if sharing > 1 and model.parameter("max_tokens_in_paged_kv_cache") is None and is_above(fraction, 1 / sharing):
        yield (
            f"{instances} instances share GPUs and each takes {fraction} of the memory left for KV caches; "
            f"gpu_device_ids spreads them, or kv_cache_free_gpu_mem_fraction {1 / sharing:.2g} at most"
        )


def is_above(number: str, limit: float) -> bool:
    try:
        return float(number) > limit
    except ValueError:
        return False


def whole_numbers(text: str) -> list[int] | None:
    """Numbers with commas between them; None if they are something else, or beyond 32 bits."""
    words = text.split(",")
    if not all(len(word) < 20 and NUMBER.fullmatch(word) for word in words):
        return None
    try:
        numbers = [int(word) for word in words]
    except ValueError:
        return None
    return numbers if all(abs(number) <= LARGEST for number in numbers) else None
