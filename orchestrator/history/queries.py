"""What the history can be asked: rows to Run and Attempt values, one run whole, and lists of them.

Every question takes a fixed number of statements, however many runs answer it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import Connection, Row, Select, select

from orchestrator.history.filters import RunFilter, among, page
from orchestrator.history.models import LIVE_STATES, AttemptRow, EventRow, NodeRow, RunRow
from orchestrator.placement.values import Placement
from orchestrator.scheduling.lifecycle import Event, Outcome, State
from orchestrator.scheduling.run import Attempt, Code, Failure, NodeRecord, Run, RunEvent
from orchestrator.spec import JobSpec

PLACEMENT = TypeAdapter(Placement)
FAILURE = TypeAdapter(Failure)

_LARGEST_ID = 2**63 - 1


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
    return _run(row, tuple(map(_attempt, attempts)), tuple(map(_event, happened)))


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
    found = page(connection, wanted)
    runs = {run.id: run for run in by_ids(connection, found)}
    return [runs[run] for run in found]


def by_ids(connection: Connection, ids: Sequence[int]) -> list[Run]:
    """These runs, by id, with attempts, without events."""
    return _with_attempts(connection, select(RunRow).where(among(connection, RunRow.id, ids)).order_by(RunRow.id))


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
    attempts: dict[int, list[Attempt]] = {row.id: [] for row in rows}
    for row in connection.execute(
        select(AttemptRow)
        .where(AttemptRow.run_id.in_(select(chosen.c.id)))
        .order_by(AttemptRow.run_id, AttemptRow.number)
    ):
        attempts[row.run_id].append(_attempt(row))
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
        environment=row.environment,
        transport=row.transport,
    )


def _event(row: Row[Any]) -> RunEvent:
    return RunEvent(
        row.sequence, row.at, Event(row.event), State(row.state), row.reason, attempt=row.attempt, by=row.by
    )
