"""What can go wrong with the history, each as one sentence for the user and the exit code of the command.

Imports no SQLAlchemy, so that a command can name these errors without paying for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.scheduling.run import Run


class StoreError(Exception):
    """The history could not do what was asked; nothing was changed. Its text is for the user."""

    exit_code = 6


class BadDatabaseUrl(StoreError):
    """The address names no database that orch can use."""

    exit_code = 2


class DatabaseUnreachable(StoreError):
    """There is no database there, or it does not answer, or it cannot be written."""


class DatabaseBusy(StoreError):
    """Somebody else held the database for longer than a writer waits."""


class DatabaseNewer(StoreError):
    """The database was written by a newer orch than this one."""

    exit_code = 8


class DatabaseOlder(StoreError):
    """The database awaits an upgrade, and was opened only for reading."""

    exit_code = 8


class DatabaseDamaged(StoreError):
    """What is there is not a whole database of orch's. It is left as it is."""

    exit_code = 8


class NoSuchRun(StoreError):
    exit_code = 3

    def __init__(self, run: int | str, where: str = "") -> None:
        super().__init__(f"{where}there is no run {run!r}." if where else f"There is no run {run}.")


class KeyUsed(StoreError):
    """A key that stands for one job came with another."""

    exit_code = 7

    def __init__(self, run: Run, key: str, what: Sequence[str]) -> None:
        """`what` are the keys of the job file in which the two differ."""
        differ = f" (another {', '.join(what)})" if what else ""
        super().__init__(
            f"The key {key!r} is that of run {run.id} ({run.label}), which is another job{differ}: "
            "give this one a key of its own."
        )


class NothingFollows(StoreError):
    """A submission is to follow a run that has failed or was cancelled."""

    exit_code = 7

    def __init__(self, run: Run, word: str) -> None:
        super().__init__(
            f"after: run {run.id} ({run.label}) {'has failed' if run.state == 'failed' else 'was cancelled'}, "
            f"so nothing that follows it can run: `orch retry {run.id}` first, or leave {word!r} out of after."
        )


class StaleEpoch(StoreError):
    """This writer is not the one whom the database knows as its controller; its write was refused."""

    exit_code = 7

    def __init__(self, held: int | None, current: int, owner: str | None) -> None:
        self.held, self.current = held, current
        mine = "it has claimed none" if held is None else f"it holds epoch {held}"
        super().__init__(f"Another controller ({owner or 'nobody yet'}, epoch {current}) owns the database: {mine}.")


class GroupUndone(StoreError):
    """The database refused one of several writes that shared a transaction, and none was made: each can be tried by itself."""


class DoubleBooked(StoreError):
    """A placement names a GPU (or CPU slot) that a live attempt, or one not yet known to be dead, still has."""

    exit_code = 7

    def __init__(self, run: int, taken: Sequence[tuple[str, int, int]]) -> None:
        self.taken = tuple(taken)
        """(node, gpu, the run that has it), for each that is not free."""
        names = ", ".join(f"{gpu} of {node} (run {holder})" for node, gpu, holder in self.taken)
        super().__init__(f"Run {run} cannot be placed: {len(self.taken)} of its GPUs are taken: {names}.")
