"""What happened since this controller started, counted for metrics.py: how attempts ended, how long the scheduler took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

BUCKETS = (0.001, 0.005, 0.02, 0.1, 0.3, 1.0, 5.0)


class Counts:
    """What happened since this controller started: counters may begin anew, as Prometheus expects of them."""

    def __init__(self) -> None:
        self.submissions = 0
        self.attempts: Counter[str] = Counter()
        """Ended attempts, by outcome."""
        self.gpu_seconds: Counter[tuple[str, str]] = Counter()
        """Of runs that have ended, by team and part of the ledger."""
        self._cycles = [0] * (len(BUCKETS) + 1)
        self._cycle_s = 0.0

    def used(self, team: str | None, parts: Mapping[str, float]) -> None:
        """What the GPUs of a run that has ended were used for, in seconds by part."""
        for part, seconds in parts.items():
            self.gpu_seconds[team or "", part] += seconds  # type: ignore[assignment] # seconds need not be whole

    def cycle(self, seconds: float) -> None:
        """One turn of the scheduler."""
        self._cycles[sum(seconds > bound for bound in BUCKETS)] += 1
        self._cycle_s += seconds

    def cycles(self) -> tuple[list[tuple[str, float]], float]:
        """Cumulated by bucket, and the sum of seconds: the form of a histogram."""
        bounds = [*map(str, BUCKETS), "+Inf"]
        return [(bound, sum(self._cycles[: i + 1])) for i, bound in enumerate(bounds)], self._cycle_s
