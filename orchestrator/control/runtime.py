"""What the controller's parts share: the clock, the database's thread, tasks that are looked after, and news of runs."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.config_keys import Preflight
from orchestrator.control.alarms import Alarms
from orchestrator.control.counts import Counts
from orchestrator.history.book import Book, Changes
from orchestrator.history.errors import DatabaseBusy, DatabaseDamaged, DatabaseUnreachable, GroupUndone, StaleEpoch
from orchestrator.history.retention import Keep
from orchestrator.history.store import Store
from orchestrator.policy import Policy
from orchestrator.scheduling.run import NewRun, Run

log = logging.getLogger("orch.controller")
T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """What an operator may set, and a test makes short."""

    home: Path
    storage: Path
    lease_s: float = 25.0
    log_limit: int = 64 << 20
    preflight: Preflight = "on"
    """Whether a gang's nodes are looked at before it is started, and `quick`: without a collective between them."""
    trial_s: float = 20.0
    """How long a gang's links are tried at most; then it starts, whatever is known by then."""
    trial_hang_s: float = 6.0
    """How long such a collective may take once every rank is there: NCCL's initialisation, and half a second of all-reduces."""
    sync_wait_s: float = 2.0
    watch_s: float = 1.0
    progress_look_s: float = 1.0
    """How often live attempts are asked whether they get on."""
    confirm_s: float = 3.0
    """Between the two looks at the stacks of a gang that stands still."""
    lost_after_s: float = 3.0
    """How long a node may be missing from the cluster's list before it is lost."""
    look_for_newer_s: float = 2.0
    """How often a controller that has nothing to write looks whether another one has taken over."""
    fenced_out_s: float = 5.0
    """A controller that was taken over from renews no lease after so long."""
    keep: Keep = Keep()  # noqa: RUF009 - frozen
    """How long the history keeps what is over."""
    survey_wait_s: float = 5.0
    """How long a submission waits for nodes that were never asked, so that it can be refused at once where none will do."""
    rest: float = 1.0
    """After a turn of the scheduler, how many times as long as it took until the next: what happens meanwhile is one turn."""
    rest_of_new: float = 10.0
    """The same where only submissions have come: they share the processor with the scheduler."""
    longest_rest_s: float = 1.0
    longest_rest_of_new_s: float = 3.0
    policy: Policy = field(default_factory=Policy)
    open_ray: str | None = None
    """Set where Ray lets in everybody: what whoever names secrets is to know of it."""


TROUBLE = (DatabaseBusy, DatabaseUnreachable, DatabaseDamaged)
"""The database's own: nothing is wrong with what was to be written, and it may be written later."""
LATE_S = 10.0
"""A write that takes longer is an alarm: somebody else holds the database, or its server hangs."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 15.0
"""Between attempts to write."""
MOST_AT_ONCE = 256
"""Writes that share one transaction: what the first of them waits for the others stays within some tens of milliseconds."""
GATHER_S = 0.003
"""How long a transaction waits for those whom the one before answered, and who had come meanwhile: most ask again at once, and
what a transaction costs by itself is many times what one more write in it costs. Who writes alone never waits."""


@dataclass(frozen=True)
class _Write:
    """A write that waits for its transaction."""

    work: Callable[[], Any] | NewRun
    done: asyncio.Future[Any]


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
        self.alarms = Alarms()
        self.wake = asyncio.Event()
        """Set when the scheduler has something new to decide."""
        self._changed: dict[int, asyncio.Event] = defaultdict(asyncio.Event)
        self._tasks: set[asyncio.Task[Any]] = set()
        # One thread, one connection, one writer: what is slow in the database does not stop the leases.
        self._database = ThreadPoolExecutor(1, "database")
        self._reader = ThreadPoolExecutor(1, "reader")
        self._writes: deque[_Write] = deque()
        """Those that wait for a transaction."""
        self._writing = False
        self._usual = 1
        """How many writers there were when the last transaction ended."""
        self._gathering: asyncio.TimerHandle | None = None
        self._late: asyncio.TimerHandle | None = None
        self._asked: dict[asyncio.Task[Any] | None, float] = {}
        """By task: when it asked the database what has not been answered yet."""
        self.book = Book()
        """What has not ended, as of the last commit whose news came here."""
        self.on_change: Callable[[Changes], None] = lambda changes: None
        """Called after `book` has followed a commit."""
        self.on_missed: Callable[[Changes], None] = lambda changes: None
        """Called besides where whoever made the changes was told that they had failed."""

    async def close(self) -> None:
        # More than once: wait_for of Python 3.11 loses a cancel that comes in the moment in which what it waits for is done.
        while pending := [task for task in self._tasks if not task.done()]:
            for task in pending:
                task.cancel()
            await asyncio.wait(pending, timeout=0.2)
        self._database.shutdown(wait=True)
        self._reader.shutdown(wait=True)

    async def take_over(self, owner: str) -> None:
        """Makes this the controller that the database obeys, and reads what has not ended. Raises StoreError."""
        self.epoch = await self.db(self.store.claim_epoch, owner, self.now())
        # Nobody knows by whose clock the fences end that are on record; by then at the latest no lease holds.
        await self.db(self.store.fence_until, self.now() + timedelta(seconds=self.settings.lease_s))
        loop = asyncio.get_running_loop()

        def tell(changes: Changes) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._follow, changes)

        self.store.on_change = tell
        self.book = await self.db(self.store.book)

    async def look_for_newer(self) -> None:
        """Ends this controller where another one has taken over."""
        try:
            await self.read(self.store.check_epoch)
        except StaleEpoch as error:
            self._fenced_out(error)
            raise

    def _follow(self, changes: Changes) -> None:
        self.book.apply(changes)
        self.on_change(changes)
        if changes.missed:
            self.on_missed(changes)

    def waits_s(self, task: asyncio.Task[Any]) -> float:
        """For how long the task has waited for the database; 0 where it does not."""
        asked = self._asked.get(task)
        return 0.0 if asked is None else self.monotonic() - asked

    @contextmanager
    def _asking(self) -> Iterator[None]:
        task = asyncio.current_task()
        self._asked[task] = self.monotonic()
        try:
            yield
        finally:
            del self._asked[task]

    async def db(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Runs a store call on the database's thread, in a transaction of its own. Raises StoreError."""
        try:
            with self._asking():
                return await asyncio.get_running_loop().run_in_executor(self._database, lambda: call(*args, **kwargs))
        except StaleEpoch as error:
            self._fenced_out(error)
            raise
        except TROUBLE as error:
            self.alarms.set("database", str(error), self.now())
            raise

    async def read(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Runs a store call that only reads: it waits for no write, and sees every one that was acknowledged."""
        with self._asking():
            return await asyncio.get_running_loop().run_in_executor(self._reader, lambda: call(*args, **kwargs))

    async def write(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Runs a store call that writes, together with others that wait: they share a transaction, and one wait for the disk.

        When it returns, the write is on disk and `book` has followed it. Raises StoreError, and what the call raises.
        """
        answer: T = await self._queue(lambda: call(*args, **kwargs))
        return answer

    async def submit(self, new: NewRun) -> tuple[Run, bool]:
        """As `write` of the store's submit; submissions that wait together are one statement."""
        answer: tuple[Run, bool] = await self._queue(new)
        return answer

    async def _queue(self, work: Callable[[], Any] | NewRun) -> Any:
        write = _Write(work, asyncio.get_running_loop().create_future())
        self._writes.append(write)
        self._write_soon()
        try:
            with self._asking():
                answer = await write.done
        except StaleEpoch as error:
            self._fenced_out(error)
            raise
        except TROUBLE as error:
            self.alarms.set("database", str(error), self.now())
            raise
        self.alarms.clear("database")
        return answer

    def _write_soon(self) -> None:
        """Has the next transaction begin: at once where as many wait for it as wrote lately, else a moment later."""
        if self._writing or not self._writes:
            return
        if len(self._writes) >= min(self._usual, MOST_AT_ONCE):
            self._write_now()
        elif self._gathering is None:
            self._gathering = asyncio.get_running_loop().call_later(GATHER_S, self._write_now)

    def _write_now(self) -> None:
        loop = asyncio.get_running_loop()
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        batch = [self._writes.popleft() for _ in range(min(len(self._writes), MOST_AT_ONCE))]
        self._writing = True
        self._late = loop.call_later(LATE_S, self._is_late)
        # By the loop, not by the pool itself, which would cost it less: simulated time passes while nothing of the loop's is done.
        loop.run_in_executor(self._database, self._write_all, batch, loop)

    def _written(self, batch: Sequence[_Write], answers: Sequence[Any]) -> None:
        assert self._late is not None
        self._late.cancel()
        # Who is answered now and who has come meanwhile.
        self._writing, self._usual = False, len(batch) + len(self._writes)
        _deliver(batch, answers)
        self._write_soon()

    def _is_late(self) -> None:
        self.alarms.set("database", f"The database has not answered a write for {LATE_S:.0f} s.", self.now())

    async def persist(self, what: str, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """As `write`, tried until the database takes it: for what has happened already, and must not be forgotten.

        `what` names it for the log. Raises what the call raises for other reasons, and StaleEpoch.
        """
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return await self.write(call, *args, **kwargs)
            except TROUBLE as error:
                log.error("%s could not be recorded yet: %s", what, error)
                await asyncio.sleep(pause_s)
                pause_s = min(LONGEST_PAUSE_S, pause_s * 2)

    def _fenced_out(self, error: StaleEpoch) -> None:
        log.error("%s This one ends.", error)
        self.superseded()

    def _write_all(self, batch: Sequence[_Write], loop: asyncio.AbstractEventLoop) -> None:
        """On the database's thread: one transaction of all of these."""
        answers: Sequence[Any] = []
        try:
            with self.store.group():
                answers = self._answers(batch)
        except GroupUndone as error:
            log.error("%s", error)
            answers = [answer for one in batch for answer in self._answers([one])]
        except BaseException as error:
            answers = [error] * len(batch)
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._written, batch, answers)

    def _answers(self, batch: Sequence[_Write]) -> list[Any]:
        """What each of the batch gave or raised; submissions beside each other in one go."""
        answers: list[Any] = []
        at = 0
        while at < len(batch):
            new: list[NewRun] = []
            while at + len(new) < len(batch) and isinstance(one := batch[at + len(new)].work, NewRun):
                new.append(one)
            if new:
                try:
                    answers += self.store.submit_each(new, self.now())
                except Exception as error:
                    answers += [error] * len(new)
                at += len(new)
                continue
            work = batch[at].work
            assert not isinstance(work, NewRun)
            try:
                answers.append(work())
            except Exception as error:
                answers.append(error)
            at += 1
        return answers

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
        if (event := self._changed.pop(run, None)) is not None:
            event.set()

    def watch(self, run: int) -> asyncio.Event:
        """Set at the next news of the run. Taken before one looks, so that nothing falls between the look and the wait."""
        return self._changed[run]


def _deliver(batch: Sequence[_Write], answers: Sequence[Any]) -> None:
    for write, answer in zip(batch, answers, strict=True):
        if write.done.done():
            continue
        if isinstance(answer, BaseException):
            write.done.set_exception(answer)
            write.done.exception()  # looked at, should nobody wait for it any more
        else:
            write.done.set_result(answer)


def spare_the_collector() -> None:
    """What was loaded at the start is looked at for garbage no more, and the rest less often.

    A queue of 10,000 runs is millions of objects that live long. Python's defaults look through all of them several times a
    decision: a third of its time (benchmarks/scheduling_speed.py). What reference counting frees is freed as before.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
