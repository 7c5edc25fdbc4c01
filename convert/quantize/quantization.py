"""How a model is quantized, decided before any number of it is read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import or_

from ..models.model import Model
from ..statistics.wanted import Wanted
from .options import QuantizeOptions
from .precision import Precision
from .scheme import Scheme

# What must have been seen of a layer to know whether float16 holds what it makes.
HALF_RANGE = Wanted(ranges=True, outputs=True)


@dataclass(frozen=True)
class Quantization:
    """How every layer of a model is quantized.

    Attributes:
        precision: the scheme of each group of linears.
        dtype: the engine's, "float16" or "bfloat16".
        rotation: seed of the rotation of the residual stream, or None.
        turned_tables: yarn's attention factor goes into queries, for the runtime's rotary tables leave it out.
    """

    precision: Precision
    choices: QuantizeOptions
    dtype: str
    rotation: int | None = None
    turned_tables: bool = True

    @property
    def model(self) -> Model:
        return self.precision.model

    @property
    def wanted(self) -> Wanted:
        """What calibration must learn; where it runs at all, also whether float16 holds what a layer makes."""
        schemes = {scheme for index in self.layers for scheme in self.precision.executed(index).values()}
        needed = reduce(or_, (wanted(scheme, self.choices) for scheme in schemes))
        needed |= Wanted(cache=self.precision.kv_cache is not None)
        return needed | HALF_RANGE if needed != Wanted() and self.dtype == "float16" else needed

    @property
    def plain(self) -> frozenset[str]:
        """Groups of experts of whose inputs no more is wanted than ranges: there are many of them."""
        read = (
            (name, wanted(scheme, self.choices))
            for i in self.layers
            for name, scheme in self.precision.executed(i).items()
        )
        more = {name for name, own in read if own.tokens or own.gram or own.magnitude}
        return self.model.family.of_experts - more

    @property
    def layers(self) -> range:
        return range(self.model.num_hidden_layers)


def wanted(scheme: Scheme, options: QuantizeOptions) -> Wanted:
    """What calibration must learn for a scheme."""
    if options.repacks:
        return Wanted()
    return Wanted(
        tokens=scheme.smooths,
        gram=scheme.grouped or options.gptq(scheme),
        magnitude=scheme.grouped and scheme.prescaled,
        ranges=scheme.static,
        outputs=scheme.smooths and scheme.static,
    )
