"""One change of a run as rows: its state along the table with the event that led there, its attempt, its GPUs, its wait."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select, update

from orchestrator.history import queries
from orchestrator.history.book import Changes, Hold
from orchestrator.history.models import AllocationRow, AttemptRow, EventRow, RunRow, WaitRow, words
from orchestrator.scheduling.lifecycle import TERMINAL, Event, State, advance
from orchestrator.scheduling.run import Attempt, Run


def move(
    connection: Connection,
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
    # A second request to stop says nothing new, and neither does a change: what was said before stands.
    if event is not Event.CHANGED and not (state is run.state and reason is None):
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
    connection.execute(
        update(RunRow)
        .where(RunRow.id == run.id)
        .values(**values | {"state": state.value, "version": RunRow.version + 1})
    )
    row = {"run_id": run.id, "at": now, "event": event.value, "state": state.value}
    connection.execute(insert(EventRow), row | {"reason": reason, "attempt": attempt, "by": by})
    return replace(run, **values)


_AS_ROW: dict[str, Callable[[Any], Any]] = {
    "outcome": lambda outcome: outcome.value,
    "failure": lambda failure: None if failure is None else queries.FAILURE.dump_python(failure, mode="json"),
    "exit_codes": lambda codes: {str(rank): code for rank, code in codes.items()},
    "stop": lambda stop: queries.STOP.dump_python(stop, mode="json"),
}


def attempt_is(connection: Connection, run: Run, **values: Any) -> Run:
    """The run with these values of its last attempt, which are written."""
    attempt = run.attempts[-1]
    connection.execute(
        update(AttemptRow)
        .where(AttemptRow.run_id == run.id, AttemptRow.number == attempt.number)
        .values({key: _AS_ROW.get(key, lambda same: same)(value) for key, value in values.items()})
    )
    return replace(run, attempts=(*run.attempts[:-1], replace(attempt, **values)))


def own(connection: Connection, run_id: int) -> dict[str, Any]:
    """What an array's run says for itself."""
    spec: dict[str, Any] = connection.execute(select(RunRow.spec).where(RunRow.id == run_id)).scalar_one()
    return spec


def remember_wait(connection: Connection, run: Run, number: int, now: datetime, waited: Mapping[str, Any]) -> None:
    row = {"run_id": run.id, "number": number, "since": waited["since"], "until": now, "summary": waited["summary"]}
    # A wait that ended by a cancel, and the one after a retry, are both before the same attempt: the later one counts.
    if not connection.execute(
        update(WaitRow).where(WaitRow.run_id == run.id, WaitRow.number == number).values(**row)
    ).rowcount:
        connection.execute(insert(WaitRow), row)


def release(
    connection: Connection,
    run_id: int,
    attempt: Attempt,
    now: datetime,
    fenced: Mapping[str, datetime],
    changes: Changes,
) -> None:
    mine = update(AllocationRow).where(AllocationRow.run_id == run_id, AllocationRow.attempt == attempt.number)
    gone = mine.where(AllocationRow.node.not_in(list(fenced))) if fenced else mine
    connection.execute(gone.values(released_at=now))
    for node, end in fenced.items():
        connection.execute(mine.where(AllocationRow.node == node).values(fenced_until=end))
    for part in attempt.placement.nodes:
        for gpu in part.gpus:
            until = fenced.get(part.node)
            changes.held[part.node, gpu] = None if until is None else Hold(run_id, attempt.started_at, until)
