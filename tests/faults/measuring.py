"""How a fault test went: what it measured, and a line of JSON for each test in the file of `--fault-results`.

    @fault(1)
    def test_a_killed_rank_is_retried(measured):
        kill(rank)
        measured.injected()
        wait_until(peers_are_gone)
        measured.detected()
        wait_until(next_attempt_trains)
        measured.recovered()
        measured.lost(steps=3, gpu_seconds=12.5)

A plugin of pytest (tests/conftest.py loads it). What is measured travels in pytest's `user_properties`, so that tests
that run side by side (-n) are kept as well.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import pytest


class Measured:
    """What one test measured; a test that leaves some of it out has nothing to say of that."""

    def __init__(self, kept: dict[str, Any]) -> None:
        self._kept = kept
        self._injected: float | None = None

    def injected(self, at: float | None = None) -> None:
        """The fault is there, now or since `at` (of time.monotonic). Called again (a loop over seeds): the longest times count."""
        self._injected = time.monotonic() if at is None else at

    def detected(self) -> float:
        """Now orch has noticed; seconds since the fault."""
        return self._since("detected_s")

    def recovered(self) -> float:
        """Now the run is where it was meant to get: trains again, or has ended as it should; seconds since the fault."""
        return self._since("recovered_s")

    def lost(self, *, steps: float | None = None, gpu_seconds: float | None = None) -> None:
        """What had to be done again: steps of training, seconds of GPUs (or of the CPU slots that stand for them)."""
        for name, value in (("lost_steps", steps), ("lost_gpu_s", gpu_seconds)):
            if value is not None:
                self._kept[name] = max(value, self._kept.get(name, 0))

    def seed(self, seed: int) -> None:
        self._kept["seed"] = seed

    def note(self, text: str) -> None:
        """Something short that belongs into the table, such as "100 seeds at each of 14 points"."""
        self._kept["note"] = text

    def _since(self, name: str) -> float:
        assert self._injected is not None, "measured.injected() comes first"
        took = time.monotonic() - self._injected
        self._kept[name] = max(round(took, 3), self._kept.get(name, 0))
        return took


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """Where a test of a row says when the fault was there, noticed and survived, and what was lost."""
    kept: dict[str, Any] = {}
    request.node.user_properties.append(("measured", kept))
    return Measured(kept)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("orch faults")
    group.addoption("--fault-results", metavar="FILE", type=Path, help="adds to FILE a line for each fault test")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("fault"):
        item.user_properties.append(("fault", mark.args[0]))


class _Results:
    def __init__(self, file: Path) -> None:
        self._file = file
        self._went: dict[str, tuple[str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        rows = sorted({number for name, number in report.user_properties if name == "fault"})
        if not rows:
            return
        if report.outcome != "passed":
            # The first part that did not pass is the one that counts.
            self._went.setdefault(report.nodeid, (report.outcome, _why(report)))
        if report.when != "teardown":
            return
        outcome, why = self._went.pop(report.nodeid, ("passed", ""))
        kept = next((kept for name, kept in report.user_properties if name == "measured"), {})
        line = {"rows": rows, "test": report.nodeid, "outcome": outcome, "why": why, **kept, **where()}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    file: Path | None = config.getoption("--fault-results", default=None)
    # With -n, the workers' reports come together in the process that has none of their input.
    if file is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Results(file.absolute()), "orch-fault-results")


def where() -> dict[str, str]:
    """The machine and the day, for a line of results."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "ray"))
    machine = f"{os.cpu_count()} × {model}, Python {platform.python_version()}, {versions}"
    return {"machine": machine, "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"}


def _why(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):  # of a test that was skipped
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(getattr(crash, "message", report.longrepr)).partition("\n")[0]
