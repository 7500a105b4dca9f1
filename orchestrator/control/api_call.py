"""Who makes a call to the HTTP API and what for: gathered while it is answered, for the audit log."""

from __future__ import annotations

import json
import re
from asyncio import BaseTransport
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

from aiohttp import web

from orchestrator.control.audit import Call, peer_uid
from orchestrator.control.refused import Refused
from orchestrator.document import shown

CALL: ContextVar[Call] = ContextVar("call")
"""The call that this task answers."""
_UIDS: WeakKeyDictionary[BaseTransport, int] = WeakKeyDictionary()
NAME_OF_USER = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]{1,128}")


def by_of(request: web.Request) -> str | None:
    """Who asks, as the caller says. Raises Refused for what is no name."""
    by = request.query.get("by")
    if by is not None and not NAME_OF_USER.fullmatch(by):
        raise Refused(2, f"by: {shown(by)} is no name of a user")
    CALL.get().user = by
    return by


def uid_of(request: web.Request) -> int | None:
    """The user at the other end of the connection, of which the kernel is asked once."""
    transport = request.transport
    if transport is None:
        return None
    if (uid := _UIDS.get(transport)) is None:
        uid = peer_uid(transport.get_extra_info("peername"), transport.get_extra_info("sockname"))
        if uid is not None:
            _UIDS[transport] = uid
    return uid


def record_of(request: web.Request, call: Call, answer: web.StreamResponse) -> dict[str, Any]:
    wrong = (
        json.loads(answer.text or "{}").get("error")
        if answer.status >= 400 and isinstance(answer, web.Response)
        else None
    )
    return {
        "user": call.user,
        "uid": call.uid,
        "call": f"{request.method} {request.path}",
        "run": call.run,
        "said": call.said,
        "status": answer.status,
        "error": wrong,
    }
