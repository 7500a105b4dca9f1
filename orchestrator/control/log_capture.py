"""What becomes of logs where the head's disk takes no more: runs go on, what is lost is counted and said on the run."""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import suppress

from orchestrator.control.backend import LogChunk
from orchestrator.control.logs import LogFolder
from orchestrator.control.runtime import Runtime
from orchestrator.history.errors import NoSuchRun
from orchestrator.scheduling.lifecycle import Event, IllegalTransition

log = logging.getLogger("orch.logs")


class LogCapture:
    """Chunks to files; a chunk that cannot be written is dropped, since an agent that waits would fill its node's disk instead."""

    def __init__(self, runtime: Runtime, logs: LogFolder) -> None:
        self._runtime, self._logs = runtime, logs
        self._lost: Counter[tuple[int, int]] = Counter()
        """By attempt, bytes that are not said on the run yet."""

    def take(self, chunk: LogChunk) -> None:
        key, runtime = (chunk.run, chunk.attempt), self._runtime
        try:
            self._logs.write(chunk)
        except OSError as error:
            self._lost[key] += len(chunk.data)
            runtime.alarms.set(
                "logs", f"Logs are lost, runs go on: {error.filename or 'a log'}: {error.strerror}.", runtime.now()
            )
            return
        runtime.alarms.clear("logs")
        if self._lost[key]:
            self.end(*key)
        else:
            del self._lost[key]

    def end(self, run: int, attempt: int) -> None:
        """No more of it will be lost now: says on the run how much was."""
        if lost := self._lost.pop((run, attempt), 0):
            self._runtime.spawn(
                self._say(run, f"{lost:,} bytes of its log are lost: the controller's disk took no more")
            )

    async def _say(self, run: int, text: str) -> None:
        with suppress(IllegalTransition, NoSuchRun):  # it has ended, or expired, meanwhile
            runtime = self._runtime
            await runtime.persist(f"a note on run {run}", runtime.store.record, run, Event.NOTED, runtime.now(), text)
