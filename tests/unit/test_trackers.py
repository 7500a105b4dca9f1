"""Ids that experiment trackers get: the same over attempts, no other run's, and never in the way of the job's own."""

from __future__ import annotations

from datetime import timedelta

from orchestrator.control.trackers import run_key, tracker_env
from orchestrator.scheduling.lifecycle import State
from orchestrator.testing import START, a_run


def test_a_key_stays_with_the_run_and_is_no_other_clusters() -> None:
    assert run_key(a_run(7)) == run_key(a_run(7, State.FAILED))
    # The first run of a cluster that was begun anew has the id of an older one.
    later = a_run(7, at=START + timedelta(days=1))
    assert len({run_key(a_run(7)), run_key(a_run(8)), run_key(later)}) == 3


def test_only_rank_0_resumes_and_what_the_job_sets_stays() -> None:
    env = {"ORCH_RUN_KEY": "orch-7-abc"}
    assert tracker_env(0, env) == {"WANDB_RUN_ID": "orch-7-abc", "WANDB_RESUME": "allow"}
    assert tracker_env(1, env) == {}
    assert tracker_env(0, env | {"WANDB_RESUME": "must"}) == {"WANDB_RUN_ID": "orch-7-abc"}
    assert tracker_env(0, env | {"WANDB_RUN_ID": "mine"}) == {}
