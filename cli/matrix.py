"""The nodes side by side, for `orch doctor`: asked of the controller, or of this machine alone where there is none."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import click

from cli import context
from cli import output as out
from cli.errors import FAILED, UNREACHABLE, USAGE, Fail, Unreachable
from cli.output import Column

PATIENCE_S = 120.0
"""How long nodes are waited for that still ask the interpreter; importing torch may take a minute from a slow disk."""
VALUES_SHOWN, FINDINGS_SHOWN = 5, 40
COLORS = {"error": "red", "warning": "yellow", "note": "cyan"}

Row = dict[str, Any]

CELLS = (
    Column("component", lambda row: row["what"]),
    Column("value", lambda row: row["value"]),
    Column("count", lambda row: len(row["nodes"])),
    Column("nodes", lambda row: _hostlist(row["nodes"])),
)


def examine(node: str | None, python: str | None, output: str) -> None:
    """Prints the matrix and what will go wrong. Raises Fail: 1 where a finding is an error, 3 for an unknown node."""
    if output == "name":
        raise click.UsageError("the matrix is no list of names: -o name has no form for it")
    try:
        found = _of_cluster(node, python)
    except Unreachable as down:
        if node is not None:
            raise
        found = _of_this_machine(python)
        out.say(f"{down.message}. This is what this machine alone has")
    for name in found["pending"]:
        out.say(f"{name} has not said yet what {_interpreter(found)} brings")
    for name, why in found["absent"].items():
        out.say(f"{name}: {why}")
    if not found["nodes"] and (found["pending"] or found["absent"]):
        raise Fail("no node has answered", UNREACHABLE)
    if output in ("json", "jsonl"):
        out.print_json(found) if output == "json" else click.echo(json.dumps(found))
    elif output == "csv" or not out.on_terminal():
        _print_plain(found, output)
    else:
        _print(found, whole=node is not None or len(found["nodes"]) == 1)
    if any(one["severity"] == "error" for one in found["findings"]):
        click.get_current_context().exit(FAILED)


def _of_cluster(node: str | None, python: str | None) -> dict[str, Any]:
    api = context.controller()
    until = time.monotonic() + PATIENCE_S
    said = False
    while True:
        answer: dict[str, Any] = api.call("GET", "doctor", query={"node": node, "python": python})
        if not answer["pending"] or time.monotonic() > until:
            return {"source": "cluster"} | answer
        if not said:
            out.say(f"asking {_few(answer['pending'])} for the versions of {_interpreter(answer)} ...")
            said = True
        time.sleep(0.2)


def _of_this_machine(python: str | None) -> dict[str, Any]:
    import psutil

    from orchestrator.checks import interpreter
    from orchestrator.control.interpreter import ask
    from orchestrator.control.rank_env import base_env, interpreter_env
    from orchestrator.hardware.environment import nccl_interface, node_facts, on_network
    from orchestrator.hardware.probe import probe
    from orchestrator.health.matrix import matrix, to_json

    try:
        path, env = interpreter_env(base_env(os.environ), None if python is None else interpreter(python))
    except ValueError as error:
        raise Fail(f"--python: {error}", USAGE) from None
    up = [name for name, stats in psutil.net_if_stats().items() if stats.isup]
    host = on_network(node_facts(probe(), env), nccl_interface(up, env))
    facts = host.with_interpreter(ask(path, env).interpreter)
    return {"source": "this machine", "python": python, "pending": [], "absent": {}} | to_json(matrix([facts]))


def _interpreter(found: dict[str, Any]) -> str:
    return found["python"] or "orch's own python"


def _print_plain(found: dict[str, Any], output: str) -> None:
    rows = [{"what": one["what"], **value} for one in found["components"] for value in one["values"]]
    out.print_rows(rows, CELLS, output, "what", "")
    if output != "csv":
        for one in found["findings"]:
            fields = (one["severity"], _hostlist(one["nodes"]), one["problem"], one["mend"])
            click.echo("\t".join(out.clean(field).replace("\t", " ") for field in fields))


def _print(found: dict[str, Any], whole: bool) -> None:
    """Components, drift marked; where they are few, all facts; then the findings."""
    names = [facts["node"] for facts in found["nodes"]]
    click.echo(out.paint(out.clean(f"{_few(names)}, {_interpreter(found)}"), bold=True))
    width = max(len(one["what"]) for one in found["components"])
    for one in found["components"]:
        for number, value in enumerate(one["values"][:VALUES_SHOWN]):
            drifts = len(one["values"]) > 1
            title = one["what"] if number == 0 else ""
            mark = out.paint("!", "yellow") if drifts and number == 0 else " "
            who = f"   {_few(value['nodes'])}" if drifts or len(value["nodes"]) < len(names) else ""
            text = out.clean(f"{value['value']}{who}")
            click.echo(
                f"{mark} {out.paint(title.ljust(width), dim=True)}  {out.paint(text, 'yellow' if number else None)}"
            )
        if more := one["values"][VALUES_SHOWN:]:
            nodes = sum(len(value["nodes"]) for value in more)
            click.echo(f"  {' ' * width}  {len(more)} more values on {nodes} nodes: --json has them")
    if whole:
        for facts in found["nodes"]:
            _print_rest(facts, width)
    for one in found["findings"][:FINDINGS_SHOWN]:
        who = f"{_few(one['nodes'])}: " if one["nodes"] and len(names) > 1 else ""
        severity = out.paint(one["severity"], COLORS[one["severity"]], bold=True)
        problem = out.wrapped(out.clean(who + one["problem"]), room=len(one["severity"]) + 2)
        click.echo(f"{severity}: {problem}")
        click.echo(out.wrapped(out.clean(f"  {one['mend']}")))
    if more := found["findings"][FINDINGS_SHOWN:]:
        click.echo(f"{len(more)} more findings: --json has them")
    if not found["findings"]:
        click.echo("Nothing is wrong here." if len(names) == 1 else "Nothing is wrong with these nodes.")


def _print_rest(facts: Row, width: int) -> None:
    """What one node has beyond what is compared."""
    pairs = [
        ("interpreter", facts["python"]),
        ("host name", facts["hostname"]),
        ("boot id", facts["boot_id"]),
        *((f"adapter {one['name']}", _adapter(one)) for one in facts["adapters"] or ()),
        *((name, f"{value} (inherited)") for name, value in facts["environment"].items()),
        *((name, f"{value} (nccl.conf)") for name, value in facts["conf"].items()),
    ]
    for title, value in pairs:
        if value:
            click.echo(f"  {out.paint(out.clean(title).ljust(width), dim=True)}  {out.clean(str(value))}")


def _adapter(one: Row) -> str:
    parts = [f"{one['rate']:g} Gb/s" if one["rate"] else None, "link up" if one["active"] else "no link"]
    return ", ".join([part for part in parts if part] + ([f"firmware {one['firmware']}"] if one["firmware"] else []))


def _hostlist(names: list[str]) -> str:
    from orchestrator.hardware.formats.hostlist import compress

    return compress(names)


def _few(names: list[str]) -> str:
    """`gpu-07`; `3 nodes: gpu-[01-03]`, cut where the list grows long."""
    if len(names) == 1:
        return names[0]
    listed = _hostlist(names)
    return f"{len(names)} nodes: {listed if len(listed) <= 60 else listed[:59] + '…'}"


def is_interpreter(python: str | None) -> str | None:
    """The path, where it is absolute: it must name one file on every node. Raises click.UsageError."""
    if python is not None and not python.startswith("/"):
        raise click.UsageError(f"--python {python}: give an absolute path, such as {sys.executable}")
    return python
