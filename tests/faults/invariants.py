"""Which rules hold after every fault? One checker for all tests that bring faults about.

    check(Looked(database=url, orch=run_a_command, marked=processes_of_attempts, acknowledged=[1, 2, 3]))

waits for what takes its time (15 s after an attempt's end nothing of it may be left) and raises an AssertionError with
every rule that is broken. It may be called while runs live.
"""

from __future__ import annotations

import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from sqlalchemy import Select, create_engine, select

from orchestrator.history import ledger
from orchestrator.history.filters import RunFilter
from orchestrator.history.models import AllocationRow
from orchestrator.history.store import Store
from orchestrator.scheduling.lifecycle import Outcome
from orchestrator.scheduling.run import Attempt, Run

LEFT_S = 15.0
"""How long after the end of an attempt something of it may be left: processes, GPUs."""
COUNTED_S = 5.0
ANSWER_S = 10.0
EXIT_CODES = frozenset({0, 1, 2, 3, 4, 5, 6, 7, 8, 124, 130, 141})
"""docs/cli.md."""


@dataclass(frozen=True)
class Marked:
    """A living process that has an attempt's mark."""

    host: str
    run: int
    attempt: int
    pid: int


class Command(Protocol):
    """Runs `orch ...`. Raises an exception where it takes longer than `timeout` seconds."""

    def __call__(self, *argv: object, timeout: float) -> subprocess.CompletedProcess[str]: ...


@dataclass(frozen=True)
class Looked:
    """What is looked at."""

    database: str
    """Its URL as this process reaches it."""
    orch: Command
    marked: Callable[[], Iterable[Marked]]
    """The processes on every host that can be reached."""
    acknowledged: Sequence[int] = field(default_factory=list)
    """The runs whose ids `orch submit` has printed."""
    idle: bool = False
    """Whether every run should be over: then every GPU is free."""


def check(looked: Looked) -> None:
    """Raises AssertionError with the rules that are broken."""
    with closing(Store.open(looked.database, readonly=True)) as store:
        broken = list(_left(looked, store))
        runs = _runs(store)
        broken += _lost(looked.acknowledged, runs)
        for run in runs.values():
            broken += [*_history(run), *_causes(run), *_times(run)]
            if not store.verify(run.id):
                broken.append(f"run {run.id}: its events, replayed, do not lead to its state")
        broken += _sums(looked.database, store, runs)
        if looked.idle:
            broken += [f"run {run.id} has not ended: {run.state}" for run in runs.values() if not run.ended]
            broken += [f"{node} is not free: {held}" for node, held in store.busy().items()]
    broken += _commands(looked.orch, max(runs, default=1))
    assert not broken, "\n".join(broken)


def _runs(store: Store) -> dict[int, Run]:
    found = sorted(run.id for run in store.runs(RunFilter()))
    return {run: whole for run in found if (whole := store.get(run)) is not None}


# -- no acknowledged run is lost -----------------------------------------------------------------------------------


def _lost(acknowledged: Iterable[int], runs: dict[int, Run]) -> Iterator[str]:
    for run in acknowledged:
        if run not in runs:
            yield f"run {run} was acknowledged and is not there"


# -- one set of ranks per run at a time, nothing left of an attempt that has ended ------------------------------------


def _left(looked: Looked, store: Store) -> Iterator[str]:
    """Looks until nothing is left of attempts that have ended, or one has ended too long ago for that."""
    while True:
        runs = _runs(store)
        now = datetime.now(UTC)
        ended = {
            (run.id, one.number): one.ended_at
            for run in runs.values()
            for one in run.attempts
            if one.ended_at is not None
        }
        by_run: dict[int, set[int]] = defaultdict(set)
        left: dict[tuple[int, int], str] = {}
        for one in looked.marked():
            by_run[one.run].add(one.attempt)
            if one.attempt < 1:
                continue  # a trial of links
            if (one.run, one.attempt) in ended:
                left[one.run, one.attempt] = f"process {one.pid} on {one.host}"
            elif one.run not in runs or all(a.number != one.attempt for a in runs[one.run].attempts):
                yield f"process {one.pid} on {one.host} is of attempt {one.run}.{one.attempt}, of which nobody knows"
        for run, attempts in by_run.items():
            if len({attempt for attempt in attempts if attempt > 0}) > 1:
                yield f"run {run}: attempts {sorted(attempts)} live at once"
        for key, what in _held(looked.database, ended, now):
            left[key] = what
        late = {key: what for key, what in left.items() if now - ended[key] > timedelta(seconds=LEFT_S)}
        for (run, attempt), what in late.items():
            yield f"attempt {run}.{attempt} ended {now - ended[run, attempt]} ago and left {what}"
        if late or not left:
            return
        time.sleep(0.2)


def _held(
    database: str, ended: dict[tuple[int, int], datetime], now: datetime
) -> Iterator[tuple[tuple[int, int], str]]:
    """What attempts that have ended hold, but for what is fenced and may live until then."""
    columns = (AllocationRow.run_id, AllocationRow.attempt, AllocationRow.node, AllocationRow.gpu)
    held = _rows(database, select(*columns, AllocationRow.fenced_until).where(AllocationRow.released_at.is_(None)))
    for row in held:
        fenced = row.fenced_until is not None and now < row.fenced_until + timedelta(seconds=1)
        if (row.run_id, row.attempt) in ended and not fenced:
            yield (row.run_id, row.attempt), f"{row.node}'s GPU {row.gpu} held"


# -- what is recorded ----------------------------------------------------------------------------------------------


def _history(run: Run) -> Iterator[str]:
    live = [one.number for one in run.attempts if one.ended_at is None]
    if live and (len(live) > 1 or run.ended):
        yield f"run {run.id} is {run.state} with attempts {live} not ended"
    if [one.number for one in run.attempts] != list(range(1, len(run.attempts) + 1)):
        yield f"run {run.id}: attempts {[one.number for one in run.attempts]}"


def _causes(run: Run) -> Iterator[str]:
    """The end of an attempt that broke has a cause: what, and where or who as far as that can be known."""
    for one in run.attempts:
        if one.outcome not in (Outcome.USER_ERROR, Outcome.INFRA_ERROR):
            continue
        if one.failure is None or not one.failure.kind or not one.failure.message:
            yield f"attempt {run.id}.{one.number} is of outcome {one.outcome} and has no cause"
        elif one.failure.kind in ("signal", "exit") and (one.failure.rank is None or one.failure.node is None):
            yield f"attempt {run.id}.{one.number}: {one.failure.kind} of nobody"


def _times(run: Run) -> Iterator[str]:
    before: Attempt | None = None
    for one in run.attempts:
        if one.ended_at is not None and one.ended_at < one.started_at:
            yield f"attempt {run.id}.{one.number} ended before it started"
        if before is not None and (before.ended_at is None or one.started_at < before.ended_at):
            yield f"attempt {run.id}.{one.number} started before the one before it had ended"
        before = one


def _sums(database: str, store: Store, runs: dict[int, Run]) -> Iterator[str]:
    """The GPU time that is counted of a run that is over is what was held, from each allocation to its release."""
    deadline = time.monotonic() + COUNTED_S
    left = [run for run in runs.values() if run.ended]
    while True:
        held = _held_ms(database)
        wrong = {}
        for run in left:
            counted, (took, rows) = ledger.gpu_time(run).allocated, held.get(run.id, (0, 0))
            # Each of the times is rounded to the millisecond.
            if took is not None and abs(counted - took) > 2 * rows:
                wrong[run.id] = f"run {run.id}: {counted} ms of GPUs are counted, {took} were held"
        if not wrong or time.monotonic() > deadline:
            yield from wrong.values()
            return
        time.sleep(0.2)
        left = [run for one in wrong if (run := store.get(one)) is not None]


def _held_ms(database: str) -> dict[int, tuple[int | None, int]]:
    """By run: for how many GPU-milliseconds it held GPUs, and in how many rows; None where it holds some still."""
    found: dict[int, tuple[int | None, int]] = {}
    columns = (AllocationRow.run_id, AllocationRow.since, AllocationRow.released_at)
    for row in _rows(database, select(*columns)):
        took, rows = found.get(row.run_id, (0, 0))
        open_still = took is None or row.released_at is None
        found[row.run_id] = (None if open_still else took + ledger.milliseconds(row.released_at - row.since), rows + 1)
    return found


def _rows(database: str, statement: Select[Any]) -> Sequence[Any]:
    engine = create_engine(database)
    try:
        with engine.connect() as connection:
            return connection.execute(statement).all()
    finally:
        engine.dispose()


# -- commands answer -----------------------------------------------------------------------------------------------


def _commands(orch: Command, run: int) -> Iterator[str]:
    for argv in (("ps", "--all"), ("runs",), ("show", run), ("why", run), ("nodes",), ("status",)):
        said = " ".join(map(str, argv))
        began = time.monotonic()
        try:
            done = orch(*argv, timeout=2 * ANSWER_S)
        except Exception as error:
            yield f"orch {said}: {error}"
            continue
        took = time.monotonic() - began
        if took > ANSWER_S:
            yield f"orch {said} took {took:.1f} s"
        # On standard output a run's own may be shown.
        if "Traceback" in done.stderr:
            yield f"orch {said} prints a traceback: {done.stderr[-500:]}"
        if done.returncode not in EXIT_CODES:
            yield f"orch {said} ended with {done.returncode}"


def one_writer(steps: dict[int, dict[int, list[tuple[int, float]]]]) -> None:
    """Of a run's steps by attempt and rank, each with its time: no attempt took one after the next had begun, and each went on
    from where the one before was at most. Raises AssertionError."""
    for before, after in zip(sorted(steps), sorted(steps)[1:], strict=False):
        last = max((taken[-1] for taken in steps[before].values() if taken), key=lambda one: one[1], default=None)
        first = min((taken[0] for taken in steps[after].values() if taken), key=lambda one: one[1], default=None)
        if last is not None and first is not None:
            assert last[1] < first[1], (
                f"attempt {before} took a step {last[1] - first[1]:.2f} s after {after} had begun"
            )
            assert first[0] <= last[0] + 1, f"attempt {after} began with step {first[0]} after step {last[0]}"
