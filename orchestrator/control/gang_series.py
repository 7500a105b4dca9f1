"""What a gang did in each ten seconds, and each of its ranks in each minute: rows of their series, from looks. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.control.progress_kind import Kind, count_of, own_time, samples_of, step_time
from orchestrator.control.rank_progress import RankProgress
from orchestrator.progress.histogram import difference, merged, quantile
from orchestrator.progress.values import GangSample, RankSample, time_of

GANG_S, RANK_S = 10, 60
"""The length of the newest rows of the gang's series, and of its ranks'."""
RATES = {"samples": "samples_per_s", "tokens": "tokens_per_s"}
"""What a `throughput:` pattern's name means beside its own value."""

Looks = Mapping[int, RankProgress]
"""By rank, its newest look."""


class GangSeries:
    """The rows of one attempt. A row is what came between the looks at its beginning and those at its end."""

    def __init__(self) -> None:
        self._gang_base: tuple[int, Looks] | None = None
        self._rank_base: tuple[int, Looks] | None = None
        self._gang_rows: list[GangSample] = []
        self._rank_rows: list[RankSample] = []

    def add(self, looks: Looks, kind: Kind | None, now_ms: int, *, end: bool = False) -> None:
        """Finishes the rows whose time is over: all of them at the attempt's end. Progress is counted in `kind`."""
        if self._gang_base is None or self._rank_base is None:
            self._gang_base = self._rank_base = now_ms, looks
            return
        began, base = self._gang_base
        if now_ms - began >= GANG_S * 1000 or (end and now_ms > began):
            self._gang_rows.append(_gang_sample(began, now_ms, base, looks, kind))
            self._gang_base = now_ms, looks
        began, base = self._rank_base
        if now_ms - began >= RANK_S * 1000 or (end and now_ms > began):
            for number, look in looks.items():
                if number in base:
                    self._rank_rows.append(_rank_sample(began, now_ms, base[number], look, kind))
            self._rank_base = now_ms, looks

    def take_rows(self) -> tuple[list[GangSample], list[RankSample]]:
        """The rows that have been finished since they were last taken."""
        taken = self._gang_rows, self._rank_rows
        self._gang_rows, self._rank_rows = [], []
        return taken


def _gang_sample(began: int, now_ms: int, base: Looks, looks: Looks, kind: Kind | None) -> GangSample:
    pairs = [(base[number], look) for number, look in looks.items() if number in base]
    times = merged([difference(before.step_times, look.step_times) for before, look in pairs])
    samples = [samples_of(look, kind) - samples_of(before, kind) for before, look in pairs if samples_of(look, kind)]
    own = [time for pair in pairs if (time := own_time(*pair, kind)) is not None]
    return GangSample(
        time_of(began),
        GANG_S,
        now_ms - began,
        max((count_of(look, kind) - count_of(before, kind) for before, look in pairs), default=0),
        sum(samples) if samples else None,
        max((time for pair in pairs if (time := step_time(*pair, kind)) is not None), default=None),
        quantile(times, 0.5),
        quantile(times, 0.99),
        min(own, default=None),
        max(own, default=None),
        metrics_of(looks),
    )


def _rank_sample(began: int, now_ms: int, before: RankProgress, look: RankProgress, kind: Kind | None) -> RankSample:
    return RankSample(
        look.rank,
        time_of(began),
        RANK_S,
        now_ms - began,
        max(0, count_of(look, kind) - count_of(before, kind)),
        samples_of(look, kind) - samples_of(before, kind) if samples_of(look, kind) else None,
        step_time(before, look, kind),
        own_time(before, look, kind) if look.own_time else None,
        (look.data_wait - before.data_wait) // 10**6,
    )


def metrics_of(looks: Looks) -> dict[str, float]:
    """The newest value of each metric: a lower rank's goes before a higher one's, the log's before what was reported."""
    told: dict[str, float] = {}
    backwards = [look for _, look in sorted(looks.items(), reverse=True)]
    for look in backwards:
        told |= look.metrics | ({"step": look.reported_step} if look.reported_step else {})
    for look in backwards:
        told |= {RATES.get(name, name): value for name, value in look.logged.items()}
    return told
