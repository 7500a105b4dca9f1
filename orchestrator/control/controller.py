"""The controller: observe, decide, record, act.

It holds nothing that the database does not, but for secrets: killed anywhere, the next one takes up the runs where they are. The
API (api.py) and the Ray actor (ray_backend.py) are around it; the cluster is behind the Backend protocol.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.control.backend import (
    Agent,
    AgentGone,
    Backend,
    HoldRefused,
    NodeFacts,
    PartStatus,
    RankStart,
    Report,
    StaleController,
    StartFailed,
    StartPart,
)
from orchestrator.control.gang import Gang, PartState
from orchestrator.control.logs import LogFolder
from orchestrator.history.errors import StaleEpoch
from orchestrator.history.queries import RunFilter
from orchestrator.history.render import placement_json
from orchestrator.history.store import Store
from orchestrator.placement.values import NodePlacement, NodeView, Rejection
from orchestrator.scheduling.lifecycle import Event, State
from orchestrator.scheduling.plan import Snapshot, plan, try_place
from orchestrator.scheduling.run import Failure, NewRun, NodeRecord, Run
from orchestrator.spec import JobSpec

log = logging.getLogger("orch.controller")
T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """What an operator may set, and a test makes short."""

    home: Path
    storage: Path
    lease_s: float = 30.0
    log_limit: int = 64 << 20
    sync_wait_s: float = 2.0
    watch_s: float = 1.0
    lost_after_s: float = 3.0
    """How long a node may be missing from the cluster's list before it is lost."""


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
    """Monotonic time of the newest sync that was sent: no lease on the node ends later than this plus its length."""
    missing_since: float | None = None
    info: dict[str, Any] = field(default_factory=dict)
    hold: asyncio.Lock = field(default_factory=asyncio.Lock)


class Refused(Exception):
    """A request that cannot be met; `code` is the exit code that the contract gives it."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class Controller:
    """One per ORCH_HOME; a second one fences the first out by its epoch."""

    def __init__(
        self,
        store: Store,
        backend: Backend,
        settings: Settings,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
        superseded: Callable[[], None] = lambda: None,
    ) -> None:
        self._store, self._backend, self.settings = store, backend, settings
        self._now, self._monotonic, self._superseded = now, monotonic, superseded
        self.logs = LogFolder(settings.home / "logs")
        self.nodes: dict[str, Node] = {}
        self.gangs: dict[tuple[int, int], Gang] = {}
        self.reasons: dict[int, str] = {}
        """Why each waiting run waits, as the last plan said."""
        self.epoch = 0
        self._secrets: dict[int, dict[str, str]] = {}
        self._wake = asyncio.Event()
        self._changed: dict[int, asyncio.Event] = defaultdict(asyncio.Event)
        self._tasks: set[asyncio.Task[Any]] = set()
        # One thread, one connection, one writer: what is slow in the database does not stop the leases.
        self._database = ThreadPoolExecutor(1, "database")

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Takes over: fences out whoever ran before, finds the nodes, takes up the live runs."""
        self.epoch = await self.db(self._store.claim_epoch, f"controller {time.time():.0f}", self._now())
        for run in await self.db(self._store.live):
            self._adopt(run)
        await self._look_at_nodes()
        self._spawn(self._forever("watching nodes", self._look_at_nodes, self.settings.watch_s))
        self._spawn(self._forever("scheduling", self._schedule_when_woken, 0.0))
        self._wake.set()

    async def close(self) -> None:
        for node in self.nodes.values():
            if node.task is not None:
                node.task.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._database.shutdown(wait=True)

    async def db(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Runs a store call on the database's thread."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._database, lambda: call(*args, **kwargs))
        except StaleEpoch:
            log.error("a newer controller has taken over; this one ends")
            self._superseded()
            raise

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task of the controller failed", exc_info=task.exception())

    async def _forever(self, what: str, work: Callable[[], Awaitable[None]], pause_s: float) -> None:
        while True:
            try:
                await work()
            except StaleEpoch:
                return
            except Exception:
                log.exception("%s failed; tried again", what)
                await asyncio.sleep(1)
            await asyncio.sleep(pause_s)

    # -- what users ask for --------------------------------------------------------------------------------------

    async def submit(self, new: NewRun, secrets: Mapping[str, str]) -> tuple[Run, bool]:
        """Records a run; it is on disk when this returns. Raises Refused(5) where the cluster could never hold it."""
        if missing := sorted(set(new.spec.secrets) - secrets.keys()):
            raise Refused(2, f"secrets: {', '.join(missing)}: no value was sent")
        self.check_fits(new.spec)
        run, created = await self.db(self._store.submit, new, self._now())
        if created:
            if secrets:
                self._secrets[run.id] = dict(secrets)
            self._wake.set()
        return run, created

    def check_fits(self, spec: JobSpec) -> None:
        answer = try_place(spec, self.views({}))
        if isinstance(answer, Rejection) and answer.never:
            raise Refused(5, f"can never fit this cluster: {answer.reason}")

    async def find(self, ref: str) -> Run:
        run = await self.db(self._store.get, int(ref) if ref.isdigit() else ref)
        if run is None:
            raise Refused(3, f"no such run: {ref!r}")
        return self.with_reason(run)

    def with_reason(self, run: Run) -> Run:
        return replace(run, reason=self.reasons.get(run.id, run.reason)) if run.state is State.QUEUED else run

    async def cancel(self, ref: str, by: str | None = None) -> tuple[Run, bool]:
        """Asks for the run's end; answers (run, whether it had ended already)."""
        run = await self.find(ref)
        if run.ended:
            return run, True
        run = await self.db(self._store.record, run.id, Event.CANCEL_ASKED, self._now(), by=by)
        self.tell(run.id)
        if run.attempt is not None and (gang := self.gangs.get((run.id, run.attempt.number))) is not None:
            gang.cancelled = True
            self._follow_up(gang)
        self._wake.set()
        return run, False

    async def retry(self, ref: str, secrets: Mapping[str, str], by: str | None = None) -> Run:
        run = await self.find(ref)
        if not run.ended or run.state is State.SUCCEEDED:
            raise Refused(7, f"run {run.id} is {run.state}: only one that failed or was cancelled is tried again")
        if missing := sorted(set(run.spec.secrets) - secrets.keys()):
            raise Refused(2, f"secrets: {', '.join(missing)}: no value was sent")
        self.check_fits(run.spec)
        self._secrets[run.id] = dict(secrets)
        run = await self.db(self._store.record, run.id, Event.RETRY_ASKED, self._now(), by=by)
        self.tell(run.id)
        self._wake.set()
        return run

    async def busy(self) -> dict[str, dict[int, int]]:
        """By node and GPU (or CPU slot), the run that holds it."""
        return await self.db(self._store.busy)

    async def live_runs(self) -> list[Run]:
        return await self.db(self._store.live)

    async def list_runs(self, wanted: RunFilter) -> list[Run]:
        return [self.with_reason(run) for run in await self.db(self._store.runs, wanted)]

    async def queue(self) -> tuple[list[Run], list[Run]]:
        """What holds a place, and what waits, in its order."""
        live = await self.db(self._store.live)
        waiting = await self.db(self._store.waiting)
        return live, [self.with_reason(run) for run in waiting]

    async def dry_run(self, spec: JobSpec) -> dict[str, Any]:
        """Where the job would go now, or why it would wait. Raises Refused(5) where it never fits."""
        self.check_fits(spec)
        answer = try_place(spec, self.views(await self.busy()))
        if isinstance(answer, Rejection):
            return {"fits_now": False, "reason": answer.reason, "placement": None}
        return {"fits_now": True, "reason": None, "placement": placement_json(answer)}

    # -- news for those who follow -------------------------------------------------------------------------------

    def tell(self, run: int) -> None:
        """Something about the run is new: wakes whoever follows it."""
        self._changed[run].set()
        del self._changed[run]

    def watch(self, run: int) -> asyncio.Event:
        """Set at the next news of the run. Taken before one looks, so that nothing falls between the look and the wait."""
        return self._changed[run]

    # -- deciding ------------------------------------------------------------------------------------------------

    def views(self, busy: Mapping[str, Mapping[int, int]]) -> tuple[NodeView, ...]:
        """The nodes as the placer sees them, given who holds which GPU."""
        return tuple(self._view(node, busy.get(name, {})) for name, node in sorted(self.nodes.items()))

    @staticmethod
    def note_of(node: Node, taken: Mapping[int, int]) -> str | None:
        """Why the node takes no run now; None where it does."""
        if node.note is None and node.facts.foreign and not taken:
            return f"{node.facts.foreign} of {node.facts.total} held by other work of the Ray cluster"
        return node.note

    def _view(self, node: Node, taken: Mapping[int, int]) -> NodeView:
        facts, note = node.facts, self.note_of(node, taken)
        free = tuple(i for i in range(facts.total) if i not in taken)
        return NodeView(facts.name, facts.device, facts.total, free, node.up and note is None, note)

    async def _schedule_when_woken(self) -> None:
        await self._wake.wait()
        self._wake.clear()
        if released := await self.db(self._store.release_fenced, self._now()):
            log.info("%d GPUs are free again: the lease of their attempt has run out", released)
        waiting = await self.db(self._store.waiting)
        busy = await self.db(self._store.busy)
        waiting = [run for run in waiting if not await self._lost_its_secrets(run)]
        fenced = {run for gpus in busy.values() for run in gpus.values()}
        blocked = {r.id: "waits until the lease of its last attempt has run out" for r in waiting if r.id in fenced}
        if blocked:
            self._wake_later(1.0)
        decided = plan(Snapshot(tuple(waiting), self.views(busy), blocked))
        self.reasons = {run.id: reason for run, reason in decided.waits}
        for run, placement in decided.starts:
            run = await self.db(self._store.place, run.id, placement, self._now())
            assert run.attempt is not None
            gang = Gang(run.id, run.attempt.number, run.spec, placement)
            self.gangs[gang.run, gang.attempt] = gang
            self._spawn(self._launch(gang, run))
        for run in waiting:
            self.tell(run.id)

    def _wake_later(self, seconds: float) -> None:
        asyncio.get_running_loop().call_later(seconds, self._wake.set)

    async def _lost_its_secrets(self, run: Run) -> bool:
        if not run.spec.secrets or run.id in self._secrets:
            return False
        reason = (
            f"its secrets ({', '.join(run.spec.secrets)}) are kept in the controller's memory alone and went when it was "
            f"restarted; `orch retry {run.id}` from a shell that has them goes on"
        )
        await self.db(self._store.record, run.id, Event.FAILED, self._now(), reason=reason)
        self.tell(run.id)
        return True

    # -- acting --------------------------------------------------------------------------------------------------

    async def _launch(self, gang: Gang, run: Run) -> None:
        """Starts every part of the gang, or none."""
        parts = gang.placement.nodes
        try:
            await asyncio.gather(*(self._hold(part.node) for part in parts))
            head = self.nodes[parts[0].node]
            port = 0
            if len(parts) > 1:
                port = await self._agent(parts[0].node).reserve_port(self.epoch, gang.run, gang.attempt)
        except HoldRefused as refusal:
            await self._never_started(gang, Failure("hold_refused", str(refusal)))
            return
        except (AgentGone, StartFailed, KeyError) as error:
            await self._never_started(gang, Failure("start_failed", f"{parts[0].node}: {error}", node=parts[0].node))
            return
        if gang.cancelled:
            await self._never_started(gang, None)
            return
        orders = [self._order(gang, run, i, head.facts.address, port) for i in range(len(parts))]
        await asyncio.gather(*(self._start_part(gang, p, o) for p, o in zip(parts, orders, strict=True)))
        await self._take_stock(gang)

    def _agent(self, node: str) -> Agent:
        agent = self.nodes[node].agent
        if agent is None:
            raise AgentGone(f"{node} has no agent")
        return agent

    async def _start_part(self, gang: Gang, part: NodePlacement, order: StartPart) -> None:
        try:
            status = await self._agent(part.node).start(self.epoch, order)
        except StartFailed as error:
            failure = Failure("start_failed", f"{part.node}: {error}", node=part.node)
            gang.lose(part.node, failure, fenced=False)
        except AgentGone as error:
            # Not known whether it started: the agent's next report says so, as of a part that we took over.
            log.warning("starting run %s on %s: %s", gang.run, part.node, error)
            gang.parts[part.node].state = PartState.UP
        else:
            gang.observe(part.node, status)

    async def _never_started(self, gang: Gang, failure: Failure | None) -> None:
        for node in gang.parts:
            gang.parts[node].state = PartState.ENDED
        gang.failure = failure
        await self._take_stock(gang)

    def _order(self, gang: Gang, run: Run, node_rank: int, address: str, port: int) -> StartPart:
        part = gang.placement.nodes[node_rank]
        spec = gang.spec
        env = {"ORCH_BACKEND": _backend_of(spec, gang.placement.device)} | spec.env
        if spec.checkpoint is not None:
            # The same on every attempt, and no other run's. An absolute path is the user's own choice.
            folder = self.settings.storage / "checkpoints" / str(run.id) / spec.checkpoint
            env["ORCH_CHECKPOINT_DIR"] = str(folder)
        return StartPart(
            run=gang.run,
            attempt=gang.attempt,
            argv=tuple(spec.argv),
            python=spec.python,
            code=run.code.sha256 if run.code else None,
            env=env,
            secrets=self._secrets.get(run.id, {}),
            device=gang.placement.device,
            ranks=tuple(RankStart(r, i, g) for i, (r, g) in enumerate(zip(part.ranks, part.gpus, strict=True))),
            world_size=gang.world_size,
            node_rank=node_rank,
            master_addr=address,
            master_port=port,
            lease_s=self.settings.lease_s,
            log_limit=self.settings.log_limit,
        )

    async def _take_stock(self, gang: Gang) -> None:
        """Follows from what the parts report: all up, something broke, all over."""
        if (gang.run, gang.attempt) not in self.gangs:
            return
        if gang.started == gang.world_size and not gang.up:
            gang.up = True
            if not gang.cancelled:
                await self.db(self._store.record, gang.run, Event.STARTED, self._now())
        self._follow_up(gang)
        if gang.over and self.gangs.pop((gang.run, gang.attempt), None) is not None:
            await self._finish(gang)
        self.tell(gang.run)

    def _follow_up(self, gang: Gang) -> None:
        if gang.must_stop and any(part.state is PartState.UP for part in gang.parts.values()):
            gang.stop_sent = True
            for node, part in gang.parts.items():
                if part.state in (PartState.UP, PartState.STARTING):
                    self._spawn(self._stop_part(gang, node))

    async def _stop_part(self, gang: Gang, node: str) -> None:
        try:
            await self._agent(node).stop(self.epoch, gang.run, gang.attempt, gang.spec.grace)
        except AgentGone:
            gang.stop_sent = False  # said again with its next report

    async def _finish(self, gang: Gang) -> None:
        event, outcome = gang.verdict()
        failure = self._with_excerpt(gang)
        until = {node: self._lease_end(node) for node in gang.fenced_nodes}
        reason = failure.message if failure is not None and outcome != "cancelled" else None
        run = await self.db(
            self._store.finish,
            gang.run,
            event,
            outcome,
            self._now(),
            reason=reason,
            failure=failure if outcome != "cancelled" else None,
            exit_codes=gang.exit_codes,
            fenced=until,
        )
        if run.ended:
            self._secrets.pop(run.id, None)
        if until:
            self._wake_later(max((end - self._now()).total_seconds() for end in until.values()) + 0.1)
        for node, part in gang.parts.items():
            if not part.fenced:
                self._spawn(self._leave(node, gang.run, gang.attempt))
        self.tell(gang.run)
        if failure is not None and failure.kind == "hold_refused":
            self._wake_later(2.0)
        else:
            self._wake.set()

    def _with_excerpt(self, gang: Gang) -> Failure | None:
        """The failure with the last line of the first failing rank's log: what the script itself said."""
        failure = gang.failure
        if failure is None or failure.rank is None:
            return failure
        last = ""
        for line in self.logs.lines(gang.run, gang.attempt, failure.rank, whole=True):
            last = line.text.strip() or last
        return replace(failure, message=f"{failure.message}: {last[:300]}") if last else failure

    def _lease_end(self, node: str) -> datetime:
        sent = self.nodes[node].sync_sent if node in self.nodes else self._monotonic()
        return self._now() + timedelta(seconds=max(0.0, sent + self.settings.lease_s - self._monotonic()))

    async def _leave(self, node: str, run: int, attempt: int) -> None:
        """The part is recorded as ended: its agent may forget it, and Ray gets the node back if orch needs it no more."""
        try:
            await self._agent(node).forget(self.epoch, run, attempt)
        except (AgentGone, KeyError):
            pass  # it will be told when it reports the part again
        await self._release_if_unused(node)

    # -- holds ---------------------------------------------------------------------------------------------------

    async def _hold(self, name: str) -> None:
        node = self.nodes[name]
        async with node.hold:
            await self._backend.hold(node.facts)

    async def _release_if_unused(self, name: str) -> None:
        if (node := self.nodes.get(name)) is None:
            return
        async with node.hold:
            if not any(name in gang.parts for gang in self.gangs.values()):
                await self._backend.release(name)

    # -- observing -----------------------------------------------------------------------------------------------

    async def _look_at_nodes(self) -> None:
        found = {facts.name: facts for facts in await asyncio.wait_for(self._backend.nodes(), 10)}
        for name, facts in found.items():
            node = self.nodes.get(name)
            if node is None or node.facts.id != facts.id:
                if node is not None:
                    await self._lost(node, "joined the cluster anew")
                await self._meet(facts)
            else:
                changed = node.facts != facts
                node.facts, node.missing_since = facts, None
                if changed:
                    self._wake.set()
        for node in [n for name, n in self.nodes.items() if name not in found and n.task is not None]:
            node.missing_since = node.missing_since or self._monotonic()
            if self._monotonic() - node.missing_since >= self.settings.lost_after_s:
                await self._lost(node, "left the cluster")
        expected = {name for gang in self.gangs.values() for name in gang.parts}
        for name in expected - self.nodes.keys():
            self.nodes[name] = Node(NodeFacts(name, "", "", "cpu", 0), note="left the cluster")
            self.nodes[name].missing_since = self._monotonic() - self.settings.lost_after_s
            self.nodes[name].sync_sent = self._monotonic()
            await self._lost(self.nodes[name], "left the cluster")

    async def _meet(self, facts: NodeFacts) -> None:
        node = Node(facts)
        previous = self.nodes.get(facts.name)
        if previous is not None:
            node.sync_sent = previous.sync_sent
        self.nodes[facts.name] = node
        node.task = self._spawn(self._follow_node(node))

    async def _lost(self, node: Node, how: str) -> None:
        name = node.facts.name
        log.warning("node %s %s", name, how)
        if node.task is not None:
            node.task.cancel()
        node.task, node.agent, node.up, node.note = None, None, False, how
        await self.db(self._store.upsert_node, self._record_of(node, "down"))
        for gang in [g for g in self.gangs.values() if name in g.parts]:
            gang.lose(name, Failure("node_lost", f"node {name} {how} while the run was on it", node=name), fenced=True)
            await self._take_stock(gang)

    def _record_of(self, node: Node, state: str) -> NodeRecord:
        facts, info = node.facts, node.info
        hardware = {"device": facts.device, "total": facts.total, "labels": facts.labels} | info.get("hardware", {})
        now = self._now()
        return NodeRecord(facts.name, facts.address, state, now, now, hardware, info.get("versions", {}))

    async def _follow_node(self, node: Node) -> None:
        """The heartbeat with one node's agent: as long as the node is in the cluster."""
        ack, pause = 0, 0.1
        while True:
            try:
                if node.agent is None:
                    node.agent = await self._backend.agent(node.facts)
                node.sync_sent = max(node.sync_sent, self._monotonic())
                report = await node.agent.sync(self.epoch, ack, self.settings.lease_s, self.settings.sync_wait_s)
            except StaleController as error:
                log.error("%s", error)
                self._superseded()
                return
            except AgentGone as error:
                if node.up:
                    log.warning("agent of %s: %s", node.facts.name, error)
                node.up, node.note, ack = False, "its agent does not answer", 0
                await asyncio.sleep(pause)
                pause = min(2.0, pause * 2)
                continue
            except asyncio.CancelledError:
                raise
            except Exception as error:
                log.exception("agent of %s failed", node.facts.name)
                node.up, node.note, ack = False, f"its agent failed: {error}", 0
                await asyncio.sleep(pause)
                pause = min(5.0, pause * 2)
                continue
            pause, fresh = 0.1, ack == 0
            ack = report.sequence
            try:
                await self._take_in(node, report, fresh)
            except StaleEpoch:
                return

    async def _take_in(self, node: Node, report: Report, fresh: bool) -> None:
        name = node.facts.name
        for chunk in report.logs:
            try:
                self.logs.write(chunk)
            except OSError as error:
                log.error("the log of run %s is incomplete: %s", chunk.run, error)
            self.tell(chunk.run)
        if report.info is not None:
            node.info = report.info
            await self.db(self._store.upsert_node, self._record_of(node, "up"))
        if not node.up:
            node.up, node.note = True, None
            self._wake.set()
        reported = set()
        for status in report.parts:
            reported.add((status.run, status.attempt))
            gang = self.gangs.get((status.run, status.attempt))
            if gang is None or name not in gang.parts:
                self._spawn(self._clear_away(name, status))
                continue
            gang.observe(name, status)
            await self._take_stock(gang)
        if fresh:
            await self._miss(name, reported)

    async def _miss(self, name: str, reported: set[tuple[int, int]]) -> None:
        """Parts that an agent, heard for the first time or again, has no trace of."""
        for key, gang in list(self.gangs.items()):
            part = gang.parts.get(name)
            if part is None or key in reported or part.state is not PartState.UP:
                continue
            text = f"{name} has no trace of the run's ranks any more"
            gang.lose(name, Failure("ranks_gone", text, node=name), fenced=False)
            await self._take_stock(gang)

    async def _clear_away(self, name: str, status: PartStatus) -> None:
        """A part of an attempt that has ended for us: it is stopped if it lives, forgotten if it is over."""
        try:
            if status.ended:
                await self.db(self._store.release, status.run, status.attempt, name, self._now())
                await self._leave(name, status.run, status.attempt)
                self._wake.set()
            else:
                await self._agent(name).stop(self.epoch, status.run, status.attempt, 0.0)
        except AgentGone:
            pass  # its next report brings it up again

    def _adopt(self, run: Run) -> None:
        """A live run of the controller before this one: its parts are as good as its agents say."""
        attempt = run.attempt
        assert attempt is not None
        gang = Gang(run.id, attempt.number, run.spec, attempt.placement)
        gang.cancelled = run.state is State.STOPPING
        gang.up = attempt.ranks_started_at is not None
        for part in gang.parts.values():
            part.state = PartState.UP
        if not gang.up and not gang.cancelled:
            # Killed while starting it: nobody knows which parts were told. It goes back to its place in the queue.
            gang.failure = Failure("controller", "the controller was restarted while it started this attempt")
        self.gangs[gang.run, gang.attempt] = gang


def _backend_of(spec: JobSpec, device: str) -> str:
    if spec.backend != "auto":
        return spec.backend
    return "nccl" if device == "cuda" else "gloo"
