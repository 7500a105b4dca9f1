"""Nodes that break runs more often than their like are left out for a while; and how they come back."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

from orchestrator.control.node_marks import NodeMarks
from orchestrator.control.roster import Roster
from orchestrator.control.runtime import Runtime
from orchestrator.health import lemon
from orchestrator.health.lemon import Score, Tally
from orchestrator.health.marks import Mark, Quarantine, lapsed, proven, quarantined
from orchestrator.health.node_health import Finding, Severity
from orchestrator.history.errors import StaleEpoch, StoreError
from orchestrator.history.nodes import Broken, NodeEvent
from orchestrator.scheduling import retry
from orchestrator.scheduling.lifecycle import Outcome
from orchestrator.scheduling.run import Run

log = logging.getLogger("orch.nodes")

SAYS_NOTHING = retry.FREE | retry.FINAL
"""Kinds of failure that say nothing of the node they name."""
LOOK_AGAIN_S = 600.0
"""How often nodes on probation are looked at though no attempt of theirs ends."""
BACK = 0.5
"""So large a part of one failure puts a node on probation back into quarantine: all of it, or half where two are suspected."""


class Quarantines:
    """Over the history and the marks. Asked after attempts that broke, and after those of nodes on probation."""

    def __init__(self, runtime: Runtime, roster: Roster, marks: NodeMarks) -> None:
        self._runtime, self._roster, self._marks = runtime, roster, marks
        self._asked = asyncio.Event()
        self._looked = 0.0
        self.scores: dict[str, Score] = {}
        """As of the last look."""
        self.proposed: dict[str, Score] = {}
        """Nodes that would be quarantined if not as many were as may be at once."""

    def start(self) -> None:
        self._asked.set()
        self._runtime.forever("judging nodes", self._judge_when_asked, 0.0)
        self._runtime.forever("nodes' quarantines", self._lapse, self._runtime.settings.watch_s)

    def ended(self, run: Run) -> None:
        """An attempt of the run has ended."""
        attempt = run.attempt
        if attempt is None:
            return
        marks = (self._marks.of(part.node).quarantine for part in attempt.placement.nodes)
        if attempt.outcome is Outcome.INFRA_ERROR or any(one and one.stage == "probation" for one in marks):
            self._asked.set()

    def findings(self, node: str) -> tuple[Finding, ...]:
        """What is held against the node, where it is not left out for that."""
        if (score := self.proposed.get(node)) is not None:
            text = f"{score.text}; as many nodes are in quarantine as may be at once (policy.quarantine)"
            numbers = {"failures": score.failures, "attempts": score.attempts, "expected": score.expected}
            return (Finding(node, "lemon", Severity.WARNING, text, f"orch drain {node}", numbers),)
        found = self._marks.of(node).quarantine
        if found is not None and found.stage == "probation":
            fix = "one more failure puts it back; `orch undrain` ends the probation"
            return (Finding(node, "lemon", Severity.WARNING, found.text, fix),)
        return ()

    # -- judging -------------------------------------------------------------------------------------------------

    async def _judge_when_asked(self) -> None:
        await self._asked.wait()
        self._asked.clear()
        try:
            await self.judge()
        except StoreError:
            self._asked.set()
            raise

    async def judge(self) -> None:
        """Looks at all nodes; records what follows."""
        runtime = self._runtime
        self._looked = runtime.monotonic()
        since = runtime.now() - timedelta(seconds=lemon.WINDOW_S)
        later = {node: start for node, mark in self._marks if (start := mark.counts_from) is not None}
        counts, broken = await runtime.read(runtime.store.node_attempts, since, later)
        tallies = {node: Tally(counts.get(node, 0)) for node in self._roster.nodes}
        # A run that breaks on a node again and again, by its own doing perhaps, is one witness.
        parts: dict[tuple[str, int], float] = {}
        for one in broken:
            for node, part in self._blame(one).items():
                if node not in later or one.ended_at >= later[node]:
                    parts[node, one.run] = max(part, parts.get((node, one.run), 0.0))
        for (node, _), part in parts.items():
            tallies[node] = Tally(tallies[node].attempts, tallies[node].failures + part)
        self.scores = lemon.scores(tallies)
        async with self._marks.lock:
            await self._follow()

    def _blame(self, one: Broken) -> dict[str, float]:
        if one.failure.get("kind") in SAYS_NOTHING:
            return {}
        parts = lemon.blame(one.failure.get("suspects") or ())
        # A node that left takes its part with it.
        return {node: part for node, part in parts.items() if node in self._roster.nodes}

    async def _follow(self) -> None:
        """From the scores to marks: the worst node first, as long as there is room."""
        now = self._runtime.now()
        new: dict[str, Mark] = {}
        events: list[NodeEvent] = []
        proposed: dict[str, Score] = {}

        def decide(node: str, quarantine: Quarantine, what: str, why: str) -> None:
            mark = self._marks.of(node)
            new[node] = Mark(mark.drain, quarantine, mark.forgiven_at)
            events.append(NodeEvent(now, node, what, None, why))

        room = self._room()
        for score in sorted(self.scores.values(), key=lambda score: (score.chance, score.node)):
            before = self._marks.of(score.node).quarantine
            if before is not None and before.stage == "quarantined":
                continue
            failed_again = before is not None and before.stage == "probation" and score.failures >= BACK
            if not failed_again and not score.bad:
                if (
                    before is not None
                    and (after := proven(before, int(score.attempts - score.failures), now)) != before
                ):
                    decide(score.node, after, "cleared", f"{score.attempts} attempts on probation, none broken by it")
            elif room > 0:
                room -= 1
                why = score.text if score.bad or before is None else f"it failed again on probation, after {before.why}"
                after = quarantined(before, why, now)
                decide(score.node, after, "quarantined", after.text)
                log.warning("node %s is %s", score.node, after.text)
            else:
                proposed[score.node] = score
                if score.node not in self.proposed:
                    events.append(NodeEvent(now, score.node, "proposed", None, f"quarantine: {score.text}"))
        self.proposed = proposed
        if new or events:
            await self._marks.change(new, events)

    def _room(self) -> int:
        """How many more may go."""
        there = {name: node for name, node in self._roster.nodes.items() if node.task is not None}
        stages = [self._marks.of(name).quarantine for name in there]
        out = sum(1 for one in stages if one is not None and one.stage == "quarantined")
        shunned = self._roster.shunned()
        usable = sum(
            1 for name, node in there.items() if node.up and name not in shunned and self._roster.out(name) is None
        )
        share = self._runtime.settings.policy.quarantine
        return min(lemon.room(share, len(there), out), max(0, usable - 1))

    # -- coming back ---------------------------------------------------------------------------------------------

    async def _lapse(self) -> None:
        now = self._runtime.now()
        due = [
            node for node, mark in self._marks if mark.quarantine and lapsed(mark.quarantine, now) != mark.quarantine
        ]
        if due:
            async with self._marks.lock:
                new, events = {}, []
                for node in due:
                    mark = self._marks.of(node)
                    if mark.quarantine is None or (after := lapsed(mark.quarantine, now)) == mark.quarantine:
                        continue
                    new[node] = Mark(mark.drain, after, mark.forgiven_at)
                    events.append(NodeEvent(now, node, "probation", None, after.text))
                try:
                    await self._marks.change(new, events)
                except StaleEpoch:
                    raise
                except StoreError as error:
                    log.error("the end of a quarantine could not be recorded yet: %s", error)
        on_probation = any(mark.quarantine and mark.quarantine.stage == "probation" for _, mark in self._marks)
        if on_probation and self._runtime.monotonic() - self._looked > LOOK_AGAIN_S:
            self._asked.set()
