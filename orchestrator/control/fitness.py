"""Which nodes a waiting run must not get: they lack what it requires, have not said yet, were found unfit before a start, or
an attempt of it broke there and others will do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

from orchestrator.control.preflight import Preflight
from orchestrator.control.roster import Roster
from orchestrator.control.runtime import Runtime
from orchestrator.control.surveys import Surveys
from orchestrator.placement.preflight import Problem
from orchestrator.placement.search import place
from orchestrator.placement.tree import Free, Topology
from orchestrator.placement.values import Rejection, Request
from orchestrator.scheduling import retry
from orchestrator.scheduling.ask import device_of, request_of
from orchestrator.scheduling.decision import Start
from orchestrator.scheduling.lifecycle import Event, IllegalTransition
from orchestrator.scheduling.run import Run


class Fitness:
    """What the nodes said of themselves, and what a look just before the start showed."""

    def __init__(self, runtime: Runtime, surveys: Surveys, preflight: Preflight) -> None:
        self._runtime, self._surveys, self._preflight = runtime, surveys, preflight

    def unfit(self, waiting: Sequence[Run], topology: Topology) -> dict[int, Mapping[str, str]]:
        """By run: the nodes that it must not get now, and why."""
        for python in {run.spec.python for run in waiting}:
            self._surveys.want(python)
        self._preflight.keep(run.id for run in waiting)
        found: dict[int, Mapping[str, str]] = {}
        judged: dict[object, dict[str, str]] = {}
        others = _Others(self._preflight.roster, topology)
        all_are_well = self._preflight.all_are_well and others.all_are_well
        for run in waiting:
            if all_are_well and not run.attempts and not run.spec.requires:
                continue  # as most of a long queue
            out = self._preflight.left_out(run.id)
            if run.spec.requires:
                device = device_of(run.spec, topology)
                # Runs of a sweep ask for the same.
                key = device, run.spec.python, tuple(run.spec.requires.items())
                if key not in judged:
                    fail, unknown = self._surveys.judge(run.spec, device)
                    judged[key] = fail | unknown
                out = judged[key] | out
            broke_on = retry.avoided(run, self._runtime.now()) if run.attempts else {}
            if out := out | others.will_do(run, out, broke_on):
                found[run.id] = out
        return found

    async def fit(self, starts: Sequence[Start]) -> list[Start]:
        """Those whose nodes are well at this moment; the others are placed again, without the nodes that are not."""
        bad = await self._preflight.look([(start.run, start.placement) for start in starts])
        for start in starts:
            if start.run.id in bad:
                await self.swap(start.run, bad[start.run.id])
        return [start for start in starts if start.run.id not in bad]

    async def swap(self, run: Run, problems: Sequence[Problem]) -> None:
        """Leaves the nodes out for the run, and says why."""
        for problem in problems:
            self._preflight.leave_out(run.id, problem)
        await self.note(run, f"placed again without {'; '.join(map(str, problems))}")
        self._runtime.wake.set()

    async def note(self, run: Run, text: str) -> None:
        """Tells something of a run that waits."""
        runtime = self._runtime
        with suppress(IllegalTransition):  # it was cancelled meanwhile
            await runtime.write(runtime.store.record, run.id, Event.NOTED, runtime.now(), text)
            runtime.tell(run.id)


class _Others:
    """Whether a run can do without the nodes that are better left alone. That the others are busy is no reason to go back to
    those; that they are down or unfit is."""

    def __init__(self, roster: Roster, topology: Topology) -> None:
        self._roster, self._topology = roster, topology
        self._shunned = dict(roster.shunned())
        self.all_are_well = not self._shunned
        self._well: Free | None = None
        self._known: dict[Request, bool] = {}

    def will_do(self, run: Run, out: Mapping[str, str], broke_on: Mapping[str, str]) -> dict[str, str]:
        """The nodes that its attempts broke on, and those in quarantine: both, or what of them it can do without."""
        for avoided in ({**self._shunned, **broke_on}, self._shunned, dict(broke_on)):
            if avoided and self._fits(request_of(run.spec, self._topology, exclude={**out, **avoided})):
                return avoided
        return {}

    def _fits(self, request: Request) -> bool:
        if request not in self._known:
            # The cluster as if nobody held anything of it: only what is down or unhealthy is left out.
            self._well = self._well or self._roster.free({})
            self._known[request] = not isinstance(place(request, self._topology, self._well), Rejection)
        return self._known[request]
