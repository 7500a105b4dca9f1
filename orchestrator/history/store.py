"""The controller's memory, open: what happens to runs and GPUs (run_writes.py, gpu_writes.py), to nodes, and what may be forgotten.

How it is written is writer.py's, what can be asked of it reads.py's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Self

from orchestrator.bench.results import Bench
from orchestrator.bench.trial import Kept
from orchestrator.health.marks import Mark
from orchestrator.history import benches, nodes, retention, trials
from orchestrator.history.database import BUSY_TIMEOUT_S, open_database
from orchestrator.history.gpu_writes import GpuWrites
from orchestrator.history.nodes import NodeEvent
from orchestrator.history.run_writes import RunWrites
from orchestrator.scheduling.run import NodeRecord


class Store(RunWrites, GpuWrites):
    """The history, open. Safe to use from several threads. Every method may raise a StoreError."""

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

    def upsert_nodes(self, found: Sequence[NodeRecord]) -> None:
        """Records what is known of nodes now; when each was first seen stays as it was."""
        with self._write() as connection:
            nodes.upsert(connection, found)

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

    def expire_node_events(self, before: datetime, most: int) -> int:
        """Deletes up to `most` of what happened to nodes before `before`; how often it happened stays in the sums."""
        with self._write() as connection:
            return nodes.expire_events(connection, before, most)

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
