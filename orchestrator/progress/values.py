"""What was measured of an attempt, as values: its progress as a whole, and stretches of its time by gang, rank and GPU.

Times are seconds where nothing else is said. None means that it could not be seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

Source = Literal["auto", "log", "report"]
"""Measured in the ranks, read from rank 0's log, or told by the script itself."""


def patience_ms(step_ms: float) -> int:
    """How long a gang may show nothing and still be taken to work: a validation, a slow batch. 30 s, or ten steps."""
    return max(30_000, int(10 * step_ms))


def ms_of(at: datetime) -> int:
    """Unix milliseconds."""
    return round(at.timestamp() * 1000)


def time_of(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


@dataclass(frozen=True)
class Progress:
    """How far an attempt got, how fast, and what its time went into after its first progress."""

    source: Source = "auto"
    steps: int = 0
    """Of the rank that is ahead; ranks of a gang step together."""
    samples: int | None = None
    """Over all ranks."""
    samples_per_s: float | None = None
    step_time: float | None = None
    """The mean."""
    step_time_p50: float | None = None
    step_time_p99: float | None = None
    rank_time_min: float | None = None
    """A step of the fastest rank: its own work before it waits for others, where that can be told."""
    rank_time_max: float | None = None
    slowest_rank: int | None = None
    data_wait: float | None = None
    """The share of the time, 0 to 1, in which ranks waited for their DataLoader; the mean over ranks."""
    first_step_at: datetime | None = None
    """The first progress: a step, or a batch or report of a script without steps."""
    last_step_at: datetime | None = None
    busy_ms: int = 0
    """Wall-clock time after the first progress in which the gang got on, what is lost later included."""
    save_ms: int = 0
    idle_ms: int = 0
    unsaved_ms: int = 0
    """The part of busy_ms that came after the newest complete checkpoint began."""
    saves: int = 0
    saved_steps: int = 0
    """The steps that the newest complete checkpoint holds; 0 without one."""
    saved_at: datetime | None = None
    resumed: bool | None = None
    """Whether a checkpoint was read before the first step; None before that."""
    repeated_steps: int | None = None
    """Steps of the attempt before that its newest checkpoint did not hold: this attempt does them again."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The newest value of each name that the script reported or its log told."""


@dataclass(frozen=True)
class GangSample:
    """A stretch of an attempt's time, all ranks together."""

    at: datetime
    """Its beginning."""
    seconds: int
    measured_ms: int
    """How much of it was measured: rates are per this time."""
    steps: int
    samples: int | None = None
    step_time: float | None = None
    step_time_p50: float | None = None
    step_time_p99: float | None = None
    rank_time_min: float | None = None
    rank_time_max: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def samples_per_s(self) -> float | None:
        return None if self.samples is None or not self.measured_ms else self.samples * 1000 / self.measured_ms


@dataclass(frozen=True)
class RankSample:
    """A stretch of one rank's time."""

    rank: int
    at: datetime
    seconds: int
    measured_ms: int
    steps: int
    samples: int | None = None
    step_time: float | None = None
    own_time: float | None = None
    """A step's own work of the rank, before it waits for others."""
    data_wait_ms: int = 0


@dataclass(frozen=True)
class GpuSample:
    """A stretch of one GPU's time while a run had it."""

    node: str
    gpu: int
    at: datetime
    seconds: int
    looks: int
    """How many looks the means are made of."""
    utilization: float | None = None
    """Percent of the time in which a kernel ran."""
    memory_mib: float | None = None
    """The most that was in use."""
    power_w: float | None = None
    temperature_c: float | None = None
    """The highest."""
    sm_clock_mhz: float | None = None
    throttled: float | None = None
    """The share of the looks, 0 to 1, that found it slowed down by heat, power or hardware."""
    throttled_by: tuple[str, ...] = ()
