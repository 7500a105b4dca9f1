"""By how much a node's clock is off the head's, from the times of questions and answers, as NTP works it out (RFC 5905, 8).

The difference is certain only up to half of what the question and the answer took on their way.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

KEPT = 8
"""Looks of which the quickest is believed: its uncertainty is the smallest."""


@dataclass
class ClockWatch:
    """One node's clock."""

    _looks: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=KEPT))
    """(Seconds on the way, seconds ahead)."""

    def take(self, asked: float, heard: float, answered: float, told: float) -> None:
        """Unix seconds: `asked` and `told` by the head's clock, `heard` and `answered` by the node's."""
        on_the_way = (told - asked) - (answered - heard)
        # A clock that was set meanwhile.
        if on_the_way >= 0:
            self._looks.append((on_the_way, ((heard - asked) + (answered - told)) / 2))

    @property
    def ahead(self) -> float | None:
        """Seconds by which it is certainly ahead, negative where it is behind; None before the first answer."""
        if not self._looks:
            return None
        on_the_way, ahead = min(self._looks)
        least = max(0.0, abs(ahead) - on_the_way / 2)
        return least if ahead > 0 else -least
