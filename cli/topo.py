"""`orch topo`: the tree that placement sees, of files without a cluster."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli import context
from cli import output as out
from cli.errors import NOT_FOUND, USAGE, Fail

if TYPE_CHECKING:
    from orchestrator.hardware.model import Cluster, Domain


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
        if more:
            raise click.UsageError(f"files are named with --from {' '.join(map(str, more[:3]))}")
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
    elif output == "jsonl":
        click.echo("\n".join(json.dumps(one) for one in answer["nodes"]))
    elif output == "csv":
        levels, places = _places(answer["domains"])
        rows = [
            (one["name"], [gpu["model"] for gpu in one["gpus"]], [places.get((one["name"], level)) for level in levels])
            for one in answer["nodes"]
        ]
        click.echo("\n".join(map(out.clean, _csv(levels, rows))))
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
        levels = list(cluster.levels)
        return _csv(
            levels,
            [
                (one.name, [gpu.model for gpu in one.gpus], [cluster.place(one.name, level) for level in levels])
                for one in chosen
            ],
        )
    if output == "json":
        return [json.dumps(to_json(cluster if name is None else Hardware(chosen, _around(cluster, chosen[0].name))))]
    return draw(cluster) if name is None else draw_node(cluster, chosen[0])


def _places(domains: Sequence[dict[str, Any]]) -> tuple[list[str], dict[tuple[str, str], str]]:
    """The levels, widest first, and by node and level the domain that it is in."""
    above: dict[str, list[tuple[str, str]]] = {}
    for domain in domains:
        for member in domain["members"]:
            above.setdefault(member, []).append((domain["level"], domain["name"]))
    places: dict[tuple[str, str], str] = {}
    for name, found in above.items():
        found = list(found)
        for level, at in found:  # it grows by what is above, once
            if (name, level) not in places:
                places[name, level] = at
                found += above.get(at, ())
    return list(dict.fromkeys(domain["level"] for domain in domains)), places


def _csv(levels: Sequence[str], nodes: Iterable[tuple[str, Sequence[str | None], Sequence[str | None]]]) -> list[str]:
    """A row for each node, given with its GPUs' models and its place on each level, in the form that --from reads."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["node", "gpus", "model", *levels])
    for name, models, places in nodes:
        kinds = dict.fromkeys(filter(None, models))
        rows.writerow([name, len(models), " + ".join(kinds), *(place or "" for place in places)])
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
