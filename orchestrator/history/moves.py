"""One change of a run as rows: its state along the table with the event that led there, its attempt, its GPUs, its wait."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Connection, Update, bindparam, delete, insert, select, update

from orchestrator.history import queries
from orchestrator.history.book import Changes, Hold
from orchestrator.history.columns import words
from orchestrator.history.models import AllocationRow, AttemptRow, EventRow, RunRow, WaitRow
from orchestrator.history.rows import Phase, Rows
from orchestrator.scheduling.lifecycle import TERMINAL, Event, State, advance
from orchestrator.scheduling.run import Attempt, Run
from orchestrator.spec import JobSpec

# Statements are made once: to make one takes SQLAlchemy longer than SQLite takes to run it.
_MOVE = (
    update(RunRow)
    .where(RunRow.id == bindparam("run"))
    .values(
        state=bindparam("new_state"),
        reason=bindparam("new_reason"),
        queued_at=bindparam("new_queued_at"),
        started_at=bindparam("new_started_at"),
        finished_at=bindparam("new_finished_at"),
        version=RunRow.version + 1,
    )
)
_SPEC = (
    update(RunRow)
    .where(RunRow.id == bindparam("run"))
    .values(spec=bindparam("new_spec"), priority=bindparam("new_priority"))
)
_EVENT = insert(EventRow)
_ATTEMPT = insert(AttemptRow)
_ALLOCATIONS = insert(AllocationRow)
_RELEASE = (
    update(AllocationRow)
    .where(AllocationRow.run_id == bindparam("run"), AllocationRow.attempt == bindparam("number"))
    .values(released_at=bindparam("now"))
)
_RELEASE_NODE = _RELEASE.where(AllocationRow.node == bindparam("there"))
_FENCE_NODE = (
    update(AllocationRow)
    .where(AllocationRow.run_id == bindparam("run"), AllocationRow.attempt == bindparam("number"))
    .where(AllocationRow.node == bindparam("there"))
    .values(fenced_until=bindparam("end"))
)
_FORGET_WAIT = delete(WaitRow).where(WaitRow.run_id == bindparam("run"), WaitRow.number == bindparam("old_number"))
_WAIT = insert(WaitRow)


def move(
    rows: Rows,
    run: Run,
    event: Event,
    now: datetime,
    *,
    attempt: int | None,
    reason: str | None = None,
    by: str | None = None,
) -> Run:
    """Moves `run` along the table and appends the event. Raises IllegalTransition before anything is written."""
    state = advance(run.state, event, run.id)
    values: dict[str, Any] = {"state": state}
    reason = None if reason is None else words(reason)
    # A second request to stop says nothing new, and neither does a change or a note: what was said before stands.
    if event not in (Event.CHANGED, Event.NOTED) and not (state is run.state and reason is None):
        values["reason"] = reason
    if event is Event.RETRY_ASKED:
        values |= {"queued_at": now, "finished_at": None}
    if state in TERMINAL:
        values["finished_at"] = now
    if run.started_at is None and state is State.RUNNING:
        values["started_at"] = now
    if run.started_at is None and state is State.SUCCEEDED and run.attempt is not None:
        # It was over before its start was heard of; it did start, and not before it was placed.
        values["started_at"] = run.attempt.started_at
    moved = replace(run, **values)
    rows.add(
        Phase.RUN_MOVES,
        _MOVE,
        {
            "run": run.id,
            "new_state": state.value,
            "new_reason": moved.reason,
            "new_queued_at": moved.queued_at,
            "new_started_at": moved.started_at,
            "new_finished_at": moved.finished_at,
        },
    )
    row = {"run_id": run.id, "at": now, "event": event.value, "state": state.value}
    rows.add(Phase.EVENT, _EVENT, row | {"reason": reason, "attempt": attempt, "by": by})
    return moved


def begin_attempt(rows: Rows, run: int, attempt: Attempt) -> None:
    """The rows of an attempt that begins, and of its GPUs."""
    placement = queries.PLACEMENT.dump_python(attempt.placement, mode="json")
    began = attempt.started_at
    rows.add(
        Phase.ATTEMPT_BEGINS,
        _ATTEMPT,
        {"run_id": run, "number": attempt.number, "placement": placement, "started_at": began, "exit_codes": {}},
    )
    gpus = [(part.node, gpu) for part in attempt.placement.nodes for gpu in part.gpus]
    taken = [{"run_id": run, "attempt": attempt.number, "node": node, "gpu": gpu, "since": began} for node, gpu in gpus]
    rows.add(Phase.GPU_TAKEN, _ALLOCATIONS, *taken)


_AS_ROW: dict[str, Callable[[Any], Any]] = {
    "outcome": lambda outcome: outcome.value,
    "failure": lambda failure: None if failure is None else queries.FAILURE.dump_python(failure, mode="json"),
    "exit_codes": lambda codes: {str(rank): code for rank, code in codes.items()},
    "stop": lambda stop: queries.STOP.dump_python(stop, mode="json"),
}


def attempt_is(rows: Rows, run: Run, **values: Any) -> Run:
    """The run with these values of its last attempt, which are written."""
    attempt = run.attempts[-1]
    write_attempt(rows, run.id, attempt.number, **values)
    return replace(run, attempts=(*run.attempts[:-1], replace(attempt, **values)))


def with_attempt(run: Run, number: int, **values: Any) -> Run:
    """The run with these values of one attempt, of which nothing is written."""
    attempts = tuple(replace(one, **values) if one.number == number else one for one in run.attempts)
    return replace(run, attempts=attempts)


def write_attempt(rows: Rows, run: int, number: int, **values: Any) -> None:
    """These values of one attempt."""
    row = {f"new_{key}": _AS_ROW.get(key, lambda same: same)(value) for key, value in values.items()}
    rows.add(Phase.ATTEMPT_CHANGES, _attempt_is(tuple(values)), row | {"run": run, "old_number": number})


@cache
def _attempt_is(columns: tuple[str, ...]) -> Update:
    return (
        update(AttemptRow)
        .where(AttemptRow.run_id == bindparam("run"), AttemptRow.number == bindparam("old_number"))
        .values({column: bindparam(f"new_{column}") for column in columns})
    )


def own_specs(connection: Connection, run_ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    """By run, what its row says for itself: of an array's run, what is not the array's."""
    rows = connection.execute(select(RunRow.id, RunRow.spec).where(RunRow.id.in_(run_ids)))
    return {row.id: row.spec for row in rows}


def respecify(rows: Rows, run: Run, spec: JobSpec, kept: Mapping[str, Any]) -> Run:
    """The run with another spec, of which its row says what is `kept`."""
    rows.add(Phase.RUN_MOVES, _SPEC, {"run": run.id, "new_spec": dict(kept), "new_priority": spec.priority})
    return replace(run, spec=spec)


def remember_wait(rows: Rows, run: Run, number: int, now: datetime, waited: Mapping[str, Any]) -> None:
    row = {"run_id": run.id, "number": number, "since": waited["since"], "until": now, "summary": waited["summary"]}
    # A wait that ended by a cancel, and the one after a retry, are both before the same attempt: the later one counts.
    rows.add(Phase.WAIT_FORGOTTEN, _FORGET_WAIT, {"run": run.id, "old_number": number})
    rows.add(Phase.WAIT, _WAIT, row)


def release(
    rows: Rows,
    run_id: int,
    attempt: Attempt,
    now: datetime,
    fenced: Mapping[str, datetime],
    changes: Changes,
) -> None:
    mine = {"run": run_id, "number": attempt.number}
    if not fenced:
        rows.add(Phase.GPU_GIVEN_BACK, _RELEASE, mine | {"now": now})
    for part in attempt.placement.nodes if fenced else ():
        here = mine | {"there": part.node}
        if (end := fenced.get(part.node)) is None:
            rows.add(Phase.GPU_GIVEN_BACK, _RELEASE_NODE, here | {"now": now})
        else:
            rows.add(Phase.GPU_GIVEN_BACK, _FENCE_NODE, here | {"end": end})
    for part in attempt.placement.nodes:
        for gpu in part.gpus:
            until = fenced.get(part.node)
            changes.held[part.node, gpu] = None if until is None else Hold(run_id, attempt.started_at, until)
