"""Durations and sizes as people write them: `90s`, `30m`, `12h`, `2d`; `64MiB`, `2GiB`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}

DURATION_PATTERN = r"^[0-9]{1,9}(\.[0-9]{1,3})?[smhd]$"
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")
_DURATION = re.compile(DURATION_PATTERN)
_SIZE = re.compile(r"([0-9]{1,15})(" + "|".join(BYTES) + ")")


def parse_duration(text: str) -> float:
    """Seconds. Raises ValueError, with the units that there are, for anything but a number and one unit."""
    if _DURATION.fullmatch(text):
        return float(text[:-1]) * SECONDS[text[-1]]
    if _NUMBER.fullmatch(text):
        raise ValueError(f"has no unit. Did you mean '{text}s' (seconds) or '{text}m' (minutes)?")
    raise ValueError("must be a number and one unit (s, m, h or d), such as 90s, 30m, 12h or 2d")


def duration_between(least: float, most: float) -> Callable[[str], float]:
    """A parser of durations that raises ValueError for one outside of these bounds too, in seconds."""

    def parse(text: str) -> float:
        seconds = parse_duration(text)
        if not least <= seconds <= most:
            raise ValueError(f"must be between {format_duration(least)} and {format_duration(most)}, not {text}")
        return seconds

    return parse


def format_duration(seconds: float) -> str:
    """As a person would write it, in the largest unit that leaves a whole number: 90 is `90s`, 1800 is `30m`."""
    for unit in ("d", "h", "m"):
        if seconds >= SECONDS[unit] and seconds % SECONDS[unit] == 0:
            return f"{int(seconds // SECONDS[unit])}{unit}"
    return f"{int(seconds) if seconds == int(seconds) else round(seconds, 3)}s"


def parse_size(text: str) -> int:
    """Bytes. Raises ValueError, with the units that there are, for anything but a whole number and one unit."""
    if found := _SIZE.fullmatch(text):
        return int(found[1]) * BYTES[found[2]]
    if _NUMBER.fullmatch(text):
        raise ValueError(f"has no unit. Did you mean '{text}MiB'?")
    raise ValueError(f"must be a whole number and one unit ({', '.join(BYTES)}), such as 64MiB or 2GiB")


def size_between(least: int, most: int) -> Callable[[str], int]:
    """A parser of sizes that raises ValueError for one outside of these bounds too, in bytes."""

    def parse(text: str) -> int:
        size = parse_size(text)
        if not least <= size <= most:
            raise ValueError(f"must be between {format_size(least)} and {format_size(most)}, not {text}")
        return size

    return parse


def format_size(size: int) -> str:
    """As a person would write it, exactly: 67108864 is `64MiB`."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size >= BYTES[unit] and size % BYTES[unit] == 0:
            return f"{size // BYTES[unit]}{unit}"
    return f"{size}B"


def format_bandwidth(gbps: float) -> str:
    """GB/s as people say it: `231 GB/s`, and `0.49 GB/s` where a whole number would say nothing."""
    return f"{gbps:.0f} GB/s" if gbps >= 10 else f"{gbps:.2g} GB/s"


def format_spans(numbers: Sequence[int]) -> str:
    """`0-3,6` for numbers that ascend; in their own order where they do not."""
    if list(numbers) != sorted(numbers):
        return ",".join(map(str, numbers))
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
