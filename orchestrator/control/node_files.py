"""What an agent keeps on its node's disk: snapshots by content, and a folder for each attempt with its code and logs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.control import snapshot
from orchestrator.control.masking import masked, unfinished

CHUNK = 1 << 20
TAIL = 64 << 10
KEPT_ATTEMPTS = 20
"""Folders of ended attempts that stay on the node, newest first; their logs are on the head."""


def private_folder(path: Path) -> Path:
    """Makes `path` for this user alone. Raises PermissionError where somebody else owns it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = path.lstat()
    if info.st_uid != os.getuid():
        raise PermissionError(f"{path} belongs to another user (uid {info.st_uid})")
    path.chmod(0o700)
    return path


@dataclass
class LogFile:
    """One rank's log on the node, and how much of it the controller has."""

    path: Path
    shipped: int = 0
    """Bytes that the controller has acknowledged."""
    taken: int = 0
    """Bytes that are in a report, acknowledged or not."""
    tail_taken: bool = False
    secrets: tuple[bytes, ...] = ()
    """Values that are masked in the file itself before it is shipped."""
    closed: bool = False
    """Nobody writes to it any more."""
    looked: int = 0
    """Bytes that there were when the last of them were kept back: they may be the beginning of a secret."""
    size: int = -1
    grew_at: int = 0
    """When it was first seen at that size, in nanoseconds of CLOCK_MONOTONIC."""
    answers: bool = False
    """The rank is being asked something: what it prints now is no sign that it gets on."""

    def printed_at(self, now: int) -> int:
        """When something was last printed, as far as looks can tell; `now` at the first of them."""
        with suppress(OSError):
            size = self.path.stat().st_size
            if size != self.size:
                self.grew_at = self.grew_at if self.answers else now
                self.size = size
        return self.grew_at

    def pending(self, limit: int) -> bool:
        known = self.taken if self.closed else max(self.taken, self.looked)
        return self.taken < limit and self.path.exists() and self.path.stat().st_size > known

    def take(self, limit: int) -> tuple[int, bytes] | None:
        """The next bytes below `limit`, with their offset; None where there are none."""
        if not self.pending(limit):
            return None
        room = min(CHUNK, limit - self.taken)
        data = self._read(self.taken, room)
        if self.secrets and not self.closed and len(data) < room + len(self.secrets[0]):
            self.looked = self.taken + len(data)
            data = data[: len(data) - unfinished(data, self.secrets)]
        if not (data := data[:room]):
            return None
        offset, self.taken = self.taken, self.taken + len(data)
        return offset, data

    def _read(self, start: int, room: int) -> bytes:
        """The bytes from `start` on, with no secret in them nor any longer in the file: `room`, and some more to see whole ones.

        As long as nothing is taken whose end may be the beginning of a secret, no secret lies across `start`.
        """
        with self.path.open("r+b" if self.secrets else "rb") as file:
            file.seek(start)
            data = file.read(room + len(self.secrets[0]) if self.secrets else room)
            for value in self.secrets:
                at = data.find(value)
                while at >= 0:
                    # Its writer appends, so this meets nothing that is written meanwhile.
                    os.pwrite(file.fileno(), b"*" * len(value), start + at)
                    at = data.find(value, at + len(value))
                data = masked(data, (value,))
        return data

    def over(self, limit: int) -> bool:
        return self.path.exists() and self.taken >= limit and self.path.stat().st_size > limit

    def take_tail(self) -> tuple[int, bytes]:
        """The end of a log that outgrew its limit: where a traceback would be."""
        self.tail_taken = True
        size = self.path.stat().st_size
        start = max(self.taken, size - TAIL)
        # A secret may lie across the place where the tail begins.
        before = min(start, len(self.secrets[0]) if self.secrets else 0)
        return start, self._read(start - before, before + TAIL)[before : before + TAIL]

    def trim(self, limit: int) -> None:
        """Keeps a log that runs away from filling the disk: the writer appends, so it goes on at the new end."""
        if self.over(limit) and self.path.stat().st_size > limit + 64 * TAIL:
            os.truncate(self.path, limit)


@dataclass
class AttemptFolder:
    """`runs/RUN.ATTEMPT/`: the code that runs, a log for each rank, and what a new agent must know of the part."""

    path: Path
    logs: dict[int, LogFile] = field(default_factory=dict)
    secrets: tuple[bytes, ...] = ()
    """Values that no log of it is to hold."""

    @property
    def code(self) -> Path:
        return self.path / "code"

    @property
    def nccl(self) -> Path:
        """Where NCCL writes a file for each process of each rank."""
        return self.path / "nccl"

    @property
    def recorder(self) -> Path:
        """Where torch's flight recorder is asked for its dumps, and writes them."""
        return self.path / "recorder"

    def log(self, rank: int) -> LogFile:
        return self.logs.setdefault(rank, LogFile(self.path / f"rank-{rank}.log", secrets=self.secrets))

    def progress(self, rank: int) -> Path:
        """Where the rank writes how far it is (orchestrator/progress/file.py)."""
        return self.path / f"progress-{rank}"

    def last_word(self, rank: int) -> Path:
        """Where the rank's interpreter says how its script ended (launcher/last_word.py)."""
        return self.path / f"progress-{rank}.end"

    def write_note(self, note: dict[str, Any]) -> None:
        temporary = self.path / "part.tmp"
        temporary.write_text(json.dumps(note))
        temporary.replace(self.path / "part.json")

    def read_note(self) -> dict[str, Any] | None:
        with suppress(OSError, ValueError):
            note = json.loads((self.path / "part.json").read_text())
            return note if isinstance(note, dict) else None
        return None


class NodeFiles:
    """The agent's folder."""

    def __init__(self, root: Path) -> None:
        self.root = private_folder(root)
        self._snapshots = private_folder(root / "code")
        self._runs = private_folder(root / "runs")

    def attempt(self, key: str) -> AttemptFolder:
        return AttemptFolder(self._runs / key)

    def attempts(self) -> list[str]:
        return [entry.name for entry in self._runs.iterdir() if entry.is_dir()]

    async def lay_out(
        self, key: str, sha256: str | None, fetch: Callable[[str], AsyncIterator[bytes]]
    ) -> AttemptFolder:
        """A fresh folder for the attempt with its own copy of the snapshot, fetched if the node has not had it yet.

        Every attempt has its own copy, so that what a script writes beside itself meets no other run.
        """
        folder = self.attempt(key)
        if folder.path.exists():
            shutil.rmtree(folder.path)
        folder.path.mkdir(mode=0o700)
        folder.code.mkdir(mode=0o700)
        folder.nccl.mkdir(mode=0o700)
        folder.recorder.mkdir(mode=0o700)
        if sha256 is not None:
            archive = self._snapshots / f"{sha256}.tar.gz"
            if not archive.exists():
                await self._download(archive, fetch(sha256))
            os.utime(archive)
            with archive.open("rb") as file:
                snapshot.extract(file, folder.code)
        return folder

    async def _download(self, archive: Path, chunks: AsyncIterator[bytes]) -> None:
        handle, name = tempfile.mkstemp(dir=self._snapshots)
        digest = hashlib.sha256()
        try:
            with os.fdopen(handle, "wb") as file:
                async for chunk in chunks:
                    digest.update(chunk)
                    file.write(chunk)
            if digest.hexdigest() != archive.name.removesuffix(".tar.gz"):
                raise ValueError(f"the snapshot {archive.name[:12]} arrived damaged")
            Path(name).replace(archive)
        finally:
            Path(name).unlink(missing_ok=True)

    def tidy(self, live: set[str], keep: int = KEPT_ATTEMPTS) -> None:
        """Removes the oldest folders of ended attempts, and snapshots that no kept attempt was likely to use."""
        for folder, kept in ((self._runs, keep), (self._snapshots, keep)):
            entries = sorted((e for e in folder.iterdir() if e.name not in live), key=lambda e: e.stat().st_mtime)
            for entry in entries[: max(0, len(entries) - kept)]:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
