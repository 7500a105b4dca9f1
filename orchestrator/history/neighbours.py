"""Who was beside whom: other runs on the leaves of a run's last attempt while it ran, or on its nodes where no leaf is known."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

from sqlalchemy import Connection, bindparam, case, func, select, union
from sqlalchemy.orm import aliased

from orchestrator.history.filters import ids_of, in_ids
from orchestrator.history.summary_models import AttemptNodeRow

_NEVER = datetime.max.replace(tzinfo=UTC)


def beside(connection: Connection, run: int) -> set[int]:
    """The other runs."""
    dialect = connection.dialect.name
    rows = connection.execute(_pairs(dialect), {"ids": ids_of(dialect, [run]), "never": _NEVER})
    return {row.other for row in rows}


def how_many_beside(connection: Connection, runs: Sequence[int]) -> dict[int, int]:
    """How many other runs there were, by run."""
    if not runs:
        return {}
    dialect = connection.dialect.name
    rows = connection.execute(_counts(dialect), {"ids": ids_of(dialect, runs), "never": _NEVER})
    return dict.fromkeys(runs, 0) | {row.run: row.others for row in rows}


@cache
def _counts(dialect: str) -> Any:
    pairs = _pairs(dialect).subquery()
    return select(pairs.c.run, func.count().label("others")).group_by(pairs.c.run)


@cache
def _pairs(dialect: str) -> Any:
    """Each of the runs `ids` with each run that was beside it; once, however many places they shared."""
    row, later, other = aliased(AttemptNodeRow), aliased(AttemptNodeRow), aliased(AttemptNodeRow)
    last = select(func.max(later.attempt)).where(later.run_id == row.run_id).scalar_subquery()
    over = func.coalesce(row.ended_at, bindparam("never", type_=row.started_at.type)).label("over")
    node = case((row.leaf.is_(None), row.node)).label("node")
    mine = (
        select(row.run_id, row.started_at, over, row.leaf, node)
        .where(in_ids(dialect, row.run_id), row.attempt == last)
        .distinct()
        .subquery()
    )
    return union(
        *(
            select(mine.c.run_id.label("run"), other.run_id.label("other")).where(
                same_place, until, other.started_at < mine.c.over, other.run_id != mine.c.run_id
            )
            for same_place in (other.leaf == mine.c.leaf, other.node == mine.c.node)
            # Two questions: with an OR, SQLite would go through all that ever ended there.
            for until in (other.ended_at > mine.c.started_at, other.ended_at.is_(None))
        )
    )
