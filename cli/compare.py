"""`orch compare`: runs side by side, where they differ, and what explains how their speeds differ."""

from __future__ import annotations

import json
from typing import Any

import click

from cli import context, history
from cli import output as out
from cli.output import Column


@click.command()
@context.run_argument("runs", metavar="RUN...", nargs=-1, required=True)
@out.output_option
def compare(runs: tuple[str, ...], output: str) -> None:
    """Runs side by side, and what explains how their speeds differ.

    Shown is what differs: spec, code, placement, transport, versions, nodes, other runs on the same leaves. What may have made the
    slowest of them slow is ordered by how well the past of its name supports it. One RUN alone is held against the newest
    earlier runs of its name, of the same size, on the same kind of GPU.

    \b
    orch compare resnet50
    orch compare 41 42
    """
    found = history.side_by_side(runs)
    if output == "json":
        out.print_json(found)
    elif output == "jsonl":
        click.echo(json.dumps(found))
    elif output == "name":
        for run in found["runs"]:
            click.echo(run["id"])
    else:
        columns = [Column("what", lambda row: row["what"])]
        columns += [_of_run(number, run) for number, run in enumerate(found["runs"])]
        out.print_rows(table(found), columns, output, "what", "")
        for line in words(found):
            # On stderr where a program reads the table.
            click.echo(out.clean(line), err=output == "csv" or not out.on_terminal())


def _of_run(number: int, run: dict[str, Any]) -> Column:
    return Column(f"{run['id']} ({run['name']})", lambda row: row["values"][number])


def table(found: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each thing that is compared: the speeds, then what differs."""
    runs = found["runs"]
    rows = [
        {"what": what, "values": [_figure(run[key]) for run in runs]}
        for what, key in (
            ("state", "state"),
            ("samples_per_s", "samples_per_s"),
            ("samples_per_s_per_gpu", "samples_per_s_per_gpu"),
            ("step_time_s", "step_time_s"),
            ("gpus", "gpus"),
        )
    ]
    return rows + [{"what": row["factor"], "values": row["values"]} for row in found["differs"]]


def _figure(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def words(found: dict[str, Any]) -> list[str]:
    """What the figures mean, and who else was there."""
    explanation = found["explanation"]
    if explanation is None:
        why = "no earlier run is like it" if len(found["runs"]) == 1 and found["runs"][0]["samples_per_s"] else None
        said = [f"nothing explains the speeds: {why or 'the throughput of too few of them is known'}"]
    else:
        said = [f"run {explanation['run']}: {explanation['text']}"]
        said += [
            f"  {one['text']}: {one['evidence']}"
            for one in explanation["suspects"]
            if one["standing"] == "contradicted"
        ][:5]
    for one in found["neighbours"]:
        if one["count"]:
            names = ", ".join(f"{other['id']} ({other['name']})" for other in one["others"])
            more = f" and {one['count'] - len(one['others'])} more" if one["count"] > len(one["others"]) else ""
            said.append(f"run {one['run']} had on its leaves: {names}{more}")
    return said
