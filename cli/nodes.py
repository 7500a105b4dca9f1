"""`orch nodes`, `orch drain` and `orch undrain`: how the nodes are, and which are kept out of use."""

from __future__ import annotations

from typing import Any

import click

from cli import context
from cli import output as out
from cli.output import Column

SEVERITY_COLORS = {"ok": "green", "warning": "yellow", "degraded": "yellow", "fatal": "red"}

NODES = (
    Column("node", lambda node: node["node"]),
    Column(
        "state",
        lambda node: node["state"],
        lambda node: out.word(node["state"]),
        lambda node: out.state_color(node["state"]),
    ),
    Column("address", lambda node: node["address"], spare=1),
    Column("device", lambda node: node["device"], spare=2),
    Column("busy", lambda node: _count(node["busy"]), right=True),
    Column("total", lambda node: node["total"], right=True),
    Column("runs", lambda node: node.get("runs") or None),
    Column(
        "health",
        lambda node: node.get("health"),
        color=lambda node: SEVERITY_COLORS.get(node.get("health") or ""),
    ),
    Column("note", lambda node: _note(node)),
)
EVENTS = (
    Column("at", lambda event: event["at"]),
    Column("node", lambda event: event["node"]),
    Column("what", lambda event: event["what"]),
    Column("by", lambda event: event["by"]),
    Column("reason", lambda event: event["reason"]),
)
CHANGED = (
    Column("node", lambda node: node["node"]),
    Column("drained", lambda node: node["drained"] is not None, lambda node: "yes" if node["drained"] else "no"),
    Column("runs", lambda node: node["runs"] or None),
)


def _count(busy: Any) -> int:
    return len(busy) if isinstance(busy, list | dict) else int(busy or 0)


def _note(node: dict[str, Any]) -> str | None:
    """Why nothing new is placed there; else the worst that is wrong with it."""
    findings = node.get("findings") or []
    return node.get("note") or (findings[0]["text"] if findings else None)


@click.command()
@click.argument("names", nargs=-1, metavar="[NODE]...", shell_complete=context.complete_node)
@click.option("--history", is_flag=True, help="What was decided about the nodes, and what happened to their health.")
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Of the history: so many."
)
@out.output_option
def nodes(names: tuple[str, ...], history: bool, limit: int, output: str) -> None:
    """The nodes: their state, their health and what is on them.

    Of one NODE everything that is known: each finding with how to mend it, why it is out of use, how many attempts it
    broke beside what its like broke.

    \b
    orch nodes
    orch nodes gpu-07
    orch nodes --history
    orch nodes -o csv
    """
    api = context.controller()
    if history:
        events = api.call("GET", "node_events", query={"node": list(names), "limit": limit})
        out.print_rows(events, EVENTS, output, "node", "nothing has happened to any node")
        return
    rows = api.call("GET", "nodes", query={"node": list(names)} if names else None)
    if len(names) == 1 and output == "table":
        _show(rows[0], api.call("GET", "node_events", query={"node": list(names), "limit": 10}))
        return
    out.print_rows(rows, NODES, output, "node", "no node has joined yet")


def _show(node: dict[str, Any], events: list[dict[str, Any]]) -> None:
    score = node.get("score") or {}
    models = dict.fromkeys(gpu["model"] for gpu in node["gpus"] if gpu.get("model"))
    out.lines_of(
        [
            ("node", node["node"]),
            ("state", node["state"]),
            ("health", node.get("health")),
            ("address", node["address"]),
            ("device", f"{node['device']}, {_count(node['busy'])} of {node['total']} busy"),
            ("model", ", ".join(models)),
            ("runs", node["runs"]),
            ("note", node.get("note")),
            ("versions", ", ".join(f"{name} {version}" for name, version in node["versions"].items())),
            ("broke", _broke(score) if score.get("attempts") else None),
        ]
    )
    for one in node.get("findings") or []:
        severity = out.paint(one["severity"], SEVERITY_COLORS.get(one["severity"]))
        text = out.wrapped(out.clean(one["text"]), room=len(one["severity"]) + 2)
        click.echo(f"{severity}: {text}\n{out.wrapped('    ' + out.clean(one['fix']))}")
    if events:
        out.print_rows(events, EVENTS, "table", "node", "")


def _broke(score: dict[str, Any]) -> str:
    return f"{score['failures']:.3g} of {score['attempts']} attempts in 7 days; {score['expected']:.2g} are expected"


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NODE...", shell_complete=context.complete_node)
@click.option("--reason", metavar="TEXT", help="Why; shown wherever the node is.")
@click.option("--when-idle", is_flag=True, help="What runs there may end by itself.")
@out.output_option
def drain(names: tuple[str, ...], reason: str | None, when_idle: bool, output: str) -> None:
    """Takes nodes out of use.

    Nothing new is placed on them from now on, until `orch undrain`, also where a node leaves and comes back. Runs with
    a rank there give way: SIGTERM, the job's `grace`, SIGKILL, then back to their old place in the queue. That costs
    none of their retries.

    \b
    orch drain gpu-07 --reason "new cables"
    orch drain gpu-07 gpu-08 --when-idle
    """
    if reason is not None and (len(reason) > 500 or not reason.isprintable()):
        raise click.UsageError("--reason: one line of at most 500 characters")
    body = {"nodes": list(names), "reason": reason, "when_idle": when_idle}
    rows = context.answering_controller().call("POST", "nodes", "drain", query={"by": context.user_name()}, body=body)
    out.print_rows(rows, CHANGED, output, "node", "")
    for row in rows:
        if row["already"]:
            out.say(f"{row['node']} was drained already")
        if row["runs"]:
            ids = ", ".join(map(str, row["runs"]))
            stays = row["drained"]["when_idle"]
            what = "may end there by themselves" if stays else "give way and are queued again"
            out.say(f"{row['node']}: runs {ids} {what}" if len(row["runs"]) > 1 else _one(row, ids, stays))


def _one(row: dict[str, Any], run: str, stays: bool) -> str:
    return f"{row['node']}: run {run} {'may end there by itself' if stays else 'gives way and is queued again'}"


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NODE...", shell_complete=context.complete_node)
@out.output_option
def undrain(names: tuple[str, ...], output: str) -> None:
    """Brings nodes back into use.

    Also ends a quarantine or a probation, and says that the node is well as it is: a GPU that it has lost, a link that
    is slower than it was and old Xid messages are not held against it any more.

    \b
    orch undrain gpu-07
    """
    body = {"nodes": list(names)}
    rows = context.answering_controller().call("POST", "nodes", "undrain", query={"by": context.user_name()}, body=body)
    out.print_rows(rows, CHANGED, output, "node", "")
    for row in rows:
        if row["already"]:
            out.say(f"{row['node']} was not drained, and nothing else was held against it")
