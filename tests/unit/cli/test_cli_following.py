"""submit with --wait and --follow: what is shown of a run until its end, and which exit code that gives."""

from __future__ import annotations

import json
import threading

import pytest

QUEUED = {"state": "queued", "position": 1, "reason": "waits for 2 GPUs"}


@pytest.mark.parametrize(("state", "code"), [("succeeded", 0), ("failed", 1), ("cancelled", 1)])
def test_wait_is_silent_and_ends_by_the_runs_end(orch, stub, job, a_run, stream, state, code):
    lines = [{"rank": 0, "attempt": 1, "offset": 6, "line": "hello"}]
    stub.answers["GET /runs/42/follow"] = stream(QUEUED, None, *lines, {"end": a_run(state=state)})
    done = orch("submit", job, "--wait")
    assert (done.returncode, done.stdout) == (code, "42\n")
    assert "hello" not in done.stderr
    again = orch("submit", job, "--wait", "--json")
    assert (again.returncode, json.loads(again.stdout)["state"]) == (code, state)


def test_follow_shows_the_queue_then_the_logs_then_the_end(orch, stub, job, a_run, stream):
    failure = {"kind": "exit", "rank": 1, "node": "gpu-01", "message": "exit code 3"}
    attempt = a_run()["attempts"][0] | {"failure": failure, "outcome": "user_error"}
    stub.answers["GET /runs/42/follow"] = stream(
        QUEUED,
        QUEUED,
        {"progress": "1 of 2 ranks started"},
        {"rank": 0, "attempt": 1, "offset": 6, "line": "hello"},
        {"rank": 1, "attempt": 1, "offset": 6, "line": "\x1b[32mhello\x1b[0m"},
        {"notice": "NET/Socket, not NET/IB"},
        {"end": a_run(state="failed", attempts=[attempt])},
    )
    done = orch("submit", job, "--follow")
    assert done.returncode == 1
    assert done.stdout == "42\n[rank 0] hello\n[rank 1] hello\n", "no colours into a pipe: `logs --raw` has them"
    said = done.stderr.splitlines()
    assert said.count("queued, position 1: waits for 2 GPUs") == 1
    assert "1 of 2 ranks started" in said
    assert "NET/Socket, not NET/IB" in said
    assert said[-1].endswith("run 42 (resnet50) failed after 3m00s: rank 1 on gpu-01: exit code 3")


def test_a_single_rank_has_no_prefix(orch, stub, job, a_run, stream):
    job.write_text("run: train.py\n")
    line = {"rank": 0, "attempt": 1, "offset": 6, "line": "hello"}
    stub.answers["GET /runs/42/follow"] = stream(line, {"end": a_run()})
    assert orch("submit", job, "--follow").stdout == "42\nhello\n"


def test_follow_with_json_keeps_stdout_one_object(orch, stub, job, a_run, stream):
    line = {"rank": 0, "attempt": 1, "offset": 6, "line": "hello"}
    stub.answers["GET /runs/42/follow"] = stream(line, {"end": a_run()})
    done = orch("submit", job, "--follow", "--json")
    assert json.loads(done.stdout)["state"] == "succeeded"
    assert "[rank 0] hello" in done.stderr


def test_a_follower_outlives_the_controller_and_repeats_nothing(orch, stub, job, a_run, stream):
    """The stream breaks after two lines; the next one is asked for what comes after them, at another port."""
    lines = [{"rank": rank, "attempt": 1, "offset": 6 * n, "line": f"line {n}"} for n in (1, 2, 3) for rank in (0, 1)]
    asked = []

    def answer(handler):
        asked.append(stub.asked[-1][1])
        if len(asked) == 1:
            stream(*lines[:3], broken=True)(handler)
            (stub.home / "controller.json").unlink()
        else:
            stream(*lines[3:], {"end": a_run()})(handler)

    stub.answers["GET /runs/42/follow"] = answer
    stop = threading.Event()

    def restart():
        while not stop.is_set():
            if asked and not (stub.home / "controller.json").exists():
                stub.stop()
                stub.start()
                return
            stop.wait(0.05)

    thread = threading.Thread(target=restart)
    thread.start()
    try:
        done = orch("submit", job, "--follow")
    finally:
        stop.set()
        thread.join()
    assert done.returncode == 0
    assert done.stdout.splitlines()[1:] == [f"[rank {r}] line {n}" for n in (1, 2, 3) for r in (0, 1)]
    assert asked == [{}, {"from": ["1:0:12,1:1:6"]}]
    assert "looking for the controller again" in done.stderr


def test_waiting_has_an_end_where_one_is_asked_for(orch, stub, job):
    def answer(handler):
        handler.begin()
        handler.tell(QUEUED)
        try:
            while True:
                handler.tell(None)
                stub.idle.wait(0.05)
        except OSError:
            handler.close_connection = True

    stub.idle = threading.Event()
    stub.answers["GET /runs/42/follow"] = answer
    done = orch("submit", job, "--wait", "--timeout", "1s")
    assert done.returncode == 124
    assert "orch cancel 42" in done.stderr
    assert orch("submit", job, "--timeout", "1s").returncode == 2
