"""Which checkpoints a folder holds, which of them are whole, and who may add one: names, COMMIT, claims.

    step-120-attempt-2/        a checkpoint: what was known after 120 steps, written by the second attempt
        state.pt, shards/...   what torch wrote
        COMMIT                 the size and SHA-256 of each of these files; a checkpoint without it is none
    step-140.tmp-2/            one that is being written, or was when its attempt died
    attempt-2.json             the claim of an attempt: from now on those before it add nothing

"Attempt" here is a number of this folder: orch's own attempts have one each, and so has each start under another launcher. Two
attempts never write the same name, and a later attempt's checkpoint is newer than an earlier one's, whatever its step: an
attempt that was told to go back does not find itself overtaken by what it went back from.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path
from typing import Any

FORMAT = 1
COMMIT = "COMMIT"
_CHECKPOINT = re.compile(r"step-(\d{1,18})-attempt-(\d{1,9})(?:\.(\d{1,9}))?")
_DRAFT = re.compile(r"step-\d{1,18}\.tmp-(\d{1,9})")
_CLAIM = re.compile(r"attempt-(\d{1,9})\.json")
_CHUNK = 1 << 20


class CheckpointError(RuntimeError):
    """A checkpoint could not be saved or read; the message says which and why."""


class SupersededError(CheckpointError):
    """A later attempt has claimed the folder: this one may not save there any more."""


class DamagedError(CheckpointError):
    """A checkpoint is not as it was committed."""


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint, as its COMMIT says."""

    path: Path
    step: int
    """How many steps had been done."""
    attempt: int
    """Which of the folder's attempts wrote it."""
    kind: str
    """"whole": one file; "sharded": a part from each rank."""
    world_size: int
    files: dict[str, tuple[int, str]]
    """By path inside `path`: size in bytes and SHA-256."""


def folder_of(given: str | os.PathLike[str] | None) -> Path | None:
    """The folder that was given, or the job's; None where there is neither."""
    named = given if given is not None else os.environ.get("ORCH_CHECKPOINT_DIR")
    return Path(named) if named else None


# -- what is there -----------------------------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    """The names of what may be checkpoints, newest first. Raises OSError unless the folder is merely not there."""
    found = []
    try:
        entries = os.listdir(folder)
    except FileNotFoundError:
        return []
    for name in entries:
        if (parts := _CHECKPOINT.fullmatch(name)) is not None:
            step, attempt, again = (int(part or 0) for part in parts.groups())
            found.append(((attempt, step, again), name))
    return [name for _, name in sorted(found, reverse=True)]


def read_commit(path: Path) -> Checkpoint:
    """What was committed there, by its COMMIT and the sizes of its files. Raises DamagedError, OSError."""
    try:
        raw = (path / COMMIT).read_bytes()
    except FileNotFoundError:
        raise DamagedError(f"it has no {COMMIT}: its save did not end") from None
    body = raw.partition(b"\n")[0]
    if raw != _sealed(body):
        raise DamagedError(f"its {COMMIT} is damaged")
    told = json.loads(body)
    if told["format"] != FORMAT:
        raise DamagedError(f"it is of format {told['format']}, and this is orch for format {FORMAT}")
    files = {name: (int(size), str(digest)) for name, (size, digest) in told["files"].items()}
    found = Checkpoint(path, told["step"], told["attempt"], told["kind"], told["world_size"], files)
    parts = _CHECKPOINT.fullmatch(path.name)
    if parts is None or (int(parts[1]), int(parts[2])) != (found.step, found.attempt):
        raise DamagedError(f"its {COMMIT} is of step {found.step} of attempt {found.attempt}")
    for name, (size, _) in files.items():
        try:
            real = (path / name).stat().st_size
        except FileNotFoundError:
            raise DamagedError(f"{name} is missing") from None
        if real != size:
            raise DamagedError(f"{name} has {real:,} of {size:,} bytes")
    return found


def _sealed(body: bytes) -> bytes:
    return body + b"\n" + hashlib.sha256(body).hexdigest().encode() + b"\n"


def verify(found: Checkpoint, part: int = 0, of: int = 1) -> None:
    """Reads every file (of `of` readers, the part-th one's share) and holds it against COMMIT. Raises DamagedError, OSError."""
    for name in sorted(found.files)[part::of]:
        if digest_of(found.path / name) != found.files[name][1]:
            raise DamagedError(f"{name} is not what was saved: its SHA-256 differs")


def digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


# -- who may write -----------------------------------------------------------------------------------------------------

_claimed: dict[tuple[int, str], int] = {}


def claim(folder: Path) -> int:
    """This attempt's number in the folder, which is made. Raises SupersededError where a later attempt has come; OSError.

    Under orch an attempt of the run has one number, whichever process asks; elsewhere each process that saves is an attempt.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = os.getpid(), os.path.realpath(folder)
    if key not in _claimed:
        _claimed[key] = _take_number(folder)
    still_ours(folder, _claimed[key])
    return _claimed[key]


def _take_number(folder: Path) -> int:
    run, attempt = os.environ.get("ORCH_RUN"), os.environ.get("ORCH_ATTEMPT", "")
    number = int(attempt) if attempt.isdigit() else 0
    told = {"run": run, "attempt": number, "host": socket.gethostname(), "pid": os.getpid(), "at": _now()}
    while True:
        claims = _claims(folder)
        if run is not None:
            of_run = {claim["attempt"]: at for at, claim in claims.items() if claim.get("run") == run}
            if (newest := max(of_run, default=0)) > number:
                raise SupersededError(
                    f"attempt {newest} of run {run} writes in {folder} by now; attempt {number} may not any more"
                )
            if number in of_run:
                return of_run[number]
        mine = max(claims, default=0) + 1
        with suppress(FileExistsError):
            descriptor = os.open(folder / f"attempt-{mine}.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                os.write(descriptor, json.dumps(told).encode())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            return mine


def _claims(folder: Path) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for name in os.listdir(folder):
        if (parts := _CLAIM.fullmatch(name)) is not None:
            claim: Any = None
            # One that is being written, or that a full disk has cut off, is a claim of somebody all the same.
            with suppress(OSError, ValueError):
                claim = json.loads((folder / name).read_bytes())
            found[int(parts[1])] = claim if isinstance(claim, dict) else {}
    return found


def still_ours(folder: Path, attempt: int) -> None:
    """Raises SupersededError where a later attempt has claimed the folder, or has saved there."""
    later = {at: claim for at, claim in _claims(folder).items() if at > attempt}
    if not later:
        return
    claim = later[max(later)]
    who = f"attempt {claim['attempt']} of run {claim['run']}" if claim.get("run") else "a later start"
    where = f" on {claim['host']}" if claim.get("host") else ""
    raise SupersededError(f"{who}{where} has taken over {folder}: what this one saves there would be overtaken")


# -- writing -----------------------------------------------------------------------------------------------------------


def begin_draft(folder: Path, step: int, attempt: int) -> Path:
    """An empty folder to write into; drafts of attempts that are over, and of this one's broken saves, are cleared away."""
    clear_drafts(folder, attempt)
    draft = folder / f"step-{step}.tmp-{attempt}"
    draft.mkdir()
    return draft


def clear_drafts(folder: Path, attempt: int) -> None:
    for name in os.listdir(folder):
        if (parts := _DRAFT.fullmatch(name)) is not None and int(parts[1]) <= attempt:
            shutil.rmtree(folder / name, ignore_errors=True)


def commit(
    draft: Path, step: int, attempt: int, kind: str, world_size: int, files: dict[str, tuple[int, str]]
) -> Checkpoint:
    """Makes a checkpoint of the draft, whose files are written and synced. Raises SupersededError, OSError.

    COMMIT is written before the folder gets its name and comes to its own last: that needs no space, so a full disk cannot come
    between.
    """
    folder = draft.parent
    still_ours(folder, attempt)
    told = {
        "format": FORMAT,
        "step": step,
        "attempt": attempt,
        "kind": kind,
        "world_size": world_size,
        "run": os.environ.get("ORCH_RUN"),
        "saved_at": _now(),
        "files": files,
    }
    body = json.dumps(told, sort_keys=True).encode()
    ready = draft / f"{COMMIT}.tmp"
    with open(ready, "wb") as stream:
        stream.write(_sealed(body))
        stream.flush()
        os.fsync(stream.fileno())
    for name in {str(Path(name).parent) for name in files} | {"."}:
        sync_folder(draft / name)
    still_ours(folder, attempt)
    base = path = folder / f"step-{step}-attempt-{attempt}"
    again = 0
    while path.exists():
        again += 1
        path = folder / f"{base.name}.{again}"
    draft.rename(path)
    sync_folder(folder)
    (path / ready.name).rename(path / COMMIT)
    sync_folder(path)
    return Checkpoint(path, step, attempt, kind, world_size, files)


def prune(folder: Path, newest: Checkpoint, keep: int) -> None:
    """Deletes what is older than the `keep` newest committed checkpoints that are not newer than `newest`."""
    kept = 0
    for name in dropwhile(lambda name: name != newest.path.name, names(folder)):
        if (folder / name / COMMIT).exists():
            kept += 1
        if kept > keep:
            # Under a draft's name first: a deletion that is cut off must not look like a damaged checkpoint.
            doomed = folder / f"{name.partition('-attempt')[0]}.tmp-{newest.attempt}"
            with suppress(OSError):
                (folder / name).rename(doomed)
                shutil.rmtree(doomed)


def sync_folder(path: Path) -> None:
    """Has the names in a folder outlive a power failure."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
