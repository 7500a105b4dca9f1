"""The folder of checkpoints stalls, as an NFS server does that is away: row 37."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from counting import start
from measuring import Measured
from orch_home import OrchHome, until
from rows import fault

pytestmark = pytest.mark.ray

LEASE_S = 6


class Mounted(NamedTuple):
    home: OrchHome
    server: subprocess.Popen[bytes]
    behind: Path
    """The same folder, reached past the file system that stalls."""


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Mounted]:
    """A home whose storage is a file system of its own process."""
    if shutil.which("bindfs") is None or not os.access("/dev/fuse", os.W_OK):
        pytest.skip("no file system that can be stopped: bindfs (package bindfs) and /dev/fuse are needed")
    behind, folder = tmp_path / "behind", tmp_path / "mounted"
    behind.mkdir()
    folder.mkdir()
    server = subprocess.Popen(["bindfs", "-f", behind, folder])
    until(lambda: os.path.ismount(folder), 10, "it is mounted")
    home = OrchHome(ORCH_LOCAL_SLOTS="4", ORCH_LEASE=f"{LEASE_S}s", ORCH_STORAGE=str(folder))
    try:
        yield Mounted(home, server, behind)
    finally:
        server.send_signal(signal.SIGCONT)
        left = home.close()
        subprocess.run(["umount", "-l", folder], check=False)
        server.kill()
        server.wait()
    assert left == []


@fault(37)
def test_commands_answer_and_the_run_goes_on_when_the_storage_does(
    mounted: Mounted, tmp_path: Path, measured: Measured
) -> None:
    home, behind = mounted.home, mounted.behind
    kept = behind / "checkpoints" / "1" / "ckpt" / "step"
    run, _ = start(home, tmp_path / "gate", kept)
    ranks = home.ranks(run)
    mounted.server.send_signal(signal.SIGSTOP)
    measured.injected()
    until(lambda: home.json("status")["storage"]["state"] == "stalled", 20, "status says that the storage is stalled")
    measured.detected()
    for argv in (("ps",), ("show", run), ("logs", run), ("nodes",), ("submit", home.folder / "code" / "train.yaml")):
        began = time.monotonic()
        home(*argv)
        assert time.monotonic() - began < 10, argv
    at = kept.read_text()
    until(lambda: home.json("status")["storage"].get("for_s", 0) > 2 * LEASE_S, 30, "it lasts longer than the lease")
    assert "storage stalled" in home("status").stderr
    assert (home.ranks(run), kept.read_text()) == (ranks, at)
    mounted.server.send_signal(signal.SIGCONT)
    until(lambda: int(kept.read_text()) > int(at), 20, "the run goes on")
    measured.recovered()
    measured.lost(steps=0)
    assert home.json("status")["storage"] == {"state": "up"}
    (tmp_path / "gate").touch()
    assert len(home.end(run)["attempts"]) == 1
    home.end(2)
