"""One look at how far a rank is: its progress file, read as it stands, and what its log told."""

from __future__ import annotations

import math
import os
import struct
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.progress import file
from orchestrator.progress.telling import named


@dataclass(frozen=True)
class RankProgress:
    """Counters from the rank's beginning on. `..._at` and all durations are nanoseconds; a time of 0 is "never".

    Times are of the node's CLOCK_MONOTONIC, as `at` is, the moment of the look. The fields from `began_at` to
    `early_save_time` are the file's slots in its order (orchestrator/progress/file.py).
    """

    run: int
    attempt: int
    rank: int
    at: int
    began_at: int = 0
    steps: int = 0
    """Optimizer steps."""
    step_at: int = 0
    first_step_at: int = 0
    samples: int = 0
    """Of the batches that were trained on."""
    batches: int = 0
    """All that any DataLoader gave, and their samples."""
    batch_samples: int = 0
    batch_at: int = 0
    first_batch_at: int = 0
    data_wait: int = 0
    own_time: int = 0
    """One step's compute before its all-reduces, where DDP has measured it, when that was read, and what these took."""
    own_time_at: int = 0
    comm_time: int = 0
    saves_begun: int = 0
    saves_ended: int = 0
    save_began_at: int = 0
    save_time: int = 0
    """All the time in which the script waited for saves."""
    saved: int = 0
    """Complete checkpoints; then what the newest holds."""
    saved_steps: int = 0
    saved_batches: int = 0
    saved_reports: int = 0
    saved_at: int = 0
    loads: int = 0
    load_at: int = 0
    reports: int = 0
    report_at: int = 0
    first_report_at: int = 0
    reported_samples: int = 0
    reported_step: int = 0
    early_save_time: int = 0
    """The part of save_time before the first step."""
    step_times: dict[int, int] = field(default_factory=dict)
    """How many steps took how long, by bucket of file.bucket_of."""
    metrics: dict[str, float] = field(default_factory=dict)
    logged: dict[str, float] = field(default_factory=dict)
    """By name of the job's `throughput:` patterns, the newest value that the log told."""
    logged_at: int = 0
    printed_at: int = 0
    """When the rank's log last grew, as far as looks can tell."""

    @property
    def saving(self) -> bool:
        return self.saves_begun > self.saves_ended

    @property
    def progressed_at(self) -> int:
        """The newest sign that the script gets on; 0 where there was none."""
        return max(self.step_at, self.batch_at, self.report_at, self.logged_at)

    @property
    def sign_at(self) -> int:
        """The same with checkpoints: a save that begins or is complete, one that was read."""
        return max(self.progressed_at, self.save_began_at, self.saved_at, self.load_at)


MOST = 2**53
"""More is no honest count or time: what a script has scribbled into its file must not come any further."""
_SLOTS = struct.Struct(f"{file.SLOTS}q")
_COUNTS = struct.Struct(f"{file.BUCKETS}q")


def look(
    path: Path,
    run: int,
    attempt: int,
    rank: int,
    logged: dict[str, float] | None = None,
    logged_at: int = 0,
    printed_at: int = 0,
) -> RankProgress | None:
    """What the rank at this file has written, and what its log told; None where there is nothing of either."""
    at = time.monotonic_ns()
    told = dict(logged or {})
    data = _read(path)
    if data is None:
        if not told:
            return None
        return RankProgress(run, attempt, rank, at, logged=told, logged_at=logged_at, printed_at=printed_at)
    slots = _SLOTS.unpack_from(data)
    counts = _COUNTS.unpack_from(data, file.HISTOGRAM)
    metrics = {name: struct.unpack_from("d", data, place)[0] for place, name in named(data)}
    return replace(
        RankProgress(run, attempt, rank, at, *slots[file.S_BEGAN :]),
        step_times={bucket: count for bucket, count in enumerate(counts) if 0 < count < MOST},
        metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
        logged=told,
        logged_at=logged_at,
        printed_at=printed_at,
    )


def _read(path: Path) -> bytes | None:
    """The file's bytes. The script may do to it what it likes, so it is read, not mapped: a mapped hole kills its reader."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            data = os.read(descriptor, file.SIZE)
        finally:
            os.close(descriptor)
        if len(data) == file.SIZE:
            magic, version, *slots = _SLOTS.unpack_from(data)
            if (magic, version) == (file.MAGIC, file.VERSION) and 0 <= min(slots) <= max(slots) < MOST:
                return data
    return None
