"""Keeps the summaries in step with what they sum up, within the transaction that changes it.

Every sum over days is what a GROUP BY over its source would say: a run's old figures are taken out of the sums before
its new ones go in. All of them are whole numbers, so nothing drifts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, func, insert, or_, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from orchestrator.history.ledger_days import day_of, milliseconds, shares, spread
from orchestrator.history.models import Base
from orchestrator.history.render import gpu_seconds
from orchestrator.history.summary_models import (
    AttemptNodeRow,
    Counted,
    GpuDayRow,
    GpuTime,
    NameDayRow,
    NodeDayRow,
    RunDayRow,
    RunSummaryRow,
)
from orchestrator.placement.fabric import NodeFabric
from orchestrator.placement.values import Placement
from orchestrator.scheduling.lifecycle import Outcome
from orchestrator.scheduling.run import Attempt, Failure, Run

_TIMES = tuple(GpuTime.__annotations__)
_COUNTS = (*_TIMES, *Counted.__annotations__, "infra_failures")
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
    """Counts the attempt that has just ended; `run` is as it is after that."""
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
    _count_time(connection, run, attempt, sign=1)
    _count_nodes(connection, attempt, failure if infra else None)
    refresh(connection, run, neighbours=_neighbours(connection, run.id, attempt))


def refresh(connection: Connection, run: Run, neighbours: int | None = None) -> None:
    """Makes the run's summary anew, and the sums that it is counted in. `neighbours` None leaves that figure as it is.

    A run that never had a place has none until it has ended.
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


def forget(connection: Connection, runs: list[int]) -> None:
    """Deletes the summaries of these runs; what they are counted in stays."""
    connection.execute(delete(AttemptNodeRow).where(AttemptNodeRow.run_id.in_(runs)))
    connection.execute(delete(RunSummaryRow).where(RunSummaryRow.run_id.in_(runs)))


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
        "samples_per_s": None,
        "step_time_s": None,
        "steps": None,
        "samples": None,
        **milliseconds(gpu_seconds(run)),
    }


def _count(connection: Connection, run: Run, figures: Mapping[str, Any], sign: int) -> None:
    """Puts a summary into the sums over days, or takes it out again; one of a run that has not ended is not in them."""
    if figures["state"] is None:
        return
    values = {
        "runs": 1,
        "attempts": figures["attempts"],
        "waited": int(figures["wait_ms"] is not None),
        "wait_ms": figures["wait_ms"] or 0,
        "measured": int(figures["samples_per_s"] is not None),
        "samples_per_s": figures["samples_per_s"] or 0.0,
        "samples": figures["samples"] or 0.0,
        **{name: figures[name] for name in _TIMES},
    }
    values = {name: sign * value for name, value in values.items()}
    key = {"day": figures["day"], "state": figures["state"]}
    by_user = key | {"username": run.user, "team": run.spec.team or "", "gpu": figures["gpu"] or ""}
    _add(connection, RunDayRow, [by_user | values])
    _add(connection, NameDayRow, [key | {"name": run.name} | values])


def _count_time(connection: Connection, run: Run, attempt: Attempt, sign: int) -> None:
    """Spreads the attempt's GPU time over days and nodes."""
    assert attempt.ended_at is not None
    total = milliseconds(gpu_seconds(replace(run, attempts=(attempt,))))
    days = shares(attempt.started_at, attempt.ended_at)
    rows = connection.execute(
        select(AttemptNodeRow.node, AttemptNodeRow.gpu, AttemptNodeRow.gpus)
        .where(AttemptNodeRow.run_id == run.id, AttemptNodeRow.attempt == attempt.number)
        .order_by(AttemptNodeRow.node)
    ).all()
    by_model: dict[tuple[date, str], dict[str, int]] = defaultdict(lambda: dict.fromkeys(_TIMES, 0))
    by_node = []
    for row, on_node in zip(rows, spread(total, [row.gpus for row in rows]), strict=True):
        for (day, _), piece in zip(days, spread(on_node, [share for _, share in days]), strict=True):
            signed = {name: sign * value for name, value in piece.items()}
            by_node.append({"day": day, "node": row.node, "attempts": 0, "infra_failures": 0, **signed})
            counted = by_model[day, row.gpu or ""]
            for name, value in signed.items():
                counted[name] += value
    key = {"username": run.user, "team": run.spec.team or "", "name": run.name}
    _add(connection, GpuDayRow, [{"day": day, "gpu": gpu, **key, **time} for (day, gpu), time in by_model.items()])
    _add(connection, NodeDayRow, by_node)


def _count_nodes(connection: Connection, attempt: Attempt, failure: Failure | None) -> None:
    assert attempt.ended_at is not None
    rows = []
    for part in attempt.placement.nodes:
        broke = failure is not None and failure.node == part.node
        row = {"day": day_of(attempt.ended_at), "node": part.node, "attempts": 1, "infra_failures": int(broke)}
        rows.append(row | {"last_failure_at": attempt.ended_at if broke else None} | dict.fromkeys(_TIMES, 0))
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
    summed: dict[str, Any] = {c.name: c + new[c.name] for c in there.columns if c.name in _COUNTS}
    if "last_failure_at" in there.columns:
        summed["last_failure_at"] = func.coalesce(new["last_failure_at"], there.c["last_failure_at"])
    connection.execute(statement.on_conflict_do_update(index_elements=key, set_=summed), rows)
