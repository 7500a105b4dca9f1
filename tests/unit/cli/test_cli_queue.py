"""set, why, arrays and what `orch plan` says of time: what is asked of the controller, and what is printed of its answer."""

from __future__ import annotations

import json

import pytest

WAITS = {
    "since": "2026-11-23T10:00:00Z",
    "seconds": 75.0,
    "position": 2,
    "reasons": [
        {"kind": "shape", "text": "the cluster has room for 6 of 8 workers", "numbers": {"room": 6}},
        {"kind": "age", "text": "1 run has waited longer", "numbers": {}},
    ],
    "ahead": [{"id": 41, "name": "first", "priority": 0, "user": "ana"}],
    "ahead_count": 1,
    "start": "2026-11-23T12:00:00Z",
    "sure": "expected",
    "choice": None,
    "suggestions": [
        {"text": "with 1x6 workers it starts now, within one node", "changes": {"workers": "1x6"}, "ends": None}
    ],
}
WHY = {"id": 42, "name": "resnet50", "state": "queued", "reason": "x", "waits": WAITS, "waited": [], "ended": None}
ARRAY = {
    "id": "101[]",
    "name": "sweep",
    "user": "ana",
    "team": None,
    "state": "running",
    "submitted_at": "2026-11-23T10:00:00Z",
    "priority": 0,
    "after": [{"first": 41, "last": 41, "word": "pretrain"}],
    "spec": {"run": "train.py {x}", "name": "sweep"},
    "array": {
        "id": 101,
        "size": 4,
        "first": 101,
        "last": 104,
        "limit": 2,
        "values": {"x": "0..3"},
        "states": {"running": 2, "queued": 2},
    },
}


def test_set_sends_what_is_to_change_and_says_who_asks(orch, stub):
    stub.answers["POST /runs/42/set"] = (200, {"id": 42, "name": "resnet50", "state": "queued"})
    done = orch("set", "42", "priority=5", "near=leaf!")
    assert (done.returncode, done.stdout) == (0, "42\tresnet50\tqueued\n")
    call, query, body = stub.asked[-1]
    assert (call, body) == ("POST /runs/42/set", {"changes": {"priority": "5", "near": "leaf!"}})
    assert query["by"]


@pytest.mark.parametrize("change", ["priority", "=5", "priority="])
def test_set_wants_a_key_and_a_value(orch, stub, change):
    done = orch("set", "42", change)
    assert (done.returncode, stub.calls()) == (2, [])
    assert "KEY=VALUE" in done.stderr


def test_a_change_that_comes_too_late_is_a_conflict(orch, stub):
    stub.answers["POST /runs/42/set"] = (409, {"error": "run 42 is running: priority ...", "code": 7})
    assert orch("set", "42", "priority=5").returncode == 7


def test_why_tells_every_reason_who_is_ahead_when_it_starts_and_what_would_start_it_now(orch, stub):
    stub.answers["GET /runs/42/why"] = (200, WHY)
    assert orch("why", "42").stdout.splitlines() == [
        "run 42 (resnet50) has waited for 1m15s, at position 2",
        "  1. the cluster has room for 6 of 8 workers",
        "  2. 1 run has waited longer",
        "ahead of it: 41 (first)",
        "should start by about 2026-11-23 12:00:00",
        "what would start it now:",
        "  with 1x6 workers it starts now, within one node",
    ]
    assert json.loads(orch("why", "42", "--json").stdout) == WHY


def test_why_tells_of_a_run_that_has_ended_what_it_waited_for(orch, stub):
    waited = {"attempt": 1, "seconds": 30.0, "reasons": [{"kind": "shape", "text": "no room", "seconds": 30.0}]}
    ended = {"reason": "rank 0 on a ended with exit code 1", "failure": {}, "outcome": "user_error"}
    stub.answers["GET /runs/42/why"] = (
        200,
        WHY | {"state": "failed", "waits": None, "waited": [waited], "ended": ended},
    )
    assert orch("why", "42").stdout.splitlines() == [
        "run 42 (resnet50) has failed: rank 0 on a ended with exit code 1",
        "before attempt 1 it waited 30s:",
        "  30s  no room",
    ]


def test_why_says_whose_fault_the_end_was_which_node_is_suspect_and_shows_the_excerpt(orch, stub):
    failure = {
        "kind": "gpu", "message": "rank 3 on gpu-02 broke with its GPU: Xid 79", "rank": 3, "node": "gpu-02", "cause": "infra",
        "ranks": [3], "suspects": ["gpu-02"], "detail": "NVRM: Xid 79\nmore",
    }  # fmt: skip
    ended = {"reason": failure["message"], "failure": failure, "outcome": "infra_error"}
    stub.answers["GET /runs/42/why"] = (200, WHY | {"state": "failed", "waits": None, "waited": [], "ended": ended})
    assert orch("why", "42").stdout.splitlines() == [
        "run 42 (resnet50) has failed: rank 3 on gpu-02 broke with its GPU: Xid 79",
        "  gpu: a fault of the cluster; suspect: gpu-02",
        "    NVRM: Xid 79",
        "    more",
    ]


def test_an_array_is_one_row_with_its_counts_and_its_id_ends_all_of_it(orch, stub):
    row = ARRAY | {"position": 3, "reason": "no room", "started_at": None, "finished_at": None, "attempts": []}
    stub.answers["GET /runs"] = (200, [row])
    (line,) = orch("ps").stdout.splitlines()
    fields = line.split("\t")
    assert (fields[:4], fields[6:]) == (["101[]", "sweep[]", "ana", "running"], ["2 running, 2 queued", "no room"])
    assert stub.asked[-1][1]["arrays"] == ["1"]
    assert orch("ps", "-o", "name").stdout == "101[]\n"
    stub.answers["POST /runs/101%5B%5D/cancel"] = (200, ARRAY | {"runs": 4})
    assert orch("cancel", "101[]").returncode == 0


def test_an_array_is_shown_with_its_values_and_what_it_follows(orch, stub):
    stub.answers["GET /runs/sweep"] = (200, ARRAY)
    shown = dict(line.split("\t") for line in orch("show", "sweep").stdout.splitlines())
    assert (shown["runs"], shown["values.x"], shown["after"]) == (
        "101 to 104: 2 running, 2 queued",
        "0..3",
        "41 (pretrain)",
    )


def test_the_json_of_an_array_has_the_names_that_a_run_has(orch, stub, a_run):
    parts = {
        "allocated_s": 6.0,
        "starting_s": 1.0,
        "productive_s": 2.0,
        "checkpoint_s": 0.5,
        "lost_s": 0.5,
        "idle_s": 2.0,
    }
    times = {"started_at": "2026-11-23T10:00:05Z", "finished_at": "2026-11-23T10:03:05Z"}

    def answer(handler):
        asked = next((key for key in times if f"columns={key}" in handler.path), None)
        handler.answer(200, [{asked: times[asked]}] if asked else [{"name": "sweep", "runs": 4} | parts])

    stub.answers |= {"GET /runs/sweep": (200, ARRAY), "GET /runs": answer, "GET /runs/101": (200, a_run(id=101))}
    found = json.loads(orch("show", "sweep", "--json").stdout)
    assert found.items() >= ARRAY.items()
    assert a_run().keys() & {
        "id", "name", "user", "team", "state", "reason", "submitted_at", "started_at", "finished_at", "priority", "spec",
        "code", "attempts", "throughput", "gpu_seconds", "events",
    } <= found.keys()  # fmt: skip
    assert (found["started_at"], found["finished_at"]) == (times["started_at"], None)  # some of its runs still run
    assert found["gpu_seconds"] == {name.removesuffix("_s"): value for name, value in parts.items()}
    stub.answers["GET /runs/sweep"] = (200, ARRAY | {"state": "failed"})
    assert json.loads(orch("show", "sweep", "-o", "jsonl").stdout)["finished_at"] == times["finished_at"]


def test_the_logs_of_an_array_are_those_of_one_of_its_runs(orch, stub):
    stub.answers["GET /runs/sweep"] = (200, ARRAY)
    done = orch("logs", "sweep")
    assert (done.returncode, done.stdout) == (2, "")
    assert "sweep is an array of 4 runs: name one of them, such as 'sweep[0]'" in done.stderr


def test_retry_of_an_array_says_how_many_runs_are_queued_again(orch, stub):
    stub.answers["GET /runs/sweep"] = (200, ARRAY)
    stub.answers["POST /runs/101%5B%5D/retry"] = (200, ARRAY | {"runs": 3})
    assert "3 runs are queued again" in orch("retry", "sweep").stderr


@pytest.fixture
def submitted(stub):
    answer = {"id": 101, "name": "sweep", "state": "queued", "notices": []}
    stub.answers["POST /runs"] = (201, answer | {"array": {"id": "101[]", "first": 101, "last": 104}})
    return stub


def test_an_array_is_submitted_as_one_and_printed_as_a_list_of_its_runs(orch, submitted, job):
    job.write_text("run: train.py {x}\nname: sweep\narray: {x: 0..3}\n")
    done = orch("submit", job)
    assert (done.stdout, "4 runs, 101 to 104" in done.stderr) == ("101[]\n", True)
    assert orch("submit", job, "-o", "name").stdout.split() == ["101", "102", "103", "104"]
    assert json.loads(orch("submit", job, "--json").stdout) == [
        {"id": run, "name": "sweep", "state": "queued"} for run in range(101, 105)
    ]


@pytest.mark.parametrize(("states", "code"), [({"succeeded": 4}, 0), ({"succeeded": 3, "failed": 1}, 1)])
def test_waiting_for_an_array_ends_with_its_last_run(orch, submitted, job, states, code):
    job.write_text("run: train.py {x}\nname: sweep\narray: {x: 0..3}\n")
    submitted.answers["GET /runs/101%5B%5D"] = (200, {"array": {"states": states}})
    submitted.answers["GET /runs"] = (200, [{"id": 101 + i, "state": "succeeded"} for i in range(4)])
    done = orch("submit", job, "--wait", "--json")
    assert done.returncode == code
    assert {row["state"] for row in json.loads(done.stdout)} == {"succeeded"}


def test_plan_says_when_it_would_start_whom_it_would_delay_and_who_would_give_way(orch, stub, job):
    stub.answers["POST /runs"] = (
        200,
        {
            "fits_now": False,
            "reason": "the cluster has room for 6 of 8 workers",
            "placement": None,
            "alternatives": [],
            "notices": [],
            "waits": WAITS,
            "delays": [{"id": 50, "name": "later", "before": None, "after": None, "seconds": 600.0}],
            "preempts": [{"id": 7, "name": "low"}],
        },
    )
    shown = orch("plan", job).stdout
    for line in ("should start by about", "would delay run 50 (later) by 10m00s", "would make give way: run 7 (low)"):
        assert line in shown


def test_the_best_runs_of_an_array_are_asked_for_by_what_they_report(orch, stub, a_run):
    stub.answers["GET /runs"] = (200, [a_run(metrics={"loss": 0.125})])
    (line,) = orch("runs", "--array", "sweep", "--best", "1", "--by", "loss").stdout.splitlines()
    assert line.split("\t")[:3] == ["42", "resnet50", "0.125"]
    assert {key: stub.asked[-1][1][key] for key in ("array", "best", "by")} == {
        "array": ["sweep"],
        "best": ["1"],
        "by": ["loss"],
    }
    assert orch("runs", "--best", "1").returncode == 2
