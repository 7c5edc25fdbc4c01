"""The tensors of a model's shards under the names that its family has for them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from ...plugins.lazy import torch
from ..errors import InputError, printable, shown
from ..files.reader import Reader
from ..files.shard import Shard
from ..models.family import Family
from ..models.model import Model
from .readymade.kinds import Expected

# Told what is done that the folder does not say in so many words.
Note = Callable[[str], None]
# Elements of two tensors that are compared at once.
AT_ONCE = 1 << 22
# What a part of a tensor's name says about the state that a folder is in.
SIGNS = (
    ((".lora_A", ".lora_B", ".lora_embedding", ".base_layer.", ".lora_magnitude"),
     "it holds LoRA weights that are not merged; merge them (peft: merge_and_unload) and save the model again"),
    ((".absmax", ".quant_map", ".quant_state.", ".nested_", ".SCB", ".weight_format"),
     "it is quantized by bitsandbytes; give the unquantized model"),
    ((".weight_scale_inv",), "its weights are FP8 by blocks; give the unquantized model, or one made bfloat16"),
    ((".qweight", ".qzeros", ".weight_packed", ".weight_scale", ".g_idx"),
     "it is quantized, but no configuration says so; put the tool's quantization config beside it"),
    (("vision_tower.", "vision_model.", "visual.", "multi_modal_projector."),
     "it is part of a multimodal model; save its language model by itself"),
    (("attention.wq.", "attention.wk.", "feed_forward.w1.", "tok_embeddings."),
     "it has its authors' own name; convert the model to Hugging Face's format"),
    (("attention.query_key_value.", "transformer.h."), "it is a tensor of another architecture"),
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """A tensor of a shard.

    Attributes:
        stored: its name there.
    """

    shard: Shard
    stored: str

    @property
    def file(self) -> str:
        """The name of its file, for messages."""
        return self.shard.file.name

    @property
    def shape(self) -> list[int]:
        return self.shard.tensors[self.stored].shape

    @property
    def dtype(self) -> str:
        """safetensors' name."""
        return self.shard.tensors[self.stored].dtype

    def read(self, pinned: bool = False) -> torch.Tensor:
        return self.shard.read(self.stored, pinned=pinned)


def find(shards: list[Shard], family: Family, note: Note) -> tuple[dict[str, Found], str]:
    """Every tensor that counts by its family's name, and the prefix that all names were without it.

    Raises:
        InputError: two shards hold one name.
    """
    held: dict[str, Found] = {}
    for shard in shards:
        for name in shard.tensors:
            if name in held:
                raise InputError(f"{shard.file.name}: tensor {shown(name)} is also in {held[name].file}")
            held[name] = Found(shard, name)
    prefix = common_prefix(list(held), family)
    lacking = lacking_prefix(held, family)
    if prefix:
        note(f"names of tensors are without their prefix {shown(prefix)}")
    if lacking:
        note(f"names of tensors lack {lacking!r}, which is added as transformers does")
    found = {
        name.removeprefix(prefix) if name == family.head else lacking + name.removeprefix(prefix): tensor
        for name, tensor in held.items()
        if not name.endswith(family.ignored)
    }
    return found, prefix


def common_prefix(names: list[str], family: Family) -> str:
    """What stands before every name, such as "module."; empty where something has its family's name, or not all do."""
    last = f"{family.last_norm.tensor}.weight"
    before = [name.removesuffix(last) for name in names if name.endswith(last)]
    if len(before) == 1 and before[0].endswith(".") and all(name.startswith(before[0]) for name in names):
        return before[0]
    return ""


def lacking_prefix(names: Collection[str], family: Family) -> str:
    """What names lack that were saved from the model without its output projection, as transformers adds it: "model."
    of "model.norm.weight"; empty where they do not."""
    first, _, rest = f"{family.last_norm.tensor}.weight".partition(".")
    lacks = rest in names and not any(name.startswith(f"{first}.") for name in names)
    return f"{first}." if lacks else ""


def sign(name: str) -> str | None:
    """What a name that the model has no tensor for says about the folder."""
    return next((what for parts, what in SIGNS if any(part in name for part in parts)), None)


def same(one: Found, other: Found) -> bool:
    """Whether two tensors hold equal numbers, compared in float32."""
    if one.shape != other.shape:
        return False
    first, second = one.read(), other.read()
    pieces = zip(first.view(-1).split(AT_ONCE), second.view(-1).split(AT_ONCE), strict=True)
    return all(torch.equal(a.float(), b.float()) for a, b in pieces)


def settle_head(where: dict[str, Found], model: Model, note: Note) -> Model:
    """Tie embedding and output projection as transformers does: where the config says so and the files hold one of
    them, or two that are equal; ``where`` keeps one then."""
    family = model.family
    head, embedding = where.get(family.head or ""), where.get(family.embedding)
    if not model.tied or head is None or family.head is None:
        return model
    if embedding is None:
        note(f"{family.embedding} is not there; it is tied to {family.head}")
        where[family.embedding] = where.pop(family.head)
    elif same(head, embedding):
        del where[family.head]
    else:
        note(f"tie_word_embeddings is true, but {family.head} differs from the embedding, and is used")
        return replace(model, tied=False)
    return model


def settle_biases(
    where: dict[str, Found], model: Model, config: dict[str, Any], note: Note
) -> tuple[Model, frozenset[str]]:
    """(model, the full names of biases that are zeros): a declared bias is where every layer lacks it and other linears
    under the same flag have theirs."""
    zeros = set[str]()
    layers = [model.family.layer.format(i=i) for i in range(model.num_hidden_layers)]
    for flag in dict.fromkeys(linear.bias for linear in model.family.linears if model.has_bias(linear.name)):
        linears = [linear for linear in model.family.linears if linear.bias == flag]
        modules = list(dict.fromkeys(model.family.view(part).tensor for linear in linears for part in linear.parts))
        lacking = [module for module in modules if not any(f"{layer}{module}.bias" in where for layer in layers)]
        if not lacking:
            continue
        if len(lacking) < len(modules):
            note(f"{', '.join(lacking)}: config.json declares biases, and none are there: they are 0")
            zeros |= {f"{layer}{module}.bias" for layer in layers for module in lacking}
        elif flag == "attn_bias" and config.get("bias") and only_there(config, model.family):
            model = replace(model, attn_bias=False)  # which transformers does not read there
    return model, frozenset(zeros)


def only_there(config: dict[str, Any], family: Family) -> bool:
    """Whether nothing but the key "bias" declares biases of the attention."""
    return not family.read(Reader(config | {"bias": False})).get("attn_bias")


def check_tensors(
    where: dict[str, Found], expected: dict[str, Expected], about: Callable[[str], str], folder: str
) -> None:
    """Raise InputError unless the tensors are the expected ones, each of a dtype and shape that it may have.

    Args:
        about: what to say of a tensor that is not expected.
        folder: for messages.
    """
    for name, tensor in where.items():
        if name not in expected:
            raise InputError(f"{tensor.file}: tensor {printable(tensor.stored, 80)} {about(name)}")
        shapes = [form for kind, form in expected[name].forms if kind == tensor.dtype]
        if not shapes:
            raise InputError(
                f"{tensor.file}: tensor {name} is {tensor.dtype}; only {expected[name].kinds()} can be converted"
            )
        if tensor.shape not in shapes:
            raise InputError(
                f"{tensor.file}: tensor {name} has shape {shown(tensor.shape)}, config.json implies {shapes[0]}"
            )
    missing = [name for name, tensor in expected.items() if name not in where and not tensor.optional]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(f"{folder}: tensor {missing[0]}{more} missing from the safetensors files")
