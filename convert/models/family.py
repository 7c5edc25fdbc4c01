"""Model families as data: what makes a layer, what feeds what, and how it is cut over ranks.

A family names its Hugging Face tensors and TensorRT-LLM's names for the same things. Everything
else (tensor layout, smoothing groups, sharding, the runtime) is derived from it.
"""

from __future__ import annotations

from dataclasses import dataclass

HEADS, ROWS, COLUMNS = "heads", "rows", "columns"


@dataclass(frozen=True)
class Linear:
    """One TensorRT-LLM linear layer.

    Attributes:
        name: TensorRT-LLM's name inside a layer.
        parts: the Hugging Face linears whose output rows it stacks, in order.
        cut: how tensor parallelism cuts it: HEADS (each part by its heads), ROWS (out_features)
            or COLUMNS (in_features, followed by an all-reduce).
        out_features, in_features: names of the model dimensions, out_features one per part.
        bias: name of the model flag that gives it a bias.
    """

    name: str
    parts: tuple[str, ...]
    cut: str
    out_features: tuple[str, ...]
    in_features: str
    bias: str


@dataclass(frozen=True)
class Group:
    """Linears that read one input and therefore share one smoothing factor.

    Exactly one of ``norm`` (the layer norm that makes the input) and ``feeder`` (the Hugging Face
    linear whose output rows become the input channels, up to an elementwise product or a
    weighted mean over tokens) is set.
    """

    name: str
    linears: tuple[str, ...]
    norm: str | None = None
    feeder: str | None = None


@dataclass(frozen=True)
class Family:
    architectures: tuple[str, ...]
    embedding: str
    final_norm: str
    head: str
    layer: str
    norms: dict[str, str]
    linears: tuple[Linear, ...]
    groups: tuple[Group, ...]
    ignored: tuple[str, ...]

    def linear(self, name: str) -> Linear:
        return next(linear for linear in self.linears if linear.name == name)

    def linear_of_part(self, part: str) -> Linear:
        """The fused linear that holds a Hugging Face linear."""
        return next(linear for linear in self.linears if part in linear.parts)

    def group_of(self, linear: str) -> Group:
        return next(group for group in self.groups if linear in group.linears)

    @property
    def attention(self) -> tuple[str, str, str]:
        """The Hugging Face linears that make queries, keys and values."""
        query, key, value = next(linear.parts for linear in self.linears if linear.cut == HEADS)
        return query, key, value

    def parts(self, group: Group) -> list[str]:
        """The Hugging Face linears that read a group's input."""
        return [part for name in group.linears for part in self.linear(name).parts]

    def group_of_part(self, part: str) -> Group:
        """The group that holds a Hugging Face linear."""
        return self.group_of(self.linear_of_part(part).name)


LLAMA = Family(
    architectures=("LlamaForCausalLM", "MistralForCausalLM"),
    embedding="model.embed_tokens.weight",
    final_norm="model.norm.weight",
    head="lm_head.weight",
    layer="model.layers.{i}.",
    norms={"input_layernorm": "input_layernorm", "post_layernorm": "post_attention_layernorm"},
    linears=(
        Linear(
            "attention.qkv",
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            HEADS,
            ("query_size", "kv_size", "kv_size"),
            "hidden_size",
            "attn_bias",
        ),
        Linear("attention.dense", ("self_attn.o_proj",), COLUMNS, ("hidden_size",), "query_size", "attn_bias"),
        Linear("mlp.fc", ("mlp.gate_proj",), ROWS, ("intermediate_size",), "hidden_size", "mlp_bias"),
        Linear("mlp.gate", ("mlp.up_proj",), ROWS, ("intermediate_size",), "hidden_size", "mlp_bias"),
        Linear("mlp.proj", ("mlp.down_proj",), COLUMNS, ("hidden_size",), "intermediate_size", "mlp_bias"),
    ),
    groups=(
        Group("attention.qkv", ("attention.qkv",), norm="input_layernorm"),
        Group("attention.dense", ("attention.dense",), feeder="self_attn.v_proj"),
        Group("mlp.fc+gate", ("mlp.fc", "mlp.gate"), norm="post_layernorm"),
        Group("mlp.proj", ("mlp.proj",), feeder="mlp.up_proj"),
    ),
    ignored=("rotary_emb.inv_freq", "self_attn.rotary_emb.inv_freq"),
)
FAMILIES = (LLAMA,)
