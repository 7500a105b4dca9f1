"""The GPUs of a node's runs, looked at every few seconds while there are any."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from orchestrator.control.backend import GpuLook
from orchestrator.control.gpu_usage import GpuWatch
from orchestrator.control.part import Part
from orchestrator.control.rank_env import gpu_name

LOOK_S = 5.0
MOST_LOOKS = 1024
"""A controller that is away for long need not hear of all."""


class GpuWatcher:
    """Looks apart from the agent's reports: a driver that hangs must not keep the heartbeat."""

    def __init__(self, gpus: GpuWatch, visible: tuple[str, ...], parts: Callable[[], Collection[Part]]) -> None:
        self._watch, self._visible, self._parts = gpus, visible, parts
        self._looks: list[GpuLook] = []
        self._task: asyncio.Task[None] | None = None

    def watch(self) -> None:
        """Sees to it that the GPUs of runs are looked at, until no run has one."""
        if self._task is None and any(part.gpus for part in self._parts()):
            self._task = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        try:
            while live := [part for part in self._parts() if part.gpus and not part.swept]:
                names = {gpu: gpu_name(self._visible, gpu) for part in live for gpu in part.gpus}
                uses = await asyncio.to_thread(self._watch.look, list(names.values()))
                self._looks += [
                    GpuLook(part.run, part.attempt, gpu, uses[names[gpu]])
                    for part in live
                    for gpu in part.gpus
                    if names[gpu] in uses
                ]
                del self._looks[:-MOST_LOOKS]
                await asyncio.sleep(LOOK_S)
        finally:
            self._task = None

    def take(self) -> tuple[GpuLook, ...]:
        """The looks since they were last taken."""
        taken, self._looks = tuple(self._looks), []
        return taken
