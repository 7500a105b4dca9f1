"""An event loop in which time passes only when everybody waits: hours take milliseconds, and the same seed gives the same story.

What is sent to threads is done in the loop itself, so that nothing depends on how the machine schedules them. The form is that
of FoundationDB's simulation (Zhou et al., SIGMOD 2021): one thread, one clock, chance from one seed.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from datetime import datetime, timedelta
from typing import Any, TypeVar

from orchestrator.testing import START

T = TypeVar("T")


class Deadlock(Exception):
    """Everybody waits for something that nobody will do."""


class _Selector(selectors.DefaultSelector):
    """Waits by moving the loop's clock."""

    loop: SimulatedLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        if not found:
            if timeout is None:
                raise Deadlock("nothing is due, and nothing will be")
            self.loop.passed += max(0.0, timeout)
        return found


class SimulatedLoop(asyncio.SelectorEventLoop):
    """The loop; `time()` is in seconds since it was made."""

    def __init__(self) -> None:
        self.passed = 0.0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.passed

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        done: asyncio.Future[T] = self.create_future()

        def work() -> None:
            if done.cancelled():
                return
            try:
                done.set_result(func(*args))
            except BaseException as error:
                done.set_exception(error)

        self.call_soon(work)
        return done


class SimulatedClock:
    """What a wall clock shows in such a loop; `step` puts it forward or back, as an operator or NTP would."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._off = loop, timedelta()

    def __call__(self) -> datetime:
        return START + timedelta(seconds=self._loop.time()) + self._off

    def step(self, seconds: float) -> None:
        self._off += timedelta(seconds=seconds)


def simulate(story: Coroutine[Any, Any, T]) -> T:
    """Runs the story in a loop of its own."""
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(story)
