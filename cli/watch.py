"""A run's stream told once, whatever happens to the controller meanwhile, and shown on a terminal or in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from cli import output as out
from cli.api import Controller, Lost
from cli.errors import Unreachable
from cli.times import between, span

GIVE_UP = 60.0
"""Seconds without a controller after which a follower ends."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0
RANK_COLORS = ("cyan", "magenta", "green", "yellow", "blue", "bright_cyan", "bright_magenta", "bright_green")
SUCCEEDED = "succeeded"
ENDED = frozenset({SUCCEEDED, "failed", "cancelled"})


def watch(
    home: Path, run: int, kind: str, query: dict[str, Any] | None = None, deadline: float | None = None
) -> Iterator[dict[str, Any] | None]:
    """The objects of a run's stream `kind` (follow or logs), no line of a log twice; None when that is all so far.

    A controller that goes away is looked for again, at its new address if it has one, for GIVE_UP seconds;
    `{"lost": why}` tells of it once. Raises Unreachable after that, TimeoutError at `deadline` (of
    time.monotonic()), and Fail for a refusal.
    """
    read: dict[tuple[int, int], int] = {}  # by attempt and rank: the byte after the last line that was told
    pause, lost_at = _FIRST_PAUSE, None
    while True:
        try:
            api = Controller(home)
            resume = ",".join(f"{attempt}:{rank}:{at}" for (attempt, rank), at in sorted(read.items()))
            asked = {**(query or {}), "from": resume or None}
            for item in api.stream("runs", run, kind, query=asked, deadline=deadline):
                lost_at, pause = None, _FIRST_PAUSE
                if item is not None and "offset" in item:
                    read[item["attempt"], item["rank"]] = item["offset"]
                yield item
                if item is not None and "end" in item:
                    return
            if kind == "logs":
                return
            raise Lost("the controller ended the stream before the run's end")
        except Unreachable as error:
            if lost_at is None:
                lost_at = time.monotonic()
                yield {
                    "lost": f"{error.message.partition(': `')[0]}; the run goes on, looking for the controller again"
                }
        now = time.monotonic()
        if now - lost_at > GIVE_UP:
            raise Unreachable(
                f"no controller for {GIVE_UP:.0f} s: `orch up` starts it, `orch logs -f {run}` follows on"
            )
        if deadline is not None and now >= deadline:
            raise TimeoutError
        time.sleep(pause if deadline is None else max(0.0, min(pause, deadline - now)))
        pause = min(pause * 2, _LONGEST_PAUSE)


class Screen:
    """Shows lines of logs, and on stderr what is waited for: one line that changes, where that is a terminal."""

    def __init__(self, *, prefixed: bool, to_stderr: bool = False, raw: bool = False) -> None:
        """`raw`: lines of logs as they were printed, with whatever they do to a terminal."""
        self._prefixed, self._err, self._raw = prefixed, to_stderr, raw
        self._live = out.on_terminal(err=True) and out.colored(err=True)
        self._shown = ""
        self._began = time.monotonic()

    def log(self, line: dict[str, Any]) -> None:
        """One line of a rank's log."""
        self.clear()
        text = line["line"] if self._raw else out.clean(line["line"])
        if self._prefixed:
            color = RANK_COLORS[line["rank"] % len(RANK_COLORS)]
            text = out.paint(f"[rank {line['rank']}]", color, err=self._err) + " " + text
        stream = sys.stderr if self._err else sys.stdout
        stream.write(text + "\n")

    def progress(self, text: str) -> None:
        """What is being waited for: one line, written over, on a terminal; elsewhere a line each time it changes."""
        if self._live:
            import shutil

            line = f"{text} ({span(time.monotonic() - self._began)})"
            sys.stdout.flush()
            sys.stderr.write("\r\x1b[K" + out.clean(line)[: shutil.get_terminal_size().columns - 1])
            sys.stderr.flush()
        elif text != self._shown:
            out.say(text)
        self._shown = text

    def again(self) -> None:
        """Nothing more has come yet: shows what there is, and lets the progress line's clock go on."""
        sys.stdout.flush()
        if self._shown and self._live:
            self.progress(self._shown)

    def clear(self) -> None:
        if self._shown and self._live:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
        if self._live:
            self._shown = ""

    def say(self, text: str) -> None:
        self.clear()
        sys.stdout.flush()
        out.say(text)


def follow(home: Path, run: dict[str, Any], screen: Screen | None, timeout: float | None) -> dict[str, Any]:
    """Follows a run to its end, which it gives; `screen` None: silently. Raises as `watch` does."""
    deadline = None if timeout is None else time.monotonic() + timeout
    told: set[str] = set()
    attempt = 1
    for item in watch(home, run["id"], "follow", deadline=deadline):
        if item is not None and "end" in item:
            if screen:
                screen.clear()
            sys.stdout.flush()
            end: dict[str, Any] = item["end"]
            return end
        if item is not None and "state" in item:
            run["state"] = item["state"]
        if screen is None:
            continue
        if item is None:
            screen.again()
        elif "line" in item:
            if item.get("attempt", attempt) != attempt:
                attempt = item["attempt"]
                screen.say(f"attempt {attempt}")
            screen.log(item)
        elif "state" in item:
            if item["state"] not in ENDED:  # the end says that itself
                screen.progress(waiting(item))
        elif "progress" in item:
            screen.progress(item["progress"])
        elif (text := item.get("notice") or item.get("lost")) and (text not in told or "lost" in item):
            told.add(text)
            screen.say(text)
    raise AssertionError("the stream ends with the run's end")


def waiting(item: dict[str, Any]) -> str:
    """A state with its place in the queue and why: `queued, position 2: waits for ...`."""
    text = str(item["state"])
    if item.get("position") is not None:
        text += f", position {item['position']}"
    return text + (f": {item['reason']}" if item.get("reason") else "")


def failure_of(run: dict[str, Any]) -> str:
    """Why the last attempt broke, with rank and node; "" where it did not."""
    attempts = run.get("attempts") or [{}]
    failure = attempts[-1].get("failure")
    return "" if not failure or run["state"] == SUCCEEDED else failure_text(failure)


def failure_text(failure: dict[str, Any]) -> str:
    """A failure with where it was, unless its own words begin with that."""
    rank, message = failure.get("rank"), str(failure["message"])
    parts = ["" if rank is None else f"rank {rank}", failure.get("node") or ""]
    where = " on ".join(part for part in parts if part)
    return message if not where or message.startswith(where) else f"{where}: {message}"


def cause_text(failure: dict[str, Any]) -> str:
    """Whose fault it was, and which nodes are to be avoided; "" where that is not on record."""
    whose = {"user": "a fault of the script or the job", "infra": "a fault of the cluster"}.get(
        failure.get("cause") or ""
    )
    if whose is None:
        return ""
    nodes = failure.get("suspects") or ()
    return whose + (f"; suspect: {', '.join(nodes)}" if nodes else "")


def detail_lines(failure: dict[str, Any]) -> list[str]:
    """The excerpt: a traceback, or the kernel's line."""
    return str(failure.get("detail") or "").splitlines()


def ending(run: dict[str, Any]) -> str:
    """How a run ended, in one sentence."""
    took = between(run.get("started_at"), run.get("finished_at"))
    text = f"run {run['id']} ({run['name']}) {run['state']}" + (f" after {span(took)}" if took is not None else "")
    tries = len(run.get("attempts") or [])
    if tries > 1:
        text += f", attempt {tries}"
    why = failure_of(run) or (run.get("reason") if run["state"] != SUCCEEDED else "")
    return text + (f": {why}" if why else "")


def say_end(run: dict[str, Any]) -> None:
    sign = out.paint(out.sign(run["state"]), out.state_color(run["state"]), err=True)
    click.echo(f"{sign} {out.clean(ending(run))}".lstrip(), err=True)


def exit_code(run: dict[str, Any]) -> int:
    return 0 if run["state"] == SUCCEEDED else 1


def world_size(run: dict[str, Any]) -> int:
    """How many ranks the run has, from its last placement or else from what was asked for."""
    attempts = run.get("attempts") or []
    if attempts and (placement := attempts[-1].get("placement")):
        return sum(len(part.get("ranks") or part.get("gpus") or []) for part in placement["nodes"])
    nodes, _, each = str((run.get("spec") or {}).get("workers", 1)).rpartition("x")
    return int(nodes or 1) * int(each)
