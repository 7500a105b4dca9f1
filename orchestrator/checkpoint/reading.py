"""Finding and reading: the newest checkpoint that is whole, the same one on every rank; damaged ones are passed over, and said."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.checkpoint import folder as folders
from orchestrator.checkpoint import state as states
from orchestrator.checkpoint.folder import Checkpoint, CheckpointError, DamagedError
from orchestrator.checkpoint.ranks import Ranks
from orchestrator.checkpoint.writing import STATE

log = logging.getLogger("orchestrator.checkpoint")

SEEN_WITHIN_S = 10.0
"""How long a rank waits to see what rank 0 sees: a network file system shows new names late."""


@dataclass(frozen=True)
class Loaded:
    """What was read."""

    step: int
    """How many steps had been done."""
    state: dict[str, Any] = field(repr=False)
    """By name, what was saved and did not go into an object."""
    checkpoint: Checkpoint = field(repr=False)


def latest(dir: str | os.PathLike[str] | None = None) -> Checkpoint | None:  # noqa: A002
    """The newest checkpoint that is whole, its files' contents included; None without any, or without a folder.

    Asks no other rank. Raises CheckpointError where the folder cannot be read.
    """
    folder, passed_over = folders.folder_of(dir), []
    for name in _names(folder):
        assert folder is not None
        try:
            found = folders.read_commit(folder / name)
            folders.verify(found)
        except (DamagedError, OSError) as damage:
            passed_over.append(f"{name}: {_why(damage)}")
        else:
            _warn(folder, passed_over, found)
            return found
    _warn(folder, passed_over, None)
    return None


def load(
    state: Any = None,
    *,
    map_location: Any = "cpu",
    dir: str | os.PathLike[str] | None = None,  # noqa: A002
    rng: bool = False,
) -> Loaded | None:
    """Reads the newest checkpoint that is whole; None where there is none, or no folder.

    `state` names objects as `save` was given them: modules, optimizers and others get what was saved of them, in place. What was
    saved otherwise is in the result. Without `state` all of it is. `map_location` is torch.load's. `rng` sets each rank's random
    state, if as many ranks saved theirs.

    Where torch.distributed is initialized every rank must call it, and all read the same checkpoint. Nothing is unpickled but
    tensors and plain values (`weights_only=True`). Raises CheckpointError where the folder cannot be read, where a rank does not
    see what rank 0 sees, or where the checkpoint holds no such object.
    """
    folder, ranks = folders.folder_of(dir), Ranks()
    candidates = ranks.first(lambda: _names(folder))
    passed_over: list[str] = []
    for name in candidates:
        assert folder is not None
        damage = _damage(folder / name, ranks)
        if damage is None:
            found = folders.read_commit(folder / name)
            if ranks.rank == 0:
                _warn(folder, passed_over, found)
            return _read(found, states.named(state) if state is not None else {}, map_location, rng, ranks)
        passed_over.append(f"{name}: {damage}")
    if ranks.rank == 0:
        _warn(folder, passed_over, None)
    return None


def _names(folder: Path | None) -> list[str]:
    try:
        return [] if folder is None else folders.names(folder)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror or error}") from None


def _damage(path: Path, ranks: Ranks) -> str | None:
    """What is wrong with a checkpoint, the same answer on every rank; each of them reads its share of the files."""

    def look() -> tuple[str | None, Checkpoint | None]:
        try:
            return None, folders.read_commit(path)
        except (DamagedError, OSError) as damage:
            return _why(damage), None

    damage, found = ranks.first(look)
    if found is None:
        return damage

    def check() -> str | None:
        if ranks.rank:
            _await_sight(found, ranks)
        try:
            folders.verify(found, ranks.rank, ranks.world_size)
        except (DamagedError, OSError) as damage:
            return _why(damage)
        return None

    return next((damage for damage in ranks.each(check) if damage is not None), None)


def _await_sight(found: Checkpoint, ranks: Ranks) -> None:
    """Raises CheckpointError where this rank does not see, within a while, what rank 0 does."""
    deadline = time.monotonic() + SEEN_WITHIN_S
    while True:
        try:
            folders.read_commit(found.path)
            return
        except (DamagedError, OSError) as error:
            if time.monotonic() > deadline:
                raise CheckpointError(
                    f"{ranks.me} does not see {found.path} as rank 0 does ({_why(error)}): the checkpoint folder must be one "
                    "folder on all nodes, on storage that they share"
                ) from None
        time.sleep(0.2)


def _read(found: Checkpoint, parts: dict[str, Any], map_location: Any, rng: bool, ranks: Ranks) -> Loaded:
    import torch

    if found.kind == "sharded":
        shards = states.sharded_parts(parts, always=True)
        if not shards:
            raise CheckpointError(
                f"{found.path} holds a part from each of {found.world_size} ranks: give the objects to load it into, or make one "
                f"file of {found.path / states.SHARDS} by torch.distributed.checkpoint.format_utils.dcp_to_torch_save"
            )
        states.load_shards(shards, found.path)
        parts = {name: thing for name, thing in parts.items() if name not in shards}
    content = torch.load(found.path / STATE, map_location=map_location, weights_only=True)
    left = states.put_back(parts, content["state"])
    if rng and content["random"] is not None:
        if found.world_size == ranks.world_size:
            states.set_random_state(content["random"][ranks.rank])
        elif ranks.rank == 0:
            log.warning(
                "%s holds the random state of %d ranks, and now there are %d: it is not restored",
                found.path.name, found.world_size, ranks.world_size,
            )  # fmt: skip
    return Loaded(found.step, left, found)


def _warn(folder: Path | None, passed_over: list[str], found: Checkpoint | None) -> None:
    if passed_over:
        instead = f"{found.path.name} is used instead" if found else "none is whole, so none is used"
        log.warning("in %s, passed over as damaged: %s; %s", folder, "; ".join(passed_over), instead)


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
