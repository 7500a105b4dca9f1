"""Which samples a rank draws, from any position on: the same ones that an unbroken run would have drawn."""

from __future__ import annotations

from typing import Any, Iterator


class Sampler:
    """An endless batch sampler for `DataLoader(dataset, batch_sampler=...)` whose position is saved and comes back.

    Every epoch shuffles all samples anew, by `seed` and the epoch's number alone; each step takes the next `batch_size` of them on
    every rank. What does not fill a step of all ranks is left out of its epoch. The position is counted in samples that were
    trained on, not in those that a loader has fetched ahead, and holds with another number of ranks too.

    `Saver` advances it where it is one of its parts; else call `advance` after each step.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        """`rank` and `world_size`: those of torch.distributed, or a rank alone."""
        from orchestrator.checkpoint.ranks import Ranks

        ranks = Ranks()
        self._rank = ranks.rank if rank is None else rank
        self._step = batch_size * (ranks.world_size if world_size is None else world_size)
        if samples < self._step:
            raise ValueError(f"{samples} samples do not fill one step of {self._step}")
        self._samples, self._batch_size, self._shuffle, self._seed = samples, batch_size, shuffle, seed
        self._epoch = self._drawn = 0

    def advance(self, steps: int = 1) -> None:
        """So many steps more have been trained."""
        for _ in range(steps):
            self._epoch, self._drawn = self._after(self._epoch, self._drawn)

    def _after(self, epoch: int, drawn: int) -> tuple[int, int]:
        return self._settled(epoch, drawn + self._step)

    def _settled(self, epoch: int, drawn: int) -> tuple[int, int]:
        return (epoch, drawn) if drawn + self._step <= self._samples else (epoch + 1, 0)

    def __iter__(self) -> Iterator[list[int]]:
        import torch

        epoch, drawn = self._epoch, self._drawn
        while True:
            if self._shuffle:
                order = torch.randperm(self._samples, generator=torch.Generator().manual_seed(self._seed + epoch))
            else:
                order = torch.arange(self._samples)
            of_epoch = epoch
            while epoch == of_epoch:
                first = drawn + self._rank * self._batch_size
                epoch, drawn = self._after(epoch, drawn)
                yield order[first : first + self._batch_size].tolist()

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "drawn": self._drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._epoch, self._drawn = self._settled(state["epoch"], state["drawn"])
