"""What has been: who used how many GPUs, as fair share counts it, how long runs of a name took, and how fast by placement.

Kept up as attempts end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from datetime import timedelta
from statistics import median

from orchestrator.control.runtime import Runtime
from orchestrator.scheduling.fairness import Ledger, Use
from orchestrator.scheduling.lifecycle import Outcome
from orchestrator.scheduling.run import Attempt, Run
from orchestrator.scheduling.snapshot import Alike, Pace, pace_of

HALF_LIVES = 10
"""What is older counts less than a thousandth."""
KEPT = 20
"""Durations of one name."""
READ = 5000
"""Successful runs that are looked at when a controller starts."""


class Past:
    """Read from the database once; after that, each attempt that ends is entered."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.ledger = Ledger()
        self._took: dict[tuple[str, str], deque[float]] = {}
        self._steps: dict[Alike, dict[str, deque[float]]] = {}
        self._live: dict[int, Attempt] = {}

    async def load(self) -> None:
        """Raises StoreError."""
        runtime, policy = self._runtime, self._runtime.settings.policy
        now = runtime.now()
        since = now - timedelta(seconds=HALF_LIVES * policy.half_life)
        rows = await runtime.read(runtime.store.uses, since)
        uses = [Use((policy.team_of(row.team), row.user), row.gpus, row.start, row.end) for row in rows]
        self.ledger = Ledger().charged(uses, policy.half_life, now)
        for key, took in (await runtime.read(runtime.store.durations, READ)).items():
            self._took[key] = deque(reversed(took[:KEPT]), KEPT)
        for pace in reversed(await runtime.read(runtime.store.paces, READ)):
            self._enter(pace)
        self._live = {run.id: run.attempt for run in runtime.book.live() if run.attempt is not None}

    @property
    def durations(self) -> dict[tuple[str, str], Sequence[float]]:
        """By user and name, seconds that its latest successful runs took."""
        return {key: tuple(took) for key, took in self._took.items()}

    @property
    def speeds(self) -> dict[Alike, dict[str, float]]:
        """Seconds a step took runs that are alike, by the level of their placement: the median of their latest attempts."""
        return {
            key: {level: median(steps) for level, steps in levels.items()}
            for key, levels in self._steps.items()
            if len(levels) > 1
        }

    def follow(self, runs: Iterable[Run]) -> None:
        """Takes in runs as they were just committed."""
        uses = []
        for run in runs:
            attempt = run.attempt
            if run.live and attempt is not None:
                self._live[run.id] = attempt
            elif (
                (was := self._live.pop(run.id, None)) is not None
                and attempt is not None
                and attempt.number == was.number
            ):
                uses.append(self._ended(run, attempt))
        if uses:
            self.ledger = self.ledger.charged(uses, self._runtime.settings.policy.half_life, self._runtime.now())

    def _ended(self, run: Run, attempt: Attempt) -> Use:
        """Enters how long it took, and how fast it was; what it used."""
        policy, end = self._runtime.settings.policy, attempt.ended_at
        assert end is not None
        if (pace := pace_of(run, attempt)) is not None:
            self._enter(pace)
        if attempt.outcome is Outcome.SUCCEEDED:
            began = attempt.ranks_started_at or attempt.started_at
            took = self._took.setdefault((run.user, run.name), deque(maxlen=KEPT))
            took.append((end - began).total_seconds())
        account = (policy.team_of(run.spec.team), run.user)
        return Use(account, attempt.placement.world_size, attempt.started_at, end)

    def _enter(self, pace: Pace) -> None:
        levels = self._steps.setdefault(pace.of, {})
        levels.setdefault(pace.level, deque(maxlen=KEPT)).append(pace.step_s)
