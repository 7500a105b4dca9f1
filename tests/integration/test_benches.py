"""Measured links: kept by the store, read from a run's log by the controller, and used by placement from then on."""

import asyncio
import json
from datetime import timedelta
from pathlib import Path

import pytest

from orchestrator.bench.results import MARK, TAGS
from orchestrator.control.backend import LogChunk
from orchestrator.control.bench_script import snapshot
from orchestrator.control.controller import Controller
from orchestrator.control.refused import Refused
from orchestrator.history.benches import BenchFilter
from orchestrator.scheduling.lifecycle import Event, State
from orchestrator.scheduling.run import Code, NewRun, Run
from orchestrator.spec import JobSpec
from orchestrator.testing import START, ManualClock, a_new_run, a_placement
from orchestrator.testing.benches import a_bench
from orchestrator.testing.cluster import FakeCluster
from orchestrator.testing.controlling import controlling, reaches

# === the store, on SQLite and PostgreSQL ===


def ran(store, **nodes):
    """A run with an attempt; its id."""
    run = store.submit(a_new_run(), START)[0].id
    store.place(run, a_placement(**nodes), START)
    store.record(run, Event.STARTED, START)
    return run


def test_a_result_comes_back_as_it_was(store):
    run = ran(store, a=(0, 1))
    benches = [
        a_bench("a", busbw=332.25, run=run, size=1 << 40, per_node=2),
        a_bench("a", busbw=2.5, run=run, backend="gloo", modelled=None),
    ]
    store.record_benches(benches)
    assert store.benches() == benches


def test_results_that_are_recorded_again_are_there_once(store):
    run = ran(store, a=(0, 1))
    store.record_benches([a_bench("a", busbw=1.0, run=run), a_bench("a", busbw=1.0, run=run, size=64)])
    store.record_benches([a_bench("a", busbw=2.0, run=run)])
    store.record_benches([])
    assert [bench.row.busbw for bench in store.benches()] == [2.0]


def test_results_are_found_by_run_time_node_collective_backend_and_size(store):
    one, two = ran(store, a=(0, 1)), ran(store, b=(0, 1))
    store.record_benches(
        [
            a_bench("a", busbw=1.0, run=one),
            a_bench("a", busbw=2.0, run=one, backend="gloo"),
            a_bench("a", busbw=3.0, run=one, collective="broadcast", size=64),
        ]
    )
    store.record_benches([a_bench("a", "b", busbw=4.0, run=two, day=2)])

    def found(**wanted):
        return [bench.row.busbw for bench in store.benches(BenchFilter(**wanted))]

    assert found() == [1.0, 3.0, 2.0, 4.0]
    assert found(runs=(two,)) == [4.0]
    assert found(since=START + timedelta(days=1)) == [4.0]
    assert found(nodes=frozenset("b")) == [4.0]
    assert found(collectives=("broadcast",)) == [3.0]
    assert found(backends=("gloo",)) == [2.0]
    assert found(least_bytes=65) == [1.0, 2.0, 4.0]


def test_a_result_is_held_against_a_year_of_its_link_and_a_month_of_the_others(store):
    run, other = ran(store, a=(0,)), ran(store, b=(0,))
    days = {run: (-400, -200, -40, -1), other: (-200, -31, -29)}
    nodes = {run: "a", other: "b"}
    kept = [
        a_bench(nodes[which], busbw=float(-day), run=which, day=day, size=64 << i)
        for which, each in days.items()
        for i, day in enumerate(each)
    ]
    store.record_benches(kept)
    found = store.related_benches([a_bench("a", busbw=1.0, run=run)], START)
    assert sorted((bench.link.nodes, bench.row.busbw) for bench in found) == [
        (("a",), 1.0),
        (("a",), 40.0),
        (("a",), 200.0),
        (("b",), 29.0),
    ]
    assert store.related_benches([], START) == []


# === the controller ===


def measuring(*, code: str | None = None, **spec: object) -> NewRun:
    fields = {"name": "bench", "run": "collectives.py", "workers": "2x1", "tags": TAGS, **spec}
    return NewRun(JobSpec(**fields), "ana", Code(code or snapshot().sha256), "/w")


def says(controller: Controller, run: Run, busbw: float, ranks: int = 2) -> None:
    """Rank 0 prints what it measured."""
    row = {
        "collective": "all_reduce",
        "backend": "nccl",
        "bytes": 1 << 30,
        "time_us": 1.0,
        "algbw": busbw,
        "busbw": busbw,
        "iterations": 20,
        "wrong": 0,
    }
    lines = [{"ranks": ranks, "versions": {"torch": "2.11.0"}}, row]
    text = "".join(f"a line of NCCL\n{MARK}{json.dumps(line)}\n" for line in lines)
    controller.logs.write(LogChunk(run.id, 1, 0, 0, text.encode(), 0.0))


async def measure(controller: Controller, cluster: FakeCluster, new: NewRun, busbw: float) -> Run:
    run, _ = await controller.submit(new, {})
    run = await reaches(controller, run, State.RUNNING)
    says(controller, run, busbw)
    assert run.attempt is not None
    for part in run.attempt.placement.nodes:
        cluster.agents[part.node].end(run.id, 1)
    return await reaches(controller, run, State.SUCCEEDED)


async def predicted(controller: Controller) -> tuple[float, str]:
    answer = {"placement": None}
    while answer["placement"] is None:  # until the agents have answered
        answer = await controller.dry_run(JobSpec(run="train.py", workers="2x1"), "ana")
        await asyncio.sleep(0.005)
    return answer["placement"]["busbw_predicted"], answer["placement"]["busbw_bottleneck"]


def test_what_a_run_measured_is_kept_and_predicts_from_then_on_also_after_a_restart(tmp_path: Path) -> None:
    async def story() -> None:
        cluster, clock = FakeCluster(a=1, b=1), ManualClock()
        async with controlling(tmp_path, cluster, now=clock) as controller:
            model, bound = await predicted(controller)
            assert "measured" not in bound
            run = await measure(controller, cluster, measuring(only=("a", "b")), 0.5 * model)
            (shown,) = await controller.benches.shown(BenchFilter(runs=(run.id,)))
            assert (shown["nodes"], shown["ranks"], shown["busbw"]) == (["a", "b"], 2, 0.5 * model)
            assert shown["predicted"] == pytest.approx(model, rel=0.01)
            assert shown["versions"] == {"torch": "2.11.0"}
            assert await predicted(controller) == (
                pytest.approx(0.5 * model, rel=0.02),
                f"{bound}, measured on 2026-01-05",
            )
        async with controlling(tmp_path, cluster, now=clock) as controller:
            assert (await predicted(controller))[1] == f"{bound}, measured on 2026-01-05"

    asyncio.run(story())


def test_a_second_result_is_held_against_the_first(tmp_path: Path) -> None:
    async def story() -> None:
        cluster, clock = FakeCluster(a=1, b=1), ManualClock()
        async with controlling(tmp_path, cluster, now=clock) as controller:
            await measure(controller, cluster, measuring(), 2.0)
            clock.advance(86400)
            run = await measure(controller, cluster, measuring(), 1.5)
            (shown,) = await controller.benches.shown(BenchFilter(runs=(run.id,)))
            assert (shown["earlier_median"], shown["earlier"], shown["change"]) == (2.0, 1, -0.25)

    asyncio.run(story())


def test_a_controller_that_comes_after_reads_what_the_one_before_it_did_not(tmp_path: Path) -> None:
    async def story() -> None:
        cluster, clock = FakeCluster(a=1, b=1), ManualClock()
        async with controlling(tmp_path, cluster, now=clock) as controller:
            run, _ = await controller.submit(measuring(), {})
            run = await reaches(controller, run, State.RUNNING)
            says(controller, run, 2.0)
        for agent in cluster.agents.values():
            agent.end(run.id, 1)
        async with controlling(tmp_path, cluster, now=clock) as controller:
            await reaches(controller, run, State.SUCCEEDED)
            assert [one["busbw"] for one in await controller.benches.shown(BenchFilter())] == [2.0]

    asyncio.run(story())


@pytest.mark.parametrize("new", [measuring(code="0" * 64), measuring(tags={}, backend="gloo")])  # no trial of links
def test_only_orchs_own_script_is_believed(tmp_path: Path, new: NewRun) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1)
        async with controlling(tmp_path, cluster, now=ManualClock()) as controller:
            await measure(controller, cluster, new, 9000.0)
            assert await controller.benches.shown(BenchFilter()) == []

    asyncio.run(story())


def test_a_run_that_failed_has_measured_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1)
        async with controlling(tmp_path, cluster, now=ManualClock()) as controller:
            run, _ = await controller.submit(measuring(), {})
            run = await reaches(controller, run, State.RUNNING)
            says(controller, run, 2.0)
            cluster.agents["a"].end(run.id, 1, 1)
            await reaches(controller, run, State.FAILED)
            assert await controller.benches.shown(BenchFilter()) == []

    asyncio.run(story())


def test_a_run_for_nodes_that_are_not_there_is_refused_with_their_names(tmp_path: Path) -> None:
    async def story() -> None:
        async with controlling(tmp_path, FakeCluster(a=1, b=1), now=ManualClock()) as controller:
            with pytest.raises(Refused, match="no such node: c, d; the cluster has a, b") as refusal:
                await controller.submit(measuring(only=("d", "a", "c")), {})
            assert refusal.value.code == 3
            with pytest.raises(Refused, match="the run takes only a") as refusal:
                await controller.submit(measuring(only="a"), {})
            assert refusal.value.code == 5

    asyncio.run(story())
