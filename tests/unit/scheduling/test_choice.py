"""A looser place now or a tighter one later: the earlier end, of this run and of those behind it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from orchestrator.placement.tree import Free, Topology
from orchestrator.policy import Policy
from orchestrator.scheduling.choice import slowdown
from orchestrator.scheduling.decision import Kind
from orchestrator.scheduling.lifecycle import State
from orchestrator.scheduling.plan import plan
from orchestrator.scheduling.run import Attempt, Run
from orchestrator.scheduling.snapshot import Snapshot
from orchestrator.testing import START, a_placement, a_run
from orchestrator.testing.hardware import cluster, node

# NVLink inside a node, one 100 Gb/s adapter out of it.
TWO = Topology(cluster(*(node(n, 4, leaf="l1", nics=1, rate_gbps=100.0) for n in "ab")))
ALIKE = ("ana", "train", 4, ())
HISTORY = {("ana", "train"): (3600.0, 3600.0, 3600.0)}


BY_COMPLETION = Policy(preemption="off", split=1000.0)
"""Nothing is too slow to be taken."""


def live(number: int, on: dict[str, tuple[int, ...]], left: float | None) -> Run:
    """A run that is gone in `left` seconds."""
    attempt = Attempt(1, a_placement(**on), START, ranks_started_at=START)
    limit = None if left is None else left - 35
    total = sum(len(gpus) for gpus in on.values())
    return a_run(number, State.RUNNING, name="other", workers=total, attempts=(attempt,), time_limit=limit)


def decide(left: float | None, *waiting: Run, after: float = 0.0, **more: object):
    """Half of each node is free; the other half of a is freed in `left` seconds, of which `after` have passed."""
    running = (live(1, {"a": (0, 1)}, left), live(2, {"b": (0, 1)}, None))
    free = Free(TWO)
    for run in running:
        for part in run.attempt.placement.nodes:
            free.take(part.node, part.gpus)
    more.setdefault("history", HISTORY)
    more.setdefault("policy", Policy(preemption="off"))
    return plan(Snapshot(waiting or (a_run(9, workers=4),), free, running, **more), START + timedelta(seconds=after))


def test_a_gang_waits_for_a_node_that_is_free_soon_and_takes_two_where_it_is_not() -> None:
    decided = decide(300.0)
    (wait,) = decided.waits
    assert wait.reason.kind is Kind.CHOICE
    numbers = wait.reason.numbers
    assert (numbers["wait_s"], numbers["done_waiting_s"]) == (300.0, 3900.0)
    assert numbers["done_now_s"] > 3900
    assert decided.reservations[0].start == START + timedelta(seconds=300)
    for left in (40_000.0, None):
        taken = decide(left, policy=BY_COMPLETION)
        assert {part.node for part in taken.starts[0].placement.nodes} == {"a", "b"}


def test_the_place_that_it_waits_for_is_kept_and_others_use_it_until_then() -> None:
    quick, slow = a_run(10, time_limit=60.0), a_run(11, name="other")
    decided = decide(300.0, a_run(9, workers=4), quick, slow)
    assert {start.run.id: start.placement.nodes[0].node for start in decided.starts} == {10: "a", 11: "b"}


def test_a_plan_that_waits_for_a_place_which_opens_just_now_is_done_and_not_to_be_asked_again_at_once() -> None:
    decided = decide(300.0, after=300.0, policy=Policy(preemption="off", reservations=0))
    assert decided.waits[0].reason.numbers["wait_s"] == 0.0
    assert decided.look_again_s == 0.01


def test_a_run_that_says_any_or_is_overdue_or_knows_that_it_does_not_matter_does_not_wait() -> None:
    assert decide(300.0, a_run(9, workers=4, near="any")).starts
    late = a_run(9, workers=4, at=START - timedelta(days=2))
    assert decide(300.0, late, policy=BY_COMPLETION).starts
    flat = {ALIKE: {"node": 1.0, "nvlink": 1.0, "leaf": 1.01}}
    assert decide(300.0, speeds=flat).starts


@pytest.mark.parametrize("left", [40_000.0, None])
@pytest.mark.parametrize("waited", [timedelta(), timedelta(days=2)], ids=["new", "overdue"])
def test_a_gang_is_not_split_where_that_costs_much_however_long_it_waits(left: float | None, waited: timedelta) -> None:
    decided = decide(left, a_run(9, workers=4, at=START - waited))
    (wait,) = decided.waits
    assert wait.reason.kind is Kind.CHOICE
    (kept,) = decided.reservations
    assert [part.node for part in kept.placement.nodes] == ["a"]
    assert (kept.start is None) is (left is None)
    if left is None:
        assert "waits for a place within one NVLink island: steps take" in wait.reason.text


@pytest.mark.parametrize(("slower", "taken"), [(1.09, True), (1.1, False)])
def test_the_default_is_that_a_tenth_more_a_step_is_not_taken(slower: float, taken: bool) -> None:
    decided = decide(None, speeds={ALIKE: {"node": 1.0, "nvlink": 1.0, "leaf": slower}})
    assert bool(decided.starts) is taken


def test_of_places_that_nobody_can_say_the_time_of_only_the_first_is_kept() -> None:
    decided = decide(None, a_run(9, workers=4), a_run(10, workers=4, at=START + timedelta(seconds=1)))
    assert [kept.run.id for kept in decided.reservations] == [9]


def test_measured_steps_stand_in_for_the_model() -> None:
    steep = {ALIKE: {"node": 1.0, "nvlink": 1.0, "leaf": 3.0}}
    decided = decide(5000.0, speeds=steep)
    assert decided.waits[0].reason.numbers["done_now_s"] == pytest.approx(3 * 3600)


def test_what_the_longer_run_costs_those_behind_it_counts() -> None:
    policy = replace(BY_COMPLETION, communication=0.005)
    alone = decide(1000.0, a_run(9, workers=4), policy=policy)
    assert alone.starts
    crowd = [a_run(i, workers=8, at=START + timedelta(seconds=1)) for i in range(20, 60)]
    busy = decide(1000.0, a_run(9, workers=4), *crowd, policy=policy)
    assert busy.waits[0].reason.kind is Kind.CHOICE


def test_a_slowdown_is_one_at_the_best_place_and_grows_with_communication() -> None:
    assert slowdown(100.0, 100.0, 0.3) == 1.0
    assert slowdown(10.0, 100.0, 0.0) == 1.0
    assert slowdown(10.0, 100.0, 0.1) == pytest.approx(1.9)
