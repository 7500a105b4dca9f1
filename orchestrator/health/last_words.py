"""What the end of a rank's log says: the last traceback, and the exceptions of its chain."""

from __future__ import annotations

import re
from collections.abc import Sequence

EXCERPT_LINES = 30
EXCERPT_CHARS = 4000

_PREFIX = re.compile(r"^\[rank\d+\]: ?")
"""What torch's own hook puts before each line of a traceback once a process group is there."""
_BEGIN = "Traceback (most recent call last):"
_JOINS = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)
_DIES = ("terminate called ", "Fatal Python error: ")
"""What the C++ runtime and faulthandler print of a process that dies: torch's threads can abort it after the exception."""
_ERROR = re.compile(r"^([A-Za-z_][\w.]*)(?:: (.*))?$")
_INDENTED = re.compile(r'^(?:  (?:File "|\[Previous line repeated)|    )')


def plain(lines: Sequence[str]) -> list[str]:
    """The lines without torch's `[rank1]: `."""
    return [_PREFIX.sub("", line) for line in lines]


def errors(lines: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Type and text of the last exception that was printed, then of those that it came from; () where there is none."""
    found: list[tuple[str, str]] = []
    for block in reversed(_chain(plain(lines))):
        said = _error_of(block)
        if said is not None:
            found.append(said)
    return tuple(found)


def excerpt(lines: Sequence[str]) -> str | None:
    """What is worth showing of the end of a log: the last exception with its traceback, else its last lines."""
    told = plain(lines)
    chain = _chain(told)
    shown = chain[-1] if chain else [line for line in told if line.strip()][-8:]
    if len(shown) > EXCERPT_LINES:
        # The beginning of a traceback says where the script was, its end what broke.
        half = EXCERPT_LINES // 2
        shown = [*shown[:half], f"  ... {len(shown) - 2 * half} lines", *shown[-half:]]
    return "\n".join(shown)[-EXCERPT_CHARS:].strip("\n") or None


def _chain(lines: Sequence[str]) -> list[list[str]]:
    """The blocks of the last traceback and of those that it is joined to, in the order in which they were printed."""
    blocks: list[tuple[bool, list[str]]] = []
    joined, at = False, 0
    while at < len(lines):
        line = lines[at]
        if line in _JOINS:
            joined = True
        elif line == _BEGIN or _INDENTED.match(line):
            end = _end_of(lines, at + 1)
            if end is not None:
                blocks.append((joined, list(lines[at:end])))
                joined, at = False, end
                continue
        at += 1
    chain: list[list[str]] = []
    for was_joined, block in reversed(blocks):
        chain.insert(0, block)
        if not was_joined:
            break
    return chain


def _end_of(lines: Sequence[str], at: int) -> int | None:
    """The line after the exception of the block that begins before `at`; None where no exception follows."""
    while at < len(lines) and (_INDENTED.match(lines[at]) or lines[at].startswith("  ")):
        at += 1
    if at >= len(lines) or not _ERROR.match(lines[at]):
        return None
    at += 1
    # Of a text of several lines, what belongs to it ends with an empty line, the next traceback or the process.
    while at < len(lines) and lines[at].strip() and not lines[at].startswith((_BEGIN, *_JOINS, *_DIES)):
        at += 1
    return at


def _error_of(block: Sequence[str]) -> tuple[str, str] | None:
    for number, line in enumerate(block):
        if line != _BEGIN and not line.startswith("  ") and (found := _ERROR.match(line)):
            text = "\n".join([found[2] or "", *block[number + 1 :]]).strip()
            return found[1], text[:2000]
    return None
