"""The zygotes, one for each interpreter that jobs use: started ahead, watched, dropped when they are out of date."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from spawning import spawn
from wire import Message, RefusedError, Reply

RANK_PROGRAM = str(Path(__file__).resolve().with_name("rank.py"))
ARGV_PADDING = 16 << 10
ENV_PADDING = 64 << 10
"""Bytes in which a warm rank shows its own command line and environment; one that needs more is started cold."""


@dataclass
class Zygote:
    """The process that forks warm ranks of one interpreter."""

    python: str
    pid: int
    control: socket.socket
    env: dict[str, str]
    ready: bool = False
    modules: tuple[str, ...] = ()
    most_threads: int | None = None
    """How many threads torch uses of itself. MKL caps a larger OMP_NUM_THREADS, but only where it reads it itself."""
    files: dict[str, tuple[int, int, int] | None] = field(default_factory=dict)


def stamp(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


class Zygotes:
    def __init__(
        self, folder: Path, preload: str, selector: selectors.BaseSelector, tell: Callable[[Message], None]
    ) -> None:
        self.folder, self.preload, self.selector, self.tell = folder, preload, selector, tell
        self.by_python: dict[str, Zygote] = {}

    def warm(self, request: Message, reply: Reply) -> None:
        python, env = str(request["python"]), dict(request.get("env") or os.environ)
        known = self.by_python.get(python)
        if known is not None and known.env == env:
            reply({})
            return
        if known is not None:
            self.drop(known)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        argv = [python, "-u", RANK_PROGRAM, str(theirs.fileno()), self.preload, " " * ARGV_PADDING]
        padded = {"ORCH_PADDING": " " * ENV_PADDING, **env}
        log = str(self.folder / "zygote.log")
        try:
            with theirs:
                pid = spawn(argv, env=padded, cwd=str(self.folder), log=log, keep=(theirs.fileno(),))
        except OSError as error:
            ours.close()
            raise RefusedError(f"python: {error.strerror}: {python}") from None
        zygote = Zygote(python, pid, ours, env)
        self.by_python[python] = zygote
        self.selector.register(ours, selectors.EVENT_READ, lambda _: self.hear(zygote))
        reply({})

    def hear(self, zygote: Zygote) -> None:
        try:
            text = zygote.control.recv(1 << 20)
        except OSError:
            text = b""
        if not text:
            self.lose(zygote, f"it ended; its last words are in {self.folder / 'zygote.log'}")
            return
        found = json.loads(text)
        if "error" in found:
            self.lose(zygote, found["error"])
        elif found["threads"] > 1:
            self.lose(zygote, f"it has {found['threads']} threads after its imports, which a fork would lose")
        else:
            zygote.modules = tuple(found["modules"])
            zygote.most_threads = found["most_threads"]
            zygote.files = {path: stamp(path) for path in found["files"]}
            zygote.ready = True
            missing = f"not installed there: {', '.join(found['missing'])}" if found["missing"] else None
            seconds = round(found["seconds"], 3)
            self.tell({"event": "warm", "python": zygote.python, "ok": True, "error": missing, "seconds": seconds})

    def lose(self, zygote: Zygote, why: str) -> None:
        if self.by_python.get(zygote.python) is zygote:
            self.drop(zygote)
            self.tell({"event": "warm", "python": zygote.python, "ok": False, "error": why, "seconds": None})

    def drop(self, zygote: Zygote) -> None:
        del self.by_python[zygote.python]
        self.selector.unregister(zygote.control)
        zygote.control.close()
        # Our own child and not reaped before, so that the pid is its own.
        with contextlib.suppress(ProcessLookupError):
            os.kill(zygote.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(zygote.pid, 0)

    def fresh(self, python: str) -> Zygote | None:
        """The interpreter's zygote, unless a package has changed since it was loaded."""
        zygote = self.by_python.get(python)
        changed = [path for path, seen in zygote.files.items() if stamp(path) != seen] if zygote else []
        if zygote is not None and changed:
            self.lose(zygote, f"{changed[0]} has changed since it was loaded")
            return None
        return zygote
