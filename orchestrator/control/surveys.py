"""What the nodes are for each interpreter, as far as their agents have said: for `requires:`, for history, for `orch doctor`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from orchestrator.control.backend import AgentGone, StaleController
from orchestrator.control.roster import Node, Roster
from orchestrator.control.runtime import Runtime
from orchestrator.control.survey import Python, Surveyed
from orchestrator.control.together import together
from orchestrator.health import matrix, recorded, requires
from orchestrator.health.facts import Interpreter, NodeFacts
from orchestrator.history.errors import StoreError
from orchestrator.placement.values import Device
from orchestrator.scheduling.run import Run
from orchestrator.spec import JobSpec

log = logging.getLogger("orch.surveys")

RECORD_WAITS_S = 300.0
"""How long an attempt's record waits for answers that its nodes still owe."""
DOCTOR_WAITS_S = 6.0
"""Below the 10 s within which every call of the API is answered."""


class Surveys:
    """Over the roster's nodes; what an agent has said is kept there, and goes when the agent does."""

    def __init__(self, runtime: Runtime, roster: Roster) -> None:
        self._runtime, self._roster = runtime, roster

    # -- asking ----------------------------------------------------------------------------------------------------

    def want(self, python: Python, names: Iterable[str] | None = None) -> None:
        """Has every node (or those named) asked for this interpreter, where it has not said already."""
        for name in list(self._roster.nodes) if names is None else names:
            node = self._roster.nodes.get(name)
            if node is None or not node.up or python in node.asked or python in _interpreters(node):
                continue
            node.asked.add(python)
            self._runtime.spawn(self._want(node, python))

    async def _want(self, node: Node, python: Python) -> None:
        if await self._survey(node, python, look=False) is None:
            node.asked.discard(python)

    async def _survey(self, node: Node, python: Python, *, look: bool) -> Surveyed | None:
        """What the agent says now; None where it could not be reached."""
        if node.agent is None or not node.up:
            return None
        try:
            answer = await node.agent.survey(self._runtime.epoch, python, look)
        except (AgentGone, StaleController) as error:
            log.warning("%s could not be asked for its versions: %s", node.facts.name, error)
            return None
        # Newer than what the last sync said.
        others = {known: brings for known, brings in _interpreters(node).items() if known != python}
        told = {} if answer.interpreter is None else {python: answer.interpreter}
        info = node.info | {"host": answer.host, "interpreters": others | told}
        if info != node.info:
            node.info = info
            self._roster.tell()
            self._runtime.wake.set()
        return answer

    async def settle(self, python: Python, names: Iterable[str], wait_s: float) -> None:
        """Waits until these nodes have said what the interpreter brings, at most `wait_s`."""
        names = list(names)
        deadline = self._runtime.monotonic() + wait_s
        while True:
            self.want(python, names)
            news = self._roster.news
            open_ones = [name for name in names if self._pending(name, python)]
            left = deadline - self._runtime.monotonic()
            if not open_ones or left <= 0:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await news.wait()

    def _pending(self, name: str, python: Python) -> bool:
        """Whether the node's agent lives and still owes an answer."""
        node = self._roster.nodes.get(name)
        return node is not None and node.up and (node.info.get("host") is None or python not in _interpreters(node))

    def of(self, name: str, python: Python) -> NodeFacts | None:
        """The node with what this interpreter brings; None where one of the two is not known yet."""
        node = self._roster.nodes.get(name)
        if node is None or (host := node.info.get("host")) is None or python not in _interpreters(node):
            return None
        return _whole(host, _interpreters(node)[python])

    # -- requires: -------------------------------------------------------------------------------------------------

    def judge(self, spec: JobSpec, device: Device) -> tuple[dict[str, str], dict[str, str]]:
        """Nodes of the device that fail the job's `requires:`, and those of which it is not known yet; each with the reason."""
        if not spec.requires:
            return {}, {}
        asked = requires.parse(spec.requires)
        fail, unknown = {}, {}
        # Most nodes are alike, and this is asked each time that something is decided.
        judged: dict[object, tuple[list[str], bool]] = {}
        for name in self._candidates(device):
            info = self._roster.nodes[name].info
            host, brings = info.get("host"), info.get("interpreters", {}).get(spec.python)
            key = host is None, host and host.driver, brings
            if key not in judged:
                judged[key] = requires.shortfall(asked, host, brings)
            lacks, more_may_come = judged[key]
            if lacks:
                fail[name] = "; ".join(lacks)
            elif more_may_come:
                unknown[name] = f"the versions of {spec.python or 'the interpreter'} are not known yet"
        return fail, unknown

    def _candidates(self, device: Device) -> list[str]:
        return [name for name, node in self._roster.nodes.items() if node.facts.device == device]

    async def settle_for(self, spec: JobSpec, device: Device) -> None:
        """Where the job requires anything: has its interpreter asked, and waits for the answers. Else the next turn asks."""
        if spec.requires:
            self.want(spec.python)
            _, unknown = self.judge(spec, device)
            await self.settle(spec.python, unknown, self._runtime.settings.survey_wait_s)

    # -- history ---------------------------------------------------------------------------------------------------

    async def record(self, run: Run) -> None:
        """Writes down the versions that the run's newest attempt was started with, once its nodes have said them."""
        attempt, python = run.attempt, run.spec.python
        if attempt is None or attempt.environment is not None:
            return
        names = [part.node for part in attempt.placement.nodes]
        nodes = [node for name in names if (node := self._roster.nodes.get(name)) is not None]
        # Its torch may have been changed since it was last asked.
        await together(self._survey(node, python, look=False) for node in nodes)
        known: dict[str, NodeFacts] = {}
        deadline = self._runtime.monotonic() + RECORD_WAITS_S
        while len(known) < len(names) and (left := deadline - self._runtime.monotonic()) > 0:
            await self.settle(python, [name for name in names if name not in known], left)
            known |= {name: facts for name in names if (facts := self.of(name, python)) is not None}
            if len(known) < len(names):
                # A node that went away may come back before the time is over.
                await asyncio.sleep(1.0)
        if not known:
            return
        environment = recorded.record(known[name] for name in names if name in known)
        try:
            await self._runtime.write(self._runtime.store.record_environment, run.id, attempt.number, environment)
        except StoreError as error:
            log.error("the versions of run %s could not be recorded: %s", run.id, error)

    # -- doctor ----------------------------------------------------------------------------------------------------

    async def doctor(self, only: str | None, python: Python, wait_s: float = DOCTOR_WAITS_S) -> dict[str, Any]:
        """The matrix over the nodes, each of which is looked at now. KeyError where there is no node `only`."""
        nodes = [self._roster.nodes[only]] if only is not None else [n for _, n in sorted(self._roster.nodes.items())]
        sent = self._runtime.now().timestamp()
        answers = await asyncio.gather(*(self._ask_in_time(node, python, wait_s / 2) for node in nodes))
        names = [node.facts.name for node in nodes]
        waited = self._runtime.now().timestamp() - sent
        await self.settle(python, names, max(0.0, wait_s - waited))
        facts, pending, absent = [], [], {}
        for node, answer in zip(nodes, answers, strict=True):
            name = node.facts.name
            if answer is None:
                if node.task is not None and not node.info:
                    pending.append(name)
                else:
                    absent[name] = node.note or "its agent does not answer"
                continue
            surveyed, ahead = answer
            brings = surveyed.interpreter or _interpreters(node).get(python)
            if brings is None:
                pending.append(name)
            if surveyed.host is not None and brings is not None:
                facts.append(replace(_whole(surveyed.host, brings), clock_ahead=ahead))
        # Half a second for 1,000 nodes, in which leases must be renewed.
        compared = await asyncio.to_thread(lambda: matrix.to_json(matrix.matrix(facts)))
        return {"python": python, "pending": pending, "absent": absent} | compared

    async def _ask_in_time(self, node: Node, python: Python, wait_s: float) -> tuple[Surveyed, float] | None:
        """The answer, and by how much the node's clock is certainly ahead (or behind, negative)."""
        now = self._runtime.now
        sent = now().timestamp()
        try:
            answer = await asyncio.wait_for(self._survey(node, python, look=True), wait_s)
        except TimeoutError:
            return None
        if answer is None:
            return None
        heard = now().timestamp()
        # Its clock was read at some time between; what lies outside is certain.
        return answer, max(0.0, answer.at - heard) + min(0.0, answer.at - sent)


def _interpreters(node: Node) -> Mapping[Python, Interpreter]:
    found: Mapping[Python, Interpreter] = node.info.get("interpreters", {})
    return found


def _whole(host: NodeFacts, brings: Interpreter) -> NodeFacts:
    return host.with_interpreter(brings)
