"""Which orch is this: the version, and the shape of what controller and agents say to each other.

After an upgrade the processes of before live on for a while. Two whose messages differ in shape must not speak: a pickled value
would lack what the other reads.
"""

from __future__ import annotations

import inspect
from dataclasses import fields, is_dataclass
from functools import cache
from hashlib import sha256
from typing import Any, get_args, get_type_hints

import orchestrator
from orchestrator.control.backend import Agent


def protocol() -> str:
    """A digest of the agent's calls, and of every field of every value in them, so that nobody has to count versions."""
    calls = [call for name, call in sorted(vars(Agent).items()) if not name.startswith("_")]
    said: dict[str, str] = {}
    for call in calls:
        hints = get_type_hints(call)
        said[call.__name__] = f"{inspect.signature(call)}"
        for kind in hints.values():
            _describe(kind, said)
    return sha256(repr(sorted(said.items())).encode()).hexdigest()[:8]


def _describe(kind: Any, said: dict[str, str]) -> None:
    for part in get_args(kind):
        _describe(part, said)
    if isinstance(kind, type) and is_dataclass(kind) and kind.__qualname__ not in said:
        said[kind.__qualname__] = ", ".join(f"{one.name}: {one.type}" for one in fields(kind))
        for hint in get_type_hints(kind).values():
            _describe(hint, said)


@cache
def this_code() -> str:
    """`0.1.0-1f3a9c02`: the version, and what `protocol` gives."""
    return f"{orchestrator.__version__}-{protocol()}"


def speaks_with(code: str) -> bool:
    """Whether this code and that one understand each other."""
    return code.rpartition("-")[2] == this_code().rpartition("-")[2]
