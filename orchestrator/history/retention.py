"""What the history forgets, in small steps: series first, whole runs later, the sums over days never.

A run that has expired is named in expired_runs and then deleted with all that hangs on it, its events too: the triggers that
keep events from being changed let them go only with a run that is named there, and only a run that has ended can be.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, exists, func, insert, select
from sqlalchemy.orm import aliased

from orchestrator.history.filters import among
from orchestrator.history.measured_models import BenchRow, GangSampleRow, GpuSampleRow, RankSampleRow
from orchestrator.history.models import TERMINAL_STATES, AllocationRow, ArrayRow, AttemptRow, RunRow
from orchestrator.history.schema import METADATA
from orchestrator.history.summary_models import ExpiredRunRow

SERIES = (GangSampleRow, RankSampleRow, GpuSampleRow)


@dataclass(frozen=True)
class Keep:
    """For how many seconds after its end what is known of a run is kept; None: for ever."""

    runs: float | None = None
    series: float | None = None
    logs: float | None = None


def expire_runs(connection: Connection, before: datetime, now: datetime, most: int) -> list[int]:
    """Deletes up to `most` runs that ended before `before`, the oldest first; gives their ids.

    Runs whose GPUs are still fenced stay; the first of an array does until it is the last, because the others' specs hang on it;
    and those of `orch bench`: what links were measured to carry does not expire.
    """
    other = aliased(RunRow)
    members = exists().where(other.id > ArrayRow.id, other.id < ArrayRow.id + ArrayRow.size)
    heads = exists().where(ArrayRow.id == RunRow.id, members)
    held = exists().where(AllocationRow.run_id == RunRow.id, AllocationRow.released_at.is_(None))
    rows = connection.execute(
        select(RunRow.id, RunRow.name, RunRow.state, RunRow.finished_at)
        .where(RunRow.finished_at < before, RunRow.state.in_(TERMINAL_STATES))
        .where(~held, ~heads, ~exists().where(BenchRow.run_id == RunRow.id))
        .order_by(RunRow.finished_at)
        .limit(most)
    ).all()
    if not rows:
        return []
    connection.execute(
        insert(ExpiredRunRow),
        [
            {"run_id": row.id, "name": row.name, "state": row.state, "finished_at": row.finished_at, "expired_at": now}
            for row in rows
        ],
    )
    ids = [row.id for row in rows]
    for table, column in _hanging_on_runs():
        connection.execute(delete(table).where(among(connection, column, ids)))
    connection.execute(delete(RunRow).where(among(connection, RunRow.id, ids)))
    return ids


def drop_series(connection: Connection, before: datetime, after: int, most: int) -> tuple[int, bool]:
    """Deletes the series of runs that ended before `before`, looking at up to `most` runs with ids above `after`.

    Gives the id that it came to, and whether there is more to look at.
    """
    looked_at = 0
    while looked_at < most:
        firsts = [
            connection.execute(select(func.min(table.run_id)).where(table.run_id > after)).scalar() for table in SERIES
        ]
        known = [first for first in firsts if first is not None]
        if not known:
            return after, False
        run = connection.execute(select(RunRow.submitted_at, RunRow.finished_at).where(RunRow.id == min(known))).one()
        if run.submitted_at >= before:
            return after, False  # those with higher ids were submitted later still
        after = min(known)
        if run.finished_at is not None and run.finished_at < before:
            for table in SERIES:
                connection.execute(delete(table).where(table.run_id == after))
        looked_at += 1
    return after, True


def whose_logs_may_go(connection: Connection, runs: Sequence[int], before: datetime) -> list[int]:
    """Those of `runs` that ended before `before`, and those that have expired."""
    over = select(RunRow.id).where(
        among(connection, RunRow.id, runs), RunRow.finished_at < before, RunRow.state.in_(TERMINAL_STATES)
    )
    gone = select(ExpiredRunRow.run_id).where(among(connection, ExpiredRunRow.run_id, runs))
    return sorted({*connection.execute(over).scalars(), *connection.execute(gone).scalars()})


def unused_code(connection: Connection, hashes: Iterable[str]) -> list[str]:
    """The snapshots that no run names."""
    wanted = list(hashes)
    used: set[str | None] = set()
    for start in range(0, len(wanted), 500):
        used |= set(
            connection.execute(
                select(RunRow.code_sha256).distinct().where(RunRow.code_sha256.in_(wanted[start : start + 500]))
            ).scalars()
        )
    return [one for one in wanted if one not in used]


def expired(connection: Connection, run: int) -> str | None:
    """That a run has expired, in a sentence; None where none of that id has."""
    row = connection.execute(select(ExpiredRunRow).where(ExpiredRunRow.run_id == run)).first()
    if row is None:
        return None
    return (
        f"run {run} ({row.name}) {row.state} and has expired: its details were deleted on {row.expired_at:%Y-%m-%d} "
        "(history: keep_runs)"
    )


def _hanging_on_runs() -> list[tuple[Any, Any]]:
    """Every table whose rows belong to a run, with the column that names it; those that hang on others of them first."""
    found = []
    for table in reversed(METADATA.sorted_tables):
        for key in table.foreign_key_constraints:
            for element in key.elements:
                if element.column in (RunRow.__table__.c.id, AttemptRow.__table__.c.run_id):
                    found.append((table, element.parent))
    return found
