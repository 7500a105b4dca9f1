"""What the controller's parts share: the clock, the database's thread, tasks that are looked after, and news of runs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.control.counts import Counts
from orchestrator.history.errors import StaleEpoch
from orchestrator.history.retention import Keep
from orchestrator.history.store import Store

log = logging.getLogger("orch.controller")
T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """What an operator may set, and a test makes short."""

    home: Path
    storage: Path
    lease_s: float = 30.0
    log_limit: int = 64 << 20
    sync_wait_s: float = 2.0
    watch_s: float = 1.0
    lost_after_s: float = 3.0
    """How long a node may be missing from the cluster's list before it is lost."""
    keep: Keep = Keep()  # noqa: RUF009 - frozen
    """How long the history keeps what is over."""
    survey_wait_s: float = 5.0
    """How long a submission waits for nodes that were never asked, so that it can be refused at once where none will do."""


class Runtime:
    """One per controller."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
        superseded: Callable[[], None] = lambda: None,
    ) -> None:
        self.store, self.settings = store, settings
        self.now, self.monotonic = now, monotonic
        self.superseded = superseded
        """Called when a newer controller has been heard of: this one must end."""
        self.epoch = 0
        self.counts = Counts()
        self.wake = asyncio.Event()
        """Set when the scheduler has something new to decide."""
        self._changed: dict[int, asyncio.Event] = defaultdict(asyncio.Event)
        self._tasks: set[asyncio.Task[Any]] = set()
        # One thread, one connection, one writer: what is slow in the database does not stop the leases.
        self._database = ThreadPoolExecutor(1, "database")

    async def close(self) -> None:
        # More than once: wait_for of Python 3.11 loses a cancel that comes in the moment in which what it waits for is done.
        while pending := [task for task in self._tasks if not task.done()]:
            for task in pending:
                task.cancel()
            await asyncio.wait(pending, timeout=0.2)
        self._database.shutdown(wait=True)

    async def db(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Runs a store call on the database's thread. Raises StoreError."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._database, lambda: call(*args, **kwargs))
        except StaleEpoch:
            log.error("a newer controller has taken over; this one ends")
            self.superseded()
            raise

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task whose failure is logged, and which ends with the controller."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task of the controller failed", exc_info=task.exception())

    def forever(self, what: str, work: Callable[[], Awaitable[None]], pause_s: float) -> None:
        """Does `work` again and again, whatever becomes of one turn."""
        self.spawn(self._forever(what, work, pause_s))

    async def _forever(self, what: str, work: Callable[[], Awaitable[None]], pause_s: float) -> None:
        while True:
            try:
                await work()
            except StaleEpoch:
                return
            except Exception:
                log.exception("%s failed; tried again", what)
                await asyncio.sleep(1)
            await asyncio.sleep(pause_s)

    def wake_in(self, seconds: float) -> None:
        asyncio.get_running_loop().call_later(seconds, self.wake.set)

    def tell(self, run: int) -> None:
        """Something about the run is new: wakes whoever follows it."""
        self._changed[run].set()
        del self._changed[run]

    def watch(self, run: int) -> asyncio.Event:
        """Set at the next news of the run. Taken before one looks, so that nothing falls between the look and the wait."""
        return self._changed[run]
