"""Who may write, and what is one transaction: the epoch, the group that shares a commit, and what a write has done so far.

One writer at a time: `claim_epoch` makes this one the one that the database obeys, and each write checks in its own
transaction that it still is. A write that returned has been committed to disk; a write that raised changed nothing.
Whoever writes keeps what has not ended in memory (book.py), so that a change of a run costs no question first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import partial

from sqlalchemy import Connection, select, update
from sqlalchemy.exc import IntegrityError

from orchestrator.history import queries, summaries
from orchestrator.history.book import Book, Changes, Gpu, Hold
from orchestrator.history.database import Database
from orchestrator.history.errors import (
    DatabaseBusy,
    DatabaseDamaged,
    DatabaseUnreachable,
    GroupUndone,
    NoSuchRun,
    StaleEpoch,
)
from orchestrator.history.models import ControlRow
from orchestrator.history.reads import Reads
from orchestrator.history.rows import Rows
from orchestrator.scheduling.run import Run

_CONTROL = select(ControlRow.epoch, ControlRow.owner).with_for_update()


class Writer(Reads):
    """What every write stands on. Safe to use from several threads. Every method may raise a StoreError."""

    def __init__(self, database: Database, readonly: bool) -> None:
        super().__init__(database)
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

    @property
    def in_doubt(self) -> bool:
        """Whether a write that failed may be on disk all the same; the next one, whatever it is, finds that out."""
        return self._doubted is not None

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

    def book(self) -> Book:
        """What has not ended, with arrays and allocations: for whoever follows `on_change` from here on."""
        with self._one_writer, self._database.read() as connection:
            return queries.book(connection)

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
