"""What code a run runs: a folder as one archive that is the same bytes for the same tree, and back."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import shutil
import stat
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

from orchestrator.control.ignore import ALWAYS, VENV_MARK, Ignore, outside

if TYPE_CHECKING:
    import subprocess

LIMIT = 256 * 2**20
"""Bytes of files, before compression, that a snapshot may hold."""
MOST_ENTRIES = 1_000_000
_GIT_TIMEOUT = 2.0
_READ_TRIES = 3


class SnapshotError(Exception):
    """The folder cannot be snapshotted or the archive not unpacked; the text says what to change."""


@dataclass(frozen=True)
class Snapshot:
    """A folder's content at one moment."""

    sha256: str
    """Of the archive."""
    archive: bytes
    """A tar.gz."""
    files: tuple[str, ...]
    """Every file and link in it, relative to the folder, sorted."""
    size: int
    """Bytes of the files before compression."""
    git: str | None
    """The commit that the folder is at; None outside git."""
    dirty: bool | None
    """Whether the folder differs from that commit."""


@dataclass(frozen=True)
class _Entry:
    path: str
    info: os.stat_result
    link: str | None = None


def take(workdir: Path, limit: int = LIMIT) -> Snapshot:
    """The folder as it is now, less what .gitignore and .orchignore name. Raises SnapshotError."""
    root = workdir.resolve()
    if not root.is_dir():
        raise SnapshotError(f"workdir {workdir} is not a folder")
    top, git_dir = _work_tree(root)
    asked = _ask_git(root) if top else None
    try:
        entries = list(_walk(root, outside(top, git_dir, root)))
        _check_size(entries, limit)
        archive, size, files = _pack(root, sorted(entries, key=lambda entry: os.fsencode(entry.path)), limit)
        sha256 = hashlib.sha256(archive).hexdigest()
    except BaseException:
        if asked is not None:
            asked.kill()
            asked.communicate()
        raise
    git, dirty = (None, None) if asked is None else _git_answer(asked)
    return Snapshot(sha256, archive, files, size, git, dirty)


def extract(archive: BinaryIO, folder: Path, limit: int = LIMIT) -> None:
    """Unpacks an archive into `folder`: files 0600 (0700 where executable), folders 0700, nothing outside of it.

    Links are made when all else is there, so nothing is ever written through one. (The filters of tarfile have let archives
    out of their folder before: CVE-2025-4138, -4330 and -4517, up to Python 3.11.12.)
    Raises SnapshotError for an archive that is damaged, unpacks to more than `limit` bytes or would leave the folder.
    """
    size, links, folders = 0, [], {folder}
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tarfile.open(fileobj=archive, mode="r:gz") as tar:
            for count, member in enumerate(tar):
                size += member.size
                if size > limit or count >= MOST_ENTRIES:
                    raise SnapshotError(f"the snapshot unpacks to more than {_mib(limit)}, or {MOST_ENTRIES:,} files")
                place = folder / _inside(member.name)
                if place == folder:
                    continue
                _make_folders(place if member.isdir() else place.parent, folders)
                if member.isreg():
                    mode = 0o700 if member.mode & 0o100 else 0o600
                    handle = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
                    content = tar.extractfile(member)
                    assert content is not None
                    with open(handle, "wb") as file:
                        shutil.copyfileobj(content, file)
                elif member.issym():
                    links.append((place, member.linkname))
                elif not member.isdir():
                    raise SnapshotError(f"the snapshot holds {member.name!r}, which is no file, folder or link")
        for place, target in links:
            _inside(os.path.normpath(os.path.join(place.parent.relative_to(folder), target)))  # noqa: PTH118 - an absolute one wins
            place.symlink_to(target)
    except FileExistsError as error:
        raise SnapshotError(f"the snapshot holds {Path(error.filename2 or error.filename).name!r} twice") from error
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise SnapshotError(f"the snapshot is damaged: {error}") from error
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise SnapshotError(f"the snapshot cannot be unpacked into {folder}: {said}") from error


def _inside(name: str) -> PurePosixPath:
    """The path of an entry below the folder. Raises SnapshotError for one that is not below it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not name:
        raise SnapshotError(f"the snapshot would write outside its folder: {name!r}")
    return path


def _make_folders(wanted: Path, known: set[Path]) -> None:
    if wanted not in known:
        _make_folders(wanted.parent, known)
        wanted.mkdir(mode=0o700)
        known.add(wanted)


# --- the walk -----------------------------------------------------------------------------------------------------


def _walk(root: Path, ignore: Ignore, inside: str = "") -> Iterator[_Entry]:
    """Every entry that belongs in the snapshot; paths relative to `root`."""
    try:
        with os.scandir(root / inside) as found:
            children = list(found)
    except FileNotFoundError:
        return
    except PermissionError:
        raise SnapshotError(f"{root / inside} cannot be read: add it to .orchignore, or change its mode") from None
    prefix = "" if root == ignore.root else root.relative_to(ignore.root).as_posix() + "/"
    ignore = ignore.entering(prefix + inside, {child.name for child in children})
    for child in children:
        path = inside + child.name
        is_dir = child.is_dir(follow_symlinks=False)
        if child.name in ALWAYS or ignore.ignores(prefix + path, is_dir):
            continue
        try:
            info = child.stat(follow_symlinks=False)
            if is_dir:
                if not os.path.lexists(os.path.join(child.path, VENV_MARK)):  # noqa: PTH118 - a Path each costs more than the walk
                    yield _Entry(path, info)
                    yield from _walk(root, ignore, path + "/")
            elif child.is_symlink():
                yield _Entry(path, info, _link(root, path))
            elif stat.S_ISREG(info.st_mode):
                yield _Entry(path, info)
        except FileNotFoundError:
            continue  # it went between the listing and the look at it, as if it had never been there


def _link(root: Path, path: str) -> str:
    """The relative target of a link that stays inside `root`. Raises SnapshotError for one that leaves it."""
    place = root / path
    target = place.readlink()
    real = Path(os.path.realpath(place))
    if root not in (real, *real.parents):
        raise SnapshotError(
            f"{path} is a link to {target}, outside of {root}: a snapshot would not hold what it points to. "
            f"Add it to .orchignore and give the script the real path instead"
        )
    # Kept as it is written where that means the same once the folder has another name.
    written = Path(os.path.normpath(place.parent / target))
    kept = written if root in (written, *written.parents) and Path(os.path.realpath(written)) == real else real
    return os.path.relpath(kept, place.parent)


def _check_size(entries: list[_Entry], limit: int) -> None:
    files = [(entry.info.st_size, entry.path) for entry in entries if stat.S_ISREG(entry.info.st_mode)]
    total = sum(size for size, _ in files)
    if total > limit:
        raise SnapshotError(_too_large(files, total, limit))


def _too_large(files: list[tuple[int, str]], total: int, limit: int) -> str:
    largest = ", ".join(f"{path} ({_mib(size)})" for size, path in sorted(files, reverse=True)[:5])
    return (
        f"the folder holds {_mib(total)} in {len(files)} files, and a snapshot may hold {_mib(limit)}. The largest: "
        f"{largest}. Name what the run does not need in .orchignore (same form as .gitignore)"
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB" if size >= 2**20 / 10 else f"{size:,} bytes"


# --- the archive --------------------------------------------------------------------------------------------------


def _pack(root: Path, entries: list[_Entry], limit: int) -> tuple[bytes, int, tuple[str, ...]]:
    """The archive, the bytes of files in it and their names: nothing of when, by whom or where it was made."""
    out, size, files = io.BytesIO(), 0, []
    # Level 1: source compresses to about the same size, at a third of the time.
    with (
        gzip.GzipFile("", "wb", 1, out, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for entry in entries:
            member = tarfile.TarInfo(entry.path)
            if entry.link is not None:
                member.type, member.linkname, member.mode = tarfile.SYMTYPE, entry.link, 0o777
                tar.addfile(member)
            elif stat.S_ISDIR(entry.info.st_mode):
                member.type, member.mode = tarfile.DIRTYPE, 0o700
                tar.addfile(member)
                continue
            else:
                content = _read(root, entry.path, limit - size)
                if content is None:
                    continue
                member.size, member.mode = len(content), 0o700 if entry.info.st_mode & 0o100 else 0o600
                tar.addfile(member, io.BytesIO(content))
                size += member.size
            files.append(entry.path)
    return out.getvalue(), size, tuple(files)


def _read(root: Path, path: str, room: int) -> bytes | None:
    """One file's content as it was at one moment; None if it is gone by now.

    A file that is written while it is read is read again; one that never rests is taken as it was read last.
    """
    content = b""
    for _ in range(_READ_TRIES):
        try:
            # Neither a link nor a pipe that took the file's place since the walk may lead elsewhere or block us.
            handle = os.open(root / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except PermissionError:
            raise SnapshotError(f"{path} cannot be read: add it to .orchignore, or change its mode") from None
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
                return None
            raise SnapshotError(f"{path} cannot be read: {error.strerror}") from error
        with open(handle, "rb", buffering=0) as file:
            before = os.fstat(handle)
            if not stat.S_ISREG(before.st_mode):
                return None
            content = file.read(room + 1) if before.st_size > room else file.readall()
            after = os.fstat(handle)
        if len(content) > room:
            raise SnapshotError(
                f"{path} grew while it was read, and the snapshot is over its limit: add it to .orchignore"
            )
        if (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, len(content)):
            break
    return content


# --- git ----------------------------------------------------------------------------------------------------------


def _work_tree(folder: Path) -> tuple[Path | None, Path | None]:
    """The top of the git work tree around `folder` and the folder of its shared git files; None, None outside git."""
    for top in (folder, *folder.parents):
        mark = top / ".git"
        if mark.is_dir():
            return top, mark
        if mark.is_file():  # a linked work tree or a submodule
            git_dir = top / mark.read_text().removeprefix("gitdir:").strip()
            common = git_dir / "commondir"
            return top, git_dir / common.read_text().strip() if common.is_file() else git_dir
    return None, None


def _ask_git(folder: Path) -> subprocess.Popen[str] | None:
    """Starts git while the folder is read: one call says the commit and whether anything differs from it."""
    import subprocess

    command = ["git", "-c", "core.fsmonitor=false", "status", "--porcelain=v2", "--branch", "--", "."]
    try:
        return subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            close_fds=False,
        )
    except OSError:
        return None  # a tree from git on a machine without git


def _git_answer(asked: subprocess.Popen[str]) -> tuple[str | None, bool | None]:
    import subprocess

    try:
        text, _ = asked.communicate(timeout=_GIT_TIMEOUT)
    except subprocess.TimeoutExpired:
        asked.kill()
        asked.communicate()
        return None, None
    lines = text.splitlines()
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid ")), None)
    if asked.returncode != 0 or commit is None or commit == "(initial)":
        return None, None
    return commit, any(not line.startswith("#") for line in lines)
