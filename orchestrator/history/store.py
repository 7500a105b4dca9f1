"""The controller's memory: every change of a run, as one transaction of state, event and allocation.

One writer at a time: `claim_epoch` makes this store the one that the database obeys, and each write checks in its own
transaction that it still is. A write that returned has been committed to disk; a write that raised changed nothing.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Self

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from orchestrator.bench.results import Bench
from orchestrator.history import benches, compare, export, groups, listing, queries, retention, summaries
from orchestrator.history.benches import BenchFilter
from orchestrator.history.database import BUSY_TIMEOUT_S, Database, open_database
from orchestrator.history.errors import DoubleBooked, NoSuchRun, StaleEpoch
from orchestrator.history.filters import RunFilter
from orchestrator.history.models import AllocationRow, AttemptRow, ControlRow, EventRow, NodeRow, RunRow, TagRow
from orchestrator.placement.fabric import NodeFabric
from orchestrator.placement.values import Placement
from orchestrator.scheduling.lifecycle import TERMINAL, Event, IllegalTransition, Outcome, State, advance, replay
from orchestrator.scheduling.run import Attempt, Failure, NewRun, NodeRecord, Run

_ENDS_AN_ATTEMPT = frozenset({Event.SUCCEEDED, Event.FAILED, Event.REQUEUED, Event.STOPPED})
_NEEDS_MORE = frozenset({Event.SUBMITTED, Event.PLACED})


class Store:
    """The history, open. Safe to use from several threads. Every method may raise a StoreError."""

    def __init__(self, database: Database, readonly: bool) -> None:
        self._database = database
        self._readonly = readonly
        self._epoch: int | None = None
        # Threads of one process queue here: SQLite's own waiting polls with pauses of up to 100 ms.
        self._one_writer = threading.Lock()

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
        self._epoch = epoch
        return epoch

    def submit(self, new: NewRun, now: datetime) -> tuple[Run, bool]:
        """Queues a run. Returns it, and whether it is new: a key that this user used before gives the run of then."""
        return self.submit_many([new], now)[0]

    def submit_many(self, new: Sequence[NewRun], now: datetime) -> list[tuple[Run, bool]]:
        """Queues all of them or none, in their order; as `submit` for each."""
        with self._write() as connection:
            return [_submit(connection, one, now) for one in new]

    def place(
        self, run_id: int, placement: Placement, now: datetime, fabric: Mapping[str, NodeFabric] | None = None
    ) -> Run:
        """Begins the next attempt of a queued run on `placement`'s GPUs; `fabric` says what its nodes are.

        Raises DoubleBooked, IllegalTransition, NoSuchRun.
        """
        gpus = [(part.node, gpu) for part in placement.nodes for gpu in part.gpus]
        try:
            with self._write() as connection:
                run = _known(connection, run_id)
                number = len(run.attempts) + 1
                _move(connection, run, Event.PLACED, now, attempt=number)
                connection.execute(
                    insert(AttemptRow).values(
                        run_id=run_id,
                        number=number,
                        placement=queries.PLACEMENT.dump_python(placement, mode="json"),
                        started_at=now,
                        exit_codes={},
                    )
                )
                connection.execute(
                    insert(AllocationRow),
                    [{"run_id": run_id, "attempt": number, "node": n, "gpu": g, "since": now} for n, g in gpus],
                )
                run = _known(connection, run_id)
                summaries.placed(connection, run, placement, fabric or {}, now)
                return run
        except IntegrityError:
            busy = self.busy()
            taken = [(node, gpu, busy[node][gpu]) for node, gpu in gpus if gpu in busy.get(node, {})]
            if not taken:
                raise
            raise DoubleBooked(run_id, taken) from None

    def record(self, run_id: int, event: Event, now: datetime, reason: str | None = None, by: str | None = None) -> Run:
        """Records what happened to a run without ending an attempt. Raises IllegalTransition, NoSuchRun.

        FAILED is for a run that waits; the end of an attempt is for `finish`, and a placement for `place`.
        """
        with self._write() as connection:
            run = _known(connection, run_id)
            number = run.attempts[-1].number if run.live and run.attempts else None
            if event in _NEEDS_MORE or (event in _ENDS_AN_ATTEMPT and number is not None):
                raise IllegalTransition(run_id, run.state, event)
            _move(connection, run, event, now, attempt=number, reason=reason, by=by)
            if event is Event.STARTED:
                connection.execute(
                    update(AttemptRow)
                    .where(AttemptRow.run_id == run_id, AttemptRow.number == number)
                    .values(ranks_started_at=now)
                )
            run = _known(connection, run_id)
            if run.ended or event is Event.RETRY_ASKED:
                summaries.refresh(connection, run)
            return run

    def record_environment(self, run_id: int, attempt: int, environment: Mapping[str, Mapping[str, Any]]) -> None:
        """Records the versions that an attempt was started with, by node; what was recorded before stays."""
        with self._write() as connection:
            connection.execute(
                update(AttemptRow)
                .where(AttemptRow.run_id == run_id, AttemptRow.number == attempt, AttemptRow.environment.is_(None))
                .values(environment=environment)
            )

    def set_transport(
        self, run_id: int, attempt: int, transport: Mapping[str, Any], now: datetime, note: str | None = None
    ) -> bool:
        """Records what NCCL's log showed of an attempt, with an event where there is something to tell; the first one stands.

        Returns whether this was the first.
        """
        with self._write() as connection:
            row = (AttemptRow.run_id == run_id) & (AttemptRow.number == attempt)
            first = update(AttemptRow).where(row, AttemptRow.transport.is_(None)).values(transport=dict(transport))
            if not connection.execute(first).rowcount:
                return False
            run = _known(connection, run_id)
            if note is not None and run.state not in TERMINAL:
                _move(connection, run, Event.NOTED, now, attempt=attempt, reason=note)
            return True

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
    ) -> Run:
        """Ends the run's live attempt by SUCCEEDED, FAILED, REQUEUED or STOPPED and frees its GPUs.

        `fenced` names the nodes whose ranks may live on, and until when: their GPUs stay taken until `release_fenced`.
        Raises IllegalTransition, also where no attempt is live; NoSuchRun.
        """
        with self._write() as connection:
            run = _known(connection, run_id)
            attempt = run.attempt
            if event not in _ENDS_AN_ATTEMPT or not run.live or attempt is None:
                raise IllegalTransition(run_id, run.state, event)
            _move(connection, run, event, now, attempt=attempt.number, reason=reason)
            connection.execute(
                update(AttemptRow)
                .where(AttemptRow.run_id == run_id, AttemptRow.number == attempt.number)
                .values(
                    ended_at=now,
                    outcome=outcome.value,
                    failure=None if failure is None else queries.FAILURE.dump_python(failure, mode="json"),
                    exit_codes={str(rank): code for rank, code in (exit_codes or {}).items()},
                )
            )
            _release(connection, run_id, attempt, now, fenced or {})
            run = _known(connection, run_id)
            summaries.ended(connection, run)
            return run

    def release_fenced(self, now: datetime) -> int:
        """Frees the GPUs whose fence has run out by `now`; returns how many."""
        with self._write() as connection:
            return connection.execute(
                update(AllocationRow)
                .where(AllocationRow.released_at.is_(None), AllocationRow.fenced_until <= now)
                .values(released_at=now)
            ).rowcount

    def release(self, run_id: int, attempt: int, node: str, now: datetime) -> None:
        """Frees what an ended attempt still has fenced on a node: its ranks there have been seen gone."""
        with self._write() as connection:
            connection.execute(
                update(AllocationRow)
                .where(AllocationRow.run_id == run_id, AllocationRow.attempt == attempt, AllocationRow.node == node)
                .where(AllocationRow.released_at.is_(None), AllocationRow.fenced_until.is_not(None))
                .values(released_at=now)
            )

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

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        if self._readonly:
            raise ValueError("this store was opened to read only")
        with self._one_writer, self._database.write() as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with self._transaction() as connection:
            # The lock on this row makes PostgreSQL's writers take turns, as BEGIN IMMEDIATE does SQLite's; a claim
            # waits for the write that is under way, and every later one sees the claim.
            control = connection.execute(select(ControlRow.epoch, ControlRow.owner).with_for_update()).one()
            if control.epoch != self._epoch:
                raise StaleEpoch(self._epoch, control.epoch, control.owner)
            yield connection

    # --- reading ---

    def get(self, ref: int | str) -> Run | None:
        """One run whole, with attempts and events, by id or by name (its latest run)."""
        with self._database.read() as connection:
            return queries.find(connection, ref)

    def waiting(self) -> list[Run]:
        """The queued runs, highest priority first, then who has waited longest."""
        with self._database.read() as connection:
            return queries.waiting(connection)

    def live(self) -> list[Run]:
        """The runs whose attempt holds a place, by id, with attempts."""
        with self._database.read() as connection:
            return queries.live(connection)

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

    def nodes(self) -> list[NodeRecord]:
        """The nodes that were ever seen, by name."""
        with self._database.read() as connection:
            return queries.nodes(connection)

    def benches(self, wanted: BenchFilter | None = None) -> list[Bench]:
        """The results of `orch bench` that `wanted` describes, oldest first."""
        with self._database.read() as connection:
            return benches.filtered(connection, wanted or BenchFilter())

    def busy(self) -> dict[str, dict[int, int]]:
        """The GPUs (or CPU slots) that are not free, fenced ones included: node -> GPU -> the run that has it."""
        held: dict[str, dict[int, int]] = defaultdict(dict)
        with self._database.read() as connection:
            for node, gpu, run_id in connection.execute(
                select(AllocationRow.node, AllocationRow.gpu, AllocationRow.run_id)
                .where(AllocationRow.released_at.is_(None))
                .order_by(AllocationRow.node, AllocationRow.gpu)
            ):
                held[node][gpu] = run_id
        return dict(held)

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


def _submit(connection: Connection, new: NewRun, now: datetime) -> tuple[Run, bool]:
    if new.key is not None:
        before = connection.execute(
            select(RunRow.id).where(RunRow.username == new.user, RunRow.submit_key == new.key)
        ).scalar()
        if before is not None:
            return _known(connection, before), False
    spec, code = new.spec, new.code
    inserted = connection.execute(
        insert(RunRow),
        {
            "name": spec.name,
            "username": new.user,
            "team": spec.team,
            "state": State.QUEUED.value,
            "priority": spec.priority,
            # Defaults included: a default that changes later must not change what was asked for.
            "spec": spec.model_dump(mode="json"),
            "code_sha256": code and code.sha256,
            "code_git": code and code.git,
            "code_dirty": code and code.dirty,
            "workdir": new.workdir,
            "submit_key": new.key,
            "submitted_at": now,
            "queued_at": now,
        },
    )
    run_id: int = inserted.inserted_primary_key[0]  # type: ignore[index]  # None only for inserts of many
    if spec.tags:
        connection.execute(
            insert(TagRow), [{"run_id": run_id, "key": key, "value": value} for key, value in spec.tags.items()]
        )
    _append(connection, run_id, Event.SUBMITTED, State.QUEUED, now, by=new.user)
    run = Run(run_id, spec, new.user, code, new.workdir, State.QUEUED, None, submitted_at=now, queued_at=now)
    return run, True


def _move(
    connection: Connection,
    run: Run,
    event: Event,
    now: datetime,
    *,
    attempt: int | None,
    reason: str | None = None,
    by: str | None = None,
) -> None:
    """Moves `run` along the table and appends the event. Raises IllegalTransition before anything is written."""
    state = advance(run.state, event, run.id)
    if event is Event.NOTED:
        # It leaves the run's reason, and its place in the queue, as they are.
        connection.execute(update(RunRow).where(RunRow.id == run.id).values(version=RunRow.version + 1))
        _append(connection, run.id, event, state, now, reason=reason, attempt=attempt, by=by)
        return
    values: dict[str, Any] = {"state": state.value, "version": RunRow.version + 1}
    # A second request to stop says nothing new; what the first one said stands.
    values["reason"] = run.reason if state is run.state and reason is None else reason
    if state is State.QUEUED:
        values |= {"queued_at": now, "finished_at": None}
    if state in TERMINAL:
        values["finished_at"] = now
    if run.started_at is None and state is State.RUNNING:
        values["started_at"] = now
    if run.started_at is None and state is State.SUCCEEDED and run.attempt is not None:
        # It was over before its start was heard of; it did start, and not before it was placed.
        values["started_at"] = run.attempt.started_at
    connection.execute(update(RunRow).where(RunRow.id == run.id).values(**values))
    _append(connection, run.id, event, state, now, reason=reason, attempt=attempt, by=by)


def _append(
    connection: Connection,
    run_id: int,
    event: Event,
    state: State,
    now: datetime,
    *,
    reason: str | None = None,
    attempt: int | None = None,
    by: str | None = None,
) -> None:
    connection.execute(
        insert(EventRow),
        {
            "run_id": run_id,
            "at": now,
            "event": event.value,
            "state": state.value,
            "reason": reason,
            "attempt": attempt,
            "by": by,
        },
    )


def _release(
    connection: Connection, run_id: int, attempt: Attempt, now: datetime, fenced: Mapping[str, datetime]
) -> None:
    mine = update(AllocationRow).where(AllocationRow.run_id == run_id, AllocationRow.attempt == attempt.number)
    connection.execute(mine.where(AllocationRow.node.not_in(list(fenced))).values(released_at=now))
    for node, until in fenced.items():
        connection.execute(mine.where(AllocationRow.node == node).values(fenced_until=until))


def _known(connection: Connection, run_id: int) -> Run:
    run = queries.run_by_id(connection, run_id)
    if run is None:
        raise NoSuchRun(run_id)
    return run
