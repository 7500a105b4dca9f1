"""Whom the API answers at all: what a request's headers must and must not say, whatever it asks for."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
FROM_A_PAGE = ("Origin", "Sec-Fetch-Site")
"""A browser adds them to what a page asks for, and no page can leave them out. orch has no pages."""


def refusal(host: str, headers: Mapping[str, str]) -> str | None:
    """Why a request is not even looked at; None where it is.

    A page in a browser can make it send requests to the loopback, by a name of the page's own too (DNS rebinding;
    CVE-2025-62593 is that of Ray's dashboard).
    """
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    if name.strip("[]") not in LOOPBACK:
        return f"the Host header {host[:80]!r} is not this machine's loopback"
    for header in FROM_A_PAGE:
        # "none": a person has typed the address.
        if headers.get(header, "none") != "none":
            return f"a page in a browser has sent this ({header}: {headers[header][:80]!r}): the API is not for pages"
    return None


def opened_by(authorization: str, tokens: Iterable[str]) -> bool:
    """Whether the header has one of the tokens; how long that takes says nothing of how much of it was right."""
    given = authorization.encode("utf-8", "surrogateescape")
    return any(hmac.compare_digest(given, f"Bearer {token}".encode()) for token in tokens)
