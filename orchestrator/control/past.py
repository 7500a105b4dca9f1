"""What the history says of runs, for whoever asks the controller: side by side, in groups, as pictures, the best of an array."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from orchestrator.array import run_id
from orchestrator.control.refused import Refused
from orchestrator.control.runtime import Runtime
from orchestrator.history.asking import Asked
from orchestrator.history.filters import RunFilter
from orchestrator.history.ledger import Scale
from orchestrator.scheduling.lifecycle import State
from orchestrator.scheduling.run import Array, Run


class Past:
    """Questions to the database alone; what waits and lives is the controller's to tell."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime, self._store = runtime, runtime.store

    async def run_pictured(self, ref: str) -> dict[str, Any]:
        """What the run's page is drawn from. Raises Refused(3)."""
        found = await self._runtime.read(self._store.run_pictured, run_id(ref), self._runtime.now())
        if found is None:
            raise Refused(3, f"no such run: {ref!r}")
        return found

    async def cluster_pictured(self, since: datetime | None) -> dict[str, Any]:
        """What the cluster's page is drawn from, of the time since then: the last 30 days where nothing is said."""
        now = self._runtime.now()
        return await self._runtime.read(self._store.cluster_pictured, since or now - timedelta(days=30), now)

    async def asked(self, question: Asked) -> list[dict[str, Any]]:
        """Groups, or flat rows. Raises ValueError."""
        if question.by:
            return await self._runtime.read(self._store.groups, question.wanted, question.by, question.sort)
        return await self._runtime.read(self._store.rows, question.wanted, question.columns)

    async def compare(self, refs: Sequence[str]) -> dict[str, Any]:
        """Runs side by side. Raises Refused(3)."""
        found = await self._runtime.read(self._store.compare, refs)
        if not isinstance(found, dict):
            raise Refused(3, f"no such run: {found!r}")
        return found

    async def against_its_like(self, run: Run) -> dict[str, Any] | None:
        return await self._runtime.read(self._store.against_its_like, run)

    async def scaling(self, name: str) -> list[Scale]:
        return await self._runtime.read(self._store.scaling, name)

    async def counts(self, array: Array) -> dict[State, int]:
        """How many runs of the array are in each state."""
        return await self._runtime.read(self._store.counts, array.runs)

    async def best(self, array: Array, by: str, count: int) -> list[tuple[Run, dict[str, float]]]:
        """The runs of the array with the smallest values of a metric, with `-` before its name the largest, and their metrics."""
        metric, sign = by.removeprefix("-"), -1 if by.startswith("-") else 1
        reported = await self._runtime.read(self._store.metrics, array.runs)
        runs = {run.id: run for run in await self._runtime.read(self._store.runs, RunFilter(ids=array.runs))}
        values = {
            run: float(of[metric])
            for run, of in reported.items()
            if isinstance(of.get(metric), int | float) and math.isfinite(of[metric])
        }
        chosen = sorted(values, key=lambda run: (sign * values[run], run))[:count]
        return [(runs[run], reported[run]) for run in chosen]
