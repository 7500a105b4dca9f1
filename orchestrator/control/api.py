"""The controller's HTTP API: loopback, bearer token, JSON; docs/protocols.md lists the calls."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

from aiohttp import web
from pydantic import Field, ValidationError

from orchestrator.checks import interpreter
from orchestrator.control.api_body import BODY_S, Body, Secret, UserName, body_of, chunks_of
from orchestrator.control.api_call import CALL, by_of, record_of, uid_of
from orchestrator.control.api_nodes import NodesApi, with_health
from orchestrator.control.arrays import array_json, queue_rows
from orchestrator.control.audit import AuditLog, Call
from orchestrator.control.code_store import CodeStore, CodeTooLarge
from orchestrator.control.controller import Controller
from orchestrator.control.follow import Positions, follow, kept_lines, log_lines
from orchestrator.control.guard import opened_by, refusal
from orchestrator.control.metrics import CONTENT_TYPE, exposition
from orchestrator.control.private_file import InsecureHome
from orchestrator.control.refused import Refused
from orchestrator.control.top import top
from orchestrator.document import DocumentError
from orchestrator.hardware.as_json import to_json
from orchestrator.hardware.draw import draw_node
from orchestrator.history import render
from orchestrator.history.asking import asked, moment
from orchestrator.history.benches import BenchFilter
from orchestrator.history.errors import StoreError
from orchestrator.jobfile import parse_job
from orchestrator.placement.draw import draw_free
from orchestrator.scheduling.lifecycle import IllegalTransition
from orchestrator.scheduling.run import Array, Code, NewRun
from orchestrator.spec import JobSpec

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


class CodeBody(Body):
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    git: Annotated[str, Field(pattern="^[0-9a-f]{1,64}$")] | None = None
    dirty: bool | None = None


class SubmitBody(Body):
    spec: JobSpec
    code: CodeBody | None = None
    workdir: Annotated[str, Field(max_length=4096, pattern=r"^[^\x00]*$")] = ""
    user: UserName
    secrets: dict[str, Secret] = {}
    key: Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+$")] | None = None
    dry_run: bool = False


class CheckBody(Body):
    text: Annotated[str, Field(max_length=64 * 1024)]
    filename: Annotated[str, Field(max_length=4096)]
    overrides: Annotated[list[str], Field(max_length=256)] = []


class RetryBody(Body):
    secrets: dict[str, Secret] = {}


class SetBody(Body):
    changes: dict[str, Annotated[str, Field(max_length=256)]]


class DownBody(Body):
    force: bool = False


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
        self._controller, self._code, self._token, self._status, self._down = controller, code, token, status, down
        self._metrics_token, self._audit, self._doors = metrics_token, audit, doors
        self._unanswered: set[asyncio.Task[web.StreamResponse]] = set()
        """What the database kept waiting for so long that its caller was told so."""

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard], client_max_size=BODY)
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/metrics", self._metrics),
                web.get("/api/v1/status", self._get_status),
                web.head("/api/v1/code/{sha}", self._has_code),
                web.put("/api/v1/code/{sha}", self._put_code),
                web.post("/api/v1/check", self._check),
                web.post("/api/v1/runs", self._submit),
                web.get("/api/v1/runs", self._runs),
                web.get("/api/v1/compare", self._compare),
                web.get("/api/v1/runs/{ref}", self._show),
                web.post("/api/v1/runs/{ref}/cancel", self._cancel),
                web.post("/api/v1/runs/{ref}/retry", self._retry),
                web.post("/api/v1/runs/{ref}/set", self._set),
                web.get("/api/v1/runs/{ref}/why", self._why),
                web.get("/api/v1/runs/{ref}/logs", self._logs),
                web.get("/api/v1/runs/{ref}/report", self._run_report),
                web.get("/api/v1/report", self._cluster_report),
                web.get("/api/v1/runs/{ref}/follow", self._follow),
                web.get("/api/v1/benches", self._benches),
                *NodesApi(self._controller).routes(),
                web.get("/api/v1/topo", self._topo),
                web.get("/api/v1/top", self._top),
                web.get("/api/v1/doctor", self._doctor),
                web.post("/api/v1/down", self._go_down),
            ]
        )
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
            return _error(2, "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:10]))
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

    # -- the cluster ---------------------------------------------------------------------------------------------

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.json_response({"ok": True, "cluster": self._cluster()})

    async def _metrics(self, request: web.Request) -> web.Response:
        controller = self._controller
        busy, live, waiting = await controller.busy(), await controller.live(), await controller.waiting()
        nodes = controller.roster.nodes.values()
        pace = controller.gangs.measuring.live
        counts, now, care = controller.runtime.counts, controller.runtime.now(), controller.care
        text = exposition(nodes, busy, live, waiting, counts, now, pace, care)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})

    async def _get_status(self, request: web.Request) -> web.Response:
        nodes = [node for node in self._controller.roster.nodes.values() if node.up]
        busy = await self._controller.busy()
        gpus = [node for node in nodes if node.facts.device == "cuda"]
        counts = {
            "nodes": len(nodes),
            "gpus": {
                "total": sum(node.facts.total for node in gpus),
                "busy": sum(len(busy.get(node.facts.name, {})) for node in gpus),
            },
            "cpu_slots": {
                "total": sum(n.facts.total for n in nodes if n.facts.device == "cpu"),
                "busy": sum(len(busy.get(n.facts.name, {})) for n in nodes if n.facts.device == "cpu"),
            },
        }
        alarms = [
            {"kind": alarm.kind, "since": render.time_json(alarm.since), "text": alarm.text}
            for alarm in self._controller.runtime.alarms
        ]
        own = {"cluster": self._cluster(), "storage": self._storage(), "alarms": alarms}
        return web.json_response(self._status() | own | counts)

    def _storage(self) -> dict[str, Any]:
        stalled_s = self._controller.storage.stalled_s
        if stalled_s is None:
            return {"state": "up"}
        return {
            "state": "stalled",
            "for_s": round(stalled_s, 1),
            "folder": str(self._controller.runtime.settings.storage),
        }

    def _cluster(self) -> dict[str, Any]:
        away = self._controller.roster.away
        if away is None:
            return {"state": "up"}
        for_s = self._controller.runtime.monotonic() - away.since
        return {"state": "lost", "for_s": round(for_s, 1), "why": away.why}

    async def _top(self, request: web.Request) -> web.Response:
        return web.json_response(await top(self._controller))

    async def _topo(self, request: web.Request) -> web.Response:
        """The tree that placement sees, and who holds what of it."""
        inventory, busy = self._controller.roster.inventory, await self._controller.busy()
        cluster = inventory.topology.cluster
        answer = to_json(cluster) | {
            "busy": {name: {str(gpu): run for gpu, run in held.items()} for name, held in busy.items()},
            "notes": [*cluster.notes, *map(str, inventory.disagreements)],
            "absent": list(inventory.absent),
            "drawing": draw_free(self._controller.roster.free(busy), busy),
        }
        if (name := request.query.get("node")) is not None:
            known = next((node for node in cluster.nodes if node.name == name), None)
            if known is None:
                raise Refused(3, f"no such node: {name!r}")
            answer["drawing"] = draw_node(cluster, known)
        return web.json_response(answer)

    async def _doctor(self, request: web.Request) -> web.Response:
        """The version matrix over the nodes, and what will go wrong."""
        python, node = request.query.get("python"), request.query.get("node")
        try:
            answer = await self._controller.surveys.doctor(node, None if python is None else interpreter(python))
        except ValueError as error:
            raise Refused(2, f"python: {error}") from None
        except KeyError:
            raise Refused(3, f"no such node: {node!r}") from None
        answer["findings"] = [*self._doors, *answer["findings"]]
        return web.json_response(with_health(answer, self._controller.care.for_doctor(node)))

    async def _go_down(self, request: web.Request) -> web.Response:
        body, _ = DownBody.model_validate(await body_of(request)), by_of(request)
        live = await self._controller.live()
        if live and not body.force:
            names = ", ".join(f"{run.id} ({run.name})" for run in live[:5])
            more = f" and {len(live) - 5} more" if len(live) > 5 else ""
            count = "1 run lives" if len(live) == 1 else f"{len(live)} runs live"
            raise Refused(7, f"{count}: {names}{more}; cancel them, or use --force")
        # What waits would take the places that become free, on nodes whose launchers are told to end.
        self._controller.start_no_more()
        for run in await self._controller.live():
            await self._controller.cancel(str(run.id), by="down")
        await self._down()
        return web.json_response({"ok": True})

    # -- code ----------------------------------------------------------------------------------------------------

    async def _has_code(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self._code.wanted(request.match_info["sha"]) else 404)

    async def _put_code(self, request: web.Request) -> web.Response:
        try:
            await self._code.put(request.match_info["sha"], chunks_of(request))
        except ValueError as error:
            raise Refused(2, str(error)) from None
        return web.json_response({"ok": True}, status=201)

    # -- runs ----------------------------------------------------------------------------------------------------

    async def _check(self, request: web.Request) -> web.Response:
        """A job file's text as the spec that it means: a command need not load the checker for it."""
        CALL.get().asks_only = True
        body = CheckBody.model_validate(await body_of(request))
        spec = await asyncio.to_thread(parse_job, body.text, body.filename, body.overrides)
        return web.json_response({"spec": spec.model_dump(mode="json")})

    async def _submit(self, request: web.Request) -> web.Response:
        body = SubmitBody.model_validate(await body_of(request))
        call = CALL.get()
        call.user, call.asks_only = body.user, body.dry_run
        if body.dry_run:
            return web.json_response(await self._controller.dry_run(body.spec, body.user))
        if body.code is not None and not self._code.has(body.code.sha256):
            raise Refused(2, f"the snapshot {body.code.sha256[:12]} was not sent")
        code = Code(body.code.sha256, body.code.git, body.code.dirty) if body.code else None
        new = NewRun(body.spec, body.user, code, body.workdir, body.key)
        run, created = await self._controller.submit(new, body.secrets)
        call.run, call.said = run.id, run.name
        notices = self._controller.notices(body.spec)
        if created and (twin := self._controller.twin_of(run)) is not None:
            ago = (run.submitted_at - twin.submitted_at).total_seconds()
            notices.append(
                f"run {twin.id} is the same job, submitted {ago:.0f} s before: `orch cancel {run.id}` if once was meant"
            )
        answer = {"id": run.id, "name": run.name, "state": run.state, "notices": notices}
        if run.element is not None:
            array = await self._controller.find_array(f"{run.id}[]")
            assert array is not None
            answer |= {"array": {"id": array.ref, "first": array.runs[0], "last": array.runs[-1]}}
        return web.json_response(answer, status=201 if created else 200)

    async def _runs(self, request: web.Request) -> web.Response:
        if request.query.get("live") == "1":
            return web.json_response(await self._live(request))
        given = {name: request.query.getall(name) for name in request.query}
        best = _number(request.query.get("best"), "best")
        by = given.pop("by", [""])[-1] if best is not None else ""
        try:
            question = asked(given)
        except ValueError as error:
            raise Refused(2, str(error)) from None
        if question.array is not None:
            array = await self._controller.find_array(question.array)
            if array is None:
                raise Refused(3, f"no such array: {question.array!r}")
            if best is not None:
                found = await self._controller.best(array, by, best)
                return web.json_response([render.list_json(run) | {"metrics": metrics} for run, metrics in found])
            question = question.of_array(array.runs)
        if question.by or question.columns:
            try:
                return web.json_response(await self._controller.asked(question))
            except ValueError as error:
                raise Refused(2, str(error)) from None
        return web.json_response([render.list_json(run) for run in await self._controller.runs(question.wanted)])

    async def _live(self, request: web.Request) -> list[dict[str, Any]]:
        """What runs, then what waits in its order; with `arrays=1` an array is one row."""
        controller, limit = self._controller, _number(request.query.get("limit"), "limit")
        live, waiting = await controller.live(), controller.queue.waiting()
        if request.query.get("arrays") == "1":
            arrays = controller.runtime.book.arrays
            counts = {array.id: await controller.counts(array) for array in arrays.values()}
            return queue_rows(live, waiting, arrays, counts, controller.with_reason, limit)
        rows = [render.list_json(run) | {"position": None} for run in live[:limit]]
        left = None if limit is None else limit - len(rows)
        shown = enumerate(map(controller.with_reason, waiting[:left]), 1)
        return rows + [render.list_json(run) | {"position": i} for i, run in shown]

    async def _show(self, request: web.Request) -> web.Response:
        ref = request.match_info["ref"]
        if (array := await self._controller.find_array(ref)) is not None:
            return web.json_response(await self._array(array) | {"spec": array.spec.model_dump(mode="json")})
        run = await self._controller.find(ref)
        sizes = await self._controller.scaling(run.name)
        answer = render.show_json(run) | {"scaling": render.scaling_json(sizes)}
        if request.query.get("like") == "1":
            answer["compared"] = await self._controller.against_its_like(run)
        return web.json_response(answer)

    async def _compare(self, request: web.Request) -> web.Response:
        return web.json_response(await self._controller.compare(request.query.getall("run", [])))

    async def _array(self, array: Array) -> dict[str, Any]:
        first = await self._controller.find(str(array.id))
        after = [asdict(need) for need in first.after]
        return array_json(array, await self._controller.counts(array), first) | {"after": after}

    async def _cancel(self, request: web.Request) -> web.Response:
        ref, by = request.match_info["ref"], by_of(request)
        if (array := await self._controller.find_array(ref)) is not None:
            ended = await self._controller.cancel_array(array, by)
            answer = await self._array(array) | {"runs": ended}
            return web.json_response(answer | ({} if ended else {"already": True}))
        run, already = await self._controller.cancel(ref, by=by)
        CALL.get().run = run.id
        answer = {"id": run.id, "name": run.name, "state": run.state}
        return web.json_response(answer | ({"already": True} if already else {}))

    async def _retry(self, request: web.Request) -> web.Response:
        body = RetryBody.model_validate(await body_of(request))
        ref, by = request.match_info["ref"], by_of(request)
        if (array := await self._controller.find_array(ref)) is not None:
            again = await self._controller.retry_array(array, body.secrets, by)
            return web.json_response(await self._array(array) | {"runs": again})
        run = await self._controller.retry(ref, body.secrets, by=by)
        CALL.get().run = run.id
        return web.json_response({"id": run.id, "name": run.name, "state": run.state})

    async def _set(self, request: web.Request) -> web.Response:
        body = SetBody.model_validate(await body_of(request))
        ref = request.match_info["ref"]
        CALL.get().said = ", ".join(f"{key}={value}" for key, value in body.changes.items())
        runs = await self._controller.change(ref, body.changes, by=by_of(request))
        if (array := await self._controller.find_array(ref)) is not None:
            return web.json_response(await self._array(array) | {"runs": len(runs)})
        return web.json_response({"id": runs[0].id, "name": runs[0].name, "state": runs[0].state})

    async def _why(self, request: web.Request) -> web.Response:
        ref = request.match_info["ref"]
        if (array := await self._controller.find_array(ref)) is not None:
            raise Refused(2, f"{array.name} is an array of {array.size:,} runs: name one, such as {array.name}[0]")
        return web.json_response(await self._controller.why(ref))

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        run = await self._controller.find(request.match_info["ref"])
        query = request.query
        logs = self._controller.logs
        kept = {"nccl": logs.nccl, "stacks": logs.stacks}
        if (wanted := next((name for name in kept if query.get(name) == "1"), None)) is not None:
            if wanted == "stacks":
                await self._controller.take_stacks(run, _number(query.get("attempt"), "attempt"))
            said = kept_lines(
                kept[wanted],
                run,
                rank=_number(query.get("rank"), "rank"),
                attempt=_number(query.get("attempt"), "attempt"),
                positions=Positions.parse(query.get("from", "")),
            )
            return await _stream(request, said)
        lines = log_lines(
            self._controller,
            run,
            rank=_number(query.get("rank"), "rank"),
            attempt=_number(query.get("attempt"), "attempt"),
            since_s=_seconds(query.get("since")),
            positions=Positions.parse(query.get("from", "")),
            keep_on=query.get("follow") == "1",
        )
        return await _stream(request, lines)

    async def _run_report(self, request: web.Request) -> web.Response:
        """What the run's page is drawn from."""
        return web.json_response(await self._controller.run_pictured(request.match_info["ref"]))

    async def _cluster_report(self, request: web.Request) -> web.Response:
        """What the cluster's page is drawn from: of the time since then."""
        return web.json_response(await self._controller.cluster_pictured(_since(request.query.get("since"))))

    async def _benches(self, request: web.Request) -> web.Response:
        """Results of `orch bench`, oldest first."""
        query = request.query
        wanted = BenchFilter(
            runs=tuple(number for text in query.getall("run", []) if (number := _number(text, "run")) is not None),
            since=_since(query.get("since")),
            nodes=frozenset(query.getall("node", [])),
            collectives=tuple(query.getall("collective", [])),
            backends=tuple(query.getall("backend", [])),
        )
        return web.json_response(await self._controller.benches.shown(wanted))

    async def _follow(self, request: web.Request) -> web.StreamResponse:
        run = await self._controller.find(request.match_info["ref"])
        return await _stream(request, follow(self._controller, run.id, Positions.parse(request.query.get("from", ""))))


def _error(code: int, sentence: str, status: int | None = None) -> web.Response:
    return web.json_response({"error": sentence, "code": code}, status=status or HTTP_OF_CODE.get(code, 500))


def _number(text: str | None, name: str) -> int | None:
    if text is None or text in ("", "all"):
        return None
    if not text.isdecimal() or len(text) > 9:
        raise Refused(2, f"{name}: {text!r} is not a number")
    return int(text)


def _seconds(text: str | None) -> float | None:
    if not text:
        return None
    with suppress(ValueError):
        if 0 <= (value := float(text)) < 1e10:
            return value
    raise Refused(2, f"since: {text!r} is not a number of seconds")


def _since(text: str | None) -> datetime | None:
    try:
        return moment("since", text)
    except ValueError as error:
        raise Refused(2, str(error)) from None


async def _stream(request: web.Request, objects: AsyncIterator[dict[str, Any] | None]) -> web.StreamResponse:
    """One JSON object a line as they come; None is a heartbeat, an empty line."""
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"})
    await response.prepare(request)
    with suppress(ConnectionResetError):
        async for value in objects:
            await response.write(b"\n" if value is None else json.dumps(value).encode() + b"\n")
        await response.write_eof()
    return response


async def _as_data(request: web.Request, response: web.StreamResponse) -> None:
    """No browser takes an answer for a page, whatever a name in it looks like."""
    response.headers["X-Content-Type-Options"] = "nosniff"
