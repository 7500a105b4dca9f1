"""Whom a launcher serves, what it answers to nonsense, and when it ends itself."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from launched import STUBBORN, Node, alive, end, until

from orchestrator.control.launcher_client import (
    LAUNCHER,
    LauncherRefusedError,
)


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
