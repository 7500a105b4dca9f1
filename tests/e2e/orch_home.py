"""orch as a user has it: one ORCH_HOME, the `orch` command in a process of its own, and what is to be seen of it in /proc."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from orchestrator.control.home import Home

REPOSITORY = Path(__file__).resolve().parents[2]
ORCH = [sys.executable, "-m", "cli"]

GATE = """
import pathlib, sys, time
gate = pathlib.Path(sys.argv[1])
print("at the gate", flush=True)
while not gate.exists():
    time.sleep(0.02)
print("through", flush=True)
"""
"""A script that waits for the file that it is given as its argument."""

COUNTS_ON = """
import os, pathlib, signal, sys, time
saved = pathlib.Path(os.environ["ORCH_CHECKPOINT_DIR"]) / os.environ["RANK"]
saved.parent.mkdir(parents=True, exist_ok=True)
print("from", saved.read_text() if saved.exists() else 0, flush=True)
def save(*_):
    saved.write_text("7")
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.05)
"""
"""One that does so too, says from where it begins, 0 or what it saved, and saves 7 when it is told to stop."""


def until(condition: Callable[[], Any], timeout: float, what: str) -> Any:
    """The first true value of `condition`; AssertionError naming `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(0.05)
    return value


def environ_of(pid: int) -> str:
    """A process's environment as the kernel shows it; "" where it has ended."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def holds(path: Path, text: str) -> bool:
    try:
        return text.encode() in path.read_bytes()
    except OSError:
        return False  # a socket, or gone


class OrchHome:
    """One ORCH_HOME, in a folder with a short name, and `orch` on it.

    Its commands find nothing of this process's environment: a home folder without configuration, and `variables`.
    """

    def __init__(self, **variables: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="orch-e2e-", dir="/tmp"))
        (self.folder / "home").mkdir()
        self.root = self.folder / "o"
        self.home = Home(self.root)
        self.env = {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "HOME": str(self.folder / "home"),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(REPOSITORY),
            "ORCH_HOME": str(self.root),
            **variables,
        }

    # -- commands ------------------------------------------------------------------------------------------------

    def popen(self, *argv: object, env: Mapping[str, str] | None = None, **popen: Any) -> subprocess.Popen[str]:
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [*ORCH, *map(str, argv)]
        return subprocess.Popen(
            command, env=self.env | dict(env or {}), text=True, **{"cwd": self.folder} | options | popen
        )

    def __call__(
        self, *argv: object, code: int | None = 0, env: Mapping[str, str] | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Runs `orch ARGV` and checks its exit code (None: any)."""
        with self.popen(*argv, env=env) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except BaseException:
                process.kill()
                raise
        told = f"orch {' '.join(map(str, argv))} ended with {process.returncode}\n{out}\n{err}"
        assert "Traceback" not in err, told
        assert code is None or process.returncode == code, told
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def json(self, *argv: object, **call: Any) -> Any:
        return json.loads(self(*argv, "--json", **call).stdout)

    def submit(self, job: Path, *options: object, **call: Any) -> int:
        return int(self("submit", job, *options, **call).stdout.split()[0])

    def show(self, run: object) -> dict[str, Any]:
        found: dict[str, Any] = self.json("show", run)
        return found

    def logs(self, run: object, *options: object) -> list[str]:
        return self("logs", run, *options).stdout.splitlines()

    def reaches(self, run: int, state: str, timeout: float = 60) -> dict[str, Any]:
        """Waits until the run is in `state`; the run."""

        def there() -> dict[str, Any] | None:
            found = self.show(run)
            return found if found["state"] == state else None

        try:
            reached: dict[str, Any] = until(there, timeout, f"run {run} is {state}")
        except AssertionError as error:
            found = self.show(run)
            told = [f"{one['at']} {one['state']}: {one['reason']}" for one in found["events"]]
            raise AssertionError(f"{error}; it is {found['state']}: {found['reason']}\n" + "\n".join(told)) from None
        return reached

    def end(self, run: int, state: str = "succeeded") -> dict[str, Any]:
        """Waits for the run's end, which must be `state`; the run."""
        self("logs", run, "-f")
        found = self.show(run)
        assert found["state"] == state, found["reason"]
        return found

    def prints(self, run: int, line: str, ranks: int = 1, timeout: float = 60) -> None:
        """Waits until `ranks` ranks have printed the line."""
        until(
            lambda: sum(text.endswith(line) for text in self.logs(run)) >= ranks, timeout, f"run {run} prints {line!r}"
        )

    # -- processes -----------------------------------------------------------------------------------------------

    @property
    def node_folder(self) -> Path:
        """Where Ray's session and the node's agent keep their files."""
        base = Path(self.env.get("TMPDIR", tempfile.gettempdir()))
        return base / f"orch-{os.getuid()}" / self.home.namespace

    def ranks(self, run: int | None = None) -> dict[int, int]:
        """By pid, every process with the mark of a run (or of any run) of this home: its rank."""
        start = f"ORCH_MARK={self.home.namespace}." + (f"{run}." if run is not None else "")
        found = {}
        for pid in psutil.pids():
            env = environ_of(pid)
            if start in env:
                rank = re.search(r"(?:^|\0)RANK=(\d+)", env)
                found[pid] = int(rank[1]) if rank else -1
        return found

    def services(self) -> list[psutil.Process]:
        """Every process of this home that is no rank: Ray, controller, agent, launcher, zygotes."""
        named = []
        for process in psutil.process_iter():
            try:
                if any(str(self.node_folder) in word for word in process.cmdline()):
                    named.append(process)
            except psutil.Error:
                continue
        family = {child for process in named for child in _children(process)} | set(named)
        ranks = self.ranks()
        return [process for process in family if process.pid not in ranks]

    def service(self, title: str) -> psutil.Process:
        """The one process of this home whose command line begins with `title`."""
        (found,) = [process for process in self.services() if " ".join(_cmdline(process)).startswith(title)]
        return found

    def controller(self) -> int:
        """The controller's pid."""
        note = self.home.read_controller()
        assert note is not None
        pid: int = note["pid"]
        return pid

    def crash(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    # -- the end -------------------------------------------------------------------------------------------------

    def close(self) -> list[str]:
        """`orch down --force`, and what of this home lives on after it: nothing, or the command lines."""
        before = self.services()
        self("down", "--force", timeout=60)
        left = [process for process in {*before, *self.services()} if process.is_running()]
        _, left = psutil.wait_procs(left, timeout=1)
        said = [" ".join(_cmdline(process)) for process in left] + [f"rank of pid {pid}" for pid in self.ranks()]
        self.remove()
        return said

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.node_folder, ignore_errors=True)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
