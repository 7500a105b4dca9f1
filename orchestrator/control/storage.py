"""Whether the folder of checkpoints answers: a file system that stalls holds up whoever touches it, without an error."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from orchestrator.control.own_thread import in_own_thread

T = TypeVar("T")

ANSWER_S = 5.0
"""A file system that takes longer is called stalled."""
PREPARE_S = 20.0


class Stalled(Exception):
    """The file system has not answered; whatever was asked of it may still be done."""


async def in_time(work: Callable[[], T], what: str, timeout_s: float = PREPARE_S) -> T:
    """Does `work` in a thread that nobody waits for longer than so many seconds. Raises Stalled, and what the work raises."""
    try:
        return await in_own_thread(work, "storage", timeout_s)
    except TimeoutError:
        raise Stalled(f"{what} has not answered within {timeout_s:g} s: its file system is stalled") from None


class StorageWatch:
    """Asks the folder's file system again and again how much room it has, which no cache answers; one question at a time."""

    def __init__(self, folder: Path, monotonic: Callable[[], float]) -> None:
        self._folder, self._monotonic = folder, monotonic
        self._asked: float | None = None

    @property
    def stalled_s(self) -> float | None:
        """For how long the question that is open has been open, where that is too long; None where the storage answers."""
        if self._asked is None or (waited := self._monotonic() - self._asked) < ANSWER_S:
            return None
        return waited

    async def look(self) -> None:
        if self._asked is not None:
            return
        self._asked = self._monotonic()
        threading.Thread(target=self._ask, name="storage", daemon=True).start()

    def _ask(self) -> None:
        # That it is not there, or refuses, is an answer: what needs it says so.
        with suppress(OSError):
            os.statvfs(self._folder)
        self._asked = None
