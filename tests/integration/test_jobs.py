"""The example jobs under bare torchrun: nothing of orch is running, and they do what their text says."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from orchestrator.checkpoint import latest

pytestmark = pytest.mark.torch

JOBS = Path(__file__).parents[2] / "jobs"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def environment(**extra: str) -> dict[str, str]:
    bare = {name: value for name, value in os.environ.items() if not name.startswith("ORCH_")}
    return bare | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""} | extra


def torchrun(*script: str, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TORCHRUN, *script],
        cwd=JOBS,
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def kill_with_ranks(agent: subprocess.Popen[str]) -> None:
    """SIGKILL for torchrun and its ranks: it puts them into sessions of their own, where they would outlive it."""
    try:
        family = [*psutil.Process(agent.pid).children(recursive=True), psutil.Process(agent.pid)]
    except psutil.NoSuchProcess:
        family = []
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    agent.wait()
    # A rank that still wrote would be a second writer of the checkpoint that the next try reads.
    psutil.wait_procs(family, timeout=20)


def test_hello_names_every_rank_and_adds_them_up() -> None:
    said = torchrun("hello.py")

    assert said.returncode == 0, said.stderr
    assert sorted(line.split(" on ")[0] for line in said.stdout.splitlines()) == ["rank 0 of 2", "rank 1 of 2"]
    assert said.stdout.count("cpu (cpu), gloo; the ranks, counted from 1, sum to 3") == 2


def test_digits_stopped_in_the_middle_goes_on_from_its_checkpoint_and_passes(tmp_path: Path) -> None:
    checkpoint = {"ORCH_CHECKPOINT_DIR": str(tmp_path / "digits")}
    first = subprocess.Popen(
        [*TORCHRUN, "digits.py"],
        cwd=JOBS,
        env=environment(**checkpoint),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert first.stdout is not None
        for line in first.stdout:
            if line.startswith("epoch 2/8"):
                first.send_signal(signal.SIGTERM)  # torchrun passes it on to the ranks
                break
        rest = first.stdout.read()
        first.wait(timeout=60)
    finally:
        kill_with_ranks(first)
        first.stdout.close()
    stopped = re.search(r"told to stop: (\d) of 8 epochs are done and saved", rest)
    assert stopped, rest
    done = int(stopped[1])
    newest = latest(tmp_path / "digits")
    assert newest is not None
    assert newest.step == done

    second = torchrun("digits.py", **checkpoint)

    assert second.returncode == 0, second.stderr
    assert f"{done} of 8 epochs are done" in second.stdout
    assert f"epoch {done + 1}/8" in second.stdout
    assert f"epoch {done}/8" not in second.stdout
    accuracy = re.search(r"accuracy ([\d.]+) %", second.stdout)
    assert accuracy
    assert float(accuracy[1]) >= 97


def test_digits_fails_when_it_has_learned_too_little() -> None:
    said = torchrun("digits.py", "--epochs", "1")

    assert said.returncode != 0
    assert "failed: it should be at least 97" in said.stdout


def test_chargpt_resumes_after_a_kill_and_writes_a_sample(tmp_path: Path) -> None:
    small = ["chargpt.py", "--batch", "2", "--layers", "1", "--width", "32", "--every", "1", "--letters", "20"]
    small += ["--checkpoint", str(tmp_path)]
    first = subprocess.Popen(
        [*TORCHRUN, *small, "--steps", "100000"],
        cwd=JOBS,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while latest(tmp_path) is None and time.monotonic() < deadline:
            assert first.poll() is None, "chargpt ended before its first checkpoint"
            time.sleep(0.05)  # a save gives no event
    finally:
        kill_with_ranks(first)

    newest = latest(tmp_path)
    assert newest is not None
    saved = newest.step
    last = saved + 50
    second = torchrun(*small, "--steps", str(last))

    assert second.returncode == 0, second.stderr
    assert f": {saved} of {last} steps are done" in second.stdout
    steps = [
        int(done) for done in re.findall(r"^step (\d+)/\d+  loss \d\.\d{3}  [\d,]+ tokens/s$", second.stdout, re.M)
    ]
    assert steps == list(range(saved + 1, last + 1))
    assert "def " in second.stdout.split(f"step {last}/{last}")[1]
