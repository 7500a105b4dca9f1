"""What do the words of a call's address mean, and how are lines sent as they come? For every part of the HTTP API."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import datetime
from typing import Any

from aiohttp import web

from orchestrator.control.refused import Refused
from orchestrator.history.asking import moment


def number(text: str | None, name: str) -> int | None:
    if text is None or text in ("", "all"):
        return None
    if not text.isdecimal() or len(text) > 9:
        raise Refused(2, f"{name}: {text!r} is not a number")
    return int(text)


def seconds(text: str | None) -> float | None:
    if not text:
        return None
    with suppress(ValueError):
        if 0 <= (value := float(text)) < 1e10:
            return value
    raise Refused(2, f"since: {text!r} is not a number of seconds")


def since(text: str | None) -> datetime | None:
    try:
        return moment("since", text)
    except ValueError as error:
        raise Refused(2, str(error)) from None


async def stream(request: web.Request, objects: AsyncIterator[dict[str, Any] | None]) -> web.StreamResponse:
    """One JSON object a line as they come; None is a heartbeat, an empty line."""
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"})
    await response.prepare(request)
    with suppress(ConnectionResetError):
        async for value in objects:
            await response.write(b"\n" if value is None else json.dumps(value).encode() + b"\n")
        await response.write_eof()
    return response
