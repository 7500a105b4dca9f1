"""The live attempts: started whole or not at all, followed to their end, ended whole, and taken up from a controller before."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

from orchestrator.control.aside import Aside
from orchestrator.control.backend import (
    AgentGone,
    Backend,
    HoldRefused,
    PartStatus,
    Report,
    StartFailed,
    StartPart,
)
from orchestrator.control.checkpoint_folders import CheckpointFolders
from orchestrator.control.endings import Endings
from orchestrator.control.gang import Gang, PartState
from orchestrator.control.limits import Limits
from orchestrator.control.log_capture import LogCapture
from orchestrator.control.logs import LogFolder
from orchestrator.control.measuring import Measuring
from orchestrator.control.orders import Orders, reading_of
from orchestrator.control.roster import Roster
from orchestrator.control.runtime import Runtime
from orchestrator.control.surveys import Surveys
from orchestrator.control.together import together
from orchestrator.control.transport import judge
from orchestrator.control.watch import Watch
from orchestrator.hardware.model import Cluster
from orchestrator.health.failure import Failure
from orchestrator.history.book import Changes
from orchestrator.placement.values import NodePlacement
from orchestrator.scheduling.lifecycle import Event, IllegalTransition, State
from orchestrator.scheduling.run import Run, Stop

log = logging.getLogger("orch.gangs")

WORTH_TELLING_S = 10.0
"""A controller that is killed is back sooner than that, and its runs have nothing to tell of it."""


class Gangs:
    """Every attempt that holds a place."""

    def __init__(self, runtime: Runtime, backend: Backend, logs: LogFolder, declared: Cluster) -> None:
        self._runtime, self._logs = runtime, logs
        self.roster = Roster(runtime, backend, self._take_in, self._lost, declared)
        self.surveys = Surveys(runtime, self.roster)
        self.secrets: dict[int, dict[str, str]] = {}
        """By run: in memory alone."""
        self.orders = Orders(runtime, self.roster, self.secrets)
        self._asked_to_end: dict[int, Stop] = {}
        """Live runs that are to end; it may be asked between an attempt's record and its beginning here."""
        self.limits = Limits(runtime, self)
        runtime.on_missed = self._catch_up
        self._folders = CheckpointFolders(runtime, self.roster)
        self.on_stopping: Callable[[Run, float], None] = lambda run, grace: None
        """Told when a live run is told to end, with how many seconds that may take."""
        self._gangs: dict[tuple[int, int], Gang] = {}
        self._finishing: dict[tuple[int, int], Gang] = {}
        """Those that are over, whose end is not on record yet."""
        self._by_node: dict[str, dict[tuple[int, int], Gang]] = defaultdict(dict)
        """The ones and the others."""
        self._journals: dict[tuple[int, int], asyncio.Lock] = defaultdict(asyncio.Lock)
        self.measuring = Measuring(runtime)
        self.watch = Watch(runtime, self.roster, self.measuring, logs, lambda: self._gangs.values(), self)
        self.capture = LogCapture(runtime, logs)
        self.endings = Endings(runtime, self.roster, self.measuring, self.capture, logs)
        self.aside: dict[tuple[int, int], Aside] = {}
        """By run and a negative number: what runs on its nodes and is no attempt of it."""
        self.unwatched_since: datetime | None = None
        """When the controller before this one was last known to live."""
        self.keeps: Callable[[str], bool] = lambda node: False
        """Whether a node is kept for a run that has no attempt there yet."""

    def of(self, run: Run) -> Gang | None:
        """The run's live attempt."""
        return None if run.attempt is None else self._gangs.get((run.id, run.attempt.number))

    def any_left(self) -> bool:
        return bool(self._gangs or self._finishing)

    def _on(self, node: str) -> list[Gang]:
        return [gang for key, gang in self._by_node[node].items() if key in self._gangs]

    def needs(self, node: str) -> bool:
        """Whether the cluster must not get the node back."""
        return bool(self._by_node[node]) or self.keeps(node)

    # -- beginnings ----------------------------------------------------------------------------------------------

    def begin(self, run: Run) -> None:
        """Starts the attempt that was just recorded."""
        gang = self._add(run)
        self._runtime.spawn(self._launch(gang, run))
        if (folder := self.orders.checkpoint_folder(run)) is not None:
            self._runtime.spawn(self._folders.check(run, folder))
        self._runtime.spawn(self.surveys.record(run))

    def adopt(self, run: Run) -> None:
        """Takes up a live run of the controller before this one: its parts are as good as their agents will say."""
        gang = self._add(run)
        assert run.attempt is not None
        self._runtime.spawn(self.surveys.record(run))
        gang.up = run.attempt.ranks_started_at is not None
        gang.judged |= run.attempt.transport is not None
        gang.unwatched = self._gap()
        for part in gang.parts.values():
            part.state = PartState.UP
        self.limits.watch(gang, run.attempt.ranks_started_at)

    def _gap(self) -> str | None:
        """How long no controller lived before this one, where that is worth telling."""
        since, now = self.unwatched_since, self._runtime.now()
        if since is None or (away := (now - since).total_seconds()) < WORTH_TELLING_S:
            return None
        return f"no controller from {since:%H:%M:%S} to {now:%H:%M:%S} UTC ({away:.0f} s); the ranks went on"

    async def give_up_missing(self) -> None:
        """After a start: the parts of adopted attempts on nodes that the cluster does not list, once their leases are over.

        After a head's restart its nodes join one by one, and their ranks may live; until then nobody else could have their GPUs.
        """
        runtime = self._runtime
        while missing := {node for gang in self._gangs.values() for node in gang.unknown} - self.roster.nodes.keys():
            for node in missing:
                if self.roster.lease_end(node) <= runtime.now():
                    await self._lost(node, "did not come back to the cluster")
            await asyncio.sleep(runtime.settings.watch_s)

    def _catch_up(self, changes: Changes) -> None:
        """Acts on what is on record though its writer was told otherwise: attempts that began, and ends that were asked for."""
        for run in changes.runs.values():
            if run.attempt is None or not run.live or (run.id, run.attempt.number) in self._finishing:
                continue
            gang = self.of(run)
            if gang is None and run.state is State.STARTING:
                self.begin(run)
            elif gang is None:
                self.adopt(run)
            elif run.state is State.STOPPING and gang.stop is None:
                self.end(run, run.attempt.stop or Stop("cancelled"))
        self._runtime.wake.set()

    def _add(self, run: Run) -> Gang:
        assert run.attempt is not None
        gang = Gang(run.id, run.attempt.number, run.spec, run.attempt.placement)
        gang.judged = reading_of(gang).source is None
        gang.stop = self._asked_to_end.get(run.id) or run.attempt.stop
        if run.state is State.STOPPING:
            # It may have been told before the controller that took this down was replaced.
            gang.stop, gang.told = gang.stop or Stop("cancelled"), True
        self._gangs[gang.run, gang.attempt] = gang
        for node in gang.parts:
            self._by_node[node][gang.run, gang.attempt] = gang
        self.measuring.begin(run)
        return gang

    async def _launch(self, gang: Gang, run: Run) -> None:
        """Starts every part of the gang, or none."""
        parts = gang.placement.nodes
        first = parts[0].node
        try:
            await together(self.roster.hold(part.node) for part in parts)
            port = 0
            if len(parts) > 1:
                port = await self.roster.agent(first).reserve_port(self._runtime.epoch, gang.run, gang.attempt)
        except HoldRefused as refusal:
            gang.failure = Failure("hold_refused", str(refusal))
        except (AgentGone, StartFailed) as error:
            gang.failure = Failure("start_failed", f"{first}: {error}", node=first, suspects=(first,))
        if gang.failure is not None or gang.stop is not None:
            gang.told = gang.stop is not None
            for part in gang.parts.values():
                part.state = PartState.ENDED
        else:
            address = self.roster.nodes[first].facts.address
            orders = self.orders.parts(gang, run, address, port)
            await together(self._start_part(gang, p, o) for p, o in zip(parts, orders, strict=True))
        await self._take_stock(gang)

    async def _start_part(self, gang: Gang, part: NodePlacement, order: StartPart) -> None:
        pause_s = 0.2
        while gang.parts[part.node].state is PartState.STARTING:
            try:
                status = await self.roster.agent(part.node).start(self._runtime.epoch, order)
            except StartFailed as error:
                gang.lose(part.node, Failure("start_failed", f"{part.node}: {error}", node=part.node), fenced=False)
            except AgentGone as error:
                # Not known whether it started, or still may: asked again, which starts nothing twice, until the node is lost.
                log.warning("starting run %s on %s: %s", gang.run, part.node, error)
                await asyncio.sleep(pause_s)
                pause_s = min(5.0, pause_s * 2)
            else:
                gang.observe(part.node, status, self._runtime.monotonic())
                break
        if gang.stop_sent and gang.parts[part.node].state is PartState.UP:
            # It was still starting when the gang was told to stop, and its agent knew nothing of it yet.
            self._runtime.spawn(self._stop_part(gang, part.node))

    # -- what is reported ----------------------------------------------------------------------------------------

    async def _take_in(self, node: str, report: Report, asked: float | None) -> bool:
        heard = self._runtime.monotonic()
        for chunk in report.logs:
            if chunk.attempt < 1:
                if (aside := self.aside.get((chunk.run, chunk.attempt))) is not None:
                    aside.take(chunk)
                continue
            self.capture.take(chunk)
            self._runtime.tell(chunk.run)
        self.measuring.take_in(node, report)
        self.watch.take_in(node, report)
        for status in report.parts:
            if (aside := self.aside.get((status.run, status.attempt))) is not None and node in aside.gang.parts:
                aside.observe(node, status)
                continue
            if (status.run, status.attempt) in self._finishing:
                continue  # its agent must know of it until its end is on record
            gang = self._gangs.get((status.run, status.attempt))
            if gang is None or node not in gang.parts:
                self._runtime.spawn(self._clear_away(node, status))
                continue
            gang.observe(node, status, heard)
            await self._take_stock(gang)
        if asked is None:
            return False
        if not report.parts:
            # A controller that died between the end of a run and its giving the node back has left it held.
            self._runtime.spawn(self.roster.release(node, self.needs))
        return await self._miss(node, {(status.run, status.attempt) for status in report.parts}, asked)

    async def _miss(self, node: str, reported: set[tuple[int, int]], asked: float) -> bool:
        """Parts that an agent which is heard for the first time, or again, has no trace of.

        True where one of them came up after the agent was asked: the report may be older, and says nothing of it.
        """
        missing = [gang for gang in self._on(node) if (gang.run, gang.attempt) not in reported]
        missing = [gang for gang in missing if gang.parts[node].state is PartState.UP]
        sure = [gang for gang in missing if gang.parts[node].up_since <= asked]
        for gang in sure:
            gang.lose(node, _no_trace(gang, node), fenced=False)
            await self._take_stock(gang)
        return len(sure) < len(missing)

    async def _lost(self, node: str, how: str) -> None:
        for aside in self.aside.values():
            if node in aside.gang.parts:
                aside.gang.lose(node, Failure("node_lost", f"node {node} {how}", node=node), fenced=True)
                aside.news.set()
        for gang in self._on(node):
            text = f"node {node} {how} while the run was on it"
            gang.lose(node, Failure("node_lost", text, node=node), fenced=True)
            await self._take_stock(gang)

    async def _clear_away(self, node: str, status: PartStatus) -> None:
        """A part of an attempt that has ended for us: it is stopped if it lives, forgotten if it is over."""
        runtime = self._runtime
        # Said again with its next report if the agent is not reached now.
        with suppress(AgentGone):
            if status.ended:
                await runtime.write(runtime.store.release, status.run, status.attempt, node, runtime.now())
                await self._leave(node, status.run, status.attempt)
                runtime.wake.set()
            else:
                await self.roster.agent(node).stop(runtime.epoch, status.run, status.attempt, 0.0)

    # -- what follows --------------------------------------------------------------------------------------------

    async def _take_stock(self, gang: Gang) -> None:
        """Follows from what the parts report: all up, something broke, all over."""
        if (gang.run, gang.attempt) not in self._gangs:
            return
        if gang.started == gang.world_size and not gang.up:
            gang.up = True
            now = self._runtime.now()
            self._write_down(gang, self._started(gang, now))
            self.limits.watch(gang, now)
        if gang.unwatched is not None and gang.started == gang.world_size:
            text, gang.unwatched = gang.unwatched, None
            self._write_down(gang, self._noted(gang, text))
        if gang.can_be_judged:
            self._judge(gang)
        self._follow_up(gang)
        if gang.over and self._gangs.pop((gang.run, gang.attempt), None) is not None:
            self._finishing[gang.run, gang.attempt] = gang
            self._write_down(gang, self._finish(gang))
        self._runtime.tell(gang.run)

    def _write_down(self, gang: Gang, work: Coroutine[Any, Any, None]) -> None:
        """One after the other for each gang, and nobody waits: a heartbeat that waited for the database would cost leases."""
        self._runtime.spawn(self._in_turn(self._journals[gang.run, gang.attempt], work))

    @staticmethod
    async def _in_turn(journal: asyncio.Lock, work: Coroutine[Any, Any, None]) -> None:
        try:
            async with journal:
                await work
        finally:
            work.close()

    async def _noted(self, gang: Gang, text: str) -> None:
        with suppress(IllegalTransition):
            await self._runtime.write(self._runtime.store.record, gang.run, Event.NOTED, self._runtime.now(), text)
            self._runtime.tell(gang.run)

    async def _started(self, gang: Gang, now: datetime) -> None:
        # A cancel may be on its way to the database before it is here: then the run does not start any more.
        with suppress(IllegalTransition):
            store = self._runtime.store
            await self._runtime.persist(f"the start of run {gang.run}", store.started, gang.run, gang.attempt, now)
        self._runtime.tell(gang.run)

    def _judge(self, gang: Gang) -> None:
        """Holds the links that NCCL made against what the placement promised; recorded once, told where they are worse."""
        gang.judged = True
        if not gang.nccl and not gang.started:
            return  # no rank of it has ever lived
        roster = self.roster
        info = {node: roster.nodes[node].info for node in gang.parts if node in roster.nodes}
        env = dict(gang.spec.env)
        found = judge(gang.spec, gang.placement, roster.inventory.topology.cluster, gang.nccl, info, env)
        self._write_down(gang, self._keep_transport(gang, found.value, found.note))
        if found.failure is not None and gang.failure is None and gang.stop is None and not gang.over:
            gang.failure = found.failure

    async def _keep_transport(self, gang: Gang, value: Mapping[str, Any], note: str | None) -> None:
        store, now = self._runtime.store, self._runtime.now()
        what = f"the transport of run {gang.run}"
        await self._runtime.persist(what, store.set_transport, gang.run, gang.attempt, value, now, note)
        self._runtime.tell(gang.run)

    def cancel(self, run: Run) -> None:
        """Somebody asked for the end of a live run; it is recorded already."""
        self.end(run, Stop("cancelled"))

    async def stop(self, run: Run, stop: Stop) -> None:
        """Ends a live run's attempt for a reason of orch's own: recorded, then done. One that ends by itself meanwhile is left."""
        with suppress(IllegalTransition):
            run = await self._runtime.write(self._runtime.store.stop, run.id, stop, self._runtime.now())
            self.end(run, stop)
            self._runtime.tell(run.id)

    def end(self, run: Run, stop: Stop) -> None:
        """Ends a live run's attempt; why is recorded already. A cancel stands above any other reason."""
        if (gang := self.of(run)) is not None and gang.over:
            return
        self._asked_to_end[run.id] = stop
        if gang is not None:
            gang.stop, gang.stop_sent = stop, False
            self._follow_up(gang)
        self.on_stopping(run, run.spec.grace if gang is None else gang.grace)

    def _follow_up(self, gang: Gang) -> None:
        if gang.must_stop and any(part.state is PartState.UP for part in gang.parts.values()):
            gang.stop_sent = True
            gang.told = gang.told or gang.stop is not None
            for node, part in gang.parts.items():
                if part.state in (PartState.UP, PartState.STARTING):
                    self._runtime.spawn(self._stop_part(gang, node))

    async def _stop_part(self, gang: Gang, node: str) -> None:
        try:
            await self.roster.agent(node).stop(self._runtime.epoch, gang.run, gang.attempt, gang.grace)
        except AgentGone:
            gang.stop_sent = False  # said again with its next report

    async def _finish(self, gang: Gang) -> None:
        try:
            await self._end_of(gang)
        finally:
            del self._finishing[gang.run, gang.attempt]
            for node in gang.parts:
                del self._by_node[node][gang.run, gang.attempt]
            self._journals.pop((gang.run, gang.attempt), None)

    async def _end_of(self, gang: Gang) -> None:
        runtime = self._runtime
        self.limits.forget(gang)
        run, fences = await self.endings.record(gang)
        runtime.tell(gang.run)
        self._asked_to_end.pop(run.id, None)
        if run.ended:
            self.secrets.pop(run.id, None)
        for end in fences:
            runtime.wake_in((end - runtime.now()).total_seconds() + 0.1)
        for node, part in gang.parts.items():
            # A node that is lost comes back as another one, of which nothing is held.
            runtime.spawn(
                self.roster.release(node, self.needs) if part.fenced else self._leave(node, gang.run, gang.attempt)
            )
        runtime.wake.set()

    async def _leave(self, node: str, run: int, attempt: int) -> None:
        """The part's end is recorded: its agent may forget it, and the cluster gets the node back if no run is left on it."""
        with suppress(AgentGone):
            await self.roster.agent(node).forget(self._runtime.epoch, run, attempt)
        await self.roster.release(node, self.needs)


def _no_trace(gang: Gang, node: str) -> Failure:
    if gang.up:
        return Failure("ranks_gone", f"{node} has no trace of the run's ranks any more", node=node)
    # Whoever started it died before this node was told. That says nothing of the run.
    return Failure("controller", "the controller was restarted while it started this attempt")
