"""The controller's process is killed between a record and its effect, and between an effect and its record, on real Ray: row 17."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from invariants import Looked, Marked, check
from orch_home import OrchHome, environ_of
from rows import fault

from orchestrator.history.store import Store
from orchestrator.scheduling.lifecycle import State

pytestmark = pytest.mark.ray
TRIES = 2

AT_THE_GATE = """
import os, pathlib, sys, time
record = pathlib.Path(sys.argv[2]) / os.environ["ORCH_RUN"]
with open(f"{record}.{os.environ['ORCH_ATTEMPT']}", "a", buffering=1) as file:
    while not pathlib.Path(f"{sys.argv[1]}-{os.environ['ORCH_RUN']}").exists():
        file.write(f"{time.monotonic()}\\n")
        time.sleep(0.02)
"""
"""Writes down when it lives, until its gate is there."""


def marked(home: OrchHome) -> list[Marked]:
    found = []
    for pid in home.ranks():
        if mark := re.search(r"ORCH_MARK=[^.\0]+\.(\d+)\.(\d+)\.", environ_of(pid)):
            found.append(Marked("here", int(mark[1]), int(mark[2]), pid))
    return found


@pytest.fixture(scope="module")
def home() -> Iterator[OrchHome]:
    """With a lease that outlasts a controller's start on a busy machine."""
    home = OrchHome(ORCH_LOCAL_SLOTS="2", ORCH_LEASE="60s")
    try:
        yield home
    finally:
        left = home.close()
    assert left == []


@pytest.fixture
def started(home: OrchHome, tmp_path: Path, job: Callable[..., Path]) -> Iterator[Callable[[], int]]:
    """A function that submits a run which waits for its gate; afterwards the rules are looked at."""
    path = job(AT_THE_GATE, arguments=f"{tmp_path}/gate {tmp_path}", grace="2s")
    runs: list[int] = []

    def start() -> int:
        runs.append(home.submit(path))
        return runs[-1]

    yield start
    check(
        Looked(f"sqlite:///{home.root}/orch.db", lambda *a, **k: home(*a, code=None, **k), lambda: marked(home), runs)
    )
    for run in runs:
        # No attempt has begun before the one before it was over.
        records = [path for number in (1, 2, 3) if (path := tmp_path / f"{run}.{number}").exists()]
        lived = [times for path in records if (times := list(map(float, path.read_text().split())))]
        assert all(before[-1] < after[0] for before, after in pairwise(lived))


def kill_once(home: OrchHome, condition: Callable[[], object]) -> None:
    """Kills the controller as soon as that is so, and waits until another one answers."""
    before = home.controller()
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
    home.crash(before)
    while home.controller() == before or home.json("status", code=None).get("controller") != "up":
        assert time.monotonic() < deadline + 30
        time.sleep(0.1)


@fault(17)
@pytest.mark.parametrize("seen", ["the record", "the rank"])
def test_killed_while_it_starts_a_run_it_starts_one_set_of_ranks(
    home: OrchHome, started: Callable[[], int], tmp_path: Path, seen: str
) -> None:
    for _ in range(TRIES):
        run = started()
        with Store.open(f"sqlite:///{home.root}/orch.db", readonly=True) as store:
            kill_once(home, lambda: home.ranks(run) if seen == "the rank" else store.get(run).attempts)  # noqa: B023
        home.reaches(run, "running")
        (tmp_path / f"gate-{run}").touch()
        found = home.end(run)
        # One that had not got as far as its ranks is begun anew, and pays nothing for that.
        assert len(found["attempts"]) <= 2
        assert {one["failure"]["kind"] for one in found["attempts"][:-1]} <= {"controller"}


@fault(17)
def test_killed_while_it_cancels_a_run_it_is_cancelled(home: OrchHome, started: Callable[[], int]) -> None:
    for _ in range(TRIES):
        run = started()
        home.reaches(run, "running")
        asks = home.popen("cancel", run)
        with Store.open(f"sqlite:///{home.root}/orch.db", readonly=True) as store:
            kill_once(home, lambda: store.get(run).state is not State.RUNNING)  # noqa: B023
        asks.communicate(timeout=30)
        assert home.reaches(run, "cancelled")["attempts"][0]["outcome"] == "cancelled"


@fault(17)
def test_killed_while_a_run_ends_it_has_succeeded_once(
    home: OrchHome, started: Callable[[], int], tmp_path: Path
) -> None:
    for _ in range(TRIES):
        run = started()
        home.reaches(run, "running")
        (rank,) = home.ranks(run)
        process = psutil.Process(rank)
        (tmp_path / f"gate-{run}").touch()
        kill_once(home, lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)  # noqa: B023
        found = home.end(run)
        assert [one["outcome"] for one in found["attempts"]] == ["succeeded"]
