"""The policies that orch is compared with: who of the waiting starts, whatever places them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from orchestrator.scheduling.simulate.placers import Placer
from orchestrator.scheduling.simulate.world import Decision, Life, Parts, World


class _Draft:
    """The nodes' free GPUs while a decision is made."""

    def __init__(self, masks: Sequence[int]) -> None:
        self.masks = list(masks)
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
        return placer(life.job, self.masks) if life.job.gpus <= self.free else None


@dataclass
class Fifo:
    """In order of submission. `greedy`: whoever fits may pass those who do not, who may then wait for ever."""

    placer: Placer
    greedy: bool = False
    name: str = "fifo"

    def decide(self, world: World, now: float) -> Decision:
        draft, starts = _Draft(world.masks), []
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
    name: str = "fifo-backfill"

    def decide(self, world: World, now: float) -> Decision:
        draft = _Draft(world.masks)
        starts: list[tuple[Life, Parts]] = []
        reserved_s, beside = math.inf, None
        for life in world.waiting.values():
            if not draft.free:
                break
            parts = draft.place(life, self.placer)
            if beside is None:
                if parts is None:
                    reserved_s, beside = self._reservation(life, world, draft, starts, now)
                    continue
            elif parts is None or not self._harmless(life, parts, now, reserved_s, beside):
                continue
            draft.take(parts)
            starts.append((life, parts))
            if beside is not None and now + _limit(life) > reserved_s:
                for index, mask in parts:
                    beside[index] -= mask.bit_count()
        return Decision(starts=starts)

    def _reservation(
        self, head: Life, world: World, draft: _Draft, started: Sequence[tuple[Life, Parts]], now: float
    ) -> tuple[float, list[int]]:
        """When the head can start, and by node what is left beside it then."""
        ends: list[tuple[float, int, Parts]] = [
            (max(now, life.began_s + _limit(life)), life.number, life.parts or ()) for life in world.running.values()
        ]
        ends += [(now + _limit(life), life.number, parts) for life, parts in started]
        later = _Draft(draft.masks)
        for end, _, parts in sorted(ends, key=lambda each: each[:2]):
            later.give(parts)
            place = later.place(head, self.placer)
            if place is not None:
                later.take(place)
                return end, [mask.bit_count() for mask in later.masks]
        return math.inf, [0] * len(later.masks)

    @staticmethod
    def _harmless(life: Life, parts: Parts, now: float, reserved_s: float, beside: Sequence[int]) -> bool:
        return now + _limit(life) <= reserved_s or all(mask.bit_count() <= beside[index] for index, mask in parts)


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
        draft, starts = _Draft(world.masks), []
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
