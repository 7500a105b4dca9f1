"""The event loop: jobs come and end, a policy decides, a fake cluster obeys; time is a number."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from orchestrator.placement.tree import Free, Topology
from orchestrator.scheduling.simulate.jobs import Job, Trace
from orchestrator.scheduling.simulate.speed import Speed
from orchestrator.scheduling.simulate.world import Decision, Life, Parts, Policy, World

_ARRIVES, _ENDS, _LOOKS = range(3)
_MOST_ASKED = 100_000
"""Times that a policy is asked at one moment before it is taken for stuck."""


@dataclass(frozen=True)
class Costs:
    """What starting and stopping cost."""

    start_s: float = 0.0
    """Of a job's first start, in seconds in which its GPUs do nothing: 0 where the trace's durations hold it."""
    restart_s: float = 30.0
    """Of every further start."""
    checkpoint_s: float = 0.0
    """Preempted work is lost back to the last whole multiple of this, in seconds of the attempt's work; 0: nothing is
    lost."""
    cycle_s: float = 0.0
    """Policies are asked only at multiples of this; 0: as soon as something happens."""


@dataclass
class Integral:
    """What a replay adds up over time, and what it looked like at each event."""

    busy: float = 0.0
    """GPU-seconds held."""
    scattered: float = 0.0
    """Over seconds in which some GPU was free: how much smaller the largest gang that fits one node is than it would be if
    the free GPUs lay together, as a share."""
    some_free_s: float = 0.0
    times: list[float] = field(default_factory=list)
    """When the policy was asked; what follows held from then on."""
    held: list[int] = field(default_factory=list)
    """GPUs."""
    waiting: list[int] = field(default_factory=list)
    """Jobs in the queue."""


@dataclass(frozen=True)
class Replayed:
    """One policy's whole replay."""

    policy: str
    topology: Topology
    lives: tuple[Life, ...]
    never: tuple[Job, ...]
    """Jobs that do not fit the empty cluster."""
    integral: Integral
    span_s: float
    """From the first submission to the last."""
    makespan_s: float
    """From the first submission to the last end."""


class Replay:
    """One trace under one policy. `run()` once."""

    def __init__(
        self, trace: Trace, topology: Topology, policy: Policy, speed: Speed, costs: Costs | None = None
    ) -> None:
        self._policy, self._speed, self._costs = policy, speed, costs or Costs()
        self._topology, self._span_s = topology, trace.span_s
        free = Free(topology)
        self._world = World(topology, free, [free.mask(node.index) for node in topology.nodes])
        self.integral = Integral()
        self._now = self._since = self._last_s = 0.0
        self._look_s = math.inf
        """When the policy is asked next, if nothing happens before."""
        self._events: list[tuple[float, int, int, int]] = []
        self.lives: list[Life] = []
        self.never: list[Job] = []
        self.finished = 0
        for job in trace.jobs:
            ideal = speed.ideal(job)
            if ideal is None:
                self.never.append(job)
                continue
            life = Life(job, len(self.lives), speed.seconds(job, ideal), began_s=job.submit_s)
            self.lives.append(life)
            self._push(job.submit_s, _ARRIVES, life.number)

    def run(self, tell: Callable[[int, int], None] | None = None) -> Replayed:
        """Replays to the last job's end. `tell` hears after each moment how many jobs of how many have ended.

        RuntimeError where the policy leaves jobs waiting on an idle cluster for good.
        """
        for _ in self.moments():
            if tell is not None:
                tell(self.finished, len(self.lives))
        if self.finished < len(self.lives):
            waits = next(iter(self._world.waiting.values()))
            raise RuntimeError(
                f"{self._policy.name} left {len(self._world.waiting)} jobs waiting for ever, the first of them job "
                f"{waits.job.id} ({waits.job.gpus} GPUs)"
            )
        return Replayed(
            self._policy.name,
            self._topology,
            tuple(self.lives),
            tuple(self.never),
            self.integral,
            self._span_s,
            self._last_s,
        )

    def moments(self) -> Iterator[World]:
        """The world after each moment at which something happened and the policy was asked."""
        world = self._world
        asked_at, asked = -1.0, 0
        while self._events:
            self._now = self._events[0][0]
            self._integrate()
            looks = self._happen()
            cycle = self._costs.cycle_s
            if cycle and not looks:
                if world.arrived or world.ended:
                    self._look_at(self._now)
                    self._note()
                continue
            if not (looks or world.arrived or world.ended):
                continue  # an end that a preemption has made void
            asked_at, asked = self._now, asked + 1 if asked_at == self._now else 1
            if asked > _MOST_ASKED:
                raise RuntimeError(f"{self._policy.name} asks to be asked again at second {self._now:.0f} without end")
            decision = self._policy.decide(world, self._now)
            world.arrived, world.ended = [], []
            self._obey(decision)
            self._note()
            yield world

    def _happen(self) -> bool:
        """Takes in everything that happens now; whether it was time to look."""
        looks = False
        while self._events and self._events[0][0] == self._now:
            _, kind, number, start = heapq.heappop(self._events)
            if kind == _LOOKS:
                if self._now == self._look_s:
                    looks, self._look_s = True, math.inf
                continue
            life = self.lives[number]
            if kind == _ARRIVES:
                self._world.waiting[number] = life
                self._world.arrived.append(life)
            elif life.parts is not None and life.starts == start:
                self._end(life)
        return looks

    def _look_at(self, at: float) -> None:
        cycle = self._costs.cycle_s
        at = math.ceil(at / cycle - 1e-9) * cycle if cycle else at
        if at < self._look_s:
            self._look_s = at
            self._push(at, _LOOKS, -1)

    def _push(self, at: float, kind: int, number: int, start: int = 0) -> None:
        heapq.heappush(self._events, (at, kind, number, start))

    # -- effects -------------------------------------------------------------------------------------------------------

    def _obey(self, decision: Decision) -> None:
        for life in decision.stops:
            self._stop(life)
        for life, parts in decision.starts:
            self._start(life, parts)
        if decision.stops:
            waiting = self._world.waiting
            self._world.waiting = {number: waiting[number] for number in sorted(waiting)}
        # Its newest wish is the one that holds.
        self._look_s = math.inf
        if decision.look_again_s is not None and decision.look_again_s >= self._now:
            self._look_at(decision.look_again_s)

    def _start(self, life: Life, parts: Parts) -> None:
        if sum(mask.bit_count() for _, mask in parts) != life.job.gpus:
            raise ValueError(f"job {life.job.id} asked for {life.job.gpus} GPUs and was given another number: {parts}")
        del self._world.waiting[life.number]
        self._take(parts)
        cost = self._costs.restart_s if life.starts else self._costs.start_s
        life.parts, life.began_s, life.starts = parts, self._now, life.starts + 1
        life.works_from_s = self._now + cost
        life.whole_s = self._speed.seconds(life.job, parts)
        life.ends_s = life.works_from_s + (1 - life.done) * life.whole_s
        if life.first_start_s is None:
            life.first_start_s = self._now
        self._world.running[life.number] = life
        self._push(life.ends_s, _ENDS, life.number, life.starts)

    def _stop(self, life: Life) -> None:
        """Preempts: what was not saved is lost."""
        assert life.parts is not None, f"job {life.job.id} does not run"
        worked = max(0.0, self._now - life.works_from_s)
        step = self._costs.checkpoint_s
        saved = worked // step * step if step else worked
        life.done = min(1.0, life.done + saved / life.whole_s) if life.whole_s else 1.0
        life.lost_gpu_s += life.job.gpus * (self._now - life.began_s - saved)
        self._leave(life)
        self._world.waiting[life.number] = life

    def _end(self, life: Life) -> None:
        life.done, life.finished_s = 1.0, self._now
        self.finished += 1
        self._leave(life)
        self._world.ended.append(life)
        self._last_s = self._now

    def _leave(self, life: Life) -> None:
        assert life.parts is not None
        del self._world.running[life.number]
        life.ran_s += self._now - life.began_s
        life.began_s = self._now
        self._give(life.parts)
        life.last_parts, life.parts = life.parts, None

    def _take(self, parts: Parts) -> None:
        free = self._world.free
        for index, mask in parts:
            free.take_bits(index, mask)
            self._world.masks[index] = free.mask(index)

    def _give(self, parts: Parts) -> None:
        free = self._world.free
        for index, mask in parts:
            free.give_bits(index, mask)
            self._world.masks[index] = free.mask(index)

    # -- what is added up ----------------------------------------------------------------------------------------------

    def _integrate(self) -> None:
        """Adds what has held since the last event."""
        world, total = self._world, self.integral
        seconds, self._since = self._now - self._since, self._now
        free = world.free_gpus
        total.busy += seconds * (world.gpus - free)
        if free and seconds:
            largest = max(mask.bit_count() for mask in world.masks)
            total.scattered += seconds * (1 - largest / min(free, world.largest))
            total.some_free_s += seconds

    def _note(self) -> None:
        total = self.integral
        total.times.append(self._now)
        total.held.append(self._world.gpus - self._world.free_gpus)
        total.waiting.append(len(self._world.waiting))
