"""What a job's `throughput:` patterns find in rank 0's log, chunk by chunk."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import suppress

LONGEST_LINE = 4096
"""Bytes of a line that are searched: RE2's time grows with the length alone, and this bounds that."""


class LogPatterns:
    """The newest value of each name, and when a line last had one."""

    def __init__(self, patterns: Mapping[str, str]) -> None:
        self.texts = dict(patterns)
        self._patterns = {}
        if patterns:
            import re2

            # Checked when the job was submitted (checks.pattern).
            self._patterns = {name: re2.compile(text.encode()) for name, text in patterns.items()}
        self._rest = b""
        self.values: dict[str, float] = {}
        self.at = 0
        """CLOCK_MONOTONIC nanoseconds; 0 before the first value."""

    def feed(self, data: bytes) -> None:
        """Takes the next bytes of the log; a line counts once its end has come."""
        if not self._patterns:
            return
        # A progress bar ends what it draws with a carriage return.
        *lines, rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            self._search(line[:LONGEST_LINE])
        self._rest = rest[:LONGEST_LINE]

    def _search(self, line: bytes) -> None:
        for name, pattern in self._patterns.items():
            found = pattern.search(line)
            if found is None or found.group(1) is None:
                continue
            with suppress(ValueError):
                value = float(found.group(1).replace(b",", b""))
                if math.isfinite(value):
                    self.values[name] = value
                    self.at = time.monotonic_ns()
