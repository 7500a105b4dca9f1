"""The controller's memory: every change of a run, as one transaction of state, event and allocation.

One writer at a time: `claim_epoch` makes this store the one that the database obeys, and each write checks in its own
transaction that it still is. A write that returned has been committed to disk; a write that raised changed nothing.
Whoever writes keeps what has not ended in memory (book.py), so that a change of a run costs no question first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, Self

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from orchestrator.array import Ref
from orchestrator.bench.results import Bench
from orchestrator.bench.trial import Kept
from orchestrator.health.failure import Failure
from orchestrator.health.marks import Mark
from orchestrator.history import (
    benches,
    compare,
    export,
    groups,
    listing,
    measurements,
    moves,
    nodes,
    pictured,
    queries,
    retention,
    summaries,
    trials,
)
from orchestrator.history.benches import BenchFilter
from orchestrator.history.book import Book, Changes, Gpu, Hold
from orchestrator.history.database import BUSY_TIMEOUT_S, Database, open_database
from orchestrator.history.errors import (
    DatabaseBusy,
    DatabaseDamaged,
    DatabaseUnreachable,
    DoubleBooked,
    GroupUndone,
    NoSuchRun,
    StaleEpoch,
    StoreError,
)
from orchestrator.history.filters import RunFilter
from orchestrator.history.ledger import Scale, scaling
from orchestrator.history.measurements import Measured
from orchestrator.history.models import (
    AllocationRow,
    ArrayRow,
    ControlRow,
    NodeRow,
)
from orchestrator.history.nodes import Broken, NodeEvent
from orchestrator.history.rows import Rows
from orchestrator.history.submit import Answer, resolve, submitted
from orchestrator.history.submit import submit as _submit
from orchestrator.placement.fabric import NodeFabric
from orchestrator.placement.values import Placement
from orchestrator.scheduling.lifecycle import (
    TERMINAL,
    Event,
    IllegalTransition,
    Outcome,
    State,
    advance,
    replay,
)
from orchestrator.scheduling.run import Array, Attempt, Dependency, NewRun, NodeRecord, Run, Stop
from orchestrator.spec import JobSpec

_ENDS_AN_ATTEMPT = frozenset({Event.SUCCEEDED, Event.FAILED, Event.REQUEUED, Event.STOPPED})
_NEEDS_MORE = frozenset({Event.SUBMITTED, Event.PLACED, Event.CHANGED, Event.STOP_ASKED})
_CONTROL = select(ControlRow.epoch, ControlRow.owner).with_for_update()


class Store:
    """The history, open. Safe to use from several threads. Every method may raise a StoreError."""

    def __init__(self, database: Database, readonly: bool) -> None:
        self._database = database
        self._readonly = readonly
        self._epoch: int | None = None
        # Threads of one process queue here: SQLite's own waiting polls with pauses of up to 100 ms.
        self._one_writer = threading.RLock()
        self.on_change: Callable[[Changes], None] = lambda changes: None
        """Called after each commit that changed a run or an allocation, by the thread that wrote, in the order of the commits."""
        self._book: Book | None = None
        """What has not ended, as of the last commit; None where it must be read anew."""
        self._doubted: Book | None = None
        """The book of before a write that failed, and may be on disk all the same: its commit was not answered."""
        self._missed = Changes(missed=True)
        self._group: tuple[Connection, Changes, Rows] | None = None
        """The transaction of `group`, what it has changed so far, and its rows that wait."""
        self._changes = Changes()
        """What the write under way has done to runs and GPUs: whoever follows hears of nothing else."""
        self._rows = Rows()
        self._to_sum: dict[int, Run] = {}
        """Runs that ended without an attempt, or are tried again: summed up once their rows are written."""
        self.prices: Mapping[str, float] = {}
        """Of a GPU-hour, by model: what GPU time is counted with from now on."""

    @classmethod
    def open(cls, url: str, readonly: bool = False, busy_timeout_s: float = BUSY_TIMEOUT_S) -> Self:
        """Opens sqlite:////path/orch.db or postgresql://..., creating and upgrading what needs it.

        With `readonly` nothing is created, upgraded or written. A write that has to wait for another process longer
        than `busy_timeout_s` raises DatabaseBusy. Raises BadDatabaseUrl, DatabaseUnreachable,
        DatabaseBusy, DatabaseNewer, DatabaseOlder (read-only) or DatabaseDamaged.
        """
        return cls(open_database(url, readonly, busy_timeout_s), readonly)

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Store: {self._database.where}, epoch {self._epoch}>"

    # --- writing ---

    def claim_epoch(self, owner: str, now: datetime) -> int:
        """Makes this store the writer, and returns its epoch. The writer before it gets StaleEpoch from now on."""
        with self._transaction() as connection:
            epoch: int = connection.execute(select(ControlRow.epoch).with_for_update()).scalar_one() + 1
            connection.execute(update(ControlRow).values(epoch=epoch, owner=owner, claimed_at=now))
            self._book = None
        self._epoch = epoch
        return epoch

    def check_epoch(self) -> None:
        """Raises StaleEpoch where another controller has become the writer; a write would find that out too."""
        with self._database.read() as connection:
            control = connection.execute(select(ControlRow.epoch, ControlRow.owner)).one()
        if control.epoch != self._epoch:
            raise StaleEpoch(self._epoch, control.epoch, control.owner)

    @contextmanager
    def group(self) -> Iterator[None]:
        """Several writes of this thread in one transaction: they share one wait for the disk, and a statement for each kind of row.

        A write that raises is undone alone. None of them may be acknowledged before the block has ended. Where that raises, all
        are undone: with GroupUndone, because of one that the database refuses, and each can be tried by itself.
        """
        with self._one_writer:
            changes, rows = Changes(), Rows()
            with self._begin() as connection:
                self._group = connection, changes, rows
                self._to_sum = {}
                try:
                    yield
                    self._flush(connection, rows)
                except IntegrityError as error:
                    raise GroupUndone(str(error.orig)) from error
                finally:
                    self._group = None
            self._committed(changes)

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
        self._changes.runs[run_id] = run = _with(run, number, **fact)
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

    def measure(self, taken: Sequence[Measured], now: datetime) -> None:
        """Records what was measured of live attempts since the last time, and counts their GPU time anew."""
        with self._write() as connection:
            for one in taken:
                key = one.run, one.attempt
                run = self._run(connection, one.run)
                if one.progress is not None:
                    measurements.record_progress(connection, key, one.progress, now)
                    run = _with(run, one.attempt, progress=one.progress)
                measurements.record_samples(connection, key, one.gang, one.ranks, one.gpus)
                measurements.fold(connection, key, now, ended=None)
                self._changes.runs[one.run] = self._recount(connection, run, now) if one.count else run

    def count(self, runs: Sequence[Run], now: datetime) -> None:
        """Counts the GPU time of runs of which an attempt has ended, as `finish` gave them, and shortens their series."""
        with self._write() as connection:
            for run in runs:
                if run.attempts and run.attempts[-1].progress is not None:
                    measurements.fold(connection, (run.id, run.attempts[-1].number), now, ended=now)
            # As they are now: one may have been queued again since.
            with summaries.recounting(connection, [self._open(run.id) or run for run in runs]):
                for run in runs:
                    measurements.recount(connection, run, now, self.prices)

    def count_missed(self, now: datetime) -> int:
        """Counts what a controller that was killed left uncounted: attempts that ended after their GPU time was; how many."""
        with self._write() as connection:
            missed = measurements.uncounted(connection)
            for run in missed:
                self._recount(connection, self._run(connection, run), now)
            return len(missed)

    def _recount(self, connection: Connection, run: Run, now: datetime) -> Run:
        """Counts the run's GPU time anew; and its summary, where an attempt of it has ended."""
        if not any(attempt.ended_at for attempt in run.attempts):
            return measurements.recount(connection, run, now, self.prices)
        # As it is now: it may have been queued again since.
        with summaries.recounting(connection, [self._run(connection, run.id)]):
            return measurements.recount(connection, run, now, self.prices)

    def fence_until(self, until: datetime) -> None:
        """Has every fence end then: for a controller that cannot know by whose clock those ends were meant."""
        open_ones = (AllocationRow.released_at.is_(None), AllocationRow.fenced_until.is_not(None))
        with self._write() as connection:
            connection.execute(update(AllocationRow).where(*open_ones).values(fenced_until=until))
            assert self._book is not None
            held = self._book.held.items()
            self._changes.held |= {gpu: replace(hold, until=until) for gpu, hold in held if hold.until is not None}

    def release_fenced(self, now: datetime) -> int:
        """Frees the GPUs whose fence has run out by `now`; returns how many."""
        over = (AllocationRow.released_at.is_(None), AllocationRow.fenced_until <= now)
        return self._free(over, now)

    def release(self, run_id: int, attempt: int, node: str, now: datetime) -> None:
        """Frees what an ended attempt still has fenced on a node: its ranks there have been seen gone."""
        mine = (AllocationRow.run_id == run_id, AllocationRow.attempt == attempt, AllocationRow.node == node)
        self._free((*mine, AllocationRow.released_at.is_(None), AllocationRow.fenced_until.is_not(None)), now)

    def _free(self, which: tuple[Any, ...], now: datetime) -> int:
        with self._write() as connection:
            found = select(AllocationRow.run_id, AllocationRow.node, AllocationRow.gpu).where(*which)
            rows = connection.execute(found).all()
            if rows:
                connection.execute(update(AllocationRow).where(*which).values(released_at=now))
                self._changes.held |= {(row.node, row.gpu): None for row in rows}
            for run in sorted({row.run_id for row in rows}):
                self._recount(connection, self._run(connection, run), now)
            return len(rows)

    def upsert_node(self, node: NodeRecord) -> None:
        """Records what is known of a node now; when it was first seen stays as it was."""
        known = {
            "address": node.address,
            "state": node.state,
            "last_seen": node.last_seen,
            "hardware": node.hardware,
            "versions": node.versions,
        }
        with self._write() as connection:
            if not connection.execute(update(NodeRow).where(NodeRow.name == node.name).values(**known)).rowcount:
                connection.execute(insert(NodeRow).values(name=node.name, first_seen=node.first_seen, **known))

    def mark_nodes(self, marks: Mapping[str, Mark], events: Sequence[NodeEvent]) -> None:
        """Records what was decided about nodes, and tells it in their history."""
        with self._write() as connection:
            for node, mark in marks.items():
                nodes.set_mark(connection, node, mark)
            nodes.add_events(connection, events)

    def remember_node(self, node: str, past: Mapping[str, Any], events: Sequence[NodeEvent] = ()) -> None:
        """Records what a node's health is judged by from now on, and what was found out."""
        with self._write() as connection:
            nodes.set_past(connection, node, past)
            nodes.add_events(connection, events)

    def record_benches(self, found: Sequence[Bench]) -> None:
        """Keeps what links were measured to carry; the same results again change nothing."""
        with self._write() as connection:
            benches.record(connection, found)

    def expire_runs(self, before: datetime, now: datetime, most: int) -> list[int]:
        """Deletes up to `most` runs that ended before `before`, with all that is known of them but the sums; their ids."""
        with self._write() as connection:
            return retention.expire_runs(connection, before, now, most)

    def drop_series(self, before: datetime, after: int, most: int) -> tuple[int, bool]:
        """Deletes the series of runs that ended before `before`; looks at `most` runs with ids above `after`.

        Gives the id that it came to, and whether there is more to look at.
        """
        with self._write() as connection:
            return retention.drop_series(connection, before, after, most)

    def record_trials(self, found: Sequence[Kept]) -> None:
        """Keeps what came of short collectives between nodes."""
        with self._write() as connection:
            trials.record(connection, found)

    @contextmanager
    def _begin(self) -> Iterator[Connection]:
        """A transaction of the writer that the database obeys."""
        if self._readonly:
            raise ValueError("this store was opened to read only")
        with self._or_doubt(), self._database.write() as connection:
            # The lock on this row makes PostgreSQL's writers take turns, as BEGIN IMMEDIATE does SQLite's; a claim
            # waits for the write that is under way, and every later one sees the claim.
            control = connection.execute(_CONTROL).one()
            if control.epoch != self._epoch:
                raise StaleEpoch(self._epoch, control.epoch, control.owner)
            if self._book is None:
                self._book = queries.book(connection)
                if self._doubted is not None:
                    self._missed.add(self._book.since(self._doubted, partial(queries.run_by_id, connection)))
                    self._doubted = None
            yield connection
        if (missed := self._missed).runs or missed.held or missed.arrays:
            self._missed = Changes(missed=True)
            self.on_change(missed)

    @contextmanager
    def _or_doubt(self) -> Iterator[None]:
        """Where the database itself failed, what it has is read anew before the next write: a commit may have been made."""
        try:
            yield
        except (DatabaseBusy, DatabaseUnreachable, DatabaseDamaged):
            if self._book is not None:
                self._doubted, self._book = self._book, None
            raise

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        if self._readonly:
            raise ValueError("this store was opened to read only")
        with self._one_writer, self._database.write() as connection:
            yield connection

    @contextmanager
    def _write(self, *, gathered: bool = False) -> Iterator[Connection]:
        """A write by itself, or one of a group. What it does to runs and GPUs it says in `_changes`; its rows may go into `_rows`.

        With `gathered` all its rows go there: in a group they are written with those of others. It must ask the connection
        nothing but for runs that have ended.
        """
        with self._one_writer:
            self._changes, self._rows = Changes(), Rows()
            if self._group is None:
                with self._begin() as connection:
                    yield connection
                    self._flush(connection, self._rows)
                self._committed(self._changes)
                return
            connection, changes, rows = self._group
            if gathered:
                yield connection
                rows.take_over(self._rows, connection)
            else:
                self._flush(connection, rows)
                # Not SQLAlchemy's own, which costs five times as much; the same words in both databases.
                connection.exec_driver_sql("SAVEPOINT one_of_a_group")
                try:
                    yield connection
                    self._flush(connection, self._rows)
                except BaseException:
                    connection.exec_driver_sql("ROLLBACK TO SAVEPOINT one_of_a_group")
                    raise
                connection.exec_driver_sql("RELEASE SAVEPOINT one_of_a_group")
            changes.add(self._changes)

    def _flush(self, connection: Connection, rows: Rows) -> None:
        """Writes what waits, and sums up what has ended with it."""
        rows.flush(connection)
        to_sum, self._to_sum = self._to_sum, {}
        summaries.refresh(connection, list(to_sum.values()))

    def _committed(self, changes: Changes) -> None:
        assert self._book is not None
        if changes.runs or changes.held or changes.arrays:
            self._book.apply(changes)
            self.on_change(changes)

    def _run(self, connection: Connection, run_id: int) -> Run:
        """The run as this transaction sees it. Raises NoSuchRun."""
        run = self._open(run_id) or queries.run_by_id(connection, run_id)
        if run is None:
            raise NoSuchRun(run_id)
        return run

    def _open(self, run_id: int) -> Run | None:
        """The same without a question: None for one that had ended before this transaction began."""
        assert self._book is not None
        if self._group is not None and run_id in self._group[1].runs:
            return self._group[1].runs[run_id]
        return self._book.runs.get(run_id)

    def _knows(self, array: int) -> bool:
        assert self._book is not None
        grouped = self._group is not None and array in self._group[1].arrays
        return array in self._book.arrays or array in self._changes.arrays or grouped

    def _holder(self, connection: Connection, gpu: Gpu) -> Hold | None:
        assert self._book is not None
        if self._group is not None and gpu in self._group[1].held:
            return self._group[1].held[gpu]
        return self._book.held.get(gpu)

    # --- reading ---

    def get(self, ref: int | str) -> Run | None:
        """One run whole, with attempts and events, by id or by name (its latest run)."""
        with self._database.read() as connection:
            return queries.find(connection, ref)

    def submitted(self, new: NewRun) -> Run | None:
        """The run that this submission's key gave before. Raises KeyUsed where it was another job's."""
        with self._database.read() as connection:
            return submitted(connection, new)

    def waiting(self) -> list[Run]:
        """The queued runs, highest priority first, then who has waited longest."""
        with self._database.read() as connection:
            return queries.waiting(connection)

    def live(self) -> list[Run]:
        """The runs whose attempt holds a place, by id, with attempts."""
        with self._database.read() as connection:
            return queries.live(connection)

    def book(self) -> Book:
        """What has not ended, with arrays and allocations: for whoever follows `on_change` from here on."""
        with self._one_writer, self._database.read() as connection:
            return queries.book(connection)

    def ids_of(self, ref: Ref, user: str | None = None) -> range | None:
        """The runs that a word means; None where there are none."""
        with self._database.read() as connection:
            return queries.ids_of(connection, ref, user)

    def array_of(self, run_id: int) -> Array | None:
        """The array that a run is of."""
        with self._database.read() as connection:
            return queries.array_of(connection, run_id)

    def counts(self, ids: range) -> dict[State, int]:
        """How many of these runs are in each state."""
        with self._database.read() as connection:
            return queries.counts(connection, ids)

    def needs(self, after: Sequence[int | str], user: str) -> tuple[Dependency, ...]:
        """The runs that the words of `after:` would mean now. Raises NoSuchRun, NothingFollows."""
        with self._database.read() as connection:
            return resolve(connection, after, user)

    def broken(self, need: Dependency) -> Run | None:
        """The first of the runs that failed or was cancelled."""
        with self._database.read() as connection:
            return queries.broken_dependency(connection, need)

    def metrics(self, ids: range) -> dict[int, dict[str, float]]:
        """By run, what it reported last of each metric."""
        with self._database.read() as connection:
            return queries.metrics(connection, ids)

    def uses(self, since: datetime) -> list[queries.GpuUse]:
        """Who held how many GPUs from when to when, of attempts that have ended since."""
        with self._database.read() as connection:
            return queries.uses(connection, since)

    def durations(self, runs: int) -> dict[tuple[str, str], list[float]]:
        """By user and name, the seconds from the start of the ranks to the end of the latest so many successful runs of all."""
        with self._database.read() as connection:
            return queries.durations(connection, runs)

    def runs(self, wanted: RunFilter | None = None) -> list[Run]:
        """The runs that `wanted` describes, with attempts, without events."""
        with self._database.read() as connection:
            return queries.filtered(connection, wanted or RunFilter())

    def rows(self, wanted: RunFilter, columns: Sequence[str]) -> list[dict[str, Any]]:
        """The same as flat rows of JSON values; `columns` are of listing.COLUMNS."""
        with self._database.read() as connection:
            return listing.flat(connection, wanted, columns)

    def groups(self, wanted: RunFilter, by: Sequence[str], sort: str | None = None) -> list[dict[str, Any]]:
        """Sums over groups of them. Raises ValueError for a group or an order that there is not."""
        with self._database.read() as connection:
            return groups.groups(connection, wanted, by, sort)

    def compare(self, refs: Sequence[int | str]) -> dict[str, Any] | str | int:
        """Runs side by side and what explains the difference; one alone against its like. Gives a ref that is no run's."""
        with self._database.read() as connection:
            runs: dict[int, Run] = {}
            for ref in refs:
                if (run := queries.find(connection, ref)) is None:
                    return ref
                runs[run.id] = run
            return compare.compare(connection, list(runs.values()))

    def against_its_like(self, run: Run) -> dict[str, Any] | None:
        """How the run's speed compares with that of the newest earlier runs of its like; None where it is not known."""
        with self._database.read() as connection:
            return compare.against_its_like(connection, run)

    def export(self, what: str, wanted: RunFilter) -> Iterator[dict[str, Any]]:
        """Rows of runs, attempts or series (export.FIELDS), by run id, read batch after batch."""
        return export.rows(self._database, what, wanted)

    def expired(self, run: int) -> str | None:
        """That the run has expired, in a sentence; None where none of that id has."""
        with self._database.read() as connection:
            return retention.expired(connection, run)

    def whose_logs_may_go(self, runs: Sequence[int], before: datetime) -> list[int]:
        """Those of `runs` that ended before `before`, and those that have expired."""
        with self._database.read() as connection:
            return retention.whose_logs_may_go(connection, runs, before)

    def unused_code(self, hashes: Sequence[str]) -> list[str]:
        """Those of the snapshots that no run names."""
        with self._database.read() as connection:
            return retention.unused_code(connection, hashes)

    def scaling(self, name: str) -> list[Scale]:
        """How well the runs of that name use more workers, by size, the smallest first."""
        with self._database.read() as connection:
            return scaling(measurements.sizes_and_rates(connection, name))

    def nodes(self) -> list[NodeRecord]:
        """The nodes that were ever seen, by name."""
        with self._database.read() as connection:
            return queries.nodes(connection)

    def node_marks(self) -> tuple[dict[str, Mark], dict[str, dict[str, Any]]]:
        """By node: what was decided about it, and what its health is judged by."""
        with self._database.read() as connection:
            return nodes.marks(connection)

    def node_events(self, names: Sequence[str], limit: int) -> list[NodeEvent]:
        """What happened to nodes, the newest so many, oldest first; to all where none is named."""
        with self._database.read() as connection:
            return nodes.events(connection, names, limit)

    def node_attempts(self, since: datetime, later: Mapping[str, datetime]) -> tuple[dict[str, int], list[Broken]]:
        """By node how many attempts ended there since then, or since its own time in `later`; and all that infrastructure broke."""
        with self._database.read() as connection:
            return nodes.ended(connection, since, later), nodes.broken(connection, since)

    def benches(self, wanted: BenchFilter | None = None) -> list[Bench]:
        """The results of `orch bench` that `wanted` describes, oldest first."""
        with self._database.read() as connection:
            return benches.filtered(connection, wanted or BenchFilter())

    def trials(self, since: datetime) -> list[Kept]:
        """What came of short collectives between nodes, oldest first."""
        with self._database.read() as connection:
            return trials.since(connection, since)

    def related_benches(self, shown: Sequence[Bench], now: datetime) -> list[Bench]:
        """What these results are to be held against."""
        with self._database.read() as connection:
            return benches.related(connection, shown, now)

    def run_pictured(self, ref: int | str, now: datetime) -> dict[str, Any] | None:
        """What the page of a run is drawn from; None where there is no such run."""
        with self._database.read() as connection:
            run = queries.find(connection, ref)
            return None if run is None else pictured.run_pictured(connection, run, now)

    def cluster_pictured(self, since: datetime, now: datetime) -> dict[str, Any]:
        """What the page of the cluster is drawn from, of the time since then."""
        with self._database.read() as connection:
            return pictured.cluster_pictured(connection, since, now)

    def busy(self) -> dict[str, dict[int, int]]:
        """The GPUs (or CPU slots) that are not free, fenced ones included: node -> GPU -> the run that has it."""
        held: dict[str, dict[int, int]] = {}
        with self._database.read() as connection:
            for node, gpu, run_id in connection.execute(
                select(AllocationRow.node, AllocationRow.gpu, AllocationRow.run_id)
                .where(AllocationRow.released_at.is_(None))
                .order_by(AllocationRow.node, AllocationRow.gpu)
            ):
                held.setdefault(node, {})[gpu] = run_id
        return held

    def verify(self, run_id: int) -> bool:
        """Whether the run's events, replayed, lead to its state, and each of them to the state that it says."""
        run = self.get(run_id)
        if run is None:
            raise NoSuchRun(run_id)
        happened = [one.event for one in run.events]
        try:
            said = [replay(happened[: end + 1]) for end in range(len(happened))]
        except (IllegalTransition, ValueError):
            return False
        return bool(said) and said == [one.state for one in run.events] and said[-1] is run.state


def _with(run: Run, number: int, **values: Any) -> Run:
    """The run with these values of one attempt."""
    attempts = tuple(replace(one, **values) if one.number == number else one for one in run.attempts)
    return replace(run, attempts=attempts)
