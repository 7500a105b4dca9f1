"""The pages of runs and of the cluster: whole without a network, safe with hostile names, and honest where nothing is known."""

from __future__ import annotations

import base64
import hashlib
import re
from copy import deepcopy
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator.pictures.cluster_page import cluster_page
from orchestrator.pictures.runs_page import runs_page

T0 = 1_795_000_000.0
HOSTILE = "</script><img src=x onerror=alert(1)>\"'&\x1b[31m\ud800\u202e"


def run_data(ranks: int = 4, points: int = 30, columns: int = 6, **run: Any) -> dict[str, Any]:
    """A run's data as the API has it: two attempts, of which the first failed; rank 2 is slow."""
    part = {"node": "gpu-01", "gpus": list(range(ranks)), "ranks": list(range(ranks))}
    placement = {
        "level": "node",
        "device": "cuda",
        "nodes": [part],
        "busbw_predicted": 231.0,
        "busbw_bottleneck": "NVLink",
    }
    first = {
        "number": 1,
        "outcome": "user_error",
        "failure": {"kind": "exit", "message": "exit code 1: boom", "rank": 3, "node": "gpu-01"},
        "placement": placement,
        "transport": {"verdict": "worse than planned", "links": {"SHM": 4}, "reason": None, "shortfalls": []},
        "stop": None,
        "started_at": "2026-11-18T08:26:40Z",
        "ended_at": "2026-11-18T08:36:40Z",
        "exit_codes": {"3": 1},
        "environment": {"gpu-01": {"torch": "2.11", "nccl": "2.28.9"}},
        "progress": {"samples_per_s": 800.0},
    }
    second = first | {"number": 2, "outcome": "succeeded", "failure": None, "started_at": "2026-11-18T08:38:20Z"}
    second |= {"ended_at": "2026-11-18T09:00:00Z", "exit_codes": {}}
    rows = [
        {
            "at": T0 + 60 * i,
            "for": 60.0,
            "samples_per_s": 800.0 + i,
            "steps_per_s": 10.0,
            "steps": 600,
            "step_time": 0.1,
            "metrics": {"loss": 1.0 / (i + 1)},
        }
        for i in range(points)
    ]
    cells = [[0.1 * (1.5 if rank == 2 else 1.0)] * columns for rank in range(ranks)]
    gpu_rows = [
        {
            "at": T0 + 60 * i,
            "utilization": 90.0,
            "memory_gib": 60.0,
            "power_w": None,
            "temperature_c": 70.0,
            "throttled": 0.5,
        }
        for i in range(5)
    ]
    head = {
        "id": 42,
        "name": "resnet50",
        "user": "ana",
        "team": "vision",
        "state": "succeeded",
        "reason": None,
        "array": None,
        "submitted_at": "2026-11-18T08:20:00Z",
        "started_at": "2026-11-18T08:26:40Z",
        "finished_at": "2026-11-18T09:00:00Z",
        "spec": {"workers": "1x4"},
        "attempts": [first, second],
        "throughput": {
            "samples_per_s": 810.0,
            "step_time": 0.1,
            "steps": 9000,
            "step_time_p50": 0.1,
            "step_time_p99": 0.2,
            "repeated_steps": 40,
        },
        "gpu_seconds": {
            "allocated": 8000.0,
            "productive": 6000.0,
            "starting": 500.0,
            "checkpoint": 250.0,
            "lost": 1000.0,
            "idle": 250.0,
        },
        "goodput": 0.75,
        "effective_training_time_ratio": 0.7,
        "queue_seconds": 500.0,
        "cost": 12.5,
        "events": [
            {
                "at": "2026-11-18T08:30:00Z",
                "event": "noted",
                "state": "running",
                "reason": "links are worse",
                "by": None,
            }
        ],
    }
    return {
        "at": "2026-11-18T09:10:00Z",
        "run": head | run,
        "from": T0,
        "to": T0 + 2000,
        "series": [{"attempt": 1, "seconds": 60, "rows": rows}],
        "ranks": {
            "measure": "own work",
            "from": T0,
            "seconds": 300,
            "ranks": ranks,
            "together": 1,
            "values": cells,
            "steps": [0.1] * columns,
            "means": {"2": 0.15},
        },
        "gpus": {
            "seconds": 60,
            "count": 1,
            "shown": [{"node": "gpu-01", "gpu": 0, "rows": gpu_rows}],
            "throttled": {"gpu-01:0": ["hw_thermal"]},
        },
        "nodes": {"gpu-01": {"gpus": [], "islands": [[0, 1], [2, 3]], "nics": []}},
        "measured_busbw": {"run": 7, "at": None, "busbw": 205.0, "bytes": 1 << 28, "backend": "nccl", "ranks": 4},
        "past": [
            {"id": 40 + i, "state": "succeeded", "at": "2026-11-17T08:00:00Z", "workers": 4, "samples_per_s": rate}
            for i, rate in enumerate((1000.0, 1010.0, 810.0))
        ],
    }


def nothing_measured(**run: Any) -> dict[str, Any]:
    return run_data(**{"throughput": None, "gpu_seconds": None, "goodput": None, **run}) | {
        "series": [],
        "ranks": None,
        "gpus": None,
        "nodes": {},
        "measured_busbw": None,
        "past": [],
    }


def cluster_data() -> dict[str, Any]:
    hours = {"productive": 60.0, "starting": 5.0, "checkpoint": 3.0, "lost": 12.0, "idle": 20.0}
    sizes = [
        {"workers": n, "samples_per_s": 100.0 * n * 0.9, "runs": 2, "efficiency": 1.0 if n == 1 else 0.9}
        for n in (1, 8)
    ]
    return {
        "at": "2026-11-18T09:10:00Z",
        "from": T0,
        "to": T0 + 30 * 86400,
        "runs": 12,
        "use": hours,
        "by_user": [{"name": "ana", "hours": hours}],
        "by_team": [{"name": "vision", "hours": hours}],
        "occupancy": {
            "from": T0,
            "seconds": 21600,
            "nodes": 1,
            "share": 0.4,
            "rows": [{"node": "gpu-01", "cells": [0.0, 0.5, 1.0]}],
        },
        "waits": [{"from": 3, "to": 4, "runs": 5, "median": 60.0, "p90": 4000.0}],
        "endings": {
            "from": T0,
            "seconds": 86400,
            "counts": {"succeeded": [3, 4], "failed": [1, 0], "cancelled": [0, 1]},
        },
        "scaling": [{"name": "resnet50", "sizes": sizes}],
    }


def empty_cluster() -> dict[str, Any]:
    none = dict.fromkeys(("productive", "starting", "checkpoint", "lost", "idle"), 0.0)
    counts = {state: [0] for state in ("succeeded", "failed", "cancelled")}
    return cluster_data() | {
        "runs": 0,
        "use": none,
        "by_user": [],
        "by_team": [],
        "occupancy": {"from": T0, "seconds": 21600, "nodes": 0, "share": None, "rows": []},
        "waits": [],
        "endings": {"from": T0, "seconds": 86400, "counts": counts},
        "scaling": [],
    }


class Read(HTMLParser):
    """What a browser would find: elements with attributes, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


PAGES = {
    "one run": runs_page([run_data()]),
    "two runs": runs_page([run_data(), run_data(id=43, name="vit")]),
    "a run that waits": runs_page(
        [nothing_measured(state="queued", attempts=[], reason="needs 8 GPUs, 4 are free", started_at=None)]
    ),
    "a run of which nothing was seen": runs_page([nothing_measured()]),
    "the cluster": cluster_page(cluster_data()),
    "an empty cluster": cluster_page(empty_cluster()),
}


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES.keys())
def test_a_page_needs_nothing_but_itself_and_its_policy_forbids_the_rest(page: str) -> None:
    read = Read(page)
    assert not re.search(r"https?://|//[a-z]|@import|url\((?!#)", page.split("</style>")[1].partition("<script>")[0])
    assert not [tag for tag, _ in read.elements if tag in ("link", "img", "iframe", "object", "base", "form")]
    assert not [attrs for _, attrs in read.elements if "style" in attrs or any(name.startswith("on") for name in attrs)]
    policy = next(attrs["content"] or "" for tag, attrs in read.elements if attrs.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    for tag in ("style", "script"):
        (held,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(held.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def spoil(value: Any, text: str) -> Any:
    """The data with this text in every place where a user's, node's or script's words may stand."""
    if isinstance(value, dict):
        return {
            (text if key in ("gpu-01", "loss") else key): text
            if key
            in (
                "name",
                "user",
                "team",
                "reason",
                "message",
                "node",
                "level",
                "busbw_bottleneck",
                "by",
                "torch",
                "verdict",
            )
            else spoil(inner, text)
            for key, inner in value.items()
        }
    return [spoil(one, text) for one in value] if isinstance(value, list) else value


@settings(max_examples=25, deadline=None)
@example(HOSTILE)
@given(st.text(max_size=40))
def test_whatever_names_and_messages_hold_they_stay_text(text: str) -> None:
    for page in (runs_page([spoil(run_data(), text)]), cluster_page(spoil(cluster_data(), text))):
        plain = Read(page)
        assert [tag for tag, _ in plain.elements if tag == "script"] == ["script"]
        assert "img" not in {tag for tag, _ in plain.elements}
        assert not [attrs for _, attrs in plain.elements if any(name.startswith("on") for name in attrs)]
        page.encode()
        assert not re.search("[\x00-\x08\x0e-\x1f\x7f\u202e]", page)


def test_where_nothing_is_known_the_page_says_why() -> None:
    waits, unseen, cluster = (
        Read(PAGES[name]).text for name in ("a run that waits", "a run of which nothing was seen", "an empty cluster")
    )
    assert "has not started" in waits
    assert "needs 8 GPUs, 4 are free" in waits
    assert "No step was seen" in unseen
    assert "No rank was seen to step" in unseen
    assert "No run held a GPU" in cluster
    assert "No node has ever joined" in cluster


def test_a_page_names_what_matters_in_words() -> None:
    text = Read(PAGES["one run"]).text
    assert "rank 2 gpu-01: each step 50% longer than the median rank, all the time" in text
    assert "19 % slower per rank than the median of those before it" in text
    assert "goodput 75 %" in text
    assert "lost 16 min 40 s (12 %)" in text
    assert "205 GB/s on these nodes by nccl, 89 % of that" in text
    assert "slowed down by heat, power or hardware: gpu-01:0: hw_thermal" in text
    assert "links are worse" in text


def test_the_page_of_a_failed_run_says_where_it_broke() -> None:
    data = deepcopy(run_data(state="failed"))
    data["run"]["attempts"] = data["run"]["attempts"][:1]
    assert "rank 3 on gpu-01: exit code 1: boom" in Read(runs_page([data])).text


def test_a_page_stays_under_a_megabyte_however_restless_its_ranks_are() -> None:
    data = run_data(ranks=96, points=400)
    data["ranks"]["values"] = [[0.1 + (row * 7 + column * 13) % 11 / 50 for column in range(160)] for row in range(96)]
    data["ranks"]["steps"] = [0.1] * 160
    assert len(runs_page([data]).encode()) < 1_000_000
