"""Snapshots on the head: one file for each content, named by its hash, there whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import AsyncIterable
from pathlib import Path

SHA256 = re.compile(r"^[0-9a-f]{64}$")
CHUNK = 4 << 20


class CodeTooLarge(Exception):
    """A snapshot beyond the cap."""


class CodeStore:
    """`ORCH_HOME/code/SHA256.tar.gz`."""

    def __init__(self, root: Path, limit: int) -> None:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._root, self._limit = root, limit

    def _path(self, sha256: str) -> Path:
        if not SHA256.match(sha256):
            raise ValueError(f"{sha256[:70]!r} is not a SHA-256")
        return self._root / f"{sha256}.tar.gz"

    def has(self, sha256: str) -> bool:
        # Asked at each submission: a Path of its own would cost more than the question.
        return bool(SHA256.match(sha256)) and os.path.exists(f"{self._root}/{sha256}.tar.gz")  # noqa: PTH110

    def wanted(self, sha256: str) -> bool:
        """Whether it is there; if so it stays for a while, though no run names it yet."""
        there = self.has(sha256)
        if there:
            os.utime(self._path(sha256))
        return there

    async def put(self, sha256: str, chunks: AsyncIterable[bytes]) -> None:
        """Stores a snapshot; on disk when it returns. Raises CodeTooLarge, and ValueError where the hash differs."""
        path = self._path(sha256)
        digest, size = hashlib.sha256(), 0
        handle, temporary = tempfile.mkstemp(dir=self._root)
        try:
            with os.fdopen(handle, "wb") as file:
                async for chunk in chunks:
                    size += len(chunk)
                    if size > self._limit:
                        raise CodeTooLarge(f"the snapshot is larger than {self._limit >> 20} MiB (code_limit)")
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            if digest.hexdigest() != sha256:
                raise ValueError(f"the snapshot's hash is {digest.hexdigest()[:12]}..., not {sha256[:12]}...")
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)

    def read(self, sha256: str, offset: int) -> bytes:
        """Up to CHUNK bytes from `offset`; empty at the end. Raises FileNotFoundError."""
        with self._path(sha256).open("rb") as file:
            file.seek(offset)
            return file.read(CHUNK)
