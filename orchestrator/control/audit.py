"""Who asked the controller for what, when, and what came of it: `ORCH_HOME/audit.log`, one JSON object a line.

Every call that changes something is in it, and every call that was not let in. `user` is what the caller says; `uid` is what the
kernel knows of the process at the other end of the connection, and cannot be chosen.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

log = logging.getLogger("orch.audit")

LIMIT = 8 << 20
KEPT = 4
"""Older files that stay: audit.log.1 is the newest of them."""
LONGEST = 256
"""Characters of any text in a record."""
_ESTABLISHED = "01"


@dataclass
class Call:
    """What is told of one call to the API, while it is being answered."""

    uid: int | None = None
    user: str | None = None
    run: int | None = None
    said: str | None = None
    """What was asked, in a few words; never a body, in which secrets may be."""
    asks_only: bool = False
    """It changes nothing."""


class AuditLog:
    """The file. A record that cannot be written is told to the controller's own log, and holds nothing up."""

    def __init__(self, path: Path, limit: int = LIMIT) -> None:
        self.path, self._limit = path, limit
        self._refused_at = float("-inf")
        self._refused = 0

    def write(self, record: Mapping[str, Any]) -> None:
        kept = {name: _short(value) for name, value in record.items() if value is not None}
        line = json.dumps({"at": _rfc3339(time.time()), **kept}).encode() + b"\n"
        try:
            handle = os.open(self.path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                os.fchmod(handle, 0o600)
                os.write(handle, line)
                size = os.fstat(handle).st_size
            finally:
                os.close(handle)
            if size > self._limit:
                self._rotate()
        except OSError as error:
            log.error("the audit log could not be written (%s): %s", error.strerror, line.decode().strip())

    def refused(self, record: Mapping[str, Any]) -> None:
        """A call that was not let in: one record a second at most, with how many there were since the one before."""
        self._refused += 1
        if time.monotonic() - self._refused_at >= 1:
            self.write({**record, "times": self._refused})
            self._refused_at, self._refused = time.monotonic(), 0

    def _rotate(self) -> None:
        for number in range(KEPT, 1, -1):
            older = self.path.with_name(f"{self.path.name}.{number - 1}")
            if older.exists():
                older.replace(self.path.with_name(f"{self.path.name}.{number}"))
        self.path.replace(self.path.with_name(f"{self.path.name}.1"))


def records(path: Path) -> Iterator[dict[str, Any]]:
    """What the log and its older files hold, the oldest first; a line that is no record is left out."""
    for file in (*(path.with_name(f"{path.name}.{number}") for number in range(KEPT, 0, -1)), path):
        try:
            lines = file.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            continue
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and _is_time(record.get("at")):
                yield record


def peer_uid(peer: Any, own: Any) -> int | None:
    """The user of the process at the other end of a loopback TCP connection; None where the kernel does not tell.

    `peer` and `own` are its addresses as a socket gives them.
    """
    table = "/proc/net/tcp6" if ":" in str(peer[0]) else "/proc/net/tcp"
    theirs, ours = _as_in_proc(peer), _as_in_proc(own)
    try:
        with open(table) as rows:
            for row in rows:
                fields = row.split(maxsplit=8)
                # Seen from the caller's side: its own address is the local one. Once it has hung up it is nobody's.
                if fields[1:4] == [theirs, ours, _ESTABLISHED]:
                    return int(fields[7])
    except (OSError, IndexError, ValueError):
        return None
    return None


def _as_in_proc(address: Any) -> str:
    """`0100007F:1F90`: each 32-bit word of the address in the machine's byte order."""
    host, port = address[:2]
    packed = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    words = (packed[at : at + 4] for at in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words) + f":{port:04X}"


def _short(value: Any) -> Any:
    return f"{value[:LONGEST]}..." if isinstance(value, str) and len(value) > LONGEST else value


def _is_time(text: Any) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except (ValueError, TypeError):
        return False


def _rfc3339(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1000):03d}Z"
