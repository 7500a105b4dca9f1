"""A wall clock that goes on evenly: durations and leases must not follow an operator, or NTP, who puts the machine's clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

FOLLOWED_S = 2.0
"""Differences up to this are drift that NTP corrects bit by bit, and are followed; a larger one is a step."""


class SteadyClock:
    """The time of day when it was made, and since then what a monotonic clock counts. It never goes back."""

    def __init__(
        self,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
        on_step: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """`on_step(seconds)`: by how much the machine's clock is ahead of this one, told when that changes by a step."""
        self._wall, self._monotonic, self._on_step = wall, monotonic, on_step
        self._at, self._counted = wall(), monotonic()
        self._off = 0.0

    def __call__(self) -> datetime:
        counted = self._monotonic()
        now = self._at + timedelta(seconds=counted - self._counted)
        wall = self._wall()
        off = (wall - now).total_seconds()
        if abs(off) <= FOLLOWED_S:
            now = max(wall, self._at)
            off = 0.0
        if abs(off - self._off) > FOLLOWED_S:
            self._off = off
            self._on_step(off)
        self._at, self._counted = now, counted
        return now
