"""A place is kept for the first waiting run, and others use it only if they are gone in time."""

from __future__ import annotations

from datetime import timedelta

from orchestrator.placement.tree import Free, Topology
from orchestrator.policy import Policy
from orchestrator.scheduling.decision import Kind, Sure
from orchestrator.scheduling.lifecycle import Outcome, State
from orchestrator.scheduling.plan import plan
from orchestrator.scheduling.run import Attempt, Run
from orchestrator.scheduling.snapshot import Block, Snapshot
from orchestrator.testing import START, a_placement, a_run
from orchestrator.testing.hardware import cluster, node

#   leaf l1      leaf l2
#   a:2  b:2     c:2  d:2
FOUR = Topology(cluster(*(node(n, 2, leaf=leaf) for n, leaf in zip("abcd", ("l1", "l1", "l2", "l2"), strict=True))))
STRICT = Policy(preemption="off")


def live(number: int, since: float = 0.0, *, on: dict[str, tuple[int, ...]], **fields: object) -> Run:
    """A run that has held these GPUs for `since` seconds."""
    begun = START - timedelta(seconds=since)
    attempt = Attempt(1, a_placement(**on), begun, ranks_started_at=begun)
    total = sum(len(gpus) for gpus in on.values())
    return a_run(number, State.RUNNING, at=begun, workers=total, attempts=(attempt,), **fields)


def state(waiting: list[Run], running: list[Run], policy: Policy = STRICT, **more: object) -> Snapshot:
    free = Free(FOUR)
    for run in running:
        for part in run.attempt.placement.nodes:
            free.take(part.node, part.gpus)
    return Snapshot(tuple(waiting), free, tuple(running), policy=policy, **more)


def started(decided) -> list[int]:
    return [start.run.id for start in decided.starts]


def test_the_start_of_the_first_that_waits_is_promised_by_time_limits() -> None:
    running = [live(1, 600, on={"a": (0, 1)}, time_limit=3600.0), live(2, 0, on={"b": (0, 1)}, time_limit=7200.0)]
    decided = plan(state([a_run(3, workers="3x2")], running), START)
    (kept,) = decided.reservations
    assert (kept.run.id, kept.sure, kept.waits_for) == (3, Sure.PROMISED, (1,))
    assert kept.start == START + timedelta(seconds=3600 - 600 + 30 + 5)
    assert sorted(part.node for part in kept.placement.nodes) == ["a", "c", "d"]


def test_a_run_that_is_gone_in_time_uses_the_kept_place_and_one_that_may_not_be_does_not() -> None:
    running = [live(1, 0, on={"a": (0, 1), "b": (0, 1)}, time_limit=3600.0)]
    head = a_run(2, workers="4x2")
    short, long, unknown = a_run(3, time_limit=1800.0), a_run(4, time_limit=7200.0), a_run(5)
    decided = plan(state([head, short, long, unknown], running), START)
    assert started(decided) == [3]
    assert decided.starts[0].before == 2
    assert [wait.reason.kind for wait in decided.waits] == [Kind.SHAPE, Kind.RESERVED, Kind.RESERVED]


def test_a_place_is_kept_and_not_a_number_so_whoever_is_elsewhere_may_stay() -> None:
    running = [live(1, 0, on={"a": (0, 1)}, time_limit=3600.0)]
    decided = plan(state([a_run(2, workers="2x2", near="leaf!"), a_run(3, workers="1x2")], running), START)
    assert started(decided) == [2, 3]
    running = [live(1, on={"a": (0, 1)}, time_limit=600.0), live(2, on={"c": (0, 1)}, time_limit=7200.0)]
    decided = plan(state([a_run(3, workers="2x2", near="leaf!"), a_run(4, workers="1x2")], running), START)
    # l1 is kept for run 3, so run 4, which nobody knows the end of, goes to what is left of l2.
    assert [(s.run.id, s.placement.nodes[0].node) for s in decided.starts] == [(4, "d")]


def test_what_nobody_knows_the_end_of_gives_no_time_and_its_place_is_kept_from_everybody() -> None:
    decided = plan(state([a_run(2, workers="4x2"), a_run(3, time_limit=60.0)], [live(1, on={"a": (0, 1)})]), START)
    assert started(decided) == []
    (kept,) = decided.reservations
    assert (kept.start, kept.sure) == (None, Sure.UNKNOWN)


def test_history_stands_in_for_a_limit_with_a_margin_and_is_not_trusted_beyond_it() -> None:
    history = {("ana", "train"): (1000.0, 900.0, 800.0), ("ana", "quick"): (10.0, 20.0, 30.0)}
    head, quick = a_run(2, name="big", workers="4x2"), a_run(3, name="quick")
    for since, sure, starts in ((0, Sure.EXPECTED, [3]), (1400, Sure.EXPECTED, []), (1501, Sure.UNKNOWN, [])):
        decided = plan(state([head, quick], [live(1, since, on={"a": (0, 1)})], history=history), START)
        assert (decided.reservations[0].sure, started(decided)) == (sure, starts)


def test_what_is_promised_is_not_risked_on_what_is_only_expected() -> None:
    history = {("ana", "quick"): (10.0, 20.0, 30.0)}
    head, quick = a_run(2, name="big", workers="4x2"), a_run(3, name="quick")
    running = [live(1, 0, on={"a": (0, 1)}, time_limit=3600.0)]
    assert started(plan(state([head, quick], running, history=history), START)) == []


def test_several_places_are_kept_as_many_as_the_policy_says() -> None:
    running = [live(1, on={"a": (0, 1)}, time_limit=3600.0), live(2, on={"c": (0, 1)}, time_limit=3600.0)]
    waiting = [a_run(i, workers="2x2", near="leaf!") for i in (3, 4)] + [a_run(5)]
    assert started(plan(state(waiting, running), START)) == []
    one = plan(state(waiting, running, Policy(preemption="off", reservations=1)), START)
    assert started(one) == [5]
    assert len(one.reservations) == 1


def test_a_gang_that_waits_for_a_lease_finds_its_own_nodes_kept() -> None:
    lost = Attempt(
        1, a_placement(a=(0, 1), b=(0, 1)), START - timedelta(hours=1), ended_at=START, outcome=Outcome.INFRA_ERROR
    )
    old = a_run(7, at=START - timedelta(hours=2), workers="2x2", attempts=(lost,))
    free = Free(FOUR)
    free.take("b", (0, 1))  # cut off: its lease has not run out
    block = {7: Block("lease", "waits for a lease", START + timedelta(seconds=20))}
    others = [a_run(i, at=START - timedelta(hours=3), workers="1x2") for i in (1, 2, 3)]
    decided = plan(Snapshot((old, *others), free, blocked=block, policy=STRICT), START)
    assert sorted(start.placement.nodes[0].node for start in decided.starts) == ["c", "d"]
    assert {r.run.id: r.start for r in decided.reservations}[7] == START + timedelta(seconds=20)
    # The lease is over: it goes first, though others have waited longer.
    free.give("b", (0, 1))
    decided = plan(Snapshot((old, *others), free, policy=STRICT), START + timedelta(seconds=20))
    assert started(decided)[0] == 7
    assert {part.node for part in decided.starts[0].placement.nodes} == {"a", "b"}


def test_a_second_plan_of_the_same_is_the_same_with_what_the_first_left() -> None:
    running = [live(1, on={"a": (0, 1)}, time_limit=3600.0)]
    snapshot = state([a_run(2, workers="4x2"), a_run(3, time_limit=60.0), a_run(4)], running)
    first = plan(snapshot, START)
    assert plan(snapshot, START, first.memory) == first
