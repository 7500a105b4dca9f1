"""Keeps the summaries in step with what they sum up, within the transaction that changes it.

Every sum over days is what a GROUP BY over its source would say: a run's old figures are taken out of the sums before
its new ones go in. Times and counts are whole numbers, so they do not drift.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, and_, func, insert, or_, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from orchestrator.history.ledger_days import cost_of, day_of, periods_of, shares, spread
from orchestrator.history.models import Base, GpuTimeRow, ProgressRow
from orchestrator.history.summary_models import (
    AttemptNodeRow,
    Counted,
    GpuDayRow,
    GpuTime,
    NameSumRow,
    NodeDayRow,
    RunSummaryRow,
    RunSumRow,
)
from orchestrator.placement.fabric import NodeFabric
from orchestrator.placement.values import Placement
from orchestrator.scheduling.lifecycle import Outcome
from orchestrator.scheduling.run import Attempt, Failure, Run

TIMES = tuple(GpuTime.__annotations__)
"""The columns of GPU time."""
_SUMMED = {*TIMES, *Counted.__annotations__, "infra_failures", "cost"}
_MILLISECOND = timedelta(milliseconds=1)


def placed(
    connection: Connection, run: Run, placement: Placement, fabric: Mapping[str, NodeFabric], now: datetime
) -> None:
    """Records where the attempt that begins is; `run` is as it is with it."""
    assert run.attempt is not None
    connection.execute(
        insert(AttemptNodeRow),
        [
            {
                "run_id": run.id,
                "attempt": run.attempt.number,
                "node": part.node,
                "leaf": fabric.get(part.node, NodeFabric()).leaf,
                "gpu": fabric.get(part.node, NodeFabric()).gpu,
                "gpus": len(part.gpus),
                "started_at": now,
            }
            for part in placement.nodes
        ],
    )
    refresh(connection, run)


def ended(connection: Connection, run: Run) -> None:
    """Counts the attempt that has just ended; `run` is as it is after that, and its gpu_time is up to date."""
    attempt = run.attempt
    assert attempt is not None
    assert attempt.ended_at is not None
    mine = (AttemptNodeRow.run_id == run.id, AttemptNodeRow.attempt == attempt.number)
    failure, infra = attempt.failure, attempt.outcome is Outcome.INFRA_ERROR
    connection.execute(
        update(AttemptNodeRow)
        .where(*mine)
        .values(
            ended_at=attempt.ended_at,
            outcome=attempt.outcome,
            failure_kind=failure and failure.kind,
            at_fault=AttemptNodeRow.node == failure.node if infra and failure and failure.node else False,
        )
    )
    _count_nodes(connection, attempt, failure if infra else None)
    refresh(connection, run, neighbours=_neighbours(connection, run.id, attempt))


def refresh(connection: Connection, run: Run, neighbours: int | None = None) -> None:
    """Makes the run's summary anew, and the sums that it is counted in. `neighbours` None leaves that figure as it is.

    A run that never had a place has none until it has ended. What is in the sums is taken out by what the summary says,
    but for the time by day, which is in gpu_time alone: whoever changes that of a run that has ended, does it within
    `recounting`.
    """
    mine = RunSummaryRow.run_id == run.id
    before = connection.execute(select(RunSummaryRow).where(mine)).mappings().first()
    if before is None and not run.attempts and not run.ended:
        return
    after = _summary(connection, run)
    after["neighbours"] = neighbours if neighbours is not None else before and before["neighbours"]
    if before is None:
        connection.execute(insert(RunSummaryRow).values(after))
    else:
        connection.execute(update(RunSummaryRow).where(mine).values(after))
        _count(connection, run, dict(before), -1)
    _count(connection, run, after, 1)


@contextmanager
def recounting(connection: Connection, run: Run) -> Iterator[None]:
    """Around a change of what was measured of a run (gpu_time, attempt_progress) that may have ended: keeps the sums right."""
    mine = RunSummaryRow.run_id == run.id
    before = connection.execute(select(RunSummaryRow).where(mine)).mappings().first()
    if before is not None:
        _count(connection, run, dict(before), -1)
        connection.execute(update(RunSummaryRow).where(mine).values(state=None))
    yield
    refresh(connection, run)


def _summary(connection: Connection, run: Run) -> dict[str, Any]:
    last = run.attempt
    over = next((one for one in reversed(run.attempts) if one.ended_at is not None), None)
    leaves, gpus = set(), set()
    if last is not None:
        for row in connection.execute(
            select(AttemptNodeRow.leaf, AttemptNodeRow.gpu).where(
                AttemptNodeRow.run_id == run.id, AttemptNodeRow.attempt == last.number
            )
        ):
            leaves.add(row.leaf)
            gpus |= set(row.gpu.split("+")) if row.gpu else set()
    return {
        "run_id": run.id,
        "day": day_of(run.submitted_at),
        "state": run.state.value if run.ended else None,
        "attempts": len(run.attempts),
        "device": last and last.placement.device,
        "gpu": "+".join(sorted(gpus)) or None,
        "gpus": last and last.placement.world_size,
        "nodes": last and len(last.placement.nodes),
        "leaves": len(leaves) if leaves and None not in leaves else None,
        "level": last and last.placement.level,
        "outcome": over and over.outcome,
        "failure_kind": over and over.failure and over.failure.kind,
        "wait_ms": (run.attempts[0].started_at - run.submitted_at) // _MILLISECOND if run.attempts else None,
        **throughput_of(connection, run.id),
        **_gpu_time(connection, run.id),
    }


def throughput_of(connection: Connection, run_id: int) -> dict[str, Any]:
    """The speed is the newest attempt's of which any is known; steps that a later attempt did again count once."""
    rows = connection.execute(
        select(ProgressRow).where(ProgressRow.run_id == run_id).order_by(ProgressRow.attempt)
    ).all()
    samples = [row.samples for row in rows if row.samples is not None]
    return {
        "samples_per_s": next((row.samples_per_s for row in reversed(rows) if row.samples_per_s is not None), None),
        "step_time_s": next((row.step_time for row in reversed(rows) if row.step_time is not None), None),
        "steps": sum(row.steps - (row.repeated_steps or 0) for row in rows) if rows else None,
        "samples": sum(samples) if samples else None,
    }


def _gpu_time(connection: Connection, run_id: int) -> dict[str, Any]:
    found: dict[str, Any] = dict.fromkeys(TIMES, 0) | {"cost": None}
    for row in connection.execute(select(GpuTimeRow).where(GpuTimeRow.run_id == run_id)).mappings():
        for name in TIMES:
            found[name] += row[name]
        if row["price"] is not None:
            found["cost"] = (found["cost"] or 0.0) + cost_of(row["allocated_ms"], row["price"])
    return found


def _count(connection: Connection, run: Run, figures: Mapping[str, Any], sign: int) -> None:
    """Puts a summary into the sums over periods, or takes it out again; one of a run that has not ended is not in them."""
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
    values = {name: sign * value for name, value in values.items()}
    by_user = {"username": run.user, "team": run.spec.team or "", "gpu": figures["gpu"] or ""}
    for table, key in ((RunSumRow, by_user), (NameSumRow, {"name": run.name})):
        rows = [
            {"period": period, "start": start, "state": figures["state"], **key, **values}
            for period, start in periods_of(figures["day"]).items()
        ]
        _add(connection, table, rows)
    _count_time(connection, run, sign)


def _count_time(connection: Connection, run: Run, sign: int) -> None:
    """Puts the GPU time of all the run's attempts into the sums of the days and nodes on which it was used."""
    owner = {"username": run.user, "team": run.spec.team or "", "name": run.name}
    by_gpu, by_node = [], []
    for row in connection.execute(
        select(GpuTimeRow, AttemptNodeRow.gpu)
        .outerjoin(
            AttemptNodeRow,
            and_(
                AttemptNodeRow.run_id == GpuTimeRow.run_id,
                AttemptNodeRow.attempt == GpuTimeRow.attempt,
                AttemptNodeRow.node == GpuTimeRow.node,
            ),
        )
        .where(GpuTimeRow.run_id == run.id)
    ).mappings():
        days = shares(row["since"], row["until"])
        pieces = spread({name: row[name] for name in TIMES}, [share for _, share in days])
        for (day, _), piece in zip(days, pieces, strict=True):
            time = {name: sign * value for name, value in piece.items()}
            cost = cost_of(time["allocated_ms"], row["price"] or 0.0)
            by_gpu.append({"day": day, "gpu": row["gpu"] or "", "cost": cost, **owner, **time})
            by_node.append({"day": day, "node": row["node"], "attempts": 0, "infra_failures": 0, **time})
    _add(connection, GpuDayRow, by_gpu)
    _add(connection, NodeDayRow, by_node)


def _count_nodes(connection: Connection, attempt: Attempt, failure: Failure | None) -> None:
    assert attempt.ended_at is not None
    rows: list[dict[str, Any]] = []
    for part in attempt.placement.nodes:
        broke = failure is not None and failure.node == part.node
        row = {"day": day_of(attempt.ended_at), "node": part.node, "attempts": 1, "infra_failures": int(broke)}
        rows.append(row | {"last_failure_at": attempt.ended_at if broke else None} | dict.fromkeys(TIMES, 0))
    _add(connection, NodeDayRow, rows)


def _neighbours(connection: Connection, run_id: int, attempt: Attempt) -> int:
    """How many other runs were on the attempt's leaves, or on its nodes where no leaf is known, while it ran."""
    mine = connection.execute(
        select(AttemptNodeRow.node, AttemptNodeRow.leaf).where(
            AttemptNodeRow.run_id == run_id, AttemptNodeRow.attempt == attempt.number
        )
    ).all()
    leaves = {row.leaf for row in mine if row.leaf is not None}
    nodes = {row.node for row in mine if row.leaf is None}
    # It has just ended: whoever ended after it began, or has not ended, was there beside it.
    beside = or_(AttemptNodeRow.ended_at > attempt.started_at, AttemptNodeRow.ended_at.is_(None))
    found: set[int] = set()
    for place, names in ((AttemptNodeRow.leaf, leaves), (AttemptNodeRow.node, nodes)):
        if names:
            wanted = select(AttemptNodeRow.run_id).distinct().where(place.in_(names), beside)
            found |= set(connection.execute(wanted).scalars())
    return len(found - {run_id})


def _add(connection: Connection, table: type[Base], rows: list[dict[str, Any]]) -> None:
    """Adds figures to the rows of their keys, which are made where they are missing."""
    if not rows:
        return
    make = postgresql_insert if connection.dialect.name == "postgresql" else sqlite_insert
    statement = make(table)
    new, there = statement.excluded, table.__table__
    key = [column.name for column in there.primary_key]
    summed: dict[str, Any] = {c.name: c + new[c.name] for c in there.columns if c.name in _SUMMED}
    if "last_failure_at" in there.columns:
        summed["last_failure_at"] = func.coalesce(new["last_failure_at"], there.c["last_failure_at"])
    connection.execute(statement.on_conflict_do_update(index_elements=key, set_=summed), rows)
