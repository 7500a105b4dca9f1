"""Which nodes may be used: what was decided about each, how well it is, and how it stands in the history; put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.control.drains import Drained, Drains
from orchestrator.control.gangs import Gangs
from orchestrator.control.node_marks import NodeMarks
from orchestrator.control.node_watch import NodeWatch
from orchestrator.control.quarantines import Quarantines
from orchestrator.control.refused import Refused
from orchestrator.control.runtime import Runtime
from orchestrator.health import finding, node_health
from orchestrator.health.node_health import Finding, Severity
from orchestrator.history.nodes import NodeEvent
from orchestrator.history.render import time_json


class NodeCare:
    """One per controller; what it says is asked of by the roster with each decision."""

    def __init__(self, runtime: Runtime, gangs: Gangs) -> None:
        self._runtime, self._roster = runtime, gangs.roster
        self.marks = NodeMarks(runtime)
        self.watch = NodeWatch(runtime, gangs.roster, self.marks)
        self.quarantines = Quarantines(runtime, gangs.roster, self.marks)
        self._drains = Drains(runtime, gangs, self.marks, self.watch.unwell)
        gangs.roster.out, gangs.roster.health = self.out, self.watch.degraded
        gangs.roster.shunned = self.shunned
        gangs.roster.on_vitals = self.watch.look
        gangs.endings.on_ended = self.quarantines.ended

    async def load(self) -> None:
        """Reads what was decided; before any node is looked at."""
        self.watch.take_up(await self.marks.load())

    async def start(self) -> None:
        """The live runs have been taken up."""
        await self._drains.enforce()
        self.quarantines.start()

    def out(self, node: str) -> str | None:
        """Why nothing new is placed on the node; None where it may be used."""
        decided, unfit = self.marks.of(node).out, self.watch.unfit(node)
        return f"{decided}; {unfit}" if decided and unfit else decided or unfit

    def shunned(self) -> dict[str, str]:
        """The nodes in quarantine, and why: nothing is placed there that others will do for."""
        return {node: why for node, mark in self.marks if (why := mark.shunned) is not None}

    def findings(self, node: str) -> tuple[Finding, ...]:
        """What is wrong with it, the worst first."""
        return (*self.watch.findings(node), *self.quarantines.findings(node))

    def severity(self, node: str) -> Severity:
        return node_health.worst(self.findings(node))

    def for_doctor(self, only: str | None) -> list[finding.Finding]:
        names = [only] if only is not None else sorted(self._roster.nodes)
        return [one for name in names for one in node_health.for_doctor(self.findings(name))]

    # -- what users ask for --------------------------------------------------------------------------------------

    async def drain(self, nodes: Sequence[str], by: str | None, reason: str | None, when_idle: bool) -> list[Drained]:
        """As Drains.drain. Raises Refused(3)."""
        return await self._drains.drain(nodes, by, reason, when_idle)

    async def undrain(self, nodes: Sequence[str], by: str | None) -> list[Drained]:
        """As Drains.undrain. Raises Refused(3)."""
        found = await self._drains.undrain(nodes, by)
        for one in found:
            if not one.already:
                await self.watch.forgive(one.node)
                self.quarantines.proposed.pop(one.node, None)
        self._runtime.wake.set()
        return found

    async def history(self, names: Sequence[str], limit: int) -> list[NodeEvent]:
        """What happened to nodes, oldest first; to all where none is named. Raises Refused(3) for one that was never seen."""
        known = self._roster.nodes.keys() | {name for name, _ in self.marks}
        if unknown := [name for name in names if name not in known]:
            raise Refused(3, f"no such node: {', '.join(unknown)}")
        return await self._runtime.read(self._runtime.store.node_events, names, limit)

    # -- as JSON -------------------------------------------------------------------------------------------------

    def json(self, node: str) -> dict[str, Any]:
        """What `orch nodes --json` says of it beside what it is."""
        mark, score = self.marks.of(node), self.quarantines.scores.get(node)
        drain, quarantine = mark.drain, mark.quarantine
        seen = self._roster.nodes[node].vitals is not None if node in self._roster.nodes else False
        return {
            "health": self.severity(node).word if seen or self.findings(node) else None,
            "findings": [node_health.to_json(one) for one in self.findings(node)],
            "drained": None
            if drain is None
            else {
                "at": time_json(drain.at),
                "by": drain.by,
                "reason": drain.reason,
                "when_idle": drain.when_idle,
            },
            "quarantine": None
            if quarantine is None or quarantine.stage == "cleared"
            else {
                "stage": quarantine.stage,
                "since": time_json(quarantine.since),
                "until": time_json(quarantine.until),
                "times": quarantine.times,
                "why": quarantine.why,
            },
            "score": None
            if score is None
            else {
                "attempts": score.attempts,
                "failures": score.failures,
                "expected": score.expected,
                "chance": score.chance,
            },
        }
