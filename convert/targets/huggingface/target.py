"""A folder under Hugging Face's names: what a layer becomes in it, and all that stands around the layers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from ....plugins.lazy import torch
from ...errors import InputError
from ...models.model import Model
from ...models.shapes import hugging_face_shapes, module_sizes, modules, whole_rows
from ...numbers.quantized import QuantizedLinear, stacked
from ...quantize.precision import Precision
from ...quantize.quantization import Quantization
from ...quantize.scheme import Scheme
from ...sources.readymade.kinds import ANEW
from ..base import Target, Tensors, Wishes, to_dtype
from .config import check_beside, model_config
from .format import Floating, Format, Spec, sized

if TYPE_CHECKING:
    from ...quantize.layer import CacheReach, QuantizedLayer
    from ...sources.folder import Source

Own = TypeVar("Own", bound="HuggingFace")
# Last names of scales, and of factors of inputs.
SCALES = ("scale", "scales")


@dataclass(frozen=True)
class HuggingFace(Target):
    """A quantized model in Hugging Face's names.

    Class attributes:
        formats: of linears, the kinds that its runtime reads.
        notice: what quant says where several schemes are mixed; None where its runtime knows no mixture.

    Attributes:
        source: the folder that the model comes from.
        shard_size: bytes that one file may hold.
        symmetric: groups have no zero points, whatever their scheme.
    """

    precision: Precision
    dtype: str
    source: Source
    shard_size: int
    symmetric: bool = False

    formats: ClassVar[tuple[type[Format], ...]]
    mixture: ClassVar[str | None] = None
    caches: ClassVar[tuple[str, ...]] = ("FP8",)

    @classmethod
    def of(cls: type[Own], how: Quantization, wishes: Wishes, source: Source) -> Own:
        target = cls(how.precision, how.dtype, source, wishes.shard_size, how.choices.symmetric)
        check_model(how.model, cls.title)
        check_beside(source.folder)
        target.check(how)
        return target

    @classmethod
    def schemes(cls) -> Mapping[str, Scheme]:
        return {name: scheme for kind in cls.formats for name, scheme in kind.schemes.items()}

    @classmethod
    def scheme(cls, name: str | None, group_size: int = 128) -> Scheme:
        if name is None:
            return Scheme()
        scheme = cls.schemes()[name]
        return sized(scheme, group_size, cls.kind_of(scheme).group_sizes)

    @classmethod
    def kind_of(cls, scheme: Scheme) -> type[Format]:
        """The format that holds a scheme."""
        return next((kind for kind in cls.formats if scheme.name in kind.schemes), Floating)

    @classmethod
    def check_precision(cls, precision: Precision) -> None:
        if cls.mixture is None and len(precision.quantized) > 1:
            both = " and ".join(str(scheme.name) for scheme in precision.quantized[:2])
            raise InputError(f"--quant_layer: {cls.title} reads no mixture of {both}; --target modelopt or trtllm does")

    @classmethod
    def quant(cls, precision: Precision) -> str | None:
        if len(precision.quantized) > 1:
            return cls.mixture
        return precision.quantized[0].name if precision.quantized else None

    def check(self, how: Quantization) -> None:
        """Raise InputError for what its runtime does not read, or would read wrongly."""
        model = self.precision.model
        for index in range(model.num_hidden_layers):
            for group in model.family.groups:
                form = self.format_of(self.precision.layer(index)[group.name])
                for module, parts in modules(model, group).items():
                    form.check(*module_sizes(model, parts), f"layer {index}: {module}")

    def format_of(self, scheme: Scheme) -> Format:
        held = replace(scheme, zeros=False) if self.symmetric else scheme
        return self.kind_of(scheme)(held, self.dtype)

    def having(self, precision: Precision) -> HuggingFace:
        return replace(self, precision=precision)

    def computed(self, scheme: Scheme, made: QuantizedLinear) -> torch.Tensor:
        """A weight that is dequantized before the product is so in the model's dtype."""
        weight = made.dequantize()
        return weight.to(getattr(torch, self.dtype)).float() if scheme.weight_only else weight

    def cache(self, reach: CacheReach | None) -> Tensors:
        """The tensors of a quantized KV cache, by name inside a layer; reach None stands for any numbers."""
        return {}

    @abstractmethod
    def quantization(self) -> dict[str, Any]:
        """config.json's quantization_config."""

    def layer(self, index: int, quantized: QuantizedLayer) -> Tensors:
        """A layer's tensors, by their full names."""
        schemes, (rows, biases) = self.precision.layer(index), self.parts(quantized)
        prefix, tensors = self.prefix(index), self.norms(quantized.common) | self.cache(quantized.cache)
        for group in self.precision.model.family.groups:
            form = self.format_of(schemes[group.name])
            for module, parts in modules(self.precision.model, group).items():
                made = stacked([rows[part] for part in parts], parts)
                form.check_smoother(made, group.norm is not None, f"layer {index}: {module}")
                tensors |= {f"{module}.{suffix}": tensor for suffix, tensor in form.store(made).items()}
                if parts[0] in biases:
                    tensors[f"{module}.bias"] = torch.cat([biases[part] for part in parts])
        specs = self.layer_specs(index)
        cast = {prefix + name: self.cast(of, specs[name][1], prefix + name) for name, of in tensors.items()}
        for name in [name for name in cast if name.endswith(SCALES)]:
            self.check_scale(cast[name], name)
        return cast

    def check_scale(self, scale: torch.Tensor, name: str) -> None:
        """Raise InputError for a scale that is 0 as it is stored, as one of a ready-made folder may be."""
        if not (scale.float() > 0).all():
            raise InputError(f"{name}: holds a scale that {scale.dtype} cannot; {ANEW}".replace("torch.", ""))

    def parts(self, quantized: QuantizedLayer) -> tuple[dict[str, QuantizedLinear], Tensors]:
        """Weights and biases of a layer's logical linears."""
        rows, biases = dict[str, QuantizedLinear](), Tensors()
        for linear in self.precision.model.family.linears:
            each, bias = self.precision.model.out_features(linear.name), quantized.common.get(f"{linear.name}.bias")
            rows |= dict(zip(linear.parts, quantized.linears[linear.name].rows(each), strict=True))
            if bias is not None:
                biases |= dict(zip(linear.parts, bias.split(each), strict=True))
        return rows, biases

    def norms(self, common: Tensors) -> Tensors:
        """A layer's norms as the family stores them."""
        family, offset = self.precision.model.family, self.precision.model.family.norm_offset
        return {
            f"{norm.tensor}.{suffix}": common[f"{norm.name}.{suffix}"] - (offset if suffix == "weight" else 0)
            for norm in family.all_norms
            for suffix in norm.suffixes
        }

    def cast(self, tensor: torch.Tensor, dtype: str, name: str) -> torch.Tensor:
        if tensor.is_floating_point() and tensor.element_size() > 1:
            return to_dtype(tensor, dtype, name)
        return tensor

    def layer_specs(self, index: int) -> dict[str, Spec]:
        """What a layer holds, by name inside it."""
        model, schemes = self.precision.model, self.precision.layer(index)
        specs: dict[str, Spec] = {}
        for norm in model.family.all_norms:
            specs |= {f"{norm.tensor}.{suffix}": (model.norm_shape(norm), self.dtype) for suffix in norm.suffixes}
        for group in model.family.groups:
            form = self.format_of(schemes[group.name])
            for module, parts in modules(model, group).items():
                out_features, in_features = module_sizes(model, parts)
                own = form.tensors(out_features, in_features, group.norm is not None)
                specs |= {f"{module}.{suffix}": spec for suffix, spec in own.items()}
                if model.has_bias(model.family.linear_of_part(parts[0]).name):
                    specs[f"{module}.bias"] = ([out_features], self.dtype)
        for name, tensor in self.cache(None).items():
            specs[name] = (list(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        return specs

    @cached_property
    def around(self) -> dict[str, Spec]:
        """What stands around the layers, in the order of the source's shapes."""
        model, inside = self.precision.model, tuple(map(self.prefix, range(self.precision.model.num_hidden_layers)))
        shapes = hugging_face_shapes(model)
        if model.tied and model.family.head is not None:
            shapes.pop(model.family.head)
        return {name: (shape, self.dtype) for name, shape in shapes.items() if not name.startswith(inside)}

    def prefix(self, index: int) -> str:
        return self.precision.model.family.layer.format(i=index)

    def specs(self) -> dict[str, Spec]:
        """Everything that the folder's tensors are, in the order in which they are written."""
        model = self.precision.model
        specs = {name: spec for name, spec in self.around.items() if name == model.family.embedding}
        for index in range(model.num_hidden_layers):
            prefix = self.prefix(index)
            specs |= {prefix + name: spec for name, spec in self.layer_specs(index).items()}
        return specs | self.around

    def ends(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What stands around the layers, as the source has it, in the model's dtype."""
        for name in self.around:
            yield name, self.stored(self.source.tensor(name), name)

    def configs(self) -> dict[str, dict[str, Any]]:
        config = model_config(self.source.config, self.precision.model, self.dtype)
        quantized = {"quantization_config": self.quantization()} if self.precision.quantized else {}
        return {"config.json": config | quantized}


def check_model(model: Model, title: str) -> None:
    """Raise InputError for a model that is not written under Hugging Face's names."""
    family = model.family
    reason = None
    if not family.predicts_tokens:
        reason = "it predicts no tokens"
    elif family.mixture is not None:
        reason = "its experts would have to be written one by one"
    elif not whole_rows(family):
        reason = "its files transpose linears, or interleave their heads"
    elif any(model.multipliers.get(part, 1.0) != 1 for linear in family.linears for part in linear.parts):
        reason = "its multipliers are folded into weights"
    if reason is not None:
        raise InputError(f"{model.architecture} is not written for {title}: {reason}; --target trtllm converts it")
