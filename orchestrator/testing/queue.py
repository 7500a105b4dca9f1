"""A cluster and its queue on a clock of its own: whole days of scheduling in a second, for tests.

It does with a plan what the controller does: starts runs, stops those that give way after their grace, ends those that are over
their time limit, and looks again when it was told to.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from orchestrator.placement.tree import Free, Topology
from orchestrator.placement.values import Placement
from orchestrator.policy import Policy
from orchestrator.scheduling.decision import Plan
from orchestrator.scheduling.fairness import Ledger, Use
from orchestrator.scheduling.lifecycle import Outcome, State
from orchestrator.scheduling.memory import Memory
from orchestrator.scheduling.plan import plan
from orchestrator.scheduling.quota import account_of
from orchestrator.scheduling.run import Attempt, Run
from orchestrator.scheduling.snapshot import Block, BlockKind, Snapshot
from orchestrator.scheduling.suggestions import Suggestion, changed, without
from orchestrator.testing import START, a_run

NOBODY = a_run(0)


@dataclass
class Queue:
    """Runs that come, start and end; `after_plan` is called with every decision before it is carried out."""

    topology: Topology
    policy: Policy = field(default_factory=Policy)
    after_plan: Callable[[Queue, Snapshot, Plan], None] = lambda queue, snapshot, decided: None
    history: Mapping[tuple[str, str], Sequence[float]] = field(default_factory=dict)
    decide: Callable[[Snapshot, datetime, Memory | None], Plan] = plan
    unfit: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    """By run: the nodes that it must not get."""

    def __post_init__(self) -> None:
        self.now = START
        self.free = Free(self.topology)
        self.waiting: dict[int, Run] = {}
        self.running: dict[int, Run] = {}
        self.started_at: dict[int, datetime] = {}
        """When each run first started."""
        self.ended: dict[int, datetime] = {}
        self.preempted: list[int] = []
        self.durations: dict[int, float] = {}
        """Seconds that each run really takes."""
        self.usage = Ledger()
        self.memory: Memory | None = None
        self._blocked: dict[int, Block] = {}
        self._ending: dict[int, datetime] = {}
        self._tick = itertools.count()
        self._due: list[tuple[datetime, int, str, Run]] = []

    def submit(self, run: Run, duration: float, at: float = 0.0) -> None:
        """A run that comes `at` seconds after the start and takes `duration` seconds."""
        when = START + timedelta(seconds=at)
        self.durations[run.id] = duration
        self._later(when, "submit", replace(run, submitted_at=when, queued_at=when))

    def block(self, run: Run, kind: BlockKind, seconds: float) -> None:
        """The run may not start before so many seconds after the start."""
        until = START + timedelta(seconds=seconds)
        self._blocked[run.id] = Block(kind, "kept back by the test", until)
        self._later(until, "unblock", run)

    def close(self, node: str, at: float, seconds: float) -> None:
        """The node takes nothing new for so long; what runs there goes on."""
        when = START + timedelta(seconds=at)
        self._later(when, f"close {node}", NOBODY)
        self._later(when + timedelta(seconds=seconds), f"open {node}", NOBODY)

    def run_until(self, seconds: float) -> None:
        """Goes on until so many seconds after the start, or until nothing is left to happen."""
        end = START + timedelta(seconds=seconds)
        while self._due and self._due[0][0] <= end:
            self.now = self._due[0][0]
            while self._due and self._due[0][0] == self.now:
                _, _, what, run = heapq.heappop(self._due)
                self._happen(what, run)
            self._decide()

    def snapshot(self) -> Snapshot:
        return Snapshot(
            tuple(self.waiting.values()),
            self.free,
            tuple(self.running.values()),
            dict(self._blocked),
            self.unfit,
            ending=dict(self._ending),
            history=self.history,
            usage=self.usage,
            policy=self.policy,
        )

    def _later(self, when: datetime, what: str, run: Run) -> None:
        heapq.heappush(self._due, (when, next(self._tick), what, run))

    def _happen(self, what: str, run: Run) -> None:
        if what == "submit":
            self.waiting[run.id] = run
        elif what == "unblock":
            self._blocked.pop(run.id, None)
        elif what.startswith(("close ", "open ")):
            word, name = what.split()
            self.free.set_usable(name, () if word == "close" else None, "closed" if word == "close" else None)
        elif what == "end" and (live := self.running.get(run.id)) is not None and live.attempt == run.attempt:
            self._end(live)

    def _end(self, run: Run) -> None:
        attempt = run.attempt
        assert attempt is not None
        del self.running[run.id]
        for part in attempt.placement.nodes:
            self.free.give(part.node, part.gpus)
        use = Use(account_of(run, self.policy), run.spec.workers.total, attempt.started_at, self.now)
        self.usage = self.usage.charged([use], self.policy.half_life, self.now)
        if self._ending.pop(run.id, None) is None:
            self.ended[run.id] = self.now
            return
        ended = replace(attempt, ended_at=self.now, outcome=Outcome.PREEMPTED)
        self.waiting[run.id] = replace(run, state=State.QUEUED, attempts=(*run.attempts[:-1], ended))

    def _decide(self) -> None:
        while True:
            snapshot = self.snapshot()
            decided = self.decide(snapshot, self.now, self.memory)
            self.memory = decided.memory
            self.after_plan(self, snapshot, decided)
            for start in decided.starts:
                self._start(start.run, start.placement)
            for preemption in decided.preemptions:
                run = self.running[preemption.run.id]
                gone = self.now + timedelta(seconds=run.spec.grace)
                self._ending[run.id] = gone
                self.preempted.append(run.id)
                self._later(gone, "end", run)
            if decided.look_again_s != 0:
                break
        if decided.look_again_s is not None and self.waiting:
            self._later(self.now + timedelta(seconds=decided.look_again_s), "look", next(iter(self.waiting.values())))

    def _start(self, run: Run, placement: Placement) -> None:
        del self.waiting[run.id]
        for part in placement.nodes:
            self.free.take(part.node, part.gpus)
        attempt = Attempt(len(run.attempts) + 1, placement, self.now, ranks_started_at=self.now)
        live = replace(run, state=State.RUNNING, attempts=(*run.attempts, attempt))
        self.running[run.id] = live
        self.started_at.setdefault(run.id, self.now)
        limit = run.spec.time_limit
        took = self.durations[run.id]
        seconds = took if limit is None else min(took, limit + run.spec.grace)
        self._later(self.now + timedelta(seconds=seconds), "end", live)


def applied(snapshot: Snapshot, run_id: int, suggestion: Suggestion, now: datetime) -> Snapshot:
    """The snapshot after the suggestion was followed."""
    if suggestion.ends is not None:
        return without(snapshot, suggestion.ends, now)
    waiting = tuple(changed(run, suggestion.changes) if run.id == run_id else run for run in snapshot.waiting)
    return replace(snapshot, waiting=waiting)
