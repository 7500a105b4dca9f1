"""logs: what the ranks printed, once, in order, from the controller or from its files."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from orchestrator.control.backend import LogChunk
from orchestrator.control.logs import LogFolder
from orchestrator.health.failure import Failure
from orchestrator.history.store import Store
from orchestrator.placement.values import NodePlacement, Placement
from orchestrator.scheduling.lifecycle import Event, Outcome
from orchestrator.scheduling.run import NewRun
from orchestrator.spec import JobSpec

LINES = [{"rank": rank, "attempt": 1, "offset": 6, "line": f"hello {rank}"} for rank in (1, 0)]


def test_every_rank_is_prefixed_in_the_order_of_the_controller(orch, stub, a_run, stream):
    stub.answers["GET /runs/42"] = (200, a_run())
    stub.answers["GET /runs/42/logs"] = stream(*LINES)
    assert orch("logs", "42").stdout == "[rank 1] hello 1\n[rank 0] hello 0\n"
    objects = [json.loads(line) for line in orch("logs", "42", "-o", "jsonl").stdout.splitlines()]
    assert objects == LINES
    assert json.loads(orch("logs", "42", "--json").stdout) == LINES


def test_one_rank_has_no_prefix_and_the_options_reach_the_controller(orch, stub, a_run, stream):
    stub.answers["GET /runs/resnet50"] = (200, a_run())
    stub.answers["GET /runs/42/logs"] = stream(LINES[0])
    done = orch("logs", "resnet50", "--rank", "1", "--attempt", "1", "--since", "5m", "-f")
    assert done.stdout == "hello 1\n"
    assert stub.asked[-1][1] == {"rank": ["1"], "attempt": ["1"], "since": ["300.0"], "follow": ["1"]}


def test_what_nccl_said_is_asked_for_by_its_own_option(orch, stub, a_run, stream):
    stub.answers["GET /runs/42"] = (200, a_run())
    stub.answers["GET /runs/42/logs"] = stream({"rank": 0, "attempt": 1, "offset": 9, "line": "h:1:1 [0] NCCL INFO x"})
    assert orch("logs", "42", "--nccl").stdout == "[rank 0] h:1:1 [0] NCCL INFO x\n"
    assert stub.asked[-1][1]["nccl"] == ["1"]
    assert orch("logs", "42", "--nccl", "-f").returncode == 2


def test_a_notice_is_told_once_and_not_among_the_lines(orch, stub, a_run, stream):
    notice = {"notice": "transport worse than planned, because NCCL_P2P_DISABLE is set"}
    stub.answers["GET /runs/42"] = (200, a_run())
    stub.answers["GET /runs/42/logs"] = stream(notice, LINES[0], notice)
    done = orch("logs", "42", "-f")
    assert done.stdout == "[rank 1] hello 1\n"
    assert done.stderr.count(notice["notice"]) == 1


@pytest.mark.parametrize(("option", "value"), [("--rank", "2"), ("--attempt", "2")])
def test_what_the_run_does_not_have_is_exit_3(orch, stub, a_run, option, value):
    stub.answers["GET /runs/42"] = (200, a_run())
    done = orch("logs", "42", option, value)
    assert (done.returncode, done.stdout) == (3, "")


def test_a_run_that_waits_has_printed_nothing_and_says_why(orch, stub, a_run, stream):
    stub.answers["GET /runs/42"] = (200, a_run(state="queued", reason="waits for 2 GPUs", attempts=[]))
    stub.answers["GET /runs/42/logs"] = stream()
    done = orch("logs", "42")
    assert (done.returncode, done.stdout) == (0, "")
    assert "waits for 2 GPUs" in done.stderr


def test_logs_that_break_off_are_taken_up_where_they_were(orch, stub, a_run, stream):
    asked = []

    def answer(handler):
        asked.append(stub.asked[-1][1].get("from"))
        stream(*LINES[len(asked) - 1 : len(asked)], broken=len(asked) == 1)(handler)

    stub.answers["GET /runs/42"] = (200, a_run())
    stub.answers["GET /runs/42/logs"] = answer
    assert orch("logs", "42").stdout == "[rank 1] hello 1\n[rank 0] hello 0\n"
    assert asked == [None, ["1:1:6"]]


@pytest.fixture
def history(orch):
    """A run that failed at rank 1, in a database and log files without a controller."""
    home = orch.home
    home.mkdir(mode=0o700)
    now = datetime(2026, 11, 23, 10, tzinfo=UTC)
    spec = JobSpec.model_validate({"name": "digits", "run": "train.py", "workers": "1x2", "tags": {"sweep": "a"}})
    placement = Placement("cpu", "node", (NodePlacement("gpu-01", (0, 1), (0, 1)),))
    with Store.open(f"sqlite:///{home / 'orch.db'}") as store:
        store.claim_epoch("a test", now)
        run, _ = store.submit(NewRun(spec, "ana", None, "/project"), now)
        store.place(run.id, placement, now)
        store.record(run.id, Event.STARTED, now)
        failure = Failure("exit", "exit code 3", rank=1, node="gpu-01")
        store.finish(run.id, Event.FAILED, Outcome.USER_ERROR, now, failure=failure, exit_codes={0: 0, 1: 3})
    logs = LogFolder(home / "logs")
    for rank in (0, 1):
        logs.write(LogChunk(run.id, 1, rank, 0, f"hello {rank}\nunfinished".encode(), now.timestamp()))
    return run.id


def test_without_a_controller_history_and_logs_are_read_from_its_files(orch, history):
    done = orch("logs", "digits")
    assert done.stdout == "".join(f"[rank {rank}] hello {rank}\n[rank {rank}] unfinished\n" for rank in (1, 0))
    assert "no controller is running" in done.stderr
    assert orch("logs", str(history), "--rank", "0").stdout == "hello 0\nunfinished\n"
    shown = json.loads(orch("show", "digits", "--json").stdout)
    assert shown["attempts"][0]["failure"]["rank"] == 1
    listed = orch("runs", "--state", "failed", "--tag", "sweep=a", "-o", "name")
    assert (listed.stdout, listed.returncode) == (f"{history}\n", 0)
    assert "no controller is running" in listed.stderr
    assert orch("runs", "--tag", "sweep=b").stdout == ""
    assert orch("ps", "-o", "name").stdout == ""
    assert orch("ps", "--all").stderr.count("no controller is running") == 1


def test_without_a_controller_an_unknown_run_is_still_exit_3(orch, history):
    assert orch("show", "nope").returncode == 3


def test_without_a_controller_nothing_can_be_cancelled(orch, history):
    assert orch("cancel", str(history)).returncode == 6
