"""What the history can be asked: rows to Run and Attempt values, one run whole, and lists of them.

Every question takes a fixed number of statements, however many runs answer it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import Connection, Row, Select, func, or_, select

from orchestrator.array import Ref, at, parse_ref
from orchestrator.health.failure import Failure
from orchestrator.history.book import Book, Gpu, Hold
from orchestrator.history.filters import RunFilter, among, page
from orchestrator.history.measured_models import ProgressRow
from orchestrator.history.measurements import measured, progress_of, used_by
from orchestrator.history.models import (
    LIVE_STATES,
    AllocationRow,
    ArrayRow,
    AttemptRow,
    DependencyRow,
    EventRow,
    NodeRow,
    RunRow,
    WaitRow,
)
from orchestrator.placement.values import Placement
from orchestrator.scheduling.lifecycle import Event, Outcome, State
from orchestrator.scheduling.run import Array, Attempt, Code, Dependency, Element, NodeRecord, Run, RunEvent, Stop, Wait
from orchestrator.scheduling.snapshot import LEAST_STEPS, Pace
from orchestrator.spec import JobSpec

PLACEMENT = TypeAdapter(Placement)
FAILURE = TypeAdapter(Failure)
STOP = TypeAdapter(Stop)

_LARGEST_ID = 2**63 - 1


def run_by_id(connection: Connection, run: int, events: bool = False) -> Run | None:
    """One run with its attempts; its events and waits where they are asked for."""
    if not 0 < run <= _LARGEST_ID:
        return None
    row = connection.execute(select(RunRow).where(RunRow.id == run)).first()
    if row is None:
        return None
    attempts = connection.execute(select(AttemptRow).where(AttemptRow.run_id == run).order_by(AttemptRow.number))
    array = array_of(connection, run)
    happened: Iterable[Row[Any]] = ()
    waits: Iterable[Row[Any]] = ()
    if events:
        happened = connection.execute(select(EventRow).where(EventRow.run_id == run).order_by(EventRow.sequence))
        waits = connection.execute(select(WaitRow).where(WaitRow.run_id == run).order_by(WaitRow.number))
    progress, used = progress_of(connection, [run]), used_by(connection, [run])
    return _run(
        row,
        tuple(measured(_attempt(one), run, progress, used) for one in attempts),
        array=array,
        after=_dependencies(connection, [array.id if array else run])[array.id if array else run],
        events=tuple(map(_event, happened)),
        waits=tuple(Wait(one.number, one.since, one.until, one.summary) for one in waits),
    )


def find(connection: Connection, ref: int | str) -> Run | None:
    """The run of that id, or of that name (its latest) or place in an array, whole. A name may look like an id; the id wins."""
    ids = range(ref, ref + 1) if isinstance(ref, int) else _ids_of_text(connection, ref)
    return None if ids is None else run_by_id(connection, ids[-1], events=True)


def _ids_of_text(connection: Connection, text: str) -> range | None:
    ref = parse_ref(text)
    return None if ref is None else ids_of(connection, ref)


def ids_of(connection: Connection, ref: Ref, user: str | None = None) -> range | None:
    """The runs that a word means: an id's one; a name's latest, which may be an array; with `user`, only theirs by name."""
    first: int | None = None
    if ref.word.isdigit() and int(ref.word) <= _LARGEST_ID:
        first = connection.execute(select(RunRow.id).where(RunRow.id == int(ref.word))).scalar()
        if first is not None and ref.index is None and not ref.whole:
            return range(first, first + 1)
    if first is None:
        question = select(RunRow.id).where(RunRow.name == ref.word)
        if user is not None:
            question = question.where(RunRow.username == user)
        first = connection.execute(question.order_by(RunRow.id.desc()).limit(1)).scalar()
    if first is None:
        return None
    array = array_of(connection, first)
    if ref.index is not None:
        return (
            None if array is None or ref.index >= array.size else range(array.id + ref.index, array.id + ref.index + 1)
        )
    if ref.whole and array is None:
        return None
    return range(first, first + 1) if array is None else array.runs


def array_of(connection: Connection, run: int) -> Array | None:
    """The array that a run is of."""
    row = connection.execute(select(ArrayRow).where(ArrayRow.id <= run).order_by(ArrayRow.id.desc()).limit(1)).first()
    return _array(row) if row is not None and run < row.id + row.size else None


def broken_dependency(connection: Connection, one: Dependency) -> Run | None:
    """The first of the runs that failed or was cancelled."""
    broken = [State.FAILED.value, State.CANCELLED.value]
    row = connection.execute(
        select(RunRow.id)
        .where(RunRow.id >= one.first, RunRow.id <= one.last, RunRow.state.in_(broken))
        .order_by(RunRow.id)
        .limit(1)
    ).scalar()
    return None if row is None else run_by_id(connection, row)


def counts(connection: Connection, ids: range) -> dict[State, int]:
    """How many of these runs are in each state."""
    rows = connection.execute(
        select(RunRow.state, func.count()).where(RunRow.id >= ids.start, RunRow.id < ids.stop).group_by(RunRow.state)
    )
    return {State(state): count for state, count in rows}


@dataclass(frozen=True)
class GpuUse:
    """GPUs that a user's attempt held, and gave back."""

    team: str | None
    user: str
    gpus: int
    start: datetime
    end: datetime


def metrics(connection: Connection, ids: range) -> dict[int, dict[str, float]]:
    """By run, the newest value of each metric that its latest attempt with any reported."""
    rows = connection.execute(
        select(ProgressRow.run_id, ProgressRow.metrics)
        .where(ProgressRow.run_id >= ids.start, ProgressRow.run_id < ids.stop)
        .order_by(ProgressRow.run_id, ProgressRow.attempt)
    )
    return {row.run_id: row.metrics for row in rows if row.metrics}


def uses(connection: Connection, since: datetime) -> list[GpuUse]:
    """What was given back since then."""
    held = AllocationRow
    times = (held.run_id, held.attempt, held.since, held.released_at)
    counted = select(*times, func.count().label("gpus")).where(held.released_at > since).group_by(*times).subquery()
    rows = connection.execute(
        select(RunRow.team, RunRow.username, counted.c.gpus, counted.c.since, counted.c.released_at).join(
            counted, counted.c.run_id == RunRow.id
        )
    )
    return [GpuUse(*row) for row in rows]


def durations(connection: Connection, runs: int) -> dict[tuple[str, str], list[float]]:
    """By user and name, seconds from the start of the ranks to the end, the latest first."""
    rows = connection.execute(
        select(RunRow.username, RunRow.name, AttemptRow.ranks_started_at, AttemptRow.started_at, AttemptRow.ended_at)
        .join(AttemptRow, AttemptRow.run_id == RunRow.id)
        .where(AttemptRow.outcome == Outcome.SUCCEEDED.value)
        .order_by(RunRow.id.desc())
        .limit(runs)
    )
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        began = row.ranks_started_at or row.started_at
        found[row.username, row.name].append((row.ended_at - began).total_seconds())
    return dict(found)


def paces(connection: Connection, attempts: int) -> list[Pace]:
    """How fast the latest so many attempts were that have ended and whose steps were seen, the latest first."""
    rows = connection.execute(
        select(RunRow.username, RunRow.name, RunRow.spec, AttemptRow.placement, ProgressRow.step_time_p50)
        .join(AttemptRow, AttemptRow.run_id == RunRow.id)
        .join(ProgressRow, (ProgressRow.run_id == AttemptRow.run_id) & (ProgressRow.attempt == AttemptRow.number))
        .where(AttemptRow.ended_at.is_not(None), ProgressRow.steps >= LEAST_STEPS, ProgressRow.step_time_p50 > 0)
        .order_by(RunRow.id.desc(), AttemptRow.number.desc())
        .limit(attempts)
    )
    found = []
    for row in rows:
        placement = PLACEMENT.validate_python(row.placement)
        like = row.username, row.name, placement.world_size, tuple(row.spec.get("gpu") or ())
        found.append(Pace(like, placement.level, row.step_time_p50))
    return found


def book(connection: Connection) -> Book:
    """What has not ended."""
    rows = connection.execute(
        select(
            AllocationRow.node, AllocationRow.gpu, AllocationRow.run_id, AllocationRow.since, AllocationRow.fenced_until
        ).where(AllocationRow.released_at.is_(None))
    )
    held: dict[Gpu, Hold] = {(row.node, row.gpu): Hold(row.run_id, row.since, row.fenced_until) for row in rows}
    runs = [*waiting(connection), *live(connection)]
    arrays = _arrays(connection, [run.id for run in runs])
    return Book(runs, arrays, held)


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
    ids = select(chosen.c.id)
    progress, used = progress_of(connection, ids), used_by(connection, ids)
    attempts: dict[int, list[Attempt]] = {row.id: [] for row in rows}
    for row in connection.execute(
        select(AttemptRow).where(AttemptRow.run_id.in_(ids)).order_by(AttemptRow.run_id, AttemptRow.number)
    ):
        attempts[row.run_id].append(measured(_attempt(row), row.run_id, progress, used))
    arrays = _arrays(connection, [row.id for row in rows])
    firsts = [array.id for array in arrays]
    after = _dependencies(connection, firsts, chosen)
    runs = []
    for row in rows:
        position = bisect_right(firsts, row.id) - 1
        array = arrays[position] if position >= 0 and row.id in arrays[position].runs else None
        needs = after.get(array.id if array else row.id, ())
        runs.append(_run(row, tuple(attempts[row.id]), array=array, after=needs))
    return runs


def _arrays(connection: Connection, ids: Sequence[int]) -> list[Array]:
    """The arrays that these runs, and perhaps others between them, are of, by id."""
    if not ids:
        return []
    rows = connection.execute(
        select(ArrayRow).where(ArrayRow.id <= max(ids), ArrayRow.id + ArrayRow.size > min(ids)).order_by(ArrayRow.id)
    ).all()
    ordered = sorted(ids)

    def has_one(first: int, size: int) -> bool:
        position = bisect_right(ordered, first - 1)
        return position < len(ordered) and ordered[position] < first + size

    return [_array(row) for row in rows if has_one(row.id, row.size)]


def _array(row: Row[Any]) -> Array:
    return Array(row.id, JobSpec.model_validate(row.spec), row.username, row.size, row.run_limit)


def _dependencies(connection: Connection, ids: Sequence[int], chosen: Any = None) -> dict[int, tuple[Dependency, ...]]:
    """By run, or array, what must have succeeded before it."""
    found: dict[int, list[Dependency]] = defaultdict(list)
    asked = DependencyRow.run_id.in_(ids)
    rows = connection.execute(
        select(DependencyRow)
        .where(asked if chosen is None else or_(asked, DependencyRow.run_id.in_(select(chosen.c.id))))
        .order_by(DependencyRow.run_id, DependencyRow.position)
    )
    for row in rows:
        found[row.run_id].append(Dependency(row.first_id, row.last_id, row.word))
    return defaultdict(tuple, {run: tuple(needs) for run, needs in found.items()})


def _run(
    row: Row[Any],
    attempts: tuple[Attempt, ...],
    *,
    array: Array | None = None,
    after: tuple[Dependency, ...] = (),
    events: tuple[RunEvent, ...] = (),
    waits: tuple[Wait, ...] = (),
) -> Run:
    return Run(
        id=row.id,
        spec=_spec(row, array),
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
        element=None if array is None else _element(array, row.id),
        after=after,
        events=events,
        waits=waits,
    )


def _element(array: Array, run: int) -> Element:
    assert array.spec.array is not None
    index = run - array.id
    return Element(array.id, index, at(array.spec.array, index))


def _spec(row: Row[Any], array: Array | None) -> JobSpec:
    if array is None:
        return JobSpec.model_validate(row.spec)
    own = array.spec.element(row.id - array.id)
    return JobSpec.model_validate(own.model_dump(mode="json") | row.spec) if row.spec else own


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
        stop=None if row.stop is None else STOP.validate_python(row.stop),
    )


def _event(row: Row[Any]) -> RunEvent:
    return RunEvent(
        row.sequence, row.at, Event(row.event), State(row.state), row.reason, attempt=row.attempt, by=row.by
    )
