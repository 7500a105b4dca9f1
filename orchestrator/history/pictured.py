"""What the pictures of a run and of the cluster are drawn from: read in few statements, and folded to what a page can show."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from statistics import median, quantiles
from typing import Any

from sqlalchemy import Connection, func, select

from orchestrator.history import measurements, queries, render
from orchestrator.history.benches import BenchFilter
from orchestrator.history.benches import filtered as benches_like
from orchestrator.history.compare import against_its_like
from orchestrator.history.ledger import scaling
from orchestrator.history.measured_models import GpuTimeRow, ProgressRow
from orchestrator.history.models import AttemptRow, RunRow
from orchestrator.history.series import fold_gang, fold_gpus, fold_ranks
from orchestrator.progress.values import GangSample, RankSample
from orchestrator.scheduling.run import Run

LENGTHS = (10, 20, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 7 * 86400)
"""Seconds that one point of a series may stand for."""
MOST_POINTS = 400
MOST_COLUMNS = 160
MOST_METRICS = 4
MOST_ROWS = 96
MOST_GPUS = 16
MOST_NODES = 64
MOST_NAMES = 6
MOST_PEOPLE = 12
PAST_RUNS = 30
PARTS = ("productive", "starting", "checkpoint", "lost", "idle")


def length_for(seconds: float, most: int, least: int = 10) -> int:
    """How long the points of a series must be, so that there are at most so many in this time."""
    return next((one for one in LENGTHS if one >= least and seconds / one <= most), LENGTHS[-1])


# One run --------------------------------------------------------------------------------------------------------------


def run_pictured(connection: Connection, run: Run, now: datetime) -> dict[str, Any]:
    """Everything that a run's page shows, as JSON; `now` ends what lives."""
    began = run.attempts[0].started_at if run.attempts else run.submitted_at
    ended = run.finished_at or now
    lasted = max(1.0, (ended - began).total_seconds())
    keys = [(run.id, attempt.number) for attempt in run.attempts]
    found = queries.nodes(connection)
    placed = {part.node for attempt in run.attempts for part in attempt.placement.nodes}
    return {
        "at": render.time_json(now),
        "run": render.show_json(run, now),
        "from": began.timestamp(),
        "to": ended.timestamp(),
        "series": _gang(measurements.series(connection, run.id), lasted),
        "ranks": _ranks(connection, keys, began, lasted),
        "gpus": _gpus(connection, keys, lasted),
        "nodes": {
            node.name: {name: node.hardware.get(name) for name in ("gpus", "islands", "nics")}
            for node in found
            if node.name in placed
        },
        "measured_busbw": _bandwidth(connection, run),
        "past": _past(connection, run),
        "compared": against_its_like(connection, run),
    }


def _gang(series: dict[int, list[GangSample]], lasted: float) -> list[dict[str, Any]]:
    seconds = length_for(lasted, MOST_POINTS)
    return [
        {
            "attempt": attempt,
            "seconds": seconds,
            "rows": [
                {
                    "at": row.at.timestamp(),
                    "for": row.measured_ms / 1000,
                    "samples_per_s": row.samples_per_s,
                    "steps_per_s": row.steps * 1000 / row.measured_ms if row.measured_ms else None,
                    "steps": row.steps,
                    "step_time": row.step_time,
                    "metrics": {name: _short(value) for name, value in list(row.metrics.items())[:MOST_METRICS]},
                }
                for row in fold_gang(rows, seconds)
            ],
        }
        for attempt, rows in series.items()
    ]


def _ranks(
    connection: Connection, keys: Sequence[measurements.Key], began: datetime, lasted: float
) -> dict[str, Any] | None:
    """Ranks by time, in cells: the seconds a step of each rank's own work, or from step to step where that is unknown."""
    samples = [row for key in keys for row in measurements.rank_series(connection, key)]
    seconds = length_for(lasted, MOST_COLUMNS, 60)
    rows = [row for row in samples if row.steps]
    if not rows:
        return None
    own = all(row.own_time is not None for row in rows)
    # The grid begins on the clock, as folded rows do.
    first = int(began.timestamp()) // seconds * seconds
    ranks = max(row.rank for row in rows) + 1
    together = -(-ranks // MOST_ROWS)
    cells: dict[tuple[int, int], float] = {}
    steps: dict[int, list[float]] = {}
    for row in fold_ranks(rows, seconds):
        value = row.own_time if own else row.step_time
        if value is None:
            continue
        place = row.rank // together, (int(row.at.timestamp()) - first) // seconds
        # Of ranks that share a row the slowest is shown: a mean would hide it.
        cells[place] = max(cells.get(place, 0.0), value)
        steps.setdefault(place[1], []).append(row.step_time or value)
    columns = max((column for _, column in cells), default=-1) + 1
    return {
        "measure": "own work" if own else "step time",
        "from": first,
        "seconds": seconds,
        "ranks": ranks,
        "together": together,
        "values": [
            [_short(cells.get((row, column))) for column in range(columns)] for row in range(-(-ranks // together))
        ],
        "steps": [_short(median(steps[column])) if column in steps else None for column in range(columns)],
        "means": _means(rows, own),
    }


def _means(rows: Iterable[RankSample], own: bool) -> dict[str, float]:
    """By rank, the mean over its steps."""
    sums: dict[int, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
    for row in rows:
        value = row.own_time if own else row.step_time
        if value is not None:
            total, steps = sums[row.rank]
            sums[row.rank] = total + value * row.steps, steps + row.steps
    return {str(rank): float(f"{total / steps:.4g}") for rank, (total, steps) in sorted(sums.items())}


def _gpus(connection: Connection, keys: Sequence[measurements.Key], lasted: float) -> dict[str, Any] | None:
    """Each GPU's use over time; of many the mean of all, and how many there were."""
    samples = [row for key in keys for row in measurements.gpu_series(connection, key)]
    if not samples:
        return None
    seconds = length_for(lasted, MOST_COLUMNS, 60)
    lines: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in fold_gpus(samples, seconds):
        lines[row.node, row.gpu].append(
            {
                "at": row.at.timestamp(),
                "utilization": _short(row.utilization),
                "memory_gib": None if row.memory_mib is None else _short(row.memory_mib / 1024),
                "power_w": _short(row.power_w),
                "temperature_c": _short(row.temperature_c),
                "throttled": _short(row.throttled),
            }
        )
    throttled = {
        f"{node}:{gpu}": sorted(
            {why for row in samples if (row.node, row.gpu) == (node, gpu) for why in row.throttled_by}
        )
        for node, gpu in lines
        if any(row["throttled"] for row in lines[node, gpu])
    }
    # The least used first: those are the ones to look at.
    order = sorted(lines, key=lambda one: (_mean(row["utilization"] for row in lines[one]) or 0.0, one))
    return {
        "seconds": seconds,
        "count": len(lines),
        "shown": [{"node": node, "gpu": gpu, "rows": lines[node, gpu]} for node, gpu in sorted(order[:MOST_GPUS])],
        "throttled": throttled,
    }


def _bandwidth(connection: Connection, run: Run) -> dict[str, Any] | None:
    """What `orch bench` last measured on exactly the nodes of the run's latest attempt, at its largest size."""
    if not run.attempts:
        return None
    nodes = frozenset(part.node for part in run.attempts[-1].placement.nodes)
    found = [
        bench
        for bench in benches_like(connection, BenchFilter(nodes=nodes, collectives=("all_reduce",)))
        if frozenset(bench.link.nodes) == nodes
    ]
    if not found:
        return None
    newest = max(found, key=lambda bench: (bench.at, bench.row.bytes))
    return {
        "run": newest.run,
        "at": render.time_json(newest.at),
        "busbw": newest.row.busbw,
        "bytes": newest.row.bytes,
        "backend": newest.row.backend,
        "ranks": newest.link.ranks,
    }


def _past(connection: Connection, run: Run) -> list[dict[str, Any]]:
    """The runs of its name up to it, oldest first, with their throughput."""
    rows = connection.execute(
        select(RunRow.id, RunRow.state, RunRow.submitted_at, AttemptRow.placement, ProgressRow.samples_per_s)
        .join(AttemptRow, AttemptRow.run_id == RunRow.id)
        .join(ProgressRow, (ProgressRow.run_id == AttemptRow.run_id) & (ProgressRow.attempt == AttemptRow.number))
        .where(RunRow.name == run.name, RunRow.id <= run.id, ProgressRow.samples_per_s.is_not(None))
        .order_by(RunRow.id.desc(), AttemptRow.number.desc())
        .limit(4 * PAST_RUNS)
    )
    latest: dict[int, dict[str, Any]] = {}
    for row in rows:
        ranks = sum(len(node["gpus"]) for node in row.placement["nodes"])
        at = render.time_json(row.submitted_at)
        one = {"id": row.id, "state": row.state, "at": at, "workers": ranks, "samples_per_s": row.samples_per_s}
        latest.setdefault(row.id, one)
    return list(latest.values())[:PAST_RUNS][::-1]


# The cluster ----------------------------------------------------------------------------------------------------------


def cluster_pictured(connection: Connection, since: datetime, now: datetime) -> dict[str, Any]:
    """Everything that the cluster's page shows of the time since then, as JSON."""
    runs = connection.execute(
        select(RunRow.id, RunRow.state, RunRow.submitted_at, RunRow.started_at, RunRow.finished_at)
        .where(RunRow.submitted_at >= since)
        .order_by(RunRow.id)
    ).all()
    times = connection.execute(
        select(GpuTimeRow, RunRow.username, RunRow.team)
        .join(RunRow, RunRow.id == GpuTimeRow.run_id)
        .where(GpuTimeRow.until > since)
    ).all()
    return {
        "at": render.time_json(now),
        "from": since.timestamp(),
        "to": now.timestamp(),
        "runs": len(runs),
        "use": _use(times),
        "by_user": _people(times, "username"),
        "by_team": _people(times, "team"),
        "occupancy": _occupancy(connection, times, since, now),
        "waits": _waits(connection, runs, since),
        "endings": _endings(runs, since, now),
        "scaling": _scaling(connection, since),
    }


def _use(times: Sequence[Any]) -> dict[str, float]:
    """Hours by part. A row that began before the time asked for counts whole."""
    return {part: round(sum(getattr(row, f"{part}_ms") for row in times) / 3.6e6, 4) for part in PARTS}


def _people(times: Sequence[Any], of: str) -> list[dict[str, Any]]:
    """The hours of each user or team, the most first; the rest together."""
    sums: dict[str, list[Any]] = defaultdict(list)
    for row in times:
        sums[getattr(row, of) or "no team"].append(row)
    ordered = sorted(sums.items(), key=lambda one: (-sum(row.allocated_ms for row in one[1]), one[0]))
    shown = [{"name": name, "hours": _use(rows)} for name, rows in ordered[:MOST_PEOPLE]]
    rest = [row for _, rows in ordered[MOST_PEOPLE:] for row in rows]
    return shown + ([{"name": f"{len(ordered) - MOST_PEOPLE} others", "hours": _use(rest)}] if rest else [])


def _occupancy(connection: Connection, times: Sequence[Any], since: datetime, now: datetime) -> dict[str, Any]:
    """Of each node and stretch of time, which share of its GPUs (or CPU slots) was allocated."""
    lasted = (now - since).total_seconds()
    seconds = length_for(lasted, MOST_COLUMNS, 60)
    first = int(since.timestamp()) // seconds * seconds
    columns = int((now.timestamp() - first) // seconds) + 1
    sizes = {
        node.name: int(node.hardware.get("total") or len(node.hardware.get("gpus") or ()))
        for node in queries.nodes(connection)
    }
    held: dict[str, list[float]] = {name: [0.0] * columns for name in sizes}
    for row in times:
        line = held.setdefault(row.node, [0.0] * columns)
        start, end = max(row.since.timestamp(), since.timestamp()), min(row.until.timestamp(), now.timestamp())
        for column in range(int((start - first) // seconds), min(columns - 1, int((end - first) // seconds)) + 1):
            begin = first + column * seconds
            line[column] += row.gpus * max(0.0, min(end, begin + seconds) - max(start, begin))
    rows = []
    for name, line in held.items():
        # A node that says nothing of its size has at least what was in use there at once.
        size = sizes.get(name) or max(1.0, max(line) / seconds)
        rows.append((name, [min(1.0, value / seconds / size) for value in line], size))
    rows.sort(key=lambda row: row[0])
    together = max(1, -(-len(rows) // MOST_NODES))
    lines = []
    for start_row in range(0, len(rows), together):
        group = rows[start_row : start_row + together]
        name = group[0][0] if len(group) == 1 else f"{group[0][0]} to {group[-1][0]}"
        total = sum(size for _, _, size in group)
        cells = [sum(line[i] * size for _, line, size in group) / total for i in range(columns)]
        lines.append({"node": name, "cells": [_short(cell) for cell in cells]})
    whole = sum(size for _, _, size in rows)
    used = sum(sum(line) * size for _, line, size in rows)
    return {
        "from": first,
        "seconds": seconds,
        "nodes": len(rows),
        "rows": lines,
        "share": _short(used / (whole * columns)) if whole else None,
    }


def _waits(connection: Connection, runs: Sequence[Any], since: datetime) -> list[dict[str, Any]]:
    """By size of the gang, doubling: how long runs waited for their first start."""
    counted = (
        select(GpuTimeRow.run_id, func.sum(GpuTimeRow.gpus))
        .where(GpuTimeRow.attempt == 1, GpuTimeRow.since >= since)
        .group_by(GpuTimeRow.run_id)
    )
    sizes = {run: int(gpus) for run, gpus in connection.execute(counted)}
    by_size: dict[int, list[float]] = defaultdict(list)
    for run in runs:
        if run.started_at is not None and (size := sizes.get(run.id)):
            by_size[(size - 1).bit_length()].append((run.started_at - run.submitted_at).total_seconds())
    return [
        {
            "from": 1 if power == 0 else 2 ** (power - 1) + 1,
            "to": 2**power,
            "runs": len(waits),
            "median": _short(median(waits)),
            "p90": _short(quantiles(waits, n=10, method="inclusive")[-1] if len(waits) > 1 else waits[0]),
        }
        for power, waits in sorted(by_size.items())
    ]


def _endings(runs: Sequence[Any], since: datetime, now: datetime) -> dict[str, Any]:
    """How many runs ended how, by day (by hour of a short time)."""
    seconds = 86400 if (now - since) > timedelta(days=3) else 3600
    first = int(since.timestamp()) // seconds * seconds
    columns = int((now.timestamp() - first) // seconds) + 1
    counts = {state: [0] * columns for state in ("succeeded", "failed", "cancelled")}
    for run in runs:
        if run.state in counts and run.finished_at is not None:
            counts[run.state][min(columns - 1, int((run.finished_at.timestamp() - first) // seconds))] += 1
    return {"from": first, "seconds": seconds, "counts": counts}


def _scaling(connection: Connection, since: datetime) -> list[dict[str, Any]]:
    """Of the names that ran at several sizes: samples a second at each, beside as many times the smallest's."""
    rows = connection.execute(
        select(RunRow.name, AttemptRow.placement, ProgressRow.samples_per_s)
        .join(AttemptRow, AttemptRow.run_id == RunRow.id)
        .join(ProgressRow, (ProgressRow.run_id == AttemptRow.run_id) & (ProgressRow.attempt == AttemptRow.number))
        .where(RunRow.submitted_at >= since, ProgressRow.samples_per_s.is_not(None))
    )
    measured: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for name, placement, rate in rows:
        measured[name].append((sum(len(node["gpus"]) for node in placement["nodes"]), rate))
    scaled = [(name, scaling(found)) for name, found in measured.items()]
    several = sorted(((n, s) for n, s in scaled if len(s) > 1), key=lambda one: (-len(one[1]), one[0]))
    return [{"name": name, "sizes": [asdict(size) for size in sizes]} for name, sizes in several[:MOST_NAMES]]


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
