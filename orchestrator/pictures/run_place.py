"""Where a run was, over which links, and how fast beside the earlier runs of its name."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from orchestrator.pictures import placed
from orchestrator.pictures.markup import Content, join, tag
from orchestrator.pictures.page import Card, empty, plot, table
from orchestrator.pictures.plot import Axes
from orchestrator.pictures.ranks import slow_ranks
from orchestrator.pictures.scale import figure, percent

Data = Mapping[str, Any]


def placement_card(data: Data) -> Card:
    title = "Where it ran"
    run = data["run"]
    if not run.get("attempts"):
        return Card(title, empty("It has no place yet."))
    newest = run["attempts"][-1]
    placement, failure = newest["placement"], newest.get("failure") or {}
    bad = {int(rank) for rank, code in (newest.get("exit_codes") or {}).items() if code > 0}
    if failure.get("rank") is not None:
        bad = {failure["rank"]}
    slow = slow_ranks(data["ranks"])
    times = (data["ranks"] or {}).get("means")
    drawing = placed.draw(placement, data["nodes"], bad=bad, slow=slow, times=times)
    facts: list[tuple[str, Content]] = [("level", placement.get("level"))]
    predicted, measured = placement.get("busbw_predicted"), data["measured_busbw"]
    if predicted is not None:
        bound = f", bounded by {placement['busbw_bottleneck']}" if placement.get("busbw_bottleneck") else ""
        facts.append(("all-reduce, predicted", f"{figure(predicted)} GB/s{bound}"))
    if measured is not None:
        of = f", {percent(measured['busbw'] / predicted)} of that" if predicted else ""
        facts.append(
            (
                "all-reduce, measured",
                f"{figure(measured['busbw'])} GB/s on these nodes by {measured['backend']}{of} (orch bench, run {measured['run']})",
            )
        )
    facts += _transport(newest.get("transport"))
    rows = [(tag("span", name, class_="soft"), value) for name, value in facts if value]
    note = tag(
        "p",
        "A number is a rank; a bar under GPUs is an NVLink island; ",
        tag("b", "cross-hatched"),
        " failed first; a thick edge is slow.",
        class_="note",
    )
    several = f"The newest of {len(run['attempts'])} attempts." if len(run["attempts"]) > 1 else None
    return Card(title, join(plot(drawing), note, table(("", ""), rows)), several, wide=True)


def _transport(found: Data | None) -> list[tuple[str, Content]]:
    if not found:
        return [("transport", "not known: NCCL's log has not told yet")]
    links = ", ".join(f"{count} {kind}" for kind, count in (found.get("links") or {}).items())
    worse = str(found.get("verdict")).startswith("worse")
    said = f"{found.get('verdict')}: {links or found.get('reason') or ''}" + (
        f" (NCCL {found['nccl']})" if found.get("nccl") else ""
    )
    rows: list[tuple[str, Content]] = [("transport", tag("span", said, class_="warn" if worse else None))]
    for one in found.get("shortfalls") or ():
        causes = "; ".join(f"{'because' if cause['shown'] else 'perhaps'} {cause['text']}" for cause in one["causes"])
        rows.append(("", f"{one['text']}. {causes}"))
    return rows


def past_card(data: Data) -> Card:
    run, past = data["run"], data["past"]
    title = f"Beside earlier runs named {run['name']}"
    sentence = (data.get("compared") or {}).get("text")
    if len(past) < 2:
        return Card(title, empty("No earlier run of this name was measured."))
    axes = Axes(
        -0.5,
        len(past) - 0.5,
        max(one["samples_per_s"] / one["workers"] for one in past),
        "samples/s a rank",
        190,
        x_words=_ids(past),
        x_unit="run",
    )
    for place, one in enumerate(past):
        each = one["samples_per_s"] / one["workers"]
        rate = f"{figure(one['samples_per_s'])} samples/s on {one['workers']} ranks, {figure(each)} a rank"
        label = f"run {one['id']}, {one['at'][:10]}, {one['state']}: {rate}"
        mine = one["id"] == run["id"]
        axes.dot(place, each, 1 if mine else 0, label)
        if mine:
            axes.words(min(axes.x(place), axes.x.last - 18), axes.y(each) - 8, "this", "middle")
    others = [one["samples_per_s"] / one["workers"] for one in past if one["id"] != run["id"]]
    axes.level(median(others), f"their median, {figure(median(others))}", 4)
    finding = sentence or _beside(past, run["id"], median(others))
    return Card(title, plot(axes.svg("throughput per rank of the runs of this name, oldest first")), finding)


def _ids(past: list[Data]) -> tuple[tuple[float, str], ...]:
    every = -(-len(past) // 10)
    return tuple((place, str(one["id"])) for place, one in enumerate(past) if (len(past) - 1 - place) % every == 0)


def _beside(past: list[Data], run: int, usual: float) -> str | None:
    own = next((one["samples_per_s"] / one["workers"] for one in past if one["id"] == run), None)
    if own is None:
        return None
    change = own / usual - 1
    if abs(change) < 0.03:
        return "As fast per rank as those before it."
    return f"{percent(abs(change))} {'faster' if change > 0 else 'slower'} per rank than the median of those before it."
