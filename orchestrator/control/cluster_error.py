"""What keeps a cluster from being brought up or down."""

from __future__ import annotations


class ClusterError(Exception):
    """The cluster could not be brought up or down; `code` is the exit code."""

    def __init__(self, sentence: str, code: int = 6) -> None:
        super().__init__(sentence)
        self.code = code
