"""One look at how far a rank is: its progress file, read as it stands, and what its log told."""

from __future__ import annotations

import os
import struct
import time
from contextlib import suppress
from dataclasses import dataclass, field
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
    """One step's own work before it waits for other ranks, where DDP has measured it, and when that was read."""
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

    @property
    def saving(self) -> bool:
        return self.saves_begun > self.saves_ended

    @property
    def progressed_at(self) -> int:
        """The newest sign that the script gets on; 0 where there was none."""
        return max(self.step_at, self.batch_at, self.report_at, self.logged_at)


_SLOTS = struct.Struct(f"{file.SLOTS}q")
_COUNTS = struct.Struct(f"{file.BUCKETS}q")


def look(
    path: Path, run: int, attempt: int, rank: int, logged: dict[str, float] | None = None, logged_at: int = 0
) -> RankProgress | None:
    """What the rank at this file has written, and what its log told; None where there is nothing of either."""
    at = time.monotonic_ns()
    told = {"logged": dict(logged or {}), "logged_at": logged_at}
    data = _read(path)
    if data is None:
        return RankProgress(run, attempt, rank, at, **told) if logged else None  # type: ignore[arg-type]
    slots = _SLOTS.unpack_from(data)
    counts = _COUNTS.unpack_from(data, file.HISTOGRAM)
    metrics = {name: struct.unpack_from("d", data, place)[0] for place, name in named(data)}
    return RankProgress(
        run,
        attempt,
        rank,
        at,
        *slots[file.S_BEGAN :],
        step_times={bucket: count for bucket, count in enumerate(counts) if count > 0},
        metrics={name: value for name, value in metrics.items() if value == value},
        **told,  # type: ignore[arg-type]
    )


def _read(path: Path) -> bytes | None:
    """The file's bytes. The script may do to it what it likes, so it is read, not mapped: a mapped hole kills its reader."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            data = os.read(descriptor, file.SIZE)
        finally:
            os.close(descriptor)
        if len(data) == file.SIZE and _SLOTS.unpack_from(data)[:2] == (file.MAGIC, file.VERSION):
            return data
    return None
