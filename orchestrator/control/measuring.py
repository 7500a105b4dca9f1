"""What the controller measures of live attempts: looks at ranks and GPUs taken in, and written down every few seconds."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from orchestrator.control.gang_progress import GangProgress
from orchestrator.control.rank_progress import RankProgress
from orchestrator.control.runtime import Runtime
from orchestrator.history.errors import StaleEpoch, StoreError
from orchestrator.history.measurements import Measured
from orchestrator.scheduling.run import Run

log = logging.getLogger("orch.measuring")

WRITE_S = 10.0
"""How often what was measured goes into the database; a controller that dies loses no more than this."""


class Measuring:
    """Every live attempt's progress."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._gangs: dict[tuple[int, int], GangProgress] = {}

    def start(self) -> None:
        self._runtime.forever("measuring", self._write_all, WRITE_S)

    def begin(self, run: Run) -> None:
        """Follows the run's live attempt, from what is recorded of it on."""
        assert run.attempt is not None
        before = [attempt.progress for attempt in run.attempts[:-1] if attempt.progress is not None]
        self._gangs[run.id, run.attempt.number] = GangProgress(run.attempt.progress, before[-1] if before else None)

    def take_in(self, looks: Iterable[RankProgress]) -> None:
        by_gang: dict[tuple[int, int], list[RankProgress]] = {}
        for look in looks:
            by_gang.setdefault((look.run, look.attempt), []).append(look)
        for key, found in by_gang.items():
            if (gang := self._gangs.get(key)) is not None:
                gang.observe(found, self._runtime.now())

    def of(self, run: int, attempt: int) -> GangProgress | None:
        """The live attempt's progress."""
        return self._gangs.get((run, attempt))

    async def end(self, run: int, attempt: int) -> None:
        """The attempt is over: what is not written yet is written before its end is recorded."""
        gang = self._gangs.pop((run, attempt), None)
        if gang is None:
            return
        gang.end(self._runtime.now())
        try:
            await self._write({(run, attempt): gang})
        except StaleEpoch:
            raise
        except StoreError as error:
            log.error("what was measured of run %s last is lost: %s", run, error)

    async def _write_all(self) -> None:
        await self._write(self._gangs)

    async def _write(self, gangs: dict[tuple[int, int], GangProgress]) -> None:
        now = self._runtime.now()
        taken = []
        for (run, attempt), gang in gangs.items():
            rows = gang.take_rows()
            taken.append(Measured(run, attempt, gang.summary(), tuple(rows[0]), tuple(rows[1])))
        if taken:
            await self._runtime.db(self._runtime.store.measure, taken, now)
