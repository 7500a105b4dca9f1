"""What happens to runs: each change as one write of state, event and allocation, along the table of the states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, update

from orchestrator.health.failure import Failure
from orchestrator.history import moves, queries, summaries
from orchestrator.history.book import Hold
from orchestrator.history.errors import DoubleBooked, StoreError
from orchestrator.history.models import ArrayRow
from orchestrator.history.submit import Answer
from orchestrator.history.submit import submit as _submit
from orchestrator.history.writer import Writer
from orchestrator.placement.fabric import NodeFabric
from orchestrator.placement.values import Placement
from orchestrator.scheduling.lifecycle import TERMINAL, Event, IllegalTransition, Outcome, State, advance
from orchestrator.scheduling.run import Array, Attempt, NewRun, Run, Stop
from orchestrator.spec import JobSpec

_ENDS_AN_ATTEMPT = frozenset({Event.SUCCEEDED, Event.FAILED, Event.REQUEUED, Event.STOPPED})
_NEEDS_MORE = frozenset({Event.SUBMITTED, Event.PLACED, Event.CHANGED, Event.STOP_ASKED})


class RunWrites(Writer):
    """The writes about runs. Every method may raise a StoreError."""

    def submit(self, new: NewRun, now: datetime) -> tuple[Run, bool]:
        """Queues a run, or an array, whose first run it gives. Returns it, and whether it is new: a key that this user used
        before gives the run of then. Raises NoSuchRun and NothingFollows for `after:`.
        """
        return self.submit_many([new], now)[0]

    def submit_many(self, new: Sequence[NewRun], now: datetime) -> list[tuple[Run, bool]]:
        """Queues all of them or none, in their order; as `submit` for each."""
        with self._write() as connection:
            answers = _submit(connection, new, now, self._changes)
            for answer in answers:
                if isinstance(answer, StoreError):
                    raise answer
        return [answer for answer in answers if not isinstance(answer, StoreError)]

    def submit_each(self, new: Sequence[NewRun], now: datetime) -> list[Answer]:
        """Queues those that can be, in their order: for each the run and whether it is new, or the refusal."""
        with self._write(gathered=True) as connection:
            if self._group is not None and any(one.spec.after for one in new):
                # What became of the runs that these are to follow is asked of the tables.
                self._group[2].flush(connection)
            return _submit(connection, new, now, self._changes)

    def place(
        self,
        run_id: int,
        placement: Placement,
        now: datetime,
        waited: Mapping[str, Any] | None = None,
        fabric: Mapping[str, NodeFabric] | None = None,
    ) -> Run:
        """Begins the next attempt of a queued run on `placement`'s GPUs; `waited` says what it waited for, `fabric` what its
        nodes are.

        Raises DoubleBooked, IllegalTransition, NoSuchRun.
        """
        gpus = [(part.node, gpu) for part in placement.nodes for gpu in part.gpus]
        with self._write(gathered=True) as connection:
            run = self._run(connection, run_id)
            number = len(run.attempts) + 1
            advance(run.state, Event.PLACED, run_id)
            if taken := [(*gpu, hold.run) for gpu in gpus if (hold := self._holder(connection, gpu)) is not None]:
                raise DoubleBooked(run_id, taken)
            attempt = Attempt(number, placement, now)
            run = replace(
                moves.move(self._rows, run, Event.PLACED, now, attempt=number), attempts=(*run.attempts, attempt)
            )
            moves.begin_attempt(self._rows, run_id, attempt)
            summaries.begin(self._rows, run_id, attempt, fabric or {})
            if waited is not None:
                moves.remember_wait(self._rows, run, number, now, waited)
            self._changes.runs[run_id] = run
            self._changes.held |= dict.fromkeys(gpus, Hold(run_id, now))
            return run

    def record(
        self,
        run_id: int,
        event: Event,
        now: datetime,
        reason: str | None = None,
        by: str | None = None,
        waited: Mapping[str, Any] | None = None,
    ) -> Run:
        """Records what happened to a run without ending an attempt. Raises IllegalTransition, NoSuchRun.

        FAILED is for a run that waits; the end of an attempt is for `finish`, a placement for `place`, the rest for `change` and
        `stop`.
        """
        with self._write(gathered=True) as connection:
            return self._record(connection, self._run(connection, run_id), event, now, reason, by, waited)

    def record_each(
        self,
        run_ids: Sequence[int],
        event: Event,
        now: datetime,
        reason: str | None = None,
        by: str | None = None,
        waited: Mapping[int, Mapping[str, Any]] | None = None,
    ) -> list[Run]:
        """As `record` for each of them, and those left out whose state has no place for it any more. Raises NoSuchRun."""
        with self._write(gathered=True) as connection:
            recorded = []
            for run_id in run_ids:
                with suppress(IllegalTransition):
                    run = self._run(connection, run_id)
                    over = (waited or {}).get(run_id)
                    recorded.append(self._record(connection, run, event, now, reason, by, over))
            return recorded

    def _record(
        self,
        connection: Connection,
        run: Run,
        event: Event,
        now: datetime,
        reason: str | None,
        by: str | None,
        waited: Mapping[str, Any] | None,
    ) -> Run:
        number = run.attempts[-1].number if run.live and run.attempts else None
        if event in _NEEDS_MORE or (event in _ENDS_AN_ATTEMPT and number is not None):
            raise IllegalTransition(run.id, run.state, event)
        was_queued = run.state is State.QUEUED
        run = moves.move(self._rows, run, event, now, attempt=number, reason=reason, by=by)
        if event is Event.STARTED:
            run = moves.attempt_is(self._rows, run, ranks_started_at=now)
        if event is Event.CANCEL_ASKED and number is not None:
            run = moves.attempt_is(self._rows, run, stop=Stop("cancelled", reason))
        if was_queued and waited is not None:
            moves.remember_wait(self._rows, run, len(run.attempts) + 1, now, waited)
        self._changes.runs[run.id] = run
        if event is Event.RETRY_ASKED and run.element is not None and not self._knows(run.element.array):
            # All its runs had ended, and it was forgotten.
            array = queries.array_of(connection, run.id)
            assert array is not None
            self._changes.arrays[array.id] = array
        if run.ended or event is Event.RETRY_ASKED:
            self._to_sum[run.id] = run
        return run

    def started(self, run_id: int, number: int, now: datetime) -> Run:
        """Records that every rank of this attempt has started. Raises IllegalTransition where it is not the live one; NoSuchRun."""
        with self._write(gathered=True) as connection:
            run = self._run(connection, run_id)
            if run.attempt is None or run.attempt.number != number:
                raise IllegalTransition(run_id, run.state, Event.STARTED)
            return self._record(connection, run, Event.STARTED, now, None, None, None)

    def stop(self, run_id: int, stop: Stop, now: datetime) -> Run:
        """Records that orch itself ends the run's attempt, before anybody is told. Raises IllegalTransition, NoSuchRun."""
        with self._write(gathered=True) as connection:
            run = self._run(connection, run_id)
            number = run.attempts[-1].number if run.live and run.attempts else None
            run = moves.move(self._rows, run, Event.STOP_ASKED, now, attempt=number, reason=stop.reason)
            self._changes.runs[run_id] = run = moves.attempt_is(self._rows, run, stop=stop)
            return run

    def change(
        self, run_ids: Sequence[int], changed: Mapping[str, Any], now: datetime, what: str, by: str | None
    ) -> list[Run]:
        """Changes keys of the runs' specs; `what` says it in words. Raises IllegalTransition, NoSuchRun, ValidationError."""
        with self._write() as connection:
            own = moves.own_specs(connection, run_ids)
            found = []
            for run_id in run_ids:
                run = self._run(connection, run_id)
                spec = JobSpec.model_validate(run.spec.model_dump(mode="json") | dict(changed))
                given = spec.model_dump(mode="json")
                # An array's run says only what is its own.
                kept = given if run.element is None else own[run_id] | {key: given[key] for key in changed}
                run = moves.move(self._rows, run, Event.CHANGED, now, attempt=None, reason=what, by=by)
                self._changes.runs[run_id] = run = moves.respecify(self._rows, run, spec, kept)
                found.append(run)
            return found

    def limit_array(self, array: Array, limit: int | None) -> Array:
        """Changes how many of its runs may hold a place at once."""
        with self._write() as connection:
            connection.execute(update(ArrayRow).where(ArrayRow.id == array.id).values(run_limit=limit))
            self._changes.arrays[array.id] = array = replace(array, limit=limit)
            return array

    def record_environment(self, run_id: int, attempt: int, environment: Mapping[str, Mapping[str, Any]]) -> None:
        """Records the versions that an attempt was started with, by node; what was recorded before stays."""
        with self._write(gathered=True) as connection:
            self._attempt_fact(connection, run_id, attempt, environment=environment)

    def set_transport(
        self, run_id: int, attempt: int, transport: Mapping[str, Any], now: datetime, note: str | None = None
    ) -> bool:
        """Records what NCCL's log showed of an attempt, with an event where there is something to tell; the first one stands.

        Returns whether this was the first.
        """
        with self._write(gathered=True) as connection:
            run = self._attempt_fact(connection, run_id, attempt, transport=dict(transport))
            if run is None:
                return False
            if note is not None and run.state not in TERMINAL:
                run = moves.move(self._rows, run, Event.NOTED, now, attempt=attempt, reason=note)
                self._changes.runs[run_id] = run
            return True

    def _attempt_fact(self, connection: Connection, run_id: int, number: int, **fact: Any) -> Run | None:
        """Writes what is found out once about an attempt, and gives the run with it; None where it is known already."""
        (name,) = fact
        run = self._run(connection, run_id)
        attempt = next((one for one in run.attempts if one.number == number), None)
        if attempt is None or getattr(attempt, name) is not None:
            return None
        moves.write_attempt(self._rows, run_id, number, **fact)
        self._changes.runs[run_id] = run = moves.with_attempt(run, number, **fact)
        return run

    def finish(
        self,
        run_id: int,
        event: Event,
        outcome: Outcome,
        now: datetime,
        *,
        reason: str | None = None,
        failure: Failure | None = None,
        exit_codes: Mapping[int, int] | None = None,
        fenced: Mapping[str, datetime] | None = None,
        number: int | None = None,
    ) -> Run:
        """Ends the run's live attempt by SUCCEEDED, FAILED, REQUEUED or STOPPED and frees its GPUs.

        `fenced` names the nodes whose ranks may live on, and until when: their GPUs stay taken until `release_fenced`.
        Raises IllegalTransition, also where no attempt is live, or not that of this `number`; NoSuchRun.
        """
        with self._write(gathered=True) as connection:
            run = self._run(connection, run_id)
            attempt = run.attempt
            if attempt is not None and number not in (None, attempt.number):
                raise IllegalTransition(run_id, run.state, event)
            if event not in _ENDS_AN_ATTEMPT or not run.live or attempt is None:
                raise IllegalTransition(run_id, run.state, event)
            # A clock may have been put back since another controller started it.
            now = max(now, attempt.started_at, attempt.ranks_started_at or now)
            run = moves.move(self._rows, run, event, now, attempt=attempt.number, reason=reason)
            run = moves.attempt_is(
                self._rows, run, ended_at=now, outcome=outcome, failure=failure, exit_codes=dict(exit_codes or {})
            )
            summaries.end(self._rows, run_id, run.attempts[-1])
            moves.release(self._rows, run_id, attempt, now, fenced or {}, self._changes)
            self._changes.runs[run_id] = run
            return run
