"""One rank's end with all that was seen of it: what it said last, and what the kernel said of its GPU then."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from functools import cached_property

from orchestrator.health import last_words
from orchestrator.health.evidence import RankEnd, Seen, Xid

LAST_LINES = 40
"""So many lines at a log's end are searched where there was no exception."""
XID_AFTER_S = 5.0
"""An Xid is of an end up to so long after it: the kernel's lines are read once a second."""


@dataclass(frozen=True)
class Death:
    """One rank's end with all that was seen of it."""

    seen: Seen
    end: RankEnd
    node_xids: tuple[Xid, ...] = ()

    @cached_property
    def at(self) -> float:
        """When it broke: an interpreter takes its time from an exception to its end."""
        return min(self.end.at, self.end.word.at) if self.end.word else self.end.at

    @cached_property
    def errors(self) -> tuple[tuple[str, str], ...]:
        """The uncaught exception, and those that it came from: as the interpreter told them, else as its log shows them."""
        if self.end.word is not None:
            return self.end.word.errors
        return () if self._cut_off else last_words.errors(self.seen.lines)

    @property
    def _cut_off(self) -> bool:
        """It was ended in the midst of something: what its log says last is of what it had lived through."""
        return self.end.code < 0 and self.end.code != -signal.SIGABRT

    @property
    def code(self) -> int:
        """The exit code that the script asked for, where an abort in the interpreter's last moments hid it."""
        word = self.end.word
        return word.exit if word is not None and word.exit else self.end.code

    @cached_property
    def said(self) -> str:
        """What rules search: the exceptions, or the log's end where there is none."""
        if self.errors:
            return "\n".join(f"{kind}: {text}" for kind, text in self.errors)
        return "" if self._cut_off else "\n".join(last_words.plain(self.seen.lines[-LAST_LINES:]))

    @cached_property
    def native(self) -> str:
        """The log's end: what libraries say, exception or not."""
        return "\n".join(last_words.plain(self.seen.lines[-LAST_LINES:]))

    def xids(self, numbers: frozenset[int], before_s: float) -> list[Xid]:
        """Those that its GPU, or one whose number is not known, or a switch of its node told of at its end."""
        own = (one for one in self.node_xids if one.gpu is None or one.gpu == self.seen.gpu)
        near = (one for one in own if self.at - before_s <= one.at <= self.end.at + XID_AFTER_S)
        return [one for one in near if one.number in numbers and not one.switch]
