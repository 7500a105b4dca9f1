"""Signals that a thread hears of at once, whatever the main thread is held up in, and that a forked child has not inherited.

Python runs a signal's handler in the main thread between two of its instructions: in a collective that waits for a dead rank there
are none. What it does at once is to write the signal's number to a descriptor (signal.set_wakeup_fd).
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Callable

_listening: list[int] = []
"""The descriptor that is set in this process."""


def _forget() -> None:
    """A child (a loader's worker) would write into what its parent reads."""
    if _listening:
        _listening.clear()
        with suppress(ValueError):
            signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget)


class Signals:
    """Of the main thread, between `catch` and `release`."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers = tuple(numbers)
        self.first = 0
        """The number of the first that came, where one did."""
        self._before: dict[int, Any] = {}
        self._hear: socket.socket | None = None
        self._say: socket.socket | None = None
        self._pid = os.getpid()

    def catch(self, told: Callable[[], None]) -> None:
        """Has `told` called in the main thread for each, and before that the handler that was there."""

        def handler(number: int, frame: Any) -> None:
            before = self._before.get(number)
            if os.getpid() != self._pid:
                # A forked child: there it is as it was before.
                signal.signal(number, before if before is not None else signal.SIG_DFL)
                os.kill(os.getpid(), number)
                return
            self.first = self.first or number
            told()
            if callable(before):
                before(number, frame)

        self._pid = os.getpid()
        self._before = {number: signal.signal(number, handler) for number in self.numbers}
        self._hear, self._say = socket.socketpair()
        self._hear.setblocking(False)
        self._say.setblocking(False)
        before = signal.set_wakeup_fd(self._say.fileno(), warn_on_full_buffer=False)
        if before == -1:
            _listening.append(self._say.fileno())
        else:
            signal.set_wakeup_fd(before)  # an event loop's: then it is heard when the main thread comes to it

    def release(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}
        if self._say is not None and self._say.fileno() in _listening:
            signal.set_wakeup_fd(-1)
            _listening.clear()
        for end in (self._hear, self._say):
            if end is not None:
                end.close()
        self._hear = self._say = None

    def wait(self, seconds: float) -> bool:
        """Waits so long for a signal, or until `wake`; whether one came. For one other thread."""
        hear = self._hear
        if hear is None:
            time.sleep(seconds)
            return False
        if not select.select([hear], [], [], seconds)[0]:
            return False
        return bool(set(hear.recv(256)) & set(self.numbers))

    def wake(self) -> None:
        if self._say is not None:
            with suppress(OSError):
                self._say.send(b"\0")
