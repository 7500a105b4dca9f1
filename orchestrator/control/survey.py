"""Which versions the interpreters that jobs use have on this node: each asked once, one at a time, again when its files change."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from orchestrator.control.interpreter import Told, ask
from orchestrator.health.facts import Interpreter, NodeFacts

MOST = 64
"""Interpreters that are kept; beyond, the one that was wanted longest ago is forgotten."""
ASK_AGAIN_S = 60.0
"""How long an answer stands that might be another next time: an import that took too long."""

Python = str | None
"""An interpreter's path; None is orch's own."""


@dataclass(frozen=True)
class Surveyed:
    """A node's answer to `survey`."""

    at: float
    """Unix seconds by the node's clock."""
    host: NodeFacts | None
    interpreter: Interpreter | None
    """None while it is being asked."""


class Survey:
    """The agent's memory of interpreters. An import of torch costs seconds of a core: it is done once, and one at a time."""

    def __init__(self, command: Callable[[Python], tuple[str, Mapping[str, str]]], changed: Callable[[], None]) -> None:
        """`command` gives an interpreter's path, and the environment that its ranks get; `changed` is called with each answer."""
        self._command, self._changed = command, changed
        self._told: dict[Python, tuple[Told, float]] = {}
        self._asking: dict[Python, asyncio.Task[None]] = {}
        self._one_at_a_time = asyncio.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._closed = False

    @property
    def known(self) -> dict[Python, Interpreter]:
        return {python: told.interpreter for python, (told, _) in self._told.items()}

    def want(self, python: Python) -> None:
        """Asks the interpreter unless its answer is known and holds, or on its way."""
        if python in self._asking or self._closed:
            return
        if python in self._told:
            told, at = self._told[python] = self._told.pop(python)  # wanted last, forgotten last
            if told.holds() and (told.certain or time.monotonic() - at < ASK_AGAIN_S):
                return
            # Whoever asks meanwhile must not be told what was.
            del self._told[python]
        self._asking[python] = asyncio.get_running_loop().create_task(self._ask(python))

    def look_again(self) -> None:
        """Asks those again whose torch, or what it loads, was changed since, or that took too long then."""
        for python, (told, _) in list(self._told.items()):
            if not (told.certain and told.holds()):
                self.want(python)

    async def _ask(self, python: Python) -> None:
        try:
            async with self._one_at_a_time:
                path, env = self._command(python)
                told = await asyncio.to_thread(ask, path, env, started=self._started)
            self._told.pop(python, None)
            self._told[python] = told, time.monotonic()
            while len(self._told) > MOST:
                del self._told[next(iter(self._told))]
        finally:
            self._asking.pop(python, None)
            self._process = None
            self._changed()

    def _started(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        if self._closed:
            self._end(process)

    def close(self) -> None:
        """Nobody waits for an answer any more."""
        self._closed = True
        if (process := self._process) is not None:
            self._end(process)

    def _end(self, process: subprocess.Popen[str]) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
