"""The values of a run's secrets, taken out of what its ranks print: each byte becomes a `*`, so that no offset moves.

Exact values alone are found: a script that prints one reversed, or as base64, has printed it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

SHORTEST = 8
"""Bytes: what is shorter is a word that a log is full of anyway."""
SHORTEST_LINE = 16


def values_of(secrets: Iterable[str]) -> tuple[bytes, ...]:
    """What is looked for, the longest first; of a value of several lines, such as a key, each line too."""
    found = set()
    for secret in secrets:
        value = secret.encode("utf-8", "surrogateescape")
        found |= {value} if len(value) >= SHORTEST else set()
        lines = value.split(b"\n")
        found |= {line for line in map(bytes.strip, lines) if len(lines) > 1 and len(line) >= SHORTEST_LINE}
    return tuple(sorted(found, key=lambda value: (-len(value), value)))


def masked(data: bytes, values: Iterable[bytes]) -> bytes:
    for value in values:
        if value in data:
            data = data.replace(value, b"*" * len(value))
    return data


def masked_json(value: Any, values: Sequence[bytes]) -> Any:
    """The same of plain values, in every text; also of a text that was cut off amid a value."""
    if isinstance(value, dict):
        return {key: masked_json(one, values) for key, one in value.items()}
    if isinstance(value, list):
        return [masked_json(one, values) for one in value]
    if not isinstance(value, str):
        return value
    data = masked(value.encode("utf-8", "surrogatepass"), values)
    cut = unfinished(data, values)
    data = data[: len(data) - cut] + b"*" * cut if cut >= SHORTEST else data
    return data.decode("utf-8", "surrogatepass")


def unfinished(data: bytes, values: Iterable[bytes]) -> int:
    """How many bytes at the end may be the beginning of a value whose rest has not been written yet."""
    longest = 0
    for value in values:
        end = data[-(len(value) - 1) :]
        at = end.find(value[:1])
        while at >= 0 and len(end) - at > longest:
            if value.startswith(end[at:]):
                longest = len(end) - at
                break
            at = end.find(value[:1], at + 1)
    return longest


def values_in_process(pid: int, names: Iterable[str]) -> tuple[bytes, ...]:
    """The values as they are in the environment of a rank; nothing of what has ended, or is somebody else's."""
    wanted = tuple(f"{name}=" for name in names)
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if wanted else []
    except OSError:
        return ()
    texts = map(os.fsdecode, entries)
    return values_of(text.partition("=")[2] for text in texts if text.startswith(wanted))
