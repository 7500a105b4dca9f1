"""Throughputs that were measured packed and spread: Gavel's table (simulation_throughputs.json).

The table gives steps a second by kind of GPU, by `('ResNet-50 (batch size 64)', GPUs)`, and once more under
`KIND_unconsolidated` for gangs that are spread over nodes. A placement is packed where it is on as few nodes as the
cluster's best placement of that gang, and spread otherwise: the table has no more than these two.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.scheduling.simulate.jobs import Job

_KEY = re.compile(r"\('(?P<model>.*)', (?P<gpus>[0-9]+)\)")


@dataclass(frozen=True)
class GavelProfile:
    """The slowdown of spread gangs, by model and number of GPUs."""

    slowdowns: Mapping[str, Mapping[int, float]]
    """By plain model name: throughput packed over spread, for each number of GPUs that was measured both ways."""
    kind: str

    def knows(self, job: Job) -> bool:
        return job.duration_s is not None and job.model is not None and plain(job.model) in self.slowdowns

    def seconds(self, job: Job, counts: Sequence[int], ideal: Sequence[int]) -> float:
        assert job.duration_s is not None
        if len(counts) <= len(ideal):
            return job.duration_s
        return job.duration_s * self.slowdown(str(job.model), job.gpus)

    def slowdown(self, model: str, gpus: int) -> float:
        """Of the largest measured gang that is not larger; of the smallest where all are."""
        measured = self.slowdowns[plain(model)]
        return measured[max((size for size in measured if size <= gpus), default=min(measured))]


def plain(model: str) -> str:
    """`ResNet-50 (batch size 64)`, `resnet50 (batch size 64)` and `ResNet50(64)` are one model."""
    return re.sub(r"batch size|[^a-z0-9]", "", model.lower())


def profile_of(table: Mapping[str, Mapping[str, Mapping[str, object]]], kind: str) -> GavelProfile:
    """The profile of one kind of GPU. A model without its batch size stands for the median of its batch sizes."""
    packed, spread = table[kind], table[f"{kind}_unconsolidated"]
    slowdowns: dict[str, dict[int, float]] = {}
    by_name: dict[str, dict[int, list[float]]] = {}
    for key, row in packed.items():
        found, alone, apart = _KEY.fullmatch(key), row.get("null"), spread.get(key, {}).get("null")
        if found is None or not isinstance(alone, int | float) or not isinstance(apart, int | float):
            continue
        gpus = int(found["gpus"])
        if gpus > 1 and alone > 0 and apart > 0:
            slowdowns.setdefault(plain(found["model"]), {})[gpus] = alone / apart
            name = plain(found["model"].partition(" (")[0])
            by_name.setdefault(name, {}).setdefault(gpus, []).append(alone / apart)
    for name, sizes in by_name.items():
        slowdowns.setdefault(name, {size: sorted(values)[len(values) // 2] for size, values in sizes.items()})
    return GavelProfile(slowdowns, kind)
