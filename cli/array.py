"""An array that was submitted: its ids, and waiting for the end of all its runs."""

from __future__ import annotations

import json
import sys
import time
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import click

from cli import context
from cli import output as out
from cli.errors import TIMED_OUT, Unreachable
from cli.output import Column
from cli.watch import ENDED, GIVE_UP, SUCCEEDED

if TYPE_CHECKING:
    from orchestrator.config import Config

PAUSE = 1.0
"""Seconds between two looks at how far the runs are."""


def submitted(settings: Config, first: dict[str, Any], wait: bool, timeout: float | None, output: str) -> None:
    """Prints the array's ids; with `wait`, once all its runs have ended, which gives the exit code."""
    array, name = first["array"], first["name"]
    size = array["last"] - array["first"] + 1
    if output in ("table", "name"):
        _print(array, name, first["state"], output)
        sys.stdout.flush()
    if output == "table":
        ids = f"{array['first']} to {array['last']}"
        out.say(f"array {name}: {size} runs, {ids}, are queued; `orch show {name}` says how far they are")
    if not wait:
        if output not in ("table", "name"):
            _print(array, name, first["state"], output)
        return
    code, states = _to_the_end(settings, array["id"], name, timeout)
    if output not in ("table", "name"):
        _print(array, name, None, output, states)
    click.get_current_context().exit(code)


def _to_the_end(settings: Config, ref: str, name: str, timeout: float | None) -> tuple[int, dict[int, str]]:
    """Waits for the last run's end; the exit code, and each run's state."""
    began = heard = time.monotonic()
    said = ""
    code = TIMED_OUT
    try:
        while timeout is None or time.monotonic() - began < timeout:
            try:
                states = context.controller(settings).call("GET", "runs", ref)["array"]["states"]
            except Unreachable:
                # As a follower does: the controller may be on its way back.
                if time.monotonic() - heard > GIVE_UP:
                    raise
                time.sleep(PAUSE)
                continue
            heard = time.monotonic()
            text = f"{name}: " + ", ".join(f"{count} {state}" for state, count in states.items())
            if text != said:
                out.say(said := text)
            if set(states) <= ENDED:
                code = 0 if set(states) == {SUCCEEDED} else 1
                break
            time.sleep(PAUSE)
        else:
            out.say(f"{name} has not ended within {timeout:.0f} s and goes on; `orch cancel {name}` ends it")
    except KeyboardInterrupt:
        out.say(f"the array goes on; `orch cancel {name}` ends it")
        code = 130
    query = {"array": ref, "sort": "id", "limit": 100_000}
    return code, {run["id"]: run["state"] for run in context.controller(settings).call("GET", "runs", query=query)}


def _print(
    array: dict[str, Any], name: str, state: str | None, output: str, states: dict[int, str] | None = None
) -> None:
    if output == "table":
        click.echo(array["id"])
        return
    ids = range(array["first"], array["last"] + 1)
    rows = [{"id": run, "name": name, "state": (states or {}).get(run, state)} for run in ids]
    if output == "json":
        out.print_json(rows)
    elif output == "jsonl":
        for row in rows:
            click.echo(json.dumps(row))
    else:
        columns = [Column(key, itemgetter(key)) for key in ("id", "name", "state")]
        out.print_rows(rows, columns, output, "id", "")
