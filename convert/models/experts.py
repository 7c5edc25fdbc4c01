"""A family with the experts of one model: every expert's linears and groups, as if a layer had that many MLPs."""

from __future__ import annotations

from dataclasses import replace

from .family import Family
from .mixture import Names
from .pieces import COLUMNS, EVEN, ROWS, Group, Linear, Mlp, View

# TensorRT-LLM's names: one tensor holds the same matrix of all experts.
FIRST, LAST, SHARED = "mlp.fc", "mlp.proj", "mlp.shared_expert"


def spread(family: Family, experts: int) -> Family:
    """The family of a model with so many experts."""
    mixture = family.mixture
    if mixture is None:
        return family
    named = [tuple(name.format(e=e) for name in mixture.expert) for e in range(experts)]
    own = [expert(names, e) for e, names in enumerate(named)]
    views = dict(family.views)
    for e, names in enumerate(named if mixture.stacked else ()):
        for part, module, turned in zip(names, mixture.stacked or (), (False, False, True), strict=True):
            views[part] = View(module, e, turned, EVEN, bare=True)
    shared = None
    if mixture.shared is not None:
        fc, proj = f"{SHARED}.fc", f"{SHARED}.proj"
        shared = linears(fc, proj, mixture.shared, "shared_expert_intermediate_size")
    all_of_them = [*own, *([] if shared is None else [shared])]
    attention = [group for group in family.groups if group.linears[0].startswith("attention")]
    groups = [group for mlp in all_of_them for group in groups_of(mlp)]
    return replace(
        family,
        linears=(*family.linears[:2], *(linear for mlp in all_of_them for linear in (*mlp.first, mlp.last))),
        groups=(*attention, *groups),
        views=views,
        experts=tuple(own),
        shared=shared,
    )


def expert(names: tuple[str, ...], number: int) -> Mlp:
    """One expert; its tensors lie with those of the others."""
    up, gate, down = names
    made = linears(f"mlp.experts.{number}.fc", f"mlp.experts.{number}.proj", (up, gate, down), "moe_intermediate_size")
    fc = replace(made.first[0], stacked=FIRST, expert=number)
    return replace(made, first=(fc,), last=replace(made.last, stacked=LAST, expert=number))


def linears(fc: str, proj: str, names: Names, width: str) -> Mlp:
    """An MLP of one matrix of up and gate, and one of down."""
    up, gate, down = names
    first = Linear(fc, (up, gate), ROWS, (width, width), "hidden_size", None)
    return Mlp((first,), Linear(proj, (down,), COLUMNS, ("hidden_size",), width, None), 1)


def groups_of(mlp: Mlp) -> tuple[Group, Group]:
    """Its inputs. The router reads the first one too, so that no norm may take a factor of it."""
    (first,) = mlp.first
    return Group(first.name, (first.name,)), Group(mlp.last.name, (mlp.last.name,), feeder=first.parts[0])
