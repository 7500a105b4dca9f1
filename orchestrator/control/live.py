"""How live runs do at this moment, kept in memory: their newest stretch of steps, and the newest look at each of their GPUs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.control.backend import GpuLook
from orchestrator.control.gpu_usage import GpuUse
from orchestrator.progress.values import GangSample

Key = tuple[int, int]
"""A run and the number of its attempt."""


@dataclass(frozen=True)
class Pace:
    """Of one run, over the last ten seconds or so."""

    samples_per_s: float | None
    step_time: float | None
    """Seconds."""


class Live:
    """Bounded by what is live: an attempt that has ended leaves nothing here."""

    def __init__(self) -> None:
        self._pace: dict[Key, Pace] = {}
        self._gpus: dict[tuple[str, int], tuple[Key, GpuUse]] = {}

    def stepped(self, key: Key, rows: Iterable[GangSample]) -> None:
        for row in rows:
            per_step = (
                row.step_time
                if row.step_time is not None
                else row.measured_ms / 1000 / row.steps
                if row.steps
                else None
            )
            self._pace[key] = Pace(row.samples_per_s, per_step)

    def looked(self, node: str, look: GpuLook) -> None:
        self._gpus[node, look.gpu] = (look.run, look.attempt), look.use

    def ended(self, key: Key) -> None:
        self._pace.pop(key, None)
        for gpu in [gpu for gpu, (of, _) in self._gpus.items() if of == key]:
            del self._gpus[gpu]

    def pace(self, run: int, attempt: int) -> Pace | None:
        return self._pace.get((run, attempt))

    def gpus(self) -> list[tuple[str, int, int, GpuUse]]:
        """(node, GPU, run, newest look) of each GPU that a run has."""
        return [(node, gpu, key[0], use) for (node, gpu), (key, use) in sorted(self._gpus.items())]


def mean(values: Iterable[float | None]) -> float | None:
    """Of those that are known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
