"""What a script tells of itself by `orchestrator.report(...)`: written into the rank's progress file, or nowhere."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

from orchestrator.progress import file

Teller = Callable[["int | None", "float | None", Mapping[str, float]], None]


def named(data: memoryview | bytes) -> Iterator[tuple[int, str]]:
    """The metrics of a progress file: where each one's value is, and its name."""
    for index in range(file.METRIC_COUNT):
        at = file.METRICS + index * file.METRIC_SIZE
        if name := bytes(data[at : at + file.METRIC_NAME]).rstrip(b"\0"):
            yield at + file.METRIC_NAME, name.decode("utf-8", "replace")


def nobody_listens(step: int | None, samples: float | None, metrics: Mapping[str, float]) -> None:
    """Outside orch."""


def teller() -> Teller:
    """What takes the values of one report."""
    path = os.environ.get(file.VARIABLE)
    if not path:
        return nobody_listens
    try:
        mapped = file.open_file(path)
    except (OSError, ValueError):
        return nobody_listens
    slots = mapped.cast("q")
    # A process of the same rank may have begun before this one.
    places = {name: at for at, name in named(mapped)}

    def place_of(name: str) -> int | None:
        if name not in places:
            if len(places) == file.METRIC_COUNT:
                return None
            at = file.METRICS + len(places) * file.METRIC_SIZE
            text = name.encode()[: file.METRIC_NAME]
            struct.pack_into("d", mapped, at + file.METRIC_NAME, float("nan"))
            mapped[at : at + file.METRIC_NAME] = text.ljust(file.METRIC_NAME, b"\0")
            places[name] = at + file.METRIC_NAME
        return places[name]

    def tell(step: int | None, samples: float | None, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            # What is no number is left out: outside orch it would have gone unnoticed too.
            with suppress(TypeError, ValueError):
                number = float(value)
                if (at := place_of(name)) is not None:
                    struct.pack_into("d", mapped, at, number)
        now = time.monotonic_ns()
        with suppress(TypeError, ValueError):
            slots[file.S_REPORTED_SAMPLES] += int(samples or 0)
            slots[file.S_REPORTED_STEP] = max(slots[file.S_REPORTED_STEP], int(step or 0))
        if not slots[file.S_FIRST_REPORT_AT]:
            slots[file.S_FIRST_REPORT_AT] = now
        slots[file.S_REPORT_AT] = now
        slots[file.S_REPORTS] += 1

    return tell
