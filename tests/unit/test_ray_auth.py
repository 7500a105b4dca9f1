"""Whether a Ray head lets in everybody, as a head that answers like Ray's shows it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from orchestrator.control.ray_auth import CALL, ray_auth


@contextmanager
def head(code: grpc.StatusCode | None) -> Iterator[str]:
    """A server at whose door a request without a token is answered with `code`, or (None) let in."""

    def answer(_: bytes, context: Any) -> bytes:
        if code is not None:
            context.abort(code, "InvalidAuthToken: Authentication token is missing or incorrect")
        return b""

    service, method = CALL.strip("/").split("/")
    handlers = {method: grpc.unary_unary_rpc_method_handler(answer)}
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize(
    ("code", "said"),
    [(grpc.StatusCode.UNAUTHENTICATED, "token"), (None, "none"), (grpc.StatusCode.UNAVAILABLE, "unknown")],
    ids=str,
)
def test_the_door_says_whether_it_asks_for_a_token(code: grpc.StatusCode | None, said: str) -> None:
    with head(code) as address:
        assert ray_auth(address) == said


def test_where_nobody_answers_nothing_is_known() -> None:
    assert ray_auth("127.0.0.1:1", timeout_s=0.2) == "unknown"
