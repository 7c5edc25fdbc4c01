"""Triton kernels compiled ahead of time for one GPU generation, as something that is not Triton launches them.

Triton appends two pointers to every kernel's parameters (to global and to profile scratch memory), which its own
launcher passes. TensorRT passes inputs, integers and outputs, and nothing behind them: the pointers, which no kernel
here reads, are cut off. All arithmetic is written with its rounding, so that no assembler contracts it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

WARP = 32
# An old one, which the drivers that TensorRT 10.9 asks for read: it has all that the kernels are made of.
PTX_VERSION = 83
# Bytes of dynamic shared memory that a kernel gets on every GPU though nobody raises its limit. Whether TensorRT
# does so is not documented.
MOST_SHARED = 49152
# What pointers are multiples of, which wide loads need; TensorRT's own memory is aligned to 256 bytes.
ALIGNED = [["tt.divisibility", 16]]


class Kernel(NamedTuple):
    """Attributes:

    name: of the entry.
    ptx: its text; file names and lines are left out.
    threads: of a block, along x.
    shared: bytes of dynamic shared memory.
    """

    name: str
    ptx: str
    threads: int
    shared: int


def compiled(
    entry: Any, sm: int, types: Mapping[str, str], constants: Mapping[str, object], *, warps: int, stages: int = 3
) -> Kernel:
    """Compile a kernel that is passed ``types``, in their order, and nothing else.

    Args:
        entry: of ``triton.jit``.
        sm: the GPU generation: 80, 86, 89, 90.
        types: of parameters, as Triton writes them: "*i8", "*fp16", "i32".
        constants: values of those that are ``tl.constexpr``.
    """
    names = list(entry.arg_names)
    if [name for name in names if name not in constants] != list(types):
        raise ValueError(f"{entry.__name__} takes {names}, not {list(types)} and {list(constants)}")
    source = ASTSource(
        fn=entry,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): ALIGNED for name, kind in types.items() if kind.startswith("*")},
    )
    schedule = {"num_warps": warps, "num_stages": stages}
    options = schedule | {"enable_fp_fusion": False, "ptx_version": PTX_VERSION}
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.disable_line_info = True
        made = triton.compile(source, target=GPUTarget("cuda", sm, WARP), options=options)
    shared = int(made.metadata.shared)
    if shared > MOST_SHARED:
        raise ValueError(f"{entry.__name__} takes {shared} bytes of shared memory, {MOST_SHARED} are sure to be there")
    return Kernel(made.metadata.name, without_scratch(made.asm["ptx"], len(types)), warps * WARP, shared)


def without_scratch(ptx: str, count: int) -> str:
    """PTX whose entry has its first ``count`` parameters, of which it must read no other."""
    start, parameters, rest = entry_of(ptx)
    if len(parameters) < count:
        raise ValueError(f"the entry has {len(parameters)} parameters, {count} were declared")
    for parameter in parameters[count:]:
        name = parameter.split()[-1]
        if re.search(rf"\b{re.escape(name)}\b", rest):
            raise ValueError(f"the kernel reads {name}, which only Triton passes")
    return start + ",".join(parameters[:count]) + "\n" + rest


def entry_of(ptx: str) -> tuple[str, list[str], str]:
    """PTX up to its entry's parameters; these; and what comes behind."""
    found = re.search(r"\.entry\s+[\w$]+\(", ptx)
    if found is None:
        raise ValueError("the PTX has no entry")
    end = ptx.index(")", found.end())
    return ptx[: found.end()], ptx[found.end() : end].split(","), ptx[end:]
