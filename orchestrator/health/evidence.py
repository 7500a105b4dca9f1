"""What was seen of a gang's end, as values: how each rank ended and what it said, nodes that were lost, the kernel's lines.

Times are seconds on one clock, the controller's (control/gang.py translates): a node's own times are counted since its
boot, and each report bounds the difference of the two clocks from above, by the time that it was on its way. The
smallest difference that was seen is taken, so two nodes' times are as exact as their quickest reports.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Word:
    """What an interpreter said of its own end before it was torn down (control/launcher/last_word.py)."""

    at: float
    exit: int | None = None
    """The exit code that the script asked for; 0 where it came to its end, None after an exception."""
    errors: tuple[tuple[str, str], ...] = ()
    """Type and text of the uncaught exception, then of those that it came from."""

    def to_json(self) -> dict[str, Any]:
        return {"at": self.at, "exit": self.exit, "errors": [list(pair) for pair in self.errors]}

    @classmethod
    def from_json(cls, said: Any) -> Word | None:
        """None for what is not a word: the file is in the reach of the script."""
        try:
            code = said["exit"]
            errors = tuple((str(kind)[:200], str(text)[:2000]) for kind, text in said["errors"][:8])
            return cls(float(said["at"]), None if code is None else int(code), errors)
        except (TypeError, ValueError, KeyError, IndexError):
            return None


@dataclass(frozen=True)
class OutOfMemory:
    """The kernel killed a process of the rank for want of memory. Sizes in bytes, None where unknown."""

    pid: int | None
    """The process that was killed: the rank's own or a child's; None where only a counter tells of it."""
    peak: int | None
    limit: int | None
    whole_node: bool = False
    """The node's memory was at its end, not a limit of the rank's."""
    line: str | None = None
    """The kernel's own."""


@dataclass(frozen=True)
class Xid:
    """An error that the GPU driver told the kernel's log: of a GPU (Xid), or of an NVSwitch (SXid)."""

    at: float
    number: int
    line: str
    gpu: int | None = None
    """Its index on the node; None where not known."""
    switch: bool = False


@dataclass(frozen=True)
class RankEnd:
    """How a rank ended."""

    code: int
    """The exit status, or minus the signal."""
    at: float
    told_at: float | None = None
    """When it was told to end, or its killing began; None where neither happened before its end."""
    word: Word | None = None
    oom: OutOfMemory | None = None

    def shifted(self, by: float) -> RankEnd:
        """The same on a clock that is `by` ahead."""
        word = None if self.word is None else replace(self.word, at=self.word.at + by)
        told_at = None if self.told_at is None else self.told_at + by
        return replace(self, at=self.at + by, told_at=told_at, word=word)


@dataclass(frozen=True)
class Seen:
    """One rank of the gang."""

    rank: int
    node: str
    gpu: int | None = None
    end: RankEnd | None = None
    """None while it lives, and where nobody can say."""
    lines: tuple[str, ...] = ()
    """The end of its log."""


@dataclass(frozen=True)
class Loss:
    """A part of the gang that broke as a whole: its node is gone or cut off, or could not start it."""

    kind: str
    """node_lost, lease_expired, ranks_gone, launcher_lost or start_failed."""
    node: str
    message: str
    heard: float = float("-inf")
    """When its ranks were last known to be there."""


@dataclass(frozen=True)
class Evidence:
    """All that was seen of an attempt."""

    ranks: tuple[Seen, ...]
    losses: tuple[Loss, ...] = ()
    xids: tuple[tuple[str, Xid], ...] = ()
    """With their nodes."""
    whole: bool = True
    """Every node has told its end, or is lost."""
