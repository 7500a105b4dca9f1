"""One node's agent: takes orders from the controller, has the launcher carry them out, ships logs, says what it sees.

It holds nothing that the launcher and the node's disk do not: a new agent finds the ranks of the one before it and goes on.
The Ray actor around it is in ray_backend.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import psutil

from orchestrator.control import snapshot
from orchestrator.control.backend import (
    AgentGone,
    LogChunk,
    PartStatus,
    Report,
    StaleController,
    StartFailed,
    StartPart,
)
from orchestrator.control.disks import Disks
from orchestrator.control.gpu_usage import GpuWatch
from orchestrator.control.gpu_watcher import GpuWatcher
from orchestrator.control.gpus import memory_is_free, nvml, obstacles, visible_gpus
from orchestrator.control.kernel_log import VARIABLE as KERNEL_LOG_VARIABLE
from orchestrator.control.kernel_log import boot_time
from orchestrator.control.launcher_client import (
    LAUNCHER_CODE,
    LauncherClient,
    LauncherGoneError,
    LauncherRefusedError,
)
from orchestrator.control.log_patterns import LogPatterns
from orchestrator.control.masking import values_in_process, values_of
from orchestrator.control.nccl_watch import rank_of
from orchestrator.control.node_files import AttemptFolder, NodeFiles
from orchestrator.control.node_look import look_around
from orchestrator.control.part import Part
from orchestrator.control.rank_ends import EndWatch
from orchestrator.control.rank_env import (
    base_env,
    cpus_by_numa,
    gpu_name,
    interface_of,
    interpreter_env,
    rank_env,
)
from orchestrator.control.rank_progress import RankProgress, look
from orchestrator.control.shared_folder import FolderLook, Tokens
from orchestrator.control.shared_folder import look as look_at_folder
from orchestrator.control.stack_taker import take
from orchestrator.control.storage import Stalled, in_time
from orchestrator.control.survey import Survey, Surveyed
from orchestrator.hardware.environment import on_network
from orchestrator.hardware.model import Node
from orchestrator.health.stacks import RankStack
from orchestrator.health.vitals import Vitals
from orchestrator.placement.ranks import cpu_affinity
from orchestrator.progress.file import VARIABLE as PROGRESS_VARIABLE

log = logging.getLogger("orch.agent")

LOOK_S = 0.1
"""How often logs are looked at while ranks live."""
LOOK_AGAIN_S = 30.0
"""How often the machine is looked at: a GPU that is lost, or a NIC that goes down, is told within that time."""
PROGRESS_S = 1.0
"""How often the ranks' progress files are read."""
REPORT_BYTES = 4 << 20
GPU_FREE_S = 15.0
"""How long ended ranks' GPU memory may take to be given back before the node is reported all the same."""


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
        self._ends = EndWatch(Path(environ.get(KERNEL_LOG_VARIABLE, "/dev/kmsg")))
        self._cluster, self._name = cluster, node
        self._address = address
        self._files = NodeFiles(folder)
        self._fetch = fetch
        self._info = info
        self._info_sent = False
        self._machine: dict[str, Any] | None = None
        self._found: dict[str, Any] | None = None
        self._looked = 0.0
        self._disks = Disks(disks or {})
        self._vitals: Vitals | None = None
        self._vitals_sent = False
        self._visible = visible_gpus(environ)
        self._gpus = GpuWatcher(GpuWatch(environ), self._visible, lambda: self._parts.values())
        self._base = base_env(environ)
        self._interface = interface_of(address)
        self._cpus_of_numa = cpus_by_numa()
        self._node: Node | None = None
        # Cores, not hyperthreads: that is what MKL and OpenBLAS count, and what a rank gains by.
        self._cores = min(len(os.sched_getaffinity(0)), psutil.cpu_count(logical=False) or 1)
        self._epoch = 0
        self._parts: dict[str, Part] = {}
        self._ports: dict[str, socket.socket] = {}
        self._starting: dict[str, asyncio.Lock] = {}
        self._changed = asyncio.Event()
        self._sequence = 0
        self._syncs = 0
        self._unacked: Report | None = None
        self._answered: float | None = None
        self._survey = Survey(lambda python: interpreter_env(self._base, python), self._changed.set)
        self._launcher = LauncherClient(folder / "launcher", self._base)
        self._launcher_code: str | None = None
        self._connecting, self._renewing = asyncio.Lock(), asyncio.Lock()
        self._launching: set[asyncio.Task[Any]] = set()
        """Starts that the launcher has not answered: no part yet, and not none either."""
        self._closed = False
        self._listening: asyncio.Task[None] | None = None

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
            await self._renew(lease_s)
        self._check_heard(mine)
        if self._unacked is not None and ack < self._unacked.sequence:
            if ack == 0:
                # Its logs were taken for it and are in no other; what it said of the parts may be long over.
                await self._starts_are_over()
                self._check_heard(mine)
                self._unacked = replace(self._unacked, parts=self._statuses())
            return self._answer(self._unacked, heard)
        if self._unacked is not None:
            self._acknowledged()
        if ack == 0:
            self._info_sent = self._vitals_sent = False
        else:
            await self._wait_for_news(wait_s)
        await self._look()
        if ack == 0:
            await self._starts_are_over()
        self._check_heard(mine)
        return self._answer(self._compose(), heard)

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
        return self._reserve(f"{run}.{attempt}")

    async def start(self, epoch: int, part: StartPart) -> PartStatus:
        """Starts the part's ranks; a part that is known already is answered as it is. Raises StartFailed."""
        await self._take_orders_from(epoch)
        await self._connect()
        await self._renew_launcher()
        async with self._starting.setdefault(part.key, asyncio.Lock()):
            known = self._parts.get(part.key)
            if known is None:
                try:
                    known = await self._start(epoch, part)
                except (LauncherRefusedError, snapshot.SnapshotError, Stalled, OSError, ValueError) as error:
                    self._free_port(part.key)
                    raise StartFailed(str(error)) from None
                except LauncherGoneError as error:
                    # The launcher that follows sweeps away what this one had started.
                    self._free_port(part.key)
                    await self._connect()
                    raise StartFailed(str(error)) from None
        return known.status(self._ends)

    async def stop(self, epoch: int, run: int, attempt: int, grace_s: float) -> None:
        await self._take_orders_from(epoch)
        await self._connect()
        if f"{run}.{attempt}" in self._parts:
            with suppress(LauncherRefusedError):
                await self._launcher.call("stop", attempt=f"{run}.{attempt}", grace_s=grace_s)

    async def forget(self, epoch: int, run: int, attempt: int) -> None:
        """The controller has recorded the end of this part: nobody needs to hear of it again."""
        await self._take_orders_from(epoch)
        key = f"{run}.{attempt}"
        if (part := self._parts.pop(key, None)) is not None and part.watching is not None:
            part.watching.cancel()
        self._starting.pop(key, None)
        self._ends.forget(key)
        self._free_port(key)
        with suppress(LauncherRefusedError, LauncherGoneError):
            await self._launcher.call("forget", attempt=key)
        self._files.tidy(set(self._parts))

    async def stacks(self, epoch: int, run: int, attempt: int, whole: bool) -> tuple[RankStack, ...]:
        """Where the part's ranks stand (stack_taker.py); nothing of a part that is not known here."""
        await self._take_orders_from(epoch)
        await self._connect()
        key = f"{run}.{attempt}"
        if (part := self._parts.get(key)) is None:
            return ()
        ranks = (await self._launcher.call("hello"))["attempts"].get(key, {}).get("ranks", {})
        pids = {int(rank): state["pid"] if state["exit"] is None else None for rank, state in ranks.items()}
        return await take(pids, part.folder.recorder, whole=whole)

    async def survey(self, epoch: int, python: str | None, look: bool) -> Surveyed:
        """What the node is, and what the interpreter brings; where that was not asked yet, its answer comes with a later sync."""
        await self._take_orders_from(epoch)
        self._survey.want(python)
        if look:
            self._looked = 0.0
        await self._look()
        assert self._found is not None
        self._changed.set()
        return Surveyed(time.time(), self._found.get("host"), self._survey.known.get(python))

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
            for key, part in self._parts.items():
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
            for key, attempt in known["attempts"].items():
                self._take_up(key, attempt)
            for key in self._parts.keys() - known["attempts"].keys():
                # A launcher that died took its ranks with it, by the sweep of the one that follows.
                part = self._parts[key]
                self._lost_with_launcher(part)
                part.swept = part.gpu_free = True
                part.close_logs()
            self._listening = asyncio.get_running_loop().create_task(self._listen())
            if sys.executable in known.get("zygotes", {}):
                self._survey.want(None)
            await self._launcher.call("warm", python=sys.executable, env=self._base)
            self._changed.set()

    async def _renew_launcher(self) -> None:
        """One of before an upgrade serves as long as what it started lives; then this orch's takes its place."""
        async with self._renewing:
            if self._launcher_code != LAUNCHER_CODE and not self._parts and not self._launching:
                with suppress(LauncherRefusedError, LauncherGoneError):
                    await self._launcher.call("quit")
                await self._launcher.close()
                await self._connect()

    async def _listen(self) -> None:
        async for event in self._launcher.events():
            self._on_event(event)
        # Whoever waits for news is woken, and connects again.
        self._changed.set()

    def _take_up(self, key: str, attempt: dict[str, Any]) -> None:
        """A part that an agent before this one started, or that changed while the connection was lost."""
        part = self._parts.get(key)
        if part is None:
            folder = self._files.attempt(key)
            note = folder.read_note() or {}
            run, number = map(int, key.split("."))
            part = Part(run, number, folder, note.get("log_limit", 64 << 20), tuple(note.get("gpus", ())))
            part.began = note.get("began", 0.0)
            part.master_port, part.world_size = note.get("master_port", 0), note.get("world_size", 0)
            part.patterns = LogPatterns(note.get("throughput", {}))
            part.secrets = tuple(note.get("secrets", ()))
            # Before any of its logs is looked at.
            folder.secrets = next(
                filter(None, (values_in_process(r["pid"], part.secrets) for r in attempt["ranks"].values())), ()
            )
            part.ranks = dict.fromkeys(note.get("ranks", ()))
            for rank, shipped in note.get("shipped", {}).items():
                file = folder.log(int(rank))
                file.shipped = file.taken = shipped
            self._parts[key] = part
            self._watch_nccl(part, note.get("nccl_log"), map(int, attempt["ranks"]))
            self._gpus.watch()
        self._ends.watch(key, {int(rank): state["pid"] for rank, state in attempt["ranks"].items()})
        for rank, state in attempt["ranks"].items():
            part.ranks[int(rank)] = state["exit"]
            if state["exit"] is not None:
                self._rank_ended(part, int(rank), {**state, "code": state["exit"]})
        part.lease_expired = part.lease_expired or attempt.get("lease_expired", False)
        if part.ranks.keys() - set(map(int, attempt["ranks"])):
            # It was swept by a launcher that knows no rank of it: that which started them has ended.
            self._lost_with_launcher(part)
        if attempt["ended"]:
            self._swept(part)

    def _on_event(self, event: dict[str, Any]) -> None:
        part = self._parts.get(event.get("attempt", ""))
        if part is None:
            if event.get("event") == "warm":
                # Only now: two imports of torch at once would make the first ranks wait.
                self._survey.want(None)
                if not event["ok"]:
                    log.warning("ranks of %s start cold: %s", event["python"], event["error"])
            return
        match event["event"]:
            case "exit":
                self._rank_ended(part, event["rank"], event)
            case "ended":
                self._swept(part)
            case "lease_expired":
                part.lease_expired = True
        self._changed.set()

    def _rank_ended(self, part: Part, rank: int, state: dict[str, Any]) -> None:
        part.ranks[rank] = state["code"]
        self._ends.ended(part.key, rank, state, part.folder.last_word(rank), part.folder.secrets)
        if part.nccl is not None:
            part.nccl.tell_warnings()

    def _lost_with_launcher(self, part: Part) -> None:
        """The kernel ends ranks with their launcher."""
        part.launcher_lost |= any(code is None for code in part.ranks.values())
        part.ranks = {rank: -9 if code is None else code for rank, code in part.ranks.items()}

    def _watch_nccl(self, part: Part, source: Literal["file", "output"] | None, ranks: Iterable[int]) -> None:
        """Has NCCL's log read until the part's links are known; their news goes into the next report."""
        if source is not None:
            part.watch_nccl(source, ranks)
            assert part.nccl is not None
            part.watching = asyncio.create_task(part.nccl.follow(lambda: part.swept, self._changed.set))

    def _swept(self, part: Part) -> None:
        if not part.swept:
            part.swept = True
            part.close_logs()
            if part.nccl is not None:
                part.nccl.ship()
            task = asyncio.get_running_loop().create_task(self._await_gpu_memory(part))
            task.add_done_callback(lambda _: self._changed.set())

    async def _await_gpu_memory(self, part: Part) -> None:
        """The next run may have these GPUs only once their memory is seen to be free."""
        deadline = time.monotonic() + GPU_FREE_S
        names = [gpu_name(self._visible, i) for i in part.gpus]
        while names and not memory_is_free(names) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        part.gpu_free = True

    async def _start(self, epoch: int, part: StartPart) -> Part:
        folder = await self._files.lay_out(part.key, part.code, self._fetch)
        if checkpoint := part.env.get("ORCH_CHECKPOINT_DIR"):
            made = partial(Path(checkpoint).mkdir, parents=True, exist_ok=True)
            await in_time(made, f"the checkpoint's folder {checkpoint}")
        gpus = tuple(rank.gpu for rank in part.ranks) if part.device == "cuda" else ()
        known = Part(part.run, part.attempt, folder, part.log_limit, gpus)
        known.began = boot_time()
        known.master_port, known.world_size = part.master_port or self._reserve(part.key), part.world_size
        known.patterns = LogPatterns(part.throughput)
        known.secrets, folder.secrets = tuple(part.secrets), values_of(part.secrets.values())
        known.ranks = {rank.rank: None for rank in part.ranks}
        folder.write_note(known.note() | {"nccl_log": part.nccl_log})
        # Fetching the code may have taken long. Was the controller replaced meanwhile, the next one has been told that there is
        # no such part here; was the node cut off, it gets no more time than the controller allows for.
        await self._take_orders_from(epoch)
        lease_s = self._left_of(part.lease_s)
        ranks = self._ranks(part, folder, known.master_port)
        answer = await self._launch(self._launcher.call("start", attempt=part.key, lease_s=lease_s, ranks=ranks))
        for why in {state["why_cold"] for state in answer["ranks"].values() if "why_cold" in state}:
            log.info("run %s starts cold: %s", part.key, why)
        self._parts[part.key] = known
        self._watch_nccl(known, part.nccl_log, known.ranks)
        self._gpus.watch()
        self._ends.watch(part.key, {int(rank): state["pid"] for rank, state in answer["ranks"].items()})
        self._changed.set()
        return known

    async def _launch(self, call: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
        """Has the launcher start ranks; meanwhile no controller is told what lives here."""
        starting = asyncio.get_running_loop().create_task(call)
        self._launching.add(starting)
        starting.add_done_callback(self._launching.discard)
        return await starting

    def _ranks(self, part: StartPart, folder: AttemptFolder, master_port: int) -> list[dict[str, Any]]:
        python, base = interpreter_env(self._base, part.python)
        part = replace(part, master_port=master_port)
        cpus: tuple[tuple[int, ...], ...] = ()
        if part.device == "cuda" and self._node is not None and self._pins():
            cpus = cpu_affinity(self._node.shape, [rank.gpu for rank in part.ranks], self._cpus_of_numa)
        # Of this node alone: two nodes may share one machine, and the part that ends first must not take the other's ranks.
        mark = f"{self._cluster}.{part.key}.{self._name}"
        return [
            {
                "rank": rank.rank,
                "python": python,
                "argv": list(part.argv),
                "cwd": str(folder.code),
                "log": str(folder.log(rank.rank).path),
                "env": rank_env(
                    base,
                    part,
                    rank,
                    visible=self._visible,
                    cores=self._cores,
                    mark=mark,
                    nccl_log=folder.nccl if part.nccl_log == "file" else None,
                    recorder=folder.recorder if part.attempt > 0 else None,
                )
                # What is no attempt has no progress, and is not slowed by being watched.
                | ({PROGRESS_VARIABLE: str(folder.progress(rank.rank))} if part.attempt > 0 else {}),
                "cpus": list(cpus[rank.local_rank]) if cpus else None,
                "cudnn": part.cudnn,
            }
            for rank in part.ranks
        ]

    # -- reports -------------------------------------------------------------------------------------------------

    async def _take_orders_from(self, epoch: int) -> None:
        if epoch < self._epoch:
            raise StaleController(f"controller of epoch {epoch} was replaced by that of epoch {self._epoch}")
        if epoch > self._epoch:
            self._epoch, self._unacked, self._sequence, self._closed = epoch, None, 0, False
            for part in self._parts.values():
                for file in part.folder.logs.values():
                    file.taken, file.tail_taken = file.shipped, False
                if part.nccl is not None:
                    part.nccl.from_the_start()

    async def _renew(self, lease_s: float) -> None:
        """The lease runs from our last answer: the controller was alive when it heard that, and knows when it asked next."""
        living = [key for key, part in self._parts.items() if not part.swept]
        if self._answered is not None and living:
            with suppress(LauncherGoneError):
                await self._launcher.call("lease", attempts=dict.fromkeys(living, self._left_of(lease_s)))

    def _left_of(self, lease_s: float) -> float:
        """What is left of a lease that runs from our last answer."""
        return lease_s if self._answered is None else max(0.0, self._answered + lease_s - time.monotonic())

    async def _wait_for_news(self, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        while not self._changed.is_set() and not self._logs_pending():
            left = deadline - time.monotonic()
            if left <= 0:
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), min(left, LOOK_S if self._parts else left))

    def _logs_pending(self) -> bool:
        """Whether the next report would hold something of a log; the end of an overlong one is read when its writer ended."""
        if any(part.nccl is not None and part.nccl.pending() for part in self._parts.values()):
            return True
        return any(
            file.pending(part.log_limit) or (part.swept and file.over(part.log_limit) and not file.tail_taken)
            for part in self._parts.values()
            for file in map(part.folder.log, part.ranks)
        )

    def _compose(self) -> Report:
        self._changed.clear()
        chunks: list[LogChunk] = []
        room = REPORT_BYTES
        for part in self._parts.values():
            for rank in part.ranks:
                file = part.folder.log(rank)
                while room > 0 and (taken := file.take(part.log_limit)) is not None:
                    room -= len(taken[1])
                    chunks.append(LogChunk(part.run, part.attempt, rank, *taken, time.time()))
                    if rank == 0:
                        part.patterns.feed(taken[1])
                if file.over(part.log_limit) and not file.tail_taken:
                    file.trim(part.log_limit)
                    if part.swept:
                        chunks.append(LogChunk(part.run, part.attempt, rank, *file.take_tail(), time.time(), tail=True))
            if part.nccl is not None and room > 0:
                for name, offset, data in part.nccl.take(room):
                    room -= len(data)
                    chunks.append(LogChunk(part.run, part.attempt, rank_of(name), offset, data, time.time(), file=name))
        info = None if self._info_sent else self._found
        vitals = None if self._vitals_sent else self._vitals
        self._info_sent = self._vitals_sent = True
        self._sequence += 1
        looks = tuple(found for part in self._parts.values() for found in self._progress_of(part))
        gpus = self._gpus.take()
        self._unacked = Report(self._sequence, self._statuses(), tuple(chunks), info, gpus, looks, vitals)
        return self._unacked

    def _statuses(self) -> tuple[PartStatus, ...]:
        return tuple(part.status(self._ends) for part in self._parts.values())

    def _progress_of(self, part: Part) -> tuple[RankProgress, ...]:
        """The newest look at each of the part's ranks: a second old at most while they live, and their last word after."""
        if part.swept or time.monotonic() - part.looked >= PROGRESS_S:
            part.looked = time.monotonic()
            self._ends.look(part.key)
            now, patterns = time.monotonic_ns(), part.patterns
            found = (
                look(
                    part.folder.progress(rank),
                    part.run,
                    part.attempt,
                    rank,
                    logged=patterns.values if rank == 0 else None,
                    logged_at=patterns.at if rank == 0 else 0,
                    printed_at=part.folder.log(rank).printed_at(now),
                )
                for rank in part.ranks
            )
            part.progress = tuple(one for one in found if one is not None)
        return part.progress

    async def _look(self) -> None:
        """Looks at the machine every now and then; what has changed goes into the next report."""
        if self._machine is None or time.monotonic() - self._looked >= LOOK_AGAIN_S:
            machine = await asyncio.to_thread(self._info)
            await asyncio.to_thread(nvml)  # so that the first check before a start need not wait for it
            if (host := machine.get("host")) is not None:
                machine["host"] = replace(on_network(host, self._interface), node=self._name)
            seen, node = machine.pop("vitals", Vitals()), machine.get("node")
            taken = {gpu for part in self._parts.values() if not part.gpu_free for gpu in part.gpus}
            self._machine, self._looked, self._node = machine, time.monotonic(), node
            self._ends.know_gpus([] if self._node is None else [(gpu.index, gpu.bus_id) for gpu in self._node.gpus])
            await asyncio.to_thread(self._ends.read_log)
            self._vitals = await asyncio.to_thread(
                look_around,
                replace(seen, xids=self._ends.xid_lines()),
                node,
                self._interface,
                self._disks,
                self._visible,
                taken,
            )
            self._vitals_sent = False
            self._survey.look_again()
            for part in self._parts.values():
                if part.nccl is not None and part.nccl.value is not None and not part.swept:
                    part.nccl.tell_warnings()
                    part.nccl.ship()
        more = {"interface": self._interface, "pins_cpus": self._pins(), "interpreters": self._survey.known}
        found = self._machine | more
        if found != self._found:
            self._found, self._info_sent = found, False

    def _pins(self) -> bool:
        """Whether ranks are kept on the CPUs of their GPU's NUMA node: where there are several, and the driver tells whose."""
        return (
            len(self._cpus_of_numa) > 1 and self._node is not None and any(g.numa is not None for g in self._node.gpus)
        )

    def _answer(self, report: Report, heard: float) -> Report:
        self._answered = time.monotonic()
        return replace(report, clock=(heard, time.time()))

    def _acknowledged(self) -> None:
        assert self._unacked is not None
        for status in self._unacked.parts:
            told = self._parts.get(f"{status.run}.{status.attempt}")
            if told is not None and told.nccl is not None:
                told.nccl.acknowledged(status.nccl is not None)
        shipped = {(chunk.run, chunk.attempt) for chunk in self._unacked.logs}
        for run, attempt in shipped:
            part = self._parts.get(f"{run}.{attempt}")
            if part is None:
                continue
            for file in part.folder.logs.values():
                file.shipped = file.taken
            part.folder.write_note(part.note())
        self._unacked = None

    # -- the rendezvous port -------------------------------------------------------------------------------------

    def _reserve(self, key: str) -> int:
        """A port that nobody else is given while the attempt lives.

        The socket stays bound and never listens: with SO_REUSEADDR on both, rank 0's store may bind and listen on the port,
        while the kernel gives it to no bind(0) and no outgoing connection.
        """
        if key not in self._ports:
            held = socket.socket(socket.AF_INET6 if ":" in self._address else socket.AF_INET)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(("", 0))
            self._ports[key] = held
        port: int = self._ports[key].getsockname()[1]
        return port

    def _free_port(self, key: str) -> None:
        if held := self._ports.pop(key, None):
            held.close()
