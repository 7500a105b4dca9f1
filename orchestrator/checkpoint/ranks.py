"""How the ranks of a script do a thing together: torch's process group where there is one, and one rank alone else."""

from __future__ import annotations

import os
import socket
from typing import Any, Callable, TypeVar

from orchestrator.checkpoint.folder import CheckpointError

T = TypeVar("T")


class Ranks:
    """This rank among the others, as torch.distributed knows them at this moment."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self._dist: Any = dist if dist.is_available() and dist.is_initialized() else None
        self.rank: int = self._dist.get_rank() if self._dist else 0
        self.world_size: int = self._dist.get_world_size() if self._dist else 1

    @property
    def me(self) -> str:
        return f"rank {self.rank} on {socket.gethostname()}"

    def first(self, action: Callable[[], T]) -> T:
        """What the action gives on rank 0, where alone it is done; what it raises there is raised on every rank."""
        if self.world_size == 1:
            return action()
        told: list[Any] = [self._tried(action) if self.rank == 0 else None]
        self._dist.broadcast_object_list(told, src=0)
        value: T = _given(told)[0]
        return value

    def each(self, action: Callable[[], T]) -> list[T]:
        """What the action gives on each rank, by rank, on every rank; what it raises on one is raised on all."""
        if self.world_size == 1:
            return [action()]
        told: list[Any] = [None] * self.world_size
        self._dist.all_gather_object(told, self._tried(action))
        return _given(told)

    def to_first(self, value: T) -> list[T]:
        """What each rank says, by rank, on rank 0; nothing elsewhere."""
        if self.world_size == 1:
            return [value]
        told: list[Any] | None = [None] * self.world_size if self.rank == 0 else None
        self._dist.gather_object(value, told, dst=0)
        return told or []

    def _tried(self, action: Callable[[], T]) -> tuple[T | None, CheckpointError | None]:
        try:
            return action(), None
        except CheckpointError as error:
            return None, error
        # torch.distributed.checkpoint raises a BaseException of its own.
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            return None, CheckpointError(f"{self.me}: {type(error).__name__}: {error}")

    def store(self, prefix: str) -> Any:
        """The store by which the process group has met, over a connection of its own where torch has that.

        None for a rank alone, and where the backend has no store.
        """
        if self.world_size == 1:
            return None
        try:
            store = self._dist.distributed_c10d._get_default_store()
        except Exception:
            return None
        if hasattr(store, "clone"):
            store = store.clone()
        return self._dist.PrefixStore(prefix, store)


def refuse_alone(folder: str | os.PathLike[str] | None) -> None:
    """Raises CheckpointError where another rank than the first would write into the job's folder without a process group.

    Whether it is one of a gang, or alone by intent, cannot be told then; a folder of its own (`folder`) says that it is alone.
    """
    several, first = os.environ.get("WORLD_SIZE", "1") != "1", os.environ.get("RANK", "0") == "0"
    if folder is None and several and not first and Ranks().world_size == 1 and os.environ.get("ORCH_CHECKPOINT_DIR"):
        raise CheckpointError(
            f"there are {os.environ['WORLD_SIZE']} ranks and no process group by which they could agree: call "
            "torch.distributed.init_process_group before, or give each rank a dir= of its own"
        )


def _given(told: list[Any]) -> list[Any]:
    for _, error in told:
        if error is not None:
            raise error
    return [value for value, _ in told]
