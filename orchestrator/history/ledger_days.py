"""How an attempt's GPU time is spread over the days and nodes on which it was used: whole milliseconds that add up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta

GPU_TIME = ("allocated", "starting", "productive", "checkpoint", "lost", "idle")
"""The whole and its parts, by the first word of their columns."""

DAY = timedelta(days=1)


def day_of(at: datetime) -> date:
    """The day in UTC."""
    return at.astimezone(UTC).date()


def midnight(day: date) -> datetime:
    """When it begins."""
    return datetime.combine(day, time(), UTC)


def periods_of(day: date) -> dict[str, date]:
    """The day, week and month that it is in, by their first day; a week begins on Monday."""
    return {"day": day, "week": day - timedelta(days=day.weekday()), "month": day.replace(day=1)}


def after(period: str, start: date) -> date:
    """The first day of the next period."""
    if period == "month":
        return (start.replace(day=1) + timedelta(days=32)).replace(day=1)
    return start + timedelta(days=7 if period == "week" else 1)


def cost_of(gpu_ms: int, price: float) -> float:
    """What GPU-milliseconds cost at a price per GPU-hour."""
    return gpu_ms / 3_600_000 * price


def shares(start: datetime, end: datetime) -> list[tuple[date, float]]:
    """The days that a span touches, and what share of it each has; a span without length is all on its day."""
    if end <= start:
        return [(day_of(start), 1.0)]
    whole = (end - start) / DAY
    found, day = [], day_of(start)
    while midnight(day) < end:
        inside = min(end, midnight(day + DAY)) - max(start, midnight(day))
        found.append((day, inside / DAY / whole))
        day += DAY
    return found


def spread(total: Mapping[str, int], weights: Sequence[float]) -> Iterator[dict[str, int]]:
    """`total` cut in proportion to `weights`, without a millisecond lost or gained in any of its parts.

    Each piece's allocated time is again the sum of its parts.
    """
    whole = sum(weights) or 1.0
    given, sofar = dict.fromkeys(total, 0), 0.0
    for number, weight in enumerate(weights, 1):
        sofar += weight
        upto = 1.0 if number == len(weights) else sofar / whole
        piece = {}
        for part, value in total.items():
            if part == "allocated_ms":
                continue
            piece[part] = round(value * upto) - given[part]
            given[part] += piece[part]
        yield {"allocated_ms": sum(piece.values()), **piece}
