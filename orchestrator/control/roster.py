"""The nodes: which there are, whether their agents answer, what they report, and until when a lease may hold on them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from orchestrator.bench.calibrate import calibrate
from orchestrator.bench.results import Bench
from orchestrator.control.aside import is_left
from orchestrator.control.backend import (
    Agent,
    AgentGone,
    Backend,
    ClusterLost,
    NodeFacts,
    Report,
    StaleController,
)
from orchestrator.control.clock_watch import ClockWatch
from orchestrator.control.inventory import FreeView, Inventory, Seen, take_inventory
from orchestrator.control.runtime import Runtime
from orchestrator.hardware.as_json import node_to_json
from orchestrator.hardware.model import Cluster
from orchestrator.health.vitals import Vitals
from orchestrator.history.errors import StaleEpoch
from orchestrator.placement.tree import Free
from orchestrator.scheduling.run import NodeRecord

log = logging.getLogger("orch.nodes")

RECORDED_AT_ONCE = 100
"""Nodes that are written down by one write: others' writes wait for them."""


@dataclass
class Node:
    """A node that is, or was, in the cluster."""

    facts: NodeFacts
    agent: Agent | None = None
    task: asyncio.Task[None] | None = None
    up: bool = False
    """Its agent answers."""
    note: str | None = "its agent is starting"
    sync_sent: float = 0.0
    """Monotonic time of the newest sync that may have renewed leases: none on the node ends later than this plus its length."""
    silent: bool = False
    """It has not answered for so long that every lease on it has run out."""
    left: bool = False
    """Ranks of a trial that the controller before this one began live on it: nobody holds their GPUs."""
    missing_since: float | None = None
    info: dict[str, Any] = field(default_factory=dict)
    vitals: Vitals | None = None
    clock: ClockWatch = field(default_factory=ClockWatch)
    asked: set[str | None] = field(default_factory=set)
    """The interpreters that this agent was told to ask for their versions."""
    hold: asyncio.Lock = field(default_factory=asyncio.Lock)

    def note_now(self, taken: Mapping[int, int], out: str | None = None) -> str | None:
        """Why the node takes no run now, given who holds which of its GPUs; None where it does.

        `out`: why it is kept out by decision, or for its health.
        """
        note = self.note
        if note is None and self.left:
            note = "what a controller before this one tried on it is being ended"
        if note is None and self.facts.foreign and not taken:
            note = f"{self.facts.foreign} of {self.facts.total} held by other work of the Ray cluster"
        return f"{out}; {note}" if out and note else out or note

    @property
    def seen(self) -> Seen:
        """The node as the inventory takes it."""
        facts = self.facts
        return Seen(facts.name, facts.total, facts.device == "cuda", facts.labels, self.info.get("node"))


@dataclass(frozen=True)
class Away:
    """The cluster's head does not answer."""

    since: float
    """Monotonic time."""
    why: str


class Roster:
    """Watches the cluster's nodes and keeps up a heartbeat with the agent of each."""

    def __init__(
        self,
        runtime: Runtime,
        backend: Backend,
        on_report: Callable[[str, Report, float | None], Awaitable[bool]],
        on_lost: Callable[[str, str], Awaitable[None]],
        declared: Cluster,
    ) -> None:
        """`on_report(node, report, asked)`: `asked` (monotonic) where the agent is heard for the first time, or again: when it
        was asked. The answer: whether it must be asked so once more, because what it said was old by the time it was heard.

        `on_lost(node, how)`: the node is given up; a lease may hold on it until `lease_end`.
        """
        self._runtime, self._backend = runtime, backend
        self._on_report, self._on_lost = on_report, on_lost
        self.nodes: dict[str, Node] = {}
        self.away: Away | None = None
        """Since when the cluster's head does not answer. Agents that were met go on being asked: their leases hold."""
        self._fenced_out = runtime.monotonic() + runtime.settings.fenced_out_s
        """By then the controller before us has ended: no lease that it renewed begins later."""
        self.news = asyncio.Event()
        """Set at the next news of a node; taken before one looks, so that nothing falls between the look and the wait."""
        self._declared = declared
        self.benches: tuple[Bench, ...] = ()
        """What was measured of links."""
        self._changed = True
        self._unrecorded: dict[str, NodeRecord] = {}
        self._view = FreeView()
        """Something of a node may be new: each submission asks for the inventory, and looking at every node takes long."""
        self._inventory: tuple[object, Inventory] = (None, take_inventory((), declared))
        self.out: Callable[[str], str | None] = lambda node: None
        """Why nothing new is placed on a node, by decision or for its health; None where it may be."""
        self.shunned: Callable[[], Mapping[str, str]] = dict
        """The nodes that nothing is placed on that others will do for, and why."""
        self.health: Callable[[], Mapping[str, float]] = dict
        """The nodes that are not quite well, by a number below 1."""
        self.on_vitals: Callable[[Node], Awaitable[None]] = _ignore
        """Told of each look at a node."""

    async def start(self) -> None:
        await self._look()
        self._runtime.forever("watching nodes", self._look, self._runtime.settings.watch_s)

    def agent(self, node: str) -> Agent:
        """The node's agent. Raises AgentGone where it has none."""
        known = self.nodes.get(node)
        if known is None or known.agent is None:
            raise AgentGone(f"{node} has no agent")
        return known.agent

    @property
    def inventory(self) -> Inventory:
        """The hardware of the nodes that are, or were, in the cluster: made anew when one of them, or a measurement, changes."""
        if self._changed:
            self._changed = False
            # A head that gives no CPU to work (`--num-cpus=0`) is no place for ranks.
            seen = tuple(node.seen for _, node in sorted(self.nodes.items()) if node.facts.total)
            known = (seen, self.drivers, self.benches)
            if known != self._inventory[0]:
                self._inventory = known, take_inventory(seen, self._declared, calibrate(self.benches, self.drivers))
        return self._inventory[1]

    def learn(self, benches: tuple[Bench, ...]) -> None:
        """What was measured of links, for the bandwidth model."""
        self.benches, self._changed = benches, True

    @property
    def drivers(self) -> dict[str, str]:
        """By node, the driver of its GPUs."""
        versions = {name: node.info.get("versions", {}) for name, node in self.nodes.items()}
        return {name: found["driver"] for name, found in versions.items() if "driver" in found}

    def free(self, busy: Mapping[str, Mapping[int, int]]) -> Free:
        """What placement may give now, given who holds which GPU (or CPU slot)."""
        notes = {name: self.note(node, busy.get(name, {})) for name, node in self.nodes.items()}
        return self._view.now(
            self.inventory.topology,
            busy,
            {name: note for name, note in notes.items() if note is not None},
            {name: unfit for name, node in self.nodes.items() if (unfit := node.info.get("unfit"))},
            self.health(),
        )

    def note(self, node: Node, taken: Mapping[int, int]) -> str | None:
        """Why the node takes no run now, given who holds which of its GPUs; None where it does."""
        # What the cluster holds for others cannot be known, nor a node be taken from it, while its head is away.
        return self.away.why if self.away is not None else node.note_now(taken, self.out(node.facts.name))

    def lease_end(self, node: str) -> datetime:
        """The time after which no lease can hold on the node: it stops its ranks by then, whether it hears of us or not."""
        runtime = self._runtime
        known = self.nodes.get(node)
        left = self._lease_after(self._fenced_out) if known is None else self._lease_left(known)
        return runtime.now() + timedelta(seconds=max(0.0, left))

    def _lease_left(self, node: Node) -> float:
        return self._lease_after(node.sync_sent)

    def _lease_after(self, renewed: float) -> float:
        return renewed + self._runtime.settings.lease_s - self._runtime.monotonic()

    # -- holds ---------------------------------------------------------------------------------------------------

    async def hold(self, name: str) -> None:
        """Takes the node's GPUs from the cluster. Raises HoldRefused, AgentGone."""
        node = self.nodes.get(name)
        if node is None or node.task is None:
            raise AgentGone(f"{name} left the cluster")
        async with node.hold:
            await self._backend.hold(node.facts)

    async def release(self, name: str, needed: Callable[[str], bool]) -> None:
        """Gives the node back to the cluster unless it is needed, which is asked when nobody is taking it."""
        if (node := self.nodes.get(name)) is not None:
            async with node.hold:
                if not needed(name):
                    await self._backend.release(name)

    # -- the cluster's list --------------------------------------------------------------------------------------

    async def _look(self) -> None:
        runtime = self._runtime
        try:
            found = {facts.name: facts for facts in await self._backend.nodes()}
        except ClusterLost as error:
            if self.away is None:
                log.warning("%s", error)
                self.away = Away(runtime.monotonic(), str(error))
                runtime.wake.set()
            await self._give_up_silent()
            return
        if self.away is not None:
            log.warning("the cluster's head answers again, after %.0f s", runtime.monotonic() - self.away.since)
            self.away = None
            runtime.wake.set()
        for name, facts in found.items():
            node = self.nodes.get(name)
            if node is None or node.facts.id != facts.id:
                if node is not None and node.task is not None:
                    await self._lose(node, "joined the cluster anew")
                self._meet(facts)
            else:
                if node.facts != facts:
                    self._changed = True
                    runtime.wake.set()
                node.facts, node.missing_since = facts, None
        for name, node in self.nodes.items():
            if name in found or node.task is None:
                continue
            node.missing_since = node.missing_since or runtime.monotonic()
            missing_s = runtime.monotonic() - node.missing_since
            if self._backend.is_dead(node.facts) or missing_s >= runtime.settings.lost_after_s:
                await self._lose(node, "left the cluster")
        await self._give_up_silent()

    async def _give_up_silent(self) -> None:
        """The nodes on which every lease has run out, whatever the cluster says of them."""
        runtime = self._runtime
        for node in list(self.nodes.values()):
            if node.task is not None and not node.silent and self._lease_left(node) <= 0:
                node.silent = True
                await self._on_lost(node.facts.name, f"has not answered for {runtime.settings.lease_s:.0f} s")

    def _meet(self, facts: NodeFacts) -> None:
        previous = self.nodes.get(facts.name)
        node = Node(facts, sync_sent=previous.sync_sent if previous else self._fenced_out)
        self.nodes[facts.name] = node
        self._changed = True
        node.task = self._runtime.spawn(self._follow(node))

    async def _lose(self, node: Node, how: str) -> None:
        log.warning("node %s %s", node.facts.name, how)
        if node.task is not None:
            node.task.cancel()
        node.task, node.agent, node.up, node.note = None, None, False, how
        self._record(node, "down")
        await self._on_lost(node.facts.name, how)

    def _record(self, node: Node, state: str) -> None:
        """Writes down what is known of the node; nobody waits for that, since a heartbeat must not wait for the database."""
        facts, info, now = node.facts, node.info, self._runtime.now()
        hardware = {"device": facts.device, "total": facts.total, "labels": facts.labels}
        if (probed := info.get("node")) is not None:
            hardware |= node_to_json(probed)
        record = NodeRecord(facts.name, facts.address, state, now, now, hardware, info.get("versions", {}))
        if not self._unrecorded:
            self._runtime.spawn(self._record_all())
        self._unrecorded[facts.name] = record

    async def _record_all(self) -> None:
        while some := dict(islice(self._unrecorded.items(), RECORDED_AT_ONCE)):
            await self._runtime.persist(
                f"what is known of {len(some)} nodes", self._runtime.store.upsert_nodes, list(some.values())
            )
            for name, record in some.items():
                if self._unrecorded[name] is record:
                    del self._unrecorded[name]

    # -- the heartbeat -------------------------------------------------------------------------------------------

    async def _follow(self, node: Node) -> None:
        """Calls the agent, long poll after long poll, as long as the node is in the cluster."""
        ack, pause = 0, 0.1
        # Asked besides the cancel, which wait_for of Python 3.11 may lose.
        while node.task is not None:
            asked = self._runtime.monotonic() if ack == 0 else None
            try:
                report = await self._sync(node, ack)
            except StaleController as error:
                log.error("%s", error)
                self._runtime.superseded()
                return
            except Exception as error:
                if not isinstance(error, AgentGone):
                    log.exception("agent of %s failed", node.facts.name)
                elif node.up:
                    log.warning("agent of %s: %s", node.facts.name, error)
                node.up, node.note, ack = False, f"its agent does not answer: {error}", 0
                await asyncio.sleep(pause)
                pause = min(2.0, pause * 2)
                continue
            ack, pause = report.sequence, 0.1
            if node.task is None:
                return
            try:
                if await self._take_in(node, report, asked):
                    ack = 0
            except StaleEpoch:
                return
            except Exception:
                # What is in the report will be said again, or shows in the next one.
                log.exception("the report of %s could not be taken in", node.facts.name)
                ack = 0
                await asyncio.sleep(1)

    async def _sync(self, node: Node, ack: int) -> Report:
        runtime = self._runtime
        if node.agent is None:
            node.agent = await self._backend.agent(node.facts)
        if ack:
            # The first call, or the first after one that failed, renews nothing: a node that is dead is asked again and again.
            node.sync_sent = max(node.sync_sent, runtime.monotonic())
        asked = runtime.now().timestamp()
        report = await node.agent.sync(runtime.epoch, ack, runtime.settings.lease_s, runtime.settings.sync_wait_s)
        if report.clock is not None:
            node.clock.take(asked, *report.clock, runtime.now().timestamp())
        return report

    def tell(self) -> None:
        """Something about a node is new: wakes whoever waits for that."""
        self._changed = True
        self.news.set()
        self.news = asyncio.Event()

    async def _take_in(self, node: Node, report: Report, asked: float | None) -> bool:
        if asked is not None:
            node.asked.clear()
        if report.info is not None:
            node.info = report.info
            self._changed = True
            self._record(node, "up")
            self._runtime.wake.set()
        left = any(is_left(part, self._runtime.epoch) for part in report.parts)
        if left != node.left:
            node.left = left
            self._runtime.wake.set()
        if not node.up:
            node.up, node.silent, node.note = True, False, None
            self._runtime.wake.set()
        if report.vitals is not None:
            node.vitals = report.vitals
            await self.on_vitals(node)
        if asked is not None or report.info is not None:
            self.tell()
        return await self._on_report(node.facts.name, report, asked)


async def _ignore(node: Node) -> None:
    """Nobody asked to be told."""
