"""orchestrator.checkpoint where processes are killed, told to stop, sharded over ranks, and out of disk."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rows import fault, representative

from orchestrator import checkpoint
from orchestrator.checkpoint import folder as folders

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

SCRIPT = Path(__file__).parents[1] / "fixtures" / "checkpointing.py"


@pytest.fixture(autouse=True)
def outside_orch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ORCH_RUN", "ORCH_ATTEMPT", "ORCH_CHECKPOINT_DIR"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def ranks(count: int, *arguments: object) -> Iterator[list[subprocess.Popen[str]]]:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    env = os.environ | {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "CUDA_VISIBLE_DEVICES": "",
    }
    started = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), *map(str, arguments)],
            env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def told(rank: subprocess.Popen[str]) -> dict[str, Any]:
    assert rank.stdout is not None
    line = rank.stdout.readline()
    assert line, "the rank ended"
    said: dict[str, Any] = json.loads(line)
    return said


# -- killed ------------------------------------------------------------------------------------------------------------


def a_state(step: int) -> dict[str, Any]:
    return {"tensors": [torch.full((300_000,), float(step)) for _ in range(4)], "step_was": step}


def save_for_ever(folder: Path, attempt: int, say: int) -> None:
    """The life of a child: everything that it has saved is told by its step."""
    torch.set_num_threads(1)  # a forked child has no pool of them
    os.environ |= {"ORCH_RUN": "1", "ORCH_ATTEMPT": str(attempt)}
    loaded = checkpoint.load(dir=folder)
    step = loaded.step if loaded else 0
    while True:
        step += 1
        checkpoint.save(a_state(step), step=step, dir=folder, keep=2, sharded=False)
        os.write(say, step.to_bytes(4, "big"))


def test_a_process_that_is_killed_at_any_moment_of_its_saves_loses_none_that_was_done(tmp_path: Path) -> None:
    dice = random.Random(7)
    for attempt in range(1, 31):
        hear, say = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                save_for_ever(tmp_path, attempt, say)
            finally:
                os._exit(1)
        os.close(say)
        saved = os.read(hear, 4)
        time.sleep(dice.uniform(0, 0.03))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        while more := os.read(hear, 4):
            saved = more
        os.close(hear)
        loaded = checkpoint.load(dir=tmp_path)
        assert loaded is not None
        assert loaded.step in (int.from_bytes(saved, "big"), int.from_bytes(saved, "big") + 1)
        assert loaded.state["step_was"] == loaded.step
        assert all(bool((tensor == loaded.step).all()) for tensor in loaded.state["tensors"])
    assert len(folders.names(tmp_path)) <= 4


# -- told to stop ------------------------------------------------------------------------------------------------------


def test_ranks_that_are_told_at_different_moments_stop_after_the_same_step_and_save_it(tmp_path: Path) -> None:
    dice, count = random.Random(3), 8
    with ranks(3, "rounds", tmp_path, count) as gang:
        for number in range(count):
            for rank in gang:
                assert told(rank) == {"round": number, "rank": gang.index(rank)}
            time.sleep(dice.uniform(0, 0.05))
            # All of them, in any order; or one alone, as where a node's own agent stops it.
            for rank in dice.sample(gang, 1 if number % 4 == 3 else 3):
                rank.send_signal(signal.SIGTERM)
                time.sleep(dice.uniform(0, 0.02))
            ends = [told(rank) for rank in gang]
            assert {end["code"] for end in ends} == {143}
            (step,) = {end["stopped"] for end in ends}
            newest = checkpoint.latest(tmp_path / str(number))
            assert newest is not None
            assert (newest.step, newest.world_size) == (step, 3)
        assert [rank.wait(20) for rank in gang] == [0, 0, 0]


def test_ranks_whose_peer_does_not_answer_end_by_themselves_with_the_newest_checkpoint_left(tmp_path: Path) -> None:
    with ranks(3, "impatient", tmp_path, 1) as gang:
        for rank in gang:
            told(rank)
        while checkpoint.latest(tmp_path / "0") is None:
            time.sleep(0.01)
        # The others are in an all-reduce with it, which does not end.
        gang[2].send_signal(signal.SIGSTOP)
        time.sleep(0.2)
        for rank in gang[:2]:
            rank.send_signal(signal.SIGTERM)
        assert [rank.wait(30) for rank in gang[:2]] == [143, 143]
    newest = checkpoint.latest(tmp_path / "0")
    assert newest is not None
    assert newest.step % 7 == 0


# -- sharded -----------------------------------------------------------------------------------------------------------


def test_a_sharded_model_goes_on_with_another_number_of_ranks_from_the_newest_that_has_all_its_shards(
    tmp_path: Path,
) -> None:
    with ranks(2, "fsdp", tmp_path, 6) as gang:
        said = [[told(rank) for _ in range(7)] for rank in gang]
        assert [rank.wait(20) for rank in gang] == [0, 0]
    after = {one["done"]: one["weights"] for one in said[0][1:]}
    assert folders.names(tmp_path) == [f"step-{step}-attempt-1" for step in (6, 4, 2)]
    assert {path.name for path in (tmp_path / "step-6-attempt-1" / "shards").iterdir()} == {
        ".metadata",
        "__0_0.distcp",
        "__1_0.distcp",
    }
    (tmp_path / "step-6-attempt-1" / "shards" / "__1_0.distcp").unlink()

    with ranks(1, "fsdp", tmp_path, 6) as gang:
        resumed, *rest = [told(gang[0]) for _ in range(3)]
    assert (resumed["resumed"], resumed["weights"]) == (4, after[4])
    assert {one["done"]: one["weights"] for one in rest} == {5: after[5], 6: after[6]}


# -- out of disk -------------------------------------------------------------------------------------------------------


@representative
@fault(27)
@pytest.mark.parametrize("sharded", [False, True])
def test_a_full_disk_is_a_clear_error_and_leaves_the_last_one_whole(tmp_path: Path, sharded: bool) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "none", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk needs root: {mounted.stderr.strip()}")
    try:

        def save(step: int, megabytes: int) -> None:
            model = torch.nn.Linear(megabytes << 8, 1024, bias=False)
            torch.nn.init.constant_(model.weight, float(step))
            checkpoint.save({"model": model}, step=step, dir=disk / "ckpt", sharded=sharded)

        save(1, 4)
        with pytest.raises(checkpoint.CheckpointError) as full:
            save(2, 20)
        assert "No space left" in str(full.value), full.value
        model = torch.nn.Linear(4 << 8, 1024, bias=False)
        loaded = checkpoint.load({"model": model}, dir=disk / "ckpt")
        assert loaded is not None
        assert loaded.step == 1
        assert bool((model.weight == 1).all())
        save(3, 5)  # what the failed one had taken is free again
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
