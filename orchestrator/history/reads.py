"""What does the history know? Every question to it, each answered from one consistent view of the database."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select

from orchestrator.array import Ref
from orchestrator.bench.results import Bench
from orchestrator.bench.trial import Kept
from orchestrator.health.marks import Mark
from orchestrator.history import (
    benches,
    compare,
    export,
    groups,
    listing,
    measurements,
    nodes,
    pictured,
    queries,
    retention,
    trials,
)
from orchestrator.history.benches import BenchFilter
from orchestrator.history.database import Database
from orchestrator.history.errors import NoSuchRun
from orchestrator.history.filters import RunFilter
from orchestrator.history.ledger import Scale, scaling
from orchestrator.history.models import AllocationRow
from orchestrator.history.nodes import Broken, NodeEvent
from orchestrator.history.submit import resolve, submitted
from orchestrator.scheduling.lifecycle import IllegalTransition, State, replay
from orchestrator.scheduling.run import Array, Dependency, NewRun, NodeRecord, Run
from orchestrator.scheduling.snapshot import Pace


class Reads:
    """The questions. Safe to use from several threads. Every method may raise a StoreError."""

    def __init__(self, database: Database) -> None:
        self._database = database

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

    def paces(self, attempts: int) -> list[Pace]:
        """How fast the latest so many attempts were that have ended and whose steps were seen, the latest first."""
        with self._database.read() as connection:
            return queries.paces(connection, attempts)

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
