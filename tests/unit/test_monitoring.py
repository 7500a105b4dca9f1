"""Metrics and the files for Prometheus and Grafana: what they say, and that they fit together."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.control.backend import NodeFacts
from orchestrator.control.counts import BUCKETS, Counts
from orchestrator.control.metrics import exposition
from orchestrator.control.monitoring import PANELS, grafana_dashboard, write_monitoring
from orchestrator.control.roster import Node

OF_LIVE_RUNS = {"orch_run_ranks", "orch_run_samples_per_second", "orch_run_step_seconds", "orch_gpu_utilization_ratio"}
"""test_live.py has them."""

NOW = datetime(2026, 11, 26, tzinfo=UTC)


def node(name: str, total: int, *, up: bool = True, unfit: int = 0) -> Node:
    facts = NodeFacts(name, f"id-{name}", "10.0.0.1", "cuda", total)
    return Node(facts, up=up, note=None, info={"unfit": dict.fromkeys(range(unfit), "broken")})


def values(counts: Counts | None = None, **held: int) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    nodes = [node("a", 8, unfit=1), node("b", 8, up=False)]
    busy = {name: dict.fromkeys(range(1, count + 1), 7) for name, count in held.items()}
    text = exposition(nodes, busy, [], [], counts or Counts(), NOW).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def slots(found: dict[tuple[str, tuple[tuple[str, str], ...]], float], name: str) -> dict[str, float]:
    return {
        dict(labels)["use"]: value
        for (metric, labels), value in found.items()
        if metric == "orch_node_slots" and dict(labels)["node"] == name
    }


def test_a_nodes_gpus_are_busy_unfit_or_free_and_a_silent_node_has_none_free() -> None:
    found = values(a=3, b=2)
    assert slots(found, "a") == {"busy": 3, "unfit": 1, "free": 4}
    assert slots(found, "b") == {"busy": 2, "unfit": 0, "free": 0}


@given(st.lists(st.floats(0, 10)))
def test_the_turns_of_the_scheduler_are_a_histogram(seconds: list[float]) -> None:
    counts = Counts()
    for one in seconds:
        counts.cycle(one)
    buckets, total = counts.cycles()
    assert [count for _, count in buckets] == [sum(s <= b for s in seconds) for b in (*BUCKETS, float("inf"))]
    assert total == pytest.approx(sum(seconds))


def test_the_dashboard_asks_only_for_metrics_that_there_are() -> None:
    counts = Counts()
    counts.attempts["succeeded"] = 1
    there = {name for name, _ in values(counts)} | OF_LIVE_RUNS
    asked = {
        name
        for _, _, _, queries in PANELS
        for expression, _ in queries
        for name in re.findall(r"orch_[a-z_]+", expression)
    }
    assert asked <= there


def test_the_dashboards_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    panels = grafana_dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) == len(PANELS)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) == 23


def test_every_file_is_its_owners_alone_and_what_was_added_by_hand_stays(tmp_path: Path) -> None:
    folder = tmp_path / "monitoring"
    write_monitoring(folder, "http://127.0.0.1:1234", tmp_path / "token", None)
    (folder / "dcgm.json").write_text('[{"targets": ["gpu-01:9400"]}]')
    write_monitoring(folder, "http://127.0.0.1:1235", tmp_path / "token", tmp_path / "ray.json")
    assert "gpu-01:9400" in (folder / "dcgm.json").read_text()
    assert "127.0.0.1:1235" in (folder / "prometheus.yml").read_text()
    assert {path.stat().st_mode & 0o077 for path in folder.rglob("*")} == {0}
