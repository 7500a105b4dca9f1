"""A short collective between nodes of a gang that were never measured together, before it starts: a bad node is left out.

While a gang is tried its run waits, and its GPUs are in this controller's memory alone: the scheduler sees them as taken, by a
run that has started. So nothing of a trial is in the run's attempts, and a start that comes to nothing needs no undoing. A
controller that dies forgets it: the agents tell the next one of ranks of no attempt, which it ends before it places anything on
their nodes, and they end by themselves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from orchestrator.bench.results import Bench, is_tagged
from orchestrator.bench.trial import (
    HOLDS,
    Evidence,
    Kept,
    Pair,
    Shape,
    Tried,
    best,
    failures,
    kept_of,
    neighbours,
    rounds,
    stands,
)
from orchestrator.control.backend import AgentGone, HoldRefused
from orchestrator.control.benches import link_of, parts_of
from orchestrator.control.fitness import Fitness
from orchestrator.control.gangs import Gangs
from orchestrator.control.runtime import Runtime
from orchestrator.control.trial_ranks import END_S, TrialRanks, placed_on
from orchestrator.history.errors import StaleEpoch, StoreError
from orchestrator.placement.values import Placement
from orchestrator.scheduling.decision import Kind, Reason, Start, Wait
from orchestrator.scheduling.lifecycle import State
from orchestrator.scheduling.run import Attempt, Run

log = logging.getLogger("orch.trials")

LEAST_S = 3.0
"""With less time left no further round is begun."""


@dataclass
class _Taken:
    """A start whose links are tried."""

    start: Start
    pairs: list[Pair]
    at: datetime
    tried: list[Tried] = field(default_factory=list)

    @property
    def nodes(self) -> list[str]:
        return [part.node for part in self.start.placement.nodes]

    @property
    def reason(self) -> Reason:
        count = len(self.pairs)
        pairs = "1 pair of its nodes was" if count == 1 else f"{count} pairs of its nodes were"
        text = f"its links are tried before it starts: {pairs} never measured"
        return Reason(Kind.TRYING, text, {"pairs": count})


class Trials:
    """One per controller."""

    def __init__(self, runtime: Runtime, gangs: Gangs, fitness: Fitness) -> None:
        self._runtime, self._gangs, self._fitness = runtime, gangs, fitness
        self._ranks = TrialRanks(runtime, gangs)
        self._taken: dict[int, _Taken] = {}
        self._kept: dict[tuple[str, str], list[Kept]] = {}
        """By pair, sorted: the newest result for each number of ranks."""
        gangs.keeps = self._keeps

    async def load(self) -> None:
        """Reads what trials showed before."""
        since = self._runtime.now() - HOLDS
        for kept in await self._runtime.db(self._runtime.store.trials, since):
            self._keep(kept)

    def _keep(self, kept: Kept) -> None:
        others = [one for one in self._kept.get(kept.nodes, ()) if (one.model, one.ranks) != (kept.model, kept.ranks)]
        self._kept[kept.nodes] = [*others, kept]

    # -- what is tried now -----------------------------------------------------------------------------------------

    def with_taken(self, busy: Mapping[str, Mapping[int, int]]) -> dict[str, dict[int, int]]:
        """Who has which GPU, with those that are tried."""
        found = self._ranks.may_live()
        for node, gpus in busy.items():
            found.setdefault(node, {}).update(gpus)
        for run, taken in self._taken.items():
            for part in taken.start.placement.nodes:
                found.setdefault(part.node, {}).update(dict.fromkeys(part.gpus, run))
        return found

    def as_started(self, queued: Mapping[int, Run]) -> dict[int, Run]:
        """The runs that are tried, of those that wait, as if they had been started when that began."""
        found = {}
        for run in (queued[number] for number in self._taken if number in queued):
            taken = self._taken[run.id]
            attempt = Attempt(len(run.attempts) + 1, taken.start.placement, taken.at)
            found[run.id] = replace(run, state=State.STARTING, attempts=(*run.attempts, attempt))
        return found

    def tries(self, run: Run) -> bool:
        return run.id in self._taken

    def waits(self) -> list[Wait]:
        """What these runs wait for."""
        return [Wait(taken.start.run, taken.reason) for taken in self._taken.values()]

    def _keeps(self, node: str) -> bool:
        return any(node in taken.nodes for taken in self._taken.values())

    # -- whether to try --------------------------------------------------------------------------------------------

    def take(self, start: Start, then: Callable[[Start], Awaitable[None]]) -> bool:
        """Whether the start must wait until its links have been tried; `then` starts it, unless it is placed again instead."""
        pairs = self._unknown(start.run, start.placement)
        if not pairs:
            return False
        self._taken[start.run.id] = _Taken(start, pairs, self._runtime.now())
        self._runtime.spawn(self._try_and_start(self._taken[start.run.id], then))
        return True

    def _unknown(self, run: Run, placement: Placement) -> list[Pair]:
        """The neighbours of a gang that were never measured together with the hardware and versions of today."""
        if self._runtime.settings.preflight != "on" or placement.device != "cuda" or len(placement.nodes) < 2:
            return []
        if run.spec.backend == "gloo" or is_tagged(run.spec.tags):
            return []
        nodes = [part.node for part in placement.nodes]
        said = [self._gangs.surveys.of(node, run.spec.python) for node in nodes]
        if any(one is not None and one.torch is None and one.python_problem is None for one in said):
            return []  # it speaks without torch: what that would show of it is not to be had
        benches = self._by_pair(self._gangs.roster.benches, set(nodes))
        now = self._runtime.now()

        def known(pair: Pair) -> bool:
            names = _sorted(pair)
            shape = self._shape(run, placement, pair)
            return any(stands(one, shape, run.id, now) for one in (*self._kept.get(names, ()), *benches.get(names, ())))

        return [pair for pair in neighbours(nodes) if not known(pair)]

    @staticmethod
    def _by_pair(benches: Iterable[Bench], nodes: set[str]) -> dict[tuple[str, str], list[Kept]]:
        found: dict[tuple[str, str], list[Kept]] = {}
        for bench in benches:
            if nodes.issuperset(bench.link.nodes) and (kept := kept_of(bench)) is not None:
                found.setdefault(kept.nodes, []).append(kept)
        return found

    def _shape(self, run: Run, placement: Placement, pair: Pair) -> Shape:
        topology, roster = self._gangs.roster.inventory.topology, self._gangs.roster
        placed = placed_on(placement, pair)
        link = link_of(placed, topology, parts_of(placed, topology))
        drivers = {roster.drivers.get(node) for node in pair}
        said = {one.nccl for node in pair if (one := self._gangs.surveys.of(node, run.spec.python)) is not None}
        return Shape(
            link.model,
            link.ranks,
            drivers.pop() if len(drivers) == 1 else None,
            said.pop() if len(said) == 1 else None,
        )

    # -- trying ----------------------------------------------------------------------------------------------------

    async def _try_and_start(self, taken: _Taken, then: Callable[[Start], Awaitable[None]]) -> None:
        start, runtime = taken.start, self._runtime
        try:
            try:
                evidence, in_time = await asyncio.wait_for(self._try(taken), runtime.settings.trial_s + END_S)
            except TimeoutError:  # an agent that does not answer
                evidence, in_time = Evidence(taken.nodes, taken.tried), False
            verdict = evidence.verdict(in_time)
            if self._gone(start.run) or not all(self._is_up(node) for node in taken.nodes):
                return
            if verdict.bad:
                await self._fitness.swap(start.run, verdict.bad)
                return
            if verdict.note is not None:
                await self._fitness.note(start.run, f"before the start: {verdict.note}")
            await then(start)
        except StaleEpoch:
            raise
        except Exception:
            log.exception("the links of run %s could not be tried", start.run.id)
            await then(start)
        finally:
            del self._taken[start.run.id]
            for node in taken.nodes:
                runtime.spawn(self._gangs.roster.release(node, self._gangs.needs))
            runtime.tell(start.run.id)
            runtime.wake.set()
            if self._ranks.may_live():
                runtime.wake_in(runtime.settings.lease_s + 0.1)

    def _is_up(self, node: str) -> bool:
        roster = self._gangs.roster
        known = roster.nodes.get(node)
        return known is not None and known.note is None and roster.out(node) is None

    def _gone(self, run: Run) -> bool:
        """Whether it waits no more: it was cancelled."""
        return run.id not in self._runtime.book.queued

    async def _try(self, taken: _Taken) -> tuple[Evidence, bool]:
        """Round by round, until everything was tried and every suspicion followed, or the time is over."""
        start, runtime = taken.start, self._runtime
        until = runtime.monotonic() + runtime.settings.trial_s
        now = runtime.now()
        kept = [one for those in self._kept.values() for one in those]
        # Of another shape, a result is of another link.
        past = best(kept, self._shape(start.run, start.placement, taken.pairs[0]), now)
        worse = failures(kept, taken.nodes, now)
        todo, evidence, in_time = rounds(taken.pairs), Evidence(taken.nodes, (), past, worse), True
        try:
            await asyncio.gather(*(self._gangs.roster.hold(node) for node in taken.nodes))
        except (HoldRefused, AgentGone):
            return evidence, True  # its start will say the same
        while todo:
            if until - runtime.monotonic() < LEAST_S or self._gone(start.run):
                return evidence, False
            pairs = todo.pop(0)
            found = await asyncio.gather(
                *(self._ranks.run(start.run, start.placement, pair, until, self._gone) for pair in pairs)
            )
            in_time = in_time and None not in found
            taken.tried += [tried for tried, _ in filter(None, found)]
            await self._record(start, [one for one in found if one is not None])
            evidence = Evidence(taken.nodes, taken.tried, past, worse)
            if not todo and in_time:
                todo = rounds(evidence.open_pairs())
        return evidence, in_time

    async def _record(self, start: Start, found: list[tuple[Tried, Mapping[str, object]]]) -> None:
        """Keeps what came of pairs; what a node did wrong by itself says nothing of them."""
        now = self._runtime.now()
        rows = []
        for tried, versions in found:
            if not tried.alone and not tried.culprits:
                shape = self._shape(start.run, start.placement, tried.pair)
                # As the nodes say them, so that they are found again; what only the ranks say is kept besides.
                told = {name: value for name in ("driver", "nccl") if (value := getattr(shape, name)) is not None}
                rows.append(
                    Kept(
                        _sorted(tried.pair),
                        now,
                        start.run.id,
                        shape.model,
                        shape.ranks,
                        tried.busbw,
                        tried.promised,
                        tried.failure,
                        {**versions, **told},
                    )
                )
        for row in rows:
            self._keep(row)
        try:
            if rows:
                await self._runtime.db(self._runtime.store.record_trials, rows)
        except StaleEpoch:
            raise
        except StoreError as error:
            log.error("what was tried for run %s could not be recorded: %s", start.run.id, error)


def _sorted(pair: Pair) -> tuple[str, str]:
    first, second = sorted(pair)
    return first, second
