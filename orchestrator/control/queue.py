"""The queue: what may start, the turns of the scheduler, and what follows from each plan."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any, TypeVar

from orchestrator.control.dependencies import Dependencies
from orchestrator.control.fitness import Fitness
from orchestrator.control.gangs import Gangs
from orchestrator.control.runtime import TROUBLE, Runtime
from orchestrator.control.together import together
from orchestrator.control.trials import Trials
from orchestrator.control.usage import Past
from orchestrator.control.waits import Waits
from orchestrator.history.book import Changes
from orchestrator.history.errors import DoubleBooked, StaleEpoch, StoreError
from orchestrator.placement.fabric import fabric_of
from orchestrator.scheduling import retry
from orchestrator.scheduling.decision import Plan, Start
from orchestrator.scheduling.lifecycle import Event, IllegalTransition, State
from orchestrator.scheduling.memory import Memory
from orchestrator.scheduling.plan import plan
from orchestrator.scheduling.run import Dependency, Run, Stop
from orchestrator.scheduling.snapshot import Block, Snapshot
from orchestrator.scheduling.why import Explanation, Preview, preview, why

log = logging.getLogger("orch.queue")
T = TypeVar("T")

LATE_S = 5.0
"""What ending an attempt may take beside its grace: until every agent has heard of it, and swept."""


class Queue:
    """One per controller."""

    def __init__(self, runtime: Runtime, gangs: Gangs, fitness: Fitness, trials: Trials) -> None:
        self._runtime, self._gangs, self._fitness, self._trials = runtime, gangs, fitness, trials
        self._dependencies = Dependencies(runtime)
        self._past = Past(runtime)
        self._ending: dict[int, datetime] = {}
        """By run that was told to end: when the last of it is gone at the latest."""
        self._order: list[int] = []
        self._inherited = 0
        """The newest run of the controller before this one: of those, secrets may be missing."""
        self._took_s = 0.0
        """To decide, the last time."""
        self._turned_at = 0.0
        self._alarm: asyncio.TimerHandle | None = None
        self._new: asyncio.TimerHandle | None = None
        """When what was submitted is looked at."""
        self.waits = Waits()
        self.last = Plan()
        self.memory: Memory | None = None
        self.starts_runs = True
        # A decision may take some tenths of a second, in which the API goes on.
        self._decider = ThreadPoolExecutor(1, "scheduler")
        self._answerer = ThreadPoolExecutor(1, "why")
        gangs.on_stopping = self._is_ending
        runtime.on_change = self._follow

    async def start(self) -> None:
        """Begins to decide; the live runs have been taken up."""
        await self._past.load()
        self._inherited = max(self._runtime.book.runs, default=0)
        for run in self._runtime.book.live():
            if run.state is State.STOPPING:
                self._is_ending(run, run.spec.grace)
        self._runtime.forever("scheduling", self._turn_when_woken, 0.0)
        self._runtime.wake.set()

    def close(self) -> None:
        self._decider.shutdown(wait=True)
        self._answerer.shutdown(wait=True)

    def _follow(self, changes: Changes) -> None:
        self._dependencies.follow(changes)
        self._past.follow(changes.runs.values())
        for run in changes.runs.values():
            if not run.live:
                self._ending.pop(run.id, None)

    def _is_ending(self, run: Run, grace_s: float) -> None:
        self._ending[run.id] = self._runtime.now() + timedelta(seconds=grace_s + LATE_S)

    def waiting(self) -> list[Run]:
        """What waits, in the order of the last plan; what came since then at the end."""
        runs = self._runtime.book.runs
        known = [runs[run] for run in self._order if run in runs and runs[run].state is State.QUEUED]
        there = {run.id for run in known}
        return known + [run for run in self._runtime.book.waiting() if run.id not in there]

    def position(self, run: int) -> int | None:
        """The run's place in that order, from 1."""
        return next((place for place, other in enumerate(self.waiting(), 1) if other.id == run), None)

    # -- deciding ------------------------------------------------------------------------------------------------

    async def _turn_when_woken(self) -> None:
        runtime = self._runtime
        await runtime.wake.wait()
        runtime.wake.clear()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        again_s = await self._turn()
        if again_s == 0:
            runtime.wake.set()
        elif again_s is not None:
            self._wake_in(again_s + 0.01)
        self._turned_at = runtime.monotonic()
        await asyncio.sleep(min(runtime.settings.longest_rest_s, self._took_s * runtime.settings.rest))

    def _wake_in(self, seconds: float) -> None:
        """A turn then, at the latest. There is one alarm, for the earliest: a turn sets it anew."""
        loop = asyncio.get_running_loop()
        if self._alarm is not None:
            if self._alarm.when() <= loop.time() + seconds:
                return
            self._alarm.cancel()
        self._alarm = loop.call_later(seconds, self._runtime.wake.set)

    def has_come(self) -> None:
        """A run was submitted. Behind many others it can wait for the next turn a little longer."""
        if self._new is not None:
            return
        settings = self._runtime.settings
        due = self._turned_at + min(settings.longest_rest_of_new_s, self._took_s * settings.rest_of_new)
        self._new = asyncio.get_running_loop().call_later(max(0.0, due - self._runtime.monotonic()), self._look_at_new)

    def _look_at_new(self) -> None:
        self._new = None
        self._runtime.wake.set()

    async def _turn(self) -> float | None:
        """Decides, and does it; gives in how many seconds the next turn is due though nothing happens."""
        runtime = self._runtime
        if runtime.store.in_doubt:
            # A run may have started though its commit was not answered: a trial, which is recorded nowhere, would get its GPUs.
            try:
                await runtime.write(lambda: None)
            except TROUBLE:
                return 1.0
        await self._free_fences()
        await self._drop_what_cannot_run()
        began = runtime.monotonic()
        snapshot, now = self.snapshot(), runtime.now()
        loop = asyncio.get_running_loop()
        decided = await loop.run_in_executor(self._decider, plan, snapshot, now, self.memory)
        self._took_s = runtime.monotonic() - began
        runtime.counts.cycle(self._took_s)
        self.last, self.memory = decided, decided.memory
        if self.starts_runs:
            fit = await self._fitness.fit(decided.starts)
            ready = [start for start in fit if not self._trials.take(start, self._start_tried)]
            await together(self._start(start) for start in ready)
        waits = (*self._trials.waits(), *decided.waits)
        self._order = [wait.run.id for wait in waits]
        for run in self.waits.take_in(waits, now):
            runtime.tell(run)
        for give in decided.preemptions:
            await self._gangs.stop(give.run, Stop("preempted", give.text, give.beneficiary.id))
        return decided.look_again_s

    async def _start(self, start: Start) -> None:
        runtime, run = self._runtime, start.run
        now = runtime.now()
        if any(self._gangs.roster.out(part.node) for part in start.placement.nodes):
            # Drained, say, while this was decided or its links were tried.
            runtime.wake.set()
            return
        try:
            fabric = fabric_of(self._gangs.roster.inventory.topology, start.placement)
            waited = self.waits.over(run, now)
            placed = await runtime.write(runtime.store.place, run.id, start.placement, now, waited, fabric)
        except IllegalTransition:
            return  # it was cancelled while this was decided
        except StaleEpoch:
            raise
        except (DoubleBooked, StoreError) as error:
            log.error("run %s could not be placed: %s", run.id, error)
            runtime.wake_in(1.0)
            return
        self._gangs.begin(placed)
        runtime.tell(run.id)

    async def _start_tried(self, start: Start) -> None:
        """A start whose links were tried meanwhile: some seconds have passed."""
        run = self._runtime.book.queued.get(start.run.id)
        if run is not None and run.spec == start.run.spec and self.starts_runs:
            await self._start(start)

    async def explain(self, run: int) -> Explanation | None:
        """Why a waiting run waits; None where it waits no more."""
        return await self._ask(why, run, self.snapshot())

    def waits_for(self, after: Sequence[Dependency]) -> str | None:
        """Which runs one that follows these would wait for; None where all have succeeded."""
        return self._dependencies.waits_for(after)

    async def preview(self, run: Run) -> Preview | None:
        """What would become of a run that is not submitted."""
        return await self._ask(preview, run, self.snapshot())

    async def _ask(self, question: Callable[..., T], about: Any, snapshot: Snapshot) -> T | None:
        loop, now = asyncio.get_running_loop(), self._runtime.now()
        try:
            return await loop.run_in_executor(self._answerer, question, about, snapshot, now, self.memory)
        except (KeyError, NotImplementedError):
            return None

    def snapshot(self, also: Iterable[Run] = ()) -> Snapshot:
        """What there is now, and `also` as if they waited."""
        book, roster = self._runtime.book, self._gangs.roster
        # What is tried counts as started: its GPUs are nobody else's, and it has its turn no second time.
        tried = self._trials.as_started(book.queued)
        waiting = (*(run for run in book.waiting() if run.id not in tried), *also)
        free, live = roster.free(self._trials.with_taken(book.busy())), (*book.live(), *tried.values())
        return Snapshot(
            waiting,
            free,
            live,
            self._blocks(waiting),
            self._fitness.unfit((*waiting, *tried.values()), free.topology),
            ending=dict(self._ending),
            checkpoints={run.id: saved for run in live if (saved := _saved_at(run)) is not None},
            history=self._past.durations,
            speeds=self._past.speeds,
            usage=self._past.ledger,
            policy=self._runtime.settings.policy,
        )

    def _blocks(self, waiting: Sequence[Run]) -> dict[int, Block]:
        """Who may not start yet for a reason that placement does not see."""
        blocked: dict[int, Block] = {}
        fences, now = self._runtime.book.fences(), self._runtime.now()
        room = self._room_of_arrays()
        for run in waiting:
            if (until := fences.get(run.id)) is not None:
                blocked[run.id] = Block("lease", "waits until the lease of its last attempt has run out", until)
            elif run.attempts and (until := retry.not_before(run)) is not None and until > now:
                # Without the seconds that are left: what is said changes only when it means something new.
                blocked[run.id] = Block("backoff", "pauses before it is tried again", until)
            elif run.after and (text := self._dependencies.waits_for(run.after)) is not None:
                blocked[run.id] = Block("dependency", text)
            elif run.element is not None and run.element.array in room:
                if room[run.element.array] <= 0:
                    limit = self._runtime.book.arrays[run.element.array].limit
                    blocked[run.id] = Block("array", f"{limit} of its array run, as many as may at once (array_limit)")
                room[run.element.array] -= 1
        return blocked

    def _room_of_arrays(self) -> dict[int, int]:
        """By array with a limit: how many more of its runs may start."""
        book = self._runtime.book
        limits = {array.id: array.limit for array in book.arrays.values() if array.limit is not None}
        if not limits:
            return {}
        begun = (run for run in book.runs.values() if run.live or self._trials.tries(run))
        live = Counter(run.element.array for run in begun if run.element is not None)
        return {array: limit - live[array] for array, limit in limits.items()}

    # -- before a decision ---------------------------------------------------------------------------------------

    async def _free_fences(self) -> None:
        runtime = self._runtime
        ends = [hold.until for hold in runtime.book.held.values() if hold.until is not None]
        if not ends:
            return
        now = runtime.now()
        if min(ends) <= now:
            await runtime.write(runtime.store.release_fenced, now)
        if later := [end for end in ends if end > now]:
            self._wake_in((min(later) - now).total_seconds() + 0.05)

    async def _drop_what_cannot_run(self) -> None:
        """Ends what waits in vain: for a run that failed, or without its secrets."""
        runtime = self._runtime
        lost = [
            run
            for run in runtime.book.queued.values()
            if run.id <= self._inherited and run.spec.secrets and run.id not in self._gangs.secrets
        ]
        for run in lost:
            reason = (
                f"its secrets ({', '.join(run.spec.secrets)}) are kept in the controller's memory alone and went when it "
                f"was restarted; `orch retry {run.id}` from a shell that has them goes on"
            )
            await self.drop(run, Event.FAILED, reason)
        # What is cancelled here may be what others were to follow.
        while broken := await self._dependencies.settle(runtime.book.queued.values()):
            await asyncio.gather(*(self.drop(one.run, Event.CANCEL_ASKED, one.reason) for one in broken))

    async def drop(self, run: Run, event: Event, reason: str | None, by: str | None = None) -> None:
        """Takes a waiting run out of the queue."""
        runtime, now = self._runtime, self._runtime.now()
        try:
            await runtime.write(runtime.store.record, run.id, event, now, reason, by, self.waits.over(run, now))
        except IllegalTransition:
            return  # somebody was faster
        self._gangs.secrets.pop(run.id, None)
        runtime.tell(run.id)


def _saved_at(run: Run) -> datetime | None:
    """When its live attempt last wrote a whole checkpoint, where that was seen."""
    progress = run.attempt.progress if run.attempt is not None else None
    return None if progress is None else progress.saved_at
