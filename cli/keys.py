"""Keys of a terminal: bytes as they come to the names of what was pressed."""

from __future__ import annotations

import os
import re
import select

_NAMES = {
    "\x1b[A": "up",
    "\x1b[B": "down",
    "\x1bOA": "up",
    "\x1bOB": "down",
    "\x1b[5~": "pageup",
    "\x1b[6~": "pagedown",
    "\x1b[H": "home",
    "\x1b[F": "end",
    "\x1bOH": "home",
    "\x1bOF": "end",
    "\x1b[1~": "home",
    "\x1b[4~": "end",
    "\x1b": "escape",
    "\r": "enter",
    "\n": "enter",
    "\x7f": "backspace",
    "\x08": "backspace",
    "\x03": "q",
    "\x04": "q",
}
# CSI and SS3 sequences (ECMA-48), else one character.
_KEY = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1bO[A-Z]|.", re.DOTALL)
END_OF_SEQUENCE = 0.03
"""Seconds after which an escape alone is the key of that name."""


def names(text: str) -> list[str]:
    """What was pressed, in order; keys without a name are themselves."""
    return [_NAMES.get(one, one) for one in _KEY.findall(text)]


def pressed(file: int, seconds: float) -> list[str]:
    """The keys that come within that time, as soon as there are any; q where the terminal is gone."""
    if not select.select([file], [], [], seconds)[0]:
        return []
    data = os.read(file, 1024)
    # A sequence or a character of several bytes may come in two parts.
    while data and data[-1:] != b"\n" and select.select([file], [], [], END_OF_SEQUENCE)[0]:
        more = os.read(file, 1024)
        if not more:
            break
        data += more
    return names(data.decode("utf-8", "replace")) if data else ["q"]
