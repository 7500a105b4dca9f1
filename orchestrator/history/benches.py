"""Results of `orch bench` in the database: rows of the table benches to Bench values and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select

from orchestrator.bench.results import BACKENDS, COLLECTIVES, Bench, Link
from orchestrator.bench.results import Row as Measured
from orchestrator.history.measured_models import BenchRow

PAST = timedelta(days=365)
"""Older results are in the history, and nothing is held against them."""
LIKES = timedelta(days=30)
"""So old may the newest result of a link be that another is held against."""
_AT_ONCE = 500  # parameters of one statement


@dataclass(frozen=True)
class BenchFilter:
    """Which results; what is None or empty does not filter."""

    runs: tuple[int, ...] = ()
    since: datetime | None = None
    nodes: frozenset[str] = frozenset()
    """Those of links that have one of these nodes."""
    collectives: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    least_bytes: int = 0


def record(connection: Connection, benches: Sequence[Bench]) -> None:
    """Keeps results in place of those that the same attempts had before: keeping them twice changes nothing."""
    for run, attempt in {(bench.run, bench.attempt) for bench in benches}:
        connection.execute(delete(BenchRow).where(BenchRow.run_id == run, BenchRow.attempt == attempt))
    if benches:
        connection.execute(insert(BenchRow), [_values(bench) for bench in benches])


def related(connection: Connection, shown: Sequence[Bench], now: datetime) -> list[Bench]:
    """What the results are to be held against: their links' past, and what other links reached of late."""
    if not shown:
        return []
    collectives = {bench.row.collective for bench in shown}
    alike = select(BenchRow).where(BenchRow.collective.in_(collectives))
    likes = alike.where(BenchRow.at >= now - LIKES, BenchRow.model.in_({bench.link.model for bench in shown}))
    links = sorted({"+".join(bench.link.nodes) for bench in shown})
    past = alike.where(BenchRow.at >= now - PAST, BenchRow.at < now - LIKES)
    found = [*connection.execute(likes)]
    for first in range(0, len(links), _AT_ONCE):
        found += connection.execute(past.where(BenchRow.link.in_(links[first : first + _AT_ONCE])))
    return [_bench(row) for row in found]


def filtered(connection: Connection, wanted: BenchFilter) -> list[Bench]:
    """The results that `wanted` describes, oldest first; of one run in the order of backend, collective and size."""
    question = select(BenchRow)
    if wanted.runs:
        question = question.where(BenchRow.run_id.in_(wanted.runs))
    if wanted.since is not None:
        question = question.where(BenchRow.at >= wanted.since)
    if wanted.collectives:
        question = question.where(BenchRow.collective.in_(wanted.collectives))
    if wanted.backends:
        question = question.where(BenchRow.backend.in_(wanted.backends))
    if wanted.least_bytes:
        question = question.where(BenchRow.bytes >= wanted.least_bytes)
    found = [_bench(row) for row in connection.execute(question)]
    return sorted((b for b in found if not wanted.nodes or wanted.nodes & set(b.link.nodes)), key=_order)


def _order(bench: Bench) -> tuple[object, ...]:
    row = bench.row
    return bench.at, bench.run, bench.attempt, BACKENDS.index(row.backend), COLLECTIVES.index(row.collective), row.bytes


def _values(bench: Bench) -> dict[str, Any]:
    link, row = bench.link, bench.row
    return {
        "run_id": bench.run,
        "attempt": bench.attempt,
        "backend": row.backend,
        "collective": row.collective,
        "bytes": row.bytes,
        "at": bench.at,
        "link": "+".join(link.nodes),
        "model": link.model,
        "level": link.level,
        "kind": link.kind,
        "ranks": link.ranks,
        "time_us": row.time_us,
        "algbw": row.algbw,
        "busbw": row.busbw,
        "predicted": bench.predicted,
        "modelled": bench.modelled,
        "details": {
            "per_node": link.per_node,
            "gpus": bench.gpus,
            "iterations": row.iterations,
            "in_place": row.in_place,
            "bottleneck": bench.bottleneck,
            "versions": bench.versions,
            "transport": bench.transport,
        },
    }


def _bench(row: Row[Any]) -> Bench:
    more = row.details
    return Bench(
        run=row.run_id,
        attempt=row.attempt,
        at=row.at,
        link=Link(tuple(sorted(more["gpus"])), row.model, row.level, row.kind, more["per_node"], row.ranks),
        row=Measured(
            row.collective,
            row.backend,
            row.bytes,
            row.time_us,
            row.algbw,
            row.busbw,
            more["iterations"],
            more["in_place"],
        ),
        predicted=row.predicted,
        modelled=row.modelled,
        bottleneck=more["bottleneck"],
        gpus=more["gpus"],
        versions=more["versions"],
        transport=more["transport"],
    )
