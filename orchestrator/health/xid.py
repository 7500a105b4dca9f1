"""The driver's Xid messages in the kernel's log: which say that the GPU or its links are broken, and which only that a program was.

Meanings are from NVIDIA's "Xid Errors" (https://docs.nvidia.com/deploy/xid-errors/); what follows for the node is orch's choice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINE = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9A-Fa-f:.]+)\): (\d+)(?:, *(.*))?")


@dataclass(frozen=True)
class Xid:
    """One message."""

    code: int
    pci: str
    """Of the GPU, as the driver writes it: `0000:1a:00`."""
    text: str
    """What follows the number."""


BROKEN = {
    48: "a memory error that ECC could not correct",
    64: "a bad row of memory could not be remapped",
    74: "an NVLink error",
    79: "the GPU has fallen off the bus",
    95: "a memory error that reached other programs than the one that met it",
    119: "the GPU's system processor (GSP) did not answer",
    120: "the GPU's system processor (GSP) failed",
    140: "a memory error that ECC could not correct, and that was not contained",
}
"""The GPU must be reset, or replaced, before it is used again."""
WORN = {
    63: "a bad row of memory was remapped, or will be with the next reset",
    92: "many memory errors in a short time",
    94: "a memory error that was contained in the program that met it",
}
"""The GPU works on; it wants a reset soon."""


def parse(line: str) -> Xid | None:
    """The message in a line of the kernel's log, whatever stands before it; None where there is none."""
    found = _LINE.search(line)
    return None if found is None else Xid(int(found[2]), found[1].lower(), (found[3] or "").strip())
