"""What torch's flight recorder says of ranks' collectives: dumps, read without trusting them and held against each other. Pure.

A dump is a pickle of plain lists, dicts, numbers and texts (torch/csrc/distributed/c10d/FlightRecorder.hpp, torch 2.13).
It comes from the training script's process, so nothing in it may name a class or a function: the reader knows none.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LARGEST = 64 << 20
"""Bytes: 2,000 entries with their stacks are a few MB."""
MOST = 10_000
"""Entries that are looked at: torch keeps 2,000 where nobody asked for more."""
KEPT = 8
"""So many of the newest collectives are told of each rank."""


@dataclass(frozen=True)
class Collective:
    """One entry of the recorder."""

    group: str
    sequence: int
    """Counted by each rank of the group in its own order: equal numbers are one collective."""
    name: str
    """`nccl:all_reduce`."""
    state: str
    """scheduled, started or completed; the CPU hears of both late."""
    sizes: tuple[tuple[int, ...], ...] = ()
    at: str = ""
    """Where the script called it: `train.py:31`, where the dump says so."""

    def __str__(self) -> str:
        sizes = " ".join("x".join(map(str, size)) or "1" for size in self.sizes[:4])
        return f"{self.group} #{self.sequence} {self.name} [{sizes}] {self.state}" + (
            f" at {self.at}" if self.at else ""
        )


@dataclass(frozen=True)
class Recorded:
    """What a rank's dump comes down to."""

    newest: tuple[Collective, ...] = ()
    """The newest entries, oldest first; point-to-point operations are left out: they have no number of their group."""
    last: Mapping[str, Collective] | None = None
    """By group: the newest collective that the rank has called."""


class _Plain(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise pickle.UnpicklingError(f"a dump of the flight recorder holds no {module_name}.{global_name}")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("a dump of the flight recorder refers to nothing outside it")


def read_dump(data: bytes) -> Recorded | None:
    """What the dump says; None where it is none, or not whole yet."""
    if len(data) > LARGEST:
        return None
    try:
        dump = _Plain(io.BytesIO(data)).load()
        entries = [_entry(one) for one in dump["entries"][-MOST:] if not one.get("is_p2p")]
    except Exception:  # whatever the bytes make the machinery of pickle raise: they are not a dump
        return None
    last: dict[str, Collective] = {}
    for one in entries:
        if one.group not in last or one.sequence >= last[one.group].sequence:
            last[one.group] = one
    return Recorded(tuple(entries[-KEPT:]), last)


def _entry(one: Mapping[str, Any]) -> Collective:
    name, described = (*one["process_group"], "")[:2]
    sizes = tuple(tuple(int(side) for side in size) for size in one.get("input_sizes") or ())
    at = next(
        (
            f"{frame['filename'].rsplit('/', 1)[-1]}:{int(frame['line'])}"
            for frame in one.get("frames") or ()
            if "/site-packages/" not in frame["filename"] and frame["filename"].endswith(".py")
        ),
        "",
    )
    # A description may be that of several groups of different ranks: only the name is one group's.
    group = described if described == "default_pg" else f"{described or 'group'} {name}"
    return Collective(
        _short(group), int(one["collective_seq_id"]), _short(one["profiling_name"]), _short(one["state"]), sizes[:4], at
    )


def _short(text: object) -> str:
    return "".join(character if character.isprintable() else "?" for character in str(text)[:80])


@dataclass(frozen=True)
class Behind:
    """Ranks that have not called a collective that others have."""

    ranks: tuple[int, ...]
    text: str


def behind(by_rank: Mapping[int, Recorded]) -> Behind | None:
    """The ranks that are behind in a group that all of these ranks have used; None where nobody is, or too little is known.

    Groups that only some have used may be theirs alone.
    """
    if len(by_rank) < 2:
        return None
    shared = set.intersection(*(set(one.last or ()) for one in by_rank.values()))
    for group in sorted(shared):
        reached = {rank: one.last[group] for rank, one in by_rank.items() if one.last}
        furthest = max(reached.values(), key=lambda one: one.sequence)
        late = tuple(sorted(rank for rank, one in reached.items() if one.sequence < furthest.sequence))
        if late:
            text = f"has not called {furthest.name} #{furthest.sequence} of {group}, which the others wait in"
            return Behind(late, text)
    return None
