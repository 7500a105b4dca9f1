"""Ray's calls, made so that a head which is away holds nobody up: Ray waits for it without an end and without an error."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from orchestrator.control.backend import ClusterLost
from orchestrator.control.own_thread import in_own_thread

T = TypeVar("T")

KNOCK_S = 2.0
CALL_S = 10.0
MOST = 8
"""Calls under way, those included that nobody waits for any more: a head that hangs must not take a thread each second."""


class RayCalls:
    """Calls to the Ray cluster whose head is at `address`, each in a thread of its own.

    A thread that Ray holds up lives until the head answers again.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._under_way = 0

    async def __call__(self, call: Callable[..., T], *arguments: Any, timeout_s: float = CALL_S) -> T:
        """What the call gives or raises. Raises ClusterLost where the head does not answer; the call may still be carried out."""
        await self._knock()
        if self._under_way >= MOST:
            raise ClusterLost(f"Ray's head at {self._address} has left {MOST} calls without an answer")
        self._under_way += 1
        try:
            return await in_own_thread(partial(call, *arguments), "ray", timeout_s, self._returned)
        except TimeoutError:
            raise ClusterLost(f"Ray's head at {self._address} has not answered within {timeout_s:g} s") from None

    def _returned(self) -> None:
        self._under_way -= 1

    async def _knock(self) -> None:
        """Where nothing listens, Ray need not be asked: the usual case, and it costs no thread."""
        host, _, port = self._address.rpartition(":")
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(host.strip("[]"), int(port)), KNOCK_S)
        except OSError as error:  # a timeout is one too
            why = f" ({os.strerror(error.errno).lower()})" if error.errno else ""
            raise ClusterLost(f"Ray's head at {self._address} does not answer{why}") from None
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
