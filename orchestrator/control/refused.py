"""A request of a user that cannot be met."""

from __future__ import annotations


class Refused(Exception):
    """One sentence for the user; `code` is the exit code that the contract gives it."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
