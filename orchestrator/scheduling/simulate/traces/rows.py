"""Delimited text with a line of titles, read row by row; mistakes are collected and said together."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from orchestrator.document import nearest, shown
from orchestrator.scheduling.simulate.traces.errors import TraceError

T = TypeVar("T")


class Rows:
    """The rows of a table; cells are asked for by title, whose case does not matter.

    A cell that is wrong is complained of and read as None; `finish()` raises what there was to complain of.
    """

    def __init__(self, text: str, source: str, delimiter: str | None = None) -> None:
        """Without a `delimiter` it is the comma, semicolon or tab that the first line has most of."""
        self.source, self.complaints = source, list[str]()
        if delimiter is None:
            delimiter = max(",;\t", key=next(filter(str.strip, text.splitlines()), "").count)
        lines = io.StringIO(text.removeprefix("\ufeff"), newline="")
        # Slurm quotes nothing: a quote in a job's name is one of its letters.
        if delimiter == "|":
            self._reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
        else:
            self._reader = csv.reader(lines, delimiter=delimiter, strict=True)
        self._position: dict[str, int] = {}
        self._width = 0
        self._row: list[str] = []
        for row in self._reader:
            if any(cell.strip() for cell in row):
                self._width = len(row)
                self._position = {title.strip().lower(): i for i, title in reversed(list(enumerate(row)))}
                break

    @property
    def titles(self) -> Sequence[str]:
        return sorted(self._position, key=self._position.__getitem__)

    def has(self, title: str) -> bool:
        return title.lower() in self._position

    def require(self, *titles: str) -> None:
        """Raises TraceError where one of them is missing."""
        missing = [title for title in titles if not self.has(title)]
        if missing:
            hints = f". {nearest(missing[0], self.titles)}" if self.titles else ""
            raise TraceError([f"{self.source}:1: has no column {', '.join(missing)}{hints}"])

    def __iter__(self) -> Iterator[None]:
        """Goes on to the next row that has anything in it."""
        try:
            for row in self._reader:
                if not any(cell.strip() for cell in row):
                    continue
                self._row = row
                if len(row) != self._width:
                    self.complain("", f"has {len(row)} fields and the line of titles {self._width}")
                    continue
                yield
        except csv.Error as error:
            self.complain("", str(error))

    def complain(self, title: str, message: str) -> None:
        self.complaints.append(f"{self.source}:{self._reader.line_num}: " + (f"{title}: " if title else "") + message)

    def finish(self) -> None:
        """Raises TraceError where anything was wrong."""
        if self.complaints:
            raise TraceError(self.complaints)

    def text(self, title: str) -> str:
        """The cell, '' where there is no such column."""
        position = self._position.get(title.lower())
        return "" if position is None else self._row[position].strip()

    def read(self, title: str, convert: Callable[[str], T]) -> T | None:
        """The cell, converted. What `convert` refuses with ValueError is complained of."""
        try:
            return convert(self.text(title))
        except ValueError as error:
            self.complain(title, f"{error}, not {shown(self.text(title))}")
            return None


def number(text: str) -> float:
    """A number that is not negative. ValueError."""
    try:
        value = float(text)
    except ValueError:
        raise ValueError("must be a number") from None
    if not math.isfinite(value) or value < 0:
        raise ValueError("must be a number of at least 0")
    return value


def signed(text: str) -> int:
    """A whole number, of either sign. ValueError."""
    return -whole(text[1:]) if text.startswith("-") else whole(text)


def whole(text: str) -> int:
    """A whole number that is not negative. ValueError."""
    value = number(text)
    if value != int(value):
        raise ValueError("must be a whole number")
    return int(value)
