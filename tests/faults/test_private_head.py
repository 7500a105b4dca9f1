"""Ray's head dies on the private cluster of one machine, and is started again by one command."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from counting import start
from measuring import Measured
from orch_home import OrchHome, until
from rows import fault, representative

from orchestrator.control.gangs import WORTH_TELLING_S

pytestmark = pytest.mark.ray


@pytest.fixture
def private() -> Iterator[Callable[..., OrchHome]]:
    """A function that makes a home with these variables; it is ended after the test."""
    made: list[OrchHome] = []

    def make(**variables: str) -> OrchHome:
        made.append(OrchHome(ORCH_LOCAL_SLOTS="4", **variables))
        return made[-1]

    yield make
    left = [line for home in made for line in home.close()]
    assert left == []


def gcs(home: OrchHome) -> psutil.Process:
    (found,) = [process for process in home.services() if process.name() == "gcs_server"]
    return found


def timed(home: OrchHome, *argv: object, code: int | None) -> tuple[Any, float]:
    began = time.monotonic()
    done = home(*argv, code=code)
    return done, time.monotonic() - began


@representative
@fault(14)
def test_the_head_service_is_killed_and_up_starts_a_cluster_that_takes_the_run_up(
    private: Any, tmp_path: Path, measured: Measured
) -> None:
    home = private(ORCH_LEASE="2m")
    run, kept = start(home, tmp_path / "gate")
    ranks = home.ranks(run)
    home.crash(gcs(home).pid)
    measured.injected()
    until(
        lambda: home.json("status", code=None).get("cluster", {}).get("state") == "lost", 10, "status says it is lost"
    )
    measured.detected()
    said, took = timed(home, "status", code=6)
    assert took < 10
    assert "`orch up` starts it again" in said.stderr
    _, took = timed(home, "ps", code=0)
    assert took < 10
    home("up")
    until(lambda: home.json("status")["cpu_slots"]["busy"] == 1, 30, "the run holds its place")
    measured.recovered()
    measured.lost(steps=0)
    assert home.ranks(run) == ranks
    before = int(kept.read_text())
    until(lambda: int(kept.read_text()) > before, 10, "the run counts on")
    (tmp_path / "gate").touch()
    found = home.end(run)
    assert len(found["attempts"]) == 1
    assert home.logs(run) == ["attempt 1 begins at 0", "through"]


@fault(14)
def test_nobody_starts_the_head_again_for_longer_than_the_lease_and_the_run_goes_on_from_its_checkpoint(
    private: Any, tmp_path: Path, measured: Measured
) -> None:
    home = private(ORCH_LEASE="5s")
    run, kept = start(home, tmp_path / "gate")
    controller = home.controller()
    home.crash(gcs(home).pid)
    measured.injected()
    until(
        lambda: home.json("status", code=None).get("cluster", {}).get("state") == "lost", 10, "status says it is lost"
    )
    measured.detected()
    # Ray's processes give up after a minute; the ranks have their lease from then on.
    until(lambda: not psutil.pid_exists(controller), 90, "the controller ends by itself")
    until(lambda: not home.ranks(run), 20, "the ranks end by their lease")
    reached = int(kept.read_text())
    done, took = timed(home, "ps", code=0)
    assert took < 10
    assert "`orch up`" in done.stderr
    home("up")
    until(lambda: len(home.show(run)["attempts"]) == 2 and home.show(run)["state"] == "running", 60, "another attempt")
    measured.recovered()
    measured.lost(steps=0)
    (tmp_path / "gate").touch()
    found = home.end(run)
    assert [attempt["outcome"] for attempt in found["attempts"]] == ["infra_error", "succeeded"]
    assert f"attempt 2 begins at {reached}" in home.logs(run, "--attempt", 2)


@fault(15)
def test_the_whole_head_is_killed_and_comes_back_with_its_state_on_disk(
    private: Any, tmp_path: Path, measured: Measured
) -> None:
    home = private(ORCH_LEASE="2m", ORCH_HEAD_STORAGE="rocksdb")
    run, _ = start(home, tmp_path / "gate")
    ranks, address = home.ranks(run), home.json("status")["address"]
    state = home.root / "head"
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert any(state.iterdir())
    launcher = {p.pid for p in home.services() if any("launcher" in word for word in p.cmdline())}
    family = {child.pid for pid in launcher for child in psutil.Process(pid).children(recursive=True)} | launcher
    for process in home.services():
        if process.pid not in family:
            with suppress(ProcessLookupError):  # it ended with its parent
                os.kill(process.pid, 9)
    measured.injected()
    until(lambda: home("status", code=None).returncode == 6, 10, "status says that it is down")
    measured.detected()
    sign_of_life = home.home.controller_file.stat().st_mtime
    until(lambda: time.time() - sign_of_life > WORTH_TELLING_S, 20, "it is away long enough to be told of")
    home("up")
    measured.recovered()
    measured.lost(steps=0)
    assert home.json("status")["address"] == address
    until(lambda: home.json("status")["cpu_slots"]["busy"] == 1, 30, "the run holds its place")
    assert home.ranks(run) == ranks
    (tmp_path / "gate").touch()
    found = home.end(run)
    assert len(found["attempts"]) == 1
    (note,) = [event["reason"] for event in found["events"] if event["event"] == "noted"]
    assert "the ranks went on" in note
