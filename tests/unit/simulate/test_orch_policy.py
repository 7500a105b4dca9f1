"""The scheduler in a replay: what it is told of jobs, and that what it decides is done."""

from __future__ import annotations

from replays import replay, starts, trace

from orchestrator.scheduling.simulate.jobs import Job, trace_of
from orchestrator.scheduling.simulate.orch_policy import Orch, run_of, spec_of
from orchestrator.scheduling.simulate.world import Life


def test_a_job_is_submitted_as_its_user_would_have():
    job = Job("7", 16, 0, 100.0, name="Big_Model v2", user="ana", team="NLP group", nodes=2, limit_s=0.5, priority=5000)
    spec = spec_of(job)

    assert (str(spec.workers), spec.name, spec.team, spec.priority) == ("2x8", "big-model-v2", "nlp-group", 1000)
    assert spec.time_limit == 1
    assert run_of(Life(job, 6, 100.0)).id == 7
    assert spec_of(Job("7", 1, 0, name="___")).name == "job"


def test_orch_places_gangs_whole_and_keeps_them_within_a_node():
    replayed = replay(trace((0, 3, 10), (0, 4, 10), (0, 1, 10)), Orch())

    assert [len(life.last_parts) for life in replayed.lives] == [1, 1, 1]
    assert starts(replayed) == {"a": 0, "b": 0, "c": 0}


def test_higher_priority_goes_first():
    jobs = trace_of([Job("a", 8, 0, 10.0), Job("b", 8, 1, 10.0), Job("c", 8, 2, 10.0, priority=5)])

    assert starts(replay(jobs, Orch()))["c"] == 10
