"""A look at a gang's own nodes before it is started: a bad one is left out for the run, and another is taken.

What agents have reported is compared without asking anybody; what changes from moment to moment (memory that other processes
hold, /dev/shm) is asked of the gang's agents, all at once, in milliseconds. An agent that does not answer is no reason to
leave its node out: the start will say so with more certainty.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from orchestrator.control.backend import AgentGone, StaleController
from orchestrator.control.roster import Roster
from orchestrator.control.runtime import Runtime
from orchestrator.control.together import together
from orchestrator.placement.preflight import Problem, compare
from orchestrator.placement.values import NodePlacement, Placement
from orchestrator.scheduling.run import Run

log = logging.getLogger("orch.nodes")

ASK_S = 2.0
FIRST_S, MOST_S = 15.0, 600.0
"""How long a node is left out for a run: longer each time, since what is wrong may pass and may not."""


@dataclass
class _Left:
    """A node that a run does not get, until when (monotonic), and why."""

    until: float
    seconds: float
    why: str


@dataclass
class Preflight:
    """What nodes are left out for which run; in memory alone: the next controller looks anew."""

    runtime: Runtime
    roster: Roster
    _left: dict[int, dict[str, _Left]] = field(default_factory=dict)

    @property
    def all_are_well(self) -> bool:
        """No node is left out for any run."""
        return not self._left

    def left_out(self, run: int) -> dict[str, str]:
        """The nodes that the run does not get now, and why."""
        if (known := self._left.get(run)) is None:
            return {}
        now = self.runtime.monotonic()
        return {node: left.why for node, left in known.items() if left.until > now}

    def keep(self, waiting: Iterable[int]) -> None:
        """Forgets what is not of these runs."""
        if self._left:
            self._left = {run: self._left[run] for run in waiting if run in self._left}

    async def look(self, starts: Sequence[tuple[Run, Placement]]) -> dict[int, tuple[Problem, ...]]:
        """By run, what is wrong with nodes that it was to get."""
        if self.runtime.settings.preflight == "off":
            return {}
        gangs = [(run, placement) for run, placement in starts if placement.device == "cuda"]
        found = await together(self._problems(placement) for _, placement in gangs)
        return {run.id: problems for (run, _), problems in zip(gangs, found, strict=True) if problems}

    async def _problems(self, placement: Placement) -> tuple[Problem, ...]:
        asked = await together(self._ask(part) for part in placement.nodes)
        known = self.roster.inventory.topology.cluster.by_name
        return (*compare(placement, known), *(problem for problems in asked for problem in problems))

    async def _ask(self, part: NodePlacement) -> tuple[Problem, ...]:
        try:
            async with asyncio.timeout(ASK_S):
                said = await self.roster.agent(part.node).check(self.runtime.epoch, part.gpus)
        except (AgentGone, StaleController, TimeoutError):
            return ()
        except Exception:
            log.exception("%s could not be asked whether it is fit", part.node)
            return ()
        return tuple(Problem(part.node, text) for text in said)

    def leave_out(self, run: int, problem: Problem) -> None:
        """The run does not get the node for a while, longer each time."""
        known = self._left.setdefault(run, {})
        before = known.get(problem.node)
        seconds = FIRST_S if before is None else min(MOST_S, before.seconds * 2)
        known[problem.node] = _Left(self.runtime.monotonic() + seconds, seconds, problem.text)
        # Then it is looked at again.
        self.runtime.wake_in(seconds + 0.1)
