"""Results of measurements in one line: `a_bench("gpu-01", busbw=430.0)`."""

from __future__ import annotations

from datetime import timedelta

from orchestrator.bench.results import Bench, Link, Row
from orchestrator.testing import START


def a_bench(
    *nodes: str,
    busbw: float,
    day: float = 0.0,
    run: int = 1,
    size: int = 1 << 30,
    collective: str = "all_reduce",
    backend: str = "nccl",
    model: str = "H100",
    level: str | None = None,
    kind: str | None = None,
    per_node: int = 8,
    modelled: float | None = 100.0,
    **versions: str,
) -> Bench:
    """One result: on a node over NVLink, or between nodes of a leaf. The model expected 100 GB/s."""
    inside = len(nodes) == 1
    level = level or ("nvlink" if inside else "leaf")
    link = Link(tuple(sorted(nodes)), model, level, kind or level, per_node, per_node * len(nodes))
    row = Row(collective, backend, size, 1.0, busbw, busbw, 20, True)
    known = {"driver": "580", "nccl": "2.28.9", "torch": "2.11.0"} | versions
    at = START + timedelta(days=day)
    return Bench(run, 1, at, link, row, modelled, modelled, "a link", {n: list(range(per_node)) for n in nodes}, known)
