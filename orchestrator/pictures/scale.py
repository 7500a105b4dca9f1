"""Where values stand on an axis, which of them are labelled, and how numbers, durations and times are written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime

_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200)
_DAYS = (1, 2, 5, 7, 14, 30, 90, 180, 365)
TIME_STEPS = (*_STEPS, *(86400 * days for days in _DAYS))
"""Seconds between the labels of a time axis."""


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` on pixels from `first` to `last`."""

    low: float
    high: float
    first: float
    last: float

    def __call__(self, value: float) -> float:
        spread = (self.high - self.low) or 1.0
        return self.first + (value - self.low) / spread * (self.last - self.first)


def nice_step(spread: float, wanted: int) -> float:
    """The distance of about `wanted` labels: 1, 2 or 5 times a power of ten."""
    rough = (spread if spread > 0 else 1.0) / max(1, wanted)
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * times for times in (1, 2, 5, 10) if power * times >= rough * (1 - 1e-9))


def ticks(high: float, wanted: int = 4) -> list[float]:
    """Labels of an axis from 0; the last is at or above `high`."""
    step = nice_step(high, wanted)
    return [i * step for i in range(math.ceil(max(high, step) / step - 1e-9) + 1)]


def time_ticks(low: float, high: float, wanted: int = 6) -> list[tuple[float, str]]:
    """Round moments between two, in seconds since 1970, each with its words (UTC)."""
    rough = (high - low) / max(1, wanted)
    step = next((step for step in TIME_STEPS if step >= rough), TIME_STEPS[-1])
    first = math.ceil(low / step - 1e-9) * step
    found: list[tuple[float, str]] = []
    for i in range(max(0, math.floor((high - first) / step + 1e-9)) + 1):
        at = first + i * step
        if low <= at <= high:
            found.append((at, _moment(at, step, new_day=not found or at % 86400 == 0)))
    return found


def _moment(at: float, step: float, new_day: bool) -> str:
    when = datetime.fromtimestamp(at, UTC)
    if step >= 86400:
        return when.strftime("%d %b")
    clock = when.strftime("%H:%M:%S" if step < 60 else "%H:%M")
    return f"{when:%d %b} {clock}" if new_day else clock


def figure(value: float | None) -> str:
    """A number to read: `8,123`, `41.2`, `0.032`, `1.2M`."""
    if value is None:
        return "unknown"
    size = abs(value)
    for limit, word in ((1e9, "G"), (1e6, "M")):
        if size >= limit:
            return f"{value / limit:.3g}{word}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value == int(value) else f"{value:.3g}"


def percent(share: float | None) -> str:
    """A share of 1: `98 %`, `0.4 %`."""
    if share is None:
        return "unknown"
    shown = share * 100
    return f"{shown:.0f} %" if shown >= 9.95 or shown == 0 else f"{shown:.2g} %"


def step_unit(seconds: float) -> tuple[float, str]:
    """What to multiply times of this size with, and the unit that it makes."""
    if seconds < 1e-3:
        return 1e6, "µs"
    return (1e3, "ms") if seconds < 1 else (1.0, "s")


def span(seconds: float | None) -> str:
    """A duration: `0.4 s`, `41 s`, `3 min 20 s`, `2 h 05 min`, `3 d 4 h`."""
    if seconds is None:
        return "unknown"
    if seconds < 59.5:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    if whole < 2 * 86400:
        return f"{whole // 3600} h" + (f" {whole % 3600 // 60:02d} min" if whole % 3600 >= 60 else "")
    return f"{whole // 86400} d" + (f" {whole % 86400 // 3600} h" if whole % 86400 >= 3600 else "")


def when(at: float, seconds: bool = False) -> str:
    """A moment in seconds since 1970: `2026-11-23 14:05 UTC`."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M" + (":%S" if seconds else "") + " UTC")


def moment(text: str | None) -> float | None:
    """A time of the API in seconds since 1970."""
    return None if not text else datetime.fromisoformat(text).timestamp()
