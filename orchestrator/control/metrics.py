"""What a Prometheus may scrape of the controller: nodes, the queue, the live runs and how attempts ended.

Names follow Prometheus's rules (base units, `_total` for counters; https://prometheus.io/docs/practices/naming/). The number of
series is bounded by what the cluster holds at once: a run has series while it lives, and none once it has ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

import orchestrator
from orchestrator.control import run_metrics
from orchestrator.control.counts import Counts
from orchestrator.control.live import Live
from orchestrator.control.node_care import NodeCare
from orchestrator.control.roster import Node
from orchestrator.scheduling.run import Run

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
RUNS_SHOWN = 2000
"""Live runs with series of their own, the latest; the counts by state are of all."""


def exposition(
    nodes: Iterable[Node],
    busy: dict[str, dict[int, int]],
    live: list[Run],
    waiting: list[Run],
    counts: Counts,
    now: datetime,
    pace: Live | None = None,
    care: NodeCare | None = None,
) -> bytes:
    """Everything in Prometheus's text format."""
    registry = CollectorRegistry(auto_describe=False)
    nodes = list(nodes)
    found = [
        *_cluster(nodes, busy),
        *(_care(nodes, care) if care is not None else ()),
        *_runs(live, waiting, now),
        *_happened(counts),
        *run_metrics.gpu_time(counts),
        *(run_metrics.speeds(live[-RUNS_SHOWN:], pace) if pace is not None else ()),
        *(run_metrics.gpus(pace) if pace is not None else ()),
    ]
    registry.register(_Once(found))
    return generate_latest(registry)


class _Once:
    """Metrics that are there already, as prometheus_client wants to be given them."""

    def __init__(self, found: list[Metric]) -> None:
        self._found = found

    def collect(self) -> list[Metric]:
        return self._found

    def describe(self) -> list[Metric]:
        return []


def _cluster(nodes: Iterable[Node], busy: dict[str, dict[int, int]]) -> Iterator[Metric]:
    info = GaugeMetricFamily("orch_build_info", "The controller's version; always 1.", labels=["version"])
    info.add_metric([orchestrator.__version__], 1)
    up = GaugeMetricFamily("orch_node_up", "Whether the node's agent answers.", labels=["node", "device"])
    slots = GaugeMetricFamily(
        "orch_node_slots", "GPUs of a node (CPU slots where it has none), by use.", labels=["node", "device", "use"]
    )
    for node in nodes:
        name, device, total = node.facts.name, node.facts.device, node.facts.total
        unfit = len(node.info.get("unfit", {}))
        held = len(busy.get(name, {}))
        up.add_metric([name, device], int(node.up))
        for use, count in (("busy", held), ("unfit", unfit), ("free", max(0, total - held - unfit) if node.up else 0)):
            slots.add_metric([name, device, use], count)
    yield from (info, up, slots)


def _care(nodes: Iterable[Node], care: NodeCare) -> Iterator[Metric]:
    health = GaugeMetricFamily(
        "orch_node_health", "The node's worst finding: 0 none, 1 warning, 2 degraded, 3 fatal.", labels=["node"]
    )
    out = GaugeMetricFamily(
        "orch_node_out", "1 where nothing new is placed on the node for this reason.", labels=["node", "why"]
    )
    for name in (node.facts.name for node in nodes):
        mark, unfit = care.marks.of(name), care.watch.unfit(name)
        health.add_metric([name], int(care.severity(name)))
        in_quarantine = mark.quarantine is not None and mark.quarantine.stage == "quarantined"
        for why, holds in (("drained", mark.drain), ("quarantined", in_quarantine), ("unfit", unfit)):
            out.add_metric([name, why], int(bool(holds)))
    yield from (health, out)


def _runs(live: list[Run], waiting: list[Run], now: datetime) -> Iterator[Metric]:
    states = GaugeMetricFamily("orch_runs", "Runs that wait or hold a place, by state.", labels=["state"])
    counts = Counter(run.state.value for run in live)
    for state in ("starting", "running", "stopping"):
        states.add_metric([state], counts[state])
    states.add_metric(["queued"], len(waiting))
    oldest = GaugeMetricFamily("orch_queue_oldest_seconds", "How long the run that has waited longest waits.")
    oldest.add_metric([], max(((now - run.queued_at).total_seconds() for run in waiting), default=0.0))
    asked = GaugeMetricFamily("orch_queue_ranks", "Ranks that all waiting runs ask for.")
    asked.add_metric([], sum(run.spec.workers.total for run in waiting))
    labels = ["run", "name", "user", "team"]
    ranks = GaugeMetricFamily("orch_run_ranks", "Ranks of a run that holds a place.", labels=[*labels, "state"])
    nodes = GaugeMetricFamily("orch_run_node_ranks", "Ranks of a run on one node.", labels=["run", "name", "node"])
    busbw = GaugeMetricFamily(
        "orch_run_predicted_bus_bandwidth_bytes_per_second", "What placement expects of an all-reduce.", labels=labels
    )
    for run in live[-RUNS_SHOWN:]:
        if (attempt := run.attempt) is None:
            continue
        who = [str(run.id), run.name, run.user, run.spec.team or ""]
        ranks.add_metric([*who, run.state.value], attempt.placement.world_size)
        for part in attempt.placement.nodes:
            nodes.add_metric([str(run.id), run.name, part.node], len(part.ranks))
        if attempt.placement.busbw_predicted is not None:
            busbw.add_metric(who, attempt.placement.busbw_predicted * 1e9)
    yield from (states, oldest, asked, ranks, nodes, busbw)


def _happened(counts: Counts) -> Iterator[Metric]:
    submissions = CounterMetricFamily("orch_submissions", "Runs that were submitted.")
    submissions.add_metric([], counts.submissions)
    ended = CounterMetricFamily("orch_attempts_ended", "Attempts that ended, by outcome.", labels=["outcome"])
    for outcome, count in sorted(counts.attempts.items()):
        ended.add_metric([outcome], count)
    cycles = HistogramMetricFamily("orch_scheduling_cycle_seconds", "How long a turn of the scheduler took.")
    buckets, total = counts.cycles()
    cycles.add_metric([], buckets, total)
    yield from (submissions, ended, cycles)
