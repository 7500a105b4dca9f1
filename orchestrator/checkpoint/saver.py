"""A training loop's checkpoints: goes on from the newest, saves every so many steps, and once more when told to stop."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Sequence
from typing import Any, Callable, Iterator

from orchestrator.checkpoint import folder as folders
from orchestrator.checkpoint.folder import CheckpointError
from orchestrator.checkpoint.ranks import Ranks, refuse_alone
from orchestrator.checkpoint.reading import Loaded, load
from orchestrator.checkpoint.signals import Signals
from orchestrator.checkpoint.state import has_state, sharded_parts
from orchestrator.checkpoint.stopping import Stopping
from orchestrator.checkpoint.writing import KEEP, save

log = logging.getLogger("orchestrator.checkpoint")


class Stopped(SystemExit):
    """The script was told to stop, by a signal, and has saved. Left alone, it ends the script with exit code 128 + signal."""

    def __init__(self, step: int, signal_number: int) -> None:
        super().__init__(128 + signal_number)
        self.step = step
        """How many steps were done, after which all ranks have stopped."""


class Saver:
    """See the package. Made after `init_process_group`, of the same parts in the same order on every rank."""

    def __init__(
        self,
        *,
        every: int | None = None,
        keep: int = KEEP,
        dir: str | os.PathLike[str] | None = None,  # noqa: A002
        rng: bool = False,
        sharded: bool | None = None,
        map_location: Any = "cpu",
        signals: Sequence[int] = (signal.SIGTERM,),
        **parts: Any,
    ) -> None:
        """`every`: a save after so many steps; without it, one at the end and one when told to stop.

        `parts` are modules, optimizers, and whatever else has `state_dict` and `load_state_dict`. The others are `save`'s and
        `load`'s. Without a folder (no `dir`, no `checkpoint:`) nothing is saved, and all ranks still stop after the same step.
        """
        for name, part in parts.items():
            if not has_state(part):
                raise TypeError(f"{name}: a {type(part).__name__} has no state_dict and load_state_dict")
        if every is not None and every < 1:
            raise ValueError(f"every must be at least 1, not {every}")
        refuse_alone(dir)
        self._parts, self._every, self._keep, self._sharded = parts, every, keep, sharded
        self._folder, self._rng, self._map_location = folders.folder_of(dir), rng, map_location
        self._ranks = Ranks()
        self._signals = Signals(signals)
        self._stopping = Stopping(self._ranks, self._signals)
        self._advance: list[Callable[[], None]] = [part.advance for part in parts.values() if hasattr(part, "advance")]
        self._saved: int | None = None
        self._resumed = False
        self.loaded: Loaded | None = None
        """What `resume` has read; None where it began anew."""

    def __enter__(self) -> Saver:
        if threading.current_thread() is not threading.main_thread():
            log.warning("signals reach the main thread alone, and this is another: no last save when told to stop")
        elif not self._stopping.possible:
            log.warning("the ranks have no store by which to agree: no last save when told to stop")
        else:
            self._signals.catch(self._stopping.tell)
        self._stopping.begin()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stopping.end()
        self._signals.release()

    def resume(self) -> int:
        """Gives every part what the newest whole checkpoint holds of it; how many steps are done, 0 where there is none."""
        if not self._resumed:
            self.loaded = load(self._parts, dir=self._folder, map_location=self._map_location, rng=self._rng)
            self._resumed = True
            done = self._saved = self.loaded.step if self.loaded is not None else None
            if self._folder is not None:
                self._ranks.first(self._claim)
            self._stopping.resumed(done or 0)
        return self.loaded.step if self.loaded else 0

    def _claim(self) -> None:
        """From now on an attempt before this one, which may live somewhere yet, adds nothing."""
        assert self._folder is not None
        try:
            folders.claim(self._folder)
        except OSError as error:
            raise CheckpointError(f"{self._folder} cannot be written: {error.strerror or error}") from None

    def steps(self, total: int) -> Iterator[int]:
        """The numbers of the steps that are left to do, from 0; after each comes what `step` does, after the last a save."""
        # Now, and not at the first number: a loader that is iterated beside this fetches ahead from where its sampler is.
        return self._steps(self.resume(), total)

    def _steps(self, first: int, total: int) -> Iterator[int]:
        number = None
        for number in range(first, total):
            yield number
            self.step(number)
        if number is not None and self._saved != total:
            self.save(total)

    def step(self, number: int) -> None:
        """Step `number`, counted from 0, is done, on every rank: saves where that is due. Raises Stopped.

        Raises what `save` does.
        """
        for advance in self._advance:
            advance()
        done = number + 1
        if self._stopping.reached(done):
            self._stop(done)
        elif self._every is not None and done % self._every == 0:
            self.save(done)

    def _stop(self, done: int) -> None:
        try:
            # Where ranks are missing no part can be written together; a whole checkpoint needs rank 0 alone.
            if self._saved != done and (self._stopping.agreed or not self._together):
                self.save(done)
        finally:
            self._stopping.leave_together()
        raise Stopped(done, self._signals.first or self._signals.numbers[0])

    @property
    def _together(self) -> bool:
        return self._rng or bool(sharded_parts(self._parts, always=self._sharded is True))

    def save(self, done: int) -> None:
        """Saves now, with `done` steps done; every rank calls it. Nothing where there is no folder. Raises what `save` does."""
        if self._folder is not None:
            save(self._parts, step=done, dir=self._folder, keep=self._keep, rng=self._rng, sharded=self._sharded)
        self._saved = done
