"""`orch report`: a run, several, or the cluster as pictures, in one file that needs nothing else."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from cli import context, history
from cli import output as out
from cli.errors import NOT_FOUND, USAGE, Fail, Unreachable
from cli.times import Ago, now

MOST_RUNS = 20
"""More side by side nobody reads, and the file grows by up to a megabyte with each."""


@click.command()
@context.run_argument("runs", metavar="[RUN]...", nargs=-1)
@click.option("-o", "--output", "path", metavar="FILE", help="Where to write it; - is stdout.")
@click.option(
    "--since", type=Ago(), default="30d", show_default=True, help="Of the cluster: 12h, 7d ... or since a date."
)
@click.option("--json", "as_json", is_flag=True, help="The data that it would be drawn from, to stdout.")
def report(runs: tuple[str, ...], path: str | None, since: float, as_json: bool) -> None:
    """Runs, or the cluster, as pictures in one HTML file.

    Of a run: throughput with its attempts, ranks by time, step times, what its GPUs were used for, where it ran and over
    which links, and its like before it. Without RUN the cluster: GPU-hours by use, team and user, what the nodes were
    used, waits by size, how runs ended, scaling. The file needs no network and prints well.

    \b
    orch report resnet50
    orch report 42 43 -o both.html
    orch report --since 7d -o week.html
    """
    if len(runs) > MOST_RUNS:
        raise click.UsageError(f"{len(runs)} runs in one page: at most {MOST_RUNS}")
    datas = [_of_run(ref) for ref in runs]
    if as_json:
        out.print_json(datas if len(datas) != 1 else datas[0]) if runs else out.print_json(_of_cluster(since))
        return
    if runs:
        from orchestrator.pictures.runs_page import runs_page

        page = runs_page(datas)
        name = "orch-run-" + "-".join(str(data["run"]["id"]) for data in datas[:4]) + ".html"
    else:
        from orchestrator.pictures.cluster_page import cluster_page

        page, name = cluster_page(_of_cluster(since)), "orch-cluster.html"
    _write(page, path or ("-" if not out.on_terminal() else name))


def _of_run(ref: str) -> dict[str, Any]:
    settings = context.config()
    try:
        api = context.controller(settings)
        with context.naming(api, ref):
            answer: dict[str, Any] = api.call("GET", "runs", ref, "report")
        return answer
    except Unreachable as down:
        from orchestrator.array import run_id

        found = history.read(settings, down, lambda store: store.run_pictured(run_id(ref), now()))
        if found is None:
            raise Fail(f"no such run: {ref!r}", NOT_FOUND) from None
        return found


def _of_cluster(seconds: float) -> dict[str, Any]:
    settings = context.config()
    since = now() - timedelta(seconds=seconds)
    try:
        answer: dict[str, Any] = context.controller(settings).call("GET", "report", query={"since": since.isoformat()})
        return answer
    except Unreachable as down:
        return history.read(settings, down, lambda store: store.cluster_pictured(since, now()))


def _write(page: str, path: str) -> None:
    """To the file, whole or not at all; its name goes to stdout."""
    data = page.encode("utf-8", "replace")
    if path == "-":
        sys.stdout.buffer.write(data)
        return
    part = Path(f"{path}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        raise Fail(f"{path} cannot be written: {error.strerror}", USAGE) from None
    click.echo(path)
