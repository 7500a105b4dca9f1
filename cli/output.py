"""How a list is printed: a table on a terminal, TSV into a pipe, JSON, CSV or bare ids where asked."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from orchestrator.terminal import clean as clean

FORMATS = ("table", "json", "jsonl", "csv", "name")
Row = dict[str, Any]
F = TypeVar("F", bound=Callable[..., Any])

SYMBOLS = {
    "queued": ("○", "cyan"),
    "starting": ("◔", "blue"),
    "running": ("●", "blue"),
    "stopping": ("◌", "yellow"),
    "succeeded": ("✓", "green"),
    "failed": ("✗", "red"),
    "cancelled": ("–", "yellow"),
    "up": ("●", "green"),
    "down": ("✗", "red"),
}
"""Beside every word its sign and colour: neither says anything that the word does not."""


@dataclass(frozen=True)
class Column:
    """One column: what it holds, and how it looks on a terminal where that differs."""

    title: str
    value: Callable[[Row], Any]
    shown: Callable[[Row], str] | None = None
    color: Callable[[Row], str | None] | None = None
    right: bool = False
    spare: int = 0
    """A terminal that is too narrow does without the columns that have one, the smallest first."""


def output_option(command: F) -> F:
    """Adds `-o FORMAT` and `--json`; the command gets `output`."""

    @click.option("-o", "--output", type=click.Choice(FORMATS), help="How to print (a pipe gets TSV as its table).")
    @click.option("--json", "as_json", is_flag=True, help="The same as -o json.")
    @functools.wraps(command)
    def wrapper(*args: Any, output: str | None, as_json: bool, **kwargs: Any) -> Any:
        if as_json and output not in (None, "json"):
            raise click.UsageError(f"--json and -o {output} exclude each other")
        return command(*args, output="json" if as_json else output or "table", **kwargs)

    return wrapper  # type: ignore[return-value]


def print_rows(rows: Sequence[Row], columns: Sequence[Column], output: str, key: str, empty: str) -> None:
    """Prints a list. `key` is the field that `-o name` prints; `empty` is what a terminal hears of an empty list."""
    if output == "json":
        print_json(list(rows))
    elif output == "jsonl":
        for row in rows:
            click.echo(json.dumps(row))
    elif output == "name":
        for row in rows:
            click.echo(clean(str(row[key])))
    elif output == "csv":
        import csv

        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow([column.title for column in columns])
        writer.writerows([[clean(plain(column.value(row))) for column in columns] for row in rows])
    elif not on_terminal():
        for row in rows:
            click.echo("\t".join(clean(plain(column.value(row))).replace("\t", " ") for column in columns))
    elif rows:
        _print_table(rows, columns)
    else:
        click.echo(empty, err=True)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


def _print_table(rows: Sequence[Row], columns: Sequence[Column]) -> None:
    cells = [[_cell(column, row) for column in columns] for row in rows]
    used = [i for i, column in enumerate(columns) if i == 0 or any(line[i] for line in cells)]
    widths = {i: max(len(_title(columns[i])), *(len(line[i]) for line in cells)) for i in used}
    room, last = shutil.get_terminal_size().columns, used[-1]
    left = room - sum(widths[i] + 2 for i in used[:-1])
    for i in sorted((i for i in used[:-1] if columns[i].spare), key=lambda i: columns[i].spare):
        if left < min(widths[last], 12):
            used.remove(i)
            left += widths[i] + 2
    # Only the last column, which is prose, may lose its end.
    widths[last] = max(12, left) if not columns[last].right else widths[last]
    click.echo(
        paint("  ".join(_pad(_title(columns[i]), widths[i], columns[i].right, i == last) for i in used), bold=True)
    )
    for row, line in zip(rows, cells, strict=True):
        parts = []
        for i in used:
            color = columns[i].color
            parts.append(paint(_pad(line[i], widths[i], columns[i].right, i == last), color(row) if color else None))
        click.echo("  ".join(parts).rstrip())


def _title(column: Column) -> str:
    """`took_s` holds seconds for programs; people are shown `1m15s`. What holds more than a key is shown as it is."""
    if not re.fullmatch("[a-z0-9_]+", column.title):
        return clean(column.title)
    rate, per, _ = column.title.partition("_per_s")
    return f"{rate}/s".upper() if per and rate + per == column.title else column.title.removesuffix("_s").upper()


def _cell(column: Column, row: Row) -> str:
    return clean(column.shown(row) if column.shown else plain(column.value(row))).replace("\t", " ")


def _pad(text: str, width: int, right: bool, last: bool) -> str:
    if last and not right:
        return text if len(text) <= width else text[: width - 1] + "…"
    return text.rjust(width) if right else text.ljust(width)


def plain(value: Any) -> str:
    """A value as a field of TSV or CSV."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, list | tuple):
        return ",".join(plain(item) for item in value)
    return json.dumps(value) if isinstance(value, dict) else str(value)


def on_terminal(err: bool = False) -> bool:
    return (sys.stderr if err else sys.stdout).isatty()


def colored(err: bool = False) -> bool:
    return on_terminal(err) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, color: str | None = None, *, bold: bool = False, dim: bool = False, err: bool = False) -> str:
    """The text in colour where the stream is a terminal that wants any."""
    if not colored(err) or not (color or bold or dim):
        return text
    return click.style(text, fg=color, bold=bold or None, dim=dim or None)


def sign(state: str | None) -> str:
    """A state's sign, where the terminal's encoding has it."""
    found = SYMBOLS.get(state or "", ("·", ""))[0]
    try:
        found.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return ""
    return found


def word(state: str | None) -> str:
    """A state with its sign: `✓ succeeded`."""
    return f"{sign(state)} {state or 'unknown'}".lstrip()


def state_color(state: str | None) -> str | None:
    return SYMBOLS.get(state or "", ("", None))[1]


def say(text: str) -> None:
    """Talk: one line on stderr."""
    click.echo(wrapped(clean(text), err=True), err=True)


def wrapped(text: str, err: bool = False, room: int = 0, indent: int | None = None) -> str:
    """Sentences with their line ends between words where a terminal would have them anywhere; `room` columns of the first
    line are taken, and `indent` (by default 2 more than a line's own) is before the others. Anywhere else the text as it
    is."""
    if not on_terminal(err):
        return text
    import textwrap

    width = shutil.get_terminal_size().columns - 1
    lines = []
    for line in text.split("\n"):
        before = " " * (len(line) - len(line.lstrip()) + 2 if indent is None else indent)
        held = "x" * room + line
        parts = (
            textwrap.wrap(held, width, subsequent_indent=before, break_long_words=False, break_on_hyphens=False)
            if len(held) > width
            else [held]
        )
        lines += [part[room:] if number == 0 else part for number, part in enumerate(parts or [""])]
        room = 0
    return "\n".join(lines)


def lines_of(pairs: Iterable[tuple[str, Any]]) -> None:
    """Prints fields, one a line: aligned on a terminal, `field TAB value` into a pipe."""
    pairs = [(clean(name), clean(plain(value))) for name, value in pairs if value not in (None, "", [], {})]
    if not on_terminal():
        for name, value in pairs:
            click.echo(f"{name}\t{value.replace(chr(9), ' ')}")
        return
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        click.echo(f"{paint(name.ljust(width), dim=True)}  {wrapped(value, room=width + 2, indent=width + 2)}")
