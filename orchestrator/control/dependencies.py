"""What of `after:` has come true: which waiting runs still wait for others, and which never can run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator.control.runtime import Runtime
from orchestrator.history.book import Changes
from orchestrator.scheduling.lifecycle import State
from orchestrator.scheduling.run import Dependency, Run

Ids = tuple[int, int]


@dataclass(frozen=True)
class Broken:
    """A waiting run whose turn can never come, and why."""

    run: Run
    reason: str


class Dependencies:
    """Follows the runs that others wait for. One that has ended is asked for in the database once, and remembered."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._settled: dict[Ids, str | None] = {}
        """By the runs that are waited for: why they never will have succeeded, or None where they have."""
        self._looked_at: set[Ids] = set()
        """Arrays that still run, of which those that have ended were looked at."""
        self._arrays: dict[int, Ids] = {}
        """By its first run, an array that something waits for."""

    def follow(self, changes: Changes) -> None:
        """Takes in what was committed: what is known of a run, and of its array, may not hold any more."""
        for run in changes.runs.values():
            keys = [(run.id, run.id)]
            if run.element is not None and run.element.array in self._arrays:
                keys.append(self._arrays[run.element.array])
            for key in keys:
                self._settled.pop(key, None)
                if run.ended and run.state is not State.SUCCEEDED:
                    self._looked_at.discard(key)

    async def settle(self, waiting: Iterable[Run]) -> list[Broken]:
        """Finds out what is not known yet; the waiting runs that never can run."""
        mine = [run for run in waiting if run.after]
        asked = {(one.first, one.last): one for run in mine for one in run.after}
        self._arrays = {key[0]: key for key in asked if key[0] != key[1]}
        for key in self._settled.keys() - asked.keys():
            del self._settled[key]
        self._looked_at &= asked.keys()
        for key, one in asked.items():
            if key in self._settled or key in self._looked_at:
                continue
            open_runs = self._open(one)
            if open_runs and one.first == one.last:
                continue
            why = await self._why_broken(one)
            if why is not None or not open_runs:
                self._settled[key] = why
            else:
                self._looked_at.add(key)
        return [
            Broken(run, why)
            for run in mine
            if (why := next((w for one in run.after if (w := self._settled.get((one.first, one.last)))), None))
        ]

    def waits_for(self, after: Sequence[Dependency]) -> str | None:
        """Which runs what follows these still waits for; None where all have succeeded."""
        names = []
        for one in after:
            if (one.first, one.last) in self._settled or not self._open(one):
                continue
            if one.first == one.last:
                names.append(f"run {one.first} ({one.word})")
            else:
                names.append(f"{self._open(one)} of the {one.last - one.first + 1} runs of {one.word}")
        if not names:
            return None
        return f"waits for {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")

    def _open(self, one: Dependency) -> int:
        """How many of the runs have not ended."""
        book = self._runtime.book
        if one.first == one.last:
            return int(one.first in book.runs)
        return len(book.open_runs.get(one.first, ()))

    async def _why_broken(self, one: Dependency) -> str | None:
        """What became of the first run, in the order of what follows what, that failed or was cancelled."""
        runtime = self._runtime
        broken = await runtime.read(runtime.store.broken, one)
        if broken is None:
            return None
        root = broken
        seen = {broken.id}
        while root.state is State.CANCELLED and root.after:
            before = [await runtime.read(runtime.store.broken, need) for need in root.after]
            further = next((run for run in before if run is not None and run.id not in seen), None)
            if further is None:
                break
            root = further
            seen.add(root.id)
        ended = "failed" if root.state is State.FAILED else "was cancelled"
        why = f": {root.reason}" if root.state is State.FAILED and root.reason else ""
        through = "" if root.id == broken.id else f"it was to follow run {broken.id} ({broken.label}), and "
        return f"{through}run {root.id} ({root.label}), which it was to follow, {ended}{why}"
