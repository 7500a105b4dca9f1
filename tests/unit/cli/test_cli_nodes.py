"""nodes, drain and undrain: what is asked of the controller, and what is printed of its answer."""

from __future__ import annotations

import json

import pytest

FINDING = {
    "what": "nvlink",
    "severity": "degraded",
    "text": "GPU 3 has 17 NVLinks up",
    "fix": "reset it",
    "numbers": {},
}
NODE = {
    "node": "gpu-07", "address": "10.0.0.7", "state": "up", "device": "cuda", "total": 8, "busy": 2, "runs": [42],
    "gpus": [{"index": 0, "model": "H100"}], "versions": {"driver": "580.1"}, "note": None, "health": "degraded",
    "findings": [FINDING], "drained": None, "quarantine": None,
    "score": {"attempts": 9, "failures": 1.5, "expected": 0.25, "chance": 0.04},
}  # fmt: skip
DRAINED = {"at": "2026-11-26T10:00:00Z", "by": "ana", "reason": "new cables", "when_idle": False}
EVENT = {"at": "2026-11-26T10:00:00Z", "node": "gpu-07", "what": "drained", "by": "ana", "reason": "new cables"}


def answer(**changes: object) -> dict[str, object]:
    return {"node": "gpu-07", "already": False, "runs": [42], "drained": DRAINED, "quarantine": None} | changes


def test_a_list_says_why_a_node_is_out_or_else_the_worst_that_is_wrong(orch, stub):
    note = "drained by ana: new cables"
    stub.answers["GET /nodes"] = (200, [NODE, NODE | {"node": "gpu-08", "note": note, "health": None, "findings": []}])
    lines = orch("nodes").stdout.splitlines()
    assert lines == [
        "gpu-07\tup\t10.0.0.7\tcuda\t2\t8\t42\tdegraded\tGPU 3 has 17 NVLinks up",
        f"gpu-08\tup\t10.0.0.7\tcuda\t2\t8\t42\t\t{note}",
    ]
    assert json.loads(orch("nodes", "--json").stdout)[0]["findings"] == [FINDING]


def test_one_node_is_shown_whole_with_how_to_mend_it_and_its_history(orch, stub):
    stub.answers["GET /nodes"] = (200, [NODE])
    stub.answers["GET /node_events"] = (200, [EVENT])
    shown = orch("nodes", "gpu-07").stdout
    assert "broke\t1.5 of 9 attempts in 7 days; 0.25 are expected\n" in shown
    assert "degraded: GPU 3 has 17 NVLinks up\n    reset it\n" in shown
    assert shown.endswith("2026-11-26T10:00:00Z\tgpu-07\tdrained\tana\tnew cables\n")
    assert [(call, query) for call, query, _ in stub.asked] == [
        ("GET /nodes", {"node": ["gpu-07"]}),
        ("GET /node_events", {"node": ["gpu-07"], "limit": ["10"]}),
    ]


def test_a_node_that_there_is_not_is_exit_3(orch, stub):
    stub.answers["GET /nodes"] = (404, {"error": "no such node: x", "code": 3})
    assert orch("nodes", "x").returncode == 3


def test_the_history_is_of_all_nodes_or_of_those_that_are_named(orch, stub):
    stub.answers["GET /node_events"] = (200, [EVENT])
    assert json.loads(orch("nodes", "--history", "--json").stdout) == [EVENT]
    orch("nodes", "--history", "a", "b", "--limit", "5")
    assert stub.asked[-1][1] == {"node": ["a", "b"], "limit": ["5"]}


@pytest.mark.parametrize(
    ("when_idle", "runs", "said"),
    [
        (False, [42], "gpu-07: run 42 gives way and is queued again\n"),
        (False, [42, 43], "gpu-07: runs 42, 43 give way and are queued again\n"),
        (True, [42], "gpu-07: run 42 may end there by itself\n"),
        (True, [42, 43], "gpu-07: runs 42, 43 may end there by themselves\n"),
        (False, [], ""),
    ],
)
def test_drain_says_who_asks_and_what_becomes_of_the_runs_there(orch, stub, when_idle, runs, said):
    drained = DRAINED | {"when_idle": when_idle}
    stub.answers["POST /nodes/drain"] = (200, [answer(runs=runs, drained=drained)])
    done = orch("drain", "gpu-07", "--reason", "new cables", *(["--when-idle"] if when_idle else []))
    assert (done.returncode, done.stderr) == (0, said)
    assert done.stdout == f"gpu-07\ttrue\t{','.join(map(str, runs))}\n"
    call, query, body = stub.asked[-1]
    assert (call, body) == (
        "POST /nodes/drain",
        {"nodes": ["gpu-07"], "reason": "new cables", "when_idle": when_idle},
    )
    assert query["by"]


def test_drain_again_says_that_nothing_was_changed(orch, stub):
    stub.answers["POST /nodes/drain"] = (200, [answer(already=True, runs=[])])
    done = orch("drain", "gpu-07", "-o", "name")
    assert (done.stdout, done.stderr) == ("gpu-07\n", "gpu-07 was drained already\n")


def test_undrain_names_what_it_found_as_it_should_be(orch, stub):
    stub.answers["POST /nodes/undrain"] = (200, [answer(drained=None), answer(node="b", drained=None, already=True)])
    done = orch("undrain", "gpu-07", "b")
    assert done.stdout == "gpu-07\tfalse\t42\nb\tfalse\t42\n"
    assert done.stderr == "b was not drained, and nothing else was held against it\n"
    assert stub.asked[-1][2] == {"nodes": ["gpu-07", "b"]}


@pytest.mark.parametrize("reason", ["a\nb", "x" * 501, "\x1b[31mred"])
def test_a_reason_is_one_line_that_can_be_shown(orch, stub, reason):
    done = orch("drain", "gpu-07", "--reason", reason)
    assert (done.returncode, stub.calls()) == (2, [])
    assert "--reason: one line" in done.stderr


def test_a_node_that_is_not_in_the_cluster_is_exit_3(orch, stub):
    stub.answers["POST /nodes/drain"] = (404, {"error": "no such node: gpu-99", "code": 3})
    done = orch("drain", "gpu-99")
    assert (done.returncode, done.stderr) == (3, "Error: no such node: gpu-99\n")


def test_the_shell_completes_nodes(orch, stub):
    stub.answers["GET /nodes"] = (200, [NODE, NODE | {"node": "cpu-1", "note": "drained by ana"}])
    assert orch.complete("orch drain g") == ["gpu-07"]
    assert orch.complete("orch undrain ") == ["gpu-07", "cpu-1"]
    assert orch.complete("orch nodes cpu-1 g") == ["gpu-07"]
