"""TensorRT-LLM as what a quantized model is for: what it can execute, and a layer as its files hold it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ....plugins.lazy import torch
from ...numbers.quantized import QuantizedLinear
from ...quantize.precision import Precision
from ...quantize.quantization import Quantization
from ...quantize.scheme import LayerSchemes, Scheme
from ..base import Target, Tensors, Wishes, to_dtype
from . import mixture
from .config import checkpoint_config
from .formats import SCHEMES, format_of, scheme_of
from .formats.base import Engine
from .layout import CACHE_SCALE, check_kernels, layer_tensors
from .manifest import QUANT_CFG
from .quant_config import quant_cfg
from .ranks import MODEL_DTYPE, Tensor
from .ranks import Mapping as Ranks

if TYPE_CHECKING:
    from ...quantize.layer import QuantizedLayer
    from ...sources.folder import Source

OTHERWISE = "use another --quant or --exclude the linear"


@dataclass(frozen=True)
class TensorRTLLM(Target):
    """A model for an engine.

    Attributes:
        mapping: the ranks that it is cut for.
        alpha: what config.json says of SmoothQuant.
    """

    precision: Precision
    engine: Engine
    mapping: Ranks = field(default_factory=Ranks)
    alpha: float = 0.5

    name: ClassVar[str] = "trtllm"
    title: ClassVar[str] = "TensorRT-LLM 0.16 to 1.2.1"
    cuts: ClassVar[bool] = True
    turned_tables: ClassVar[bool] = True

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return self.engine.dtype

    @classmethod
    def of(cls, how: Quantization, wishes: Wishes, source: Source) -> TensorRTLLM:
        mapping = Ranks(wishes.tp_size, wishes.pp_size, wishes.moe_ep_size)
        mapping.check(how.model)
        engine, alpha = Engine(how.dtype, wishes.sm), 0.5 if wishes.alpha is None else wishes.alpha
        target = cls(how.precision, engine, mapping, alpha)
        target.check()
        return target

    @classmethod
    def schemes(cls) -> Mapping[str, Scheme]:
        return SCHEMES

    @classmethod
    def scheme(cls, name: str | None, group_size: int = 128) -> Scheme:
        return scheme_of(name, group_size)

    @classmethod
    def check_precision(cls, precision: Precision) -> None:
        mixture.check(precision)

    @classmethod
    def quant(cls, precision: Precision) -> str | None:
        return mixture.quant_algo(precision)

    def check(self) -> None:
        """Raise InputError where a rank's weight fits no kernel, or stages that TensorRT-LLM cannot tell apart."""
        mixture.check_stages(self.precision, self.mapping.stages(self.precision.model.num_hidden_layers))
        check_kernels(self.precision, self.engine, self.mapping)

    def configs(self) -> dict[str, dict[str, Any]]:
        config = checkpoint_config(self.precision, self.mapping, self.dtype, self.alpha)
        layers = quant_cfg(self.precision, self.mapping.stages(self.precision.model.num_hidden_layers)[0])
        return {"config.json": config} | ({} if layers is None else {QUANT_CFG: layers})

    @property
    def recorded(self) -> dict[str, Any]:
        return {"packed_for_sm": mixture.packed_for_sm(self.precision, self.engine)}

    def having(self, precision: Precision) -> TensorRTLLM:
        return replace(self, precision=precision)

    def computed(self, scheme: Scheme, made: QuantizedLinear) -> torch.Tensor:
        """The weight that an engine multiplies with, float32 [out, in], of linears that nothing quantizes before; on
        GPUs of one generation, for integers must not depend on where they run."""
        form = format_of(scheme, Engine(self.engine.dtype))
        return form.weight(form.store(made))

    def tensors(self, index: int) -> dict[str, Tensor]:
        """What a layer's file holds, by name inside the layer."""
        return layer_tensors(self.precision.model, self.precision.executed(index), self.engine, self.precision.kv_cache)

    def layer(self, index: int, quantized: QuantizedLayer) -> Tensors:
        """A layer's tensors in the dtypes that its file holds, whole; packed integers are left logical."""
        specs = self.tensors(index)
        named = self.named(self.precision.executed(index), quantized)
        return {name: self.cast(tensor, specs[name], f"layer {index}: {name}") for name, tensor in named.items()}

    def named(self, schemes: LayerSchemes, quantized: QuantizedLayer) -> Tensors:
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

    def shared(self, tensors: Tensors) -> Tensors:
        """What all experts have one of: the largest of theirs, for each."""
        form = format_of(self.precision.base.experts or self.precision.base, self.engine)
        found = Tensors()
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
