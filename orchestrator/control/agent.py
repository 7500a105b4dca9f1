"""One node's agent: takes orders from the controller, has the launcher carry them out, ships logs, says what it sees.

It holds nothing that the launcher and the node's disk do not: a new agent finds the ranks of the one before it and goes on.
The Ray actor around it is in ray_agent.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.control import snapshot
from orchestrator.control.backend import AgentGone, PartStatus, Report, StaleController, StartFailed, StartPart
from orchestrator.control.gpus import obstacles, visible_gpus
from orchestrator.control.launch_request import LaunchRequests
from orchestrator.control.launcher_client import (
    LAUNCHER_CODE,
    LauncherClient,
    LauncherGoneError,
    LauncherRefusedError,
)
from orchestrator.control.node_files import NodeFiles
from orchestrator.control.node_look import NodeLook
from orchestrator.control.part import Part
from orchestrator.control.parts import Parts
from orchestrator.control.rank_env import base_env, gpu_name, interpreter_env
from orchestrator.control.rendezvous_ports import RendezvousPorts
from orchestrator.control.reports import Reports
from orchestrator.control.shared_folder import FolderLook, Tokens
from orchestrator.control.shared_folder import look as look_at_folder
from orchestrator.control.stack_taker import take
from orchestrator.control.storage import Stalled, in_time
from orchestrator.control.survey import Survey, Surveyed
from orchestrator.health.stacks import RankStack

log = logging.getLogger("orch.agent")

LOOK_S = 0.1
"""How often logs are looked at while ranks live."""


class NodeAgent:
    """The agent without Ray around it."""

    def __init__(
        self,
        cluster: str,
        node: str,
        address: str,
        folder: Path,
        fetch: Callable[[str], AsyncIterator[bytes]],
        info: Callable[[], dict[str, Any]],
        environ: dict[str, str] | None = None,
        disks: Mapping[str, Path] | None = None,
    ) -> None:
        environ = dict(os.environ) if environ is None else environ
        visible = visible_gpus(environ)
        self._visible, self._fetch = visible, fetch
        self._base = base_env(environ)
        self._changed = asyncio.Event()
        self._files = NodeFiles(folder)
        self._parts = Parts(self._files, environ, visible, self._changed.set)
        self._node = NodeLook(node, address, info, disks or {}, visible, self._parts.ends)
        self._reports = Reports(self._parts, self._node)
        self._survey = Survey(lambda python: interpreter_env(self._base, python), self._changed.set)
        self._requests = LaunchRequests(cluster, node, self._base, visible)
        self._ports = RendezvousPorts(address)
        self._launcher = LauncherClient(folder / "launcher", self._base)
        self._launcher_code: str | None = None
        self._connecting, self._renewing = asyncio.Lock(), asyncio.Lock()
        self._listening: asyncio.Task[None] | None = None
        self._starting: dict[str, asyncio.Lock] = {}
        self._launching: set[asyncio.Task[Any]] = set()
        """Starts that the launcher has not answered: no part yet, and not none either."""
        self._epoch = 0
        self._syncs = 0
        self._given: dict[int, float] = {}
        """By its number: when a report was first given to this controller, by time.monotonic(); from the one it has heard on."""
        self._heard_at: float | None = None
        """When the newest report was given that the controller has said it has heard."""
        self._closed = False

    # -- the controller's calls ----------------------------------------------------------------------------------

    async def sync(self, epoch: int, ack: int, lease_s: float, wait_s: float) -> Report:
        """Heartbeat, lease and report in one: answers as soon as there is something to tell, at the latest after `wait_s`.

        The first call of a controller, or its first after one that failed (`ack` 0), answers at once and renews no lease.
        """
        heard = time.time()
        await self._take_orders_from(epoch)
        self._syncs += 1
        mine = self._syncs
        await self._connect()
        if ack:
            self._was_heard(ack)
            await self._renew(lease_s)
        self._check_heard(mine)
        if (again := self._reports.unheard(ack)) is not None:
            if ack == 0:
                await self._starts_are_over()
                self._check_heard(mine)
                again = self._reports.renewed(again)
            return self._answer(again, heard)
        if ack == 0:
            self._node.tell_again()
        else:
            await self._wait_for_news(wait_s)
        await self._look()
        if ack == 0:
            await self._starts_are_over()
        self._check_heard(mine)
        self._changed.clear()
        return self._answer(self._reports.compose(), heard)

    async def _starts_are_over(self) -> None:
        """Who hears of this node for the first time takes what it is not told of for not being here."""
        while self._launching:
            await asyncio.wait(set(self._launching))
            await asyncio.sleep(0)  # whoever waited for them notes them down first

    def _check_heard(self, sync: int) -> None:
        """Raises StaleController where somebody has asked since: whoever made this call has died, or has given up waiting.

        What it would be told, the lines of logs above all, would be lost: Ray goes on with the calls of a dead actor.
        """
        if sync != self._syncs:
            raise StaleController("another sync has come since")

    async def check(self, epoch: int, gpus: tuple[int, ...]) -> tuple[str, ...]:
        """What keeps this node from starting ranks on these GPUs now, in sentences."""
        await self._take_orders_from(epoch)
        return await asyncio.to_thread(obstacles, {index: gpu_name(self._visible, index) for index in gpus})

    async def reserve_port(self, epoch: int, run: int, attempt: int) -> int:
        await self._take_orders_from(epoch)
        return self._ports.reserve(f"{run}.{attempt}")

    async def start(self, epoch: int, part: StartPart) -> PartStatus:
        """Starts the part's ranks; a part that is known already is answered as it is. Raises StartFailed."""
        await self._take_orders_from(epoch)
        await self._connect()
        await self._renew_launcher()
        async with self._starting.setdefault(part.key, asyncio.Lock()):
            known = self._parts.by_key.get(part.key)
            if known is None:
                try:
                    known = await self._start(epoch, part)
                except (LauncherRefusedError, snapshot.SnapshotError, Stalled, OSError, ValueError) as error:
                    self._ports.free(part.key)
                    raise StartFailed(str(error)) from None
                except LauncherGoneError as error:
                    # The launcher that follows sweeps away what this one had started.
                    self._ports.free(part.key)
                    await self._connect()
                    raise StartFailed(str(error)) from None
        return known.status(self._parts.ends)

    async def stop(self, epoch: int, run: int, attempt: int, grace_s: float) -> None:
        await self._take_orders_from(epoch)
        await self._connect()
        if f"{run}.{attempt}" in self._parts.by_key:
            with suppress(LauncherRefusedError):
                await self._launcher.call("stop", attempt=f"{run}.{attempt}", grace_s=grace_s)

    async def forget(self, epoch: int, run: int, attempt: int) -> None:
        """The controller has recorded the end of this part: nobody needs to hear of it again."""
        await self._take_orders_from(epoch)
        key = f"{run}.{attempt}"
        self._parts.forget(key)
        self._starting.pop(key, None)
        self._ports.free(key)
        with suppress(LauncherRefusedError, LauncherGoneError):
            await self._launcher.call("forget", attempt=key)
        self._files.tidy(set(self._parts.by_key))

    async def stacks(self, epoch: int, run: int, attempt: int, whole: bool) -> tuple[RankStack, ...]:
        """Where the part's ranks stand (stack_taker.py); nothing of a part that is not known here."""
        await self._take_orders_from(epoch)
        await self._connect()
        key = f"{run}.{attempt}"
        if (part := self._parts.by_key.get(key)) is None:
            return ()
        ranks = (await self._launcher.call("hello"))["attempts"].get(key, {}).get("ranks", {})
        pids = {int(rank): state["pid"] if state["exit"] is None else None for rank, state in ranks.items()}
        # Before torch writes a dump it prints that it will: a gang that hangs must not look as if it were telling of work.
        with part.not_heeding_output(pids if whole else ()):
            return await take(pids, part.folder.recorder, whole=whole)

    async def survey(self, epoch: int, python: str | None, look: bool) -> Surveyed:
        """What the node is, and what the interpreter brings; where that was not asked yet, its answer comes with a later sync."""
        await self._take_orders_from(epoch)
        self._survey.want(python)
        if look:
            self._node.look_at_once()
        await self._look()
        self._changed.set()
        return Surveyed(time.time(), self._node.host, self._survey.known.get(python))

    async def checkpoint_folder(self, epoch: int, folder: str, tokens: Tokens) -> FolderLook:
        """What this node finds in a checkpoint folder; see shared_folder.py."""
        await self._take_orders_from(epoch)
        try:
            return await in_time(partial(look_at_folder, Path(folder), tokens), "it")
        except Stalled as error:
            return FolderLook(error=str(error))

    async def close(self, epoch: int) -> None:
        """The cluster goes down: the launcher ends, once its attempts have."""
        await self._take_orders_from(epoch)
        self._survey.close()
        # The controller goes on asking until it ends, and must not bring a launcher back by that.
        self._closed = True
        with suppress(LauncherGoneError):
            for key, part in self._parts.by_key.items():
                if not part.swept:
                    await self._launcher.call("stop", attempt=key, grace_s=0)
            await self._quit()

    async def _quit(self) -> None:
        for _ in range(50):
            try:
                await self._launcher.call("quit")
            except LauncherRefusedError:
                await asyncio.sleep(0.1)
            else:
                return

    # -- the launcher --------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        """Sees to it that a launcher runs and is listened to. Raises LauncherGoneError, AgentGone once it was closed."""
        if self._closed:
            raise AgentGone("it was closed: the cluster goes down")
        async with self._connecting:
            if self._launcher.connected:
                return
            await self._launcher.connect()
            known = await self._launcher.call("hello")
            self._launcher_code = known.get("code")
            self._parts.take_up(known["attempts"])
            self._listening = asyncio.get_running_loop().create_task(self._listen())
            if sys.executable in known.get("zygotes", {}):
                self._survey.want(None)
            await self._launcher.call("warm", python=sys.executable, env=self._base)
            self._changed.set()

    async def _renew_launcher(self) -> None:
        """One of before an upgrade serves as long as what it started lives; then this orch's takes its place."""
        async with self._renewing:
            if self._launcher_code != LAUNCHER_CODE and not self._parts.by_key and not self._launching:
                with suppress(LauncherRefusedError, LauncherGoneError):
                    await self._launcher.call("quit")
                await self._launcher.close()
                await self._connect()

    async def _listen(self) -> None:
        async for event in self._launcher.events():
            if event.get("event") == "warm":
                self._is_warm(event)
            else:
                self._parts.on_event(event)
        # Whoever waits for news is woken, and connects again.
        self._changed.set()

    def _is_warm(self, event: Mapping[str, Any]) -> None:
        # Only now: two imports of torch at once would make the first ranks wait.
        self._survey.want(None)
        if not event["ok"]:
            log.warning("ranks of %s start cold: %s", event["python"], event["error"])

    async def _start(self, epoch: int, part: StartPart) -> Part:
        folder = await self._files.lay_out(part.key, part.code, self._fetch)
        if checkpoint := part.env.get("ORCH_CHECKPOINT_DIR"):
            made = partial(Path(checkpoint).mkdir, parents=True, exist_ok=True)
            await in_time(made, f"the checkpoint's folder {checkpoint}")
        port = part.master_port or self._ports.reserve(part.key)
        known = Part.of_start(part, folder, port)
        folder.write_note(known.note())
        # Fetching the code may have taken long. Was the controller replaced meanwhile, the next one has been told that there is
        # no such part here; was the node cut off, it gets no more time than the controller allows for.
        await self._take_orders_from(epoch)
        lease_s = self._left_of(part.lease_s)
        if not lease_s:
            raise ValueError("its lease was over before it could start: the controller has not been heard for so long")
        cpus = self._node.cpus_near([rank.gpu for rank in part.ranks]) if part.device == "cuda" else ()
        ranks = self._requests.of(replace(part, master_port=port), folder, cpus)
        with self._parts.starting(part.key):
            answer = await self._launch(self._launcher.call("start", attempt=part.key, lease_s=lease_s, ranks=ranks))
            self._parts.add(known, answer)
        for why in {state["why_cold"] for state in answer["ranks"].values() if "why_cold" in state}:
            log.info("run %s starts cold: %s", part.key, why)
        return known

    async def _launch(self, call: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
        """Has the launcher start ranks; meanwhile no controller is told what lives here."""
        starting = asyncio.get_running_loop().create_task(call)
        self._launching.add(starting)
        starting.add_done_callback(self._launching.discard)
        return await starting

    # -- whom it obeys, and what it tells -------------------------------------------------------------------------

    async def _take_orders_from(self, epoch: int) -> None:
        if epoch < self._epoch:
            raise StaleController(f"controller of epoch {epoch} was replaced by that of epoch {self._epoch}")
        if epoch > self._epoch:
            self._epoch, self._closed = epoch, False
            self._reports.begin_again()
            self._given, self._heard_at = {}, None

    def _was_heard(self, report: int) -> None:
        self._heard_at = self._given.get(report, self._heard_at)
        self._given = {number: at for number, at in self._given.items() if number >= report}

    async def _renew(self, lease_s: float) -> None:
        living = [key for key, part in self._parts.by_key.items() if not part.swept]
        if self._heard_at is not None and living:
            with suppress(LauncherGoneError):
                await self._launcher.call("lease", attempts=dict.fromkeys(living, self._left_of(lease_s)))

    def _left_of(self, lease_s: float) -> float:
        """What is left of a lease that runs from the answer which the controller has heard last.

        It was alive when it heard that, and knows when it asked next. An answer that it has not heard counts for nothing: calls
        that a cut has held up come in all at once when it is over, and the attempt that they are about may be given up by then.
        """
        heard_at = min(self._given.values(), default=None) if self._heard_at is None else self._heard_at
        return lease_s if heard_at is None else max(0.0, heard_at + lease_s - time.monotonic())

    async def _wait_for_news(self, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        while not self._changed.is_set() and not self._logs_pending():
            left = deadline - time.monotonic()
            if left <= 0:
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), min(left, LOOK_S if self._parts.by_key else left))

    def _logs_pending(self) -> bool:
        return any(part.logs_pending() for part in self._parts.by_key.values())

    async def _look(self) -> None:
        """Looks at the machine every now and then; what has changed goes into the next report."""
        if await self._node.look(lambda: self._parts.taken_gpus):
            self._survey.look_again()
            self._parts.tell_warnings()
        self._node.sum_up(self._survey.known)

    def _answer(self, report: Report, heard: float) -> Report:
        self._given.setdefault(report.sequence, time.monotonic())
        return replace(report, clock=(heard, time.time()))
