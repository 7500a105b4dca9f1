"""Who asked the controller for what, when, and what came of it: `ORCH_HOME/audit.log`, one JSON object a line.

Every call that changes something is in it, and every call that was not let in. `user` is what the caller says; `uid` is what the
kernel knows of the process at the other end of the connection, and cannot be chosen.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

log = logging.getLogger("orch.audit")

LIMIT = 8 << 20
KEPT = 4
"""Older files that stay: audit.log.1 is the newest of them."""
LONGEST = 256
"""Characters of any text in a record."""


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
        line = json.dumps({"at": _now(), **kept}).encode() + b"\n"
        try:
            handle = os.open(self.path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                before = os.fstat(handle)
                if before.st_mode & 0o7777 != 0o600:
                    os.fchmod(handle, 0o600)
                os.write(handle, line)
            finally:
                os.close(handle)
            if before.st_size + len(line) > self._limit:
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

    `peer` and `own` are its addresses as a socket gives them. Asks the kernel for that one socket, as ss does
    (sock_diag(7)): reading /proc/net/tcp walks through the whole table of connections, 7 ms on an idle machine.
    """
    family = socket.AF_INET6 if ":" in peer[0] else socket.AF_INET
    # Seen from the caller's side: its own address is the local one.
    ends = struct.pack("!HH", peer[1], own[1]) + _packed(family, peer[0]) + _packed(family, own[0])
    body = struct.pack("=BBBxI", family, socket.IPPROTO_TCP, 0, _ANY) + ends + struct.pack("=III", 0, _ANY, _ANY)
    head = struct.pack("=IHHII", 16 + len(body), _BY_FAMILY, 1, 1, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
            kernel.settimeout(0.1)
            kernel.send(head + body)
            answer = kernel.recv(4096)
        _, kind = struct.unpack_from("=IH", answer)
        _, state = struct.unpack_from("=BB", answer, 16)
        uid: int = struct.unpack_from("=I", answer, _UID_AT)[0]
    except (OSError, struct.error):
        return None
    # Once it has hung up it is nobody's.
    return uid if kind == _BY_FAMILY and state == _ESTABLISHED else None


_NETLINK_SOCK_DIAG, _BY_FAMILY, _ESTABLISHED, _ANY = 4, 20, 1, 0xFFFFFFFF
_UID_AT = 16 + 4 + 48 + 12
"""Of inet_diag_msg, behind nlmsghdr: four bytes, the socket's ends, three counters."""


def _packed(family: int, host: str) -> bytes:
    return socket.inet_pton(family, host).ljust(16, b"\0")


def _short(value: Any) -> Any:
    return f"{value[:LONGEST]}..." if isinstance(value, str) and len(value) > LONGEST else value


def _is_time(text: Any) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except (ValueError, TypeError):
        return False


def _now() -> str:
    """RFC 3339, of UTC."""
    return f"{datetime.now(UTC).replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"
