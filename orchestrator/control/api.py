"""The controller's HTTP API: loopback, bearer token, JSON; docs/protocols.md lists the calls. What is around every call."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiohttp import web
from pydantic import ValidationError

from orchestrator.control.api_body import BODY_S
from orchestrator.control.api_call import CALL, record_of, uid_of
from orchestrator.control.api_changes import ChangesApi
from orchestrator.control.api_cluster import ClusterApi
from orchestrator.control.api_nodes import NodesApi
from orchestrator.control.api_runs import RunsApi
from orchestrator.control.api_submit import SubmitApi
from orchestrator.control.audit import AuditLog, Call
from orchestrator.control.code_store import CodeStore, CodeTooLarge
from orchestrator.control.controller import Controller
from orchestrator.control.guard import opened_by, refusal
from orchestrator.control.private_file import InsecureHome
from orchestrator.control.refused import Refused
from orchestrator.document import DocumentError
from orchestrator.history.errors import StoreError
from orchestrator.scheduling.lifecycle import IllegalTransition

log = logging.getLogger("orch.api")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

HTTP_OF_CODE = {2: 400, 3: 404, 4: 401, 5: 422, 6: 503, 7: 409, 8: 500}
BODY = 4 << 20
IDLE_S = 30.0
"""How long a connection may be open without a whole request on it."""
SILENT_S, LOOK_S = 8.0, 0.5
"""How long a call waits for the database: its caller gives up after 10 s, and is to hear why. And how often that is looked at."""
STREAMS = ("/logs", "/follow")
LONGEST_LINE = 64 << 10
"""A follower that comes back says where it was with every rank."""


class Api:
    """The routes over one controller."""

    def __init__(
        self,
        controller: Controller,
        code: CodeStore,
        token: Callable[[], str],
        status: Callable[[], dict[str, Any]],
        down: Callable[[], Awaitable[None]],
        metrics_token: Callable[[], str] | None = None,
        audit: AuditLog | None = None,
        doors: Sequence[dict[str, Any]] = (),
    ) -> None:
        """`token` opens everything, `metrics_token` /metrics alone; `audit` hears of what is changed and of who is not let in;
        `doors` are findings of the doctor about the cluster itself."""
        self._controller = controller
        self._token, self._metrics_token, self._audit = token, metrics_token, audit
        self._parts = (
            ClusterApi(controller, status, down, doors),
            NodesApi(controller),
            SubmitApi(controller, code),
            RunsApi(controller),
            ChangesApi(controller),
        )
        self._unanswered: set[asyncio.Task[web.StreamResponse]] = set()
        """What the database kept waiting for so long that its caller was told so."""

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard], client_max_size=BODY)
        for part in self._parts:
            app.add_routes(part.routes())
        app.on_response_prepare.append(_as_data)
        return app

    def runner(self) -> web.AppRunner:
        """The server: a connection on which no whole request comes is closed, and lines have an end."""
        return web.AppRunner(
            self.app(), access_log=None, shutdown_timeout=1, keepalive_timeout=IDLE_S, max_line_size=LONGEST_LINE
        )

    # -- around every call ---------------------------------------------------------------------------------------

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Headers and token are checked before anything is read; what goes wrong becomes a sentence and a code."""
        if (why := refusal(request.host, request.headers)) is not None:
            return self._refused(request, why, 403)
        if "%00" in request.raw_path:
            return _error(2, "a NUL byte in the address of the call")
        if request.path != "/healthz":
            try:
                allowed = self._may(request)
            except InsecureHome as error:
                return self._refused(request, str(error), 401)
            if not allowed:
                return self._refused(
                    request, "the token is missing or wrong: the controller's own is in ORCH_HOME/token", 401
                )
        if request.method in ("GET", "HEAD"):
            return await self._answered(request, handler)
        # Before the answer: whoever has it may hang up, and is nobody's connection then.
        CALL.set(call := Call(uid_of(request)))
        answer = await self._answered(request, handler)
        if self._audit is not None and not call.asks_only:
            self._audit.write(record_of(request, call, answer))
        return answer

    def _refused(self, request: web.Request, why: str, status: int) -> web.Response:
        answer = _error(4, why, status)
        if self._audit is not None:
            self._audit.refused(record_of(request, Call(uid_of(request)), answer))
        return answer

    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The handler's answer, or what is to be said where the database keeps it waiting: it goes on by itself then."""
        answering = asyncio.create_task(self._in_words(request, handler))
        try:
            while not (await asyncio.wait({answering}, timeout=LOOK_S))[0]:
                waits_s = self._controller.runtime.waits_s(answering)
                if waits_s >= SILENT_S and not request.path.endswith(STREAMS):
                    self._unanswered.add(answering)
                    answering.add_done_callback(self._unanswered.discard)
                    may = "" if request.method in ("GET", "HEAD") else "; what was asked may still be done once it does"
                    return _error(6, f"The database has not answered for {waits_s:.0f} s{may}")
        except asyncio.CancelledError:
            answering.cancel()
            raise
        return answering.result()

    async def _in_words(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except Refused as refusal:
            return _error(refusal.code, str(refusal))
        except ValidationError as error:
            return _error(
                2, "; ".join(f"{'.'.join(map(str, e['loc'])) or 'the body'}: {e['msg']}" for e in error.errors()[:10])
            )
        except DocumentError as error:
            return _error(2, str(error))
        except IllegalTransition as error:
            return _error(7, str(error))
        except StoreError as error:
            return _error(error.exit_code, str(error))
        except CodeTooLarge as error:
            return _error(2, str(error), 413)
        except TimeoutError:
            return _error(2, f"the body did not come within {BODY_S:.0f} s", 408)
        except web.HTTPException as error:
            return _error(2, f"{request.method} {request.path}: {error.reason}", error.status)
        except (ConnectionResetError, asyncio.CancelledError):
            raise
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            return _error(6, "the controller met an error of its own; its log says more", 500)

    def _may(self, request: web.Request) -> bool:
        tokens = [self._token()]
        if request.path == "/metrics" and self._metrics_token is not None:
            tokens.append(self._metrics_token())
        return opened_by(request.headers.get("Authorization", ""), tokens)


def _error(code: int, sentence: str, status: int | None = None) -> web.Response:
    return web.json_response({"error": sentence, "code": code}, status=status or HTTP_OF_CODE.get(code, 500))


async def _as_data(request: web.Request, response: web.StreamResponse) -> None:
    """No browser takes an answer for a page, whatever a name in it looks like."""
    response.headers["X-Content-Type-Options"] = "nosniff"
