"""What holds whatever comes: days of random work on small clusters, each decision checked by counting, without the placer."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.placement.tree import Free, Topology
from orchestrator.policy import Policy, Quota, Team
from orchestrator.scheduling.ask import START_S, STOP_S
from orchestrator.scheduling.decision import Kind, Plan, Sure
from orchestrator.scheduling.fairness import Ledger, Use
from orchestrator.scheduling.plan import plan
from orchestrator.scheduling.quota import account_of, protected
from orchestrator.scheduling.run import Run
from orchestrator.scheduling.service import attained, waited
from orchestrator.scheduling.snapshot import Snapshot
from orchestrator.spec_values import Near
from orchestrator.testing import START, a_run
from orchestrator.testing.hardware import cluster, node
from orchestrator.testing.queue import Queue

SMALL = Topology(cluster(*(node(f"n{i}", 2, leaf=f"l{i // 2}") for i in range(4))))
MIXED = Topology(
    cluster(
        *(node(f"n{i}", 4 if i < 3 else 2, leaf=f"l{i // 2}", model="A100" if i == 4 else "H100") for i in range(5))
    )
)
LIMITS = st.sampled_from([None, 50.0, 300.0, 1000.0])
SHAPES = st.sampled_from([1, 2, 3, 4, 6, "1x2", "2x1", "2x2", "3x2", "4x2"])
LOOSE = settings(suppress_health_check=[HealthCheck.too_slow])


@st.composite
def arrivals(
    draw: st.DrawFn, most: int = 14, priorities: tuple[int, ...] = (0, 0, 1)
) -> list[tuple[Run, float, float]]:
    """Runs with how long they take and when they come."""
    found = []
    for number in range(1, draw(st.integers(1, most)) + 1):
        run = a_run(
            number,
            workers=draw(SHAPES),
            user=draw(st.sampled_from(["ana", "bob", "eve"])),
            team=draw(st.sampled_from([None, "red", "blue"])),
            name=draw(st.sampled_from(["train", "tune"])),
            near=draw(st.sampled_from([None, None, "any", "leaf", "leaf!", "node", "leaf~90s"])),
            priority=draw(st.sampled_from(priorities)),
            time_limit=draw(LIMITS),
            grace=draw(st.sampled_from([0.0, 20.0])),
        )
        found.append((run, draw(st.sampled_from([5.0, 60.0, 400.0, 2000.0])), draw(st.integers(0, 600)) * 1.0))
    return found


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    quota = st.builds(
        Quota,
        share=st.sampled_from([1.0, 3.0]),
        guaranteed=st.sampled_from([0, 2, 4]),
        limit=st.sampled_from([None, 4, 6]),
    )
    user = st.builds(Quota, limit=st.sampled_from([None, 2, 4]))
    team = st.builds(Team, quota, st.dictionaries(st.sampled_from(["ana", "bob", "*"]), user, max_size=2))
    return Policy(
        teams=draw(st.dictionaries(st.sampled_from(["red", "blue", "-"]), team, max_size=3)),
        preemption=draw(st.sampled_from(["priority", "quota", "off"])),
        min_runtime=draw(st.sampled_from([0.0, 100.0])),
        overdue=draw(st.sampled_from([200.0, 86400.0])),
        reservations=draw(st.sampled_from([1, 4])),
        service=draw(st.sampled_from([0.0, 0.0, 0.1])),
    )


HISTORY = {("ana", "train"): (5.0, 60.0, 400.0), ("bob", "tune"): (5.0, 5.0, 5.0)}


def fits(run: Run, topology: Topology, masks: dict[str, int]) -> bool:
    """Whether so many GPUs are there in the right numbers: for gangs without a level that binds."""
    models = {gpu.model for each in topology.nodes for gpu in each.kind.shape.gpus}
    for model in models:
        free = [masks[n.name].bit_count() for n in topology.nodes if n.kind.shape.gpus[0].model == model]
        workers = run.spec.workers
        if workers.per_node is None and sum(free) >= workers.total:
            return True
        if workers.per_node is not None and sum(f >= workers.per_node for f in free) >= (workers.nodes or 0):
            return True
    return False


def left_over(snapshot: Snapshot, decided: Plan) -> Free:
    free = snapshot.free.copy()
    for start in decided.starts:
        for part in start.placement.nodes:
            free.take(part.node, part.gpus)  # raises where a GPU is given twice
    return free


def nothing_that_fits_is_left_idle(queue: Queue, snapshot: Snapshot, decided: Plan) -> None:
    free = left_over(snapshot, decided)
    topology = queue.topology
    for wait in decided.waits:
        spec = wait.run.spec
        if wait.reason.kind not in (Kind.SHAPE, Kind.RESERVED) or (spec.near is not None and spec.near.required):
            continue
        stays = None if spec.time_limit is None else START_S + spec.time_limit + spec.grace + STOP_S
        masks = {each.name: free.mask(each.index) for each in topology.nodes}
        for kept in decided.reservations:
            until = None if kept.start is None else (kept.start - queue.now).total_seconds()
            if kept.run.id != wait.run.id and (stays is None or until is None or stays > until):
                for part in kept.placement.nodes:
                    kind = topology.nodes[topology.index[part.node]].kind
                    masks[part.node] &= ~kind.mask_of(part.gpus)
        assert not fits(wait.run, topology, masks), (wait, decided)


def quotas_hold(queue: Queue, snapshot: Snapshot, decided: Plan) -> None:
    policy = snapshot.policy
    held: Counter[object] = Counter()
    for run in (*snapshot.running, *(start.run for start in decided.starts)):
        account = account_of(run, policy)
        held[account] += run.spec.workers.total
        held[account[0]] += run.spec.workers.total
    for name, team in policy.teams.items():
        assert team.quota.limit is None or held[name] <= team.quota.limit
    for run in snapshot.waiting:
        team, user = account_of(run, policy)
        limit = policy.team(team).of(user).limit
        assert limit is None or held[team, user] <= limit


def nobody_gives_way_wrongly(queue: Queue, snapshot: Snapshot, decided: Plan) -> None:
    policy = snapshot.policy
    guarded = protected(snapshot.running, policy)
    seen = set()
    for one in decided.preemptions:
        assert policy.preemption != "off"
        assert one.run.id not in seen
        assert one.run.id not in snapshot.ending
        seen.add(one.run.id)
        attempt = one.run.attempt
        assert attempt is not None
        assert (queue.now - attempt.started_at).total_seconds() >= policy.min_runtime
        if one.by_quota:
            assert one.run.id not in guarded
            team, user = account_of(one.beneficiary, policy)
            assert policy.team(team).quota.guaranteed or policy.team(team).of(user).guaranteed
        else:
            assert policy.preemption == "priority"
            higher = one.run.spec.priority < one.beneficiary.spec.priority
            level = one.run.spec.priority == one.beneficiary.spec.priority
            more = attained(one.run, queue.now) >= policy.service > attained(one.beneficiary)
            assert higher or (level and policy.service and more and waited(one.run, queue.now) < policy.overdue)


def nobody_gives_way_in_turns(queue: Queue, snapshot: Snapshot, decided: Plan) -> None:
    assert len(queue.preempted) <= 20 * len(queue.durations)


def memory_changes_nothing(queue: Queue, snapshot: Snapshot, decided: Plan) -> None:
    assert plan(snapshot, queue.now) == decided
    assert len(decided.starts) + len(decided.waits) == len(snapshot.waiting)


@settings(LOOSE, max_examples=60)
@given(arrivals(), policies(), st.sampled_from([SMALL, MIXED]), st.sampled_from([{}, HISTORY]))
def test_every_decision_keeps_the_rules(work, policy: Policy, topology: Topology, history) -> None:
    def check(queue: Queue, snapshot: Snapshot, decided: Plan) -> None:
        for rule in (quotas_hold, nobody_gives_way_wrongly, nobody_gives_way_in_turns, memory_changes_nothing):
            rule(queue, snapshot, decided)
        if not history:
            nothing_that_fits_is_left_idle(queue, snapshot, decided)

    queue = Queue(topology, policy, check, history)
    for run, takes, at in work:
        queue.submit(run, takes, at)
    queue.run_until(50_000)
    # What never fits (its quota or the cluster) waits; everything else has run to its end.
    for run in queue.waiting.values():
        (wait,) = [w for w in plan(queue.snapshot(), queue.now).waits if w.run.id == run.id]
        assert wait.reason.kind is Kind.NEVER, wait


NAMES = [node.name for node in SMALL.nodes]
UNFIT = st.dictionaries(st.integers(1, 14), st.dictionaries(st.sampled_from(NAMES), st.just("it lacks it"), max_size=2))
BLOCKS = st.dictionaries(
    st.integers(1, 14), st.tuples(st.sampled_from(["lease", "backoff", "dependency", "held"]), st.floats(1.0, 3000.0))
)
CLOSED = st.lists(st.tuples(st.sampled_from(NAMES), st.floats(0.0, 1500.0), st.floats(1.0, 1500.0)), max_size=4)


@settings(LOOSE, max_examples=30)
@given(arrivals(most=8), policies(), UNFIT, BLOCKS, CLOSED)
def test_who_is_kept_back_and_which_nodes_are_closed_or_unfit_is_respected_together(
    work, policy: Policy, unfit, blocks, closed
) -> None:
    def check(queue: Queue, snapshot: Snapshot, decided: Plan) -> None:
        quotas_hold(queue, snapshot, decided)
        nobody_gives_way_wrongly(queue, snapshot, decided)
        memory_changes_nothing(queue, snapshot, decided)
        left_over(snapshot, decided)
        for start in decided.starts:
            assert start.run.id not in snapshot.blocked
            for part in start.placement.nodes:
                assert part.node not in unfit.get(start.run.id, {})
                assert snapshot.free.usable[SMALL.index[part.node]]

    queue = Queue(SMALL, policy, check, unfit=unfit)
    for run, takes, at in work:
        queue.submit(run, takes, at)
        if run.id in blocks:
            kind, until = blocks[run.id]
            queue.block(run, kind, at + until)
    taken: set[str] = set()
    for name, at, seconds in closed:
        if name not in taken:  # one closure of a node, so that none opens it within another
            taken.add(name)
            queue.close(name, at, seconds)
    queue.run_until(80_000)
    # Once nothing is kept back or closed any more, only what its unfit nodes or its quota rule out for good is left.
    for run in queue.waiting.values():
        (wait,) = [w for w in plan(queue.snapshot(), queue.now).waits if w.run.id == run.id]
        assert wait.reason.kind is Kind.NEVER or run.id in unfit, wait


@settings(LOOSE, max_examples=60)
@given(arrivals(priorities=(0,)), st.sampled_from([SMALL, MIXED]), st.sampled_from([{}, HISTORY]))
def test_the_first_that_waits_starts_no_later_than_it_was_promised(work, topology: Topology, history) -> None:
    promised: dict[int, datetime] = {}

    def check(queue: Queue, snapshot: Snapshot, decided: Plan) -> None:
        for start in decided.starts:
            assert queue.now <= promised.get(start.run.id, queue.now), start
        for wait in decided.waits[:1]:
            for kept in decided.reservations:
                if kept.run.id == wait.run.id and kept.sure is Sure.PROMISED and kept.start is not None:
                    before = promised.setdefault(wait.run.id, kept.start)
                    assert kept.start <= before + timedelta(seconds=1e-3)
                    promised[wait.run.id] = min(before, kept.start)

    queue = Queue(topology, Policy(preemption="off"), check, history)
    for run, takes, at in work:
        # Of one user: then only age decides who is first, and nobody comes in between. And none that, once it could start, may
        # choose to wait for a better place.
        spec = run.spec.model_copy(update={"team": None, "near": run.spec.near or Near(level="any")})
        queue.submit(replace(run, user="ana", spec=spec), takes, at)
    queue.run_until(50_000)


@settings(LOOSE, max_examples=8)
@given(st.integers(0, 2**32), st.sampled_from(["none", "some", "all"]), st.sampled_from(["4x2", 8, "2x2"]))
def test_no_stream_of_equal_or_smaller_work_starves_a_gang(seed: int, limits: str, gang: str | int) -> None:
    rng = random.Random(seed)
    policy = Policy(overdue=1000.0, half_life=86400.0)
    queue = Queue(SMALL, policy, history={("new", "train"): (1.0, 1.0, 1.0)})
    day = Use(("-", "big"), 8, START - timedelta(days=1), START)
    queue.usage = Ledger().charged([day], policy.half_life, START)
    near = "leaf!" if gang == "2x2" else None
    queue.submit(a_run(1, workers=gang, user="big", near=near, time_limit=500.0), 400.0, 10.0)
    at, number = 0.0, 1
    latest = 10 + policy.overdue + 9 * 300.0
    while at < latest:
        number += 1
        # Nobody who comes has had anything, so fair share alone would always put him first; and history lies.
        limit = {"none": None, "all": 300.0}.get(limits, rng.choice([None, 300.0]))
        user = rng.choice([f"u{number}", "new"])
        small = a_run(number, workers=rng.choice([1, 1, 2, "1x2"]), user=user, time_limit=limit)
        queue.submit(small, rng.choice([100.0, 200.0, 290.0]), at)
        at += rng.choice([1.0, 10.0, 60.0])
    queue.run_until(latest)
    assert 1 in queue.started_at


def test_a_guaranteed_run_that_gave_way_to_its_own_team_does_not_come_first_again() -> None:
    policy = Policy(teams={"-": Team(Quota(guaranteed=4))}, min_runtime=0.0)
    queue = Queue(SMALL, policy)
    queue.submit(a_run(1, workers=4, grace=20.0), 2000.0, 0.0)
    queue.submit(a_run(2, workers="4x2", near="any", priority=1, time_limit=50.0, user="bob"), 2000.0, 100.0)
    queue.run_until(5000)
    assert queue.preempted == [1]
    assert set(queue.ended) == {1, 2}


def test_a_refusal_names_no_node_that_is_well_again() -> None:
    said: list[str] = []

    def check(queue: Queue, snapshot: Snapshot, decided: Plan) -> None:
        said.extend(wait.reason.text for wait in decided.waits if wait.run.id == 2)
        memory_changes_nothing(queue, snapshot, decided)

    queue = Queue(SMALL, Policy(), check)
    queue.submit(a_run(1, workers="4x2", near="any"), 400.0)
    queue.submit(a_run(2, workers="1x2", near="any"), 5.0)
    queue.close("n0", 1.0, 1.0)
    queue.run_until(3000)
    assert said[0] == said[-1] == "no node has 2 GPUs free"
    assert any("n0: closed" in text for text in said)
