"""The formats of linears that this project writes for TensorRT-LLM: one file each, and here the list of them."""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import Any

from ....errors import InputError, shown
from ....quantize.scheme import Scheme
from .awq import Awq
from .base import Engine, Format
from .floating import Floating
from .fp8 import Fp8
from .fp8_rowwise import Fp8Rowwise
from .gptq import Gptq
from .qserve import QServeChannel, QServeGroup
from .smoothquant import SmoothQuant
from .smoothquant_qdq import SmoothQuantLayers
from .weight_only import WeightOnly

FORMATS: tuple[type[Format], ...] = (
    Floating,
    SmoothQuantLayers,
    SmoothQuant,
    WeightOnly,
    Awq,
    Gptq,
    Fp8,
    Fp8Rowwise,
    QServeGroup,
    QServeChannel,
)
_OF_NAME = {scheme.name: kind for kind in FORMATS for scheme in kind.schemes}
# By QuantAlgo.
SCHEMES = {scheme.name: scheme for kind in FORMATS for scheme in kind.schemes if scheme.name is not None}


def kind_of(scheme: Scheme) -> type[Format]:
    """The format that holds linears of a scheme."""
    return _OF_NAME[scheme.held_as or scheme.name]


def format_of(scheme: Scheme, engine: Engine) -> Format:
    return kind_of(scheme)(scheme, engine)


def scheme_of(name: Any, group_size: int = 128) -> Scheme:
    """The scheme of a QuantAlgo; floating point for None.

    Args:
        group_size: input channels that share a scale, for schemes whose kernels leave a choice.

    Raises:
        InputError: a name that this version does not write, or a group size that its kernels do not know.
    """
    if name is None:
        return Scheme()
    if not isinstance(name, str) or name not in SCHEMES:
        close = difflib.get_close_matches(name[:80].upper(), SCHEMES, 2) if isinstance(name, str) else []
        hint = f"did you mean {' or '.join(close)}?" if close else "enginesmith convert --help lists the names"
        raise InputError(f"quantization {shown(name)} is not supported; {hint}")
    scheme = SCHEMES[name]
    sizes = kind_of(scheme).group_sizes(scheme)
    if sizes and group_size not in sizes:
        raise InputError(f"group_size {group_size}: the kernels of {name} know {' and '.join(map(str, sizes))}")
    if not sizes:
        return scheme
    experts = scheme.experts
    if experts is not None and experts.group_size is not None:
        experts = replace(experts, group_size=group_size)
    return replace(scheme, group_size=group_size, experts=experts)
