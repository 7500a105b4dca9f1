"""Least attained service, where it is on: who has had much gives way to who has had little, and never in turns."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from orchestrator.placement.tree import Free, Topology
from orchestrator.policy import Policy
from orchestrator.scheduling.decision import Plan
from orchestrator.scheduling.lifecycle import State
from orchestrator.scheduling.plan import plan
from orchestrator.scheduling.run import Attempt, Run
from orchestrator.scheduling.service import attained, passes_in, standing, waited
from orchestrator.scheduling.snapshot import Snapshot
from orchestrator.testing import START, a_placement, a_run
from orchestrator.testing.hardware import cluster, node
from orchestrator.testing.queue import Queue

# One node of 4 GPUs.
ONE = Topology(cluster(node("a", 4)))
ON = Policy(service=8.0, min_runtime=300.0)


def holds(hours: float, priority: int = 0) -> Run:
    """A run that has all four GPUs for so many hours."""
    attempt = Attempt(1, a_placement(a=(0, 1, 2, 3)), START - timedelta(hours=hours), START - timedelta(hours=hours))
    return a_run(1, State.RUNNING, name="long", workers=4, priority=priority, attempts=(attempt,))


def decide(holder: Run, policy: Policy = ON, **waiting: object) -> Plan:
    free = Free(ONE)
    free.take("a", [0, 1, 2, 3])
    return plan(Snapshot((a_run(9, workers=1, **waiting),), free, (holder,), policy=policy), START)


def test_one_that_has_had_its_share_gives_way_to_a_new_one_of_its_priority() -> None:
    (give,) = decide(holds(2.0)).preemptions
    assert (give.run.id, give.beneficiary.id) == (1, 9)
    assert "has had fewer GPU-hours" in give.text


@pytest.mark.parametrize(
    ("holder", "policy", "priority"),
    [
        pytest.param(holds(1.9), ON, 0, id="it has had less than that"),
        pytest.param(holds(2.0), Policy(), 0, id="off, as by default"),
        pytest.param(holds(2.0, priority=1), ON, 0, id="it has higher priority"),
        pytest.param(holds(2.0), Policy(service=8.0, preemption="off"), 0, id="nobody is preempted"),
    ],
)
def test_one_that_has_had_less_or_stands_above_or_may_not_be_preempted_stays(
    holder: Run, policy: Policy, priority: int
) -> None:
    assert not decide(holder, policy, priority=priority).preemptions


def test_two_that_have_both_had_it_do_not_take_from_each_other() -> None:
    late = Attempt(1, a_placement(a=(0, 1, 2, 3)), START - timedelta(hours=9), ended_at=START - timedelta(hours=6))
    assert not decide(holds(2.0), attempts=(late,)).preemptions


def test_one_whose_waits_are_overdue_gives_way_no_more_and_one_that_has_only_run_for_long_does() -> None:
    again = replace(holds(2.0), queued_at=START - timedelta(hours=26))
    assert waited(again, START) == pytest.approx(24 * 3600)
    assert not decide(again).preemptions
    assert decide(replace(again, queued_at=START - timedelta(hours=25))).preemptions
    long = holds(100.0)
    assert decide(replace(long, queued_at=START - timedelta(hours=101))).preemptions


def test_no_stream_of_short_runs_keeps_a_long_one_from_its_end() -> None:
    policy = Policy(service=0.1, min_runtime=100.0, overdue=2000.0)
    queue = Queue(ONE, policy)
    queue.submit(a_run(1, name="long", workers=4, grace=0.0), 1500.0)
    for number in range(2, 80):
        queue.submit(a_run(number, name="short", workers=4, grace=0.0), 90.0, number * 100.0)
    queue.run_until(40_000)
    assert queue.preempted.count(1) > 3
    assert 1 in queue.ended


def test_it_is_asked_again_when_the_one_that_runs_has_had_it() -> None:
    decided = decide(holds(1.0))
    assert decided.look_again_s == pytest.approx(3600.0)
    assert passes_in([holds(1.0)], Policy(), START) is None


def test_what_was_had_counts_over_all_attempts_and_moves_by_half_a_step() -> None:
    run = holds(2.0, priority=3)
    assert attained(run, START) == pytest.approx(8.0)
    assert (standing(run, ON, START), standing(run, ON, START - timedelta(hours=1))) == (2.5, 3)
