"""`orch topo`: the tree that placement sees, of files without a cluster."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from orchestrator.hardware.as_json import to_json
from orchestrator.hardware.draw import draw, draw_node
from orchestrator.hardware.formats import FormatError, read_hardware
from orchestrator.hardware.model import Cluster, Domain


class _Refusal(click.ClickException):
    """A refusal with its exit code: 2 bad input, 3 no such node, 6 no cluster."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        return self.code


@click.command("topo")
@click.option(
    "--from", "files", multiple=True, type=click.Path(path_type=Path), help="A file to read; may be repeated."
)
@click.option("--node", help="Only this node, drawn whole.")
@click.option("-o", "--output", type=click.Choice(["table", "json", "name"]), default="table", show_default=True)
@click.option("--json", "output", flag_value="json", help="The same as -o json.")
@click.argument("more", nargs=-1, type=click.Path(path_type=Path))
def topo(files: Sequence[Path], more: Sequence[Path], node: str | None, output: str) -> None:
    """Pods, leaves, nodes, NVLink islands, GPUs and NICs, drawn as a tree.

    --from FILE... shows what files say, with no cluster needed: the output of nvidia-smi topo, NCCL's topology XML,
    Slurm's topology.conf, the output of ibnetdiscover, a topograph model, a CSV of places, a cluster.yaml.
    """
    if not files:
        raise _Refusal("The cluster's own topology is not available yet: give files with --from FILE.", 6)
    try:
        cluster = read_hardware([*files, *more])
    except FormatError as error:
        raise _Refusal(str(error), 2) from None
    for note in cluster.notes:
        click.echo(note, err=True)
    click.echo("\n".join(_lines(cluster, node, output)))


def _lines(cluster: Cluster, name: str | None, output: str) -> list[str]:
    chosen = cluster.nodes
    if name is not None:
        chosen = tuple(node for node in cluster.nodes if node.name == name)
        if not chosen:
            known = ", ".join(node.name for node in cluster.nodes[:5])
            raise _Refusal(f"there is no node {name} among {len(cluster.nodes)}: {known}, ...", 3)
    if output == "name":
        return [node.name for node in chosen]
    if output == "json":
        return [json.dumps(to_json(cluster if name is None else Cluster(chosen, _around(cluster, chosen[0].name))))]
    return draw(cluster) if name is None else draw_node(cluster, chosen[0])


def _around(cluster: Cluster, name: str) -> tuple[Domain, ...]:
    """The domains that hold the node, whole."""
    held = {name}
    found = []
    for domain in reversed(cluster.all_domains):
        if held & set(domain.members):
            held.add(domain.name)
            found.append(domain)
    return tuple(reversed(found))
