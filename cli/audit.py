"""`orch audit`: who asked the controller for what."""

from __future__ import annotations

import time
from datetime import datetime

import click

from cli import context
from cli import output as out
from cli.output import Column
from cli.times import Ago, local

COLUMNS = (
    Column("at", lambda one: one["at"], lambda one: local(one["at"])),
    Column("user", lambda one: one.get("user")),
    Column("uid", lambda one: one.get("uid"), right=True, spare=1),
    Column("call", lambda one: one.get("call")),
    Column("run", lambda one: one.get("run"), right=True),
    Column("status", lambda one: one.get("status"), right=True),
    Column("said", lambda one: one.get("error") or one.get("said")),
)


@click.command()
@click.option("--since", type=Ago(), default="7d", show_default=True, help="Not older than 12h, 7d ... or a date.")
@click.option("--run", type=click.IntRange(1), help="Of this run alone, by its id.")
@out.output_option
def audit(since: float, run: int | None, output: str) -> None:
    """Who asked the controller for what.

    Every call that changes something is in it, and every caller that was not let in (status 401 and 403). USER is what the caller
    says; UID is whose process it was, as the kernel knows it.

    \b
    orch audit --since 12h
    orch audit --run 42 -o jsonl
    """
    from orchestrator.control.audit import records
    from orchestrator.control.home import Home

    least = time.time() - since
    rows = [
        one
        for one in records(Home(context.config().home).audit_file)
        if datetime.fromisoformat(one["at"]).timestamp() >= least and (run is None or one.get("run") == run)
    ]
    out.print_rows(rows, COLUMNS, output, "call", "nobody has asked for anything")
