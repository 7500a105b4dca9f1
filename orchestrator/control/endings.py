"""The end of an attempt: judged by all that was seen, tried again or not, recorded whatever it takes, and counted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Any

from orchestrator.control.gang import Gang
from orchestrator.control.log_capture import LogCapture
from orchestrator.control.logs import LogFolder
from orchestrator.control.measuring import Measuring
from orchestrator.control.roster import Roster
from orchestrator.control.runtime import Runtime
from orchestrator.health.failure import Failure
from orchestrator.history import ledger
from orchestrator.scheduling import retry
from orchestrator.scheduling.lifecycle import Event, IllegalTransition, Outcome, State
from orchestrator.scheduling.run import Run

COUNTED_AT_ONCE = 100
"""Runs: others' writes wait for them."""


class Endings:
    """What becomes of a gang of which nothing lives any more, as far as anybody can say."""

    def __init__(
        self, runtime: Runtime, roster: Roster, measuring: Measuring, capture: LogCapture, logs: LogFolder
    ) -> None:
        self._runtime, self._roster, self._measuring = runtime, roster, measuring
        self._capture, self._logs = capture, logs
        self._uncounted: list[Run] = []
        self.on_success: Callable[[Gang], Awaitable[None]] | None = None
        """Asked before an attempt's success is recorded; again if the controller was killed in between."""
        self.on_ended: Callable[[Run], None] = lambda run: None
        """Told when the end of an attempt is on record."""

    async def record(self, gang: Gang) -> tuple[Run, Iterable[datetime]]:
        """The run as it is then, and when its fences end."""
        runtime = self._runtime
        if gang.seen_broken:
            # A second for a thousand ranks, whose logs are read.
            await asyncio.to_thread(lambda: gang.settle(self._last_lines(gang)))
        event, outcome = gang.verdict()
        if event is Event.SUCCEEDED and self.on_success is not None:
            await self.on_success(gang)
        failure = None if outcome is Outcome.CANCELLED else gang.failure
        reason = failure.message if failure else None
        if gang.stop is not None and event is Event.FAILED and failure is None:
            reason = gang.stop.reason
            suspects = () if gang.stop.node is None else (gang.stop.node,)
            failure = Failure(gang.stop.kind, str(reason), gang.stop.rank, gang.stop.node, suspects=suspects)
        elif gang.stop is not None and event is Event.REQUEUED and failure is None:
            reason = gang.stop.reason
        await self._measuring.end(gang.run, gang.attempt)
        self._capture.end(gang.run, gang.attempt)
        now = runtime.now()
        if failure is not None and event is not Event.STOPPED:
            event, reason = self._tried_again(gang.run, outcome, failure, now)
        until = {node: self._roster.lease_end(node) for node in gang.fenced_nodes}
        run = await self._record_end(
            gang.run,
            event,
            outcome,
            now,
            reason=reason,
            failure=failure,
            exit_codes=gang.exit_codes,
            fenced=until,
            number=gang.attempt,
        )
        runtime.counts.attempts[outcome.value] += 1
        self._count(run)
        self.on_ended(run)
        if run.ended:
            runtime.counts.used(run.spec.team, _parts_s(run, runtime.now()))
        return run, until.values()

    def _tried_again(self, run: int, outcome: Outcome, failure: Failure, now: datetime) -> tuple[Event, str]:
        """Whether another attempt follows the one that has just broken, and the failure's words with that decision."""
        known = self._runtime.book.runs[run]
        ended = replace(known.attempts[-1], ended_at=now, outcome=outcome, failure=failure)
        decision = retry.decide(replace(known, attempts=(*known.attempts[:-1], ended)))
        event = Event.REQUEUED if isinstance(decision, retry.Again) else Event.FAILED
        return event, failure.message if decision.reason is None else f"{failure.message}; {decision.reason}"

    def _count(self, run: Run) -> None:
        """What its GPU time was used for; what a controller that dies leaves uncounted, the next one counts."""
        self._uncounted.append(run)
        if len(self._uncounted) == 1:
            self._runtime.spawn(self._count_all())

    async def _count_all(self) -> None:
        """Those that end while others are counted are counted together."""
        try:
            while runs := self._uncounted[:COUNTED_AT_ONCE]:
                await self._runtime.persist("GPU time", self._runtime.store.count, runs, self._runtime.now())
                del self._uncounted[: len(runs)]
        finally:
            self._uncounted.clear()

    async def _record_end(self, *what: Any, **more: Any) -> Run:
        """Tried until it is written: an end that is not recorded would hold its GPUs for ever."""
        runtime = self._runtime
        try:
            return await runtime.persist(f"the end of run {what[0]}", runtime.store.finish, *what, **more)
        except IllegalTransition as refused:
            known = await runtime.read(runtime.store.get, what[0])
            ended = known is not None and known.attempts[more["number"] - 1].outcome is not None
            if known is not None and ended:
                return known  # it was on record, though the answer to that was lost
            # A cancel was recorded while the last rank ended by itself: the cancel stands.
            if refused.state is not State.STOPPING or what[1] is Event.STOPPED:
                raise
            what = (what[0], Event.STOPPED, Outcome.CANCELLED, *what[3:])
            return await self._record_end(*what, **more | {"reason": None, "failure": None})

    def _last_lines(self, gang: Gang) -> dict[int, tuple[str, ...]]:
        """By rank that ended badly: the end of its log."""
        lines: dict[int, tuple[str, ...]] = {}
        for rank in gang.ended_badly:
            # A log that cannot be read must not keep the end from being recorded.
            with suppress(OSError):
                lines[rank] = self._logs.last_lines(gang.run, gang.attempt, rank)
        return lines


def _parts_s(run: Run, now: datetime) -> dict[str, float]:
    """What its GPUs were used for, in seconds, up to its end."""
    return {use: ms / 1000 for use, ms in vars(ledger.gpu_time(run, now)).items()}
