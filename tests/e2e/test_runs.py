"""Runs from `orch submit` to their end: success, failure, code that travels, ports, cancelling, and long logs."""

from __future__ import annotations

import re
import time

import pytest
from orch_home import until

pytestmark = pytest.mark.ray

HELLO = """
import os
print(f"hello from {os.environ['RANK']} of {os.environ['WORLD_SIZE']}")
"""

FAILS_ON_RANK_1 = """
import os, pathlib, time
print("begun", flush=True)
pathlib.Path(f"begun-{os.environ['RANK']}").touch()
if os.environ["RANK"] == "1":
    # Not before the others have spoken: they are stopped as soon as this one fails.
    while not all(pathlib.Path(f"begun-{rank}").exists() for rank in (0, 2)):
        time.sleep(0.01)
    raise ValueError("the batch has 0 samples")
time.sleep(600)
"""

SUM_OVER_RANKS = """
import os, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([float(dist.get_rank() + 1)])
dist.all_reduce(total)
print(os.environ["MASTER_PORT"], int(total))
dist.destroy_process_group()
"""

SAVES_ON_SIGTERM = """
import signal, sys, time
def save(*_):
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
while True:
    time.sleep(1)
"""

IGNORES_SIGTERM = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
# A daemon with a session of its own, and one that has lost its parent as well.
endless = [sys.executable, "-c", "import time; time.sleep(600)"]
subprocess.Popen(endless, start_new_session=True)
orphan = "import subprocess, sys; subprocess.Popen(sys.argv[1:], start_new_session=True)"
subprocess.run([sys.executable, "-c", orphan, *endless], start_new_session=True)
print("ready", flush=True)
while True:
    time.sleep(1)
"""

RUNS_AWAY = """
print("the first line")
for number in range(20_000):
    print(f"line {number}")
print("the last line")
"""

FIVE_LINES = """
import pathlib, sys, time
gate = pathlib.Path(sys.argv[1])
print("early", flush=True)
while not gate.exists():
    time.sleep(0.02)
for number in range(5):
    print(f"late {number}", flush=True)
"""


def test_wait_ends_with_0_when_every_rank_has_ended_well(home, job):
    run = home.submit(job(HELLO, workers=2), "--wait")
    assert home.logs(run) == ["[rank 0] hello from 0 of 2", "[rank 1] hello from 1 of 2"]
    found = home.show(run)
    assert (found["state"], found["name"], found["attempts"][0]["exit_codes"]) == (
        "succeeded",
        "train",
        {"0": 0, "1": 0},
    )


def test_a_failing_rank_is_named_with_its_node_and_last_line_and_its_log_comes_first(home, job):
    run = home.submit(job(FAILS_ON_RANK_1, workers=3), "--wait", code=1)
    found = home.show(run)
    (attempt,) = found["attempts"]
    failure = attempt["failure"]
    assert (found["state"], attempt["outcome"]) == ("failed", "user_error")
    assert (failure["kind"], failure["cause"], failure["rank"], failure["ranks"]) == ("python", "user", 1, [1])
    assert failure["detail"].endswith("ValueError: the batch has 0 samples")
    assert failure["node"] == attempt["placement"]["nodes"][0]["node"]
    assert "ValueError: the batch has 0 samples" in failure["message"]
    assert attempt["exit_codes"] == {"0": -15, "1": 1, "2": -15}
    lines = home.logs(run)
    assert lines[0] == "[rank 1] begun"
    assert lines[-2:] == ["[rank 0] begun", "[rank 2] begun"]
    assert home.ranks(run) == {}


def test_what_runs_is_the_code_as_it_was_at_submission(home, job, waiting_job, gate):
    everything = home.submit(waiting_job(workers=12))
    path = job("import helper; print(helper.version)")
    helper = path.parent / "helper.py"
    helper.write_text("version = 'as submitted'")
    waits = home.submit(path)
    assert home.show(waits)["state"] == "queued"
    path.with_suffix(".py").write_text("print('edited since')")
    helper.unlink()
    gate.touch()
    home.end(everything)
    home.end(waits)
    assert home.logs(waits) == ["as submitted"]


def test_the_rendezvous_ports_of_twenty_gangs_at_once_never_clash(home, job):
    path = job(SUM_OVER_RANKS, workers=2)
    clients = [home.popen("submit", path, "--wait") for _ in range(20)]
    said = [client.communicate(timeout=240) for client in clients]
    assert [err for client, (_, err) in zip(clients, said, strict=True) if client.returncode] == []
    runs = [int(out) for out, _ in said]
    ports = set()
    for run in runs[:3]:
        first, second = home.logs(run)
        port, total = first.removeprefix("[rank 0] ").split()
        assert (second, total) == (f"[rank 1] {port} 3", "3")
        ports.add(port)
    assert len(ports) == 3


def test_a_run_that_waits_is_cancelled_at_once(home, job, waiting_job, gate):
    everything = home.submit(waiting_job(workers=12))
    waits = home.submit(job(HELLO))
    assert home("cancel", waits).stdout.split("\t")[2].strip() == "cancelled"
    found = home.show(waits)
    assert (found["state"], found["attempts"]) == ("cancelled", [])
    gate.touch()
    home.end(everything)


def test_cancel_lets_a_script_that_catches_sigterm_end_by_itself(home, job):
    run = home.submit(job(SAVES_ON_SIGTERM, workers=2))
    home.prints(run, "ready", ranks=2)
    home("cancel", run)
    found = home.end(run, "cancelled")
    assert found["attempts"][0]["outcome"] == "cancelled"
    assert found["attempts"][0]["exit_codes"] == {"0": 0, "1": 0}
    assert home.logs(run, "--rank", 1) == ["ready", "saved"]


def test_a_script_that_ignores_sigterm_is_killed_after_its_grace_with_all_that_it_started(home, job):
    run = home.submit(job(IGNORES_SIGTERM, grace="1s"))
    home.prints(run, "ready")
    until(lambda: len(home.ranks(run)) == 3, 10, "the rank and its two daemons carry the mark")
    began = time.monotonic()
    home("cancel", run)
    found = home.end(run, "cancelled")
    assert time.monotonic() - began > 0.9
    assert found["attempts"][0]["exit_codes"] == {"0": -9}
    assert home.ranks(run) == {}


def test_of_a_log_that_outgrows_its_limit_the_head_and_the_tail_are_kept_with_a_notice_between(home, job):
    run = home.submit(job(RUNS_AWAY), "--wait")
    lines = home.logs(run)
    assert lines[0] == "the first line"
    assert lines[-1] == "the last line"
    assert sum(len(line) + 1 for line in lines) < 3 * (64 << 10)
    notice = next(number for number, line in enumerate(lines) if line.startswith("[orch]"))
    numbers = [int(line.split()[1]) for line in lines[1:-1] if re.fullmatch(r"line \d+", line)]
    assert numbers[: notice - 2] == list(range(notice - 2))
    assert numbers[-1] == 19_999
    assert len(numbers) < 19_999


def test_logs_are_followed_to_the_end_by_rank_and_by_time(home, job, gate):
    run = home.submit(job(FIVE_LINES, arguments=gate, workers=2))
    home.prints(run, "early", ranks=2)
    with home.popen("logs", run, "-f", "--rank", 1) as follower:
        assert follower.stdout.readline() == "early\n"
        # --since looks at when a line was read, by the second: the early lines must be older than what it asks for.
        early = time.monotonic()
        until(lambda: time.monotonic() - early > 2.5, 10, "the early lines are old")
        gate.touch()
        assert follower.stdout.read().splitlines() == [f"late {number}" for number in range(5)]
        assert follower.wait(10) == 0
    late = {f"[rank {rank}] late {number}" for rank in (0, 1) for number in range(5)}
    assert set(home.logs(run, "--since", f"{time.monotonic() - early - 1.25:.2f}s")) == late
    rows = home.json("logs", run, "--rank", 0)
    assert [(row["rank"], row["attempt"], row["line"]) for row in rows[:2]] == [(0, 1, "early"), (0, 1, "late 0")]
