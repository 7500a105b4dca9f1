"""What a run of the measuring script said, and what is kept of it: Bench, one collective at one size on one link."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

MARK = "ORCH_BENCH "
"""Before every line of the script that a program reads; the rest of the line is a JSON object."""
TAGS = {"orch": "bench"}
"""By these people find runs that measure. A run is believed what it prints for its code: that of the very script."""
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all")
BACKENDS = ("nccl", "gloo")


@dataclass(frozen=True)
class Row:
    """One line of the script: a collective by a backend at one size."""

    collective: str
    backend: str
    bytes: int
    """Of the whole buffer, S in nccl-tests' definitions."""
    time_us: float
    """Of one call: the mean over the repetitions and the ranks."""
    algbw: float
    """GB/s: S over the time."""
    busbw: float
    """GB/s, by nccl-tests' factor for the collective."""
    iterations: int
    in_place: bool


@dataclass(frozen=True)
class Output:
    """All that a run of the script said."""

    ranks: int = 0
    versions: dict[str, Any] = field(default_factory=dict)
    """torch, cuda, nccl, cudnn: as the ranks' interpreter has them."""
    rows: tuple[Row, ...] = ()
    skipped: tuple[tuple[str, str, str], ...] = ()
    """Collective, backend, and why it was not measured."""
    transport: dict[str, int] = field(default_factory=dict)
    """NCCL's channels by kind of transport, over all ranks; empty where NCCL did not say."""


def is_tagged(tags: Mapping[str, str]) -> bool:
    return TAGS.items() <= tags.items()


def read_output(lines: Iterable[str]) -> Output:
    """What the script's rank 0 printed, among whatever else is in its log. A row whose values were wrong is left out."""
    ranks, versions, transport = 0, {}, {}
    rows: dict[tuple[str, str, int], Row] = {}
    skipped: list[tuple[str, str, str]] = []
    for said in filter(None, map(_object, lines)):
        if isinstance(said.get("ranks"), int):
            ranks, versions = said["ranks"], _plain(said.get("versions"))
        elif isinstance(said.get("transport"), dict):
            transport = {str(k): v for k, v in said["transport"].items() if isinstance(v, int)}
        elif said.get("collective") in COLLECTIVES and said.get("backend") in BACKENDS:
            if "skipped" in said:
                skipped.append((said["collective"], said["backend"], str(said["skipped"])))
            elif (row := _row(said)) is not None:
                rows[row.collective, row.backend, row.bytes] = row
    return Output(ranks, versions, tuple(rows.values()), tuple(skipped), transport)


def _object(line: str) -> dict[str, Any] | None:
    _, mark, text = line.partition(MARK)
    try:
        found = json.loads(text) if mark else None
    except (ValueError, RecursionError):
        return None  # cut off, or another process wrote into the line
    return found if isinstance(found, dict) else None


def _plain(given: Any) -> dict[str, Any]:
    return {str(k): v for k, v in given.items() if isinstance(v, str | int)} if isinstance(given, dict) else {}


def _row(said: dict[str, Any]) -> Row | None:
    try:
        numbers = {name: float(said[name]) for name in ("time_us", "algbw", "busbw")}
        size, iterations, wrong = int(said["bytes"]), int(said["iterations"]), int(said["wrong"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    if wrong or size < 1 or not all(math.isfinite(n) and n > 0 for n in numbers.values()):
        return None
    return Row(
        said["collective"], said["backend"], size, **numbers, iterations=iterations, in_place=bool(said.get("in_place"))
    )


@dataclass(frozen=True)
class Link:
    """What was measured: the GPUs (or CPU slots) of a gang, by what makes two of them comparable."""

    nodes: tuple[str, ...]
    """Sorted."""
    model: str
    """The GPUs' short name, `H100`; `CPU` for CPU ranks."""
    level: str
    """The level of the placement: nvlink, node, leaf, ..."""
    kind: str
    """On one node how its GPUs reach each other: nvlink, pcie, shm, gloo; between nodes the level."""
    per_node: int
    """Ranks on each node; 0 where they differ."""
    ranks: int

    @property
    def like(self) -> tuple[str, str, str, int, int]:
        """What links must share to be held against each other."""
        return self.model, self.level, self.kind, self.per_node, self.ranks

    @property
    def between_nodes(self) -> bool:
        return len(self.nodes) > 1

    def __str__(self) -> str:
        return f"{' + '.join(self.nodes)} ({self.ranks} ranks)"


@dataclass(frozen=True)
class Bench:
    """One result that is kept."""

    run: int
    attempt: int
    at: datetime
    link: Link
    row: Row
    predicted: float | None
    """GB/s of bus bandwidth that the model expected of it then, measured figures included."""
    modelled: float | None
    """The same by NCCL's constants alone: what a measured figure is held against."""
    bottleneck: str | None = None
    gpus: dict[str, list[int]] = field(default_factory=dict)
    """By node: the indices that the ranks had."""
    versions: dict[str, Any] = field(default_factory=dict)
    """torch, cuda, nccl, cudnn of the ranks, and driver where the nodes have one and the same."""
    transport: dict[str, int] = field(default_factory=dict)

    @property
    def what(self) -> tuple[str, str, int]:
        """The question that this answers for its link."""
        return self.row.backend, self.row.collective, self.row.bytes

    @property
    def software(self) -> tuple[str, ...]:
        """The versions that a result holds for: with others the link is measured anew."""
        return tuple(str(self.versions.get(name)) for name in ("driver", "nccl", "torch"))
