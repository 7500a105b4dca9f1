"""The policies that orch is compared with: who of the waiting starts, whatever places them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from orchestrator.scheduling.simulate.placers import Placer
from orchestrator.scheduling.simulate.world import Decision, Life, Parts, World


class _Draft:
    """The nodes' free GPUs while a decision is made."""

    def __init__(self, masks: Sequence[int], largest: int) -> None:
        self.masks, self.largest = list(masks), largest
        self.free = sum(mask.bit_count() for mask in masks)

    def take(self, parts: Parts) -> None:
        for index, mask in parts:
            self.masks[index] &= ~mask
            self.free -= mask.bit_count()

    def give(self, parts: Parts) -> None:
        for index, mask in parts:
            self.masks[index] |= mask
            self.free += mask.bit_count()

    def place(self, life: Life, placer: Placer) -> Parts | None:
        return placer(life.job, self.masks, self.largest) if life.job.gpus <= self.free else None


@dataclass
class Fifo:
    """In order of submission. `greedy`: whoever fits may pass those who do not, who may then wait for ever."""

    placer: Placer
    greedy: bool = False
    name: str = "fifo"

    def decide(self, world: World, now: float) -> Decision:
        draft, starts = _Draft(world.masks, world.largest), []
        for life in world.waiting.values():
            if not draft.free:
                break
            parts = draft.place(life, self.placer)
            if parts is not None:
                draft.take(parts)
                starts.append((life, parts))
            elif not self.greedy:
                break
        return Decision(starts=starts)


@dataclass
class Backfill:
    """EASY: in order of submission, with a reservation for the first that does not fit; others pass it if they end before
    that or take GPUs that it will not need.

    A job without a time limit is taken to run for ever. One that outlives its limit is taken to end at any moment.
    (Lifka, The ANL/IBM SP scheduling system, 1995.)
    """

    placer: Placer
    depth: int = 500
    """So many of those behind the head are looked at: the default of Slurm's bf_max_job_test."""
    name: str = "fifo-backfill"

    def decide(self, world: World, now: float) -> Decision:
        draft = _Draft(world.masks, world.largest)
        starts: list[tuple[Life, Parts]] = []
        queue = iter(world.waiting.values())
        for life in queue:
            parts = draft.place(life, self.placer)
            if parts is None:
                reserved_s, then = self._reservation(life, world, draft, starts, now)
                starts += self._backfilled(life, islice(queue, self.depth), draft, now, reserved_s, then)
                break
            draft.take(parts)
            starts.append((life, parts))
        return Decision(starts=starts)

    def _backfilled(
        self, head: Life, queue: Iterable[Life], draft: _Draft, now: float, reserved_s: float, then: _Draft
    ) -> Iterator[tuple[Life, Parts]]:
        """Those behind the head that start now. `then` is what is free when the head is to start."""
        for life in queue:
            if not draft.free:
                return
            stays = now + _limit(life) > reserved_s
            if stays and life.job.gpus > then.free - head.job.gpus:
                continue
            parts = draft.place(life, self.placer)
            if parts is None:
                continue
            if stays:
                then.take(parts)
                if then.place(head, self.placer) is None:
                    then.give(parts)
                    continue
            draft.take(parts)
            yield life, parts

    def _reservation(
        self, head: Life, world: World, draft: _Draft, started: Sequence[tuple[Life, Parts]], now: float
    ) -> tuple[float, _Draft]:
        """When the head can start, and what is free then."""
        ends: list[tuple[float, int, Parts]] = [
            (max(now, life.began_s + _limit(life)), life.number, life.parts or ()) for life in world.running.values()
        ]
        ends += [(now + _limit(life), life.number, parts) for life, parts in started]
        then = _Draft(draft.masks, draft.largest)
        for end, _, parts in sorted(ends, key=lambda each: each[:2]):
            then.give(parts)
            if then.place(head, self.placer) is not None:
                return end, then
        return math.inf, then


def _limit(life: Life) -> float:
    return math.inf if life.job.limit_s is None else life.job.limit_s


@dataclass
class LeastAttained:
    """Tiresias's discretised least attained service with two queues: those under the threshold before those over it, each
    first come first served; whoever is not among the first that fit by count is preempted.

    (Gu et al., NSDI 2019, section 3.3; without promotion of the starved, as in the simulator of Pollux, OSDI 2021.)
    """

    placer: Placer
    threshold_gpu_s: float = 16 * 3600.0
    name: str = "las"
    _young: dict[int, Life] = field(default_factory=dict)
    _old: dict[int, Life] = field(default_factory=dict)

    def decide(self, world: World, now: float) -> Decision:
        for life in world.ended:
            self._young.pop(life.number, None)
            self._old.pop(life.number, None)
        for life in world.arrived:
            self._young[life.number] = life
        for life in [life for life in self._young.values() if life.attained(now) >= self.threshold_gpu_s - 1e-6]:
            self._old[life.number] = self._young.pop(life.number)
        room, stops, wanted = world.gpus, [], []
        for queue in (self._young, self._old):
            for life in queue.values():
                if life.job.gpus <= room:
                    room -= life.job.gpus
                    if life.parts is None:
                        wanted.append(life)
                elif life.parts is not None:
                    stops.append(life)
        starts = self._placed(wanted, stops, world)
        return Decision(stops if starts else (), starts, self._next_demotion(starts, now))

    def _placed(self, wanted: Iterable[Life], stops: Sequence[Life], world: World) -> list[tuple[Life, Parts]]:
        draft, starts = _Draft(world.masks, world.largest), []
        for life in stops:
            draft.give(life.parts or ())
        for life in wanted:
            parts = draft.place(life, self.placer)
            if parts is not None:
                draft.take(parts)
                starts.append((life, parts))
        return starts

    def _next_demotion(self, starts: Sequence[tuple[Life, Parts]], now: float) -> float | None:
        """When the first running job of the young queue will have had its threshold."""
        begun = {life.number for life, _ in starts}
        return min(
            (
                now + (self.threshold_gpu_s - life.attained(now)) / life.job.gpus
                for life in self._young.values()
                if life.parts is not None or life.number in begun
            ),
            default=None,
        )
