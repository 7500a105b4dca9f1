"""How a series ages: which stretches of it are kept in which detail, and how short rows become longer ones. Pure.

Rows of one attempt do not overlap, so whoever reads takes them all, in order. The size that follows is bounded: a run
of a week keeps 360 + 1,380 + 864 rows of its gang, and 60 + 138 + 144 of each rank and GPU (tested).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import TypeVar

from orchestrator.progress.values import GangSample, GpuSample, RankSample

S = TypeVar("S", GangSample, RankSample, GpuSample)


@dataclass(frozen=True)
class Detail:
    """How long rows of each length are kept, while the attempt lives; the last length is for good."""

    lengths: tuple[int, ...]
    """Seconds of a row, shortest first."""
    kept: tuple[float, ...]
    """Seconds that rows of each length but the last are kept in it."""
    whole: tuple[float, ...]
    """Seconds that an attempt may have lasted to be kept whole in each length but the last, once it has ended."""

    def due(self, began: datetime, now: datetime, ended: datetime | None) -> Iterator[tuple[int, datetime]]:
        """What is to be folded: into rows of how many seconds, all shorter rows from before when."""
        for length, kept, whole in zip(self.lengths[1:], self.kept, self.whole, strict=True):
            if ended is not None:
                if (ended - began).total_seconds() > whole:
                    yield length, ended + timedelta(days=1)
            else:
                before = now.timestamp() - kept
                # Only whole rows: the rest of one would come too late.
                yield length, datetime.fromtimestamp(before - before % length, UTC)


HOUR, DAY = 3600.0, 86400.0
DETAIL = {
    "gang_samples": Detail((10, 60, 600), (HOUR, DAY), (HOUR, 6 * HOUR)),
    "rank_samples": Detail((60, 600, 3600), (HOUR, DAY), (HOUR, 6 * HOUR)),
    "gpu_samples": Detail((60, 600, 3600), (HOUR, DAY), (HOUR, 6 * HOUR)),
}


def _stretches(samples: Iterable[S], seconds: int, of: Callable[[S], object]) -> Iterator[list[S]]:
    """The samples that become one row each: of the same thing, and of the same stretch of the clock."""
    ordered = sorted(samples, key=lambda one: (repr(of(one)), one.at))
    for _, group in groupby(ordered, key=lambda one: (of(one), int(one.at.timestamp()) // seconds)):
        yield list(group)


def _mean(values: Iterable[tuple[float | None, float]]) -> float | None:
    """Weighted, of those that are there."""
    known = [(value, weight) for value, weight in values if value is not None and weight > 0]
    weights = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / weights if weights else None


def _sum(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def fold_gang(samples: Sequence[GangSample], seconds: int) -> list[GangSample]:
    """Longer rows: counts add up, times are means by steps, the 99th percentile and the slowest rank stay the worst."""
    folded = []
    for group in _stretches(samples, seconds, lambda one: None):
        metrics: dict[str, float] = {}
        for one in group:
            metrics |= one.metrics
        folded.append(
            GangSample(
                group[0].at,
                seconds,
                sum(one.measured_ms for one in group),
                sum(one.steps for one in group),
                _sum(one.samples for one in group),
                _mean((one.step_time, one.steps) for one in group),
                _mean((one.step_time_p50, one.steps) for one in group),
                _most(one.step_time_p99 for one in group),
                _mean((one.rank_time_min, one.steps) for one in group),
                _mean((one.rank_time_max, one.steps) for one in group),
                metrics,
            )
        )
    return folded


def fold_ranks(samples: Sequence[RankSample], seconds: int) -> list[RankSample]:
    return [
        RankSample(
            group[0].rank,
            group[0].at,
            seconds,
            sum(one.measured_ms for one in group),
            sum(one.steps for one in group),
            _sum(one.samples for one in group),
            _mean((one.step_time, one.steps) for one in group),
            _mean((one.own_time, one.steps) for one in group),
            sum(one.data_wait_ms for one in group),
        )
        for group in _stretches(samples, seconds, lambda one: one.rank)
    ]


def fold_gpus(samples: Sequence[GpuSample], seconds: int) -> list[GpuSample]:
    return [
        replace(
            group[0],
            seconds=seconds,
            looks=sum(one.looks for one in group),
            utilization=_mean((one.utilization, one.looks) for one in group),
            memory_mib=_most(one.memory_mib for one in group),
            power_w=_mean((one.power_w, one.looks) for one in group),
            temperature_c=_most(one.temperature_c for one in group),
            sm_clock_mhz=_mean((one.sm_clock_mhz, one.looks) for one in group),
            throttled=_mean((one.throttled, one.looks) for one in group),
            throttled_by=tuple(sorted({why for one in group for why in one.throttled_by})),
        )
        for group in _stretches(samples, seconds, lambda one: (one.node, one.gpu))
    ]
