"""A zygote that is broken, stale or slow costs a cold start and no run."""

import ast
import os
import signal
import sys
from pathlib import Path

from launched import ENV, POLITE, Node, end

from orchestrator.control.launcher_client import (
    LAUNCHER,
)


def test_a_zygote_that_dies_is_told_once_and_ranks_start_cold(node: Node) -> None:
    assert node.warm()["ok"]
    os.kill(node.call("hello")["zygotes"][sys.executable]["pid"], signal.SIGKILL)
    assert "ended" in node.event("warm", ok=False)["error"]
    rank = node.start("1.1", "print('ran')")["0"]
    assert (rank["warm"], rank["why_cold"]) == (False, f"no warm process of {sys.executable} is ready")
    assert node.event("exit", attempt="1.1")["code"] == 0
    node.seen.clear()
    assert node.warm()["ok"]
    assert node.start("1.2", "print('ran')")["0"]["warm"]


def test_a_rank_outlives_its_zygote(node: Node) -> None:
    assert node.warm()["ok"]
    node.start("1.1", POLITE)
    node.said("1.1", "ready")
    os.kill(node.call("hello")["zygotes"][sys.executable]["pid"], signal.SIGKILL)
    node.event("warm", ok=False)
    node.call("stop", attempt="1.1", grace_s=30)
    assert node.event("exit", attempt="1.1")["code"] == 5


def test_a_zygote_that_does_not_answer_is_given_up_for_a_cold_start(node: Node) -> None:
    assert node.warm()["ok"]
    os.kill(node.call("hello")["zygotes"][sys.executable]["pid"], signal.SIGSTOP)
    rank = node.start("1.1", "print('ran')")["0"]
    assert not rank["warm"]
    node.event("warm", ok=False)
    node.event("ended", attempt="1.1")
    assert node.log("1.1") == "ran\n"


def test_a_preload_that_fails_is_told_and_one_that_is_not_installed_is_no_failure(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0")
    for preload, ok, error in (("no_such_module", True, "no_such_module"), ("broken", False, "ZeroDivisionError")):
        node = Node(tmp_path, "--preload", preload)
        node.call("warm", python=sys.executable, env={**ENV, "PYTHONPATH": str(tmp_path)})
        event = node.event("warm")
        assert (event["ok"], error in event["error"]) == (ok, True)
        end(node)


def test_a_package_that_has_changed_since_it_was_loaded_means_a_cold_start(tmp_path: Path) -> None:
    (tmp_path / "changing.py").write_text("VERSION = 1")
    node = Node(tmp_path, "--preload", "changing")
    env = {**ENV, "PYTHONPATH": str(tmp_path)}
    node.call("warm", python=sys.executable, env=env)
    assert node.event("warm")["ok"]
    (tmp_path / "changing.py").write_text("VERSION = 22")
    (tmp_path / "elsewhere").mkdir()
    rank = node.rank("1.1", "", env=env, cwd=str(tmp_path / "elsewhere"), argv=["../show.py"])
    node.script("import changing; print(changing.VERSION)", "show.py")
    assert not node.call("start", attempt="1.1", lease_s=60, ranks=[rank])["ranks"]["0"]["warm"]
    assert "changing.py has changed" in node.event("warm", ok=False)["error"]
    node.event("ended", attempt="1.1")
    assert node.log("1.1") == "22\n"
    end(node)


def test_more_ranks_than_wait_ready_are_forked_at_once(node: Node) -> None:
    assert node.warm()["ok"]
    for attempt in ("1.1", "1.2"):
        ranks = node.start(attempt, *["import os; print(os.environ['RANK'])"] * 5)
        assert all(rank["warm"] for rank in ranks.values())
        node.event("ended", attempt=attempt)
        assert [node.log(attempt, rank) for rank in range(5)] == [f"{rank}\n" for rank in range(5)]


def test_the_zygote_can_be_run_by_python_3_9() -> None:
    progress = LAUNCHER.parents[1] / "progress"
    loaded = [LAUNCHER / name for name in ("fresh_process.py", "last_word.py")]
    loaded += [progress / f"{name}.py" for name in ("file", "observer", "on_import")]
    for program in (LAUNCHER / "rank.py", *loaded):
        ast.parse(program.read_text(), feature_version=(3, 9))
