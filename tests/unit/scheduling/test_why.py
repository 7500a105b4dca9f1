"""Why a run waits: reasons with numbers, who is before it, when it starts, and changes that do start it."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.placement.search import place
from orchestrator.placement.tree import Free, Topology
from orchestrator.placement.values import Placement, Request
from orchestrator.policy import Policy, Quota, Team
from orchestrator.scheduling.decision import Kind, Sure
from orchestrator.scheduling.lifecycle import Outcome, State
from orchestrator.scheduling.plan import plan
from orchestrator.scheduling.run import Attempt, Run
from orchestrator.scheduling.snapshot import Block, Snapshot
from orchestrator.scheduling.why import preview, why
from orchestrator.testing import START, a_placement, a_run
from orchestrator.testing.hardware import cluster, node
from orchestrator.testing.queue import applied

#   leaf l1      leaf l2
#   a:2  b:2     c:2  d:2
FOUR = Topology(cluster(*(node(n, 2, leaf=leaf) for n, leaf in zip("abcd", ("l1", "l1", "l2", "l2"), strict=True))))
MIXED = Topology(
    cluster(
        *(node(f"n{i}", 4 if i < 3 else 2, leaf=f"l{i // 2}", model="A100" if i == 4 else "H100") for i in range(5))
    )
)


def live(number: int, since: float = 0.0, *, on: dict[str, tuple[int, ...]], **fields: object) -> Run:
    begun = START - timedelta(seconds=since)
    attempt = Attempt(1, a_placement(**on), begun, ranks_started_at=begun)
    total = sum(len(gpus) for gpus in on.values())
    return a_run(number, State.RUNNING, at=begun, workers=total, attempts=(attempt,), **fields)


def state(waiting: list[Run], running: list[Run], topology: Topology = FOUR, **more: object) -> Snapshot:
    free = Free(topology)
    for run in running:
        for part in run.attempt.placement.nodes:
            free.take(part.node, part.gpus)
    return Snapshot(tuple(waiting), free, tuple(running), **more)


def test_the_reasons_have_numbers_and_the_foremost_is_first() -> None:
    running = [live(1, 600, on={"a": (0, 1), "b": (0,)}, time_limit=3600.0)]
    first, second = a_run(2, workers="4x2", priority=5, user="bob"), a_run(3, workers="3x2")
    told = why(3, state([first, second], running), START)
    assert [(one.kind, one.text) for one in told.reasons] == [
        (Kind.SHAPE, "the cluster has room for 4 of 6 workers in parts of 2 to a node (5 GPUs are free on 3 nodes)"),
        (Kind.PRIORITY, "1 waiting run before it, of 8 GPUs, has higher priority"),
    ]
    assert ([run.id for run in told.ahead], told.ahead_count) == ([2], 1)


def test_a_run_that_starts_in_the_next_cycle_has_no_reasons() -> None:
    told = why(1, state([a_run(1)], []), START)
    assert told.starts is not None
    assert (told.reasons, told.suggestions, told.start) == ((), (), START)


def test_when_it_starts_is_said_with_how_sure_that_is() -> None:
    limited, unlimited = live(1, 600, on={"a": (0, 1)}, time_limit=3600.0), live(1, 600, on={"a": (0, 1)})
    waiting = [a_run(2, workers="4x2"), a_run(3, workers="4x2", time_limit=600.0)]
    promised = why(2, state(waiting, [limited]), START)
    assert (promised.start, promised.sure) == (START + timedelta(seconds=3035), Sure.PROMISED)
    unknown = why(2, state(waiting, [unlimited]), START)
    assert (unknown.start, unknown.sure) == (None, Sure.UNKNOWN)
    blocked = {2: Block("dependency", "waits for run 1 (pretrain) to succeed")}
    assert why(2, state(waiting, [], blocked=blocked), START).sure is Sure.UNKNOWN
    many = [a_run(i, workers="4x2") for i in range(2, 40)]
    assert why(39, state(many, [limited]), START).sure is Sure.ROUGH


def test_health_requirements_quota_and_hints_are_told_apart() -> None:
    snapshot = state([a_run(2, workers="4x2")], [])
    snapshot.free.set_usable("d", None, None)
    snapshot.free.set_usable("d", [], "drained")
    (shape, health) = why(2, snapshot, START).reasons
    assert (shape.kind, health.kind) == (Kind.SHAPE, Kind.HEALTH)
    assert health.text == "it would fit if all nodes could be used (d: drained)"
    unfit = {2: {"a": "torch 2.7 is older than 2.8"}}
    told = why(2, state([a_run(2, workers="4x2")], [], unfit=unfit), START)
    assert told.reasons[0].kind is Kind.UNFIT
    hint = why(2, state([a_run(2, workers="2x2", near="leaf!")], [live(1, on={"a": (0,), "c": (0,)})]), START)
    assert {one.kind for one in hint.reasons} == {Kind.SHAPE, Kind.HINT}
    policy = Policy(teams={"red": Team(Quota(limit=4))})
    quota = why(
        2,
        state([a_run(2, workers=2, team="red")], [live(1, on={"a": (0, 1), "b": (0,)}, team="red")], policy=policy),
        START,
    )
    assert quota.reasons[0].text == "team red holds 3 of the 4 GPUs that it may hold; the run asks for 2 more"


@pytest.mark.parametrize(
    ("run", "changes"),
    [
        (a_run(9, workers="4x2"), {"workers": "3x2"}),
        (a_run(9, workers=8), {"workers": 7}),
        (a_run(9, workers="2x2", near="leaf!"), {"near": "leaf"}),
    ],
)
def test_a_change_that_starts_it_is_suggested(run: Run, changes: dict[str, object]) -> None:
    running = [live(1, on={"a": (0,)})] + ([live(2, on={"c": (0,)})] if run.spec.near else [])
    told = why(9, state([run], running), START)
    assert changes in [one.changes for one in told.suggestions]


def test_an_end_a_shorter_limit_and_another_gpu_are_suggested() -> None:
    running = [live(1, on={"a": (0, 1)}, time_limit=7200.0), live(2, on={"b": (0,)})]
    told = why(9, state([a_run(9, workers="3x2")], running), START)
    assert [one.ends for one in told.suggestions if one.ends] == [2, 1]
    waiting = [a_run(8, workers="4x2", at=START - timedelta(hours=1)), a_run(9, workers="1x2")]
    (shorter,) = [one for one in why(9, state(waiting, running[:1]), START).suggestions if "time_limit" in one.changes]
    assert shorter.text.startswith("with time_limit: 119m it starts now, ")
    other = why(
        9,
        state(
            [a_run(9, workers=2, gpu=("H100",))],
            [live(1, on={"n0": (0, 1, 2, 3), "n1": (0, 1, 2, 3), "n2": (0, 1, 2, 3), "n3": (0, 1)})],
            MIXED,
        ),
        START,
    )
    assert {"gpu": "A100"} in [one.changes for one in other.suggestions]


def test_a_new_run_is_told_whom_it_would_delay_and_by_how_much() -> None:
    running = [live(1, on={"a": (0, 1)}, time_limit=3600.0)]
    waiting = a_run(2, workers="4x2", time_limit=600.0, priority=1)
    urgent = a_run(3, at=START, workers="4x2", time_limit=1200.0, priority=9)
    told = preview(urgent, state([waiting], running, policy=Policy(preemption="off")), START)
    (delay,) = told.delays
    assert (delay.run.id, delay.seconds) == (2, 60 + 1200 + 30 + 5)
    assert told.explanation.sure is Sure.PROMISED
    assert told.preempted == ()
    told = preview(urgent, state([waiting], [live(1, 600, on={"a": (0, 1)})]), START)
    assert [run.id for run in told.preempted] == [1]


def random_state(rng: random.Random) -> Snapshot:
    """Some runs on the cluster, some that wait, with all that may keep them waiting."""
    topology = rng.choice([FOUR, MIXED])
    free = Free(topology)
    running: list[Run] = []

    def fields(number: int) -> dict[str, object]:
        return {
            "workers": rng.choice([1, 1, 2, 3, 4, 6, 8, "1x2", "2x1", "2x2", "3x2", "4x2", "2x4"]),
            "user": rng.choice(["ana", "bob"]),
            "team": rng.choice([None, "red", "blue"]),
            "near": rng.choice([None, None, "leaf", "leaf!", "node!", "leaf~30m", "any"]),
            "gpu": rng.choice([(), (), (), ("H100",), ("A100",)]),
            "time_limit": rng.choice([None, 600.0, 7200.0]),
            "priority": rng.choice([0, 0, 1]),
            "name": rng.choice(["train", "tune"]),
        }

    for number in range(1, rng.randrange(2, 8)):
        begun = START - timedelta(seconds=rng.randrange(3000))
        run = a_run(number, State.RUNNING, at=begun, **fields(number))
        answer = place(Request(run.spec.workers, "cuda"), topology, free)
        if isinstance(answer, Placement):
            for part in answer.nodes:
                free.take(part.node, part.gpus)
            running.append(replace(run, attempts=(Attempt(1, answer, begun, ranks_started_at=begun),)))
    if rng.random() < 0.2:
        free.set_usable(rng.choice(topology.nodes).name, [], "down")
    waiting = [
        replace(
            a_run(100 + i, at=START - timedelta(seconds=rng.randrange(4000)), **fields(i)),
            attempts=rng.choice([(), (), (), before(rng, topology)]),
        )
        for i in range(rng.randrange(1, 7))
    ]
    unfit = {run.id: {topology.nodes[0].name: "too old"} for run in waiting if rng.random() < 0.1}
    blocked = {
        run.id: Block(rng.choice(["backoff", "dependency", "array"]), "kept back", START + timedelta(seconds=50))
        for run in waiting
        if rng.random() < 0.1
    }
    ending = {run.id: START + timedelta(seconds=20) for run in running if rng.random() < 0.1}
    teams = {"red": Team(Quota(limit=rng.choice([None, 4]), guaranteed=rng.choice([0, 0, 4])), {"ana": Quota(limit=3)})}
    policy = Policy(
        teams=rng.choice([{}, teams]),
        preemption=rng.choice(["off", "priority"]),
        min_runtime=rng.choice([0.0, 600.0]),
        overdue=rng.choice([1800.0, 86400.0]),
        reservations=rng.choice([1, 4]),
        split=rng.choice([Policy().split, 1000.0]),
        service=rng.choice([0.0, 1.0]),
    )
    history = rng.choice([{}, {("ana", "train"): (100.0, 500.0, 900.0)}])
    return Snapshot(tuple(waiting), free, tuple(running), blocked, unfit, ending, history=history, policy=policy)


def before(rng: random.Random, topology: Topology) -> tuple[Attempt, ...]:
    """An attempt that is over: of a run that gave way, or came back from a broken node."""
    begun, there = START - timedelta(seconds=9000), rng.choice(topology.nodes).name
    outcome = rng.choice([Outcome.PREEMPTED, Outcome.INFRA_ERROR])
    ended_at = begun + timedelta(seconds=rng.choice([60, 4000]))
    return (Attempt(1, a_placement(**{there: (0, 1)}), begun, ended_at=ended_at, outcome=outcome),)


def holds_of_every_suggestion(snapshot: Snapshot) -> Counter[str]:
    """That each suggestion for each run that waits, applied, starts it in the next cycle; how many there were of each kind."""
    kinds: Counter[str] = Counter()
    starts = {start.run.id for start in plan(snapshot, START).starts}
    for run in snapshot.waiting:
        told = why(run.id, snapshot, START)
        assert (told.starts is None) == (run.id not in starts)
        for suggestion in told.suggestions:
            decided = plan(applied(snapshot, run.id, suggestion, START), START)
            assert run.id in {start.run.id for start in decided.starts}, suggestion
            kinds.update(list(suggestion.changes) or ["an end"])
    return kinds


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_every_suggestion_starts_the_run_in_the_next_cycle(seed: int) -> None:
    holds_of_every_suggestion(random_state(random.Random(seed)))


def test_so_it_is_in_thousands_of_states_that_have_suggestions_of_every_kind() -> None:
    """600 snapshots, each asked about every run that waits: some 2,000 questions, 1,000 suggestions."""
    kinds: Counter[str] = Counter()
    for seed in range(600):
        kinds += holds_of_every_suggestion(random_state(random.Random(seed)))
    assert set(kinds) == {"workers", "near", "gpu", "time_limit", "priority", "an end"}
    assert min(kinds.values()) >= 5, kinds
