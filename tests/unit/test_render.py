"""The JSON of a run: promised keys, UTC with Z, and GPU time that adds up."""

import json
from datetime import timedelta, timezone
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.why import lines
from orchestrator.health.failure import Failure
from orchestrator.history.render import gpu_seconds, list_json, show_json, time_json, why_json
from orchestrator.scheduling.lifecycle import Event, Outcome, State
from orchestrator.scheduling.run import Attempt, RunEvent
from orchestrator.testing import START, a_placement, a_run

PARTS = ("productive", "starting", "lost", "idle", "checkpoint")


def after(seconds):
    return START + timedelta(seconds=seconds)


def an_attempt(number=1, start=0, ranks=10, end=100, outcome=Outcome.SUCCEEDED, **fields):
    at = [None if seconds is None else after(seconds) for seconds in (start, ranks, end)]
    return Attempt(number, a_placement(a=(0, 1), b=(0, 1)), at[0], at[1], at[2], outcome, **fields)


def test_show_has_the_promised_keys():
    failure = Failure("node_lost", "gpu-02 was not heard of for 30 s", rank=3, node="b")
    run = a_run(
        42,
        State.FAILED,
        team="vision",
        attempts=(an_attempt(outcome=Outcome.INFRA_ERROR, failure=failure, exit_codes={10: -9, 2: 0}),),
        events=(RunEvent(1, START, Event.SUBMITTED, State.QUEUED),),
    )
    shown = json.loads(json.dumps(show_json(run)))
    assert {"id", "name", "user", "team", "state", "reason", "submitted_at", "started_at", "finished_at"} <= set(shown)
    assert {"priority", "spec", "code", "attempts", "throughput", "gpu_seconds", "events"} <= set(shown)
    (attempt,) = shown["attempts"]
    assert attempt["failure"] == {
        "kind": "node_lost",
        "message": "gpu-02 was not heard of for 30 s",
        "rank": 3,
        "node": "b",
        "cause": "infra",
        "ranks": [],
        "suspects": [],
        "detail": None,
    }
    assert attempt["placement"]["nodes"][1] == {"node": "b", "gpus": [0, 1], "ranks": [2, 3]}
    assert attempt["placement"]["level"] == "node"
    assert attempt["placement"]["busbw_predicted"] is None
    assert attempt["transport"] is None
    assert attempt["exit_codes"] == {"2": 0, "10": -9}
    assert shown["events"][0]["at"] == "2026-01-05T09:00:00Z"
    assert shown["events"][0]["state"] == "queued"


def test_a_list_has_no_spec_no_events_and_nothing_by_rank():
    run = a_run(42, State.SUCCEEDED, attempts=(an_attempt(exit_codes={0: 0}),))
    listed, shown = list_json(run), show_json(run)
    assert not {"spec", "events"} & set(listed)
    assert set(shown) - set(listed) == {
        *("spec", "events", "workdir", "after", "waits"),
        *("goodput", "effective_training_time_ratio", "queue_seconds", "cost"),
    }
    assert listed["attempts"][0]["placement"]["nodes"][0] == {"node": "a", "gpus": (0, 1)}
    assert "exit_codes" not in listed["attempts"][0]


def test_times_are_utc_whatever_zone_they_came_in():
    assert time_json(START.astimezone(timezone(timedelta(hours=2)))) == "2026-01-05T09:00:00Z"


@pytest.mark.parametrize(
    ("attempt", "expected"),
    [
        pytest.param(an_attempt(), {"starting": 40, "productive": 360}, id="success"),
        pytest.param(an_attempt(outcome=Outcome.PREEMPTED), {"starting": 40, "lost": 360}, id="preempted"),
        pytest.param(an_attempt(ranks=None), {"productive": 400}, id="over before its start was heard of"),
        pytest.param(an_attempt(ranks=None, outcome=Outcome.INFRA_ERROR), {"starting": 400}, id="never started"),
        pytest.param(an_attempt(end=None, outcome=None), {"starting": 40, "productive": 160}, id="still running"),
        pytest.param(an_attempt(end=-5, ranks=None), {}, id="the clock was set back"),
    ],
)
def test_gpu_time_goes_where_the_attempt_s_end_says(attempt, expected):
    spent = gpu_seconds(a_run(attempts=(attempt,)), now=after(50))
    assert spent == {**dict.fromkeys(PARTS, 0), **expected, "allocated": sum(expected.values())}


def test_a_live_attempt_counts_only_where_the_time_is_given():
    assert gpu_seconds(a_run(attempts=(an_attempt(end=None, outcome=None),)))["allocated"] == 0


@given(
    st.lists(st.tuples(st.floats(0, 1e7), st.floats(0, 1e7), st.floats(0, 1e7), st.sampled_from(Outcome)), max_size=6)
)
def test_the_parts_of_gpu_time_sum_to_the_whole_in_any_order(spans):
    attempts = tuple(
        an_attempt(number, start, start + ranks, start + ranks + rest, outcome)
        for number, (start, ranks, rest, outcome) in enumerate(spans, 1)
    )
    spent = gpu_seconds(a_run(attempts=attempts))
    assert {sum(spent[part] for part in order) for order in permutations(PARTS)} == {spent["allocated"]}


def test_why_a_run_ended_says_by_whom_and_why_it_was_tried_again_before():
    run = a_run(
        id=4,
        state=State.CANCELLED,
        finished_at=after(90),
        attempts=(an_attempt(outcome=Outcome.PREEMPTED),),
        events=(
            RunEvent(1, START, Event.SUBMITTED, State.QUEUED),
            RunEvent(2, after(50), Event.REQUEUED, State.QUEUED, "gives way to run 5 (big)", attempt=1),
            RunEvent(3, after(90), Event.CANCEL_ASKED, State.CANCELLED, by="bo"),
        ),
    )
    said = lines(why_json(run))
    assert said[0] == "run 4 (train) was cancelled by bo"
    assert said[1].startswith("attempt 1 ended ")
    assert said[1].endswith(": gives way to run 5 (big)")
