"""What a P2P link runs over: NVLink or PCIe, for which NCCL prints the same words.

Said by NCCL's own topology where the log has it (SUBSYS=GRAPH), by NVLS, which exists only over NVSwitch, or by a topology
that the caller knows. Nothing is guessed from models, channels or bandwidths.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

Fabric = Literal["NVLink", "PCIe", "xGMI"]
Islands = Mapping[str, Sequence[Sequence[int]]]
"""By host: which of its GPUs, by NVML's index, are joined by NVLink."""

_FABRICS: dict[str, Fabric] = {
    "NVL": "NVLink",
    "NVB": "NVLink",  # NVLink through another GPU
    "XGMI": "xGMI",
    **dict.fromkeys(("PIX", "PXB", "PHB", "NODE", "SYS"), "PCIe"),
}
_ROW = re.compile(r"GPU/(?:(\d+)-)?([0-9A-Fa-f]+) ?:(.*)")
_CELL = re.compile(r"GPU/(?:(\d+)-)?([0-9A-Fa-f]+) \(\d+/[\d.]+/([A-Z0-9]+)\)")
_PATTERN = re.compile(r"Pattern \d+, .*type ([A-Z0-9]+)/[A-Z0-9]+")
_GPU = re.compile(r"cudaDev (\d+)(?: nvmlDev (\d+))?(?: busId ([0-9a-f]+))?(?= )")

Host = str | None


class FabricEvidence:
    """Gathers what the lines of a log tell of each host's GPUs, in any order."""

    def __init__(self) -> None:
        self.indices: dict[tuple[Host, str], set[int]] = {}
        self.buses: dict[tuple[Host, int], set[str]] = {}
        self.paths: dict[tuple[Host, frozenset[str]], set[str]] = {}
        self.patterns: dict[Host, set[str]] = {}
        self.switched: set[Host] = set()
        """Hosts whose GPUs are all behind NVSwitch: NVLS works there."""

    def gpu(self, host: Host, text: str) -> None:
        """A line with `cudaDev 0 nvmlDev 0 busId 1b000`."""
        if (found := _GPU.search(text)) and found[3]:
            index = int(found[2] or found[1])
            self.indices.setdefault((host, found[3]), set()).add(index)
            self.buses.setdefault((host, index), set()).add(found[3])

    def path(self, host: Host, text: str) -> None:
        """A row of the table of paths: `GPU/0-60 :GPU/0-60 (0/5000.0/LOC) GPU/0-70 (2/370.8/NVL)`."""
        if row := _ROW.search(text):
            for system, bus, kind in _CELL.findall(row[3]):
                if system == (row[1] or "") and kind != "LOC":
                    pair = frozenset((row[2].lower(), bus.lower()))
                    self.paths.setdefault((host, pair), set()).add(kind)

    def pattern(self, host: Host, text: str) -> None:
        """A line `Pattern 4, crossNic 0, nChannels 12, bw 30.0/30.0, type NVL/PIX`: the worst link inside a node."""
        if found := _PATTERN.search(text):
            self.patterns.setdefault(host, set()).add(found[1])

    def merge(self, alias: Mapping[Host, Host]) -> None:
        """Takes what a garbled name of a host told for what the host told."""
        for table in (self.indices, self.buses, self.paths):
            for key in [key for key in table if key[0] in alias]:
                table.setdefault((alias[key[0]], key[1]), set()).update(table.pop(key))  # type: ignore
        for host in [host for host in self.patterns if host in alias]:
            self.patterns.setdefault(alias[host], set()).update(self.patterns.pop(host))
        self.switched = {alias.get(host, host) for host in self.switched}

    def of(self, host: Host, one: str | None, other: str | None, islands: Islands | None) -> Fabric | None:
        """The fabric between two GPUs of a host, each as a `Channel` line names it; None where it cannot be known."""
        if host in self.switched:
            return "NVLink"
        if one is None or other is None:
            return self._by_pattern(host)
        indices = self._index(host, one), self._index(host, other)
        if islands and host is not None and host in islands and None not in indices:
            return "NVLink" if any({*indices} <= {*island} for island in islands[host]) else "PCIe"
        kinds = self.paths.get((host, frozenset((self._bus(host, one), self._bus(host, other)))), set())
        fabrics = {_FABRICS.get(kind) for kind in kinds}
        return fabrics.pop() if len(fabrics) == 1 else self._by_pattern(host)

    def _by_pattern(self, host: Host) -> Fabric | None:
        # The type is the worst inside the node: NVL speaks for every link, PIX only for one of them.
        fabrics = {_FABRICS.get(kind) for kind in self.patterns.get(host, ()) if kind != "LOC"}
        return fabrics.pop() if len(fabrics) == 1 and fabrics <= {"NVLink", "xGMI"} else None

    def _bus(self, host: Host, gpu: str) -> str:
        """Of a bus id (up to NCCL 2.17) or an index (from 2.18), the bus id."""
        buses = self.buses.get((host, int(gpu)), set()) if gpu.isdecimal() else set()
        return next(iter(buses)) if len(buses) == 1 and (host, gpu) not in self.indices else gpu.lower()

    def _index(self, host: Host, gpu: str) -> int | None:
        indices = self.indices.get((host, gpu.lower()), set())
        if len(indices) == 1:
            return next(iter(indices))
        return int(gpu) if gpu.isdecimal() and len(gpu) <= 2 else None
