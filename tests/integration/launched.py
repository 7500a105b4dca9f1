"""A launcher with real processes, and an agent that talks to it: what the tests of `launcher/` share.

Warm ranks come from a zygote that preloads only `json`, except where a test is marked `torch`.
"""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from orchestrator.control.launcher_client import (
    LauncherClient,
)
from orchestrator.control.rank_env import base_env

FINGERPRINT = Path(__file__).parents[1] / "fixtures" / "fingerprint.py"


ENV = base_env(os.environ)
CPUS = os.sched_getaffinity(0)
# The sweep is of the whole machine: of another pytest, too, where marks are the same.
MARK = f"test{os.getpid()}"


class Node:
    """A folder with a launcher, and an agent that talks to it."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.loop = asyncio.new_event_loop()
        self.client = LauncherClient(folder / "l", env=ENV, options=options)
        self.connect()

    def connect(self) -> None:
        self.loop.run_until_complete(self.client.connect())
        self.events = self.client.events()
        self.seen: list[dict[str, Any]] = []
        self.pid = self.call("hello")["pid"]

    def disconnect(self) -> None:
        self.loop.run_until_complete(self.client.close())

    def call(self, op: str, **fields: Any) -> dict[str, Any]:
        return self.loop.run_until_complete(asyncio.wait_for(self.client.call(op, **fields), 30))

    def event(self, kind: str, timeout: float = 60, **fields: Any) -> dict[str, Any]:
        """The first event of that kind, already heard or still to come."""

        async def hear() -> dict[str, Any]:
            while True:
                for event in self.seen:
                    if event["event"] == kind and fields.items() <= event.items():
                        return event
                self.seen.append(await anext(self.events))

        return self.loop.run_until_complete(asyncio.wait_for(hear(), timeout))

    def warm(self) -> dict[str, Any]:
        self.call("warm", python=sys.executable, env=ENV)
        return self.event("warm")

    def script(self, text: str, name: str = "train.py") -> str:
        (self.folder / name).write_text(text)
        return name

    def rank(self, attempt: str, text: str, rank: int = 0, **change: Any) -> dict[str, Any]:
        name = self.script(text, f"train_{attempt.replace('.', '_')}_{rank}.py")
        env = {**ENV, "ORCH_MARK": f"{MARK}.{attempt}", "RANK": str(rank), **change.pop("env", {})}
        log = str(self.folder / f"{attempt}.{rank}.log")
        plain = {
            "rank": rank,
            "python": sys.executable,
            "argv": [name],
            "cwd": str(self.folder),
            "env": env,
            "log": log,
        }
        return {**plain, **change}

    def start(self, attempt: str, *texts: str, lease_s: float = 60, **change: Any) -> dict[str, Any]:
        ranks = [self.rank(attempt, text, index, **change) for index, text in enumerate(texts)]
        return self.call("start", attempt=attempt, lease_s=lease_s, ranks=ranks)["ranks"]

    def log(self, attempt: str, rank: int = 0) -> str:
        return (self.folder / f"{attempt}.{rank}.log").read_text()

    def said(self, attempt: str, what: str, rank: int = 0) -> str:
        """The log, once it holds a line of this beginning."""
        path = self.folder / f"{attempt}.{rank}.log"
        until(lambda: path.exists() and any(line.startswith(what) for line in path.read_text().splitlines()))
        return path.read_text()


def until(condition: Any, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def end(node: Node) -> None:
    """SIGTERM is the orderly way: it takes every attempt along."""
    if alive(node.pid):
        os.kill(node.pid, signal.SIGTERM)
        until(lambda: not alive(node.pid))
    node.disconnect()
    node.loop.close()


STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *a: print("not me"))
print("ready")
while True: time.sleep(60)
"""
POLITE = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *a: sys.exit(5))
print("ready")
while True: time.sleep(60)
"""


def marked(mark: str) -> list[int]:
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                if f"ORCH_MARK={mark}".encode() in (path / "environ").read_bytes().split(b"\0") and alive(
                    int(path.name)
                ):
                    found.append(int(path.name))
            except OSError:
                continue
    return found
