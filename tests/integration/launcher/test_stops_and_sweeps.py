"""What ends an attempt, a stop, a lease that ran out, a killed launcher, leaves no process of it and touches no other."""

import asyncio
import os
import signal
import time

import pytest
from launched import POLITE, STUBBORN, Node, alive, until

from orchestrator.control.launcher_client import (
    LauncherGoneError,
    LauncherRefusedError,
)

# Stopping


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
