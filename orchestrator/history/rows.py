"""Rows that wait to be written: those of many changes, a statement for each kind."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

from sqlalchemy import Connection, Executable


class Phase(IntEnum):
    """The order in which kinds of rows are written. Within a kind the order is that in which they came."""

    ATTEMPT_BEGINS = 0
    GPU_TAKEN = 1
    RUN_MOVES = 2
    ATTEMPT_CHANGES = 3
    GPU_GIVEN_BACK = 4
    EVENT = 5
    WAIT_FORGOTTEN = 6
    WAIT = 7
    NODE_TAKEN = 8
    NODE_GIVEN_BACK = 9


_BEGIN = {Phase.ATTEMPT_BEGINS, Phase.GPU_TAKEN}
_END = {Phase.ATTEMPT_CHANGES, Phase.GPU_GIVEN_BACK}


class Rows:
    """A place for rows until `flush`."""

    def __init__(self) -> None:
        self._of: dict[tuple[Phase, Executable], list[Mapping[str, Any]]] = {}
        self._phases: set[Phase] = set()

    def add(self, phase: Phase, statement: Executable, *rows: Mapping[str, Any]) -> None:
        self._of.setdefault((phase, statement), []).extend(rows)
        self._phases.add(phase)

    def take_over(self, later: Rows, connection: Connection) -> None:
        """Puts the rows of a later change behind these. What begins on a GPU that these give back makes them be written now."""
        if later._phases & _BEGIN and self._phases & _END:
            self.flush(connection)
        for (phase, statement), rows in later._of.items():
            self.add(phase, statement, *rows)

    def flush(self, connection: Connection) -> None:
        """Writes them. Raises IntegrityError where the database refuses one."""
        of, self._of, self._phases = self._of, {}, set()
        for (_, statement), rows in sorted(of.items(), key=lambda item: item[0][0]):
            connection.execute(statement, rows)
