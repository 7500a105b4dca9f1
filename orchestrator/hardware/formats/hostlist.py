"""Which names a Slurm hostlist stands for, and back: `gpu-[01-16,20],login` is gpu-01 to gpu-16, gpu-20 and login."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product

MOST_NAMES = 200_000
"""More names than that in one list are taken for a slip of the pen (`[0-99999999]`), not for a cluster."""

_LAST_NUMBER = re.compile(r"(.*?)([0-9]{1,18})([^0-9]*)")
_RANGE = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?")


def expand(text: str) -> list[str]:
    """The names that `text` stands for, in its order; duplicates stay.

    Several brackets multiply (`r[1-2]n[1-4]`), leading zeros are kept (`[01-16]`). Raises ValueError with the reason.
    """
    names: list[str] = []
    for item in _items(text):
        parts = _parts(item)
        count = 1
        for part in parts:
            count *= len(part)
            if len(names) + count > MOST_NAMES:
                raise ValueError(f"{_short(text)} stands for more than {MOST_NAMES} names")
        names.extend("".join(combination) for combination in product(*parts))
    return names


def _items(text: str) -> list[str]:
    """Split at the commas outside of brackets."""
    items, start, depth = [], 0, 0
    for position, character in enumerate(text):
        if character == "[":
            depth += 1
        elif character == "]":
            depth -= 1
        elif character == "," and not depth:
            items.append(text[start:position])
            start = position + 1
        if depth not in (0, 1):
            raise ValueError(f"the brackets of {_short(text)} do not match")
    if depth:
        raise ValueError(f"the brackets of {_short(text)} do not match")
    items.append(text[start:])
    return [item.strip() for item in items if item.strip()]


def _parts(item: str) -> list[list[str]]:
    """The choices for each piece of one item: a literal has one, a bracket as many as its ranges say."""
    parts = []
    for literal_then_bracket in re.split(r"\]", item):
        literal, _, ranges = literal_then_bracket.partition("[")
        if literal:
            parts.append([literal])
        if ranges:
            parts.append([name for piece in ranges.split(",") for name in _range(piece.strip(), item)])
        elif "[" in literal_then_bracket:
            raise ValueError(f"the brackets of {_short(item)} are empty")
    return parts


def _range(piece: str, item: str) -> list[str]:
    match = _RANGE.fullmatch(piece)
    if match is None:
        # Slurm takes plain words in brackets too: rack[a,b].
        if piece and re.fullmatch(r"[A-Za-z0-9_.]+", piece):
            return [piece]
        raise ValueError(f"{_short(piece) or 'nothing'} is no range in {_short(item)}")
    low, high = match[1], match[2] or match[1]
    if int(high) < int(low):
        raise ValueError(f"the range {piece} in {_short(item)} runs backwards")
    if int(high) - int(low) >= MOST_NAMES:
        raise ValueError(f"the range {piece} in {_short(item)} stands for more than {MOST_NAMES} names")
    return [str(number).zfill(len(low)) for number in range(int(low), int(high) + 1)]


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def compress(names: Sequence[str]) -> str:
    """The hostlist that stands for `names`: gpu-[01-16,20],login. Numbers are joined at the last run of digits."""
    parts = {name: _LAST_NUMBER.fullmatch(name) for name in names}
    # A leading zero fixes the width of all names of its kind that are as long: 08, 09, 10. Without one, 9 and 10 are
    # a range.
    padded = {(m[1], m[3], len(m[2])) for m in parts.values() if m and m[2].startswith("0") and len(m[2]) > 1}
    groups: dict[tuple[str, str, int], list[int]] = {}
    for match in parts.values():
        if match is not None:
            kind = (match[1], match[3], len(match[2]))
            groups.setdefault(kind if kind in padded else (*kind[:2], 0), []).append(int(match[2]))
    plain = [name for name, match in parts.items() if match is None]
    items = []
    for (before, after, width), numbers in groups.items():
        ranges = [
            f"{low:0{width}}" + (f"-{high:0{width}}" if high > low else "") for low, high in _runs(sorted(set(numbers)))
        ]
        inside = ",".join(ranges)
        items.append(f"{before}[{inside}]{after}" if len(set(numbers)) > 1 else f"{before}{inside}{after}")
    return ",".join([*items, *plain])


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs
