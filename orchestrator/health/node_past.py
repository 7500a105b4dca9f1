"""What is remembered of a node from look to look, so that a loss or a growth is seen: the most it ever had, and its counters."""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.health.vitals import Vitals

KEPT_S = 86400.0
"""So long a step of a counter is remembered."""
MOST_STEPS = 64
MOST_XIDS = 64


@dataclass(frozen=True)
class Counter:
    """A counter of the kernel or the driver: what it was last, and when it grew by how much."""

    last: int
    steps: tuple[tuple[float, int], ...] = ()
    """(Unix time of the look that saw it, by how much)."""

    def grown(self, since: float) -> int:
        return sum(by for at, by in self.steps if at >= since)

    def now(self, value: int, at: float) -> Counter:
        """The counter after a look. One that is smaller began anew, with the machine or the driver, and has not grown."""
        steps = tuple(step for step in self.steps if step[0] >= at - KEPT_S)
        if value > self.last:
            steps = (*steps, (at, value - self.last))[-MOST_STEPS:]
        return Counter(value, steps)


@dataclass(frozen=True)
class Told:
    """A line of the kernel's log, which may come again word for word."""

    at: float
    """When the newest of them was seen."""
    times: int


@dataclass(frozen=True)
class Past:
    """A node's past, as far as its health is judged by it."""

    gpus: int = 0
    """The most GPUs that it ever showed."""
    nvlinks: Mapping[int, int] = field(default_factory=dict)
    """By GPU: the most links that were active."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """By port that was ever active: its highest rate in Gb/s, 0 where it tells none."""
    counters: Mapping[str, Counter] = field(default_factory=dict)
    """By what is counted: `ecc 0`, `nvlink 0`, `downs mlx5_0:1`."""
    xids: Mapping[str, Told] = field(default_factory=dict)
    """By line of the kernel's. Those of another boot are forgotten."""
    boot_id: str | None = None

    def grown(self, name: str, since: float) -> int:
        return self.counters[name].grown(since) if name in self.counters else 0


def remember(past: Past, seen: Vitals, at: float) -> Past:
    """The past with one more look, taken at the Unix time `at`."""
    rates = dict(past.rates)
    for port in seen.ports:
        if port.active:
            rates[port.name] = max(rates.get(port.name, 0.0), port.rate or 0.0)
    nvlinks = dict(past.nvlinks)
    for gpu in seen.gpus:
        if gpu.nvlinks:
            nvlinks[gpu.index] = max(nvlinks.get(gpu.index, 0), gpu.nvlinks)
    counters = dict(past.counters)
    for name, value in _counts(seen):
        known = counters.get(name)
        counters[name] = Counter(value) if known is None else known.now(value, at)
    same_boot = seen.boot_id is None or past.boot_id in (None, seen.boot_id)
    known_xids = past.xids if same_boot else {}
    every = dict(known_xids)
    for line, times in Count(seen.xids).items():
        # An agent that was started anew tells again what the kernel still has.
        if line not in every or times > every[line].times:
            every[line] = Told(at, times)
    xids = dict(sorted(every.items(), key=lambda item: item[1].at)[-MOST_XIDS:])
    gpus = max(past.gpus, len(seen.gpus))
    return Past(gpus, nvlinks, rates, counters, xids, seen.boot_id or past.boot_id)


def forgiven(past: Past) -> Past:
    """As if the node were seen for the first time, but for what its counters stand at and which messages are old."""
    counters = {name: Counter(counter.last) for name, counter in past.counters.items()}
    return Past(counters=counters, xids=past.xids, boot_id=past.boot_id)


def _counts(seen: Vitals) -> Iterator[tuple[str, int]]:
    for gpu in seen.gpus:
        if gpu.uncorrected is not None:
            yield f"ecc {gpu.index}", gpu.uncorrected
        if gpu.nvlink_errors is not None:
            yield f"nvlink {gpu.index}", gpu.nvlink_errors
    for port in seen.ports:
        if port.downs is not None:
            yield f"downs {port.name}", port.downs


def to_json(past: Past) -> dict[str, Any]:
    return {
        "gpus": past.gpus,
        "nvlinks": {str(gpu): links for gpu, links in past.nvlinks.items()},
        "rates": dict(past.rates),
        "counters": {name: [one.last, *map(list, one.steps)] for name, one in past.counters.items()},
        "xids": {line: [told.at, told.times] for line, told in past.xids.items()},
        "boot_id": past.boot_id,
    }


def of_json(data: Mapping[str, Any]) -> Past:
    """What `to_json` gave."""
    return Past(
        data["gpus"],
        {int(gpu): links for gpu, links in data["nvlinks"].items()},
        data["rates"],
        {name: Counter(last, tuple((at, by) for at, by in steps)) for name, (last, *steps) in data["counters"].items()},
        {line: Told(at, times) for line, (at, times) in data["xids"].items()},
        data["boot_id"],
    )
