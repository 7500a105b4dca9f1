"""Files for Prometheus and Grafana, in ORCH_HOME/monitoring: what to scrape of this cluster, and a dashboard that shows it.

    prometheus --config.file=ORCH_HOME/monitoring/prometheus.yml

Ray writes its own dashboards into the same folder (RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR), so that one Grafana, started with
`grafana/provisioning` as its provisioning folder, has all of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

SCRAPE_S = 15
SOURCE = {"type": "prometheus", "uid": "orch-prometheus"}


def write_monitoring(folder: Path, api_url: str, token_file: Path, ray_targets: Path | None) -> None:
    """Writes every file anew but dcgm.json, which is for the operator to fill in with the nodes' DCGM exporters.

    `ray_targets` is Ray's own list of its exporters, kept up to date by Ray. Raises OSError.
    """
    dashboards = dashboards_folder(folder)
    _folder(dashboards)
    _write(folder / "prometheus.yml", _yaml(prometheus_config(api_url, token_file, ray_targets, folder / "dcgm.json")))
    if not (folder / "dcgm.json").exists():
        _write(folder / "dcgm.json", "[]\n")
    _write(dashboards / "orch.json", json.dumps(grafana_dashboard(), indent=1) + "\n")
    provisioning = folder / "grafana" / "provisioning"
    for name, content in _provisioning(dashboards).items():
        _folder(provisioning / name)
        _write(provisioning / name / "orch.yml", _yaml(content))


def dashboards_folder(folder: Path) -> Path:
    """Where Grafana finds orch's dashboard and Ray's."""
    return folder / "grafana" / "dashboards"


def prometheus_config(api_url: str, token_file: Path, ray_targets: Path | None, dcgm_targets: Path) -> dict[str, Any]:
    """The configuration of a Prometheus that scrapes orch, Ray and DCGM exporters.

    Form: https://prometheus.io/docs/prometheus/latest/configuration/configuration/
    """
    orch = {
        "job_name": "orch",
        "authorization": {"type": "Bearer", "credentials_file": str(token_file)},
        "static_configs": [{"targets": [api_url.removeprefix("http://")]}],
    }
    jobs: list[dict[str, Any]] = [orch]
    if ray_targets is not None:
        jobs.append({"job_name": "ray", "file_sd_configs": [{"files": [str(ray_targets)]}]})
    jobs.append({"job_name": "dcgm", "file_sd_configs": [{"files": [str(dcgm_targets)]}]})
    return {
        "global": {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"},
        "scrape_configs": jobs,
    }


def _provisioning(dashboards: Path) -> dict[str, dict[str, Any]]:
    provider = {
        "name": "orch",
        "folder": "orch",
        "type": "file",
        "options": {"path": str(dashboards)},
    }
    source = {
        "name": "Prometheus",
        "uid": SOURCE["uid"],
        "type": "prometheus",
        "access": "proxy",
        "url": "http://127.0.0.1:9090",
        "isDefault": True,
    }
    return {
        "dashboards": {"apiVersion": 1, "providers": [provider]},
        "datasources": {"apiVersion": 1, "datasources": [source]},
    }


PANELS: tuple[tuple[str, str, str, tuple[tuple[str, str], ...]], ...] = (
    ("Nodes that answer", "stat", "short", (("sum(orch_node_up)", "up"), ("count(orch_node_up)", "known"))),
    ("GPUs busy", "stat", "percentunit", (
        ('sum(orch_node_slots{device="cuda",use="busy"}) / sum(orch_node_slots{device="cuda"})', "busy"),
    )),
    ("Runs", "stat", "short", (("orch_runs", "{{state}}"),)),
    ("Longest wait", "stat", "s", (("orch_queue_oldest_seconds", "oldest"),)),
    ("GPUs and CPU slots, by use", "timeseries", "short", (("sum by (device, use) (orch_node_slots)", "{{device}} {{use}}"),)),
    ("Runs that wait and run", "timeseries", "short", (("orch_runs", "{{state}}"), ("orch_queue_ranks", "ranks asked for"))),
    ("Ranks, by run", "timeseries", "short", (("orch_run_ranks", "{{run}} {{name}} ({{user}})"),)),
    ("Samples per second, by run", "timeseries", "short", (("orch_run_samples_per_second", "{{run}} {{name}}"),)),
    ("Step time, by run", "timeseries", "s", (("orch_run_step_seconds", "{{run}} {{name}}"),)),
    ("GPU utilisation, by node", "timeseries", "percentunit", (("avg by (node) (orch_gpu_utilization_ratio)", "{{node}}"),)),
    ("Attempts that ended, an hour", "timeseries", "short", (
        ("sum by (outcome) (increase(orch_attempts_ended_total[1h]))", "{{outcome}}"),
    )),
    ("A turn of the scheduler", "timeseries", "s", (
        ("histogram_quantile(0.5, sum by (le) (rate(orch_scheduling_cycle_seconds_bucket[5m])))", "median"),
        ("histogram_quantile(0.99, sum by (le) (rate(orch_scheduling_cycle_seconds_bucket[5m])))", "p99"),
    )),
)  # fmt: skip
"""Title, kind, unit, and the queries with their legends."""


def grafana_dashboard() -> dict[str, Any]:
    """The dashboard in Grafana's JSON model: numbers in the first row, then two graphs a row."""
    return {
        "uid": "orch",
        "title": "orch",
        "tags": ["orch"],
        "timezone": "browser",
        "schemaVersion": 39,
        "refresh": "15s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": []},
        "annotations": {"list": []},
        "panels": [_panel(number, *panel) for number, panel in enumerate(PANELS)],
    }


def _panel(number: int, title: str, kind: str, unit: str, queries: Sequence[tuple[str, str]]) -> dict[str, Any]:
    numbers = sum(panel[1] == "stat" for panel in PANELS)
    if kind == "stat":
        place = {"h": 4, "w": 24 // numbers, "x": number * (24 // numbers), "y": 0}
    else:
        row, column = divmod(number - numbers, 2)
        place = {"h": 8, "w": 12, "x": 12 * column, "y": 4 + 8 * row}
    return {
        "id": number + 1,
        "title": title,
        "type": kind,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}} if kind == "timeseries" else {},
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
            for i, (expression, legend) in enumerate(queries)
        ],
    }


def _yaml(value: dict[str, Any]) -> str:
    return f"# Written by orch at each start of its controller.\n{yaml.safe_dump(value, sort_keys=False)}"


def _folder(path: Path) -> None:
    """The folder and those above it that are missing, for this user alone."""
    if not path.exists():
        _folder(path.parent)
        path.mkdir(mode=0o700)


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    with open(os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    temporary.replace(path)
