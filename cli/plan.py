"""`orch plan`: where a job would go, and what another wish would give; nothing is changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from cli import context
from cli import output as out
from cli.job import checked
from cli.times import span
from cli.why import waiting_lines
from orchestrator.units import format_bandwidth

MOST_DELAYS = 5


@click.command()
@click.argument("job", type=click.Path(path_type=Path))
@click.option(
    "--set", "overrides", multiple=True, metavar="K=V", help="Overrides a key of the file, e.g. --set workers=2x8."
)
@out.output_option
def plan(job: Path, overrides: tuple[str, ...], output: str) -> None:
    """Where JOB would go, changing nothing.

    Says at which level of the fabric, with what predicted bandwidth and bottleneck, and what a looser or tighter `near:`
    would give; or why it would wait, and until when; whom it would delay, by how much; or why it can never fit (exit 5).

    \b
    orch plan job.yaml
    orch plan job.yaml --set workers=4x8 --set near=leaf!
    """
    settings = context.config()
    spec = checked(settings, job, overrides)
    body = {"spec": spec.spec, "user": context.user_name(), "dry_run": True}
    body["secrets"] = dict.fromkeys(spec.secrets, "")
    answer: dict[str, Any] = context.controller(settings).call("POST", "runs", body=body)
    if output == "json":
        out.print_json({"name": spec.name} | answer)
    elif output == "jsonl":
        click.echo(json.dumps({"name": spec.name} | answer))
    else:
        for line in lines(spec.name, answer):
            click.echo(out.wrapped(line))


def lines(name: str, answer: dict[str, Any]) -> list[str]:
    """A plan as a person reads it."""
    said = []
    if answer.get("fits_now"):
        placement = answer["placement"]
        said.append(f"{name} would start now, within one {placement['level']}{_bandwidth(placement)}")
        said += [f"  {line}" for line in answer.get("drawing", ())]
    else:
        reason = answer.get("reason") or ""
        said.append(
            f"{name} would wait{reason.removeprefix('waits') if reason.startswith('waits for') else f': {reason}'}"
        )
    if answer.get("waits"):
        said += [f"  {line}" for line in waiting_lines(answer["waits"])]
    said += cost(answer)
    others = answer.get("alternatives") or ()
    if others:
        said.append("held to one level:")
        said += [f"  {other['answer']}" for other in others]
    said += [f"note: {notice}" for notice in answer.get("notices") or ()]
    return [out.clean(line) for line in said]


def cost(answer: dict[str, Any]) -> list[str]:
    """Whom the job would delay or stop."""
    said = []
    delays = answer.get("delays") or ()
    for delay in delays[:MOST_DELAYS]:
        by = f"by {span(delay['seconds'])}" if delay.get("seconds") is not None else "by nobody can say how long"
        said.append(f"would delay run {delay['id']} ({delay['name']}) {by}")
    if len(delays) > MOST_DELAYS:
        said.append(f"would delay {len(delays) - MOST_DELAYS} more runs, each of them less")
    if preempts := answer.get("preempts"):
        names = ", ".join(f"{run['id']} ({run['name']})" for run in preempts)
        said.append(f"would make give way: run {names}")
    return said


def _bandwidth(placement: dict[str, Any]) -> str:
    if placement.get("busbw_predicted") is None:
        return ""
    bound = f", bounded by {placement['busbw_bottleneck']}" if placement.get("busbw_bottleneck") else ""
    return f", all-reduce at {format_bandwidth(placement['busbw_predicted'])} predicted{bound}"
