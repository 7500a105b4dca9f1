"""What is measured, in both databases: written with the run, aged, counted into GPU time that sums."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from orchestrator.health.failure import Failure
from orchestrator.history import measurements
from orchestrator.history.ledger import gpu_time
from orchestrator.history.measurements import Measured
from orchestrator.history.render import show_json
from orchestrator.history.store import Store
from orchestrator.progress.gpu_time import GpuTime
from orchestrator.progress.values import GangSample, GpuSample, Progress, RankSample
from orchestrator.scheduling.lifecycle import Event, Outcome
from orchestrator.scheduling.run import NodeRecord, Run
from orchestrator.testing import START, a_new_run, a_placement


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


@pytest.fixture
def store(url: str, open_store: Any) -> Store:
    opened: Store = open_store(url)
    opened.claim_epoch("test", START)
    opened.prices = {"H100": 3.6}
    gpus = {"gpus": [{"index": 0, "model": "NVIDIA H100 80GB HBM3"}] * 2}
    opened.upsert_nodes([NodeRecord("a", "10.0.0.1", "up", START, START, gpus)])
    return opened


def progress(first: float, last: float, **change: Any) -> Progress:
    plain = Progress("auto", 100, 800, 80.0, 0.1, 0.1, 0.2, first_step_at=at(first), last_step_at=at(last))
    busy = round((last - first) * 1000)
    return replace(plain, **{"busy_ms": busy, "unsaved_ms": busy, "metrics": {"loss": 0.5}, **change})


def placed(store: Store) -> Run:
    run, _ = store.submit(a_new_run(workers=4), START)
    return store.place(run.id, a_placement(a=(0, 1), b=(0, 1)), at(10))


def finish(store: Store, run: int, event: Event, outcome: Outcome, when: datetime, **more: Any) -> None:
    """Ends the attempt and counts it, as the controller does."""
    store.count([store.finish(run, event, outcome, when, **more)], when)


def used(store: Store, run: int, attempt: int = 1) -> dict[str, GpuTime]:
    found = store.get(run)
    assert found is not None
    return {node.node: node.time for node in found.attempts[attempt - 1].used}


def test_a_run_of_two_attempts_is_counted_to_the_millisecond(store: Store) -> None:
    run = placed(store).id
    store.record(run, Event.STARTED, at(11))
    first = progress(20, 60, save_ms=5000, busy_ms=35_000, unsaved_ms=15_000, saves=1, saved_steps=60, saved_at=at(45))
    store.measure([Measured(run, 1, first)], at(62))
    # Alive: the step under way is work too, until the next count says more.
    assert used(store, run) == dict.fromkeys("ab", GpuTime(10_000, 37_000, 5_000) * 2)
    failure = Failure("node_lost", "b was lost", node="b")
    finish(store, run, Event.REQUEUED, Outcome.INFRA_ERROR, at(70), failure=failure, fenced={"b": at(100)})
    assert used(store, run)["a"] == GpuTime(10_000, 20_000, 5_000, 15_000, 10_000) * 2
    # The node that may still run it is held until its lease is over.
    assert store.release_fenced(at(100)) == 2
    assert used(store, run)["b"] == GpuTime(10_000, 20_000, 5_000, 15_000, 40_000) * 2
    store.place(run, a_placement(a=(0, 1), c=(0, 1)), at(120))
    second = progress(130, 200, resumed=True, repeated_steps=40)
    store.measure([Measured(run, 2, second)], at(200))
    finish(store, run, Event.SUCCEEDED, Outcome.SUCCEEDED, at(201), exit_codes=dict.fromkeys(range(4), 0))
    found = store.get(run)
    assert found is not None
    assert [attempt.progress for attempt in found.attempts] == [first, second]
    whole = gpu_time(found)
    assert whole.allocated == 2 * (60 + 90 + 81 + 81) * 1000
    shown = show_json(found)
    assert shown["throughput"] == {
        "samples_per_s": 80.0,
        "step_time": 0.1,
        "steps": 160,
        "source": "auto",
        "step_time_p50": 0.1,
        "step_time_p99": 0.2,
        "samples": 1600,
        "repeated_steps": 40,
        "metrics": {"loss": 0.5},
    }
    parts = dict(shown["gpu_seconds"])
    assert parts.pop("allocated") == sum(parts.values()) == whole.allocated / 1000
    assert shown["queue_seconds"] == 10 + 50
    # H100s of node a alone have a price: 3.6 an hour is a thousandth a second.
    assert shown["cost"] == round(2 * (60 + 81) * 0.001, 2)
    assert [one.attempts[0].used for one in store.runs()] == [found.attempts[0].used]


def test_work_that_a_later_attempt_did_not_take_up_is_lost_whole(store: Store) -> None:
    run = placed(store).id
    store.measure([Measured(run, 1, progress(20, 60, unsaved_ms=0, saves=1, saved_steps=100))], at(62))
    finish(store, run, Event.FAILED, Outcome.USER_ERROR, at(60))
    assert used(store, run)["a"].lost == 0
    store.record(run, Event.RETRY_ASKED, at(61))
    store.place(run, a_placement(a=(0, 1), b=(0, 1)), at(62))
    store.measure([Measured(run, 2, progress(70, 80, resumed=False))], at(80))
    assert used(store, run)["a"] == GpuTime(10_000, 0, 0, 40_000) * 2


def test_a_series_ages_while_the_run_lives_and_is_kept_whole_when_it_was_short(
    store: Store, url: str, raw: Any
) -> None:
    for length in (600, 2 * 3600):
        run = placed(store).id
        rows = tuple(GangSample(at(10 + 10 * i), 10, 10_000, 5, 40, 0.1, 0.1, 0.2) for i in range(length // 10))
        ranks = tuple(RankSample(r, at(10 + 60 * i), 60, 60_000, 30) for r in range(4) for i in range(length // 60))
        gpus = tuple(
            GpuSample("a", 0, at(10 + 60 * i), 60, 12, 90.0, throttled_by=("hw_thermal",)) for i in range(length // 60)
        )
        store.measure([Measured(run, 1, progress(20, length), rows, ranks, gpus)], at(length))
        with raw(url) as connection:
            live = connection.execute(text(f"SELECT count(*) FROM gang_samples WHERE run_id = {run}")).scalar()
        assert live == (60 if length == 600 else 360 + 61)
        finish(store, run, Event.SUCCEEDED, Outcome.SUCCEEDED, at(length + 10))
        with store._database.read() as connection:
            series = measurements.series(connection, run)[1]
            of_ranks = measurements.rank_series(connection, (run, 1))
            of_gpus = measurements.gpu_series(connection, (run, 1))
        assert {row.seconds for row in series} == ({10} if length == 600 else {60})
        assert sum(row.steps for row in series) == length // 10 * 5
        assert {row.seconds for row in of_ranks} == ({60} if length == 600 else {600})
        assert sum(row.steps for row in of_ranks) == 4 * length // 60 * 30
        assert of_gpus[0].throttled_by == ("hw_thermal",)


def test_scaling_of_a_name_is_over_all_its_runs(store: Store) -> None:
    run = placed(store)
    store.measure([Measured(run.id, 1, progress(20, 60))], at(62))
    finish(store, run.id, Event.SUCCEEDED, Outcome.SUCCEEDED, at(70))
    larger, _ = store.submit(a_new_run(workers=8), at(80))
    store.place(larger.id, a_placement(a=(0, 1, 2, 3), b=(0, 1, 2, 3)), at(90))
    store.measure([Measured(larger.id, 1, replace(progress(95, 99), samples_per_s=120.0))], at(99))
    assert [(one.workers, one.efficiency) for one in store.scaling(run.name)] == [(4, 1.0), (8, 0.75)]
    assert store.scaling("another") == []


def test_the_database_itself_refuses_gpu_time_that_does_not_sum(store: Store, url: str, raw: Any) -> None:
    run = placed(store).id
    store.measure([Measured(run, 1)], at(20))
    with raw(url) as connection, pytest.raises(Exception, match="gpu_time_sums"):
        connection.execute(text("UPDATE gpu_time SET idle_ms = idle_ms + 1"))
    assert used(store, run)["a"] == GpuTime(starting=20_000)
