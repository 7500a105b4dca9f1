"""Keeps the summaries in step with what they sum up, within the transaction that changes it.

Where an attempt is, and how it ended, is written with the attempt. A run's summary, and the sums that it is counted in, are made
when its GPU time is counted after an attempt's end (the ledger is what they sum up), and when it ends without one. Every sum is
what a GROUP BY over its source would say: a run's old figures are taken out before its new ones go in. Times and counts are
whole numbers, so they do not drift.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import Connection, bindparam, func, insert, select, update

from orchestrator.history.columns import Base, GpuTimeColumns
from orchestrator.history.filters import ids_of, in_ids
from orchestrator.history.ledger_days import cost_of, day_of, periods_of, shares, spread
from orchestrator.history.measured_models import GpuTimeRow, ProgressRow
from orchestrator.history.neighbours import how_many_beside
from orchestrator.history.rows import Phase, Rows
from orchestrator.history.summary_models import (
    AttemptNodeRow,
    Counted,
    GpuDayRow,
    NameSumRow,
    NodeDayRow,
    RunSummaryRow,
    RunSumRow,
)
from orchestrator.history.upsert import insert_or, replacing
from orchestrator.placement.fabric import NodeFabric
from orchestrator.scheduling.lifecycle import Outcome
from orchestrator.scheduling.run import Attempt, Run

TIMES = tuple(GpuTimeColumns.__annotations__)
"""The columns of GPU time."""
NODE_COUNTS = {"drained": "drains", "quarantined": "quarantines", "degraded": "degraded", "fatal": "fatal"}
"""By the word of a node's event: the column that counts it."""
_SUMMED = {*TIMES, *Counted.__annotations__, *NODE_COUNTS.values(), "infra_failures", "cost"}
_MILLISECOND = timedelta(milliseconds=1)

# Statements are made once: to make one takes SQLAlchemy longer than SQLite takes to run it.
_BEGIN = insert(AttemptNodeRow)
_END = (
    update(AttemptNodeRow)
    .where(AttemptNodeRow.run_id == bindparam("run"), AttemptNodeRow.attempt == bindparam("number"))
    .values(
        ended_at=bindparam("new_ended_at"),
        outcome=bindparam("new_outcome"),
        failure_kind=bindparam("new_failure_kind"),
        at_fault=AttemptNodeRow.node == bindparam("blamed"),
    )
)


def begin(rows: Rows, run: int, attempt: Attempt, fabric: Mapping[str, NodeFabric]) -> None:
    """Where an attempt begins."""
    unknown = NodeFabric()
    found = [(part, fabric.get(part.node, unknown)) for part in attempt.placement.nodes]
    of = {"run_id": run, "attempt": attempt.number, "started_at": attempt.started_at}
    where = [of | {"node": part.node, "gpus": len(part.gpus), "leaf": at.leaf, "gpu": at.gpu} for part, at in found]
    rows.add(Phase.NODE_TAKEN, _BEGIN, *where)


def end(rows: Rows, run: int, attempt: Attempt) -> None:
    """How it ended, and whether a node is to blame: the one that an infrastructure failure names."""
    failure = attempt.failure
    values = {
        "new_ended_at": attempt.ended_at,
        "new_outcome": attempt.outcome and attempt.outcome.value,
        "new_failure_kind": failure and failure.kind,
        "blamed": _blamed(attempt) or "",
    }
    rows.add(Phase.NODE_GIVEN_BACK, _END, {"run": run, "number": attempt.number, **values})


def _blamed(attempt: Attempt) -> str | None:
    return attempt.failure.node if attempt.outcome is Outcome.INFRA_ERROR and attempt.failure else None


@contextmanager
def recounting(connection: Connection, runs: Sequence[Run]) -> Iterator[None]:
    """Around every change of gpu_time of runs with an ended attempt: makes their summaries anew, and keeps the sums right."""
    if not runs:
        yield
        return
    before = _before(connection, [run.id for run in runs])
    sums = _Sums()
    if counted := [run for run in runs if run.id in before and before[run.id]["state"] is not None]:
        ids = [run.id for run in counted]
        sources = _sources(connection, ids)
        for run in counted:
            sums.count(run, before[run.id], sources, -1)
            before[run.id]["state"] = None
        connection.execute(update(RunSummaryRow).where(RunSummaryRow.run_id.in_(ids)).values(state=None))
    yield
    _refresh(connection, runs, sums, before)


def refresh(connection: Connection, runs: Sequence[Run]) -> None:
    """Makes the summaries of these runs anew, and the sums that they are counted in: what has ended, or is tried again."""
    for start in range(0, len(runs), 1000):
        some = runs[start : start + 1000]
        _refresh(connection, some, _Sums(), _before(connection, [run.id for run in some]))


def so_far(connection: Connection, run: Run) -> dict[str, Any]:
    """The summary of a run whose attempt lives, as it would be now."""
    return _summary(run, _sources(connection, [run.id])) | {"neighbours": None}


class _Sources:
    """What the summaries of some runs are made of, by run."""

    def __init__(self) -> None:
        self.nodes: dict[int, list[Any]] = defaultdict(list)
        self.progress: dict[int, list[Any]] = defaultdict(list)
        self.time: dict[int, list[Any]] = defaultdict(list)


def _sources(connection: Connection, runs: Sequence[int]) -> _Sources:
    found = _Sources()
    if runs:
        dialect = connection.dialect.name
        for table, of in ((AttemptNodeRow, found.nodes), (ProgressRow, found.progress), (GpuTimeRow, found.time)):
            for row in connection.execute(_of_runs(dialect, table), {"ids": ids_of(dialect, runs)}):
                of[row.run_id].append(row)
        for rows in found.progress.values():
            rows.sort(key=lambda row: row.attempt)
    return found


def _before(connection: Connection, runs: Sequence[int]) -> dict[int, dict[str, Any]]:
    dialect = connection.dialect.name
    rows = connection.execute(_of_runs(dialect, RunSummaryRow), {"ids": ids_of(dialect, runs)}).mappings()
    return {row["run_id"]: dict(row) for row in rows}


def _refresh(connection: Connection, runs: Sequence[Run], sums: _Sums, before: Mapping[int, Mapping[str, Any]]) -> None:
    sources = _sources(connection, [run.id for run in runs if run.attempts])
    neighbours = how_many_beside(connection, [run.id for run in runs if _asks(run, before.get(run.id))])
    after = []
    for run in runs:
        was = before.get(run.id)
        if was is None and not run.attempts and not run.ended:
            continue
        summary = _summary(run, sources)
        summary["neighbours"] = neighbours.get(run.id, was["neighbours"] if was else None)
        if was is not None:
            sums.count(run, was, sources, -1)
        sums.count(run, summary, sources, 1)
        after.append(summary)
    if after:
        connection.execute(replacing(connection.dialect.name, RunSummaryRow), after)
    sums.write(connection)


def _summary(run: Run, sources: _Sources) -> dict[str, Any]:
    last = run.attempt
    over = next((one for one in reversed(run.attempts) if one.ended_at is not None), None)
    here = [row for row in sources.nodes[run.id] if last is not None and row.attempt == last.number]
    leaves, models = {row.leaf for row in here}, {row.gpu for row in here} - {None}
    return {
        "run_id": run.id,
        "day": day_of(run.submitted_at),
        "state": run.state.value if run.ended else None,
        "attempts": len(run.attempts),
        "device": last and last.placement.device,
        "gpu": "+".join(sorted({name for model in models for name in model.split("+")})) or None,
        "gpus": last and last.placement.world_size,
        "nodes": last and len(last.placement.nodes),
        "leaves": len(leaves) if leaves and None not in leaves else None,
        "level": last and last.placement.level,
        "outcome": over and over.outcome and over.outcome.value,
        "failure_kind": over and over.failure and over.failure.kind,
        "wait_ms": (run.attempts[0].started_at - run.submitted_at) // _MILLISECOND if run.attempts else None,
        **_throughput(sources.progress[run.id]),
        **_gpu_time(sources.time[run.id]),
    }


def _throughput(rows: Sequence[Any]) -> dict[str, Any]:
    """The speed is the newest attempt's of which any is known; steps that a later attempt did again count once."""
    samples = [row.samples for row in rows if row.samples is not None]
    return {
        "samples_per_s": next((row.samples_per_s for row in reversed(rows) if row.samples_per_s is not None), None),
        "step_time_s": next((row.step_time for row in reversed(rows) if row.step_time is not None), None),
        "steps": sum(row.steps - (row.repeated_steps or 0) for row in rows) if rows else None,
        "samples": sum(samples) if samples else None,
    }


def _gpu_time(rows: Sequence[Any]) -> dict[str, Any]:
    costs = [cost_of(row.allocated_ms, row.price) for row in rows if row.price is not None]
    return {name: sum(getattr(row, name) for row in rows) for name in TIMES} | {"cost": sum(costs) if costs else None}


def _asks(run: Run, was: Mapping[str, Any] | None) -> bool:
    """Whether it is to be found out who was beside the last attempt: once, when it has just ended."""
    last = run.attempt
    known = was is not None and was["neighbours"] is not None and was["attempts"] == len(run.attempts)
    return last is not None and last.ended_at is not None and not known


class _Sums:
    """What is to be added to the rows of sums."""

    def __init__(self) -> None:
        self._of: dict[type[Base], dict[tuple[Any, ...], dict[str, Any]]] = defaultdict(dict)

    def count(self, run: Run, figures: Mapping[str, Any], sources: _Sources, sign: int) -> None:
        """Puts a summary in, or takes it out again; one of a run that has not ended is in no sum."""
        if figures["state"] is None:
            return
        values = {
            "runs": 1,
            "attempts": figures["attempts"],
            "waited": int(figures["wait_ms"] is not None),
            "wait_ms": figures["wait_ms"] or 0,
            "measured": int(figures["samples_per_s"] is not None),
            "samples_per_s": figures["samples_per_s"] or 0.0,
            "samples": figures["samples"] or 0,
            "cost": figures["cost"] or 0.0,
            **{name: figures[name] for name in TIMES},
        }
        by_user = {"username": run.user, "team": run.spec.team or "", "gpu": figures["gpu"] or ""}
        for period, start in periods_of(figures["day"]).items():
            key = {"period": period, "start": start, "state": figures["state"]}
            self._add(RunSumRow, key | by_user, values, sign)
            self._add(NameSumRow, key | {"name": run.name}, values, sign)
        self._count_time(run, sources, sign)
        self._count_attempts(run, sign)

    def _count_time(self, run: Run, sources: _Sources, sign: int) -> None:
        """The GPU time of all the run's attempts, on the days and nodes on which it was used."""
        models = {(row.attempt, row.node): row.gpu for row in sources.nodes[run.id]}
        owner = {"username": run.user, "team": run.spec.team or "", "name": run.name}
        for row in sources.time[run.id]:
            days = shares(row.since, row.until)
            pieces = spread({name: getattr(row, name) for name in TIMES}, [share for _, share in days])
            for (day, _), piece in zip(days, pieces, strict=True):
                cost = cost_of(piece["allocated_ms"], row.price or 0.0)
                key = {"day": day, "gpu": models.get((row.attempt, row.node)) or "", **owner}
                self._add(GpuDayRow, key, {"cost": cost, **piece}, sign)
                self._add(NodeDayRow, {"day": day, "node": row.node}, _NO_ATTEMPT | piece, sign)

    def _count_attempts(self, run: Run, sign: int) -> None:
        for attempt in run.attempts:
            if attempt.ended_at is None:
                continue
            for part in attempt.placement.nodes:
                broke = _blamed(attempt) == part.node
                counts = _NO_TIME | {"attempts": 1, "infra_failures": int(broke)}
                key = {"day": day_of(attempt.ended_at), "node": part.node}
                row = self._add(NodeDayRow, key, counts, sign)
                if broke:
                    row["last_failure_at"] = attempt.ended_at

    def _add(self, table: type[Base], key: Mapping[str, Any], values: Mapping[str, Any], sign: int) -> dict[str, Any]:
        """`key`: the columns of a table's key in the same order each time."""
        rows = self._of[table]
        index = tuple(key.values())
        row = rows.get(index)
        if row is None:
            row = rows[index] = dict(key) | dict.fromkeys(values, 0)
            if table is NodeDayRow:
                row["last_failure_at"] = None
        for name, value in values.items():
            row[name] += sign * value
        return row

    def write(self, connection: Connection) -> None:
        """Adds the figures to the rows of their keys, which are made where they are missing."""
        for table, rows in self._of.items():
            connection.execute(_adding(connection.dialect.name, table), list(rows.values()))
        self._of.clear()


_NO_ATTEMPT = {"attempts": 0, "infra_failures": 0}
_NO_TIME = dict.fromkeys(TIMES, 0)


def count_node_events(connection: Connection, happened: Sequence[tuple[datetime, str, str]]) -> None:
    """Puts what happened to nodes (when, to which, the word of it) into the rows of their days."""
    days: dict[tuple[date, str], Counter[str]] = defaultdict(Counter)
    for at, node, what in happened:
        if column := NODE_COUNTS.get(what):
            days[day_of(at), node][column] += 1
    if days:
        none = _NO_ATTEMPT | _NO_TIME | {"last_failure_at": None} | dict.fromkeys(NODE_COUNTS.values(), 0)
        rows = [none | {"day": day, "node": node} | counts for (day, node), counts in sorted(days.items())]
        connection.execute(_adding(connection.dialect.name, NodeDayRow), rows)


@cache
def _adding(dialect: str, table: type[Base]) -> Any:
    """Adds figures to the row of their key, which is made where it is missing."""
    statement = insert_or(dialect, table)
    new, there = statement.excluded, table.__table__
    summed: dict[str, Any] = {c.name: c + new[c.name] for c in there.columns if c.name in _SUMMED}
    if "last_failure_at" in there.columns:
        summed["last_failure_at"] = func.coalesce(new["last_failure_at"], there.c["last_failure_at"])
    key = [column.name for column in there.primary_key]
    return statement.on_conflict_do_update(index_elements=key, set_=summed)


@cache
def _of_runs(dialect: str, table: Any) -> Any:
    """The table's rows of the runs that are given as `ids`, in the form of `ids_of`."""
    return select(table).where(in_ids(dialect, table.run_id))
