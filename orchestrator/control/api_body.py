"""Bodies of the HTTP API's calls: JSON, with no key that the call does not know."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict

from orchestrator.control.refused import Refused


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


async def body_of(request: web.Request) -> Any:
    """The JSON of the body; an empty one where there is none. Raises Refused(2)."""
    raw = await request.read()
    try:
        return json.loads(raw) if raw else {}
    except (ValueError, RecursionError):
        raise Refused(2, "the body is not JSON") from None
