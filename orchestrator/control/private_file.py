"""Files that only their owner may read: how a token is made, read, replaced, and refused where others can read it.

Imports next to nothing: every command reads the token.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path


class InsecureHome(Exception):
    """The folder or the file cannot be this user's own; the text says what is wrong and how to mend it."""


def read_private(path: Path) -> str:
    """The text of a token's file. Raises FileNotFoundError, and InsecureHome where it is not this user's alone."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        why = "it is a link" if path.is_symlink() else error.strerror
        raise InsecureHome(f"{path} cannot be read: {why}; it must be a file of this user, mode 0600") from None
    try:
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode):
            raise InsecureHome(f"{path} is no file; remove it for a new one")
        if os.getuid() not in (0, info.st_uid):
            raise InsecureHome(f"{path} belongs to another user (uid {info.st_uid}); remove it for a new one")
        if (mode := info.st_mode & 0o777) & 0o077:
            raise InsecureHome(
                f"{path} can be read by others (mode {mode:04o}); `chmod 600 {path}`, or remove it for a new one"
            )
        text = os.read(handle, 4096).decode("ascii", "replace").strip()
    finally:
        os.close(handle)
    if not text or not text.isprintable():
        raise InsecureHome(f"{path} holds no token; remove it for a new one")
    return text


def private_token(path: Path) -> str:
    """As `read_private`; a token that is not there is made: whole, for this user alone, and by one of those who want it."""
    with suppress(FileNotFoundError):
        return read_private(path)
    import secrets

    making = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    handle = os.open(making, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_urlsafe(32))
        # A reader finds no half of it, and who comes second has the first one's.
        with suppress(FileExistsError):
            os.link(making, path)
    finally:
        making.unlink()
    return read_private(path)


class TokenFile:
    """A token as its file says it now: a new file is a new token, and one that is gone or open to others opens nothing."""

    def __init__(self, path: Path) -> None:
        """Makes the file where there is none. Raises InsecureHome."""
        self._path = path
        self._token = private_token(path)
        self._seen = self._stamp()

    def current(self) -> str:
        """The token. Raises InsecureHome where there is none to be trusted."""
        if (stamp := self._stamp()) != self._seen or stamp is None:
            try:
                self._token, self._seen = read_private(self._path), stamp
            except FileNotFoundError:
                raise InsecureHome(f"{self._path} is gone: `orch up` makes a new one") from None
        return self._token

    def _stamp(self) -> tuple[int, ...] | None:
        try:
            info = os.lstat(self._path)
        except OSError:
            return None
        return info.st_ino, info.st_mtime_ns, info.st_ctime_ns, info.st_mode
