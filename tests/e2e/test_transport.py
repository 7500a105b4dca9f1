"""The transport verdict as users meet it: a gang on pretended GPUs whose NCCL (pretended too) falls to sockets."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from orch_home import OrchHome, until

pytestmark = pytest.mark.ray

FAKE_NCCL = Path(__file__).resolve().parents[1] / "fixtures/fake_nccl.py"


@pytest.fixture
def home(ray_cluster) -> Iterator[OrchHome]:
    """A home on the Ray cluster of pretended GPUs: of their links nothing is known, so at least shared memory is promised."""
    ray = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": os.environ["RAY_AUTH_TOKEN_PATH"]}
    home = OrchHome(ORCH_ADDRESS=ray_cluster.address, **ray)
    try:
        home("up")
        yield home
    finally:
        assert home.close() == []


def test_a_fall_to_sockets_is_told_while_the_run_runs_and_shown_after_it(home, tmp_path, gate):
    folder = tmp_path / "code"
    folder.mkdir()
    shutil.copy(FAKE_NCCL, folder)
    job = folder / "job.yaml"
    job.write_text(f"run: fake_nccl.py SOCKET {gate}\nworkers: 1x4\ndevice: cuda\nenv: {{NCCL_SHM_DISABLE: 1}}\n")
    said = tmp_path / "said"
    with said.open("w") as stderr, home.popen("submit", job, "--follow", stderr=stderr) as follower:
        told = "transport worse than planned, because NCCL_SHM_DISABLE is set"
        try:
            until(lambda: told in said.read_text(), 60, "the follower is told")
            assert home.show("fake-nccl")["state"] == "running"
        finally:
            gate.touch()
        assert follower.wait(60) == 0
    shown = home.show("fake-nccl")
    transport = shown["attempts"][0]["transport"]
    assert (transport["verdict"], transport["links"]) == ("worse than planned", {"NET/Socket": 8})
    assert [event["state"] for event in shown["events"] if event["event"] == "noted"] in (["running"], ["starting"])
    fields = dict(line.split("\t", 1) for line in home("show", "fake-nccl").stdout.splitlines())
    assert fields["attempt.1.transport.cause"].startswith("NCCL_SHM_DISABLE is set")
    log = tmp_path / "nccl.log"
    log.write_text(home("logs", "fake-nccl", "--nccl").stdout)
    assert home.json("doctor", "--nccl-log", log)["links"] == {"NET/Socket": 8}
    job.write_text(job.read_text().replace("{NCCL_SHM_DISABLE: 1}", "{}") + "on_degraded: fail\ngrace: 1s\n")
    gate.unlink()
    failed = home("submit", job, "--follow", code=1)
    assert "8 of 8 links promised shared memory go over TCP sockets" in failed.stderr
    (attempt,) = home.show("fake-nccl")["attempts"]
    assert (attempt["failure"]["kind"], attempt["outcome"]) == ("degraded", "infra_error")
