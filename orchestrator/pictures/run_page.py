"""The page of one run: how fast it was and when not, which rank held it up, what its GPUs' time went into, and where it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.pictures.markup import Content, Markup, join, tag
from orchestrator.pictures.page import Card, card, empty, table, tiles
from orchestrator.pictures.plot import SIGNS
from orchestrator.pictures.ranks import ranks_card
from orchestrator.pictures.run_gpus import device_of, gpus_card, ledger_card
from orchestrator.pictures.run_place import past_card, placement_card
from orchestrator.pictures.run_time import metrics_card, steps_card, throughput_card
from orchestrator.pictures.scale import figure, moment, percent, span, step_unit, when

Data = Mapping[str, Any]
MOST_EVENTS = 200
ENDED = {"succeeded": "succeeded", "failed": "failed", "cancelled": "cancelled"}


def body(data: Data) -> tuple[Markup, Markup]:
    """What stands at the head of the run's page, and its pictures. `data` is what the API answers to /runs/RUN/report."""
    return _header(data), tag("div", *map(card, _cards(data)), class_="cards")


def _cards(data: Data) -> list[Card]:
    found = [
        throughput_card(data),
        ranks_card(data),
        steps_card(data),
        ledger_card(data),
        gpus_card(data),
        placement_card(data),
        metrics_card(data),
        past_card(data),
        _attempts(data),
        _events(data),
    ]
    return [one for one in found if one is not None]


def footer(data: Data) -> str:
    return f"Drawn {when(moment(data['at']) or 0)} by orch. All times are UTC. This file needs no network."


def name_of(run: Data) -> str:
    array = run.get("array") or {}
    return f"{run['name']}[{array['index']}]" if "index" in array else str(run["name"])


def _header(data: Data) -> Markup:
    run, speed = data["run"], data["run"].get("throughput") or {}
    state = run["state"]
    sign = SIGNS.get(ENDED.get(state, ""), "●")
    color = {"succeeded": "good", "failed": "bad"}.get(state, "warn" if state == "cancelled" else "")
    workers = _ranks_of(run)
    began, ended = moment(run.get("started_at")), moment(run.get("finished_at"))
    who = run["user"] + (f", team {run['team']}" if run.get("team") else "")
    title = tag("h1", name_of(run), " ", tag("small", f"run {run['id']}"))
    line = tag(
        "p",
        tag("b", f"{sign} {state}", class_=color or None),
        f" · {who} · {workers} rank{'s' if workers != 1 else ''}",
        f" · submitted {when(moment(run['submitted_at']) or 0)}",
    )
    used = run.get("gpu_seconds") or {}
    hours = "CPU-slot hours" if device_of(run) == "cpu" else "GPU-hours"
    again = speed.get("repeated_steps") or 0
    multiple, unit = step_unit(speed.get("step_time") or 1)
    items: list[tuple[str, str, str | None]] = []
    if speed.get("samples_per_s"):
        items.append((figure(speed["samples_per_s"]), "samples/s", "of the newest attempt"))
    if speed.get("step_time"):
        items.append((f"{figure(speed['step_time'] * multiple)} {unit}", "a step, mean", None))
    if speed.get("steps"):
        items.append((figure(speed["steps"]), "steps" + (f", {figure(again)} done twice" if again else ""), None))
    if began is not None:
        items.append((span((ended or data["to"]) - began), "from start to end" if ended else "so far", None))
    if used.get("allocated"):
        items.append((figure(used["allocated"] / 3600), hours, "allocated, all attempts"))
        items.append((percent(run.get("goodput")), "goodput", "productive of the allocated time"))
    if run.get("queue_seconds") is not None:
        items.append((span(run["queue_seconds"]), "in the queue", None))
    items.append((str(len(run.get("attempts") or [])), "attempts", None))
    if run.get("cost") is not None:
        items.append((f"{run['cost']:,.2f}", "cost", "by the prices in the configuration"))
    return join(title, line, _why(run), tiles(items))


def _why(run: Data) -> Content:
    """Why it failed, in the words of `orch show`."""
    attempts = run.get("attempts") or [{}]
    failure = attempts[-1].get("failure")
    if failure and run["state"] != "succeeded":
        rank = "" if failure.get("rank") is None else f"rank {failure['rank']}"
        where = " on ".join(part for part in (rank, failure.get("node") or "") if part)
        return tag(
            "p",
            f"{where}: " if where and not str(failure["message"]).startswith(where) else "",
            failure["message"],
            class_="bad",
        )
    return tag("p", run["reason"], class_="soft") if run.get("reason") else None


def _ranks_of(run: Data) -> int:
    attempts = run.get("attempts") or []
    if not attempts:
        workers = (run.get("spec") or {}).get("workers", 1)
        nodes, _, each = str(workers).rpartition("x")
        return int(nodes or 1) * int(each)
    return sum(len(part.get("ranks") or part["gpus"]) for part in attempts[-1]["placement"]["nodes"])


def _attempts(data: Data) -> Card:
    run = data["run"]
    rows = []
    for one in run.get("attempts") or ():
        start, end = moment(one["started_at"]), moment(one.get("ended_at"))
        failure = one.get("failure") or {}
        nodes = one["placement"]["nodes"]
        where = ", ".join(f"{part['node']}:{len(part['gpus'])}" for part in nodes[:6]) + (
            f" and {len(nodes) - 6} more" if len(nodes) > 6 else ""
        )
        speed = one.get("progress") or {}
        rate = figure(speed["samples_per_s"]) if speed.get("samples_per_s") else ""
        took = span((end or data["to"]) - start) if start else ""
        rows.append(
            (
                one["number"],
                (one.get("outcome") or "lives").replace("_", " "),
                when(start) if start else "",
                took,
                where,
                rate,
                failure.get("message") or (one.get("stop") or {}).get("reason") or "",
            )
        )
    if not rows:
        return Card("Attempts and versions", empty("There was none yet."))
    drawn = table(("", "outcome", "started", "took", "where", "samples/s", "why it ended"), rows, right=(5,))
    versions = run["attempts"][-1].get("environment") or {}
    return Card("Attempts and versions", join(drawn, _versions(versions)), wide=True)


_VERSIONS = ("torch", "cuda", "cudnn", "nccl", "driver", "python", "kernel", "container")


def _versions(environment: Mapping[str, Data]) -> Markup:
    """One line for each set of versions, with its nodes."""
    sets: dict[tuple[str, ...], list[str]] = {}
    for node, told in environment.items():
        sets.setdefault(tuple(str(told.get(name) or "") for name in _VERSIONS), []).append(node)
    if not sets:
        return empty("The versions that it ran with are not known.")
    used = [i for i in range(len(_VERSIONS)) if any(one[i] for one in sets)]
    rows = [
        (*(one[i] for i in used), ", ".join(nodes[:8]) + (f" and {len(nodes) - 8} more" if len(nodes) > 8 else ""))
        for one, nodes in sets.items()
    ]
    warning = (
        tag("p", f"▲ the nodes had {len(sets)} different sets of versions", class_="warn") if len(sets) > 1 else None
    )
    return join(warning, table((*(_VERSIONS[i] for i in used), "on"), rows))


def _events(data: Data) -> Card:
    events = data["run"].get("events") or []
    if not events:
        return Card("Events", empty("None is recorded."))
    shown = events[-MOST_EVENTS:]
    rows = [
        (
            when(moment(one["at"]) or 0, seconds=True),
            one["event"].replace("_", " "),
            one["state"],
            one.get("reason") or "",
            one.get("by") or "",
        )
        for one in shown
    ]
    drawn = table(("at", "event", "state after it", "reason", "by"), rows)
    left_out = f"The last {len(shown)} of {len(events)}." if len(events) > len(shown) else None
    body: Content = drawn if len(rows) <= 12 else tag("details", tag("summary", f"{len(rows)} events"), drawn)
    return Card("Events", body, left_out, wide=True)
