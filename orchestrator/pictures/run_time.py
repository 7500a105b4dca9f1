"""How fast a run was over its time: throughput with what happened to it, its step times, and what the script told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

from orchestrator.pictures.markup import Markup, join, tag
from orchestrator.pictures.page import Card, empty, plot
from orchestrator.pictures.plot import WIDE, Axes, Band, Line, Mark, histogram, sign_legend
from orchestrator.pictures.scale import figure, moment, percent, span, step_unit, when

Data = Mapping[str, Any]
MOST_METRICS = 4


def throughput_card(data: Data) -> Card:
    run = data["run"]
    title = "Throughput over time"
    if not run.get("attempts"):
        return Card(title, empty("The run has not started, so there is nothing to draw yet."), wide=True)
    rows = [row for one in data["series"] for row in one["rows"]]
    of = "samples_per_s" if any(row["samples_per_s"] for row in rows) else "steps_per_s"
    lines = []
    for one in data["series"]:
        points = tuple(
            (row["at"] + row["for"] / 2, row[of])
            for row in one["rows"]
            if row["steps"] or row["for"] >= one["seconds"] > 0
        )
        lines.append(Line(f"attempt {one['attempt']}", points, 0, broken=2.5 * one["seconds"]))
    if not any(y for line in lines for _, y in line.points):
        why = _unseen(run)
        lines = []
    else:
        why = ""
    bands, marks = bands_of(data), marks_of(data)
    if not lines:
        return Card(title, join(empty(why), _time_line(data, bands, marks)), wide=True)
    unit = "samples/s" if of == "samples_per_s" else "steps/s"
    top = max(y or 0.0 for line in lines for _, y in line.points)
    axes = Axes(data["from"], data["to"], top, unit, 250, width=WIDE, above=16)
    axes.bands(bands)
    for line in lines:
        axes.line(line)
    axes.marks(marks)
    seconds = data["series"][0]["seconds"]
    finding = _pace(run, lines, unit) + f" Each point is {span(seconds)}."
    drawn = axes.svg(f"{unit} over time, {len(run['attempts'])} attempts", axes.hover(lines))
    return Card(title, join(plot(drawn), _marks_legend(marks)), finding, wide=True)


def _unseen(run: Data) -> str:
    if run["state"] in ("starting", "running", "stopping"):
        return "No step has been seen yet: an optimizer's, a line that `throughput:` matches, or orchestrator.report()."
    return (
        "No step was seen: it took none, or not with torch's optimizers. `throughput:` in the job file reads the log."
    )


def _time_line(data: Data, bands: list[Band], marks: list[Mark]) -> Markup:
    """The attempts alone, where nothing was measured."""
    axes = Axes(data["from"], data["to"], 1, "", 110, width=WIDE, above=16, wanted_y=1)
    axes.parts = [part for part in axes.parts if "grid" not in part and ">0<" not in part and ">1<" not in part]
    axes.bands(bands)
    axes.marks(marks)
    return join(plot(axes.svg("the attempts over time")), _marks_legend(marks))


def _pace(run: Data, lines: list[Line], unit: str) -> str:
    values = [y for line in lines for _, y in line.points if y]
    usual = median(values)
    slow = sum(1 for y in values if y < 0.8 * usual) / len(values)
    text = f"Half of the time at {figure(usual)} {unit} or more"
    text += (
        f"; {percent(slow)} of it below four fifths of that."
        if slow >= 0.02
        else "; never much slower."
        if len(values) > 5
        else "."
    )
    tries = len(run["attempts"])
    return text + (f" {tries} attempts." if tries > 1 else "")


def bands_of(data: Data) -> list[Band]:
    found = []
    for one in data["run"]["attempts"]:
        start = moment(one["started_at"]) or data["from"]
        end = moment(one.get("ended_at")) or data["to"]
        outcome = (one.get("outcome") or "lives").replace("_", " ")
        found.append(Band(start, end, f"attempt {one['number']}: {outcome}", "odd" if one["number"] % 2 else "attempt"))
    return found


def marks_of(data: Data) -> list[Mark]:
    """How attempts ended, and what was noted meanwhile."""
    found = []
    for one in data["run"]["attempts"]:
        outcome, end = one.get("outcome"), moment(one.get("ended_at"))
        if outcome is None or end is None:
            continue
        kind = {
            "succeeded": "succeeded",
            "cancelled": "cancelled",
            "preempted": "preempted",
            "drained": "preempted",
        }.get(outcome, "failed")
        why = (one.get("failure") or {}).get("message") or (one.get("stop") or {}).get("reason") or outcome
        found.append(
            Mark(end, kind, f"attempt {one['number']} {outcome.replace('_', ' ')}: {why}, {when(end, seconds=True)}")
        )
    for event in data["run"].get("events") or ():
        if event["event"] == "noted":
            at = moment(event["at"]) or data["from"]
            found.append(Mark(at, "noted", f"{event['reason'] or 'noted'}, {when(at, seconds=True)}"))
    return found


_MARK_WORDS = {
    "failed": "failed",
    "preempted": "preempted or drained",
    "noted": "something worth telling",
    "succeeded": "succeeded",
    "cancelled": "cancelled",
}


def _marks_legend(marks: Iterable[Mark]) -> Markup:
    kinds = {mark.kind for mark in marks}
    return sign_legend((kind, word) for kind, word in _MARK_WORDS.items() if kind in kinds)


def steps_card(data: Data) -> Card:
    title = "Step time"
    rows = [row for one in data["series"] for row in one["rows"] if row["step_time"] and row["steps"]]
    speed = data["run"].get("throughput") or {}
    if len(rows) < 2:
        return Card(title, empty("Fewer than two stretches with steps were measured: too few for a distribution."))
    multiple, unit = step_unit(median(row["step_time"] for row in rows))
    axes, _ = histogram([(row["step_time"] * multiple, row["steps"]) for row in rows], unit)
    finding = None
    if speed.get("step_time_p50") and speed.get("step_time_p99"):
        half, most = (f"{figure(speed[name] * multiple)} {unit}" for name in ("step_time_p50", "step_time_p99"))
        finding = f"Of the newest attempt's steps half took {half} or less, 1 % more than {most}."
    note = tag(
        "p",
        f"Means of {span(data['series'][0]['seconds'])}, weighted by their steps: single steps spread more.",
        class_="note",
    )
    return Card(title, join(plot(axes.svg("how steps are distributed by their time")), note), finding)


def metrics_card(data: Data) -> Card | None:
    """What the script reported or its log told: loss and the like."""
    names: dict[str, None] = {}
    for one in data["series"]:
        for row in one["rows"]:
            names |= dict.fromkeys(row.get("metrics") or ())
    drawn = []
    for name in list(names)[:MOST_METRICS]:
        lines = [
            Line(
                f"attempt {one['attempt']}",
                tuple((row["at"], (row.get("metrics") or {}).get(name)) for row in one["rows"]),
                0,
                broken=2.5 * one["seconds"],
            )
            for one in data["series"]
        ]
        values = [y for line in lines for _, y in line.points if y is not None]
        if len(values) < 2 or min(values) < 0:
            continue
        axes = Axes(data["from"], data["to"], max(values), name[:40], 170, width=400, wanted_y=3, x_unit="")
        for line in lines:
            axes.line(line)
        drawn.append(axes.svg(f"{name} over time", axes.hover(lines)))
    return Card("What the script told", tag("div", *drawn, class_="multiples")) if drawn else None
