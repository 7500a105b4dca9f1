"""Why a file about hardware cannot be read: the line and a sentence."""

from __future__ import annotations


class FormatError(Exception):
    """A file that is not what it should be, is cut off, or contradicts itself; nothing was taken from it."""

    def __init__(self, line: int | None, message: str, path: str | None = None) -> None:
        self.line, self.message, self.path = line, message, path
        where = "" if path is None else f"{path}: "
        super().__init__(f"{where}{message}" if line is None else f"{where}line {line}: {message}")

    def at(self, path: str) -> FormatError:
        """The same, with the file that it is about."""
        return FormatError(self.line, self.message, path)
