"""Faults of ranks on several hosts, and runs that find no room: rows 1, 2, 5, 20, 21, 22. No host is harmed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from hosts import wait_until
from invariants import one_writer
from orchlab import SLEEPS, Orch
from rows import fault, representative

pytestmark = [pytest.mark.lab, pytest.mark.ray, pytest.mark.torch, pytest.mark.timeout(150)]

RAISES = """
import os, pathlib, time, torch, torch.distributed as dist
dist.init_process_group("gloo")
dist.barrier()
if os.environ["RANK"] == "1":
    pathlib.Path(os.environ["SHARED"], "raised").write_text(str(time.monotonic()))
    raise ValueError("no such layer")
dist.all_reduce(torch.zeros(1))
"""

LEAKS = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("started a child", flush=True)
time.sleep(600)
"""

LIMIT_MIB = 200
GROWS = """
import os, pathlib, time
print("small", flush=True)
while not pathlib.Path(os.environ["SHARED"], "grow").exists():
    time.sleep(0.1)
held = []
while os.environ["RANK"] == "2":
    held.append(bytearray(4 << 20))
    time.sleep(0.05)  # slowly: whoever watches it looks once a second
time.sleep(600)
"""


@representative
@fault(1)
def test_a_killed_rank_is_named_its_peers_end_and_the_run_goes_on_from_its_checkpoint(orch: Orch, measured) -> None:
    run = orch.trains("3x2", 6)
    os.kill(orch.rank_pid(run, 3), signal.SIGKILL)
    measured.injected()
    wait_until(lambda: not orch.of_attempt(run, 1), 5, "its peers end")
    attempt = orch.wait_ended(run)
    measured.detected()
    assert attempt.failure is not None
    assert (attempt.failure.kind, attempt.failure.rank, attempt.failure.cause) == ("signal", 3, "infra")
    assert "SIGKILL" in attempt.failure.message
    orch.goes_on(run, 6, measured)


@representative
@fault(2)
def test_an_exception_is_told_by_the_rank_that_raised_it_and_not_tried_again(orch: Orch, measured) -> None:
    run = orch.submit(RAISES, "2x2", "--wait", code=1, job=f"env: {{SHARED: {orch.lab.shared}}}")
    measured.injected(float((orch.lab.shared / "raised").read_text()))
    measured.detected()
    found = orch.recorded(run)
    assert [one.outcome for one in found.attempts] == ["user_error"]
    failure = found.attempts[0].failure
    assert failure is not None
    assert (failure.kind, failure.rank) == ("python", 1)
    assert "no such layer" in failure.message
    assert failure.detail is not None
    assert 'raise ValueError("no such layer")' in failure.detail


@fault(5)
def test_what_a_rank_leaves_behind_in_a_session_of_its_own_is_gone_after_15_s(orch: Orch, measured) -> None:
    run = orch.begins(LEAKS, "3x1", "started a child", 3)
    assert len(orch.marked()) == 6
    os.kill(orch.rank_pid(run, 1), signal.SIGKILL)
    measured.injected()
    wait_until(lambda: not orch.of_attempt(run, 1), 15, "nothing is left")
    measured.recovered()
    orch("cancel", run, code=None)
    wait_until(lambda: orch.recorded(run).ended, 20, "the run has ended")


@fault(20)
def test_a_job_larger_than_the_cluster_is_refused_and_one_that_finds_no_room_says_what_is_short(orch: Orch) -> None:
    orch.write_job(SLEEPS, "4x2")
    never = orch.ask("submit", "work/job.yaml")
    assert (never.returncode, never.stdout) == (5, "")
    assert "never" in never.stderr
    first = orch.begins(SLEEPS, "2x2", "asleep", 4)
    waits = orch.submit(SLEEPS, "2x2")
    wait_until(lambda: orch.show(waits)["reason"], 10, "it is said why it waits")
    assert "2 of 4" in orch.show(waits)["reason"]
    assert "asleep" not in orch("logs", waits, code=None)
    for run in (waits, first):
        orch("cancel", run)
        wait_until(lambda run=run: orch.recorded(run).ended, 20, "it has ended")


@fault(22)
@pytest.mark.parametrize("obeys", [True, False], ids=["SIGTERM ends it", "it ignores SIGTERM"])
def test_a_run_that_gives_way_has_its_grace_and_goes_on_from_its_checkpoint(orch: Orch, measured, obeys: bool) -> None:
    grace_s = 4
    environ = "" if obeys else ", DEAF: '1'"
    run = orch.trains("3x2", 6, environ=environ, job=f"grace: {grace_s}s")
    # It has run for as long as a run may before it gives way.
    high = orch.submit(SLEEPS, "3x2", "--set", "priority=100")
    wait_until(lambda: orch.recorded(run).state == "stopping", 15, "it is told to give way")
    began = time.monotonic()
    attempt = orch.wait_ended(run)
    took = time.monotonic() - began
    measured.note(f"gone {took:.1f} s after SIGTERM, its grace {grace_s} s")
    assert attempt.outcome == "preempted"
    assert took < grace_s + 2 if obeys else grace_s - 1 < took < grace_s + 2
    wait_until(lambda: orch("logs", high, code=None).count("asleep") == 6, 20, "the other runs", every=0.3)
    orch("cancel", high)
    orch.wait_trained(run, 2, 6)
    one_writer(orch.steps(run))
    assert len(orch.let_end(run).attempts) == 2


@fault(21)
def test_a_rank_that_runs_out_of_memory_is_said_to_have_and_is_not_tried_again(orch: Orch, measured) -> None:
    limit = Path("/sys/fs/cgroup/memory") / f"orch-fault-{os.getpid()}"
    try:
        limit.mkdir()
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    try:
        run = orch.begins(GROWS, "2x2", "small", 4, job=f"env: {{SHARED: {orch.lab.shared}}}")
        (limit / "memory.limit_in_bytes").write_text(str(LIMIT_MIB << 20))
        (limit / "cgroup.procs").write_text(str(orch.rank_pid(run, 2)))
        (orch.lab.shared / "grow").touch()
        measured.injected()
        failure = orch.wait_ended(run, timeout=60).failure
        measured.detected()
        assert failure is not None
        assert (failure.kind, failure.rank) == ("oom", 2)
        assert f"of {LIMIT_MIB / 1024:.1f} GiB" in failure.message
        assert orch.recorded(run).state == "failed"
        wait_until(lambda: not orch.of_attempt(run, 1), 15, "nothing is left")
    finally:
        wait_until(lambda: not (limit / "cgroup.procs").read_text(), 20, "the cgroup is empty")
        limit.rmdir()
