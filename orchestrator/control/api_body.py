"""Bodies of the HTTP API's calls: JSON in time, with no key that the call does not know, and values that can be passed on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, TypeVar

from aiohttp import web
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from orchestrator.control.api_call import NAME_OF_USER
from orchestrator.control.refused import Refused
from orchestrator.document import shown

BODY_S = 30.0
"""How long a body may take to come, or each part of a stream."""
LONGEST_SECRET = 100_000
"""Linux takes 128 KiB of a variable, its name included."""


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


B = TypeVar("B", bound=Body)


def _user_name(name: str) -> str:
    if not NAME_OF_USER.fullmatch(name):
        raise ValueError(f"{shown(name)} is no name of a user")
    return name


def _secret(value: str) -> str:
    """What the kernel takes as one variable of a process. The value is in no message."""
    if "\0" in value:
        raise ValueError("has a NUL byte in its value, and a variable cannot")
    if len(value.encode()) > LONGEST_SECRET:
        raise ValueError(f"has a value of more than {LONGEST_SECRET:,} bytes, and a variable cannot")
    return value


UserName = Annotated[str, AfterValidator(_user_name)]
Secret = Annotated[str, AfterValidator(_secret)]


async def body_of(request: web.Request, kind: type[B]) -> B:
    """The body; an empty one where there is none. Raises Refused(2), ValidationError, and TimeoutError after BODY_S."""
    async with asyncio.timeout(BODY_S):
        raw = await request.read()
    return _read(kind, raw or b"{}")


def _read(kind: type[B], raw: bytes) -> B:
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        if error.errors()[0]["type"] != "json_invalid":
            raise
    # Pydantic's own parser takes no lone surrogates, which come from names of files: what is wrong with one is said by its key.
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise Refused(2, "the body is not JSON") from None
    return kind.model_validate(body)


async def chunks_of(request: web.Request) -> AsyncIterator[bytes]:
    """The body as it comes. Raises TimeoutError where nothing comes for BODY_S."""
    while True:
        async with asyncio.timeout(BODY_S):
            chunk = await request.content.read(1 << 20)
        if not chunk:
            return
        yield chunk
