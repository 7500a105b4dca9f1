"""Counts of step times by bucket, and what can be told from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from orchestrator.progress.file import bucket_start

Counts = Mapping[int, int]


def merged(parts: Iterable[Counts]) -> Counts:
    """The counts of all ranks, or times, together."""
    total: Counter[int] = Counter()
    for part in parts:
        total.update(part)
    return total


def difference(before: Counts, after: Counts) -> Counts:
    """What has come since."""
    return {bucket: count - before.get(bucket, 0) for bucket, count in after.items() if count > before.get(bucket, 0)}


def quantile(counts: Counts, part: float) -> float | None:
    """The time in seconds below which that part of the steps lies; within 3 %, as a bucket is a 16th of its octave."""
    wanted = part * sum(counts.values())
    for bucket, count in sorted(counts.items()):
        if count and wanted <= count:
            start, end = bucket_start(bucket), bucket_start(bucket + 1)
            return (start + (end - start) * wanted / count) / 1e9
        wanted -= count
    return None
