"""Saving: each file is written and synced as a draft, and becomes a checkpoint by its COMMIT, or is gone again.

A whole checkpoint is rank 0's alone, and no rank waits for another: it may be called on rank 0 only, or on all. One with a
part from each rank needs them all, and its failure on one is an error on all.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Iterator

from orchestrator.checkpoint import folder as folders
from orchestrator.checkpoint import state as states
from orchestrator.checkpoint.folder import Checkpoint, CheckpointError
from orchestrator.checkpoint.ranks import Ranks, refuse_alone

STATE = "state.pt"
KEEP = 3
"""How many checkpoints are kept unless the script says otherwise."""


def save(
    state: Any,
    *,
    step: int,
    dir: str | os.PathLike[str] | None = None,  # noqa: A002 - what everybody calls it
    keep: int = KEEP,
    rng: bool = False,
    sharded: bool | None = None,
) -> Checkpoint | None:
    """Saves what is known after `step` steps, and deletes all but the `keep` newest checkpoints.

    Gives what was saved; None where another rank has written it. `state` is a dict of what is to be kept, by name: modules,
    optimizers and others with `state_dict`, and plain values. `dir` is the folder; under orch, the job's `checkpoint:`. `rng`
    keeps the random state of every rank. `sharded`: each rank writes its part; of itself where a module is sharded (FSDP). With
    `rng` or `sharded` every rank must call it; else rank 0 is enough, and the others return at once.

    Raises CheckpointError where it could not be saved, which leaves older checkpoints as they are; SupersededError where a later
    attempt has claimed the folder; ValueError where there is no folder.
    """
    folder = folders.folder_of(dir)
    if folder is None:
        raise ValueError(
            "no folder: give dir=, or `checkpoint:` in the job file, which orch passes on as ORCH_CHECKPOINT_DIR"
        )
    if step < 0 or keep < 1:
        raise ValueError(f"step must be at least 0 and keep at least 1, not {step} and {keep}")
    refuse_alone(dir)
    parts, ranks = states.named(state), Ranks()
    shards = states.sharded_parts(parts, always=sharded is True) if sharded is not False else {}
    random_states = ranks.to_first(states.random_state()) if rng else None
    others = {name: thing for name, thing in parts.items() if name not in shards}
    if shards:
        saved = save_sharded(folder, step, shards, others, random_states, ranks)
    elif ranks.rank == 0:
        saved = save_whole(folder, step, others, random_states, ranks)
    else:
        return None
    if ranks.rank == 0:
        folders.prune(folder, saved, keep)
    return saved


def save_whole(folder: Path, step: int, parts: dict[str, Any], random_states: Any, ranks: Ranks) -> Checkpoint:
    with _explaining(folder, step):
        attempt = folders.claim(folder)
        draft = folders.begin_draft(folder, step, attempt)
        with _gone_unless_committed(draft):
            files = _write_state(draft, step, parts, random_states)
            return folders.commit(draft, step, attempt, "whole", ranks.world_size, files)


def save_sharded(
    folder: Path, step: int, shards: dict[str, Any], parts: dict[str, Any], random_states: Any, ranks: Ranks
) -> Checkpoint:
    def begin() -> tuple[int, Path]:
        with _explaining(folder, step):
            attempt = folders.claim(folder)
            return attempt, folders.begin_draft(folder, step, attempt)

    def write() -> dict[str, tuple[int, str]]:
        with _explaining(folder, step):
            states.save_shards(shards, draft)
            # torch names a rank's files by its number; rank 0 writes the metadata too.
            mine = list((draft / states.SHARDS).glob(f"__{ranks.rank}_*"))
            mine += [draft / states.SHARDS / ".metadata"] if ranks.rank == 0 else []
            return {f"{states.SHARDS}/{one.name}": (one.stat().st_size, folders.digest_of(one)) for one in mine}

    def commit() -> Checkpoint:
        with _explaining(folder, step):
            files = _write_state(draft, step, parts, random_states)
            for one in written:
                files.update(one)
            for name, (size, _) in files.items():
                if (draft / name).stat().st_size != size:
                    raise CheckpointError(
                        f"{draft / name} is not what its rank wrote: is {folder} one folder on all nodes?"
                    )
            return folders.commit(draft, step, attempt, "sharded", ranks.world_size, files)

    attempt, draft = ranks.first(begin)
    with _gone_unless_committed(draft, mine=ranks.rank == 0):
        written = ranks.each(write)
        return ranks.first(commit)


def _write_state(draft: Path, step: int, parts: dict[str, Any], random_states: Any) -> dict[str, tuple[int, str]]:
    import torch

    content = {"step": step, "state": states.state_of(parts), "random": random_states}
    with open(draft / STATE, "wb") as stream:
        hashed = _Hashed(stream)
        try:
            torch.save(content, hashed)
        except Exception:
            if hashed.error is not None:
                # torch says only that a write has failed.
                raise hashed.error from None
            raise
        stream.flush()
        os.fsync(stream.fileno())
    return {STATE: (hashed.size, hashed.digest.hexdigest())}


class _Hashed:
    """A file that is hashed as it is written."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()
        self.size = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            self._stream.write(data)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        self._stream.flush()


@contextmanager
def _gone_unless_committed(draft: Path, mine: bool = True) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if mine:
            shutil.rmtree(draft, ignore_errors=True)
        raise


@contextmanager
def _explaining(folder: Path, step: int) -> Iterator[None]:
    """Says of an error of the file system what it means for the checkpoint."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            folders.claim(folder)  # a later attempt clears away what this one was writing
        why = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            with suppress(OSError):
                why += f" ({shutil.disk_usage(folder).free / 1e6:,.0f} MB are free)"
        left = ""
        with suppress(OSError):
            newest = next((name for name in folders.names(folder) if (folder / name / folders.COMMIT).exists()), None)
            left = f"; the newest there is still {newest}" if newest else ""
        raise CheckpointError(f"step {step} could not be saved in {folder}: {why}{left}") from error
