"""How far a gang is and what its time went into, from looks at its ranks. Pure.

A gang gets on when one of its ranks does: ranks that train together stop together. What counts as getting on is what
the script shows: optimizer steps; or else its own reports; or else batches, once there are so many that a first step
would have come; or else lines that its `throughput:` patterns found. Where there is none of these, its saves still say at the
attempt's end what of its time was kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from statistics import median

from orchestrator.control.gang_log import GangLog
from orchestrator.control.gang_series import GangSeries, metrics_of
from orchestrator.control.progress_kind import (
    Kind,
    count_of,
    first_at,
    mean_step,
    newest_at,
    own_time,
    samples_of,
    saved_count,
    was_read,
    without_waiting,
)
from orchestrator.control.rank_progress import RankProgress
from orchestrator.health.standstill import Signs
from orchestrator.progress.histogram import merged, quantile
from orchestrator.progress.values import GangSample, Progress, RankSample, Source, ms_of, patience_ms, time_of

STEPLESS_BATCHES = 10
"""So many batches without any step are those of a script that has no optimizer steps to see."""


@dataclass
class _Rank:
    look: RankProgress
    offset: int
    """Wall-clock nanoseconds minus the node's monotonic ones: the least that was seen, as a report only comes late."""
    timed: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=64))
    """The latest times that DDP told of a step: its compute before the all-reduces, and these, in nanoseconds."""
    pause: int = 0
    """The longest time between two signs of progress, in nanoseconds."""

    def wall(self, at: int) -> int:
        return at + self.offset

    @property
    def own_time(self) -> float | None:
        """A step's own work in seconds, by DDP's medians, as the first steps take longer; None where there is no DDP."""
        if not self.timed:
            return None
        own, reducing = (median(times) for times in zip(*self.timed, strict=True))
        return without_waiting(mean_step(self.look, "steps"), own, reducing)


class GangProgress:
    """One attempt's progress, from its first look to its end."""

    def __init__(self, before: Progress | None = None, previous: Progress | None = None) -> None:
        """`before` is what a controller before this one had recorded of it, `previous` that of the run's attempt before."""
        self._ranks: dict[int, _Rank] = {}
        self._previous = previous
        self._kind: Kind | None = None
        before = before or Progress()
        self._first_ms = _ms(before.first_step_at)
        self._counted_to = _ms(before.last_step_at)
        self._busy, self._save, self._idle = before.busy_ms, before.save_ms, before.idle_ms
        self._resumed = before.resumed
        # Breakpoints of (count, busy): when a checkpoint is complete, they say how much work it holds.
        self._path = [(before.saved_steps, before.busy_ms - before.unsaved_ms), (before.steps, before.busy_ms)]
        self._saved_busy = before.busy_ms - before.unsaved_ms
        self._saved_count, self._saves, self._saved_ms = before.saved_steps, before.saves, _ms(before.saved_at)
        self._save_seen: dict[int, int] = {}
        self._adopted = before.save_ms if before.first_step_at else None
        self._log = GangLog()
        self._series = GangSeries()
        self._over = False

    @property
    def began(self) -> bool:
        """Whether any progress was seen."""
        return self._first_ms is not None

    @property
    def looks(self) -> dict[int, RankProgress]:
        """The newest look at each rank that has shown anything."""
        return {number: rank.look for number, rank in self._ranks.items()}

    def signs(self, least: float = 0.0) -> list[Signs]:
        """How old each rank's newest sign of progress was at its newest look; nothing where one of them is younger than `least`.

        That is the usual case, and needs no rank's step times to be gone through.
        """
        looks = (rank.look for rank in self._ranks.values())
        if any(look.at - (look.sign_at or max(look.began_at, look.printed_at)) < least * 1e9 for look in looks):
            return []
        return [
            Signs(
                number,
                lived=(look.at - look.began_at) / 1e9 if look.began_at else 0.0,
                still=(look.at - look.sign_at) / 1e9 if look.sign_at else None,
                quiet=(look.at - look.printed_at) / 1e9 if look.printed_at else None,
                saving=look.saving,
                p99=quantile(look.step_times, 0.99),
                pause=rank.pause / 1e9 if rank.pause else None,
            )
            for number, rank in sorted(self._ranks.items())
            for look in (rank.look,)
        ]

    def own_times(self, base: Mapping[int, RankProgress]) -> dict[int, float] | None:
        """What a step has taken each rank since those looks, in seconds, as far as its own work can be told apart from waiting.

        None where that is not known of every rank, or is known of some only in another way.
        """
        looks = self.looks
        if len({bool(look.own_time) for look in looks.values()}) != 1:
            return None
        times = {number: own_time(base[number], look, self._kind) for number, look in looks.items() if number in base}
        found = {number: time for number, time in times.items() if time is not None}
        return found if found.keys() == looks.keys() else None

    def observe(self, looks: Iterable[RankProgress], now: datetime) -> None:
        """Takes looks in; an older one than was seen of its rank changes nothing."""
        wall = ms_of(now) * 10**6
        for look in looks:
            known = self._ranks.get(look.rank)
            if known is None or look.began_at != known.look.began_at:
                self._ranks[look.rank] = known = _Rank(look, wall - look.at)
                self._read_times(known, 0)
            elif look.at > known.look.at:
                before, sign = known.look.own_time_at, known.look.sign_at
                known.look = look
                known.pause = max(known.pause, look.sign_at - sign if sign else 0)
                known.offset = min(known.offset, wall - look.at)
                self._read_times(known, before)
            self._log.read(look, self._ranks[look.rank].wall(look.logged_at))
        self._advance()
        self._add_to_series(wall // 10**6)

    def _read_times(self, rank: _Rank, before: int) -> None:
        if rank.look.own_time_at > before:
            rank.timed.append((rank.look.own_time, rank.look.comm_time))

    # -- counting --------------------------------------------------------------------------------------------------

    def _kind_now(self) -> Kind | None:
        looks = [rank.look for rank in self._ranks.values()]
        if any(look.steps for look in looks):
            return "steps"
        if any(look.reports for look in looks):
            return "reports"
        if max((look.batches for look in looks), default=0) >= STEPLESS_BATCHES:
            return "batches"
        return "log" if any(look.logged_at for look in looks) else None

    def _advance(self) -> None:
        kind = self._kind_now()
        if kind is None:
            return
        if kind != self._kind:
            if self._kind is not None:
                # What was counted in batches cannot be set against steps: the newest checkpoint starts them.
                self._path = [(0, self._busy)]
            self._kind = kind
        ranks = self._ranks.values()
        if self._first_ms is None:
            self._first_ms = (
                min(rank.wall(first_at(rank.look, kind)) for rank in ranks if first_at(rank.look, kind)) // 10**6
            )
            self._counted_to = self._first_ms
            self._resumed = any(was_read(rank.look, kind) for rank in ranks)
        assert self._counted_to is not None
        to = max(rank.wall(rank.look.progressed_at) for rank in ranks if rank.look.progressed_at) // 10**6
        gap = to - self._counted_to
        if gap > 0:
            saved = min(gap, self._new_save_ms())
            done = max(0, self._count() - self._path[-1][0])
            busy = self._busy_part(gap - saved, done)
            self._save += saved
            self._busy += busy
            self._idle += gap - saved - busy
            self._counted_to = to
        if self._count() > self._path[-1][0]:
            self._path.append((self._count(), self._busy))
        self._take_checkpoint()

    def _new_save_ms(self) -> int:
        """How long the gang waited for saves since the last time: as long as the rank that waited longest."""
        most = max(rank.look.save_time - self._seen_save_time(rank.look) for rank in self._ranks.values())
        self._save_seen |= {number: rank.look.save_time for number, rank in self._ranks.items()}
        return most // 10**6

    def _seen_save_time(self, look: RankProgress) -> int:
        """What of the rank's save time is counted already."""
        if look.rank in self._save_seen:
            return self._save_seen[look.rank]
        if self._adopted is not None:
            return self._adopted * 10**6 + look.early_save_time
        if self._kind == "steps":
            return look.early_save_time
        # Saves before the first step belong to the start.
        return 0 if look.save_began_at >= first_at(look, self._kind) else look.save_time

    def _busy_part(self, span: int, steps: int) -> int:
        """How much of a time without saves, at whose end the gang had got on, was no standstill."""
        step = self._step_ms()
        if step is None:
            return span
        return min(span, max(patience_ms(step), int(2 * steps * step)))

    def _step_ms(self) -> float | None:
        """A typical step: the median, which no pause changes much."""
        typical = quantile(merged([rank.look.step_times for rank in self._ranks.values()]), 0.5)
        if typical is not None:
            return typical * 1000
        count = self._path[-1][0]
        return self._busy / (count - 1) if count > 1 and self._busy else None

    def _count(self) -> int:
        return max((count_of(rank.look, self._kind) for rank in self._ranks.values()), default=0)

    def _take_checkpoint(self) -> None:
        """A checkpoint counts once nobody saves any more: each rank may write a part of it."""
        looks = [rank.look for rank in self._ranks.values()]
        if any(look.saving for look in looks):
            return
        newest = max((look for look in looks if look.saved), key=self._count_saved, default=None)
        if newest is None or (newest.saved <= self._saves and self._count_saved(newest) <= self._saved_count):
            return
        self._saves = max(look.saved for look in looks)
        self._saved_count = self._count_saved(newest)
        self._saved_ms = self._ranks[newest.rank].wall(newest.saved_at) // 10**6
        self._saved_busy = self._busy_at(self._saved_count)
        self._path = [(self._saved_count, self._saved_busy)] + [p for p in self._path if p[0] > self._saved_count]

    def _count_saved(self, look: RankProgress) -> int:
        """What the rank's newest complete save holds; of a log, what it had told when the save began."""
        if self._kind != "log":
            return saved_count(look, self._kind)
        return max(self._log.count_at(self._ranks[look.rank].wall(look.save_began_at)), self._saved_count)

    def _busy_at(self, count: int) -> int:
        """The work that had been done at that count, between the breakpoints around it."""
        for (c0, b0), (c1, b1) in zip(self._path, self._path[1:], strict=False):
            if c0 <= count <= c1:
                return b0 + (b1 - b0) * (count - c0) // max(1, c1 - c0)
        return self._path[-1][1] if count >= self._path[-1][0] else self._path[0][1]

    # -- the series and the end ------------------------------------------------------------------------------------

    def _add_to_series(self, now_ms: int, *, end: bool = False) -> None:
        if self.began and self._ranks:
            self._series.add(self.looks, self._kind, now_ms, end=end)

    def take_rows(self) -> tuple[list[GangSample], list[RankSample]]:
        """The rows of the series that have been finished since they were last taken."""
        return self._series.take_rows()

    def end(self, now: datetime) -> None:
        """The attempt is over: what is open is closed."""
        self._over = True
        self._count_by_saves(ms_of(now))
        self._add_to_series(ms_of(now), end=True)

    def _count_by_saves(self, end_ms: int) -> None:
        """All that was seen of it are saves: what came before the newest of them is kept, whatever it was."""
        ranks = [rank for rank in self._ranks.values() if rank.look.saved]
        if self._first_ms is not None or not ranks:
            return
        newest = max(ranks, key=lambda rank: rank.wall(rank.look.saved_at))
        self._first_ms = min(rank.wall(rank.look.began_at) for rank in self._ranks.values()) // 10**6
        self._counted_to = max(self._first_ms, end_ms)
        self._save = min(self._counted_to - self._first_ms, max(rank.look.save_time for rank in ranks) // 10**6)
        self._save_seen = {number: rank.look.save_time for number, rank in self._ranks.items()}
        self._busy = self._counted_to - self._first_ms - self._save
        self._saved_ms = newest.wall(newest.look.saved_at) // 10**6
        self._saved_busy = max(0, self._busy - max(0, self._counted_to - self._saved_ms))
        self._saves = max(rank.look.saved for rank in ranks)
        self._resumed = any(rank.look.loads for rank in self._ranks.values())

    # -- the summary -----------------------------------------------------------------------------------------------

    def summary(self) -> Progress | None:
        """Everything up to the newest progress, with the saves after it once the attempt is over; None before any."""
        if self._first_ms is None or self._counted_to is None:
            return None
        kind = self._kind
        looks = self.looks
        steps = max(self._count(), self._path[-1][0])
        speed = self._speed(looks)
        own = self._rank_times()
        waits = [
            look.data_wait / (look.batch_at - look.first_batch_at)
            for look in looks.values()
            if look.batch_at > look.first_batch_at
        ]
        times = merged([look.step_times for look in looks.values()])
        return Progress(
            source=self._source(looks),
            steps=steps,
            samples=_total(samples_of(look, kind) for look in looks.values()),
            samples_per_s=speed[0],
            step_time=speed[1],
            step_time_p50=quantile(times, 0.5),
            step_time_p99=quantile(times, 0.99),
            rank_time_min=min(own.values(), default=None),
            rank_time_max=max(own.values(), default=None),
            slowest_rank=max(own, key=lambda number: own[number], default=None) if len(own) > 1 else None,
            data_wait=min(1.0, sum(waits) / len(waits)) if waits else None,
            first_step_at=time_of(self._first_ms),
            last_step_at=time_of(self._counted_to),
            busy_ms=self._busy,
            save_ms=self._save + (self._last_saves() if self._over else 0),
            idle_ms=self._idle,
            unsaved_ms=self._busy - self._saved_busy,
            saves=self._saves,
            saved_steps=self._saved_count,
            saved_at=None if self._saved_ms is None else time_of(self._saved_ms),
            resumed=self._resumed,
            repeated_steps=self._repeated(),
            metrics=metrics_of(looks),
        )

    def _rank_times(self) -> dict[int, float]:
        """What a step takes each rank: its own work where that is known of all, or else from step to step."""
        own = {number: time for number, rank in self._ranks.items() if (time := rank.own_time) is not None}
        if own.keys() == self._ranks.keys():
            return own
        means = {number: mean_step(rank.look, self._kind) for number, rank in self._ranks.items()}
        return {number: time for number, time in means.items() if time is not None}

    def _last_saves(self) -> int:
        """How long the gang waited for saves after its last progress, one that was broken off included."""
        most = 0
        for rank in self._ranks.values():
            look = rank.look
            broken_off = look.at - max(look.save_began_at, look.progressed_at) if look.saving else 0
            most = max(most, look.save_time - self._seen_save_time(look) + broken_off)
        return most // 10**6

    def _speed(self, looks: dict[int, RankProgress]) -> tuple[float | None, float | None]:
        """Samples a second and seconds a step: from the end of the first step to that of the last, without saves."""
        rate, step_time = self._log.rate(), self._log.mean("step_time")
        if self._kind in (None, "log"):
            return rate, step_time
        # Each rank by its own clock: their first steps need not end together.
        times, rates = [], []
        for look in looks.values():
            steps = count_of(look, self._kind)
            span = (newest_at(look, self._kind) - first_at(look, self._kind)) / 1e9 - (self._save + self._idle) / 1e3
            if steps > 1 and span > 0:
                times.append(span / (steps - 1))
                rates.append(samples_of(look, self._kind) / steps / times[-1])
        if rate is None and sum(rates) > 0:
            rate = sum(rates)
        if step_time is None and times:
            step_time = sum(times) / len(times)
        return rate, step_time

    def _source(self, looks: dict[int, RankProgress]) -> Source:
        if any(look.reported_samples for look in looks.values()) or self._kind == "reports":
            return "report"
        return "log" if self._kind == "log" or self._log.tells_speed else "auto"

    def _repeated(self) -> int | None:
        if self._previous is None or self._resumed is None:
            return None
        return self._previous.steps - (self._previous.saved_steps if self._resumed else 0)


def _total(counts: Iterable[int]) -> int | None:
    return sum(counts) or None


def _ms(at: datetime | None) -> int | None:
    return None if at is None else ms_of(at)
