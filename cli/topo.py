"""`orch topo`: the tree that placement sees, of files without a cluster."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli import context
from cli import output as out
from cli.errors import NOT_FOUND, USAGE, Fail

if TYPE_CHECKING:
    from orchestrator.hardware.model import Cluster, Domain, Node


@click.command("topo")
@click.option(
    "--from", "files", multiple=True, type=click.Path(path_type=Path), help="A file to read; may be repeated."
)
@click.option("--node", help="Only this node, drawn whole.")
@out.output_option
@click.argument("more", nargs=-1, type=click.Path(path_type=Path))
def topo(files: Sequence[Path], more: Sequence[Path], node: str | None, output: str) -> None:
    """The tree of the cluster, and what is free of it.

    Pods, leaves, nodes, NVLink islands and GPUs, as placement sees them.

    --from FILE... shows what files say, with no cluster needed: the output of nvidia-smi topo, NCCL's topology XML,
    Slurm's topology.conf, the output of ibnetdiscover, a topograph model, a CSV of places, a cluster.yaml.

    \b
    orch topo
    orch topo --node gpu-01
    orch topo --from topology.conf --json
    """
    if not files:
        _of_the_cluster(node, output)
        return
    from orchestrator.hardware.formats import FormatError, read_hardware

    try:
        cluster = read_hardware([*files, *more])
    except FormatError as error:
        raise Fail(str(error), USAGE) from None
    for note in cluster.notes:
        out.say(note)
    click.echo("\n".join(map(out.clean, "\n".join(_lines(cluster, node, output)).split("\n"))))


def _of_the_cluster(node: str | None, output: str) -> None:
    answer = context.controller().call("GET", "topo", query={"node": node} if node else None)
    for note in [*answer["notes"], *(f"{name}: is declared and has not joined" for name in answer["absent"])]:
        out.say(note)
    if output == "json":
        out.print_json(answer)
    elif output == "name":
        click.echo("\n".join(out.clean(one["name"]) for one in answer["nodes"]))
    elif output in ("jsonl", "csv"):
        raise Fail(f"-o {output} is for --from FILE; the cluster's tree has -o json", USAGE)
    else:
        click.echo("\n".join(map(out.clean, answer["drawing"])))


def _lines(cluster: Cluster, name: str | None, output: str) -> list[str]:
    from orchestrator.hardware.as_json import node_to_json, to_json
    from orchestrator.hardware.draw import draw, draw_node
    from orchestrator.hardware.model import Cluster as Hardware

    chosen = cluster.nodes
    if name is not None:
        chosen = tuple(node for node in cluster.nodes if node.name == name)
        if not chosen:
            known = ", ".join(node.name for node in cluster.nodes[:5])
            raise Fail(f"there is no node {name} among {len(cluster.nodes)}: {known}, ...", NOT_FOUND)
    if output == "name":
        return [node.name for node in chosen]
    if output == "jsonl":
        return [json.dumps(node_to_json(node)) for node in chosen]
    if output == "csv":
        return _csv(cluster, chosen)
    if output == "json":
        return [json.dumps(to_json(cluster if name is None else Hardware(chosen, _around(cluster, chosen[0].name))))]
    return draw(cluster) if name is None else draw_node(cluster, chosen[0])


def _csv(cluster: Cluster, nodes: Sequence[Node]) -> list[str]:
    """A row for each node: what it has and where it is, in the form that --from reads."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["node", "gpus", "model", *cluster.levels])
    for node in nodes:
        models = dict.fromkeys(gpu.model for gpu in node.gpus if gpu.model)
        places = [cluster.place(node.name, level) or "" for level in cluster.levels]
        rows.writerow([node.name, len(node.gpus), " + ".join(models), *places])
    return text.getvalue().splitlines()


def _around(cluster: Cluster, name: str) -> tuple[Domain, ...]:
    """The domains that hold the node, whole."""
    held = {name}
    found = []
    for domain in reversed(cluster.all_domains):
        if held & set(domain.members):
            held.add(domain.name)
            found.append(domain)
    return tuple(reversed(found))
