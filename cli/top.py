"""`orch top`: the cluster as it is now, in the terminal, until q is pressed.

Drawn with plain escape codes: rich's Live takes no keys, and textual, which does, is a large dependency for one screen.
"""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from cli import context
from cli import output as out
from cli.api import Controller
from cli.errors import Fail, Unreachable
from cli.keys import pressed
from cli.times import now
from cli.top_frame import Line, Shown, Typed, chosen_rows, frame, key

SECONDS = 2.0
PATIENCE = 5.0
"""Seconds that one call may take; the screen lives on meanwhile."""
WIDE = 200
"""Columns of a frame into a pipe."""
_STYLES = {
    "bold": "\x1b[1m",
    "dim": "\x1b[2m",
    "chosen": "\x1b[7m",
    "green": "\x1b[32m",
    "yellow": "\x1b[33m",
    "red": "\x1b[31m",
    "blue": "\x1b[34m",
    "cyan": "\x1b[36m",
}


@click.command()
@click.option("--once", is_flag=True, help="Print what there is now and end; so it does into a pipe.")
@click.option(
    "--every", type=click.FloatRange(0.2, 3600), default=SECONDS, show_default=True, help="Seconds between looks."
)
@click.option("--json", "as_json", is_flag=True, help="What it is drawn from, once.")
def top(once: bool, every: float, as_json: bool) -> None:
    """The cluster, what runs and what waits, live.

    Arrow keys choose a run, enter shows it whole, s sorts, / filters, q ends.

    \b
    orch top
    orch top --once | head -5
    """
    home = context.config().home
    if once or as_json or not (out.on_terminal() and sys.stdin.isatty()):
        data = Controller(home).call("GET", "top")
        if as_json:
            out.print_json(data)
            return
        columns = shutil.get_terminal_size().columns if out.on_terminal() else WIDE
        for line in frame(Shown(data, now()), Typed(), columns, None):
            click.echo(line.text)
        return
    feed = Feed(home, every)
    feed.start()
    with _screen():
        _loop(feed)


class Feed(threading.Thread):
    """Asks the controller again and again, so that keys never wait for it."""

    def __init__(self, home: Path, every: float) -> None:
        super().__init__(daemon=True)
        self._home, self._every = home, every
        self._wake = threading.Event()
        self.shown = Shown(None, now())
        self.details: int | None = None
        """The run to be asked for too."""

    def run(self) -> None:
        while True:
            self._look()
            self._wake.wait(self._every)
            self._wake.clear()

    def ask_now(self, details: int | None) -> None:
        self.details = details
        self.shown = replace(self.shown, detail=())
        self._wake.set()

    def _look(self) -> None:
        wanted = self.details
        try:
            api = Controller(self._home, PATIENCE)
            data = api.call("GET", "top")
            detail = tuple(_details(api, wanted)) if wanted is not None else ()
            self.shown = Shown(data, now(), "", detail if wanted == self.details else ())
        except Unreachable as down:
            # A new one may have another address: it is looked up again each time.
            self.shown = replace(self.shown, lost=f"{down.message.partition(': `')[0]}; looking for it again")
        except Fail as refused:
            self.shown = replace(self.shown, lost=refused.message)


def _details(api: Controller, run: int) -> Iterator[str]:
    """One run in lines: what it is, how it does, where it is, why it waits."""
    from cli.measured import number, short
    from cli.runs import transport_lines
    from cli.times import between, local, span
    from cli.watch import failure_of
    from cli.why import lines

    found: dict[str, Any] = api.call("GET", "runs", run)
    yield f"run {found['id']} ({found['name']}), {found['state']}, of {found['user']}" + (
        f", team {found['team']}" if found.get("team") else ""
    )
    yield f"submitted {local(found['submitted_at'])}, started {local(found.get('started_at')) or 'not yet'}"
    if why := failure_of(found) or found.get("reason"):
        yield why
    if speed := found.get("throughput"):
        rate = f"{number(speed['samples_per_s'])} samples/s, " if speed.get("samples_per_s") else ""
        yield f"{rate}{short(speed.get('step_time'))} a step, {number(speed['steps'])} steps"
        if speed.get("metrics"):
            yield ", ".join(f"{name} {value:.5g}" for name, value in speed["metrics"].items())
    for attempt in found.get("attempts") or ():
        took = span(between(attempt["started_at"], attempt.get("ended_at")))
        yield f"attempt {attempt['number']}: {(attempt.get('outcome') or 'lives').replace('_', ' ')}, {took}"
        for part in attempt["placement"]["nodes"]:
            ranks = part.get("ranks") or []
            of = f", ranks {ranks[0]} to {ranks[-1]}" if ranks else ""
            yield f"  {part['node']}: {','.join(map(str, part['gpus']))}{of}"
        yield from (f"  {line}" for line in transport_lines(attempt.get("transport")))
    if found["state"] == "queued":
        with suppress(Fail):
            yield from lines(api.call("GET", "runs", run, "why"))
    for event in (found.get("events") or ())[-8:]:
        yield f"{local(event['at'])}  {event['state']:<9}  {event.get('reason') or ''}".rstrip()


def _loop(feed: Feed) -> None:
    typed = Typed()
    drawn: list[str] = []
    while True:
        size = shutil.get_terminal_size()
        shown = replace(feed.shown, now=now())
        runs, queue = chosen_rows(shown.data, typed)
        typed = replace(typed, cursor=max(0, min(typed.cursor, len(runs) + len(queue) - 1)))
        drawn = _draw(frame(shown, typed, size.columns, size.lines), drawn)
        for name in pressed(sys.stdin.fileno(), 0.5):
            after = _after(typed, name, [*runs, *queue], size.lines)
            if after is None:
                return
            if after.details != typed.details:
                feed.ask_now(after.details)
            typed = after


def _after(typed: Typed, name: str, rows: list[dict[str, Any]], lines: int) -> Typed | None:
    """What is typed after one more key; None where it ends."""
    if not typed.typing:
        if typed.details is not None and name in ("q", "escape"):
            return replace(typed, details=None, scroll=0)
        if name == "q":
            return None
        if name == "enter":
            return (
                replace(typed, details=rows[typed.cursor]["id"], scroll=0) if rows and typed.details is None else typed
            )
    return key(typed, name, len(rows), max(1, lines - 6))


def _draw(lines: list[Line], before: list[str]) -> list[str]:
    """Writes what has changed."""
    colors = out.colored()
    texts = []
    for line in lines:
        style = _STYLES.get(line.style, "") if colors else ""
        texts.append(f"{style}{line.text}\x1b[0m" if style else line.text)
    fresh = len(before) != len(texts)
    parts = ["\x1b[2J"] if fresh else []
    for number, text in enumerate(texts):
        if fresh or before[number] != text:
            parts.append(f"\x1b[{number + 1};1H{text}\x1b[K")
    if parts:
        data = "".join(parts).encode(sys.stdout.encoding or "utf-8", "replace")
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    return texts


@contextmanager
def _screen() -> Iterator[None]:
    """The terminal's second screen, without echo; given back as it was, however this ends."""
    import signal
    import termios
    import tty

    file = sys.stdin.fileno()
    before = termios.tcgetattr(file)

    def end(*_: Any) -> None:
        raise KeyboardInterrupt

    handler = signal.signal(signal.SIGTERM, end)
    try:
        tty.setcbreak(file)
        sys.stdout.write("\x1b[?1049h\x1b[?25l")
        sys.stdout.flush()
        yield
    finally:
        sys.stdout.write("\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()
        termios.tcsetattr(file, termios.TCSADRAIN, before)
        signal.signal(signal.SIGTERM, handler)
