"""The runs of `orch bench`: queued all at once, followed one after the other to their ends."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import click

from cli import context
from cli import output as out
from cli.watch import Screen, say_end, waiting, watch
from orchestrator.bench.results import MARK, Row, read_output

if TYPE_CHECKING:
    from cli.api import Controller
    from orchestrator.config import Config


@dataclass(frozen=True)
class Done:
    """How the runs ended."""

    runs: tuple[dict[str, Any], ...] = ()
    skipped: tuple[tuple[int, str, str, str], ...] = ()
    """Run, collective, backend, and why it could not be measured there."""
    timed_out: bool = False
    only: dict[int, list[str]] = field(default_factory=dict)
    """By run, the nodes that it was held to."""

    def joined(self, other: Done) -> Done:
        return Done(
            self.runs + other.runs,
            self.skipped + other.skipped,
            self.timed_out or other.timed_out,
            self.only | other.only,
        )


def measure(settings: Config, api: Controller, jobs: Sequence[dict[str, Any]], timeout: float | None) -> Done:
    """Queues the jobs and waits for their ends. Ctrl-C ends the waiting alone, with code 130."""
    runs = [_submit(api, job) for job in jobs]
    deadline = None if timeout is None else time.monotonic() + timeout
    done = Done(only={run["id"]: job.get("only", []) for run, job in zip(runs, jobs, strict=True)})
    screen = Screen(prefixed=False, to_stderr=True)
    try:
        for run in runs:
            end, skipped = _to_the_end(settings, run, screen, deadline)
            done = replace(done, runs=(*done.runs, end), skipped=(*done.skipped, *skipped))
            screen.clear()
            if end["state"] != "succeeded":
                say_end(end)
    except TimeoutError:
        screen.clear()
        out.say(
            f"not all have ended within {timeout:.0f} s; they go on, and `orch bench --history` shows what they find"
        )
        return replace(done, timed_out=True)
    except KeyboardInterrupt:
        screen.clear()
        ids = " ".join(str(run["id"]) for run in runs)
        out.say(f"the runs go on, and `orch bench --history` shows what they find; `orch cancel {ids}` ends them")
        click.get_current_context().exit(130)
    return done


def _submit(api: Controller, job: dict[str, Any]) -> dict[str, Any]:
    from cli.api import Lost
    from orchestrator.control.bench_script import snapshot

    code = snapshot()
    if not api.has_code(code.sha256):
        api.put_code(code.sha256, code.archive)
    body = {
        "spec": job,
        "code": {"sha256": code.sha256},
        "user": context.user_name(),
        "key": f"once-{os.urandom(12).hex()}",
    }
    try:
        run: dict[str, Any] = api.call("POST", "runs", body=body)
    except Lost:
        run = context.controller().call("POST", "runs", body=body)  # the key makes one run of both
    for notice in run.pop("notices", None) or ():
        out.say(notice)
    return run


def _to_the_end(
    settings: Config, run: dict[str, Any], screen: Screen, deadline: float | None
) -> tuple[dict[str, Any], list[tuple[int, str, str, str]]]:
    skipped: list[tuple[int, str, str, str]] = []
    name = f"run {run['id']}"
    for item in watch(settings.home, run["id"], "follow", deadline=deadline):
        if item is None:
            screen.again()
        elif "end" in item:
            return item["end"], skipped
        elif "state" in item:
            screen.progress(f"{name}: {waiting(item)}")
        elif "line" in item and MARK in item["line"]:
            said = read_output([item["line"]])
            skipped += [(run["id"], *one) for one in said.skipped]
            if said.rows:
                screen.progress(f"{name}: {progress(said.rows[0])}")
        elif "lost" in item:
            screen.say(str(item["lost"]))
    raise AssertionError("the stream ends with the run's end")


def progress(row: Row) -> str:
    return f"{row.collective} by {row.backend}, {size(row.bytes)}: {row.busbw:.3g} GB/s"


def size(count: int) -> str:
    """As nccl-tests writes sizes: `64M`, `1G`; bytes where that is not whole."""
    for letter, power in (("G", 30), ("M", 20), ("K", 10)):
        if count >= 1 << power:
            number = count / (1 << power)
            return f"{number:.0f}{letter}" if abs(number - round(number)) < 0.005 else f"{number:.1f}{letter}"
    return f"{count}B"
