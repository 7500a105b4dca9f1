"""Who gives way, to whom, and at what loss."""

from __future__ import annotations

import itertools
import random
from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.placement.search import find
from orchestrator.placement.tree import Free, Topology
from orchestrator.policy import Policy, Quota, Team
from orchestrator.scheduling import preemption
from orchestrator.scheduling.ask import ask_of
from orchestrator.scheduling.decision import Kind
from orchestrator.scheduling.lifecycle import State
from orchestrator.scheduling.memory import Memory
from orchestrator.scheduling.plan import plan
from orchestrator.scheduling.preemption import Victim
from orchestrator.scheduling.run import Attempt, Run
from orchestrator.scheduling.snapshot import Snapshot
from orchestrator.testing import START, a_placement, a_run
from orchestrator.testing.hardware import cluster, node

#   leaf l1      leaf l2
#   a:2  b:2     c:2  d:2
FOUR = Topology(cluster(*(node(n, 2, leaf=leaf) for n, leaf in zip("abcd", ("l1", "l1", "l2", "l2"), strict=True))))


def live(number: int, since: float = 1000.0, *, on: dict[str, tuple[int, ...]], **fields: object) -> Run:
    begun = START - timedelta(seconds=since)
    attempt = Attempt(1, a_placement(**on), begun, ranks_started_at=begun)
    total = sum(len(gpus) for gpus in on.values())
    return a_run(number, State.RUNNING, at=begun, workers=total, attempts=(attempt,), **fields)


def decide(waiting: list[Run], running: list[Run], policy: Policy | None = None, **more: object):
    free = Free(FOUR)
    for run in running:
        for part in run.attempt.placement.nodes:
            free.take(part.node, part.gpus)
    return plan(Snapshot(tuple(waiting), free, tuple(running), policy=policy or Policy(), **more), START)


def gives_way(decided) -> list[int]:
    return [one.run.id for one in decided.preemptions]


FULL = [live(1, on={"a": (0, 1)}), live(2, on={"b": (0, 1)}), live(3, on={"c": (0, 1)}), live(4, on={"d": (0, 1)})]


def test_only_lower_priority_gives_way_and_says_for_whom() -> None:
    assert gives_way(decide([a_run(9)], FULL)) == []
    decided = decide([a_run(9, priority=1)], FULL)
    assert gives_way(decided) == [1]
    assert decided.waits[0].reason.kind is Kind.PREEMPTING
    assert (
        decided.preemptions[0].text
        == "gives way to run 9 (train), which has higher priority; at most 0.6 GPU-hours of work are lost"
    )
    (kept,) = decided.reservations
    assert kept.start == START + timedelta(seconds=35)


def test_nobody_gives_way_before_the_minimum_run_time_nor_twice_nor_where_it_is_off() -> None:
    young = [live(i, 100, on={n: (0, 1)}) for i, n in enumerate("abcd", 1)]
    decided = decide([a_run(9, priority=1)], young)
    assert gives_way(decided) == []
    assert decided.look_again_s == 200
    ending = {1: START + timedelta(seconds=20)}
    assert gives_way(decide([a_run(9, priority=1)], FULL, ending=ending)) == []
    assert gives_way(decide([a_run(9, priority=1)], FULL, Policy(preemption="off"))) == []
    two = decide([a_run(8, priority=2, workers="1x2"), a_run(9, priority=1, workers="1x2")], FULL)
    assert len(set(gives_way(two))) == 2


def test_those_give_way_that_lose_least_since_their_last_checkpoint() -> None:
    saved = {3: START - timedelta(seconds=10)}
    assert gives_way(decide([a_run(9, priority=1, workers="1x2")], FULL, checkpoints=saved)) == [3]
    running = [
        live(1, 5000, on={"a": (0,)}),
        live(2, 600, on={"a": (1,)}),
        live(3, 4000, on={"b": (0, 1), "c": (0, 1), "d": (0, 1)}),
    ]
    assert sorted(gives_way(decide([a_run(9, priority=1, workers="1x2")], running))) == [1, 2]


def test_the_freed_gpus_make_the_place_that_was_asked_for() -> None:
    since = {"a": 400, "b": 3000, "c": 400, "d": 3500}
    cheap = [live(i, seconds, on={name: (0, 1)}) for i, (name, seconds) in enumerate(since.items(), 1)]
    assert sorted(gives_way(decide([a_run(9, priority=1, workers="2x2", near="leaf!")], cheap))) == [1, 2]
    assert sorted(gives_way(decide([a_run(9, priority=1, workers="2x2", near="any")], cheap))) == [1, 3]


def test_nobody_gives_way_where_it_would_not_make_a_place_or_one_is_promised_soon() -> None:
    blocked = [*FULL[:3], live(4, on={"d": (0, 1)}, priority=5)]
    assert gives_way(decide([a_run(9, priority=1, workers="4x2")], blocked)) == []
    soon = [*FULL[:3], live(4, 960, on={"d": (0, 1)}, time_limit=970.0, grace=20.0)]
    assert gives_way(decide([a_run(9, priority=1)], soon)) == []


TEAMS = Policy(teams={"red": Team(Quota(guaranteed=4)), "blue": Team(Quota(guaranteed=2)), "-": Team()})


def test_a_guaranteed_part_is_taken_back_from_those_who_borrow_it_whatever_their_priority() -> None:
    blue = [live(i, 2000 - i, on={n: (0, 1)}, team="blue", priority=9) for i, n in enumerate("abcd", 1)]
    decided = decide([a_run(9, team="red", workers="1x2")], blue, TEAMS)
    # Run 1 is the oldest, and within blue's own part.
    assert gives_way(decided) == [4]
    assert decided.preemptions[0].by_quota
    assert gives_way(decide([a_run(9, team="red", workers="3x2")], blue, TEAMS)) == []
    assert gives_way(
        decide([a_run(9, team="red", workers="2x2")], blue, Policy(teams=TEAMS.teams, preemption="quota"))
    ) == [4, 3]


def test_what_is_guaranteed_gives_way_to_its_own_team_alone() -> None:
    running = [
        live(1, on={"a": (0, 1)}, team="blue"),
        *(live(i, on={n: (0, 1)}, priority=5) for i, n in enumerate("bcd", 2)),
    ]
    assert gives_way(decide([a_run(9, priority=5, team="red", workers="4x2")], running, TEAMS)) == []
    assert gives_way(decide([a_run(9, priority=3, workers="1x2")], running, TEAMS)) == []
    assert gives_way(decide([a_run(9, priority=3, team="blue", workers="1x2")], running, TEAMS)) == [1]


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.sampled_from(["1x2", "2x2", "3x2", 3, 5]), st.sampled_from(["any", "leaf!"]))
def test_of_few_candidates_no_cheaper_set_would_do_and_of_many_none_is_needless(seed: int, workers, near: str) -> None:
    rng = random.Random(seed)
    eight = Topology(cluster(*(node(f"n{i}", 2, leaf=f"l{i // 4}") for i in range(8))))
    free = Free(eight)
    victims = []
    slots = [(f"n{i}", gpu) for i in range(8) for gpu in range(2)]
    rng.shuffle(slots)
    while slots and len(victims) < rng.choice([4, 7, 14]):
        mine = [slots.pop() for _ in range(min(len(slots), rng.choice([1, 1, 2, 3])))]
        on = {name: tuple(sorted(gpu for at, gpu in mine if at == name)) for name, _ in mine}
        run = live(len(victims) + 1, on=on)
        for name, gpus in on.items():
            free.take(name, gpus)
        memory = Memory(eight, Policy())
        victims.append(Victim(run, memory.parts(run), float(rng.randrange(1, 1000)), False))
    for name, gpu in slots[: rng.randrange(len(slots) + 1)]:
        free.take(name, [gpu])
    ask = ask_of(a_run(99, priority=1, workers=workers, near=near), ("-", "ana"), eight, {})
    memory = Memory(eight, Policy(communication=0.0))
    ask.shape = memory.shape(ask.request)
    snapshot = Snapshot((), free, policy=memory.policy)
    found = preemption.clearing(ask, victims, free, {}, snapshot, memory)

    def fits(chosen) -> bool:
        view = free.copy()
        for victim in chosen:
            for part in victim.run.attempt.placement.nodes:
                view.give(part.node, part.gpus)
        return find(ask.request, eight, view) is not None

    if found is None:
        assert not fits(victims)
        return
    lost = sum(victim.lost_gpu_s for victim in found.victims)
    assert fits(found.victims)
    assert not any(fits([v for v in found.victims if v is not one]) for one in found.victims) or fits(())
    if len(victims) <= preemption.EVERY_COMBINATION:
        every = (c for size in range(1, len(victims) + 1) for c in itertools.combinations(victims, size))
        assert lost == min(sum(v.lost_gpu_s for v in chosen) for chosen in every if fits(chosen))
