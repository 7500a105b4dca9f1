"""Who is looked at first: guaranteed part, priority, what is overdue, fair share, age."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from orchestrator.placement.tree import Free, Topology
from orchestrator.policy import OTHERS, Policy, Quota, Team
from orchestrator.scheduling.decision import Kind
from orchestrator.scheduling.fairness import Ledger, Use
from orchestrator.scheduling.lifecycle import Outcome
from orchestrator.scheduling.plan import plan
from orchestrator.scheduling.quota import protected
from orchestrator.scheduling.run import Attempt, Run
from orchestrator.scheduling.snapshot import Snapshot
from orchestrator.testing import START, a_placement, a_run
from orchestrator.testing.hardware import cluster, node

DAY = 86400.0
ONE = Topology(cluster(node("a", 4)))


def ago(seconds: float):
    return START - timedelta(seconds=seconds)


def order(*waiting: Run, policy: Policy | None = None, topology: Topology = ONE, **more: object) -> list[int]:
    """The ids as they are looked at: those that start, then those that wait."""
    snapshot = Snapshot(waiting, Free(topology), policy=policy or Policy(), **more)
    decided = plan(snapshot, START)
    return [start.run.id for start in decided.starts] + [wait.run.id for wait in decided.waits]


def used(**gpu_days: float) -> Ledger:
    """What users (of no team, or as team_user) used in the last day."""
    uses = []
    for name, days in gpu_days.items():
        team, _, user = name.rpartition("_")
        uses.append(Use((team or "-", user), 1, ago(DAY * days), START))
    return Ledger().charged(uses, 1e9, START)


def test_priority_comes_before_age_and_age_before_nothing() -> None:
    assert order(a_run(1, at=ago(10)), a_run(2, at=ago(30)), a_run(3, priority=1), a_run(4, at=ago(30))) == [3, 2, 4, 1]


def test_who_has_had_less_comes_first() -> None:
    runs = [a_run(1, user="ana", at=ago(50)), a_run(2, user="bob")]
    assert order(*runs) == [1, 2]
    assert order(*runs, usage=used(ana=2.0, bob=1.0)) == [2, 1]


def test_a_share_is_a_weight_and_teams_come_before_their_users() -> None:
    policy = Policy(teams={"red": Team(Quota(share=3.0)), "blue": Team()})
    runs = [a_run(1, team="blue", user="ana"), a_run(2, team="red", user="bob"), a_run(3, team="red", user="eve")]
    usage = used(blue_ana=1.0, red_bob=2.0, red_eve=0.5)
    # 2.5 over 3 is less than 1 over 1, though bob himself has had more than ana.
    assert order(*runs, policy=policy, usage=usage) == [3, 2, 1]
    assert order(*runs, policy=replace(policy, teams={"red": Team(), "blue": Team()}), usage=usage) == [1, 3, 2]


def test_what_starts_counts_at_once_so_that_users_take_turns() -> None:
    runs = [a_run(i, user="ana", at=ago(100)) for i in (1, 2, 3)] + [
        a_run(i, user="bob", at=ago(50)) for i in (4, 5, 6)
    ]
    assert order(*runs)[:4] == [1, 4, 2, 5]


def test_usage_halves_with_its_half_life_however_it_is_entered() -> None:
    hour = Use(("-", "ana"), 2, ago(3600), START)
    halves = [replace(hour, end=ago(1800)), replace(hour, start=ago(1800))]
    whole = Ledger().charged([hour], 3600.0, START)
    assert Ledger().charged(halves, 3600.0, START).used == pytest.approx(dict(whole.used))
    later = whole.decayed(3600.0, START + timedelta(hours=1))
    assert later[("-", "ana")] == pytest.approx(whole.used[("-", "ana")] / 2)
    in_parts = Ledger().charged(halves[:1], 3600.0, ago(1800)).charged(halves[1:], 3600.0, START)
    assert in_parts.used == pytest.approx(dict(whole.used))


def test_who_has_waited_too_long_comes_first_in_his_priority_only() -> None:
    policy = Policy(overdue=1000.0)
    runs = [a_run(1, user="ana", at=ago(1000)), a_run(2, user="bob", at=ago(900)), a_run(3, user="eve", priority=1)]
    assert order(*runs, policy=policy, usage=used(ana=2.0)) == [3, 1, 2]
    assert order(*runs, policy=policy, usage=used(ana=2.0, eve=9.0)) == [3, 1, 2]


def test_a_gang_that_came_back_by_itself_comes_first_and_one_that_was_retried_or_gave_way_does_not() -> None:
    def lost(outcome: Outcome, queued: float) -> Run:
        attempt = Attempt(1, a_placement(a=(0,)), ago(50), ended_at=ago(1), outcome=outcome)
        return a_run(9, at=ago(queued), attempts=(attempt,))

    old = a_run(1, at=ago(900))
    assert order(old, lost(Outcome.INFRA_ERROR, 60)) == [9, 1]
    assert order(old, lost(Outcome.DRAINED, 60)) == [9, 1]
    assert order(old, lost(Outcome.INFRA_ERROR, 0)) == [1, 9]
    assert order(old, lost(Outcome.PREEMPTED, 60)) == [1, 9]


def test_a_guaranteed_part_comes_before_priority_and_no_further() -> None:
    policy = Policy(teams={"red": Team(Quota(guaranteed=2)), "blue": Team()})
    red = [a_run(i, team="red", at=ago(10 - i)) for i in (1, 2, 3)]
    assert order(*red, a_run(4, team="blue", priority=5), policy=policy) == [1, 2, 4, 3]


def test_a_limit_keeps_back_its_own_and_nobody_else() -> None:
    policy = Policy(teams={"red": Team(Quota(limit=4), {"ana": Quota(limit=1), OTHERS: Quota(limit=2)})})
    runs = [
        a_run(1, team="red", user="ana", at=ago(9)),
        a_run(2, team="red", user="ana", at=ago(8)),
        a_run(3, team="red", user="bob", workers=3, at=ago(7)),
        a_run(4, team="red", user="bob", workers=2, at=ago(6)),
        a_run(5, at=ago(5)),
    ]
    decided = plan(Snapshot(tuple(runs), Free(ONE), policy=policy), START)
    assert {start.run.id for start in decided.starts} == {1, 4, 5}
    assert {wait.run.id: (wait.reason.kind, wait.reason.text) for wait in decided.waits} == {
        2: (Kind.QUOTA, "user ana holds 1 of the 1 GPUs that it may hold; the run asks for 1 more"),
        3: (Kind.NEVER, "user bob may hold 2 GPUs, and the run asks for 3"),
    }


def test_small_runs_do_not_use_up_a_limit_in_front_of_a_gang_of_the_team() -> None:
    policy = Policy(teams={"red": Team(Quota(limit=4))}, preemption="off")
    ten = Topology(cluster(node("a", 8), node("b", 8)))
    free = Free(ten)
    free.take("a", (0, 1))
    attempt = Attempt(1, a_placement(a=(0, 1)), ago(100), ranks_started_at=ago(100))
    runs = a_run(1, team="red", workers=2, attempts=(attempt,), time_limit=600.0)
    gang, small = a_run(2, team="red", workers=4, at=ago(60)), a_run(3, team="red", at=ago(50))
    short, other = a_run(4, team="red", time_limit=300.0), a_run(5)
    decided = plan(Snapshot((gang, small, short, other), free, (runs,), policy=policy), START)
    assert [start.run.id for start in decided.starts] == [5, 4]
    assert [(wait.run.id, wait.reason.kind) for wait in decided.waits] == [(2, Kind.QUOTA), (3, Kind.QUOTA)]


def test_a_team_that_is_not_declared_counts_as_none() -> None:
    policy = Policy(teams={"red": Team(Quota(limit=4)), "-": Team(Quota(limit=1))})
    assert order(a_run(1, team="rad", workers=2), policy=policy) == [1]
    decided = plan(Snapshot((a_run(1, team="rad", workers=2),), Free(ONE), policy=policy), START)
    assert decided.waits[0].reason.text == "runs without a team may hold 1 GPUs, and the run asks for 2"


def test_the_oldest_runs_are_within_the_guaranteed_part_those_of_guaranteed_users_first() -> None:
    policy = Policy(teams={"red": Team(Quota(guaranteed=4), {"ana": Quota(guaranteed=2)})})

    def live(number: int, workers: int, user: str, seconds: float) -> Run:
        attempt = Attempt(1, a_placement(a=(0,)), ago(seconds))
        return a_run(number, team="red", user=user, workers=workers, attempts=(attempt,))

    runs = [live(1, 2, "bob", 90), live(2, 2, "bob", 80), live(3, 2, "ana", 10), live(4, 1, "eve", 5)]
    assert protected(runs, policy) == {3: "user", 1: "team"}
    assert protected(runs, Policy()) == {}
