"""How a command ends when it cannot do what was asked: one sentence and the exit code of the contract."""

from __future__ import annotations

import click

from orchestrator.terminal import clean

FAILED, USAGE, NOT_FOUND, NOT_ALLOWED, UNREACHABLE, CONFLICT, TIMED_OUT = 1, 2, 3, 4, 6, 7, 124


class Fail(click.ClickException):
    """A sentence for the user, and the code that the process ends with."""

    def __init__(self, sentence: str, code: int) -> None:
        super().__init__(sentence)
        self.exit_code = code  # type: ignore[misc] # click declares it for the class

    def format_message(self) -> str:
        """Line by line, as it may name what others have chosen."""
        from cli.output import wrapped

        return wrapped("\n".join(map(clean, self.message.split("\n"))), err=True, room=len("Error: "))


class Unreachable(Fail):
    """The controller does not answer, or there is none."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, UNREACHABLE)
