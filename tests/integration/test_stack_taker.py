"""Where a rank stands is told of real processes: that run, that are stopped, that nobody may look into, that record collectives."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from orchestrator.control import stack_taker
from orchestrator.control.stack_taker import kernel_facts, take
from orchestrator.health.stacks import RankStack, busy

WAITS = """
import sys, time
def waits():
    print("there", flush=True)
    time.sleep(300)
waits()
"""
RECORDS = """
import os, sys, threading, time
import torch.distributed as dist
from torch._C._distributed_c10d import _dump_fr_trace

# What torch's NCCL backend does with these variables, done with the collectives of Gloo.
rank, folder = int(sys.argv[1]), sys.argv[2]
os.mkfifo(f"{folder}/ask-{rank}.pipe")
pipe = os.open(f"{folder}/ask-{rank}.pipe", os.O_RDONLY | os.O_NONBLOCK)
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
for _ in range(3):
    dist.barrier()
_dump_fr_trace()  # imports what it needs, which takes long on a busy machine
print("there", flush=True)
while not os.read(pipe, 16):
    time.sleep(0.05)
with open(f"{folder}/dump-{rank}", "wb") as file:
    file.write(_dump_fr_trace())
time.sleep(300)
"""


class Script:
    def __init__(self, source: str, *arguments: object) -> None:
        argv = [sys.executable, "-c", source, *map(str, arguments)]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"there\n"
        self.pid = self.process.pid

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def waiting() -> Iterator[Script]:
    script = Script(WAITS)
    while kernel_facts(script.pid)[0] != "S":
        time.sleep(0.01)
    yield script
    script.end()


def taken(folder: Path, pids: dict[int, int | None], *, whole: bool = True) -> dict[int, RankStack]:
    found = asyncio.run(asyncio.wait_for(take(pids, folder, whole=whole), 40))
    return {stack.rank: stack for stack in found}


COPIES = """
import time
print("there", flush=True)
with open("/dev/zero", "rb") as zero, open("/dev/null", "wb") as null:
    while True:
        null.write(zero.read(1 << 20))
"""


@pytest.mark.parametrize(
    "script",
    [COPIES, "import subprocess; print('there', flush=True); subprocess.run(['sleep', '300'])"],
    ids=["copies", "waits for a child"],
)
def test_a_process_that_does_something_is_busy_and_one_that_waits_is_not(
    waiting: Script, tmp_path: Path, script: str
) -> None:
    works = Script(script)
    try:
        pids: dict[int, int | None] = {0: works.pid, 1: waiting.pid}
        found = []
        for whole in (False, True):
            found.append(taken(tmp_path, pids, whole=whole))
        assert busy(*found) == {0}
    finally:
        for child in psutil.Process(works.pid).children():
            child.kill()
        works.end()


@pytest.mark.parametrize("whole", [True, False])
def test_a_stack_names_functions_and_lines(waiting: Script, tmp_path: Path, whole: bool) -> None:
    (stack,) = taken(tmp_path, {3: waiting.pid}, whole=whole).values()
    assert (stack.rank, stack.pid, stack.state) == (3, waiting.pid, "S")
    assert [(frame.name, frame.line) for frame in stack.calls] == [("waits", 5), ("<module>", 6)]
    assert stack.place == "<string>:5, in waits"
    assert ("nanosleep (" in stack.text) is whole
    assert not stack.waits


def test_a_stopped_process_is_told_as_stopped_read_all_the_same_and_left_stopped(
    waiting: Script, tmp_path: Path
) -> None:
    os.kill(waiting.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, waiting.pid, os.WSTOPPED | os.WNOWAIT)
    (stack,) = taken(tmp_path, {0: waiting.pid}).values()
    assert stack.stopped
    assert stack.place == "<string>:5, in waits"
    assert psutil.Process(waiting.pid).status() == psutil.STATUS_STOPPED


def test_a_rank_without_a_process_has_no_state(tmp_path: Path) -> None:
    ended = Script(WAITS)
    ended.end()
    found = taken(tmp_path, {0: None, 1: ended.pid})
    assert [found[rank].state for rank in (0, 1)] == ["", ""]


def test_where_py_spy_may_not_look_the_kernel_tells_what_it_can(
    waiting: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuses = tmp_path / "py-spy"
    refuses.write_text(
        "#!/bin/sh\necho 'Error: Permission Denied: Try running again with elevated permissions' >&2\nexit 1\n"
    )
    refuses.chmod(0o755)
    monkeypatch.setattr(stack_taker, "_program", lambda: refuses)
    (stack,) = taken(tmp_path, {0: waiting.pid}).values()
    assert (stack.state, stack.frames) == ("S", ())
    assert f"pid {waiting.pid}, state S: threads 1" in stack.text
    assert "kernel.yama.ptrace_scope=0" in stack.text


def test_a_py_spy_that_gives_no_answer_is_not_waited_for(
    waiting: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = tmp_path / "py-spy"
    hangs.write_text("#!/bin/sh\nexec sleep 300\n")
    hangs.chmod(0o755)
    monkeypatch.setattr(stack_taker, "_program", lambda: hangs)
    monkeypatch.setattr(stack_taker, "LOOK_S", 0.2)
    (stack,) = taken(tmp_path, {0: waiting.pid}, whole=False).values()
    assert "no answer in time" in stack.text


def test_what_the_kernel_does_not_tell_is_left_out(tmp_path: Path) -> None:
    assert kernel_facts(1, tmp_path) == ("", "")


@pytest.mark.torch
def test_the_flight_recorder_is_asked_and_who_does_not_answer_is_not_waited_for_long(tmp_path: Path) -> None:
    answers, silent = Script(RECORDS, 0, tmp_path), Script(WAITS)
    try:
        (tmp_path / "dump-1").write_bytes(b"an old one of a rank that nobody could ask")
        found = taken(tmp_path, {0: answers.pid, 1: silent.pid})
    finally:
        answers.end()
        silent.end()
    assert found[0].recorded is not None
    assert found[0].recorded.newest[-1].sequence == 3
    assert found[1].recorded is None
