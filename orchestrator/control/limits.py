"""Time limits of live attempts: when each is over, and what is done then."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime
from typing import Protocol

from orchestrator.control.gang import Gang
from orchestrator.control.runtime import Runtime
from orchestrator.history.errors import StaleEpoch, StoreError
from orchestrator.scheduling.run import Run, Stop
from orchestrator.units import format_duration

log = logging.getLogger("orch.limits")


class Ends(Protocol):
    """What ends an attempt."""

    async def stop(self, run: Run, stop: Stop) -> None: ...


class Limits:
    """One timer for each live attempt that has a limit. The time that the ranks take to start does not count."""

    def __init__(self, runtime: Runtime, ends: Ends) -> None:
        self._runtime, self._ends = runtime, ends
        self._timers: dict[tuple[int, int], asyncio.TimerHandle] = {}
        self._since: dict[tuple[int, int], float] = {}
        """Monotonic."""

    def watch(self, gang: Gang, since: datetime | None) -> None:
        """Counts from `since`, when all ranks had started; nothing is counted before."""
        if since is not None:
            ran = max(0.0, (self._runtime.now() - since).total_seconds())
            self._since[gang.run, gang.attempt] = self._runtime.monotonic() - ran
            self.set(gang, gang.spec.time_limit)

    def set(self, gang: Gang, limit_s: float | None) -> None:
        """The limit, in seconds, is this from now on; None: as long as it takes."""
        key = (gang.run, gang.attempt)
        if (timer := self._timers.pop(key, None)) is not None:
            timer.cancel()
        since = self._since.get(key)
        if since is None or limit_s is None:
            return
        left = since + limit_s - self._runtime.monotonic()
        loop = asyncio.get_running_loop()
        self._timers[key] = loop.call_later(max(0.0, left), self._over, gang, limit_s)

    def forget(self, gang: Gang) -> None:
        self.set(gang, None)
        self._since.pop((gang.run, gang.attempt), None)

    def _over(self, gang: Gang, limit_s: float) -> None:
        self._runtime.spawn(self._end(gang, limit_s))

    async def _end(self, gang: Gang, limit_s: float) -> None:
        stop = Stop("time_limit", f"reached its time limit of {format_duration(limit_s)}")
        await end_for_sure(self._runtime, self._ends, gang, stop)


async def end_for_sure(runtime: Runtime, ends: Ends, gang: Gang, stop: Stop) -> None:
    """Tried until it is on record, or it ends otherwise: a limit that is not enforced breaks promises to others."""
    while (run := runtime.book.runs.get(gang.run)) is not None and gang.stop is None and gang.failure is None:
        if run.attempt is None or run.attempt.number != gang.attempt:
            return
        try:
            await ends.stop(run, stop)
            return
        except StaleEpoch:
            raise
        except StoreError as error:
            log.error("the end of run %s could not be recorded yet: %s", gang.run, error)
            await asyncio.sleep(1)
