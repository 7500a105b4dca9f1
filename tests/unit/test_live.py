"""Live runs in /metrics: their pace and GPUs while they live, nothing afterwards; and what ended runs used."""

from __future__ import annotations

from datetime import UTC, datetime

from prometheus_client.parser import text_string_to_metric_families

from orchestrator.control.backend import GpuLook
from orchestrator.control.counts import Counts
from orchestrator.control.gpu_usage import GpuUse
from orchestrator.control.live import Live
from orchestrator.control.metrics import exposition
from orchestrator.progress.values import GangSample
from orchestrator.scheduling.lifecycle import State
from orchestrator.scheduling.run import Attempt
from orchestrator.testing import START, a_placement, a_run

NOW = datetime(2026, 11, 26, tzinfo=UTC)
RUN = a_run(7, State.RUNNING, name="resnet50", attempts=(Attempt(2, a_placement(a=(0, 1)), START),))


def samples(live: Live, counts: Counts | None = None) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(exposition([], {}, [RUN], [], counts or Counts(), NOW, live).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def measured() -> Live:
    live = Live()
    live.stepped((7, 2), [GangSample(NOW, 10, 10_000, 100, 800, 0.1), GangSample(NOW, 10, 10_000, 50, 400, 0.2)])
    live.looked("a", GpuLook(7, 2, 1, GpuUse(utilization=92.0, memory_mib=1024.0)))
    return live


def test_a_live_run_shows_its_newest_pace_and_each_of_its_gpus() -> None:
    found = samples(measured())
    who = {"run": "7", "name": "resnet50", "user": "ana", "team": ""}
    assert found["orch_run_samples_per_second"] == [(who, 40.0)]
    assert found["orch_run_step_seconds"] == [(who, 0.2)]
    gpu = {"node": "a", "gpu": "1", "run": "7"}
    assert found["orch_gpu_utilization_ratio"] == [(gpu, 0.92)]
    assert found["orch_gpu_memory_used_bytes"] == [(gpu, float(1 << 30))]
    assert "orch_gpu_power_watts" not in found


def test_an_attempt_that_has_ended_leaves_no_series() -> None:
    live = measured()
    live.ended((7, 2))
    found = samples(live)
    assert not [name for name in found if name.startswith(("orch_run_samples", "orch_run_step", "orch_gpu_"))]


def test_gpu_seconds_of_ended_runs_add_up_by_team_and_part() -> None:
    counts = Counts()
    counts.used("vision", {"productive": 10.5, "lost": 2.0})
    counts.used("vision", {"productive": 1.0, "lost": 0.0})
    counts.used(None, {"productive": 3.0})
    found = {
        (labels["team"], labels["part"]): value for labels, value in samples(Live(), counts)["orch_gpu_seconds_total"]
    }
    assert found == {("vision", "productive"): 11.5, ("vision", "lost"): 2.0, ("", "productive"): 3.0}
