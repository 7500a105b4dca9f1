"""Several calls at once, of which there is most often one: most gangs are on one node."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def together(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """As `asyncio.gather`. One call alone is awaited where it is: a task for it costs more than most calls do."""
    waiting = list(calls)
    return [await waiting[0]] if len(waiting) == 1 else await asyncio.gather(*waiting)
