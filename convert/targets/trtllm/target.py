"""TensorRT-LLM as what a quantized model is for: what it can execute, and a layer as its files hold it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ....plugins.lazy import torch
from ...errors import InputError
from ...models.encoder_head import EncoderHead
from ...models.ends import Embedding, Head
from ...models.pieces import Norm
from ...numbers.finite import finite
from ...numbers.quantized import QuantizedLinear
from ...quantize.precision import Precision
from ...quantize.scheme import LayerSchemes, Scheme
from .formats import format_of
from .formats.base import Engine
from .layout import CACHE_SCALE, check_kernels, layer_tensors
from .mixture import check_stages
from .ranks import MODEL_DTYPE, Mapping, Tensor

if TYPE_CHECKING:
    from ...quantize.layer import QuantizedLayer

WIDER, OTHERWISE = "use --dtype bfloat16", "use another --quant or --exclude the linear"


@dataclass(frozen=True)
class Target:
    """A model for an engine.

    Attributes:
        precision: the scheme of each group of linears.
    """

    precision: Precision
    engine: Engine

    def check(self, mapping: Mapping) -> None:
        """Raise InputError where a rank's weight fits no kernel, or stages that TensorRT-LLM cannot tell apart."""
        check_stages(self.precision, mapping.stages(self.precision.model.num_hidden_layers))
        check_kernels(self.precision, self.engine, mapping)

    def computed(self, scheme: Scheme, made: QuantizedLinear) -> torch.Tensor:
        """The weight that an engine multiplies with, float32 [out, in], of linears that nothing quantizes before; on
        GPUs of one generation, for integers must not depend on where they run."""
        form = format_of(scheme, Engine(self.engine.dtype))
        return form.weight(form.store(made))

    def tensors(self, index: int) -> dict[str, Tensor]:
        """What a layer's file holds, by name inside the layer."""
        return layer_tensors(self.precision.model, self.precision.executed(index), self.engine, self.precision.kv_cache)

    def layer(self, index: int, quantized: QuantizedLayer) -> dict[str, torch.Tensor]:
        """A layer's tensors in the dtypes that its file holds, whole; packed integers are left logical."""
        specs = self.tensors(index)
        named = self.named(self.precision.executed(index), quantized)
        return {name: self.cast(tensor, specs[name], f"layer {index}: {name}") for name, tensor in named.items()}

    def named(self, schemes: LayerSchemes, quantized: QuantizedLayer) -> dict[str, torch.Tensor]:
        """A layer's tensors under TensorRT-LLM's names inside the layer."""
        tensors = dict(quantized.common)
        if quantized.cache_scale is not None:
            tensors[CACHE_SCALE] = quantized.cache_scale
        for group in self.precision.model.family.groups:
            form = format_of(schemes[group.name], self.engine)
            scale = form.input_scale(group)
            if scale is not None:
                tensors[scale] = form.stored_input_scale(quantized.linears[group.linears[0]])
            for name in group.linears:
                own = form.store(quantized.linears[name])
                tensors |= {f"{name}.{suffix}": tensor for suffix, tensor in own.items()}
        return tensors | self.shared(tensors)

    def shared(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What all experts have one of: the largest of theirs, for each."""
        form = format_of(self.precision.base.experts or self.precision.base, self.engine)
        found = dict[str, torch.Tensor]()
        for linears in zip(
            *((mlp.first[0].name, mlp.last.name) for mlp in self.precision.model.family.experts), strict=True
        ):
            for suffix in form.shared:
                names = [f"{linear}.{suffix}" for linear in linears]
                found |= dict.fromkeys(names, torch.stack([tensors[name] for name in names]).amax(0))
        return found

    def cast(self, tensor: torch.Tensor, spec: Tensor, name: str) -> torch.Tensor:
        if tensor.dtype == torch.int8:  # logical integers
            return tensor
        if spec.dtype == MODEL_DTYPE:
            return to_dtype(tensor, self.engine.dtype, name)
        return to_dtype(tensor, spec.dtype, name, f"its format has {spec.dtype} there; {OTHERWISE}")

    def embedding(self, embedding: Embedding) -> Embedding:
        """In the engine's dtype."""
        family, positions = self.precision.model.family, embedding.positions
        tokens = self.stored(embedding.tokens, family.embedding)
        if positions is not None:
            positions = self.stored(positions, str(family.position_embedding))
        types = embedding.types
        if types is not None:
            types = self.stored(types, str(family.type_embedding))
        norm = self.norm(family.embedding_norm, embedding)
        return replace(embedding, tokens=tokens, positions=positions, norm=norm, types=types)

    def encoder_head(self, head: EncoderHead) -> EncoderHead:
        """In the engine's dtype, or in what an engine has there whatever its dtype."""
        return head.map(lambda of, suffix, x: to_dtype(x, of.dtype or self.engine.dtype, f"{of.tensor}.{suffix}"))

    def head(self, head: Head) -> Head:
        """In the engine's dtype."""
        family, bias = self.precision.model.family, head.bias
        if bias is not None:
            bias = self.stored(bias, str(family.head_bias))
        weight = self.stored(head.weight, str(family.head))
        return replace(head, weight=weight, bias=bias, norm=self.norm(family.final_norm, head))

    def norm(self, norm: Norm | None, end: Embedding | Head) -> dict[str, torch.Tensor]:
        """The norm of an end, by last name."""
        return {suffix: self.stored(of, f"{norm.tensor}.{suffix}") for suffix, of in end.norm.items() if norm}

    def stored(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """A tensor of an end in the engine's dtype."""
        return to_dtype(tensor, self.engine.dtype, name)


def to_dtype(tensor: torch.Tensor, dtype: str, name: str, way: str = WIDER) -> torch.Tensor:
    """Cast, refusing anything that would not be a finite number in the checkpoint.

    Args:
        way: what to do where the dtype is too narrow.
    """
    cast = tensor.to(getattr(torch, dtype))
    if cast.element_size() > 1 and not finite(cast):
        largest = float(tensor.abs().max())
        if math.isfinite(largest) and dtype == "float16":
            raise InputError(f"{name} does not fit float16 (it reaches {largest:.3g}); {way}")
        raise InputError(f"{name} is not finite in {dtype} (it reaches {largest:.3g}); the weights are unusable")
    return cast
