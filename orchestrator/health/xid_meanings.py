"""What the GPU driver's Xid messages say of the GPU: which need a reset or a new one, and which only that it wears.

Meanings are from NVIDIA's "Xid Errors" (https://docs.nvidia.com/deploy/xid-errors/); what follows for the node is orch's choice.
A program's own faults (kernel_lines.APPLICATION_XIDS), and numbers that stand in neither table, say nothing of the GPU.
"""

from __future__ import annotations

BROKEN = {
    48: "a memory error that ECC could not correct",
    64: "a bad row of memory could not be remapped",
    74: "an NVLink error",
    79: "the GPU has fallen off the bus",
    95: "a memory error that reached other programs than the one that met it",
    119: "the GPU's system processor (GSP) did not answer",
    120: "the GPU's system processor (GSP) failed",
    140: "a memory error that ECC could not correct, and that was not contained",
    **dict.fromkeys(range(144, 151), "an NVLink error"),
}
"""It must be reset, or replaced, before it is used again."""
WORN = {
    63: "a bad row of memory was remapped, or will be with the next reset",
    92: "many memory errors in a short time",
    94: "a memory error that was contained in the program that met it",
}
"""It works on; it wants a reset soon."""
