"""A model's dimensions, read from a Hugging Face config.json of either style."""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import Any

from ..errors import InputError, shown
from ..files.reader import LARGEST, Reader
from .experts import spread
from .families import FAMILIES
from .family import Family
from .model import Model
from .rope import Rope, check_rope, read_rope

MOST_LAYERS, MOST_EXPERTS = 10_000, 4096
DECODES, OTHER_HEADS = "ForCausalLM", ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
ENGINE_EPSILON = 1e-5


def read_model(config: dict[str, Any]) -> Model:
    """Interpret a Hugging Face config: ``rope_theta``/``rope_scaling`` and ``torch_dtype`` (transformers 4)
    as well as ``rope_parameters`` and ``dtype`` (transformers 5).

    Raises:
        InputError: an architecture, activation, rope type or value that this version cannot convert.
    """
    said, architecture = Reader(config), architecture_of(config)
    family = family_of(architecture, said)

    def size(name: str, default: int | None = None, largest: int = LARGEST) -> int:
        key = family.key(name)
        if name in family.implied and default is not None:
            return default
        return said.integer(key, family.defaults.get(name, default) if key not in config else default, largest=largest)

    if family.task is None and not said.flag("is_causal", True):
        raise InputError("config.json: is_causal is false; engines attend to the tokens before alone")
    hidden, heads = size("hidden_size"), size("num_attention_heads")
    if hidden % heads and ("head_size" in family.implied or not said.has("head_dim")):
        way = "" if "head_size" in family.implied else "; state head_dim"
        raise InputError(
            f"config.json: {family.key('hidden_size')} {hidden} is no multiple of "
            f"{family.key('num_attention_heads')} {heads}{way}"
        )
    positions = size("max_position_embeddings", family.defaults["max_position_embeddings"])
    rope = read_rope(config, positions, family.keys, family.rope, family.rope_types) if family.rotary else Rope()
    head_size = size("head_size", hidden // heads)
    function = activation_of(said, family)
    stated = dict[str, Any](
        architecture=architecture,
        family=family,
        dtype=said.text_or_none("dtype") or said.text_or_none("torch_dtype"),
        hidden_size=hidden,
        intermediate_size=size("intermediate_size", 4 * hidden if family.four_times_unsaid else None),
        num_hidden_layers=size("num_hidden_layers", largest=MOST_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=size("num_key_value_heads", heads),
        head_size=head_size,
        vocab_size=size("vocab_size"),
        max_position_embeddings=positions,
        norm_epsilon=float(said.number(family.key("norm_epsilon"), family.norm_epsilon, largest=1.0)),
        hidden_act=family.activations[function],
        activation=function,
        rotary_base=rope.theta,
        rotary_scaling=rope.scaling,
        rotary_dim=int(head_size * rope.fraction),
        tied=said.flag("tie_word_embeddings", family.tied),
    )
    model = with_experts(Model(**(stated | family.read(said))))
    check_heads(model)
    check_rest(model)
    return model


def with_experts(model: Model) -> Model:
    """The model with a family that has its experts."""
    if not 0 <= model.top_k <= model.num_experts <= MOST_EXPERTS:
        raise InputError(
            f"config.json: {model.top_k} experts for a token, of {model.num_experts}; at most {MOST_EXPERTS} are known"
        )
    return replace(model, family=spread(model.family, model.num_experts))


def activation_of(said: Reader, family: Family) -> str:
    """Hugging Face's name of the MLP's function."""
    key = family.key("hidden_act")
    name, first = said.values.get(key), next(iter(family.activations))
    if name is None:
        return first
    if not isinstance(name, str) or name not in family.activations:
        raise InputError(f"config.json: {key} {shown(name)} is not supported; supported: {first}")
    return name


def architecture_of(config: dict[str, Any]) -> str:
    """The class that config.json names; where it names none, the one that its model_type implies.

    Raises:
        InputError: a class that is not supported, or a model that holds a text model among others.
    """
    stated = config.get("architectures")
    stated = stated[0] if isinstance(stated, list) and len(stated) == 1 else stated
    name = config.get("model_type") if stated in (None, []) else stated
    name = next((f.architectures[0] for f in FAMILIES if name in f.spellings), name)
    name = name if isinstance(name, str) else stated
    if isinstance(config.get("text_config"), dict) and not any(name in family.architectures for family in FAMILIES):
        raise InputError(
            f"config.json: {shown(name)} holds its text model in text_config; save that by itself "
            "(model.language_model.save_pretrained) and give its folder"
        )
    return next(known for family in families_of(name) for known in family.architectures if known == name)


def family_of(architecture: Any, said: Reader) -> Family:
    """The family of a class; where several have it, the one that a config.json describes."""
    families = families_of(architecture)
    return next((family for family in families if family.when(said)), families[0])


def families_of(architecture: Any) -> list[Family]:
    """The families that have a class.

    Raises:
        InputError: none has.
    """
    families = [f for f in FAMILIES if architecture in f.architectures]
    if not families:
        known = [name for f in FAMILIES for name in f.architectures]
        name = architecture[:100] if isinstance(architecture, str) else ""
        close = difflib.get_close_matches(name, known, 1, 0.8)
        why = f"; did you mean {close[0]}?" if close else ""
        if any(name.endswith(head) and name.replace(head, DECODES) in known for head in OTHER_HEADS):
            why = ": its engine ends in the head of a language model"
        raise InputError(
            f"config.json: architecture {shown(architecture)} is not supported{why}; enginesmith families lists those "
            "that are"
        )
    return families


def check_heads(model: Model) -> None:
    heads, kv_heads = model.num_attention_heads, model.num_key_value_heads
    if heads % kv_heads:
        raise InputError(f"config.json: num_key_value_heads {kv_heads} does not divide num_attention_heads {heads}")
    if heads != kv_heads and "num_key_value_heads" in model.family.implied:
        raise InputError(f"config.json: num_key_value_heads must be {heads}: {model.architecture} shares no keys")
    if model.head_size % 2:
        why = "the rotary embedding needs pairs" if model.family.rotary else "kernels take even ones"
        raise InputError(f"config.json: head size {model.head_size} is odd; {why}")
    if model.family.rotary and (model.rotary_dim % 2 or not 0 < model.rotary_dim <= model.head_size):
        raise InputError(
            f"config.json: {model.rotary_dim} of {model.head_size} channels of a head are turned; the rotary embedding "
            "needs pairs"
        )
    check_rope(model.rotary_base, model.rotary_scaling, model.rotary_dim, model.max_position_embeddings)


def check_rest(model: Model) -> None:
    """Raise InputError for what the engine of the family does not know."""
    family, hidden, width = model.family, model.hidden_size, model.intermediate_size
    if model.rotary_dim < model.head_size and family.rotary and not family.partly_turned:
        fraction = model.rotary_dim / model.head_size
        raise InputError(f"config.json: partial_rotary_factor {fraction:g} is not supported; supported: 1.0")
    if family.fixed_epsilon and model.norm_epsilon != ENGINE_EPSILON:
        raise InputError(
            f"config.json: {family.key('norm_epsilon')} must be {ENGINE_EPSILON}: the engine of {model.architecture} "
            "takes no other"
        )
    if model.longest < 1:
        raise InputError(
            f"config.json: pad_token_id {model.pad_token_id}: all {model.max_position_embeddings} positions lie "
            "before it"
        )
    if family.four_times and width != 4 * hidden:
        raise InputError(
            f"config.json: {family.key('intermediate_size')} {width} must be {4 * hidden}: the engine of "
            f"{model.architecture} knows no other width than 4 {family.key('hidden_size')}"
        )
