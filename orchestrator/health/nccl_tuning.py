"""What NCCL expects of each algorithm and protocol: the tables that it prints with SUBSYS=TUNING.

Unlike every other line of the log a row means nothing without the rows above it, so these are read in order, thread by thread.
"""

from __future__ import annotations

import re
from typing import NamedTuple

COLLECTIVES = ("Broadcast", "Reduce", "AllGather", "ReduceScatter", "AllReduce")
_PROTOCOLS = ("LL", "LL128", "Simple")
_CELL = re.compile(r" *([\d.]+)/ *([\d.]+) *")


class TuningCell(NamedTuple):
    """One cell: how long a collective takes at least, and how fast it is at most, by NCCL's own model."""

    collective: str
    algorithm: str
    protocol: str
    latency: float
    """Microseconds."""
    bandwidth: float
    """Algorithm bandwidth, GB/s; 0 where NCCL will not use the pair."""


class TuningTables:
    """Reads the rows of one thread after another."""

    def __init__(self) -> None:
        self._algorithms: dict[object, list[tuple[str, str]]] = {}
        self.cells: set[TuningCell] = set()

    def row(self, thread: object, text: str) -> None:
        """Takes a message with `|` in it from a thread (any hashable name)."""
        title, *cells = text.split("|")
        title = title.strip()
        if cells and not cells[-1].strip():
            cells = cells[:-1]
        if title == "Algorithm":
            # From 2.23: a row of algorithms, each over three protocols.
            self._algorithms[thread] = [(cell.strip(), name) for cell in cells for name in _PROTOCOLS]
        elif title == "Latency/AlgBw":
            pairs = [cell.partition("/") for cell in cells]
            self._algorithms[thread] = [(one.strip(), other.strip()) for one, _, other in pairs]
        elif title in COLLECTIVES and len(cells) == len(columns := self._algorithms.get(thread, [])):
            for (algorithm, protocol), cell in zip(columns, cells, strict=True):
                if found := _CELL.fullmatch(cell):
                    try:
                        self.cells.add(TuningCell(title, algorithm, protocol, float(found[1]), float(found[2])))
                    except ValueError:
                        continue  # two numbers that another process wrote into each other
