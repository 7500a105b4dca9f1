"""What has not ended, in memory: the runs that wait and live, their arrays, and who holds which GPU.

The database is the truth. A Book is made from it once, and then follows each committed write by the Changes that the store tells.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from orchestrator.scheduling.lifecycle import State
from orchestrator.scheduling.run import Array, Run

Gpu = tuple[str, int]
"""A node's name, and one of its GPUs (or CPU slots)."""


@dataclass(frozen=True)
class Hold:
    """Who has a GPU, and since when."""

    run: int
    since: datetime
    until: datetime | None = None
    """Set where the attempt has ended but its ranks may live until then."""


@dataclass
class Changes:
    """What one write did."""

    runs: dict[int, Run] = field(default_factory=dict)
    """By id, as they are now; those that have ended are among them."""
    arrays: dict[int, Array] = field(default_factory=dict)
    held: dict[Gpu, Hold | None] = field(default_factory=dict)
    """None where it was given back."""
    missed: bool = False
    """These are found out later: whoever made them was told that they had failed."""

    def add(self, later: Changes) -> None:
        self.runs |= later.runs
        self.arrays |= later.arrays
        self.held |= later.held


class Book:
    """Not safe to use from several threads: each keeps its own, of the same frozen values."""

    def __init__(self, runs: Iterable[Run] = (), arrays: Iterable[Array] = (), held: Mapping[Gpu, Hold] | None = None):
        self.runs: dict[int, Run] = {}
        """Those that have not ended, by id."""
        self.arrays: dict[int, Array] = {}
        """Those of which a run has not ended."""
        self.held: dict[Gpu, Hold] = dict(held or {})
        self.open_runs: dict[int, set[int]] = defaultdict(set)
        """By array, which of its runs have not ended."""
        self.queued: dict[int, Run] = {}
        """Those that wait, in no order."""
        self._waiting: list[Run] | None = None
        """They in their order, and perhaps some that have left since; None where one has come."""
        self.apply(Changes({run.id: run for run in runs}, {array.id: array for array in arrays}))

    def apply(self, changes: Changes) -> None:
        """Follows one committed write."""
        self.arrays |= changes.arrays
        for run in changes.runs.values():
            self._keep(run)
        for gpu, hold in changes.held.items():
            if hold is None:
                self.held.pop(gpu, None)
            else:
                self.held[gpu] = hold

    def _keep(self, run: Run) -> None:
        if run.ended:
            self.runs.pop(run.id, None)
        else:
            self.runs[run.id] = run
        if run.state is State.QUEUED:
            self.queued[run.id] = run
            self._waiting = None
        else:
            self.queued.pop(run.id, None)
        if run.element is not None:
            array = run.element.array
            (self.open_runs[array].discard if run.ended else self.open_runs[array].add)(run.id)
            if not self.open_runs[array]:
                del self.open_runs[array]
                self.arrays.pop(array, None)

    def since(self, before: Book, ended: Callable[[int], Run | None]) -> Changes:
        """What leads from that book to this one; `ended` gives a run that has ended meanwhile."""
        found = Changes(missed=True)
        found.runs = {run.id: run for run in self.runs.values() if before.runs.get(run.id) != run}
        for gone in before.runs.keys() - self.runs.keys():
            if (run := ended(gone)) is not None:
                found.runs[gone] = run
        found.arrays = {array.id: array for array in self.arrays.values() if before.arrays.get(array.id) != array}
        found.held = {gpu: hold for gpu, hold in self.held.items() if before.held.get(gpu) != hold}
        found.held |= dict.fromkeys(before.held.keys() - self.held.keys())
        return found

    def waiting(self) -> list[Run]:
        """The queue: highest priority first, then who has waited longest."""
        if self._waiting is None:
            self._waiting = sorted(self.queued.values(), key=lambda run: (-run.spec.priority, run.queued_at, run.id))
        elif len(self._waiting) > len(self.queued):
            self._waiting = [run for run in self._waiting if run.id in self.queued]
        return self._waiting

    def live(self) -> list[Run]:
        """What holds a place, by id."""
        return sorted((run for run in self.runs.values() if run.live), key=lambda run: run.id)

    def busy(self) -> dict[str, dict[int, int]]:
        """By node and GPU (or CPU slot), the run that has it, fenced ones included."""
        found: dict[str, dict[int, int]] = defaultdict(dict)
        for (node, gpu), hold in self.held.items():
            found[node][gpu] = hold.run
        return dict(found)

    def fences(self) -> dict[int, datetime]:
        """By run, until when the ranks of an ended attempt may live."""
        found: dict[int, datetime] = {}
        for hold in self.held.values():
            if hold.until is not None:
                found[hold.run] = max(hold.until, found.get(hold.run, hold.until))
        return found

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Book):
            return NotImplemented
        return (self.runs, self.arrays, self.held) == (other.runs, other.arrays, other.held)

    __hash__ = None  # type: ignore[assignment]  # it changes
