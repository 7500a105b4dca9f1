"""What the controller measures of live attempts: looks at ranks and GPUs taken in, and written down every few seconds."""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from datetime import datetime

from orchestrator.control.backend import GpuLook, Report
from orchestrator.control.gang_progress import GangProgress
from orchestrator.control.gang_series import RANK_S
from orchestrator.control.gpu_usage import GpuUse
from orchestrator.control.live import Live
from orchestrator.control.rank_progress import RankProgress
from orchestrator.control.runtime import TROUBLE, Runtime
from orchestrator.history.errors import StaleEpoch
from orchestrator.history.measurements import Measured
from orchestrator.progress.values import GpuSample
from orchestrator.scheduling.run import Run

log = logging.getLogger("orch.measuring")

WRITE_S = 10.0
"""How often what was measured goes into the database; a controller that dies loses no more than this."""
MOST_KEPT = 20_000
"""Rows of measurements, some hundred bytes each, that wait in memory for a database which takes nothing."""
FEW, COUNT_EVERY = 10, 6
"""Where many runs are live, the GPU time of each is counted at every so manieth writing."""


class GpuWindows:
    """Looks at an attempt's GPUs, gathered into rows of a minute."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, int], tuple[datetime, list[GpuUse]]] = {}
        self._rows: list[GpuSample] = []

    def add(self, node: str, look: GpuLook, now: datetime) -> None:
        began, uses = self._open.setdefault((node, look.gpu), (now, []))
        if (now - began).total_seconds() >= RANK_S:
            self._close(node, look.gpu)
            _, uses = self._open.setdefault((node, look.gpu), (now, []))
        uses.append(look.use)

    def close_all(self) -> None:
        for node, gpu in list(self._open):
            self._close(node, gpu)

    def _close(self, node: str, gpu: int) -> None:
        began, uses = self._open.pop((node, gpu))
        self._rows.append(gpu_sample(node, gpu, began, uses))

    def take_rows(self) -> list[GpuSample]:
        """The rows that have been finished since they were last taken."""
        rows, self._rows = self._rows, []
        return rows


def gpu_sample(node: str, gpu: int, at: datetime, uses: Sequence[GpuUse]) -> GpuSample:
    """One row of looks: means, but the most memory and heat."""
    told: dict[str, list[float]] = defaultdict(list)
    for use in uses:
        for name in ("utilization", "memory_mib", "power_w", "temperature_c", "sm_clock_mhz"):
            if (value := getattr(use, name)) is not None:
                told[name].append(value)
    mean = {name: sum(values) / len(values) for name, values in told.items()}
    return GpuSample(
        node,
        gpu,
        at,
        RANK_S,
        len(uses),
        mean.get("utilization"),
        max(told["memory_mib"], default=None),
        mean.get("power_w"),
        max(told["temperature_c"], default=None),
        mean.get("sm_clock_mhz"),
        sum(bool(use.throttled_by) for use in uses) / len(uses),
        tuple(sorted({why for use in uses for why in use.throttled_by})),
    )


class Measuring:
    """Every live attempt's progress."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._gangs: dict[tuple[int, int], GangProgress] = {}
        self._gpus: dict[tuple[int, int], GpuWindows] = {}
        self._turn = 0
        self._kept: deque[Measured] = deque()
        """What the database has not taken yet, oldest first."""
        self._dropped = 0
        self.live = Live()
        """How the runs do now."""

    def start(self) -> None:
        self._runtime.spawn(self._count_missed())
        self._runtime.forever("measuring", self._write_all, WRITE_S)

    async def _count_missed(self) -> None:
        await self._runtime.write(self._runtime.store.count_missed, self._runtime.now())

    def begin(self, run: Run) -> None:
        """Follows the run's live attempt, from what is recorded of it on."""
        assert run.attempt is not None
        before = [attempt.progress for attempt in run.attempts[:-1] if attempt.progress is not None]
        key = run.id, run.attempt.number
        self._gangs[key] = GangProgress(run.attempt.progress, before[-1] if before else None)
        self._gpus[key] = GpuWindows()

    def take_in(self, node: str, report: Report) -> None:
        """What a node's agent tells of the ranks and GPUs there."""
        self._take_in_ranks(report.progress)
        for look in report.gpus:
            if (windows := self._gpus.get((look.run, look.attempt))) is not None:
                windows.add(node, look, self._runtime.now())
                self.live.looked(node, look)

    def _take_in_ranks(self, looks: Iterable[RankProgress]) -> None:
        by_gang: dict[tuple[int, int], list[RankProgress]] = {}
        for look in looks:
            by_gang.setdefault((look.run, look.attempt), []).append(look)
        for key, found in by_gang.items():
            if (gang := self._gangs.get(key)) is not None:
                try:
                    gang.observe(found, self._runtime.now())
                except Exception:
                    # What a script shows of itself must not keep its node's reports from being taken in.
                    self._give_up(key)

    def of(self, run: int, attempt: int) -> GangProgress | None:
        """The live attempt's progress."""
        return self._gangs.get((run, attempt))

    async def end(self, run: int, attempt: int) -> None:
        """The attempt is over: what is not written yet is written before its end is recorded, which nothing here prevents."""
        key = run, attempt
        gang, gpus = self._gangs.pop(key, None), self._gpus.pop(key, None)
        if gang is None or gpus is None:
            return
        self.live.ended(key)
        try:
            gang.end(self._runtime.now())
            gpus.close_all()
            last = self._measured(key, gang, gpus, count=False)
            # Its GPU time is counted once its end is recorded.
            if last.told:
                await self._write([last])
        except StaleEpoch:
            raise
        except Exception:
            log.exception("what was measured of run %s last is lost", run)

    async def _write_all(self) -> None:
        self._turn += 1
        taken, few = [], len(self._gangs) < FEW
        for key, gang in list(self._gangs.items()):
            # Many runs take turns: counting one is several statements.
            count = few or (self._turn + key[0]) % COUNT_EVERY == 0
            try:
                one = self._measured(key, gang, self._gpus[key], count=count)
                self.live.stepped(key, one.gang)
                taken.append(one)
            except Exception:
                self._give_up(key)
        if taken:
            await self._write(taken)

    async def _write(self, taken: list[Measured]) -> None:
        """With what the database did not take before; what it does not take now is kept, up to a bound, and the oldest dropped."""
        self._kept += taken
        now, alarms = self._runtime.now(), self._runtime.alarms
        try:
            writing = list(self._kept)
            await self._runtime.write(self._runtime.store.measure, writing, now)
        except TROUBLE:
            rows = sum(map(_size, self._kept))
            while rows > MOST_KEPT:
                one = self._kept.popleft()
                rows -= _size(one)
                self._dropped += _size(one)
            if self._dropped:
                text = f"The database takes nothing: {self._dropped:,} rows of measurements are lost, {rows:,} are kept for later."
                alarms.set("measurements", text, now)
            return
        for _ in writing:
            self._kept.popleft()
        self._dropped = 0
        alarms.clear("measurements")

    def _give_up(self, key: tuple[int, int]) -> None:
        log.exception("run %s is measured no more", key[0])
        del self._gangs[key], self._gpus[key]
        self.live.ended(key)

    def _measured(self, key: tuple[int, int], gang: GangProgress, gpus: GpuWindows, *, count: bool) -> Measured:
        rows, rank_rows = gang.take_rows()
        return Measured(*key, gang.summary(), tuple(rows), tuple(rank_rows), tuple(gpus.take_rows()), count)


def _size(one: Measured) -> int:
    return 1 + len(one.gang) + len(one.ranks) + len(one.gpus)
