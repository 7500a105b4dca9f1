"""What holds of every replay: no GPU twice, work conserved, the same input the same output; and what attempts cost."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replays import Watched, ends, replay, trace

from orchestrator.placement.tree import Topology
from orchestrator.scheduling.simulate.clusters import plain, with_more_nodes
from orchestrator.scheduling.simulate.jobs import Job, Trace, trace_of
from orchestrator.scheduling.simulate.measures import as_json, measure, percentile
from orchestrator.scheduling.simulate.placers import first_fit
from orchestrator.scheduling.simulate.queues import Fifo, LeastAttained
from orchestrator.scheduling.simulate.replay import Costs, Replay
from orchestrator.scheduling.simulate.speed import Speed
from orchestrator.scheduling.simulate.study import NAMES, Rules, policy_named, study, with_limits
from orchestrator.scheduling.simulate.world import Decision

POLICIES = [*NAMES, "greedy:one-node", "fifo-backfill:pack", "las:spread"]


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    """Up to 25 jobs of which some need more than a node."""
    jobs = []
    for number in range(draw(st.integers(1, 25))):
        duration = draw(st.sampled_from([0.0, 1.0, 7.0, 60.0, 1000.0]))
        jobs.append(
            Job(
                str(number),
                draw(st.sampled_from([1, 1, 2, 3, 4, 6, 8, 12])),
                draw(st.integers(0, 200)) * 1.0,
                duration,
                name=draw(st.sampled_from(["bert", "resnet"])),
                user=draw(st.sampled_from(["ana", "bo"])),
                limit_s=draw(st.sampled_from([None, duration * 2 + 1])),
            )
        )
    return trace_of(jobs)


costs = st.builds(Costs, st.sampled_from([0.0, 5.0]), st.sampled_from([0.0, 30.0]), st.sampled_from([0.0, 20.0]),
                  st.sampled_from([0.0, 0.0, 60.0]))  # fmt: skip
rules = Rules(las_threshold_gpu_s=60.0)


def a_replay(jobs: Trace, policy: str, cost: Costs, talk: float = 0.3) -> Replay:
    topology = Topology(plain(3, 4, 2))
    return Replay(jobs, topology, policy_named(policy, rules), Speed(topology, talk=talk), cost)


@settings(max_examples=40)
@given(traces(), st.sampled_from(POLICIES), costs)
def test_no_gpu_is_given_twice_and_what_is_free_is_what_nobody_holds(jobs, policy, cost):
    replay = a_replay(jobs, policy, cost)
    for world in replay.moments():
        held = Counter()
        for life in world.running.values():
            for index, mask in life.parts:
                held.update((index, bit) for bit in range(mask.bit_length()) if mask >> bit & 1)
        assert not [gpu for gpu, times in held.items() if times > 1]
        assert world.free_gpus == world.gpus - len(held)
        assert [world.free.mask(i) for i in range(3)] == world.masks
        assert not world.running.keys() & world.waiting.keys()
    assert all(life.finished_s is not None for life in replay.lives)


@settings(max_examples=40)
@given(traces(), st.sampled_from(POLICIES), costs)
def test_work_is_conserved_and_preemption_costs_what_it_costs(jobs, policy, cost):
    replayed = a_replay(jobs, policy, cost, talk=0.0).run()
    for life in replayed.lives:
        # Its attempts held its GPUs for its work, for what was lost of it, and for the start of the last.
        last_start = cost.restart_s if life.starts > 1 else cost.start_s
        lost = life.lost_gpu_s / life.job.gpus
        assert life.ran_s == pytest.approx(life.job.duration_s + lost + last_start, abs=1e-6)
        assert life.finished_s >= life.first_start_s + life.job.duration_s - 1e-6
        assert life.first_start_s >= life.job.submit_s


@settings(max_examples=25)
@given(traces(), st.sampled_from(POLICIES), costs)
def test_the_same_trace_has_the_same_replay(jobs, policy, cost):
    one, two = (measure(a_replay(jobs, policy, cost).run()) for _ in range(2))

    assert one == two


@settings(max_examples=40)
@given(traces(), st.sampled_from(["fifo", "greedy", "fifo-backfill", "las"]), costs)
def test_measures_agree_with_a_witness(jobs, policy, cost):
    witness = Watched(policy_named(policy, rules))
    topology = Topology(plain(3, 4, 2))
    replayed = Replay(jobs, topology, witness, Speed(topology, talk=0.3), cost).run()
    for life in replayed.lives:
        if life.number in witness._open:
            witness._close(life.number, life.finished_s)
    found = measure(replayed)
    by_job = {job.id: job for job in jobs.jobs}
    last = {}
    ran = Counter()
    for interval in sorted(witness.intervals, key=lambda each: each.begin):
        last[interval.job] = interval
        ran[interval.job] += interval.end - interval.begin
    true_end = {life.job.id: life.finished_s for life in replayed.lives}
    makespan = max(true_end.values())
    # With a cycle the policy hears of an end later than it was; the account must not.
    if not cost.cycle_s:
        assert {job: interval.end for job, interval in last.items()} == true_end
        waits = sorted(true_end[j] - by_job[j].submit_s - ran[j] for j in by_job)
        busy = sum(each.gpus * (each.end - each.begin) for each in witness.intervals)
        assert found.wait.mean == pytest.approx(sum(waits) / len(waits), abs=1e-6)
        assert found.utilisation == pytest.approx(busy / (12 * makespan) if makespan else 0)
    assert found.preemptions == len(witness.intervals) - len(by_job)
    gangs = [each for each in last.values() if each.gpus > 1]
    crossing = [each for each in gangs if len({node // 2 for node in each.nodes}) > 1]
    assert found.cross_leaf == pytest.approx(len(crossing) / len(gangs) if gangs else 0)


@settings(max_examples=40)
@given(traces())
def test_greedy_leaves_nothing_idle_that_somebody_waiting_could_use(jobs):
    for world in a_replay(jobs, "greedy", Costs()).moments():
        smallest = min((life.job.gpus for life in world.waiting.values()), default=None)
        assert smallest is None or smallest > world.free_gpus


# === what attempts cost ===


def test_the_first_start_and_the_further_ones_cost_what_is_said():
    queue = trace((0, 4, 100), (5, 4, 2))
    replayed = replay(queue, LeastAttained(first_fit, 20), nodes=1, costs=Costs(start_s=3, restart_s=10))

    # a works from 3 to 5 (b comes), is back from b's end at 10 and needs 10 to start and 98 to finish.
    assert ends(replayed) == {"a": 118, "b": 10}
    assert replayed.lives[0].lost_gpu_s == 4 * 3


def test_preempted_work_is_lost_back_to_the_last_checkpoint():
    queue = trace((0, 4, 100), (35, 4, 2))
    replayed = replay(queue, LeastAttained(first_fit, 8), nodes=1, costs=Costs(restart_s=0, checkpoint_s=20))

    assert ends(replayed) == {"a": 37 + 80, "b": 37}
    assert replayed.lives[0].lost_gpu_s == 4 * 15
    assert measure(replayed).preempted_gpu_seconds == 60


def test_with_a_cycle_policies_are_asked_at_its_multiples_only():
    replayed = replay(trace((1, 4, 10), (2, 4, 10)), Fifo(first_fit), nodes=1, costs=Costs(cycle_s=60))

    # The clock starts at the first submission.
    assert {life.job.id: life.first_start_s for life in replayed.lives} == {"a": 0, "b": 60}


def test_jobs_that_never_fit_are_left_out_and_counted():
    replayed = replay(trace((0, 9, 5), (0, 8, 5)), Fifo(first_fit))

    assert [job.id for job in replayed.never] == ["a"]
    assert measure(replayed).never == 1
    assert measure(replayed).runs == 1


def test_a_policy_that_lets_jobs_wait_for_ever_is_found_out():
    class Idle:
        name = "idle"

        def decide(self, world, now):
            return Decision()

    with pytest.raises(RuntimeError, match="idle left 1 jobs waiting for ever, the first of them job a"):
        replay(trace((0, 1, 5)), Idle())


def test_a_policy_that_asks_without_end_is_stopped():
    class Nervous:
        name = "nervous"

        def decide(self, world, now):
            return Decision(look_again_s=now)

    with pytest.raises(RuntimeError, match="nervous asks to be asked again"):
        replay(trace((0, 1, 5)), Nervous())


def test_gpus_that_are_held_cannot_be_given():
    class Twice:
        name = "twice"

        def decide(self, world, now):
            return Decision(starts=[(life, ((0, 1),)) for life in world.waiting.values()])

    with pytest.raises(ValueError, match="held already"):
        replay(trace((0, 1, 5), (0, 1, 5)), Twice())


# === measures ===


def test_utilisation_counts_up_to_the_last_submission_too():
    # Eight GPUs: 4 of them for 100 s; the last submission is at 10.
    found = measure(replay(trace((0, 4, 100), (10, 4, 10)), Fifo(first_fit)))

    assert found.utilisation == pytest.approx((400 + 40) / 800)
    assert found.utilisation_arriving == pytest.approx(0.5)
    assert found.makespan == 100


def test_slowdown_is_bounded_for_the_shortest():
    found = measure(replay(trace((0, 8, 100), (0, 1, 1)), Fifo(first_fit)))

    assert found.slowdown.mean == pytest.approx((1 + 101 / 10) / 2)


def test_fragmentation_says_how_much_smaller_the_largest_gang_is_than_it_could_be():
    # Three of four on each of two nodes: two are free, and no node has both.
    scattered = measure(replay(trace((0, 3, 100), (0, 3, 100)), Fifo(first_fit)))
    together = measure(replay(trace((0, 4, 100), (0, 2, 100)), Fifo(first_fit)))

    assert scattered.fragmentation == pytest.approx(0.5)
    assert together.fragmentation == 0


def test_percentiles_lie_between_neighbours():
    assert [percentile([1.0, 2.0, 3.0], share) for share in (0, 0.25, 0.5, 1)] == [1, 1.5, 2, 3]
    assert percentile([], 0.5) == 0


def test_the_json_has_the_promised_keys():
    promised = (
        "policy runs mean_wait p95_wait mean_completion p95_completion utilisation cross_leaf preempted_gpu_seconds"
    )

    assert set(promised.split()) <= as_json(measure(replay(trace((0, 1, 5)), Fifo(first_fit)))).keys()


# === studies ===


def test_limits_are_the_traces_own_or_a_multiple_of_the_duration():
    jobs = trace((0, 1, 50, 70), (0, 1, 50))
    speed = Speed(Topology(plain(1, 4)))

    assert [job.limit_s for job in with_limits(jobs, speed, 3).jobs] == [70, 150]
    assert [job.limit_s for job in with_limits(jobs, speed, 0).jobs] == [70, None]


def test_what_if_there_were_more_nodes():
    jobs = trace((0, 8, 10), (0, 8, 10))
    small = plain(1, 8)
    rows = study(jobs, [("", small), ("+1 nodes", with_more_nodes(small, 1))], ["fifo", "orch"], Rules())

    assert [(row.label, row.measures.policy, row.measures.makespan) for row in rows] == [
        ("", "fifo", 20),
        ("", "orch", 20),
        ("+1 nodes", "fifo", 10),
        ("+1 nodes", "orch", 10),
    ]


def test_added_nodes_fill_leaves_before_they_open_new_ones():
    cluster = with_more_nodes(plain(6, 8, leaf_nodes=4), 4)

    assert {leaf: len(nodes) for leaf, nodes in cluster.members("leaf").items()} == {
        "leaf-1": 4,
        "leaf-2": 4,
        "added-leaf-3": 2,
    }
