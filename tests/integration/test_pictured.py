"""What pages are drawn from, in both databases: folded to what a page can show, and drawn."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from orchestrator.health.failure import Failure
from orchestrator.history.measurements import Measured
from orchestrator.history.store import Store
from orchestrator.pictures.cluster_page import cluster_page
from orchestrator.pictures.runs_page import runs_page
from orchestrator.progress.values import GangSample, GpuSample, Progress, RankSample
from orchestrator.scheduling.lifecycle import Event, Outcome
from orchestrator.scheduling.run import NodeRecord
from orchestrator.testing import START, a_new_run, a_placement


def at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


@pytest.fixture
def store(url: str, open_store: Any) -> Store:
    opened: Store = open_store(url)
    opened.claim_epoch("test", START)
    hardware = {
        "device": "cuda",
        "total": 4,
        "gpus": [{"index": i, "model": "H100"} for i in range(4)],
        "islands": [[0, 1], [2, 3]],
    }
    for name in ("a", "b"):
        opened.upsert_nodes([NodeRecord(name, "10.0.0.1", "up", START, START, hardware)])
    return opened


def an_hour(store: Store, workers: int = 4, **spec: Any) -> int:
    """A run that fails after 20 minutes, is tried again, and ends after an hour; rank 1 is slow."""
    placement = a_placement(a=(0, 1), b=(0, 1)) if workers == 4 else a_placement(a=(0,))
    run, _ = store.submit(a_new_run(workers=workers, **spec), START)
    for attempt, (begin, end) in enumerate(((2, 20), (25, 60)), 1):
        store.place(run.id, placement, at(begin))
        store.record(run.id, Event.STARTED, at(begin))
        gang = [
            GangSample(at(begin + i / 6), 10, 10_000, 100, 800, 0.1, metrics={"loss": 1.0})
            for i in range(6 * (end - begin))
        ]
        ranks = [
            RankSample(rank, at(begin + i), 60, 60_000, 600, 4800, 0.1, 0.15 if rank == 1 else 0.09)
            for i in range(end - begin)
            for rank in range(workers)
        ]
        gpus = [
            GpuSample("a", 0, at(begin + i), 60, 6, 90.0, 2048.0, throttled_by=("hw_thermal",), throttled=0.5)
            for i in range(end - begin)
        ]
        seen = Progress(
            "auto",
            1000,
            8000,
            20.0 * workers,
            0.1,
            first_step_at=at(begin),
            last_step_at=at(end),
            busy_ms=60_000 * (end - begin),
        )
        store.measure(
            [Measured(run.id, attempt, replace(seen, metrics={"loss": 1.0}), tuple(gang), tuple(ranks), tuple(gpus))],
            at(end),
        )
        if attempt == 1:
            store.finish(
                run.id,
                Event.REQUEUED,
                Outcome.INFRA_ERROR,
                at(end),
                failure=Failure("node_lost", "b is gone", None, "b"),
            )
        else:
            store.finish(run.id, Event.SUCCEEDED, Outcome.SUCCEEDED, at(end))
    return run.id


def test_a_runs_page_holds_all_attempts_on_one_clock_in_few_points(store: Store) -> None:
    run = an_hour(store)
    data = store.run_pictured(run, at(61))
    assert data is not None
    assert [(one["attempt"], one["seconds"]) for one in data["series"]] == [(1, 10), (2, 10)]
    assert {row["samples_per_s"] for one in data["series"] for row in one["rows"]} == {80.0}
    ranks = data["ranks"]
    assert (ranks["ranks"], ranks["seconds"], ranks["measure"]) == (4, 60, "own work")
    assert ranks["steps"][:18] == [0.1] * 18
    assert ranks["means"] == {"0": 0.09, "1": 0.15, "2": 0.09, "3": 0.09}
    # Nothing is known of the minutes between the attempts.
    assert ranks["values"][1][:18] == [0.15] * 18
    assert ranks["values"][1][18:23] == [None] * 5
    assert data["gpus"]["shown"][0]["rows"][0]["memory_gib"] == 2.0
    assert data["gpus"]["throttled"] == {"a:0": ["hw_thermal"]}
    assert data["nodes"]["a"]["islands"] == [[0, 1], [2, 3]]
    page = runs_page([data])
    assert "rank 1 a" in page
    assert "b is gone" in page


def test_a_run_that_waits_has_a_page_and_one_that_is_not_there_has_none(store: Store) -> None:
    run, _ = store.submit(a_new_run(), START)
    data = store.run_pictured(run.id, at(5))
    assert data is not None
    assert data["ranks"] is data["gpus"] is None
    assert "has not started" in runs_page([data])
    assert store.run_pictured(99, at(5)) is None


def test_the_clusters_page_counts_each_gpu_second_once(store: Store) -> None:
    an_hour(store, team="vision")
    an_hour(store, workers=1)
    data = store.cluster_pictured(START, at(62))
    hours = (18 + 35) / 60
    assert sum(data["use"].values()) == pytest.approx(5 * hours, abs=0.001)
    assert {one["name"]: sum(one["hours"].values()) for one in data["by_team"]} == pytest.approx(
        {"vision": 4 * hours, "no team": hours}, abs=0.001
    )
    occupancy = data["occupancy"]
    held = {row["node"]: sum(row["cells"]) * occupancy["seconds"] / 3600 * 4 for row in occupancy["rows"]}
    assert held == pytest.approx({"a": 3 * hours, "b": 2 * hours}, rel=0.01)
    assert [(one["from"], one["to"], one["runs"], one["median"]) for one in data["waits"]] == [
        (1, 1, 1, 120),
        (3, 4, 1, 120),
    ]
    assert sum(data["endings"]["counts"]["succeeded"]) == 2
    assert [size["efficiency"] for size in data["scaling"][0]["sizes"]] == [1.0, 1.0]
    assert "vision" in cluster_page(data)


def test_an_empty_cluster_has_a_page(store: Store) -> None:
    data = store.cluster_pictured(at(-60), START)
    assert data["runs"] == 0
    assert "No run held a GPU" in cluster_page(data)
