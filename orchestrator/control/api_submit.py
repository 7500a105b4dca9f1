"""The part of the HTTP API by which a job comes in: its file checked, its code, the submission itself."""

from __future__ import annotations

import asyncio
from typing import Annotated

from aiohttp import web
from pydantic import Field

from orchestrator.control.api_body import Body, Secret, UserName, body_of, chunks_of
from orchestrator.control.api_call import CALL
from orchestrator.control.code_store import CodeStore
from orchestrator.control.controller import Controller
from orchestrator.control.refused import Refused
from orchestrator.jobfile import parse_job
from orchestrator.scheduling.run import Code, NewRun
from orchestrator.spec import JobSpec


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


class SubmitApi:
    """The routes over one controller and the snapshots of code that it keeps."""

    def __init__(self, controller: Controller, code: CodeStore) -> None:
        self._controller, self._code = controller, code

    def routes(self) -> list[web.RouteDef]:
        return [
            web.head("/api/v1/code/{sha}", self._has_code),
            web.put("/api/v1/code/{sha}", self._put_code),
            web.post("/api/v1/check", self._check),
            web.post("/api/v1/runs", self._submit),
        ]

    async def _has_code(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self._code.wanted(request.match_info["sha"]) else 404)

    async def _put_code(self, request: web.Request) -> web.Response:
        try:
            await self._code.put(request.match_info["sha"], chunks_of(request))
        except ValueError as error:
            raise Refused(2, str(error)) from None
        return web.json_response({"ok": True}, status=201)

    async def _check(self, request: web.Request) -> web.Response:
        """A job file's text as the spec that it means: a command need not load the checker for it."""
        CALL.get().asks_only = True
        body = await body_of(request, CheckBody)
        spec = await asyncio.to_thread(parse_job, body.text, body.filename, body.overrides)
        return web.json_response({"spec": spec.model_dump(mode="json")})

    async def _submit(self, request: web.Request) -> web.Response:
        body = await body_of(request, SubmitBody)
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
