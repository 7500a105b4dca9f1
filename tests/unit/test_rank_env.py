"""What a rank finds of its attempt in its environment."""

from __future__ import annotations

from orchestrator.control.backend import RankStart, StartPart
from orchestrator.control.rank_env import rank_env


def env_of(attempt: int, base: dict[str, str] | None = None, **env: str) -> dict[str, str]:
    rank = RankStart(0, 0, 0)
    part = StartPart(
        7, attempt, ("train.py",), None, None, env, {}, "cpu", (rank,), 1, 0, "127.0.0.1", 29500, 30, 1, max_restarts=10
    )  # fmt: skip
    return rank_env(base or {}, part, rank, visible=(), cores=4, mark="m")


def test_a_script_sees_as_under_torchrun_how_often_it_was_restarted() -> None:
    found = env_of(3, {"TORCHELASTIC_RUN_ID": "of whoever started the node"})
    assert found["TORCHELASTIC_RUN_ID"] == "7"
    assert (found["TORCHELASTIC_RESTART_COUNT"], found["TORCHELASTIC_MAX_RESTARTS"]) == ("2", "10")
    assert env_of(0)["TORCHELASTIC_RESTART_COUNT"] == "0"


def test_what_the_job_sets_of_these_stands() -> None:
    assert env_of(3, TORCHELASTIC_RUN_ID="mine")["TORCHELASTIC_RUN_ID"] == "mine"
