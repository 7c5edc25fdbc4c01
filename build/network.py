"""Which plugin nodes TensorRT-LLM puts into the network of a checkpoint: in each decoder layer, and outside them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ..convert.errors import InputError
from ..convert.models.families import FAMILIES
from ..convert.models.family import Family
from ..convert.models.pieces import COLUMNS, Group
from ..convert.targets.trtllm.formats import SCHEMES
from ..plugins import catalog, gemm, mixture_of_experts, nccl
from ..plugins.identity import Plugin, Site
from .algorithms import plugins_of
from .checkpoint_folder import CheckpointFolder


@dataclass(frozen=True)
class Nodes:
    """The nodes of one plugin in one decoder layer, or outside the layers.

    Attributes:
        layer: the layer's number in the whole model; None outside the layers.
        places: names inside the layer of what each node computes.
    """

    plugin: Plugin
    layer: int | None
    places: tuple[str, ...]


def rank_nodes(checkpoint: CheckpointFolder, rank: int, gemm_plugin: bool = True) -> list[Nodes]:
    """Every plugin node in one rank's network, layer by layer, then those outside.

    Args:
        gemm_plugin: the build enables gemm_plugin (a plan does).

    Raises:
        InputError: a family whose layers are not known here.
    """
    family = checkpoint.family
    if family is None:
        raise InputError(
            f"config.json: the layers of {checkpoint.architecture} are not known; known: "
            f"{', '.join(name for known in FAMILIES for name in known.architectures)}"
        )
    if checkpoint.precision is None:
        names = ", ".join(str(name) for name in checkpoint.algorithms)
        raise InputError(f"{checkpoint.folder}: the plugins of {names} are not known here; known: {', '.join(SCHEMES)}")
    nodes = [
        Nodes(plugin, layer, places)
        for layer in checkpoint.layers_of(rank)
        for plugin, places in layer_nodes(checkpoint, family, layer, gemm_plugin)
    ]
    return nodes + [Nodes(plugin, None, (place,)) for plugin, place in outside(checkpoint, rank, gemm_plugin)]


def layer_nodes(
    checkpoint: CheckpointFolder, family: Family, layer: int, gemm_plugin: bool
) -> list[tuple[Plugin, tuple[str, ...]]]:
    """The plugins of one decoder layer, and where each has its nodes."""
    algorithms = checkpoint.layer_algorithms(layer)
    own = {group: algorithms[group.linears[0]] for group in family.groups if group.name not in family.of_experts}
    plugins = [(plugin, [g for g in own if plugin in plugins_of(own[g])]) for plugin in catalog.QUANTIZATION]
    if gemm_plugin:
        fused = checkpoint.uniform and checkpoint.config["hidden_act"] in gemm.FUSED_FUNCTIONS
        plain = gemm.IN_FUSED_LAYER if fused else gemm.IN_LAYER
        plugins.append((plain, [group for group in own if own[group] is None]))
    plugins.append((catalog.ATTENTION if family.task is None else catalog.ENCODER_ATTENTION, list(own)))
    if family.experts:
        plugins.append((mixture_of_experts.PLUGIN, list(own)))
    if checkpoint.mapping.tp_size > 1:
        plugins.append((nccl.ALL_REDUCE, list(own)))
    return [(plugin, places) for plugin, groups in plugins if (places := sites(family, plugin.site, groups))]


def sites(family: Family, site: Site, groups: list[Group]) -> tuple[str, ...]:
    """What makes a node in a layer of this family, among these groups of linears."""
    linears = [family.linear(name) for group in groups for name in group.linears]
    if site == "linear":
        return tuple(linear.name for linear in linears)
    if site == "fused linear":
        gated = {"mlp.fc": "mlp.fc+gate"} if any(linear.name == "mlp.gate" for linear in linears) else {}
        return tuple(gated.get(linear.name, linear.name) for linear in linears if linear.name != "mlp.gate")
    if site == "column linear":
        cut = [linear.name for linear in linears if linear.cut == COLUMNS] + (["mlp"] if family.experts else [])
        return ("+".join(cut),) if family.one_all_reduce else tuple(cut)
    if site in ("rmsnorm", "layernorm"):
        norms = [family.norm(group.norm) for group in groups if group.norm is not None]
        return tuple(norm.name for norm in norms if site == f"{norm.kind}norm")
    if site == "input":
        return tuple(group.name for group in groups if group.norm is None)
    if site == "experts":
        return ("mlp",)
    return ("attention",) if site == "attention" else ()


def outside(checkpoint: CheckpointFolder, rank: int, gemm_plugin: bool) -> list[tuple[Plugin, str]]:
    """Plugins outside the decoder layers: what passes between stages, the embedding and lm_head."""
    mapping, nodes = checkpoint.mapping, []
    stage = rank // mapping.tp_size
    first, last = stage == 0, stage == mapping.pp_size - 1
    if checkpoint.family is not None and checkpoint.family.task is not None:
        return [(gemm.PLUGIN, of.name) for of in checkpoint.family.task.projections if gemm_plugin]
    if first and checkpoint.embedding_axis is not None:
        nodes.append((nccl.ALL_GATHER if checkpoint.embedding_axis == 1 else nccl.ALL_REDUCE, "vocab_embedding"))
    if not first:
        nodes.append((nccl.RECV, "hidden_states"))
    if not last:
        nodes.append((nccl.SEND, "hidden_states"))
    if last and gemm_plugin:
        nodes.append((gemm.PLUGIN, "lm_head"))
    if last and mapping.tp_size > 1:
        nodes.append((nccl.ALL_GATHER, "lm_head"))
    return nodes


def totals(nodes: list[Nodes]) -> dict[str, int]:
    """Nodes of each plugin in the whole network."""
    count: Counter[str] = Counter()
    for node in nodes:
        count[node.plugin.name] += len(node.places)
    return dict(sorted(count.items()))
