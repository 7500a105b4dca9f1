"""What the benchmarks share: a private cluster, CPU seconds of all that takes part, medians, and where results are written."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "docs" / "performance.md"
HEAD = """# How fast orch is

Measured by the scripts in `benchmarks/`, each of which says how in its first lines and writes its section here anew.
`python benchmarks/run_all.py` runs them all.
"""


class Meter:
    """CPU seconds of the processes that were started with `enter` and of all that they start."""

    def __init__(self, name: str) -> None:
        self._group = Path(f"/sys/fs/cgroup/cpuacct/orch-bench-{os.getpid()}-{name}")
        self.exact = True
        try:
            self._group.mkdir()
        except OSError:
            self.exact = False
        self.idle = 0.0
        """Seconds a second of what runs when nothing is asked of it."""
        self.mark = ""
        """Without a cgroup: the daemons are the processes whose command line holds this, and what descends from them."""

    def enter(self) -> None:
        """For `preexec_fn`: puts the process that is about to be into the group."""
        if self.exact:
            (self._group / "cgroup.procs").write_text(str(os.getpid()))

    def seconds(self) -> float:
        if self.exact:
            return int((self._group / "cpuacct.usage").read_text()) / 1e9
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime + sum(_cpu(process) for process in self._daemons())

    def measure_idle(self, seconds: float) -> None:
        before = self.seconds()
        time.sleep(seconds)
        self.idle = (self.seconds() - before) / seconds

    def _daemons(self) -> set[psutil.Process]:
        found: set[psutil.Process] = set()
        for process in psutil.process_iter() if self.mark else ():
            with contextlib.suppress(psutil.Error):
                if any(self.mark in word for word in process.cmdline()):
                    found |= {process, *process.children(recursive=True)}
        return found

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._group.rmdir()


def _cpu(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.Error):
        times = process.cpu_times()
        return times.user + times.system + times.children_user + times.children_system
    return 0.0


class Orch:
    """A private home with a cluster of its own, all of it in one short temporary folder."""

    def __init__(self, slots: int, meter: Meter | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ob-", dir="/tmp"))
        self.home = self.folder / "home"
        self.meter = meter
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("ORCH_", "RAY_"))} | {
            "ORCH_HOME": str(self.home),
            "ORCH_LOCAL_SLOTS": str(slots),
            "PYTHONPATH": str(REPOSITORY),
        }

    def popen(self, *arguments: str, **more: Any) -> subprocess.Popen[str]:
        return self.start([sys.executable, "-m", "cli", *arguments], **more)

    def start(self, command: Sequence[str], **more: Any) -> subprocess.Popen[str]:
        enter = self.meter.enter if self.meter else None
        given = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | more
        return subprocess.Popen(command, env=self.env, cwd=self.folder, text=True, preexec_fn=enter, **given)

    def run(self, *arguments: str, check: bool = True) -> str:
        """The command's standard output. Raises RuntimeError with what it said where it failed."""
        with self.popen(*arguments, stderr=subprocess.PIPE) as process:
            said, complaint = process.communicate()
        if check and process.returncode:
            raise RuntimeError(f"orch {' '.join(arguments)} ended with {process.returncode}: {complaint.strip()}")
        return said

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json"))

    def job(self, name: str, script: str, job: dict[str, Any]) -> Path:
        """A folder with the script and its job file, the path of which is the answer."""
        folder = self.folder / name
        folder.mkdir()
        (folder / f"{name}.py").write_text(script)
        # JSON is YAML.
        (folder / "job.yaml").write_text(json.dumps({"run": f"{name}.py", "name": f"ddp-{name}", **job}))
        return folder / "job.yaml"

    def api(self, path: str, body: Any = None, method: str | None = None) -> Any:
        """One call of the HTTP API."""
        url = json.loads((self.home / "controller.json").read_text())["url"]
        token = (self.home / "token").read_text().strip()
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{url}/api/v1/{path}", data, {"Authorization": f"Bearer {token}"}, method=method
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    def controller_pid(self) -> int:
        return int(json.loads((self.home / "controller.json").read_text())["pid"])

    def __enter__(self) -> Orch:
        try:
            self.run("up")
        except BaseException:
            self.__exit__()
            raise
        if self.meter is not None:
            self.meter.mark = str(Path(json.loads((self.home / "cluster.json").read_text())["namespace"]))
        return self

    def __exit__(self, *_: object) -> None:
        self.run("down", "--force", check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def ray_head(python: str, cpus: int, folder: Path, meter: Meter | None = None) -> Iterator[tuple[str, str]]:
    """A Ray head as its users start it, beside any other Ray of the machine: its address, and that of its dashboard."""
    ports = [free_port() for _ in range(4)]
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"RAY_AUTH_MODE": "disabled"}
    subprocess.run(
        [
            python, "-m", "ray.scripts.scripts", "start", "--head", f"--num-cpus={cpus}", f"--port={ports[0]}",
            "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--dashboard-port={ports[1]}",
            f"--dashboard-agent-listen-port={ports[2]}", f"--ray-client-server-port={ports[3]}",
            f"--temp-dir={folder}", "--disable-usage-stats", "--object-store-memory=200000000",
        ],
        env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT,
        preexec_fn=meter.enter if meter else None,
    )  # fmt: skip
    if meter is not None:
        meter.mark = str(folder)
    try:
        yield f"127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}"
    finally:
        # Not `ray stop`, which ends every Ray of the machine.
        mine = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid != os.getpid() and any(str(folder) in word for word in process.cmdline()):
                    mine += [process, *process.children(recursive=True)]
        for process in mine:
            with contextlib.suppress(psutil.Error):
                process.terminate()
        _, left = psutil.wait_procs(mine, timeout=5)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def pss_mib(pid: int) -> float:
    """Memory of one process, what it shares with others divided among them."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """`median (least–most)`."""
    if not values:
        return "–"
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine() -> str:
    """What it was measured on, and when."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    import importlib.metadata as packages

    versions = ", ".join(f"{name} {packages.version(name)}" for name in ("torch", "ray"))
    return (
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC, {os.cpu_count()} × {model}, {memory:.0f} GiB, "
        f"Python {platform.python_version()}, {versions}, load average {os.getloadavg()[0]:.1f}"
    )


def record(title: str, text: str, *, keep: bool) -> None:
    """Prints a section; with `keep`, it takes the place of the one of that title in docs/performance.md, or the last place."""
    section = f"## {title}\n\n{machine()}\n\n{text.strip()}\n"
    print(section, flush=True)
    if not keep:
        return
    old = RESULTS.read_text() if RESULTS.exists() else HEAD
    head, *sections = re.split(r"^(?=## )", old, flags=re.MULTILINE)
    known = [part.partition("\n")[0] for part in sections]
    if f"## {title}" in known:
        sections[known.index(f"## {title}")] = section + "\n"
    else:
        sections.append(section)
    RESULTS.write_text("\n\n".join(part.strip() for part in [head, *sections]) + "\n")
