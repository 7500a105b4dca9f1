"""The page of one run, or of several side by side: their throughput over the time since their start, then each by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.pictures.markup import Markup, join, tag
from orchestrator.pictures.page import Card, card, empty, page, plot, table
from orchestrator.pictures.plot import Axes, Line, line_legend
from orchestrator.pictures.run_page import body, footer, name_of
from orchestrator.pictures.scale import figure, percent, span, ticks

Data = Mapping[str, Any]
STYLES = 6
"""Lines in one chart: more cannot be told apart."""


def runs_page(datas: Sequence[Data]) -> str:
    """The document. Each of `datas` is what the API answers to /runs/RUN/report."""
    if len(datas) == 1:
        run = datas[0]["run"]
        header, cards = body(datas[0])
        return page(f"orch run {run['id']}: {run['name']}", header, [cards], footer(datas[0]))
    ids = ", ".join(str(data["run"]["id"]) for data in datas)
    parts: list[Markup] = [tag("div", card(_together(datas)), class_="cards")]
    for data in datas:
        header, cards = body(data)
        parts.append(tag("article", header, cards, id=f"run-{data['run']['id']}"))
    return page(f"orch runs {ids}", tag("h1", f"Runs {ids}"), parts, footer(datas[-1]))


def _together(datas: Sequence[Data]) -> Card:
    rows = []
    for data in datas:
        run, speed = data["run"], data["run"].get("throughput") or {}
        used = (run.get("gpu_seconds") or {}).get("allocated")
        link = tag("a", f"{run['id']} {name_of(run)}", href=f"#run-{run['id']}")
        took = span(data["to"] - data["from"]) if run.get("attempts") else ""
        hours = figure(used / 3600) if used else ""
        rate = figure(speed["samples_per_s"]) if speed.get("samples_per_s") else ""
        rows.append(
            (link, run["state"], len(run.get("attempts") or ()), took, rate, hours, percent(run.get("goodput")))
        )
    titles = ("run", "state", "attempts", "took", "samples/s", "GPU-hours", "goodput")
    return Card("Side by side", join(_overlay(datas), table(titles, rows, right=range(2, 7))), wide=True)


def _overlay(datas: Sequence[Data]) -> Markup:
    lines = []
    for style, data in enumerate(datas[:STYLES]):
        points = tuple(
            (row["at"] + row["for"] / 2 - data["from"], row["samples_per_s"])
            for one in data["series"]
            for row in one["rows"]
        )
        gap = 2.5 * data["series"][0]["seconds"] if data["series"] else None
        lines.append(Line(f"{data['run']['id']} {name_of(data['run'])}", points, style, broken=gap))
    values = [y for line in lines for _, y in line.points if y is not None]
    if not values:
        return empty("No throughput of these runs was measured.")
    longest = max(1.0, *(data["to"] - data["from"] for data in datas))
    words = tuple((at, span(at)) for at in ticks(longest) if at <= longest)
    axes = Axes(0, longest, max(values), "samples/s", 240, width=1080, x_words=words, x_unit="since start")
    for line in lines:
        axes.line(line)
    left_out = f"The first {STYLES} are drawn." if len(datas) > STYLES else None
    note = None if left_out is None else tag("p", left_out, class_="note")
    return join(plot(axes.svg("throughput of the runs since their start")), line_legend(lines), note)
