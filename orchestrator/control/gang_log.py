"""What a gang's log has told of its progress, by the job's `throughput:` patterns: means, totals, when which step came. Pure."""

from __future__ import annotations

from collections import deque

from orchestrator.control.progress_kind import count_of
from orchestrator.control.rank_progress import RankProgress


class GangLog:
    """All that rank 0's log has told in one attempt, look by look."""

    def __init__(self) -> None:
        self._read_to = 0
        self._first: tuple[int, dict[str, float]] | None = None
        self._total = 0, 0.0
        """When `samples_total` was last told, and what."""
        self._sums: dict[str, tuple[float, int]] = {}
        self._counts: deque[tuple[int, int]] = deque(maxlen=256)
        """When the log told of which step, newest last: a rank's file does not say how many lines a save came after."""

    @property
    def tells_speed(self) -> bool:
        return bool(self._sums.keys() & {"samples", "samples_total", "tokens"})

    def read(self, look: RankProgress, told_at: int) -> None:
        """Takes in what is new in the look; `told_at` is its `logged_at` by the wall's clock, in nanoseconds."""
        if look.logged_at <= self._read_to:
            return
        self._read_to = look.logged_at
        if self._first is None:
            self._first = look.logged_at, look.logged
        # An agent that takes the part over has not read what came before it.
        if "samples_total" in look.logged:
            self._total = look.logged_at, look.logged["samples_total"]
        self._counts.append((told_at, count_of(look, "log")))
        for name, value in look.logged.items():
            total, looks = self._sums.get(name, (0.0, 0))
            self._sums[name] = total + value, looks + 1

    def count_at(self, at: int) -> int:
        """The step that it had told of last at that time, in nanoseconds of the wall's clock."""
        told = [count for told_at, count in self._counts if told_at <= at]
        return told[-1] if told else 0

    def mean(self, name: str) -> float | None:
        """The mean of all values that were seen."""
        if name not in self._sums:
            return None
        total, looks = self._sums[name]
        return total / looks

    def rate(self) -> float | None:
        """Samples a second: as it says itself, or else by how their total has grown."""
        if (said := self.mean("samples")) is not None or self._first is None or "samples_total" not in self._sums:
            return said
        (first_at, first), (at, total) = self._first, self._total
        if at <= first_at:
            return None
        return (total - first.get("samples_total", 0)) * 1e9 / (at - first_at)
