"""How the agent reaches its node's launcher: starts one where there is none, asks it, hears what it tells."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any

Message = dict[str, Any]

LAUNCHER = Path(__file__).with_name("launcher")
"""A folder that Python runs: `python -I LAUNCHER DIR`."""
LAUNCHER_CODE = sha256(b"".join(path.read_bytes() for path in sorted(LAUNCHER.glob("*.py")))).hexdigest()[:12]
"""What this orch's launcher says to `hello`; one of before an upgrade says something else."""
CONNECT_S = 10.0
"""How long a new launcher may take until it listens."""
LINE_LIMIT = 64 << 20

# A first process starts the launcher in a session of its own and ends, so that the launcher is no child of the agent:
# Ray kills those.
DETACH = """
from subprocess import DEVNULL, Popen
import sys
Popen(sys.argv[1:], start_new_session=True, stdin=DEVNULL, stdout=DEVNULL)
"""


class LauncherRefusedError(Exception):
    """The launcher cannot do what was asked; the text says why."""


class LauncherGoneError(Exception):
    """No launcher answers: it could not be started, or the connection to it is lost."""


class LauncherClient:
    """One connection to the launcher of a folder. Every event comes once, in order, from `events()`.

    After `LauncherGoneError` call `connect()` again: it takes up the launcher that is there or starts another. Ask
    `hello` then: the answer holds every attempt and every exit that was told to nobody.
    """

    def __init__(self, folder: Path, env: Mapping[str, str], options: tuple[str, ...] = ()) -> None:
        """`env`: the launcher's environment; `options`: further arguments for it."""
        self.folder = folder
        self._env = dict(env)
        self._options = options
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._events: asyncio.Queue[Message | None] = asyncio.Queue()
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        return self._writer is not None

    async def __aenter__(self) -> LauncherClient:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def connect(self) -> None:
        """Connects to the folder's launcher, starting one where none listens. LauncherGoneError where that fails."""
        await self.close()
        path = str(self.folder / "launcher.sock")
        try:
            reader, writer = await asyncio.open_unix_connection(path, limit=LINE_LIMIT)
        except OSError:
            await self._start_launcher()
            reader, writer = await self._connect_by(asyncio.get_running_loop().time() + CONNECT_S, path)
        _, uid, _ = struct.unpack(
            "3i", writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        )
        if uid != os.getuid():
            # It would be told every rank's environment.
            writer.close()
            raise LauncherGoneError(f"what listens on {path} is a process of another user (uid {uid})")
        self._events = asyncio.Queue()
        self._writer = writer
        self._reading = asyncio.create_task(self._read(reader))

    async def _start_launcher(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        launcher = [sys.executable, "-I", str(LAUNCHER), str(self.folder), f"--code={LAUNCHER_CODE}", *self._options]
        argv = [sys.executable, "-c", DETACH, *launcher]
        with open(self.folder / "launcher.log", "ab") as log:
            first = await asyncio.create_subprocess_exec(
                *argv, env=self._env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log
            )
            await first.wait()

    async def _connect_by(self, deadline: float, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while True:
            try:
                return await asyncio.open_unix_connection(path, limit=LINE_LIMIT)
            except OSError as error:
                if asyncio.get_running_loop().time() >= deadline:
                    log = self.folder / "launcher.log"
                    raise LauncherGoneError(
                        f"no launcher listens on {path} ({error.strerror}); its log is {log}"
                    ) from None
                await asyncio.sleep(0.01)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                message = json.loads(line)
                if "event" in message:
                    self._events.put_nowait(message)
                    continue
                waiting = self._waiting.pop(message["id"], None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(message)
        except OSError:
            pass
        finally:
            self._lost()

    def _lost(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(LauncherGoneError("the connection to the launcher is lost"))
        self._waiting.clear()
        self._events.put_nowait(None)

    async def call(self, op: str, **fields: Any) -> Message:
        """Asks the launcher. Raises LauncherRefusedError with its reason, LauncherGoneError without a connection."""
        if self._writer is None:
            raise LauncherGoneError("not connected to a launcher")
        number = next(self._numbers)
        self._waiting[number] = waiting = asyncio.get_running_loop().create_future()
        self._writer.write(json.dumps({"id": number, "op": op, **fields}).encode() + b"\n")
        try:
            answer: Message = await waiting
        finally:
            self._waiting.pop(number, None)
        if "error" in answer:
            raise LauncherRefusedError(answer["error"])
        return answer

    async def events(self) -> AsyncIterator[Message]:
        """What the launcher tells, until the connection is lost or closed."""
        queue = self._events
        while (event := await queue.get()) is not None:
            yield event

    async def close(self) -> None:
        """Leaves the launcher alone; it goes on without us."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
            self._reading = None
