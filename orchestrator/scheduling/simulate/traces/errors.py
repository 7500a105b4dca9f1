"""How a reader says that a file is not what it should be: every mistake, with file and line, up to a limit."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.document import printable

MOST_SHOWN = 20


class TraceError(Exception):
    """A file that cannot be replayed. Prints a line for each mistake: `trace.csv:7: num_gpu: must be ...`."""

    def __init__(self, complaints: Sequence[str]) -> None:
        self.complaints = tuple(complaints)
        super().__init__(self.complaints)

    def __str__(self) -> str:
        lines = [printable(text) for text in self.complaints[:MOST_SHOWN]]
        if (more := len(self.complaints) - MOST_SHOWN) > 0:
            lines.append(f"... and {more} more")
        return "\n".join(lines)
