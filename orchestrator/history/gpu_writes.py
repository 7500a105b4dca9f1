"""What GPU time was used for, and which GPUs are still held: measured, counted, fenced and freed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select, update

from orchestrator.history import measurements, moves, summaries
from orchestrator.history.measurements import Key, Measured
from orchestrator.history.models import AllocationRow
from orchestrator.history.writer import Writer
from orchestrator.progress.gpu_time import NodeTime
from orchestrator.scheduling.run import Run


class GpuWrites(Writer):
    """The writes about GPUs and their time. Every method may raise a StoreError."""

    def measure(self, taken: Sequence[Measured], now: datetime) -> None:
        """Records what was measured of live attempts since the last time, and counts their GPU time anew."""
        with self._write() as connection:
            measurements.record(connection, taken, now)
            measurements.fold(connection, {(one.run, one.attempt) for one in taken}, now, ended=None)
            runs = {one.run: self._run(connection, one.run) for one in taken}
            for one in taken:
                if one.progress is not None:
                    runs[one.run] = moves.with_attempt(runs[one.run], one.attempt, progress=one.progress)
            counted = {one.run for one in taken if one.count}
            self._changes.runs |= runs
            times = self._recount(connection, [run for run in runs.values() if run.id in counted], now)
            self._changes.runs |= {run: measurements.with_times(runs[run], times) for run in counted}

    def count(self, runs: Sequence[Run], now: datetime) -> None:
        """Counts the GPU time of runs of which an attempt has ended, as `finish` gave them, and shortens their series."""
        with self._write() as connection:
            ended = {
                (run.id, run.attempts[-1].number)
                for run in runs
                if run.attempts and run.attempts[-1].progress is not None
            }
            measurements.fold(connection, ended, now, ended=now)
            self._recount(connection, runs, now)

    def count_missed(self, now: datetime) -> int:
        """Counts what a controller that was killed left uncounted: attempts that ended after their GPU time was; how many."""
        with self._write() as connection:
            missed = measurements.uncounted(connection)
            self._recount(connection, [self._run(connection, run) for run in missed], now)
            return len(missed)

    def _recount(self, connection: Connection, runs: Sequence[Run], now: datetime) -> dict[Key, dict[str, NodeTime]]:
        """Counts the runs' GPU time anew, by attempt and node, and the summaries of those of which an attempt has ended."""
        over = [run for run in runs if any(attempt.ended_at for attempt in run.attempts)]
        # As they are now: one may have been queued again since.
        with summaries.recounting(connection, [self._open(run.id) or run for run in over]):
            return measurements.recount(connection, runs, now, self.prices) if runs else {}

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
            self._recount(connection, [self._run(connection, run) for run in sorted({row.run_id for row in rows})], now)
            return len(rows)
