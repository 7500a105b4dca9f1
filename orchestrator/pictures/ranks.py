"""Which rank holds the others up, and when: each rank's step beside the median of all ranks at that time, as a heat map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Any

from orchestrator.pictures import heat
from orchestrator.pictures.markup import Content, join, tag
from orchestrator.pictures.page import Card, empty, plot
from orchestrator.pictures.plot import Band
from orchestrator.pictures.scale import moment, span, when

Data = Mapping[str, Any]
STRAGGLER = 1.15
"""A rank that takes this many times a step, where the median rank takes one, is named."""
LEAST_CELLS = 2
"""One slow cell is a hiccup."""
TITLE = "Ranks by time"


@dataclass(frozen=True)
class Slow:
    """A row of ranks that was slower than the others for a while."""

    row: int
    times: float
    """How long it took for a step, in steps of the median rank, in the cells where it was slow."""
    start: float
    end: float
    """Seconds since 1970: from the first of these cells to the end of the last."""
    share: float
    """Of the time of which the row is known."""


def beside_the_median(
    values: Sequence[Sequence[float | None]], steps: Sequence[float | None]
) -> list[list[float | None]]:
    """1 and what each cell has more than the median of its column, as a share of a step; of two ranks the faster is the median.

    A rank whose own work is a small part of the step holds nobody up, however much it differs.
    """
    usual = []
    for column in range(len(steps)):
        known = [value for line in values if (value := line[column]) is not None]
        usual.append(median_low(known) if known else None)
    return [
        [
            1 + (v - u) / s if v is not None and u is not None and s else None
            for v, u, s in zip(line, usual, steps, strict=True)
        ]
        for line in values
    ]


def slow_rows(found: Data | None) -> list[Slow]:
    """The rows that were slow for more than a moment, the worst first."""
    if found is None or found["ranks"] < 2:
        return []
    slow = []
    for row, line in enumerate(beside_the_median(found["values"], found["steps"])):
        cells = [(column, cell) for column, cell in enumerate(line) if cell is not None]
        above = [(column, cell) for column, cell in cells if cell > STRAGGLER]
        if len(above) < min(LEAST_CELLS, len(cells)) or not above:
            continue
        start = found["from"] + above[0][0] * found["seconds"]
        end = found["from"] + (above[-1][0] + 1) * found["seconds"]
        times = sum(cell for _, cell in above) / len(above)
        slow.append(Slow(row, times, start, end, len(above) / len(cells)))
    return sorted(slow, key=lambda one: -one.times * one.share)


def slow_ranks(found: Data | None) -> list[int]:
    """Those of the slow rows that are one rank each."""
    return [one.row for one in slow_rows(found)] if found is not None and found["together"] == 1 else []


def ranks_card(data: Data) -> Card:
    found = data["ranks"]
    if found is None:
        return Card(TITLE, empty("No rank was seen to step for as long as a minute, so there is nothing to compare."))
    if found["ranks"] == 1:
        return Card(TITLE, empty("The run has one rank: there is none to compare it with."))
    cells = tuple(map(tuple, beside_the_median(found["values"], found["steps"])))
    most = max((cell for line in cells for cell in line if cell is not None), default=1.0)
    high = max(1.3, min(most, 3.0))
    where = _where(data["run"])
    names = tuple(_row_name(row, found, where) for row in range(len(cells)))
    label = "step time of each rank by time, beside the median of all ranks"
    drawn = heat.Heat(names, cells, found["from"], found["seconds"], 1.0, high, "times a step", label)
    splits = [
        Band(moment(one["started_at"]) or 0, 0, f"attempt {one['number']}", "") for one in data["run"]["attempts"][1:]
    ]
    measure = (
        "A step's own work, before it waits for the others"
        if found["measure"] == "own work"
        else "Time from step to step"
    )
    grouped = f" A row is the slowest of {found['together']} ranks." if found["together"] > 1 else ""
    body = join(
        plot(heat.draw(drawn, splits)),
        heat.key(drawn, "as the median, or faster", f"{high - 1:.0%} of a step longer"),
        tag("p", f"{measure}; a cell is {span(found['seconds'])}.{grouped}", class_="note"),
    )
    return Card(TITLE, body, _said(found, names), wide=True)


def _where(run: Data) -> dict[int, str]:
    """By rank, its node, in the newest attempt."""
    parts = run["attempts"][-1]["placement"]["nodes"]
    return {rank: part["node"] for part in parts for rank in part.get("ranks") or ()}


def _row_name(row: int, found: Data, where: Mapping[int, str]) -> str:
    first, last = row * found["together"], min(found["ranks"], (row + 1) * found["together"]) - 1
    name = f"{first}" if first == last else f"{first}-{last}"
    return f"rank {name}" + (f" {where[first]}" if first in where else "")


def _said(found: Data, names: Sequence[str]) -> Content:
    slow = slow_rows(found)
    if not slow:
        return f"No rank stands out: none takes {STRAGGLER - 1:.0%} of a step longer than the median for more than a moment."
    worst = slow[0]
    period = "all the time" if worst.share > 0.9 else f"between {when(worst.start)} and {when(worst.end)}"
    beside = "the median rank" if found["ranks"] > 2 else "the other rank"
    more = (
        f" {len(slow) - 1} more: {', '.join(names[one.row] for one in slow[1:5])}{' ...' if len(slow) > 5 else ''}."
        if slow[1:]
        else ""
    )
    waits = " All others wait for it." if found["measure"] == "own work" else ""
    said = f": each step {worst.times - 1:.0%} longer than {beside}, {period}.{waits}{more}"
    return tag("span", tag("b", f"▲ {names[worst.row]}"), said, class_="warn")
