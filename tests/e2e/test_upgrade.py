"""Row 43: another orch takes the place of the one that runs, while a run goes on; or leaves everything as it is."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from orch_home import GATE, REPOSITORY, OrchHome, until
from rows import fault

pytestmark = pytest.mark.ray
NEW = "0.1.1"


def lay_out(folder: Path, version: str | None = None) -> Path:
    """A copy of orch. With a version of its own it also says something more to its agents, and starts ranks otherwise."""
    for package in ("orchestrator", "cli"):
        shutil.copytree(REPOSITORY / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    if version is not None:
        change(folder / "orchestrator" / "__init__.py", '__version__ = "0.1.0"', f'__version__ = "{version}"')
        change(
            folder / "orchestrator/control/backend.py", "    lease_s: float\n", "    lease_s: float\n    more: int\n"
        )
        change(
            folder / "orchestrator/control/orders.py", "lease_s=settings.lease_s,", "lease_s=settings.lease_s, more=1,"
        )
        with (folder / "orchestrator/control/launcher/node_launcher.py").open("a") as file:
            file.write("# another\n")
    return folder


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


class Installed(OrchHome):
    """One whose orch is what `install` said last: the running processes keep what they have loaded."""

    def __init__(self, code: Path) -> None:
        super().__init__(ORCH_LOCAL_SLOTS="2", ORCH_LEASE="20s")
        self.install(code)
        self.env["PYTHONPATH"] = str(self.folder / "installed")

    def install(self, code: Path) -> None:
        link = self.folder / "new"
        link.symlink_to(code)
        link.rename(self.folder / "installed")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Installed]:
    home = Installed(lay_out(tmp_path / "old"))
    try:
        yield home
    finally:
        left = home.close()
    assert left == []


@fault(43)
def test_up_of_another_version_takes_the_run_up_and_an_older_one_touches_nothing(
    home: Installed, tmp_path: Path, measured
) -> None:
    gate = tmp_path / "gate"
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").write_text(GATE)
    job = tmp_path / "code" / "job.yaml"
    job.write_text(f"run: train.py {gate}\nworkers: 1\n")
    run = home.submit(job)
    home.prints(run, "at the gate")
    ranks, controller = home.ranks(run), home.controller()
    agent, launcher = home.service("ray::AgentActor"), launcher_of(home)

    home.install(lay_out(tmp_path / "new", NEW))
    measured.injected()
    home("up")
    measured.recovered()
    assert home.json("status")["version"] == NEW
    assert home.controller() != controller
    until(lambda: another_agent(home) != agent.pid, 20, "the agent is of the new version too")
    until(lambda: home.json("nodes")[0]["state"] == "up", 20, "the agent is heard")
    # The run has noticed nothing, its launcher is still the one of before, and further runs start under it.
    assert home.ranks(run) == ranks
    other = home.submit(job)
    home.prints(other, "at the gate")
    assert launcher_of(home) == launcher
    assert [found["state"] for found in map(home.show, (run, other))] == ["running", "running"]
    # `orch up` again has nothing to do.
    controller = home.controller()
    home("up")
    assert home.controller() == controller

    # Back again, which the database would not allow: refused, and nothing is ended.
    revision = of_database(home, "9999")
    home.install(tmp_path / "old")
    refused = home("up", code=8)
    assert "newer" in refused.stderr
    assert (home.controller(), os.path.exists(f"/proc/{controller}")) == (controller, True)
    assert home.ranks(run) == ranks
    of_database(home, revision)
    home.install(tmp_path / "new")

    gate.touch()
    for one in (run, other):
        assert len(home.end(one)["attempts"]) == 1
    # Now that nothing lives there, the launcher is replaced with the next start.
    last = home.submit(job)
    home.end(last)
    assert launcher_of(home) != launcher


def launcher_of(home: OrchHome) -> int:
    """The pid of the node's launcher, which it writes into its lock."""
    (lock,) = home.node_folder.glob("node-*/launcher/launcher.lock")
    return int(lock.read_text())


def another_agent(home: OrchHome) -> int | None:
    try:
        return home.service("ray::AgentActor").pid
    except ValueError:
        return None


def of_database(home: OrchHome, revision: str) -> str:
    """Says that the database is of this revision; which it was of before."""
    with closing(sqlite3.connect(home.root / "orch.db", isolation_level=None)) as raw:
        (before,) = raw.execute("SELECT version_num FROM orch_version").fetchone()
        raw.execute("UPDATE orch_version SET version_num = ?", (revision,))
    return str(before)
