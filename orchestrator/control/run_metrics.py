"""What a Prometheus may scrape of live runs' speed and GPUs, and of what GPU time was used for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from orchestrator.control.counts import Counts
from orchestrator.control.live import Live
from orchestrator.scheduling.run import Run

MIB = 1 << 20


def speeds(live: Iterable[Run], now: Live) -> Iterator[Metric]:
    labels = ["run", "name", "user", "team"]
    rate = GaugeMetricFamily("orch_run_samples_per_second", "Of a run, over the last ten seconds or so.", labels=labels)
    step = GaugeMetricFamily(
        "orch_run_step_seconds", "A step of the slowest rank, over the last ten seconds or so.", labels=labels
    )
    for run in live:
        pace = None if run.attempt is None else now.pace(run.id, run.attempt.number)
        who = [str(run.id), run.name, run.user, run.spec.team or ""]
        if pace is not None and pace.samples_per_s is not None:
            rate.add_metric(who, pace.samples_per_s)
        if pace is not None and pace.step_time is not None:
            step.add_metric(who, pace.step_time)
    yield from (rate, step)


_GAUGES = (
    ("orch_gpu_utilization_ratio", "The share of the time in which a kernel ran.", "utilization", 0.01),
    ("orch_gpu_memory_used_bytes", "Memory in use.", "memory_mib", MIB),
    ("orch_gpu_power_watts", "Power drawn.", "power_w", 1),
    ("orch_gpu_temperature_celsius", "Temperature.", "temperature_c", 1),
)


def gpus(now: Live) -> Iterator[Metric]:
    """Of GPUs that a run has; one without a run has no series."""
    looks = now.gpus()
    for name, what, field, unit in _GAUGES:
        family = GaugeMetricFamily(name, what, labels=["node", "gpu", "run"])
        for node, gpu, run, use in looks:
            if (value := getattr(use, field)) is not None:
                family.add_metric([node, str(gpu), str(run)], value * unit)
        yield family


def gpu_time(counts: Counts) -> Iterator[Metric]:
    seconds = CounterMetricFamily(
        "orch_gpu_seconds", "What GPUs (CPU slots too) of runs that have ended were used for.", labels=["team", "part"]
    )
    for (team, part), value in sorted(counts.gpu_seconds.items()):
        seconds.add_metric([team, part], value)
    yield seconds
