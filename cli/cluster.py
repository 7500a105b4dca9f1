"""`orch up`, `down`, `status` and `nodes`: the cluster and its controller."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from operator import itemgetter
from typing import Any

import click

from cli import context
from cli import output as out
from cli.errors import UNREACHABLE, Fail, Unreachable
from cli.output import Column


@click.command()
def up() -> None:
    """Starts the cluster and its controller.

    Joins the cluster that is configured, or else starts one on this machine. Harmless where it is up.

    \b
    orch up
    """
    settings = context.config()
    start_local()
    try:
        answer = context.controller(settings).call("GET", "status")
    except Unreachable as error:
        raise Fail(f"the cluster was started, but {error.message}", UNREACHABLE) from None
    out.say(f"up: {_sum(answer)}")


@click.command()
@click.option("--force", is_flag=True, help="Cancels the runs that live.")
def down(force: bool) -> None:
    """Ends the controller and the cluster.

    A cluster that orch did not start goes on without it. Refuses (exit 7) while a run lives.

    \b
    orch down
    orch down --force
    """
    context.config()
    _cluster("down", *(["--force"] if force else []))
    out.say("down; the history stays")


@click.command()
@out.output_option
def status(output: str) -> None:
    """Whether the controller is up, and how busy it is.

    Exit code 6 where it is down.

    \b
    orch status
    orch status --json | jq .gpus
    """
    settings = context.config()
    try:
        answer: dict[str, Any] = context.controller(settings).call("GET", "status")
    except Unreachable as error:
        gpus = {"total": 0, "busy": 0}
        answer = {"controller": "down", "address": settings.address, "api_url": None, "dashboard_url": None}
        _print_status(answer | {"nodes": 0, "gpus": gpus}, output)
        raise Unreachable(error.message) from None
    _print_status(answer, output)


def _print_status(answer: dict[str, Any], output: str) -> None:
    if output == "json":
        out.print_json(answer)
    elif output == "jsonl":
        click.echo(json.dumps(answer))
    elif output == "name":
        click.echo(answer["controller"])
    elif output == "csv":
        flat = dict(_flat(answer))
        out.print_rows([flat], [Column(key, itemgetter(key)) for key in flat], "csv", "", "")
    elif not out.on_terminal():
        out.lines_of(_flat(answer))
    else:
        word = out.paint(out.word(answer["controller"]), out.state_color(answer["controller"]))
        click.echo(f"controller  {word}  {out.clean(str(answer.get('api_url') or ''))}".rstrip())
        out.lines_of(
            [
                ("cluster   ", answer.get("address")),
                ("dashboard ", answer.get("dashboard_url")),
                ("nodes     ", str(answer["nodes"])),
                ("busy      ", _busy(answer)),
            ]
        )


def _flat(answer: dict[str, Any]) -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in answer.items():
        flat += [(f"{key}.{part}", one) for part, one in value.items()] if isinstance(value, dict) else [(key, value)]
    return flat


def _busy(answer: dict[str, Any]) -> str:
    kinds = (("gpus", "GPUs"), ("cpu_slots", "CPU slots"))
    counts = [(answer.get(key) or {}, word) for key, word in kinds]
    return (
        ", ".join(f"{count['busy']} of {count['total']} {word}" for count, word in counts if count.get("total"))
        or "no GPUs"
    )


def _sum(answer: dict[str, Any]) -> str:
    nodes = answer["nodes"]
    return f"{nodes} node{'' if nodes == 1 else 's'}, {_busy(answer)} busy"


NODES = (
    Column("node", lambda node: node["node"]),
    Column(
        "state",
        lambda node: node["state"],
        lambda node: out.word(node["state"]),
        lambda node: out.state_color(node["state"]),
    ),
    Column("address", lambda node: node["address"]),
    Column("device", lambda node: node["device"]),
    Column("busy", lambda node: _count(node["busy"]), right=True),
    Column("total", lambda node: node["total"], right=True),
    Column("runs", lambda node: node.get("runs") or None),
    Column("note", lambda node: node.get("note")),
)


def _count(busy: Any) -> int:
    return len(busy) if isinstance(busy, list | dict) else int(busy or 0)


@click.command()
@out.output_option
def nodes(output: str) -> None:
    """The nodes: their state and what is on them.

    \b
    orch nodes
    orch nodes -o csv
    """
    rows = context.controller().call("GET", "nodes")
    out.print_rows(rows, NODES, output, "node", "no node has joined yet")


def start_local() -> None:
    """Brings the cluster up, with its progress on stderr. Raises Fail with the code that it gives."""
    _cluster("up")


def _cluster(*arguments: str) -> None:
    """Runs the part that needs Ray in a process of its own, so that this one never imports it."""
    live = out.colored(err=True)
    command = [sys.executable, "-m", "orchestrator.control.cluster", *arguments]
    flags = {f"ORCH_{name.upper()}": value for name, value in context.flags().items()}
    answer: dict[str, Any] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, **flags}, text=True) as process:
        for line in process.stdout or ():
            try:
                answer = json.loads(line)
            except ValueError:
                continue  # what a library prints is not progress
            if "step" in answer:
                click.echo(
                    f"\r\x1b[K{out.clean(answer['step'])} ..." if live else out.clean(answer["step"]),
                    nl=not live,
                    err=True,
                )
    if live:
        click.echo("\r\x1b[K", nl=False, err=True)
    if "error" in answer:
        raise Fail(answer["error"], int(answer.get("code", UNREACHABLE)))
    if process.returncode != 0 or not answer.get("ok"):
        raise Fail(
            f"`{' '.join(command[1:])}` ended with exit code {process.returncode} before it was done", UNREACHABLE
        )
