"""What the history can be asked: rows to Run and Attempt values, one run whole, and the filters of `orch runs`.

Every question takes a fixed number of statements, however many runs answer it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import ColumnElement, Connection, Row, Select, exists, select

from orchestrator.history.measurements import measured, progress_of, used_by
from orchestrator.history.models import LIVE_STATES, TERMINAL_STATES, AttemptRow, EventRow, NodeRow, RunRow, TagRow
from orchestrator.placement.values import Placement
from orchestrator.scheduling.lifecycle import Event, Outcome, State
from orchestrator.scheduling.run import Attempt, Code, Failure, NodeRecord, Run, RunEvent
from orchestrator.spec import JobSpec

PLACEMENT = TypeAdapter(Placement)
FAILURE = TypeAdapter(Failure)

SORTS: dict[str, ColumnElement[Any]] = {
    "id": RunRow.id.expression,
    "name": RunRow.name.expression,
    "user": RunRow.username.expression,
    "team": RunRow.team.expression,
    "state": RunRow.state.expression,
    "priority": RunRow.priority.expression,
    "submitted": RunRow.submitted_at.expression,
    "started": RunRow.started_at.expression,
    "finished": RunRow.finished_at.expression,
}
"""What runs can be sorted by; nothing else reaches the database."""

_LARGEST_ID = 2**63 - 1


@dataclass(frozen=True)
class RunFilter:
    """Which runs, and in what order: the options of `orch runs`. What is None or empty does not filter."""

    name: str | None = None
    user: str | None = None
    team: str | None = None
    state: State | None = None
    since: datetime | None = None
    """Submitted at this time or later."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """All of them must be there."""
    sort: str = "-submitted"
    """One of SORTS; with a minus, the largest first. Runs without the value come last either way."""
    limit: int | None = None
    live_only: bool = False
    """Only runs that have not ended: what `orch ps` shows."""

    def __post_init__(self) -> None:
        if self.sort.removeprefix("-") not in SORTS:
            raise ValueError(f"sort: {self.sort!r} is not one of {', '.join(SORTS)} (with - for the largest first)")
        if self.limit is not None and self.limit < 0:
            raise ValueError(f"limit: must be 0 or more, not {self.limit}")


def run_by_id(connection: Connection, run: int, events: bool = False) -> Run | None:
    """One run with its attempts, and its events where they are asked for."""
    if not 0 < run <= _LARGEST_ID:
        return None
    row = connection.execute(select(RunRow).where(RunRow.id == run)).first()
    if row is None:
        return None
    attempts = connection.execute(select(AttemptRow).where(AttemptRow.run_id == run).order_by(AttemptRow.number))
    happened: Iterable[Row[Any]] = ()
    if events:
        happened = connection.execute(select(EventRow).where(EventRow.run_id == run).order_by(EventRow.sequence))
    progress, used = progress_of(connection, [run]), used_by(connection, [run])
    whole = tuple(measured(_attempt(one), run, progress, used) for one in attempts)
    return _run(row, whole, tuple(map(_event, happened)))


def find(connection: Connection, ref: int | str) -> Run | None:
    """The run of that id, or else the latest of that name, whole. A name may look like an id; the id wins."""
    if isinstance(ref, int) or (ref.isascii() and ref.isdecimal()):
        by_id = run_by_id(connection, int(ref), events=True)
        if by_id is not None or isinstance(ref, int):
            return by_id
    latest = connection.execute(
        select(RunRow.id).where(RunRow.name == ref).order_by(RunRow.id.desc()).limit(1)
    ).scalar()
    return None if latest is None else run_by_id(connection, latest, events=True)


def filtered(connection: Connection, wanted: RunFilter) -> list[Run]:
    """The runs that `wanted` describes, with attempts, without events."""
    question = select(RunRow)
    equal = {"name": wanted.name, "username": wanted.user, "team": wanted.team, "state": wanted.state}
    question = question.filter_by(**{column: value for column, value in equal.items() if value is not None})
    if wanted.since is not None:
        question = question.where(RunRow.submitted_at >= wanted.since)
    if wanted.live_only:
        question = question.where(RunRow.state.not_in(TERMINAL_STATES))
    for key, value in wanted.tags.items():
        question = question.where(exists().where(TagRow.run_id == RunRow.id, TagRow.key == key, TagRow.value == value))
    column = SORTS[wanted.sort.removeprefix("-")]
    # Nulls last is said, because the two databases differ; the id settles ties the same way on each call.
    down = wanted.sort.startswith("-")
    question = question.order_by(
        (column.desc() if down else column.asc()).nulls_last(), RunRow.id.desc() if down else RunRow.id
    )
    return _with_attempts(connection, question if wanted.limit is None else question.limit(wanted.limit))


def waiting(connection: Connection) -> list[Run]:
    """The queue: highest priority first, then who has waited longest."""
    question = select(RunRow).where(RunRow.state == State.QUEUED.value)
    return _with_attempts(connection, question.order_by(RunRow.priority.desc(), RunRow.queued_at, RunRow.id))


def live(connection: Connection) -> list[Run]:
    """The runs that hold a place, by id."""
    return _with_attempts(connection, select(RunRow).where(RunRow.state.in_(LIVE_STATES)).order_by(RunRow.id))


def nodes(connection: Connection) -> list[NodeRecord]:
    """The nodes that were ever seen, by name."""
    return [
        NodeRecord(r.name, r.address, r.state, r.first_seen, r.last_seen, r.hardware, r.versions)
        for r in connection.execute(select(NodeRow).order_by(NodeRow.name))
    ]


def _with_attempts(connection: Connection, question: Select[Any]) -> list[Run]:
    rows = connection.execute(question).all()
    # The same question again as a subquery: a list of ids would outgrow the number of parameters a statement may have.
    chosen = question.with_only_columns(RunRow.id).subquery()
    ids = select(chosen.c.id)
    progress, used = progress_of(connection, ids), used_by(connection, ids)
    attempts: dict[int, list[Attempt]] = {row.id: [] for row in rows}
    for row in connection.execute(
        select(AttemptRow).where(AttemptRow.run_id.in_(ids)).order_by(AttemptRow.run_id, AttemptRow.number)
    ):
        attempts[row.run_id].append(measured(_attempt(row), row.run_id, progress, used))
    return [_run(row, tuple(attempts[row.id])) for row in rows]


def _run(row: Row[Any], attempts: tuple[Attempt, ...], events: Sequence[RunEvent] = ()) -> Run:
    return Run(
        id=row.id,
        spec=JobSpec.model_validate(row.spec),
        user=row.username,
        code=None if row.code_sha256 is None else Code(row.code_sha256, row.code_git, row.code_dirty),
        workdir=row.workdir,
        state=State(row.state),
        reason=row.reason,
        submitted_at=row.submitted_at,
        queued_at=row.queued_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        attempts=attempts,
        events=tuple(events),
    )


def _attempt(row: Row[Any]) -> Attempt:
    return Attempt(
        number=row.number,
        placement=PLACEMENT.validate_python(row.placement),
        started_at=row.started_at,
        ranks_started_at=row.ranks_started_at,
        ended_at=row.ended_at,
        outcome=None if row.outcome is None else Outcome(row.outcome),
        failure=None if row.failure is None else FAILURE.validate_python(row.failure),
        exit_codes={int(rank): code for rank, code in row.exit_codes.items()},
    )


def _event(row: Row[Any]) -> RunEvent:
    return RunEvent(
        row.sequence, row.at, Event(row.event), State(row.state), row.reason, attempt=row.attempt, by=row.by
    )
