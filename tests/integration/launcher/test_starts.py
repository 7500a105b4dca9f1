"""All ranks of an attempt start, once, as they were asked for, or none does and the reason is said."""

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from launched import CPUS, FINGERPRINT, MARK, STUBBORN, Node, marked, until

from orchestrator.control.launcher_client import (
    LauncherGoneError,
    LauncherRefusedError,
)


def test_an_attempt_that_is_known_is_never_started_twice(node: Node, way: bool) -> None:
    first = node.start("1.1", "print('here'); import time; time.sleep(60)", cold=way)
    again = node.rank("1.1", "", cold=way, argv=[node.script("print('again')")])
    assert node.call("start", attempt="1.1", lease_s=60, ranks=[again])["ranks"] == first
    node.call("stop", attempt="1.1", grace_s=0)
    node.event("ended", attempt="1.1")
    assert node.call("start", attempt="1.1", lease_s=60, ranks=[again])["ranks"] == first
    assert "again" not in node.log("1.1")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cwd": "/no/such"}, "rank 1: cwd: /no/such"),
        ({"python": "/no/such/python"}, "rank 1: python: /no/such/python"),
        ({"python": str(FINGERPRINT.parent)}, "rank 1: python: "),
        ({"log": "/no/such/log"}, "rank 1: log: No such file or directory"),
        ({"argv": []}, "rank 1: argv"),
        ({"env": {"ORCH_MARK": "other"}}, "the same ORCH_MARK"),
        ({"cpus": []}, "rank 1: cpus must be one or more"),
        ({"cpus": ["0"]}, "rank 1: cpus must be one or more"),
        ({"cpus": [min(CPUS), 77777]}, "rank 1: cpus: 77777 not among the"),
        ({"cudnn": {"benchmark": 1}}, "rank 1: cudnn takes benchmark and deterministic"),
        ({"cudnn": {"fast": True}}, "rank 1: cudnn takes benchmark and deterministic"),
        ({"cudnn": {"benchmark": True}, "argv": ["-c", ""]}, "rank 1: cudnn is set before a script"),
    ],
)
def test_one_rank_that_cannot_start_leaves_none_running_and_says_why(
    node: Node, change: dict[str, Any], reason: str
) -> None:
    ranks = [node.rank("1.1", "print('ran')", 0), node.rank("1.1", "", 1, **change)]
    with pytest.raises(LauncherRefusedError, match=reason):
        node.call("start", attempt="1.1", lease_s=60, ranks=ranks)
    assert node.call("hello")["attempts"] == {}
    log = Path(ranks[0]["log"])
    assert not log.exists() or log.read_text() == ""


def test_a_rank_runs_on_its_cpus_and_one_without_on_all(node: Node, way: bool) -> None:
    text = "import os; print(sorted(os.sched_getaffinity(0)))"
    ranks = [node.rank("1.1", text, 0, cold=way, cpus=[max(CPUS)]), node.rank("1.1", text, 1, cold=way)]
    started = node.call("start", attempt="1.1", lease_s=60, ranks=ranks)["ranks"]
    assert [rank["warm"] for rank in started.values()] == [not way, not way]
    node.event("ended", attempt="1.1")
    assert [node.log("1.1", rank) for rank in (0, 1)] == [f"[{max(CPUS)}]\n", f"{sorted(CPUS)}\n"]


def test_a_program_that_will_not_run_takes_the_other_ranks_back(node: Node, way: bool) -> None:
    broken = node.folder / "python"
    broken.write_text("not a program")
    broken.chmod(0o755)
    sleeper = "import time; time.sleep(60)"
    ranks = [node.rank("1.1", sleeper, 0, cold=way), node.rank("1.1", "", 1, python=str(broken))]
    with pytest.raises(LauncherRefusedError, match=r"rank 1: .*Exec format error"):
        node.call("start", attempt="1.1", lease_s=60, ranks=ranks)
    assert node.call("hello")["attempts"] == {}
    assert marked(f"{MARK}.1.1") == []
    # The name is free again.
    node.start("1.1", "", cold=way)
    assert node.event("exit", attempt="1.1")["code"] == 0


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ({"TORCH_LOGS": "+dynamo"}, "TORCH_LOGS"),
        ({"LD_LIBRARY_PATH": "/x"}, "LD_LIBRARY_PATH"),
        ({"PYTHONPATH": "/x"}, "PYTHONPATH"),
        ({"MKL_NUM_THREADS": "2"}, "MKL_NUM_THREADS"),
        ({"OMP_NUM_THREADS": "4,2"}, "OMP_NUM_THREADS"),
        ({"BIG": "x" * 70000}, "larger than 65536 bytes"),
        ({"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "1", "NCCL_DEBUG": "INFO", "TORCH_NCCL_TRACE": "1"}, None),
    ],
)
def test_a_variable_that_is_read_at_import_means_a_cold_start(
    node: Node, env: dict[str, str], reason: str | None
) -> None:
    assert node.warm()["ok"]
    rank = node.start("1.1", "import os; print(len(os.environ))", env=env)["0"]
    assert rank["warm"] is (reason is None)
    assert reason is None or reason in rank["why_cold"]
    assert node.event("exit", attempt="1.1")["code"] == 0


def test_a_module_beside_the_script_is_imported_rather_than_the_one_that_is_loaded(node: Node) -> None:
    assert node.warm()["ok"]
    node.script("MINE = True", "json.py")
    rank = node.start("1.1", "import json; print(json.MINE)")["0"]
    assert "json" in rank["why_cold"]
    node.event("ended", attempt="1.1")
    assert node.log("1.1") == "True\n"


def test_a_start_whose_agent_has_gone_before_it_was_answered_leaves_nothing_running(node: Node) -> None:
    assert node.warm()["ok"]
    zygote = node.call("hello")["zygotes"][sys.executable]["pid"]
    os.kill(zygote, signal.SIGSTOP)
    rank = node.rank("1.1", STUBBORN)
    asked = node.loop.create_task(node.client.call("start", attempt="1.1", lease_s=60, ranks=[rank]))
    node.call("lease", attempts={"1.1": 60})  # what was asked before it has been read
    node.disconnect()
    with contextlib.suppress(LauncherGoneError):
        node.loop.run_until_complete(asked)
    node.connect()
    os.kill(zygote, signal.SIGCONT)
    until(lambda: not marked(f"{MARK}.1.1"))
    assert node.call("hello")["attempts"] == {}
    assert node.start("1.2", "print('ran')")["0"]
    node.event("ended", attempt="1.2")
    log = node.folder / "1.1.0.log"
    assert not log.exists() or "ready" not in log.read_text()
