"""How well the nodes are: each agent's look held against the node's past, what that changes, and what is told of it."""

from __future__ import annotations

import logging

from orchestrator.control.node_marks import NodeMarks
from orchestrator.control.roster import Node, Roster
from orchestrator.control.runtime import Runtime
from orchestrator.health import node_past
from orchestrator.health.node_health import (
    FLAPS_TO_DRAIN,
    Finding,
    Known,
    Severity,
    examine,
    unfit,
    worst,
)
from orchestrator.health.node_past import Past
from orchestrator.history.errors import StaleEpoch, StoreError
from orchestrator.history.nodes import NodeEvent

log = logging.getLogger("orch.nodes")

DEGRADED = 0.5
"""What placement takes a degraded node for, where a well one is 1."""


class NodeWatch:
    """What was found of each node at the newest look."""

    def __init__(self, runtime: Runtime, roster: Roster, marks: NodeMarks) -> None:
        self._runtime, self._roster, self._marks = runtime, roster, marks
        self._pasts: dict[str, Past] = {}
        self._findings: dict[str, tuple[Finding, ...]] = {}
        self._unfit: dict[str, str] = {}
        self._degraded: dict[str, float] = {}

    def take_up(self, pasts: dict[str, dict[str, object]]) -> None:
        """What the controller before this one knew."""
        self._pasts = {node: node_past.of_json(past) for node, past in pasts.items()}

    def findings(self, node: str) -> tuple[Finding, ...]:
        return self._findings.get(node, ())

    def unfit(self, node: str) -> str | None:
        """Why the node's health forbids a new run there."""
        return self._unfit.get(node)

    def unwell(self, node: str) -> str | None:
        """What is wrong with it beyond a warning."""
        return "; ".join(one.text for one in self.findings(node) if one.severity >= Severity.DEGRADED) or None

    def degraded(self) -> dict[str, float]:
        """What placement takes the nodes for that are not quite well."""
        return self._degraded

    async def look(self, node: Node) -> None:
        """An agent has looked at its node."""
        name, seen, now = node.facts.name, node.vitals, self._runtime.now()
        assert seen is not None
        before = self._pasts.get(name, Past())
        past = self._pasts[name] = node_past.remember(before, seen, now.timestamp())
        events = self._judge(node)
        if past == before and not events:
            return
        try:
            await self._runtime.write(self._runtime.store.remember_node, name, node_past.to_json(past), events)
        except StaleEpoch:
            raise
        except StoreError as error:
            log.error("what was seen of node %s could not be recorded: %s", name, error)

    async def forgive(self, name: str) -> None:
        """Somebody says that the node is well as it is: what it had before counts no more."""
        past = self._pasts[name] = node_past.forgiven(self._pasts.get(name, Past()))
        node = self._roster.nodes.get(name)
        events: list[NodeEvent] = []
        if node is not None and node.vitals is not None:
            past = self._pasts[name] = node_past.remember(past, node.vitals, self._runtime.now().timestamp())
            events = self._judge(node)
        await self._runtime.write(self._runtime.store.remember_node, name, node_past.to_json(past), events)

    def _judge(self, node: Node) -> list[NodeEvent]:
        """Takes in what is wrong with the node now; what of that is news to its history."""
        name, now = node.facts.name, self._runtime.now()
        assert node.vitals is not None
        forgiven = self._marks.of(name).forgiven_at
        found = examine(
            Known(
                name,
                node.vitals,
                self._pasts[name],
                now.timestamp(),
                node.facts.total if node.facts.device == "cuda" else None,
                node.info.get("host"),
                node.clock.ahead,
                0.0 if forgiven is None else forgiven.timestamp(),
            )
        )
        before, self._findings[name] = self._findings.get(name, ()), found
        was, severity = worst(before), worst(found)
        # New mappings: whoever compares them with those of before must see a change.
        text, poor = unfit(found), severity >= Severity.DEGRADED
        self._unfit = {one: why for one, why in self._unfit.items() if one != name} | ({name: text} if text else {})
        others = {one: score for one, score in self._degraded.items() if one != name}
        self._degraded = others | ({name: DEGRADED} if poor else {})
        events = []
        if was != severity:
            self._runtime.wake.set()
            if poor or was >= Severity.DEGRADED:
                what = severity.word if poor else "recovered"
                told = "; ".join(one.text for one in (found if poor else before) if one.severity >= Severity.DEGRADED)
                log.warning("node %s: %s: %s", name, what, told)
                events.append(NodeEvent(now, name, what, None, told))
        for one in found:
            if _flaps(one) and not any(map(_flaps, before)):
                events.append(NodeEvent(now, name, "proposed", None, f"drain: {one.text}"))
        return events


def _flaps(one: Finding) -> bool:
    return one.what == "flaps" and one.numbers["flaps"] >= FLAPS_TO_DRAIN
