"""A call that may hang for ever, in a thread of its own: asyncio's own threads are few, and others need them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

T = TypeVar("T")


async def in_own_thread(
    work: Callable[[], T], name: str, timeout_s: float, returned: Callable[[], None] = lambda: None
) -> T:
    """What `work` gives or raises; TimeoutError where it takes longer, and then goes on for as long as it likes.

    `returned` is called in this loop when it has ended, however long that took.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def finish(tell: Callable[[], None]) -> None:
        returned()
        if not done.done():
            tell()

    def run() -> None:
        try:
            tell = partial(done.set_result, work())
        except BaseException as error:
            tell = partial(done.set_exception, error)
        with suppress(RuntimeError):  # the loop has been closed meanwhile
            loop.call_soon_threadsafe(finish, tell)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await asyncio.wait_for(done, timeout_s)
