"""Lines and bars in a terminal, in braille dots: bandwidth by size, and by time.

Drawn here and not by a library: plotext's interface changed whole with its version 6, and this is all that is needed of one.
"""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cli import output as out
from cli.bench_run import size
from cli.bench_show import links_of
from cli.times import moment

COLORS = ("cyan", "magenta", "yellow", "green", "blue", "red")
LINES = 6
"""Lines in one plot: more cannot be told apart."""
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_LEGEND_SIGN, _DOTTED_SIGN = "━━", "┄┄"


@dataclass(frozen=True)
class Line:
    """Points from left to right. A dotted line is a promise, a full one a measurement."""

    name: str
    points: tuple[tuple[float, float], ...]
    color: str | None = None
    dotted: bool = False


def draw(lines: Sequence[Line], ticks: Sequence[tuple[float, str]], unit: str, columns: int, rows: int = 14) -> str:
    """A plot over `columns` x `rows` characters: y from 0, x from the first point to the last, a legend below.

    `ticks` are places on the x axis with their words; those for which there is no room are left out.
    """
    points = [point for line in lines for point in line.points]
    if not points:
        return ""
    top, step = _scale(max(y for _, y in points))
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    labels = {round((rows - 1) * (1 - i * step / top)): f"{i * step:g}" for i in range(round(top / step) + 1)}
    margin = max(map(len, labels.values())) + 2
    width = max(20, columns - margin - 1)
    canvas = _Canvas(width, rows)
    spread = (right - left) or 1.0
    for line in lines:
        placed = [((x - left) / spread * (2 * width - 1), (1 - y / top) * (4 * rows - 1)) for x, y in line.points]
        canvas.line(placed, line.color, dotted=line.dotted)
    body = [
        f"{labels.get(row, ''):>{margin - 2}} {'┤' if row in labels else '│'}{canvas.row(row)}".rstrip()
        for row in range(rows)
    ]
    below = _axis([((x - left) / spread * (width - 1), text) for x, text in ticks], width)
    legend = "   ".join(
        f"{out.paint(_DOTTED_SIGN if line.dotted else _LEGEND_SIGN, line.color)} {line.name}" for line in lines
    )
    return "\n".join([unit, *body, *(" " * (margin - 1) + text for text in below), "", " " * margin + legend])


def _scale(highest: float) -> tuple[float, float]:
    """The top of the axis and the distance of its labels: 3 to 6 of them, at 1, 2 or 5 times a power of ten."""
    if highest <= 0:
        return 1.0, 0.5
    rough = highest / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * times for times in (1, 2, 5, 10) if power * times >= rough)
    return step * math.ceil(highest / step - 1e-9), step


def _axis(ticks: Sequence[tuple[float, str]], width: int) -> tuple[str, str]:
    """The x axis with a mark at each tick that has room for its word, and the words."""
    marks, words, end = ["─"] * width, [" "] * (width + 1), -2
    for at, text in ticks:
        begin = max(0, min(round(at) - len(text) // 2, width + 1 - len(text)))
        if begin > end + 1:
            marks[min(width - 1, round(at))] = "┴"
            words[begin : begin + len(text)] = text
            end = begin + len(text) - 1
    return "└" + "".join(marks), " " + "".join(words).rstrip()


class _Canvas:
    """Characters of 2 x 4 braille dots; a character has the colour of the last line through it."""

    def __init__(self, columns: int, rows: int) -> None:
        self._dots = [[0] * columns for _ in range(rows)]
        self._colors: list[list[str | None]] = [[None] * columns for _ in range(rows)]

    def line(self, points: Sequence[tuple[float, float]], color: str | None, *, dotted: bool) -> None:
        if len(points) == 1:
            self._set(*points[0], color)
        drawn = 0
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            steps = max(1, round(max(abs(x1 - x0), abs(y1 - y0))))
            for i in range(steps + 1):
                if not dotted or drawn % 4 == 0:
                    self._set(x0 + (x1 - x0) * i / steps, y0 + (y1 - y0) * i / steps, color)
                drawn += 1

    def _set(self, x: float, y: float, color: str | None) -> None:
        column, row = divmod(round(x), 2), divmod(round(y), 4)
        self._dots[row[0]][column[0]] |= _DOTS[row[1]][column[1]]
        self._colors[row[0]][column[0]] = color

    def row(self, number: int) -> str:
        cells = zip(self._dots[number], self._colors[number], strict=True)
        return "".join(out.paint(chr(0x2800 + dots), color) if dots else " " for dots, color in cells)


def by_size(results: Sequence[dict[str, Any]]) -> str:
    """Bus bandwidth over the size, a line for each link, collective and backend, and dotted what was predicted."""
    groups = list(links_of(results).items())
    lines = []
    for (names, rows), color in zip(groups[:LINES], COLORS, strict=False):
        name = _name(names, [key for key, _ in groups])
        lines.append(Line(name, tuple((math.log2(r["bytes"]), r["busbw"]) for r in rows), color))
        promised = tuple((math.log2(r["bytes"]), r["predicted"]) for r in rows if r["predicted"] is not None)
        lines += [Line("predicted", promised, color, dotted=True)] if promised else []
    sizes = sorted({row["bytes"] for row in results})
    ticks = [(math.log2(count), size(count)) for count in sizes]
    more = f"\n{len(groups) - LINES} more are not drawn" if len(groups) > LINES else ""
    return draw(lines, ticks, "GB/s", shutil.get_terminal_size().columns) + more


def by_time(results: Sequence[dict[str, Any]]) -> str:
    """Bus bandwidth at the largest size over the time, a line for each link, collective and backend."""
    groups = list(links_of(results).items())
    lines = []
    for (names, rows), color in zip(groups[:LINES], COLORS, strict=False):
        points = tuple((_seconds(row["at"]), row["busbw"]) for row in sorted(rows, key=lambda row: row["at"]))
        lines.append(Line(_name(names, [key for key, _ in groups]), points, color))
    times = sorted(_seconds(row["at"]) for row in results)
    form = "%H:%M" if times[-1] - times[0] < 86400 else "%m-%d"
    ticks = [(at, _clock(at, form)) for at in (times[0] + (times[-1] - times[0]) * i / 6 for i in range(7))]
    more = f"\n{len(groups) - LINES} more are not drawn" if len(groups) > LINES else ""
    return draw(lines, ticks, "GB/s", shutil.get_terminal_size().columns) + more


def _name(names: Sequence[str], every: Sequence[Sequence[str]]) -> str:
    """What tells a line from the others."""
    differ = [part for part, column in zip(names, zip(*every, strict=True), strict=True) if len(set(column)) > 1]
    return out.clean(" ".join(differ) or names[2])


def _seconds(text: str) -> float:
    when = moment(text)
    assert when is not None
    return when.timestamp()


def _clock(at: float, form: str) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(at).astimezone().strftime(form)
