"""`orch doctor` over the nodes, and the versions that `orch show` prints."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from cli.matrix import _print
from orchestrator.health.facts import Adapter, Interpreter, NodeFacts
from orchestrator.health.matrix import matrix, to_json
from orchestrator.health.recorded import record
from orchestrator.jobfile import parse_job

OWN = Interpreter("/opt/python", "3.12.3", "2.11.0+cu130", "13.0", "9.19.0", "2.28.9", "2.28.9")
GOOD = NodeFacts(
    "gpu-01",
    driver="580.1",
    gpus=("NVIDIA H100",) * 8,
    adapters=(Adapter("mlx5_0", 400.0, "28.39"),),
    hostname="h1",
    boot_id="1",
).with_interpreter(OWN)


def nodes(count: int) -> list[NodeFacts]:
    return [replace(GOOD, node=f"gpu-{i:02}", hostname=f"h{i}") for i in range(1, count + 1)]


def answer(facts: list[NodeFacts], pending: tuple[str, ...] = (), **absent: str) -> dict[str, Any]:
    return {"python": None, "pending": list(pending), "absent": absent} | to_json(matrix(facts))


def test_nodes_that_agree_end_with_0_and_the_json_is_whole(stub, orch) -> None:
    stub.answers["GET /doctor"] = (200, answer(nodes(2)))
    done = orch("doctor", "--json")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert (found["source"], found["drift"], found["findings"]) == ("cluster", [], [])
    assert [facts["nccl_loaded"] for facts in found["nodes"]] == ["2.28.9", "2.28.9"]
    assert stub.asked[-1][1] == {}


def test_an_error_ends_with_1_and_a_pipe_gets_a_line_for_each_value_and_finding(stub, orch) -> None:
    stub.answers["GET /doctor"] = (200, answer([*nodes(9), replace(GOOD, node="gpu-10", driver="550.54")]))
    done = orch("doctor", "--python", "/venv/bin/python")
    assert done.returncode == 1
    assert "driver\t580.1\t9\tgpu-[01-09]\ndriver\t550.54\t1\tgpu-10\n" in done.stdout
    assert "error\tgpu-10\tdriver 550.54 is older than 580" in done.stdout
    assert stub.asked[-1][1] == {"python": ["/venv/bin/python"]}
    rows = orch("doctor", "-o", "csv").stdout.splitlines()
    assert rows[0] == "component,value,count,nodes"


def test_nodes_that_are_asked_still_are_waited_for_and_those_that_are_down_are_named(stub, orch) -> None:
    answers = [answer([], ("gpu-01",)), answer(nodes(1), (), **{"gpu-02": "left the cluster"})]
    stub.answers["GET /doctor"] = lambda handler: handler.answer(200, answers.pop(0))
    done = orch("doctor")
    assert done.returncode == 0
    assert done.stderr == "asking gpu-01 for the versions of orch's own python ...\ngpu-02: left the cluster\n"


def test_where_no_node_answers_there_is_no_matrix(stub, orch) -> None:
    stub.answers["GET /doctor"] = (200, answer([], (), a="its agent does not answer"))
    done = orch("doctor")
    assert (done.returncode, done.stdout) == (6, "")


def test_an_unknown_node_is_3(stub, orch) -> None:
    stub.answers["GET /doctor"] = (404, {"error": "no such node: 'x'", "code": 3})
    done = orch("doctor", "--node", "x")
    assert (done.returncode, done.stderr) == (3, "Error: no such node: 'x'\n")


def test_without_a_controller_it_looks_at_this_machine_and_says_so(orch) -> None:
    done = orch("doctor", "--json")
    assert "This is what this machine alone has" in done.stderr
    found = json.loads(done.stdout)
    assert (found["source"], len(found["nodes"])) == ("this machine", 1)
    assert found["nodes"][0]["python_version"]
    assert done.returncode == any(one["severity"] == "error" for one in found["findings"])
    assert orch("doctor", "--node", "gpu-01").returncode == 6


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--python", "venv/bin/python"], "give an absolute path"),
        (["some.log"], "are named with --nccl-log some.log"),
        (["--nccl-log", "some.log", "--node", "a"], "--node and --python have no part"),
        (["-o", "name"], "-o name has no form for it"),
    ],
)
def test_wrong_usage_is_a_sentence_and_2(orch, arguments, sentence) -> None:
    (orch.home.parent / "some.log").touch()
    done = orch("doctor", *arguments)
    assert done.returncode == 2
    assert sentence in done.stderr


def on_terminal(facts: list[NodeFacts], capsys, monkeypatch) -> list[str]:
    monkeypatch.setenv("NO_COLOR", "1")
    _print({"source": "cluster"} | answer(facts), whole=len(facts) == 1)
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_a_thousand_nodes_fit_a_screen_with_drift_marked(capsys, monkeypatch) -> None:
    drivers = ["580.1"] * 992 + [f"580.{i}" for i in range(2, 10)]
    facts = [replace(GOOD, node=f"gpu-{i:04}", hostname=f"h{i}", driver=driver) for i, driver in enumerate(drivers)]
    shown = on_terminal(facts, capsys, monkeypatch)
    assert len(shown) <= 45
    (driver,) = [line for line in shown if line.startswith("! driver")]
    assert driver.split(None, 2)[2].startswith("580.1   992 nodes: gpu-[0000-0991]")
    assert any(line.strip().startswith("4 more values on 4 nodes: --json has them") for line in shown)


def test_one_node_is_shown_with_all_its_facts(capsys, monkeypatch) -> None:
    shown = on_terminal([replace(GOOD, conf={"NCCL_ALGO": "Ring"})], capsys, monkeypatch)
    assert any(
        line.split() == ["adapter", "mlx5_0", "400", "Gb/s,", "link", "up,", "firmware", "28.39"] for line in shown
    )
    assert any(line.endswith("Ring (nccl.conf)") for line in shown)
    assert (
        "warning: NCCL_ALGO=Ring in nccl.conf: NCCL cannot choose the algorithm; collectives that lack this one fail"
        in shown
    )


# orch show ------------------------------------------------------------------------------------------------------------


def with_versions(run: dict[str, Any], *facts: NodeFacts, **changes: Any) -> dict[str, Any]:
    attempt = run["attempts"][0] | {"environment": record(facts)} | changes
    attempt["placement"] = {"level": "node", "nodes": [{"node": one.node, "gpus": [0], "ranks": [0]} for one in facts]}
    return run | {"attempts": [*run["attempts"][:0], attempt]}


def test_show_has_the_versions_in_a_line_where_nodes_agree(stub, orch, a_run) -> None:
    stub.answers["GET /runs/42"] = (200, with_versions(a_run(), *nodes(2)))
    shown = orch("show", "42").stdout
    line = "torch 2.11.0+cu130, CUDA 13.0, cuDNN 9.19.0, NCCL 2.28.9, driver 580.1, python 3.12.3, 8 NVIDIA H100"
    assert f"attempt.1.versions\t{line}\n" in shown
    stub.answers["GET /runs/42"] = (200, with_versions(a_run(), GOOD, replace(GOOD, node="gpu-02", driver="570.1")))
    assert orch("show", "42").stdout.count("attempt.1.versions\t") == 2


def test_lock_prints_a_block_that_the_job_file_takes(stub, orch, a_run) -> None:
    stub.answers["GET /runs/42"] = (200, with_versions(a_run(), *nodes(2)))
    block = orch("show", "42", "--lock").stdout
    pins = {"torch": "==2.11.0", "cuda": "==13.0", "cudnn": "==9.19.0", "nccl": "==2.28.9", "driver": "==580.1"}
    assert parse_job("run: t.py\n" + block, "job.yaml").requires == pins
    assert json.loads(orch("show", "42", "--lock", "--json").stdout) == {"requires": pins}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"environment": None}, "no attempt that succeeded recorded its versions"),
        ({"outcome": "user_error"}, "no attempt of it succeeded"),
        ({"environment": {"a": {"torch": None}}}, "its nodes had no version in common"),
    ],
)
def test_lock_without_anything_to_pin_is_a_conflict(stub, orch, a_run, changes, why) -> None:
    stub.answers["GET /runs/42"] = (200, with_versions(a_run(), GOOD, **changes))
    done = orch("show", "42", "--lock")
    assert (done.returncode, done.stdout) == (7, "")
    assert done.stderr == f"Error: run 42 (resnet50) has nothing to pin: {why}\n"
