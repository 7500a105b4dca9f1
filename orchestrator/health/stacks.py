"""Where the ranks of a gang stand, and which of them keeps the others waiting. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.health.flight_recorder import Recorded, behind

STOPPED = frozenset("Tt")
"""The kernel's letters for a process that was stopped by a signal, or by a debugger."""
_STATES = {
    "T": "is stopped (by SIGSTOP or SIGTSTP)",
    "t": "is held by a debugger",
    "D": "waits in the kernel and cannot be interrupted, for a disk or a file server most likely",
    "Z": "has ended and was not reaped",
    "": "has no process any more",
}

# What a rank that waits for others stands in: torch's own Python, or the native functions of a collective.
_PYTHON = re.compile(r"torch/(distributed|autograd/graph\.py|nn/parallel/distributed\.py|cuda/(__init__|streams)\.py)")
_NATIVE = re.compile(
    r"c10d::|gloo::|\bnccl[A-Z_]|ProcessGroup|c10::ivalue::Future::wait|torch::autograd::Engine"
    r"|cu(da)?(Stream|Event|Ctx|Device)Synchronize|Work::wait"
)
# What a rank stands in that waits for a process of its own: an upload, a compiler.
_CHILD = re.compile(r"(^|/)(subprocess|multiprocessing/popen_\w+)\.py$")
_CHILD_NATIVE = re.compile(r"^_*(wait4|waitpid|waitid|(libc_|do_)?system)\b")
_LIBRARY = re.compile(r"^<|/(site|dist)-packages/|/lib(64)?/python3|^torch/|^[\w.-]+\.so")


@dataclass(frozen=True)
class Frame:
    """One call; `line` is 0 for native code."""

    name: str
    file: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.name} ({self.file}:{self.line})" if self.line else f"{self.name} ({self.file})"


@dataclass(frozen=True)
class RankStack:
    """One rank at one moment."""

    rank: int
    pid: int
    state: str
    """The kernel's letter for its first thread; empty where there is no process."""
    frames: tuple[Frame, ...] = ()
    """Of its main thread, the innermost first; empty where nobody could look."""
    text: str = ""
    """Everything that was seen, for people."""
    moved_bytes: int = 0
    """What it has read and written since it began; 0 where that is not told."""
    recorded: Recorded | None = None
    """Of torch's flight recorder, where it has one."""

    @property
    def calls(self) -> tuple[Frame, ...]:
        """The Python frames."""
        return tuple(frame for frame in self.frames if frame.line)

    @property
    def stopped(self) -> bool:
        return self.state in STOPPED

    @property
    def waits(self) -> bool:
        """Whether it stands in a collective, or waits for its GPU, which then does."""
        return any(_PYTHON.search(frame.file) for frame in self.calls[:4]) or any(
            _NATIVE.search(frame.name) for frame in self._native
        )

    @property
    def waits_for_child(self) -> bool:
        """Whether it waits for a process that it has started."""
        return any(_CHILD.search(frame.file) for frame in self.calls[:4]) or any(
            _CHILD_NATIVE.search(frame.name) for frame in self._native
        )

    @property
    def _native(self) -> tuple[Frame, ...]:
        """The native frames inside the innermost Python one."""
        return self.frames[: self.frames.index(self.calls[0])] if self.calls else self.frames

    @property
    def place(self) -> str:
        """Where it stands, as a person would say it: `all_reduce, called at train.py:31`; empty where nobody knows."""
        if not self.calls:
            return str(self.frames[0]) if self.frames else ""
        inner = self.calls[0]
        own = next((frame for frame in self.calls if not _LIBRARY.search(frame.file)), None)
        if own is None or own == inner:
            return f"{inner.file}:{inner.line}, in {inner.name}"
        return f"{inner.name}, called at {own.file}:{own.line}"


def busy(before: Mapping[int, RankStack], after: Mapping[int, RankStack]) -> frozenset[int]:
    """The ranks that do something: their main thread was somewhere else in the second look, or waits for a process of their
    own, or they have read and written meanwhile."""
    return frozenset(
        rank for rank in before.keys() & after.keys() if _busy(before[rank], after[rank]) and not after[rank].stopped
    )


def _busy(before: RankStack, after: RankStack) -> bool:
    moves = bool(before.calls and after.calls and before.calls != after.calls)
    copies = bool(before.moved_bytes) and after.moved_bytes - before.moved_bytes >= COPYING
    return moves or copies or after.waits_for_child


@dataclass(frozen=True)
class Missing:
    """The ranks that keep the others waiting, and how that is known."""

    ranks: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class Evidence:
    """All that is known of a gang that stands still."""

    stacks: Mapping[int, RankStack]
    steps: Mapping[int, int] = field(default_factory=dict)
    ended: Collection[int] = ()
    """Ranks that have ended by themselves, while others live."""
    nodes: Mapping[int, str] = field(default_factory=dict)
    """By rank."""


MOST_NAMED = 4
COPYING = 1 << 20
"""So many bytes between two looks are those of a file; what torch's own threads read and write is far less."""


def missing(found: Evidence) -> Missing | None:
    """Who keeps the others waiting, by the surest sign that tells ranks apart; None where none does."""
    stacks = found.stacks
    everyone = frozenset(stacks) | frozenset(found.ended)
    stopped = [rank for rank, one in sorted(stacks.items()) if one.state in _STATES and one.state != "D"]
    if stopped:
        return Missing(tuple(stopped), _said(found, stopped, _STATES[stacks[stopped[0]].state]))
    if found.ended and len(found.ended) < len(everyone):
        return Missing(tuple(sorted(found.ended)), _said(found, sorted(found.ended), "has ended"))
    recorded = {rank: one.recorded for rank, one in stacks.items() if one.recorded is not None}
    if (late := behind(recorded)) is not None and len(late.ranks) < len(everyone):
        return Missing(late.ranks, _said(found, late.ranks, late.text))
    blocked = [rank for rank, one in sorted(stacks.items()) if one.state == "D"]
    if blocked and len(blocked) < len(everyone):
        return Missing(tuple(blocked), _said(found, blocked, _STATES["D"]))
    known = [rank for rank, one in sorted(stacks.items()) if one.frames]
    elsewhere = [rank for rank in known if not stacks[rank].waits]
    if elsewhere and len(elsewhere) < len(known):
        return Missing(tuple(elsewhere), _said(found, elsewhere, "is not in the collective that the others wait in"))
    most = max(found.steps.values(), default=0)
    fewer = sorted(rank for rank, steps in found.steps.items() if steps < most)
    if fewer and len(fewer) < len(everyone):
        text = f"is at step {min(found.steps[rank] for rank in fewer):,}, others at {most:,}"
        return Missing(tuple(fewer), _said(found, fewer, text))
    return None


def _said(found: Evidence, ranks: Sequence[int], text: str) -> str:
    """`rank 3 on gpu-02 is stopped ...; it stands at train.py:31, in step`; of several, all by name."""
    named = ", ".join(_name(found, rank) for rank in ranks[:MOST_NAMED])
    more = f" and {len(ranks) - MOST_NAMED} more" if len(ranks) > MOST_NAMED else ""
    whole = f"{named}{more}: each {text}" if len(ranks) > 1 else f"{named} {text}"
    stack = found.stacks.get(ranks[0])
    place = stack.place if stack is not None else ""
    if not place:
        return whole
    return f"{whole}; {'the first' if len(ranks) > 1 else 'it'} stands in {place}"


def _name(found: Evidence, rank: int) -> str:
    node = found.nodes.get(rank)
    return f"rank {rank}" if node is None else f"rank {rank} on {node}"


def others(found: Evidence, but: Collection[int]) -> str:
    """Where the rest stand, in words; empty where nobody knows."""
    places: dict[str, list[int]] = {}
    for rank, one in sorted(found.stacks.items()):
        if rank not in but and one.place:
            places.setdefault(one.place, []).append(rank)
    if not places:
        return ""
    place, ranks = max(places.items(), key=lambda item: len(item[1]))
    if len(ranks) == 1:
        return f"rank {ranks[0]} stands in {place}"
    return f"{len(ranks)} ranks stand in {place}"
