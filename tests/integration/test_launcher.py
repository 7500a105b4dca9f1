"""The launcher with real processes: what it starts, tells, stops and finds again.

Warm ranks come from a zygote that preloads only `json`, except where a test is marked `torch`.
"""

import ast
import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.control.launcher_client import (
    LAUNCHER,
    LauncherClient,
    LauncherGoneError,
    LauncherRefusedError,
)
from orchestrator.control.rank_env import base_env
from orchestrator.control.rank_progress import look

FINGERPRINT = Path(__file__).parents[1] / "fixtures" / "fingerprint.py"
TORCH = "torch,torch.distributed,torch._dynamo"
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


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    one = Node(tmp_path, "--preload", "json", "--idle", "60")
    yield one
    end(one)


@pytest.fixture(scope="module")
def torch_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    one = Node(tmp_path_factory.mktemp("torch"))
    assert one.warm()["ok"]
    yield one
    end(one)


@pytest.fixture(params=["cold", "warm"])
def way(request: pytest.FixtureRequest, node: Node) -> bool:
    """Whether ranks are to be cold; where not, the zygote is ready."""
    if request.param == "warm":
        assert node.warm()["ok"]
    return bool(request.param == "cold")


# Starting and ending


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", 0),
        ("raise SystemExit(3)", 3),
        ("import sys; sys.exit('a message')", 1),
        ("1 / 0", 1),
        ("import os; os._exit(7)", 7),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV),
        ("raise KeyboardInterrupt", -signal.SIGINT),
        ("syntax error", 1),
    ],
)
def test_an_exit_is_told_with_its_code_or_signal(node: Node, way: bool, text: str, code: int) -> None:
    assert node.start("1.1", text, cold=way)["0"]["warm"] is not way
    assert node.event("exit", attempt="1.1", rank=0)["code"] == code
    assert node.event("ended", attempt="1.1")["swept"] == 0


@pytest.mark.parametrize(
    "text",
    [
        "def f():\n    return 1 / 0\n\nf()",
        "if True:\n  x = (1,\n",
        "try:\n    {}['a']\nexcept KeyError as e:\n    raise ValueError('b') from e",
        "import sys\nsys.excepthook = lambda *a: print('mine', a[0], a[2].tb_lineno, a[2].tb_next)\n1 / 0",
        "raise KeyboardInterrupt",
        "import sys\nsys.exit('last words')",
        "import atexit\natexit.register(print, 'at exit')\nprint(__file__, __name__)\n",
        "import threading\nthreading.Thread(target=lambda: 1 / 0, name='t').start()",
        "import subprocess, sys\nprint(subprocess.run([sys.executable, '-c', 'print(1)']).returncode)",
    ],
)
def test_a_warm_rank_writes_what_a_cold_one_writes(node: Node, text: str) -> None:
    assert node.warm()["ok"]
    written = []
    for attempt, cold in (("1.1", True), ("1.2", False)):
        rank = node.rank(attempt, text, cold=cold)
        rank["argv"] = [node.script(text)]
        node.call("start", attempt=attempt, lease_s=60, ranks=[rank])
        code = node.event("exit", attempt=attempt)["code"]
        written.append((node.log(attempt), code))
    assert written[0] == written[1]
    assert written[0][0]


def test_an_attempt_that_is_known_is_never_started_twice(node: Node, way: bool) -> None:
    first = node.start("1.1", "print('here'); import time; time.sleep(60)", cold=way)
    again = node.rank("1.1", "", cold=way, argv=[node.script("print('again')")])
    assert node.call("start", attempt="1.1", lease_s=60, ranks=[again])["ranks"] == first
    node.call("stop", attempt="1.1", grace_s=0)
    node.event("ended", attempt="1.1")
    assert node.call("start", attempt="1.1", lease_s=60, ranks=[again])["ranks"] == first
    assert "again" not in node.log("1.1")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cwd": "/no/such"}, "rank 1: cwd: /no/such"),
        ({"python": "/no/such/python"}, "rank 1: python: /no/such/python"),
        ({"python": str(FINGERPRINT.parent)}, "rank 1: python: "),
        ({"log": "/no/such/log"}, "rank 1: log: No such file or directory"),
        ({"argv": []}, "rank 1: argv"),
        ({"env": {"ORCH_MARK": "other"}}, "the same ORCH_MARK"),
        ({"cpus": []}, "rank 1: cpus must be one or more"),
        ({"cpus": ["0"]}, "rank 1: cpus must be one or more"),
        ({"cpus": [min(CPUS), 77777]}, "rank 1: cpus: 77777 not among the"),
        ({"cudnn": {"benchmark": 1}}, "rank 1: cudnn takes benchmark and deterministic"),
        ({"cudnn": {"fast": True}}, "rank 1: cudnn takes benchmark and deterministic"),
        ({"cudnn": {"benchmark": True}, "argv": ["-c", ""]}, "rank 1: cudnn is set before a script"),
    ],
)
def test_one_rank_that_cannot_start_leaves_none_running_and_says_why(
    node: Node, change: dict[str, Any], reason: str
) -> None:
    ranks = [node.rank("1.1", "print('ran')", 0), node.rank("1.1", "", 1, **change)]
    with pytest.raises(LauncherRefusedError, match=reason):
        node.call("start", attempt="1.1", lease_s=60, ranks=ranks)
    assert node.call("hello")["attempts"] == {}
    assert node.log("1.1") == "" if Path(ranks[0]["log"]).exists() else True


def test_a_rank_runs_on_its_cpus_and_one_without_on_all(node: Node, way: bool) -> None:
    text = "import os; print(sorted(os.sched_getaffinity(0)))"
    ranks = [node.rank("1.1", text, 0, cold=way, cpus=[max(CPUS)]), node.rank("1.1", text, 1, cold=way)]
    started = node.call("start", attempt="1.1", lease_s=60, ranks=ranks)["ranks"]
    assert [rank["warm"] for rank in started.values()] == [not way, not way]
    node.event("ended", attempt="1.1")
    assert [node.log("1.1", rank) for rank in (0, 1)] == [f"[{max(CPUS)}]\n", f"{sorted(CPUS)}\n"]


def test_a_program_that_will_not_run_takes_the_other_ranks_back(node: Node, way: bool) -> None:
    broken = node.folder / "python"
    broken.write_text("not a program")
    broken.chmod(0o755)
    sleeper = "import time; time.sleep(60)"
    ranks = [node.rank("1.1", sleeper, 0, cold=way), node.rank("1.1", "", 1, python=str(broken))]
    with pytest.raises(LauncherRefusedError, match=r"rank 1: .*Exec format error"):
        node.call("start", attempt="1.1", lease_s=60, ranks=ranks)
    assert node.call("hello")["attempts"] == {}
    assert marked(f"{MARK}.1.1") == []
    # The name is free again.
    node.start("1.1", "", cold=way)
    assert node.event("exit", attempt="1.1")["code"] == 0


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ({"TORCH_LOGS": "+dynamo"}, "TORCH_LOGS"),
        ({"LD_LIBRARY_PATH": "/x"}, "LD_LIBRARY_PATH"),
        ({"PYTHONPATH": "/x"}, "PYTHONPATH"),
        ({"MKL_NUM_THREADS": "2"}, "MKL_NUM_THREADS"),
        ({"OMP_NUM_THREADS": "4,2"}, "OMP_NUM_THREADS"),
        ({"BIG": "x" * 70000}, "larger than 65536 bytes"),
        ({"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "1", "NCCL_DEBUG": "INFO", "TORCH_NCCL_TRACE": "1"}, None),
    ],
)
def test_a_variable_that_is_read_at_import_means_a_cold_start(
    node: Node, env: dict[str, str], reason: str | None
) -> None:
    assert node.warm()["ok"]
    rank = node.start("1.1", "import os; print(len(os.environ))", env=env)["0"]
    assert rank["warm"] is (reason is None)
    assert reason is None or reason in rank["why_cold"]
    assert node.event("exit", attempt="1.1")["code"] == 0


def test_a_module_beside_the_script_is_imported_rather_than_the_one_that_is_loaded(node: Node) -> None:
    assert node.warm()["ok"]
    node.script("MINE = True", "json.py")
    rank = node.start("1.1", "import json; print(json.MINE)")["0"]
    assert "json" in rank["why_cold"]
    node.event("ended", attempt="1.1")
    assert node.log("1.1") == "True\n"


# Stopping


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


def test_a_stop_gives_every_rank_its_grace_and_kills_what_stays(node: Node, way: bool) -> None:
    node.start("1.1", POLITE, STUBBORN, cold=way)
    node.said("1.1", "ready", 0)
    node.said("1.1", "ready", 1)
    began = time.monotonic()
    node.call("stop", attempt="1.1", grace_s=1)
    assert node.event("exit", attempt="1.1", rank=0)["code"] == 5
    assert node.event("exit", attempt="1.1", rank=1)["code"] == -signal.SIGKILL
    assert time.monotonic() - began >= 1
    assert "not me" in node.log("1.1", 1)
    node.event("ended", attempt="1.1")


def test_a_lease_that_is_not_renewed_ends_the_attempt_and_one_that_is_does_not(node: Node, way: bool) -> None:
    node.start("1.1", STUBBORN, lease_s=0.7, cold=way)
    node.start("2.1", STUBBORN, lease_s=0.7, cold=way)
    assert node.call("lease", attempts={"2.1": 60, "9.9": 60})["unknown"] == ["9.9"]
    node.event("lease_expired", attempt="1.1")
    assert node.event("exit", attempt="1.1")["code"] == -signal.SIGKILL
    node.event("ended", attempt="1.1")
    assert node.call("hello")["attempts"]["2.1"]["ranks"]["0"]["exit"] is None


def test_an_ended_attempt_is_forgotten_when_told_to_and_a_live_one_is_not(node: Node) -> None:
    node.start("1.1", STUBBORN)
    with pytest.raises(LauncherRefusedError, match="has not ended"):
        node.call("forget", attempt="1.1")
    node.call("stop", attempt="1.1", grace_s=0)
    node.event("ended", attempt="1.1")
    node.call("forget", attempt="1.1")
    assert node.call("hello")["attempts"] == {}


# Sweeping


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


def leave(how: str, then: str = "") -> str:
    """A script that starts a daemon by a shell line, tells its pid, and goes on to `then`."""
    return f"""
import subprocess, sys, time, pathlib, os
subprocess.run(["sh", "-c", {how!r}], check=True)
while not pathlib.Path("pid" + os.environ["RANK"]).read_text().strip(): time.sleep(0.01)
{then}
"""


SLEEP = "sh -c 'echo $$ >pid0; exec sleep 600'"


@pytest.mark.parametrize(
    "how",
    [
        f": >pid0; {SLEEP} &",
        f": >pid0; setsid {SLEEP} &",
        f": >pid0; setsid env -i {SLEEP} &",
        f": >pid0; (setsid env -i {SLEEP} </dev/null >/dev/null 2>&1 &) &",
    ],
    ids=["child", "own session", "clean environment", "daemon without ties"],
)
def test_nothing_that_a_rank_has_left_behind_outlives_the_attempt(node: Node, way: bool, how: str) -> None:
    node.start("1.1", leave(how), cold=way)
    assert node.event("ended", attempt="1.1")["swept"] >= 1
    assert not alive(int((node.folder / "pid0").read_text()))


def test_two_attempts_side_by_side_do_not_touch_each_other(node: Node, way: bool) -> None:
    """Not even where each has left a daemon without any tie: no environment, no session, no file in common."""
    daemon = "(setsid env -i sh -c 'echo $$ >pid{0}; exec sleep 600' </dev/null >/dev/null 2>&1 &) &"
    for number in (0, 1):
        text = leave(f": >pid{number}; " + daemon.format(number), "print('up'); time.sleep(600)")
        ranks = [node.rank(f"{number}.1", text, number, cold=way)]
        node.call("start", attempt=f"{number}.1", lease_s=60, ranks=ranks)
    node.said("0.1", "up", 0)
    node.said("1.1", "up", 1)
    daemons = [int((node.folder / f"pid{number}").read_text()) for number in (0, 1)]
    node.call("stop", attempt="0.1", grace_s=0)
    assert node.event("ended", attempt="0.1")["swept"] == 1
    assert [alive(pid) for pid in daemons] == [False, True]
    assert node.call("hello")["attempts"]["1.1"]["ranks"]["1"]["exit"] is None
    node.call("stop", attempt="1.1", grace_s=0)
    node.event("ended", attempt="1.1")
    assert not alive(daemons[1])


def test_what_a_killed_launcher_leaves_is_swept_by_the_next(node: Node, way: bool) -> None:
    node.start("1.1", leave(f": >pid0; setsid {SLEEP} &", "print('up'); time.sleep(600)"), cold=way)
    node.said("1.1", "up")
    rank = node.call("hello")["attempts"]["1.1"]["ranks"]["0"]["pid"]
    os.kill(node.pid, signal.SIGKILL)
    until(lambda: not node.loop.run_until_complete(asyncio.sleep(0.01)) and not node.client.connected)
    until(lambda: not alive(rank))
    with pytest.raises(LauncherGoneError):
        node.call("hello")
    node.connect()
    until(lambda: node.call("hello")["attempts"]["1.1"]["ended"])
    assert node.call("hello")["attempts"]["1.1"]["ranks"] == {}
    assert not alive(int((node.folder / "pid0").read_text()))


# The launcher itself


def test_an_agent_that_comes_back_is_told_every_exit_it_missed(node: Node, way: bool) -> None:
    node.start("1.1", "raise SystemExit(4)", STUBBORN, cold=way)
    node.said("1.1", "ready", 1)
    before = node.pid
    node.disconnect()
    until(lambda: not alive_ranks(node.folder, "1.1", 0))
    node.connect()
    assert node.pid == before
    ranks = node.call("hello")["attempts"]["1.1"]["ranks"]
    assert (ranks["0"]["exit"], ranks["1"]["exit"]) == (4, None)
    assert ranks["0"]["at"] <= time.clock_gettime(time.CLOCK_BOOTTIME)
    assert ranks["0"]["told_at"] is None


def test_an_end_that_was_asked_for_is_told_apart_from_one_that_came_before(node: Node, way: bool) -> None:
    node.start("1.1", "raise SystemExit(4)", STUBBORN, cold=way)
    node.said("1.1", "ready", 1)
    early = node.event("exit", attempt="1.1", rank=0)
    node.call("stop", attempt="1.1", grace_s=0)
    late = node.event("exit", attempt="1.1", rank=1)
    assert early["told_at"] is None
    assert early["at"] <= late["told_at"] <= late["at"]


@pytest.mark.parametrize(
    ("text", "code", "errors"),
    [
        ("pass", 0, []),
        ("raise SystemExit(75)", 75, []),
        ("raise SystemExit('no data')", 1, []),
        ("raise ValueError('0 samples')", None, [["ValueError", "0 samples"]]),
        (
            "import json\ntry:\n    {}['loss']\nexcept KeyError as error:\n    raise json.JSONDecodeError('bad', '', 0) from error",
            None,
            [["json.decoder.JSONDecodeError", "bad: line 1 column 1 (char 0)"], ["KeyError", "'loss'"]],
        ),
        (
            "try:\n    1 / 0\nexcept ZeroDivisionError:\n    raise SystemExit(1)",
            1,
            [["ZeroDivisionError", "division by zero"]],
        ),
        ("import os\nif os.fork() == 0:\n    raise ValueError('a child')\nos.wait()\nraise SystemExit(3)", 3, []),
    ],
    ids=["the end", "75", "a sentence", "an exception", "one from another", "an exit after an exception", "a child"],
)
def test_the_last_word_of_a_rank_says_how_its_script_ended(
    node: Node, way: bool, text: str, code: int | None, errors: Any
) -> None:
    progress = node.folder / "progress-0"
    env = node.rank("1.1", text)["env"] | {"ORCH_PROGRESS": str(progress)}
    node.start("1.1", text, cold=way, env=env)
    node.event("ended", attempt="1.1")
    word = json.loads(Path(f"{progress}.end").read_text())
    assert (word["exit"], word["errors"]) == (code, errors)
    assert 0 < word["at"] <= time.clock_gettime(time.CLOCK_BOOTTIME)


def test_a_start_whose_agent_has_gone_before_it_was_answered_leaves_nothing_running(node: Node) -> None:
    assert node.warm()["ok"]
    zygote = node.call("hello")["zygotes"][sys.executable]["pid"]
    os.kill(zygote, signal.SIGSTOP)
    rank = node.rank("1.1", STUBBORN)
    asked = node.loop.create_task(node.client.call("start", attempt="1.1", lease_s=60, ranks=[rank]))
    node.call("lease", attempts={"1.1": 60})  # what was asked before it has been read
    node.disconnect()
    with contextlib.suppress(LauncherGoneError):
        node.loop.run_until_complete(asked)
    node.connect()
    os.kill(zygote, signal.SIGCONT)
    until(lambda: not marked(f"{MARK}.1.1"))
    assert node.call("hello")["attempts"] == {}
    assert node.start("1.2", "print('ran')")["0"]
    node.event("ended", attempt="1.2")
    log = node.folder / "1.1.0.log"
    assert not log.exists() or "ready" not in log.read_text()


def alive_ranks(folder: Path, attempt: str, rank: int) -> bool:
    for pid in marked(f"{MARK}.{attempt}"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                return True
    return False


def test_the_launcher_is_no_child_of_the_agent_and_the_only_one_of_its_folder(node: Node) -> None:
    stat = Path(f"/proc/{node.pid}/stat").read_bytes().rpartition(b")")[2].split()
    assert int(stat[1]) != os.getpid()
    assert int(stat[3]) == node.pid
    second = subprocess.run(
        [sys.executable, "-I", LAUNCHER, node.folder / "l"], capture_output=True, text=True, timeout=30
    )
    assert second.returncode == 1
    assert f"another launcher (process {node.pid}) serves" in second.stderr
    assert (node.folder / "l").stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_peer_of_another_user_is_not_served(node: Node) -> None:
    path = node.folder / "l" / "launcher.sock"
    ours = socket.socket(socket.AF_UNIX)
    # The folder keeps others out; here the check behind it is tried, by a socket that has come through.
    pid = os.fork()
    if pid == 0:
        try:
            here = os.open(path.parent, os.O_PATH)
            path.chmod(0o777)
            os.fchdir(os.open(path.parent, os.O_RDONLY))
            path.parent.chmod(0o711)
            os.setresuid(65534, 65534, 65534)
            ours.connect(f"/proc/self/fd/{here}/launcher.sock")
            ours.sendall(b'{"id": 1, "op": "hello"}\n')
            os._exit(0 if ours.recv(100) == b"" else 1)
        except ConnectionError:
            os._exit(0)
        except BaseException:
            os._exit(2)
    ours.close()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_quit_is_refused_while_an_attempt_lives(node: Node) -> None:
    node.start("1.1", STUBBORN)
    with pytest.raises(LauncherRefusedError, match=r"attempts still live: 1\.1"):
        node.call("quit")
    node.call("stop", attempt="1.1", grace_s=0)
    node.event("ended", attempt="1.1")
    node.call("quit")
    until(lambda: not alive(node.pid))
    assert not (node.folder / "l" / "launcher.sock").exists()


def test_a_launcher_that_is_told_to_end_takes_its_ranks_along(node: Node, way: bool) -> None:
    pid = node.start("1.1", STUBBORN, cold=way)["0"]["pid"]
    node.said("1.1", "ready")
    os.kill(node.pid, signal.SIGTERM)
    until(lambda: not alive(node.pid))
    assert not alive(pid)
    assert list((node.folder / "l" / "live").iterdir()) == []


def test_a_launcher_that_nobody_needs_ends(tmp_path: Path) -> None:
    idle = Node(tmp_path, "--preload", "", "--idle", "0.3")
    idle.disconnect()
    until(lambda: not alive(idle.pid))
    end(idle)


def test_a_launcher_that_keeps_an_ended_attempt_sleeps(tmp_path: Path) -> None:
    idle = Node(tmp_path, "--preload", "", "--idle", "0.1")
    idle.start("1.1", "pass")
    idle.event("ended", attempt="1.1")
    idle.disconnect()
    process = psutil.Process(idle.pid)
    before, began = process.cpu_times(), time.monotonic()
    # Nothing happens in this second: that is what is measured.
    time.sleep(1)
    used = sum(process.cpu_times()[:2]) - sum(before[:2])
    assert used < 0.3 * (time.monotonic() - began)
    end(idle)


def test_nonsense_is_answered_with_an_error_and_harms_nobody(node: Node) -> None:
    for fields in ({"attempt": "1.1"}, {"attempt": "../x", "lease_s": 1, "ranks": []}, {"attempt": 3, "lease_s": "a"}):
        with pytest.raises(LauncherRefusedError):
            node.call("start", **fields)
    with pytest.raises(LauncherRefusedError, match="unknown op"):
        node.call("dance")
    with pytest.raises(LauncherRefusedError, match="not known"):
        node.call("stop", attempt="1.1", grace_s=1)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(node.folder / "l" / "launcher.sock"))
        peer.sendall(b"\xff{]\n")
        assert "not a request" in json.loads(peer.recv(1000))["error"]
    assert node.call("hello")["attempts"] == {}


def test_a_folder_whose_socket_has_too_long_a_path_is_refused_with_its_length(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    done = subprocess.run([sys.executable, "-I", LAUNCHER, folder], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "may have 107" in done.stderr


def test_the_launcher_runs_from_any_folder_with_the_standard_library_alone(tmp_path: Path) -> None:
    shutil.copytree(LAUNCHER, tmp_path / "elsewhere")
    argv = [sys.executable, "-I", "-S", tmp_path / "elsewhere", "--help"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_new_launcher_takes_over_from_one_that_is_ending(node: Node) -> None:
    before = node.pid
    for _ in range(3):
        node.call("quit")
        node.connect()
    assert node.pid != before


# Zygotes


def test_a_zygote_that_dies_is_told_once_and_ranks_start_cold(node: Node) -> None:
    assert node.warm()["ok"]
    os.kill(node.call("hello")["zygotes"][sys.executable]["pid"], signal.SIGKILL)
    assert "ended" in node.event("warm", ok=False)["error"]
    rank = node.start("1.1", "print('ran')")["0"]
    assert (rank["warm"], rank["why_cold"]) == (False, f"no warm process of {sys.executable} is ready")
    assert node.event("exit", attempt="1.1")["code"] == 0
    node.seen.clear()
    assert node.warm()["ok"]
    assert node.start("1.2", "print('ran')")["0"]["warm"]


def test_a_rank_outlives_its_zygote(node: Node) -> None:
    assert node.warm()["ok"]
    node.start("1.1", POLITE)
    node.said("1.1", "ready")
    os.kill(node.call("hello")["zygotes"][sys.executable]["pid"], signal.SIGKILL)
    node.event("warm", ok=False)
    node.call("stop", attempt="1.1", grace_s=30)
    assert node.event("exit", attempt="1.1")["code"] == 5


def test_a_zygote_that_does_not_answer_is_given_up_for_a_cold_start(node: Node) -> None:
    assert node.warm()["ok"]
    os.kill(node.call("hello")["zygotes"][sys.executable]["pid"], signal.SIGSTOP)
    rank = node.start("1.1", "print('ran')")["0"]
    assert not rank["warm"]
    node.event("warm", ok=False)
    node.event("ended", attempt="1.1")
    assert node.log("1.1") == "ran\n"


def test_a_preload_that_fails_is_told_and_one_that_is_not_installed_is_no_failure(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0")
    for preload, ok, error in (("no_such_module", True, "no_such_module"), ("broken", False, "ZeroDivisionError")):
        node = Node(tmp_path, "--preload", preload)
        node.call("warm", python=sys.executable, env={**ENV, "PYTHONPATH": str(tmp_path)})
        event = node.event("warm")
        assert (event["ok"], error in event["error"]) == (ok, True)
        end(node)


def test_a_package_that_has_changed_since_it_was_loaded_means_a_cold_start(tmp_path: Path) -> None:
    (tmp_path / "changing.py").write_text("VERSION = 1")
    node = Node(tmp_path, "--preload", "changing")
    env = {**ENV, "PYTHONPATH": str(tmp_path)}
    node.call("warm", python=sys.executable, env=env)
    assert node.event("warm")["ok"]
    (tmp_path / "changing.py").write_text("VERSION = 22")
    (tmp_path / "elsewhere").mkdir()
    rank = node.rank("1.1", "", env=env, cwd=str(tmp_path / "elsewhere"), argv=["../show.py"])
    node.script("import changing; print(changing.VERSION)", "show.py")
    assert not node.call("start", attempt="1.1", lease_s=60, ranks=[rank])["ranks"]["0"]["warm"]
    assert "changing.py has changed" in node.event("warm", ok=False)["error"]
    node.event("ended", attempt="1.1")
    assert node.log("1.1") == "22\n"
    end(node)


def test_more_ranks_than_wait_ready_are_forked_at_once(node: Node) -> None:
    assert node.warm()["ok"]
    for attempt in ("1.1", "1.2"):
        ranks = node.start(attempt, *["import os; print(os.environ['RANK'])"] * 5)
        assert all(rank["warm"] for rank in ranks.values())
        node.event("ended", attempt=attempt)
        assert [node.log(attempt, rank) for rank in range(5)] == [f"{rank}\n" for rank in range(5)]


def test_the_zygote_can_be_run_by_python_3_9() -> None:
    progress = LAUNCHER.parents[1] / "progress"
    loaded = [LAUNCHER / name for name in ("fresh_process.py", "last_word.py")]
    loaded += [progress / f"{name}.py" for name in ("file", "observer", "on_import")]
    for program in (LAUNCHER / "rank.py", *loaded):
        ast.parse(program.read_text(), feature_version=(3, 9))


# A warm rank is what a cold one is


COLD, WARM = {"cold": True}, {"cold": False}


def compare(
    node: Node, imports: str, env: dict[str, str], ways: tuple[dict[str, Any], dict[str, Any]] = (COLD, WARM)
) -> dict[str, tuple[Any, Any]]:
    """What differs between the fingerprints of two ways to start a process: a cold and a warm one."""
    folder = node.folder / f"job{len(list(node.folder.iterdir()))}"
    folder.mkdir()
    (folder / "linked.py").symlink_to(FINGERPRINT)
    prints = []
    for number, way in enumerate(ways):
        attempt = f"{folder.name}.{number}"
        out = folder / "out"
        env = {**env, "FINGERPRINT_TO": str(out), "FINGERPRINT_IMPORT": imports, **way.get("env", {})}
        change = {name: value for name, value in way.items() if name != "env"}
        rank = node.rank(
            attempt, "", argv=["./linked.py", "two words", "", "--x=ü"], cwd=str(folder), env=env, **change
        )
        rank["env"]["ORCH_MARK"] = f"{MARK}.fingerprint"
        rank["log"] = str(folder / "log")
        started = node.call("start", attempt=attempt, lease_s=60, ranks=[rank])["ranks"]["0"]
        assert started["warm"] is not way["cold"]
        assert node.event("exit", attempt=attempt)["code"] == 0, (folder / "log").read_text()
        node.event("ended", attempt=attempt)
        prints.append(json.loads(out.read_text()))
    cold_one, warm_one = prints
    assert all(a != b for a, b in zip(cold_one.pop("draws"), warm_one.pop("draws"), strict=False))
    return {name: (cold_one[name], warm_one[name]) for name in cold_one if cold_one[name] != warm_one[name]}


# What a warm rank cannot hide: its modules are there before its script asks for them, and the interpreter's first
# script was another.
EXPECTED = {"modules_at_start", "gc_frozen", "stack"}


@pytest.mark.parametrize("env", [{}, {"TZ": "Asia/Tokyo", "OMP_NUM_THREADS": "1", "PWD": "/x"}], ids=["plain", "env"])
def test_a_warm_rank_is_what_a_cold_one_is(node: Node, env: dict[str, str]) -> None:
    assert node.warm()["ok"]
    assert compare(node, "json", env).keys() <= EXPECTED | {"loaded"}


@pytest.mark.torch
@pytest.mark.parametrize("threads", [None, "1", str(len(os.sched_getaffinity(0)))])
def test_a_warm_rank_with_torch_is_what_a_cold_one_is(torch_node: Node, threads: str | None) -> None:
    found = compare(torch_node, TORCH, {"OMP_NUM_THREADS": threads} if threads else {})
    # OpenBLAS, which numpy brings, starts its threads again when it is first used after a fork.
    cold, warm = found.pop("kernel", ({}, {}))
    assert {name for name in cold if cold[name] != warm[name]} <= {"Threads"}
    assert found.keys() <= EXPECTED


@pytest.mark.torch
def test_a_warm_rank_with_torch_on_some_cpus_is_what_a_cold_one_is(torch_node: Node) -> None:
    on = {"cpus": [max(CPUS)]}
    found = compare(torch_node, TORCH, {"OMP_NUM_THREADS": "1"}, ({**COLD, **on}, {**WARM, **on}))
    cold, warm = found.pop("kernel", ({}, {}))
    assert {name for name in cold if cold[name] != warm[name]} <= {"Threads"}
    assert found.keys() <= EXPECTED


@pytest.mark.torch
def test_torch_counts_the_cpus_of_a_rank_that_sets_no_number_of_threads(torch_node: Node) -> None:
    rank = torch_node.rank("c.1", "import torch; print(torch.get_num_threads())", cpus=[max(CPUS)])
    started = torch_node.call("start", attempt="c.1", lease_s=60, ranks=[rank])["ranks"]["0"]
    assert "no OMP_NUM_THREADS" in started["why_cold"]
    torch_node.event("ended", attempt="c.1")
    assert torch_node.log("c.1") == "1\n"


@pytest.mark.torch
def test_a_cold_rank_whose_cudnn_flags_are_set_is_else_what_a_plain_one_is(torch_node: Node) -> None:
    found = compare(torch_node, TORCH, {}, (COLD, {**COLD, "cudnn": {"benchmark": True, "deterministic": None}}))
    plain, flagged = found.pop("torch")
    assert {name for name in plain if plain[name] != flagged[name]} == {"cudnn"}
    assert (plain["cudnn"], flagged["cudnn"]) == ([False, False], [True, False])
    assert found.keys() <= EXPECTED


@pytest.mark.torch
def test_an_observed_warm_rank_is_what_an_observed_cold_one_is(torch_node: Node) -> None:
    found = compare(torch_node, TORCH, {"ORCH_PROGRESS": str(torch_node.folder / "progress")})
    cold, warm = found.pop("kernel", ({}, {}))
    assert {name for name in cold if cold[name] != warm[name]} <= {"Threads"}
    assert found.keys() <= EXPECTED


@pytest.mark.torch
def test_being_observed_adds_a_finder_that_finds_nothing_and_changes_nothing_else(torch_node: Node) -> None:
    # The file's name is in the environment of both; what is no absolute path of a folder cannot be written.
    seen, unseen = str(torch_node.folder / "seen"), str(torch_node.folder / "no")
    (torch_node.folder / "no").mkdir()
    for way in (COLD, WARM):
        ways = {**way, "env": {"ORCH_PROGRESS": unseen}}, {**way, "env": {"ORCH_PROGRESS": seen}}
        found = compare(torch_node, TORCH, {}, ways)
        plain, observed = found.pop("meta_path")
        assert observed == ["Finder", *plain]
        for name in ("environ", "environ_of_children", "proc_environ"):
            found.pop(name)
        assert found.keys() <= EXPECTED | {"kernel"}
    # A cold rank that is not to be observed is `python -u script` itself.
    found = compare(torch_node, TORCH, {}, (COLD, {**COLD, "env": {"ORCH_PROGRESS": seen}}))
    assert found.keys() <= EXPECTED | {"meta_path", "environ", "environ_order", "environ_of_children", "proc_environ"}


@pytest.mark.torch
@pytest.mark.parametrize("cold", [True, False])
def test_an_error_in_a_dataset_or_a_save_is_shown_as_without_being_observed(torch_node: Node, cold: bool) -> None:
    text = """
import sys, torch
class Broken(torch.utils.data.Dataset):
    def __len__(self): return 4
    def __getitem__(self, index): return 1 / 0
try:
    torch.save({}, "/no/such/folder/x.pt")
except RuntimeError:
    try:
        next(iter(torch.utils.data.DataLoader(Broken())))
    except ZeroDivisionError as error:
        raise ValueError("the data is broken") from error
"""
    written = []
    for number, env in enumerate([{}, {"ORCH_PROGRESS": str(torch_node.folder / f"errors{int(cold)}")}]):
        attempt = f"e{int(cold)}.{number}"
        rank = torch_node.rank(attempt, text, cold=cold, env=env)
        rank["argv"] = [torch_node.script(text)]
        torch_node.call("start", attempt=attempt, lease_s=60, ranks=[rank])
        assert torch_node.event("exit", attempt=attempt)["code"] == 1
        torch_node.event("ended", attempt=attempt)
        written.append(torch_node.log(attempt))
    assert "ValueError: the data is broken" in written[0]
    assert written[0] == written[1]


def test_an_observed_script_without_torch_has_none_and_one_whose_file_cannot_be_made_runs(
    node: Node, way: bool
) -> None:
    text = "import sys; print('torch' in sys.modules, sys.argv[0], __name__)"
    for number, path in enumerate([str(node.folder / "progress"), "/no/such/folder/progress"]):
        started = node.start(f"1.{number}", text, cold=way, env={"ORCH_PROGRESS": path})["0"]
        assert started["warm"] is not way
        assert node.event("exit", attempt=f"1.{number}")["code"] == 0
        node.event("ended", attempt=f"1.{number}")
        assert node.log(f"1.{number}").split() == ["False", f"train_1_{number}_0.py", "__main__"]


def test_an_interpreter_without_orch_has_its_report_all_the_same_and_no_other_package_is_hidden(node: Node) -> None:
    bare = node.folder / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    text = "import orchestrator; print(getattr(orchestrator, 'MINE', 'not mine')); orchestrator.report(loss=0.5)"
    progress = node.folder / "progress"
    node.start("1.1", text, python=str(bare / "bin" / "python"), env={"ORCH_PROGRESS": str(progress)})
    assert node.event("exit", attempt="1.1")["code"] == 0, node.log("1.1")
    seen = look(progress, 1, 1, 0)
    assert seen is not None
    assert seen.metrics == {"loss": 0.5}
    (node.folder / "orchestrator.py").write_text("MINE = 'mine'\ndef report(**values): pass")
    node.start("1.2", text, python=str(bare / "bin" / "python"), env={"ORCH_PROGRESS": str(progress)})
    assert node.event("exit", attempt="1.2")["code"] == 0, node.log("1.2")
    assert [node.log(attempt) for attempt in ("1.1", "1.2")] == ["not mine\n", "mine\n"]


@pytest.mark.torch
@pytest.mark.parametrize("cold", [True, False])
def test_cudnn_flags_are_set_before_the_script_and_its_own_workspace_stays(torch_node: Node, cold: bool) -> None:
    text = """
import os, resource, sys
flags = sys.modules["torch"].backends.cudnn
print(flags.benchmark, flags.deterministic, os.environ["CUBLAS_WORKSPACE_CONFIG"], getattr(resource, "MINE", False))
1 / 0
"""
    folder = torch_node.folder / f"cudnn{int(cold)}"
    folder.mkdir()
    script = folder / "train.py"
    script.write_text(text)
    if cold:
        (folder / "resource.py").write_text("MINE = True")
    plain = {
        "cudnn": {"benchmark": False, "deterministic": True},
        "cold": cold,
        "argv": ["train.py"],
        "cwd": str(folder),
    }
    for index, (env, workspace) in enumerate([({}, ":4096:8"), ({"CUBLAS_WORKSPACE_CONFIG": ":16:8"}, ":16:8")]):
        attempt = f"d{int(cold)}.{index}"
        rank = torch_node.rank(attempt, "", env=env, **plain)
        started = torch_node.call("start", attempt=attempt, lease_s=60, ranks=[rank])["ranks"]["0"]
        assert started["warm"] is not cold
        assert torch_node.event("exit", attempt=attempt)["code"] == 1
        torch_node.event("ended", attempt=attempt)
        assert torch_node.log(attempt).splitlines()[:3] == [
            f"False True {workspace} {cold}",
            "Traceback (most recent call last):",
            f'  File "{script}", line 5, in <module>',
        ]


def test_cudnn_flags_without_torch_end_the_rank_with_a_sentence(node: Node) -> None:
    bare = node.folder / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    node.start("1.1", "print('ran')", python=str(bare / "bin" / "python"), cudnn={"benchmark": True})
    assert node.event("exit", attempt="1.1")["code"] == 1
    assert node.log("1.1") == f"cudnn is to be set, and there is no torch in {bare}/bin/python\n"


@pytest.mark.torch
def test_before_its_first_import_a_warm_rank_with_torch_shows_only_what_the_imports_have_done(torch_node: Node) -> None:
    found = compare(torch_node, "", {})
    of_imports = {"loaded", "torch", "warnings", "multiprocessing", "environ", "environ_order", "environ_of_children"}
    assert found.keys() <= EXPECTED | of_imports
    cold, warm = found["environ"]
    assert set(warm) - set(cold) == {"TORCHINDUCTOR_CACHE_DIR"}


DDP = """
import os, torch, torch.distributed as dist
dist.init_process_group("gloo")
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model(torch.ones(2, 4)).sum().backward()
optimizer.step()
print("stepped", torch.initial_seed())
"""


@pytest.mark.torch
def test_warm_ddp_ranks_end_cleanly_again_and_again(torch_node: Node) -> None:
    seeds = []
    for round_ in range(10):
        attempt = f"7.{round_}"
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
        assert all(rank["warm"] for rank in torch_node.start(attempt, DDP, DDP, env=env).values())
        assert [torch_node.event("exit", attempt=attempt, rank=rank)["code"] for rank in (0, 1)] == [0, 0]
        assert torch_node.event("ended", attempt=attempt)["swept"] == 0
        seeds += [torch_node.log(attempt, rank).split()[-1] for rank in (0, 1)]
    assert len(set(seeds)) == 20
