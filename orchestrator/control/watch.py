"""Whether live attempts get on: hung ones are looked into and ended, slow ranks and idle GPUs are pointed out.

The decisions are health/'s (standstill.py, hang.py, stacks.py, stragglers.py); here is when they are asked, and what follows.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from orchestrator.control.backend import Report, StaleController
from orchestrator.control.gang import Gang, PartState
from orchestrator.control.gang_progress import GangProgress
from orchestrator.control.limits import Ends, end_for_sure
from orchestrator.control.logs import LogFolder
from orchestrator.control.measuring import Measuring
from orchestrator.control.rank_progress import RankProgress
from orchestrator.control.roster import Roster
from orchestrator.control.runtime import Runtime
from orchestrator.health.hang import Verdict, explained, verdict
from orchestrator.health.stacks import Evidence, RankStack
from orchestrator.health.standstill import Limits, Standstill, judge
from orchestrator.health.stragglers import IdleGpus, Slow, Stragglers
from orchestrator.history.errors import StoreError
from orchestrator.policy import Policy
from orchestrator.scheduling.lifecycle import Event, IllegalTransition
from orchestrator.scheduling.run import Run, Stop
from orchestrator.spec import JobSpec

log = logging.getLogger("orch.watch")

WINDOW_S = 10.0
DDP_STEPS = 100
"""DDP measures a rank's own work at every hundredth step."""
AGAIN_S = 5.0
"""How long newer looks are waited for, and until a gang that still stands still is looked into again."""
GPU_LOOK_S, IDLE_S = 5.0, 600.0
"""How far apart an agent's looks at a GPU are, and for how long it may be held and do nothing until that is told."""


def limits_of(spec: JobSpec, policy: Policy) -> Limits | None:
    """How long the job's gang may stand still; None: for ever."""
    asked = spec.hang
    if asked is not None and asked.off:
        return None
    after = policy.hang if asked is None or asked.after is None else asked.after
    first = policy.first_step if asked is None or asked.first is None else asked.first
    return None if after is None and asked is None else Limits(after or Limits.after, first, asked=asked is not None)


@dataclass
class _Watched:
    """What is kept of one attempt."""

    looked_into: bool = False
    """Its stacks are being taken."""
    again: float = 0.0
    """How long it must have stood still until it is looked into, again."""
    stragglers: Stragglers = field(default_factory=Stragglers)
    idle: IdleGpus = field(default_factory=lambda: IdleGpus(math.ceil(IDLE_S / GPU_LOOK_S)))
    window: tuple[float, dict[int, RankProgress]] | None = None
    """When it began, and the looks then."""
    notes: dict[str, str] = field(default_factory=dict)
    """What holds at this moment, by what it is about."""


class Watch:
    """One per controller."""

    def __init__(
        self,
        runtime: Runtime,
        roster: Roster,
        measuring: Measuring,
        logs: LogFolder,
        gangs: Callable[[], Iterable[Gang]],
        ends: Ends,
    ) -> None:
        self._runtime, self._roster, self._measuring, self._logs = runtime, roster, measuring, logs
        self._gangs, self._ends = gangs, ends
        self._watched: dict[tuple[int, int], _Watched] = {}

    def start(self) -> None:
        self._runtime.forever("watching progress", self._look, self._runtime.settings.progress_look_s)

    def take_in(self, node: str, report: Report) -> None:
        """What a node's agent tells of GPUs."""
        for look in report.gpus:
            if (watched := self._watched.get((look.run, look.attempt))) is not None:
                watched.idle.look(node, look.gpu, look.use.utilization)

    def notes(self, run: Run) -> list[str]:
        """What is worth telling of a live run at this moment."""
        watched = None if run.attempt is None else self._watched.get((run.id, run.attempt.number))
        return [] if watched is None else [text for _, text in sorted(watched.notes.items())]

    async def _look(self) -> None:
        gangs = {(gang.run, gang.attempt): gang for gang in self._gangs() if _runs(gang)}
        self._watched = {key: self._watched.get(key) or _Watched() for key in gangs}
        for key, gang in gangs.items():
            progress, watched = self._measuring.of(*key), self._watched[key]
            if progress is None:
                continue
            await self._point_out(gang, progress, watched)
            run = self._runtime.book.runs.get(gang.run)
            limits = limits_of(gang.spec if run is None else run.spec, self._runtime.settings.policy)
            found = None if limits is None else self._standstill(gang, progress, limits)
            if limits is None or found is None:
                watched.again = 0.0
            elif found.seconds >= watched.again and not watched.looked_into:
                watched.looked_into = True
                self._runtime.spawn(self._look_into(gang, progress, watched, limits))

    def _standstill(self, gang: Gang, progress: GangProgress, limits: Limits) -> Standstill | None:
        """None, too, while a node of it is not heard: how its ranks do is not known then."""
        nodes = [self._roster.nodes.get(node) for node in gang.parts]
        if not all(node is not None and node.up for node in nodes):
            return None
        return judge(progress.signs(min(limits.after, limits.first)), limits)

    # -- hangs -----------------------------------------------------------------------------------------------------

    async def _look_into(self, gang: Gang, progress: GangProgress, watched: _Watched, limits: Limits) -> None:
        try:
            before = await self.stacks(gang, whole=False)
            await asyncio.sleep(min(self._runtime.settings.confirm_s, limits.after / 2))
            after = await self.stacks(gang, whole=True)
            heard = await self._hears_of_all(progress)
            found = self._standstill(gang, progress, limits)
            if found is None or not _runs(gang):
                return
            watched.again = found.seconds + AGAIN_S
            if not heard:
                return
            if before is None or after is None:
                if not found.seen or found.seconds < limits.first:
                    return
                # Nodes that answer and yet cannot say where their ranks stand must not keep a hung gang for ever.
                before = after = {}
            match verdict(found, limits, before, after):
                case Verdict.HUNG:
                    await self._end(gang, progress, found, after)
                case Verdict.BUSY:
                    watched.again = found.seconds + found.limit
                case Verdict.UNSEEN:
                    watched.again = math.inf
                    await self._note(gang, watched, "unseen", _unseen(found))
        finally:
            watched.looked_into = False

    async def _hears_of_all(self, progress: GangProgress) -> bool:
        """Waits for a newer look at each rank than there is now; whether it came: who is not heard of may be getting on."""
        known = {rank: look.at for rank, look in progress.looks.items()}
        deadline = self._runtime.monotonic() + AGAIN_S
        while any(look.at <= known.get(rank, 0) for rank, look in progress.looks.items()):
            if self._runtime.monotonic() >= deadline:
                return False
            await asyncio.sleep(self._runtime.settings.progress_look_s)
        return True

    async def stacks(self, gang: Gang, *, whole: bool) -> dict[int, RankStack] | None:
        """Where the ranks that live stand; None where a node could not be asked, or a rank is just ending."""
        runtime = self._runtime
        asked = [node for node, part in gang.parts.items() if part.state is PartState.UP]
        try:
            answers = await asyncio.gather(
                *(self._roster.agent(node).stacks(runtime.epoch, gang.run, gang.attempt, whole) for node in asked)
            )
        except StaleController:
            raise
        except Exception as error:  # an agent of another version, a launcher that has just died
            log.warning("the stacks of run %s: %s", gang.run, error)
            return None
        found = {stack.rank: stack for answer in answers for stack in answer if stack.rank not in gang.exit_codes}
        gone = any(not stack.state for stack in found.values())
        return None if gone or len(found) + len(gang.exit_codes) < gang.world_size else found

    async def keep_stacks(self, gang: Gang) -> None:
        """For somebody who asks: takes them now. Where they cannot be had, those of the last time stay."""
        if gang.stop is None and (stacks := await self.stacks(gang, whole=True)) is not None:
            progress = self._measuring.of(gang.run, gang.attempt)
            await asyncio.to_thread(self.save, gang, stacks, {} if progress is None else _steps(progress))

    async def _end(
        self, gang: Gang, progress: GangProgress, found: Standstill, stacks: Mapping[int, RankStack]
    ) -> None:
        where = _where(gang)
        steps = _steps(progress)
        nodes = {rank: node for rank, (node, _) in where.items()}
        reason, culprit = explained(found, Evidence(stacks, steps, gang.exit_codes, nodes))
        saved = await asyncio.to_thread(self.save, gang, stacks, steps)
        shown = f"all stacks: `orch logs {gang.run} --attempt {gang.attempt} --stacks`"
        reason += f"; {shown if saved else 'the stacks could not be kept'}"
        rank = None if culprit is None else culprit.ranks[0]
        log.warning("run %s: %s", gang.run, reason)
        await end_for_sure(
            self._runtime,
            self._ends,
            gang,
            Stop("hang", reason, rank=rank, node=None if rank is None else nodes.get(rank)),
        )

    def save(self, gang: Gang, stacks: Mapping[int, RankStack], steps: Mapping[int, int]) -> bool:
        """Keeps them beside the ranks' logs; whether that was possible."""
        where = _where(gang)
        try:
            for rank, stack in sorted(stacks.items()):
                node, gpu = where[rank]
                kind = "GPU" if gang.placement.device == "cuda" else "slot"
                step = f", {steps[rank]:,} steps done" if rank in steps else ""
                text = f"rank {rank} on {node} ({kind} {gpu}){step}: {stack.place or 'nobody knows where it stands'}\n"
                text += f"{stack.text}\n"
                if stack.recorded is not None:
                    newest = "".join(f"  {one}\n" for one in stack.recorded.newest)
                    text += f"its newest collectives, by torch's flight recorder:\n{newest}"
                self._logs.write_stack(gang.run, gang.attempt, rank, text)
        except OSError as error:
            log.error("the stacks of run %s could not be kept: %s", gang.run, error)
            return False
        return True

    # -- what is pointed out ---------------------------------------------------------------------------------------

    async def _point_out(self, gang: Gang, progress: GangProgress, watched: _Watched) -> None:
        idle, where = watched.idle.idle, _where(gang)
        if idle:
            await self._note(gang, watched, "idle", _idle(idle, sum(len(n.gpus) for n in gang.placement.nodes)))
        elif watched.notes.pop("idle", None) is not None:
            await self._tell(gang, "its GPUs are used again")
        if (times := self._window(progress, watched)) is None:
            return
        began, ended = watched.stragglers.observe(times)
        for slow in began:
            await self._note(gang, watched, f"slow {slow.rank}", _slow(slow, gang, where))
        for rank in ended:
            if watched.notes.pop(f"slow {rank}", None) is not None:
                await self._tell(gang, f"rank {rank} on {where[rank][0]} is as fast as the others again")

    def _window(self, progress: GangProgress, watched: _Watched) -> dict[int, float] | None:
        """Each rank's own work of a step in the window that is over now; None while none is."""
        now, looks = self._runtime.monotonic(), progress.looks
        if watched.window is None or watched.window[1].keys() != looks.keys():
            watched.window = now, looks
            return None
        began, base = watched.window
        if now - began < WINDOW_S:
            return None
        times = progress.own_times(base)
        fewest = min((look.steps - base[rank].steps for rank, look in looks.items()), default=0)
        if times is None or (any(look.own_time for look in looks.values()) and fewest < DDP_STEPS):
            return None
        watched.window = now, looks
        return times

    async def _note(self, gang: Gang, watched: _Watched, about: str, text: str) -> None:
        """Tells of something once, while it lasts."""
        if about not in watched.notes:
            watched.notes[about] = text
            await self._tell(gang, text)

    async def _tell(self, gang: Gang, text: str) -> None:
        runtime = self._runtime
        try:
            await runtime.write(runtime.store.record, gang.run, Event.NOTED, runtime.now(), text)
        except IllegalTransition:
            return  # it has ended meanwhile
        except StoreError as error:
            log.error("of run %s could not be recorded: %s (%s)", gang.run, text, error)
        runtime.tell(gang.run)


def _runs(gang: Gang) -> bool:
    return gang.up and gang.stop is None and gang.failure is None and not gang.over


def _steps(progress: GangProgress) -> dict[int, int]:
    return {rank: look.steps for rank, look in progress.looks.items() if look.steps}


def _where(gang: Gang) -> dict[int, tuple[str, int]]:
    """By rank: its node and GPU."""
    return {
        rank: (part.node, gpu) for part in gang.placement.nodes for rank, gpu in zip(part.ranks, part.gpus, strict=True)
    }


def _slow(slow: Slow, gang: Gang, where: Mapping[int, tuple[str, int]]) -> str:
    node, gpu = where[slow.rank]
    place = f" (GPU {gpu})" if gang.placement.device == "cuda" else ""
    return (
        f"rank {slow.rank} on {node}{place}: {slow.factor:.1f}x slower than the others "
        f"({slow.time * 1000:.3g} ms of own work a step, theirs {slow.others * 1000:.3g} ms)"
    )


def _idle(gpus: list[tuple[str, int]], of: int) -> str:
    by_node: dict[str, list[int]] = {}
    for node, gpu in gpus:
        by_node.setdefault(node, []).append(gpu)
    named = "; ".join(f"{node}: {', '.join(map(str, some))}" for node, some in list(by_node.items())[:4])
    more = f" and {len(by_node) - 4} more nodes" if len(by_node) > 4 else ""
    return f"GPUs held and idle for {IDLE_S / 60:.0f} min: {len(gpus)} of {of} ({named}{more})"


def _unseen(found: Standstill) -> str:
    return (
        f"nothing has been seen of it for {found.seconds / 60:.0f} min: no step, no batch, no report, no output. It is not ended "
        "for that, as it may be meant to wait; `hang:` in the job file has it ended"
    )
