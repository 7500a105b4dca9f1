"""Who has had how much, as it counts today: usage that halves with time, and the order of teams and users that follows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType

Account = tuple[str, str]
"""A team (`-` for none) and a user of it."""


@dataclass(frozen=True)
class Use:
    """GPUs that an account held for a time."""

    account: Account
    gpus: int
    start: datetime
    end: datetime


@dataclass(frozen=True)
class Ledger:
    """GPU-seconds by account as they count at `at`: those used `half_life` seconds before count half.

    The decay is continuous (Slurm's PriorityDecayHalfLife does it in steps of PriorityCalcPeriod), so that it does not matter when
    and in how many parts a use is entered.
    """

    used: Mapping[Account, float] = field(default_factory=lambda: MappingProxyType({}))
    at: datetime | None = None

    def charged(self, uses: Iterable[Use], half_life: float, now: datetime) -> Ledger:
        """The ledger at `now` with these uses entered, each as far as it lies before `now`."""
        found = self.decayed(half_life, now)
        for use in uses:
            found[use.account] = found.get(use.account, 0.0) + worth(use, half_life, now)
        return Ledger(MappingProxyType(found), now)

    def decayed(self, half_life: float, now: datetime) -> dict[Account, float]:
        """What each account's usage counts at `now`."""
        if self.at is None:
            return {}
        factor = 0.5 ** (max(0.0, (now - self.at).total_seconds()) / half_life)
        return {account: value * factor for account, value in self.used.items()}


def worth(use: Use, half_life: float, now: datetime) -> float:
    """GPU-seconds that a use counts at `now`: the integral of its GPUs over the decay."""
    begin, end = (max(0.0, (now - moment).total_seconds()) for moment in (use.start, use.end))
    return _decayed(use.gpus, begin, end, half_life)


def worth_so_far(gpus: int, start: datetime, half_life: float, now: datetime) -> float:
    """The same of a use that goes on: what it counts from `start` to `now`."""
    return _decayed(gpus, max(0.0, (now - start).total_seconds()), 0.0, half_life)


def _decayed(gpus: int, begin: float, end: float, half_life: float) -> float:
    """GPU-seconds of a use that began and ended so many seconds ago."""
    rate = math.log(2) / half_life
    return gpus * (math.exp(-rate * end) - math.exp(-rate * begin)) / rate
