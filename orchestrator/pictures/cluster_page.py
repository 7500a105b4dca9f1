"""The page of the cluster: what its GPUs were used for and by whom, how full its nodes were, and how long runs waited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log2
from typing import Any

from orchestrator.pictures import bars, heat
from orchestrator.pictures.markup import Markup, join, tag
from orchestrator.pictures.page import Card, card, empty, page, plot, table, tiles
from orchestrator.pictures.plot import Axes, Line, legend, line_legend
from orchestrator.pictures.run_page import footer
from orchestrator.pictures.scale import figure, percent, span, when

Data = Mapping[str, Any]
STATES = ("succeeded", "failed", "cancelled")


def cluster_page(data: Data) -> str:
    """The document. `data` is what the API answers to /report."""
    cards = [
        _use(data),
        _endings(data),
        _people(data, "by_team", "By team"),
        _people(data, "by_user", "By user"),
        _occupancy(data),
        _waits(data),
        _scaling(data),
    ]
    return page("orch: the cluster", _header(data), [tag("div", *map(card, cards), class_="cards")], footer(data))


def _header(data: Data) -> Markup:
    total, counts = sum(data["use"].values()), {state: sum(data["endings"]["counts"][state]) for state in STATES}
    ended = counts["succeeded"] + counts["failed"]
    period = f"{when(data['from'])} to {when(data['to'])}"
    items: list[tuple[str, str, str | None]] = [
        (figure(data["runs"]), "runs submitted", None),
        (figure(total), "GPU-hours", "CPU slots of nodes without GPUs count too"),
    ]
    if total:
        items.append((percent(data["use"]["productive"] / total), "goodput", "productive of the allocated time"))
    if data["occupancy"]["share"] is not None:
        items.append((percent(data["occupancy"]["share"]), "of all nodes allocated", None))
    if ended:
        items.append((percent(counts["succeeded"] / ended), "succeeded", "of those that succeeded or failed"))
    return join(tag("h1", "The cluster ", tag("small", period)), tiles(items))


def _use(data: Data) -> Card:
    title, use = "What GPUs were used for", data["use"]
    total = sum(use.values())
    if not total:
        return Card(title, empty("No run held a GPU in this time."), wide=True)
    words = {part: f"{figure(use[part])} h ({percent(use[part] / total)})" for part in bars.PARTS}
    worst = max((part for part in bars.PARTS if part != "productive"), key=lambda part: use[part])
    finding = f"{figure(total)} GPU-hours (slots on CPU nodes), {percent(use['productive'] / total)} of them productive"
    finding += f"; most of the rest was {worst}." if use[worst] else "."
    return Card(title, plot(bars.whole(use, "GPU-hours by use", words)), finding, wide=True)


def _people(data: Data, of: str, title: str) -> Card:
    rows = [(one["name"], one["hours"]) for one in data[of] if sum(one["hours"].values())]
    if not rows:
        return Card(title, empty("No run held a GPU in this time."))
    drawn = bars.stacked(rows, "GPU-hours", f"GPU-hours {title.lower()}, by use")
    words = legend((f"part {part}", part) for part in bars.PARTS)
    return Card(title, join(plot(drawn), words), "GPU-hours, and the share of them that was productive.")


def _occupancy(data: Data) -> Card:
    title, found = "How full the nodes were", data["occupancy"]
    if not found["rows"]:
        return Card(title, empty("No node has ever joined the cluster."), wide=True)
    cells = tuple(tuple(row["cells"]) for row in found["rows"])
    names = tuple(row["node"] for row in found["rows"])
    label = "share of each node that was allocated, by time"
    drawn = heat.Heat(names, cells, found["from"], found["seconds"], 0.0, 1.0, "allocated", label)
    many = "" if found["nodes"] == len(names) else f" {found['nodes']} nodes, several a row."
    note = f"The share of a node's GPUs (or CPU slots) that runs held; a cell is {span(found['seconds'])}.{many}"
    body = join(plot(heat.draw(drawn)), heat.key(drawn, "empty", "full"), tag("p", note, class_="note"))
    least = min(found["rows"], key=lambda row: sum(row["cells"]))
    mean = sum(least["cells"]) / max(1, len(least["cells"]))
    finding = f"{percent(found['share'])} of the cluster was allocated; the emptiest was {least['node']} with {percent(mean)}."
    return Card(title, body, finding, wide=True)


def _waits(data: Data) -> Card:
    title, waits = "Waiting in the queue, by size", data["waits"]
    if not waits:
        return Card(title, empty("No run started in this time."))
    top = max(1.0, max(one["p90"] for one in waits))
    divide, unit = (3600.0, "h") if top >= 7200 else (60.0, "min") if top >= 120 else (1.0, "s")
    words = tuple((i + 0.5, _size(one)) for i, one in enumerate(waits))
    axes = Axes(0, len(waits), top / divide, unit, 220, x_words=words, x_unit="ranks")
    for i, one in enumerate(waits):
        x, low, high = axes.x(i + 0.5), axes.y(one["median"] / divide), axes.y(one["p90"] / divide)
        axes.parts.append(
            tag(
                "g",
                tag(
                    "title",
                    f"{_size(one)} ranks: half of {one['runs']} runs waited {span(one['median'])} or less, 90 % {span(one['p90'])}",
                ),
                tag("path", d=f"M{x:.1f} {low:.1f}V{high:.1f}M{x - 7:.1f} {high:.1f}h14", class_="line s0"),
                tag("circle", cx=x, cy=low, r=4.5, class_="dot s0"),
            )
        )
        axes.words(x + 9, low - 3, span(one["median"]))
    rows = [(_size(one), one["runs"], span(one["median"]), span(one["p90"])) for one in waits]
    drawn = axes.svg("median and 90th percentile of the wait for the first start, by the size of the gang")
    body = join(plot(drawn), table(("ranks", "runs", "half waited at most", "90 % at most"), rows, right=(1, 2, 3)))
    return Card(
        title, body, "The dot is the median, the line goes up to the 90th percentile: submission to first start."
    )


def _size(one: Data) -> str:
    return f"{one['from']}" if one["from"] == one["to"] else f"{one['from']}-{one['to']}"


def _endings(data: Data) -> Card:
    title, found = "How runs ended", data["endings"]
    counts: Mapping[str, Sequence[int]] = found["counts"]
    columns = len(counts["succeeded"])
    totals = [sum(counts[state][i] for state in STATES) for i in range(columns)]
    if not any(totals):
        return Card(title, empty("No run ended in this time."), wide=True)
    end = found["from"] + columns * found["seconds"]
    axes = Axes(found["from"], end, max(totals), "runs", 200, width=1080)
    width = (axes.x.last - axes.x.first) / columns
    for i in range(columns):
        below = 0
        for state in STATES:
            count = counts[state][i]
            if not count:
                continue
            y, height = axes.y(below + count), axes.y(below) - axes.y(below + count)
            words = f"{when(found['from'] + i * found['seconds'])}: {count} {state}"
            x = axes.x.first + i * width
            axes.parts.append(
                tag(
                    "rect",
                    tag("title", words),
                    x=x + 0.6,
                    y=y,
                    width=max(1.0, width - 1.2),
                    height=height,
                    class_=f"bar {state}",
                )
            )
            below += count
    ended = {state: sum(counts[state]) for state in STATES}
    decided = ended["succeeded"] + ended["failed"]
    finding = f"{percent(ended['succeeded'] / decided)} of {decided} runs succeeded." if decided else None
    each = "day" if found["seconds"] == 86400 else "hour"
    words = legend((f"bar {state}", f"{state} {ended[state]}") for state in STATES if ended[state])
    return Card(title, join(plot(axes.svg(f"runs by how they ended, each {each}")), words), finding, wide=True)


def _scaling(data: Data) -> Card:
    title, found = "Scaling beside the ideal", data["scaling"]
    if not found:
        why = "No job of one name was measured at two sizes. Run one with workers=1 and workers=8: this says what seven more bring."
        return Card(title, empty(why))
    low = min(one["sizes"][0]["workers"] for one in found)
    high = max(one["sizes"][-1]["workers"] for one in found)
    sizes = sorted({size["workers"] for one in found for size in one["sizes"]})
    top = max(1.0, max(size["efficiency"] for one in found for size in one["sizes"])) * 100
    words = tuple((log2(size), str(size)) for size in sizes)
    axes = Axes(log2(low) - 0.1, log2(high) + 0.1, top, "% of ideal", 230, x_words=words, x_unit="ranks")
    axes.level(100, "ideal", 4)
    lines = []
    for style, one in enumerate(found):
        points = tuple((log2(size["workers"]), size["efficiency"] * 100) for size in one["sizes"])
        lines.append(Line(one["name"], points, (0, 1, 2, 3, 5, 4)[style]))
        axes.line(lines[-1])
        for size in one["sizes"]:
            rate = f"{figure(size['samples_per_s'])} samples/s, median of {size['runs']}"
            label = f"{one['name']} on {size['workers']}: {rate}, {percent(size['efficiency'])}"
            axes.dot(log2(size["workers"]), size["efficiency"] * 100, lines[-1].style, label)
    body = join(plot(axes.svg("samples per second and rank, beside those of the smallest size")), line_legend(lines))
    return Card(title, body, "Samples a second for each rank, beside the smallest size of the same name.")
