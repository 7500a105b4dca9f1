"""One ORCH_HOME for most tests of this folder: it is brought up by the first `orch submit` and ended after the last test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from orch_home import GATE, OrchHome

SLOTS = 12

Job = Callable[..., Path]


@pytest.fixture(scope="session")
def home() -> Iterator[OrchHome]:
    """A private cluster of 12 CPU slots that keeps 64 KiB of each log, gives leases of 10 s and lets runs give way at once."""
    home = OrchHome(ORCH_LOCAL_SLOTS=str(SLOTS), ORCH_LOG_LIMIT="64KiB", ORCH_LEASE="10s", ORCH_POLICY_MIN_RUNTIME="1s")
    try:
        yield home
    finally:
        left = home.close()
    assert left == []


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A function that writes a script and its job file into a folder and gives the job file; keywords are its keys."""

    def write(script: str, name: str = "train", folder: str = "code", arguments: object = "", **keys: object) -> Path:
        workdir = tmp_path / folder
        workdir.mkdir(exist_ok=True)
        (workdir / f"{name}.py").write_text(script)
        lines = [f"run: {name}.py {arguments}".rstrip(), *(f"{key}: {value}" for key, value in keys.items())]
        path = workdir / f"{name}.yaml"
        path.write_text("\n".join([*lines, ""]))
        return path

    return write


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """The file that scripts which wait at the gate wait for; there at the end of the test at the latest."""
    path = tmp_path / "open"
    yield path
    path.touch()


@pytest.fixture
def waiting_job(job: Job, gate: Path) -> Callable[..., Path]:
    """A function that writes a job which waits for `gate`."""
    return lambda **keys: job(GATE, name="gate", folder="gate", arguments=gate, **keys)
