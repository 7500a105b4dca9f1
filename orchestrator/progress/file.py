"""Where in a rank's progress file each number stands, and how a process maps it.

A file of SIZE bytes: 64-bit signed integers in the machine's byte order, at slot N in bytes 8*N to 8*N+7; from METRICS on
named values, from HISTOGRAM on counts of step times. Whoever writes does so without locks or system calls; a number is
one store, so a reader sees each whole, and the numbers of one moment to within a step. Counters only grow, and times
are of CLOCK_MONOTONIC, in nanoseconds. 0 is "never". docs/throughput.md has the table.

Read by name by rank.py in any interpreter from Python 3.9 on: standard library only, and little of it.
"""

from __future__ import annotations

import ctypes
import os

SIZE = 8192
MAGIC = 0x3152504843524F  # "ORCHPR1" as the machine's bytes
VERSION = 2
VARIABLE = "ORCH_PROGRESS"
"""The environment variable that names a rank's file."""

(
    S_MAGIC,
    S_VERSION,
    S_PID,
    S_BEGAN,
    # What optimizers did.
    S_STEPS,
    S_STEP_AT,
    S_FIRST_STEP_AT,
    S_SAMPLES,
    # What DataLoaders gave, whatever was done with it.
    S_BATCHES,
    S_BATCH_SAMPLES,
    S_BATCH_AT,
    S_FIRST_BATCH_AT,
    S_DATA_WAIT,
    # What DistributedDataParallel measured of one step: the rank's own work before it waits for others.
    S_OWN_TIME,
    S_OWN_TIME_AT,
    # Saves: under way while more have begun than ended.
    S_SAVES_BEGUN,
    S_SAVES_ENDED,
    S_SAVE_BEGAN_AT,
    S_SAVE_TIME,
    S_SAVED,
    S_SAVED_STEPS,
    S_SAVED_BATCHES,
    S_SAVED_REPORTS,
    S_SAVED_AT,
    S_LOADS,
    S_LOAD_AT,
    # What the script says itself.
    S_REPORTS,
    S_REPORT_AT,
    S_FIRST_REPORT_AT,
    S_REPORTED_SAMPLES,
    S_REPORTED_STEP,
    # How much of the save time was before the first step.
    S_EARLY_SAVE_TIME,
    SLOTS,
) = range(33)

METRICS = 512
METRIC_COUNT = 16
METRIC_NAME = 24
"""Each metric: its name in UTF-8, padded with NUL to METRIC_NAME bytes, then its newest value as a double."""
METRIC_SIZE = METRIC_NAME + 8

HISTOGRAM = 1024
OCTAVES_FROM = 13
BUCKETS = 29 * 16
"""Step times from 2**13 ns (8 us) to 2**42 ns (73 min), 16 buckets to each doubling; beyond, the first or last."""


def bucket_of(nanoseconds: int) -> int:
    """The bucket of a step time."""
    octave = nanoseconds.bit_length() - 1
    if octave < OCTAVES_FROM:
        return 0
    bucket = ((octave - OCTAVES_FROM) << 4) + ((nanoseconds >> (octave - 4)) & 15)
    return bucket if bucket < BUCKETS else BUCKETS - 1


def bucket_start(bucket: int) -> int:
    """The least step time of a bucket, in nanoseconds; that of the next one is its end."""
    octave = OCTAVES_FROM + (bucket >> 4)
    return (16 + (bucket & 15)) << (octave - 4)


def _map(descriptor: int) -> memoryview:
    """Python's own mmap keeps a descriptor open, which the script would see and whose number it would miss."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    read_and_write, shared = 3, 1
    address = libc.mmap(None, SIZE, read_and_write, shared, descriptor, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return memoryview((ctypes.c_char * SIZE).from_address(address)).cast("B")


def open_file(path: str) -> memoryview:
    """The bytes of the file at `path`, mapped for good; made where it is not there yet. Raises OSError, ValueError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        # A hole would become SIGBUS when the disk is full.
        os.posix_fallocate(descriptor, 0, SIZE)
        mapped = _map(descriptor)
    finally:
        os.close(descriptor)
    slots = mapped.cast("q")
    if slots[S_MAGIC] == 0:
        slots[S_VERSION] = VERSION
        slots[S_MAGIC] = MAGIC
    if slots[S_MAGIC] != MAGIC or slots[S_VERSION] != VERSION:
        raise ValueError(f"{path} is not a progress file of version {VERSION}")
    return mapped
