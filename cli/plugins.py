"""``enginesmith plugins``: each layer, each plugin, how many nodes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby

import click

from ..build.checkpoint_folder import CheckpointFolder
from ..build.network import Nodes, rank_nodes, totals
from ..convert.errors import printable
from .options import Command


@click.command(cls=Command)
@click.argument("checkpoint_dir", metavar="CHECKPOINT_DIR")
@click.option("--rank", type=click.IntRange(0), help="One rank's network.  [default: every rank's]")
@click.option("--json", "as_json", is_flag=True, help="Print the nodes as JSON.")
def plugins(checkpoint_dir: str, rank: int | None, as_json: bool) -> None:
    """Show which TensorRT-LLM plugins a checkpoint's engine uses: in each layer, how many nodes of each.

    Native TensorRT layers (norms, activations, W8A8_SQ_PER_CHANNEL's quantize and dequantize) are not plugins. Counts
    are those of a build with gemm_plugin, as enginesmith build plans it.
    """
    checkpoint = CheckpointFolder(checkpoint_dir, "CHECKPOINT_DIR")
    if rank is not None and rank >= checkpoint.world_size:
        raise click.UsageError(f"--rank {rank}: the checkpoint has ranks 0 to {checkpoint.world_size - 1}")
    ranks = range(checkpoint.world_size) if rank is None else [rank]
    nodes = {number: rank_nodes(checkpoint, number) for number in ranks}
    if as_json:
        click.echo(json.dumps({number: as_data(found) for number, found in nodes.items()}))
        return
    algorithm = checkpoint.algorithm or "no quantization"
    ranks_there = "1 rank" if checkpoint.world_size == 1 else f"{checkpoint.world_size} ranks"
    click.echo(f"{checkpoint.folder}: {printable(f'{checkpoint.architecture}, {algorithm}')}, {ranks_there}")
    for same, numbers in groupby(nodes, key=lambda number: (rows(nodes[number]), totals(nodes[number]))):
        alike = list(numbers)
        click.echo(f"\nrank {alike[0]}" if len(alike) == 1 else f"\nranks {alike[0]} to {alike[-1]}, each")
        for row in same[0]:
            click.echo(f"  {row}")
        click.echo("  in all: " + ", ".join(f"{name} {count}" for name, count in same[1].items()))


def rows(nodes: list[Nodes]) -> list[str]:
    """One line a plugin: the layers it is in, nodes in each of them, and of what."""
    lines = []
    for plugin, layers, places in gathered(nodes):
        where = "outside" if layers is None else f"layers {layers.start} to {layers.stop - 1}"
        if layers is not None and len(layers) == 1:
            where = f"layer {layers.start}"
        each = f"{len(places)}" + ("" if layers is None else " a layer")
        lines.append(f"{where:<16} {plugin:<24} {each:<10} {', '.join(places)}")
    return lines


def gathered(nodes: list[Nodes]) -> Iterator[tuple[str, range | None, tuple[str, ...]]]:
    """Layers that follow each other and have the same nodes of a plugin, put together."""
    kinds = dict.fromkeys((node.plugin.name, node.places, node.layer is None) for node in nodes)
    for name, places, outside in kinds:
        layers = [n.layer for n in nodes if (n.plugin.name, n.places, n.layer is None) == (name, places, outside)]
        numbers = [layer for layer in layers if layer is not None]
        for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
            consecutive = [layer for _, layer in run]
            yield name, range(consecutive[0], consecutive[-1] + 1), places
        if outside:
            yield name, None, places


def as_data(nodes: list[Nodes]) -> dict[str, object]:
    listed = [{"layer": node.layer, "plugin": node.plugin.name, "nodes": list(node.places)} for node in nodes]
    return {"totals": totals(nodes), "nodes": listed}
