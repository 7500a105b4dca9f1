"""Nodes that somebody takes out of use, and brings back: nothing new is placed on a drained one, and what is there gives way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from orchestrator.control.gangs import Gangs
from orchestrator.control.node_marks import NodeMarks
from orchestrator.control.refused import Refused
from orchestrator.control.runtime import Runtime
from orchestrator.health.marks import Drain, Mark, cleared
from orchestrator.history.nodes import NodeEvent
from orchestrator.scheduling.lifecycle import State
from orchestrator.scheduling.run import Run, Stop


@dataclass(frozen=True)
class Drained:
    """What draining a node did, or undraining it."""

    node: str
    already: bool
    """Nothing had to be changed."""
    runs: tuple[int, ...] = ()
    """That are on the node: they give way, or end by themselves where the node is drained when idle."""


class Drains:
    """Over the marks and the live runs."""

    def __init__(self, runtime: Runtime, gangs: Gangs, marks: NodeMarks, unwell: Callable[[str], str | None]) -> None:
        """`unwell` says what keeps a node back for its health."""
        self._runtime, self._gangs, self._marks, self._unwell = runtime, gangs, marks, unwell

    async def drain(self, nodes: Sequence[str], by: str | None, reason: str | None, when_idle: bool) -> list[Drained]:
        """Takes nodes out of use; recorded when this returns, and with it that their runs are to give way.

        Raises Refused(3), changing nothing, where one of them is not in the cluster.
        """
        nodes = list(dict.fromkeys(nodes))
        known = self._gangs.roster.nodes
        if missing := [name for name in nodes if name not in known or known[name].task is None]:
            gone = [name for name in missing if name in known]
            more = f"; {', '.join(gone)} left the cluster" if gone else ""
            raise Refused(3, f"no such node: {', '.join(missing)}{more}")
        now = self._runtime.now()
        async with self._marks.lock:
            new: dict[str, Mark] = {}
            for name in nodes:
                mark = self._marks.of(name)
                drain = Drain(now, by, reason, when_idle)
                if mark.drain is not None:
                    drain = replace(drain, reason=reason or mark.drain.reason)
                    if replace(drain, at=mark.drain.at, by=mark.drain.by) == mark.drain:
                        continue
                new[name] = replace(mark, drain=drain)
            events = [NodeEvent(now, name, "drained", by, _told(mark)) for name, mark in new.items()]
            await self._marks.change(new, events)
        on = {name: tuple(run.id for run in self._on(name)) for name in nodes}
        await self.enforce()
        return [Drained(name, name not in new, on[name]) for name in nodes]

    async def enforce(self) -> None:
        """Ends what is on drained nodes and may not end by itself; also what a controller before this one had no time for."""
        for name, mark in self._marks:
            if mark.drain is not None and not mark.drain.when_idle:
                for run in self._on(name):
                    if run.state is not State.STOPPING:
                        await self._gangs.stop(run, Stop("drained", f"node {name} is {mark.drain.text}"))

    def _on(self, node: str) -> list[Run]:
        """The live runs with a part there."""
        return [
            run
            for run in self._runtime.book.live()
            if run.attempt is not None and any(part.node == node for part in run.attempt.placement.nodes)
        ]

    async def undrain(self, nodes: Sequence[str], by: str | None) -> list[Drained]:
        """Brings nodes back into use: what was decided about them is lifted, a quarantine too, and what was seen of their health
        is forgiven. A node that left the cluster can be undrained. Raises Refused(3), changing nothing, for one that is not known.
        """
        nodes = list(dict.fromkeys(nodes))
        roster = self._gangs.roster
        if missing := [name for name in nodes if name not in roster.nodes and self._marks.of(name) == Mark()]:
            raise Refused(3, f"no such node: {', '.join(missing)}")
        now = self._runtime.now()
        async with self._marks.lock:
            new, events = {}, []
            for name in nodes:
                mark = self._marks.of(name)
                lifted = mark.quarantine if mark.quarantine and mark.quarantine.stage != "cleared" else None
                decided = [one.text for one in (mark.drain, lifted) if one is not None]
                if not (told := "; ".join(filter(None, (*decided, self._unwell(name))))):
                    continue
                new[name] = Mark(None, mark.quarantine if lifted is None else cleared(lifted, now), now)
                events.append(NodeEvent(now, name, "undrained", by, f"was {told}"))
            await self._marks.change(new, events)
        return [Drained(name, name not in new, tuple(run.id for run in self._on(name))) for name in nodes]


def _told(mark: Mark) -> str | None:
    assert mark.drain is not None
    told = (mark.drain.reason, "its runs may end by themselves" if mark.drain.when_idle else None)
    return "; ".join(filter(None, told)) or None
