"""What lives on a node: the parts that the controller has not forgotten, and what becomes of each, as the launcher tells it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.control.backend import PartStatus
from orchestrator.control.gpu_usage import GpuWatch
from orchestrator.control.gpu_watcher import GpuWatcher
from orchestrator.control.gpus import memory_is_free
from orchestrator.control.kernel_log import VARIABLE as KERNEL_LOG_VARIABLE
from orchestrator.control.masking import values_in_process
from orchestrator.control.node_files import NodeFiles
from orchestrator.control.part import Part
from orchestrator.control.rank_ends import EndWatch
from orchestrator.control.rank_env import gpu_name

GPU_FREE_S = 15.0
"""How long ended ranks' GPU memory may take to be given back before the node is reported all the same."""


class Parts:
    """The parts of one node, what is watched of their GPUs, and how their ranks ended."""

    def __init__(
        self, files: NodeFiles, environ: Mapping[str, str], visible: tuple[str, ...], news: Callable[[], None]
    ) -> None:
        """`visible` are CUDA's names of the node's GPUs; `news` is called where there is something new to tell the controller."""
        self._files, self._visible, self._news = files, visible, news
        self.by_key: dict[str, Part] = {}
        self._early: dict[str, list[Mapping[str, Any]]] = {}
        """By part that is being started, what the launcher told of it before its start was noted down here."""
        self.ends = EndWatch(Path(environ.get(KERNEL_LOG_VARIABLE, "/dev/kmsg")))
        self.gpus = GpuWatcher(GpuWatch(environ), visible, self.by_key.values)

    @property
    def taken_gpus(self) -> set[int]:
        """Those that runs have, or whose memory has not been seen to be free since."""
        return {gpu for part in self.by_key.values() if not part.gpu_free for gpu in part.gpus}

    def statuses(self) -> tuple[PartStatus, ...]:
        return tuple(part.status(self.ends) for part in self.by_key.values())

    @contextmanager
    def starting(self, key: str) -> Iterator[None]:
        """While the launcher is asked to start it, until it was added: ranks may end before its answer is taken in."""
        self._early[key] = []
        try:
            yield
        finally:
            for event in self._early.pop(key):
                self.on_event(event)

    def add(self, part: Part, attempt: Mapping[str, Any]) -> None:
        """The launcher has started it: `attempt` is its answer, with each rank's pid."""
        self.by_key[part.key] = part
        part.watch_nccl(map(int, attempt["ranks"]), self._news)
        self.gpus.watch()
        self._watch_ends(part, attempt)
        self._news()

    def _watch_ends(self, part: Part, attempt: Mapping[str, Any]) -> None:
        self.ends.watch(part.key, {int(rank): state["pid"] for rank, state in attempt["ranks"].items()})

    def forget(self, key: str) -> None:
        """Nobody needs to hear of it again."""
        if (part := self.by_key.pop(key, None)) is not None and part.watching is not None:
            part.watching.cancel()
        self.ends.forget(key)

    def from_the_start(self) -> None:
        """Another controller asks."""
        for part in self.by_key.values():
            part.from_the_start()

    def tell_warnings(self) -> None:
        """What NCCL has warned of since its log was read through is put into the ranks' logs, and sent with its files."""
        for part in self.by_key.values():
            if part.nccl is not None and part.nccl.value is not None and not part.swept:
                part.nccl.tell_warnings()
                part.nccl.ship()

    # -- what the launcher tells -----------------------------------------------------------------------------------

    def take_up(self, attempts: Mapping[str, Mapping[str, Any]]) -> None:
        """All that a launcher knows, when an agent connects: started before this agent, or changed since it last heard."""
        for key, attempt in attempts.items():
            self._take_up(key, attempt)
        for key in self.by_key.keys() - attempts.keys():
            # A launcher that died took its ranks with it, by the sweep of the one that follows.
            part = self.by_key[key]
            part.lose_launcher()
            part.swept = part.gpu_free = True
            part.close_logs()

    def _take_up(self, key: str, attempt: Mapping[str, Any]) -> None:
        part = self.by_key.get(key)
        if part is None:
            part = self.by_key[key] = self._of_note(key, attempt)
            part.watch_nccl(map(int, attempt["ranks"]), self._news)
            self.gpus.watch()
        self._watch_ends(part, attempt)
        for rank, state in attempt["ranks"].items():
            part.ranks[int(rank)] = state["exit"]
            if state["exit"] is not None:
                self._rank_ended(part, int(rank), {**state, "code": state["exit"]})
        part.lease_expired = part.lease_expired or attempt.get("lease_expired", False)
        if part.ranks.keys() - set(map(int, attempt["ranks"])):
            # It was swept by a launcher that knows no rank of it: that which started them has ended.
            part.lose_launcher()
        if attempt["ended"]:
            self._swept(part)

    def _of_note(self, key: str, attempt: Mapping[str, Any]) -> Part:
        folder = self._files.attempt(key)
        note = folder.read_note() or {}
        names = tuple(note.get("secrets", ()))
        # Before any of its logs is looked at.
        folder.secrets = next(
            filter(None, (values_in_process(state["pid"], names) for state in attempt["ranks"].values())), ()
        )
        return Part.of_note(key, note, folder)

    def on_event(self, event: Mapping[str, Any]) -> None:
        """The launcher tells of one of them, or of one that is forgotten."""
        if (early := self._early.get(event["attempt"])) is not None:
            early.append(event)
            return
        if (part := self.by_key.get(event["attempt"])) is None:
            return
        match event["event"]:
            case "exit":
                self._rank_ended(part, event["rank"], event)
            case "ended":
                self._swept(part)
            case "lease_expired":
                part.lease_expired = True
        self._news()

    def _rank_ended(self, part: Part, rank: int, state: Mapping[str, Any]) -> None:
        part.ranks[rank] = state["code"]
        self.ends.ended(part.key, rank, state, part.folder.last_word(rank), part.folder.secrets)
        if part.nccl is not None:
            part.nccl.tell_warnings()

    def _swept(self, part: Part) -> None:
        if not part.swept:
            part.swept = True
            part.close_logs()
            if part.nccl is not None:
                part.nccl.ship()
            task = asyncio.get_running_loop().create_task(self._await_gpu_memory(part))
            task.add_done_callback(lambda _: self._news())

    async def _await_gpu_memory(self, part: Part) -> None:
        """The next run may have these GPUs only once their memory is seen to be free."""
        deadline = time.monotonic() + GPU_FREE_S
        names = [gpu_name(self._visible, i) for i in part.gpus]
        while names and not memory_is_free(names) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        part.gpu_free = True
