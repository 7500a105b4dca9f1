"""The part of the HTTP API by which runs are changed: cancelled, tried again, set to something else."""

from __future__ import annotations

from typing import Annotated

from aiohttp import web
from pydantic import Field

from orchestrator.control.api_body import Body, Secret, body_of
from orchestrator.control.api_call import CALL, by_of
from orchestrator.control.api_runs import shown_array
from orchestrator.control.controller import Controller


class RetryBody(Body):
    secrets: dict[str, Secret] = {}


class SetBody(Body):
    changes: dict[str, Annotated[str, Field(max_length=256)]]


class ChangesApi:
    """The routes over one controller."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/api/v1/runs/{ref}/cancel", self._cancel),
            web.post("/api/v1/runs/{ref}/retry", self._retry),
            web.post("/api/v1/runs/{ref}/set", self._set),
        ]

    async def _cancel(self, request: web.Request) -> web.Response:
        ref, by = request.match_info["ref"], by_of(request)
        if (array := await self._controller.find_array(ref)) is not None:
            ended = await self._controller.cancel_array(array, by)
            answer = await shown_array(self._controller, array) | {"runs": ended}
            return web.json_response(answer | ({} if ended else {"already": True}))
        run, already = await self._controller.cancel(ref, by=by)
        CALL.get().run = run.id
        answer = {"id": run.id, "name": run.name, "state": run.state}
        return web.json_response(answer | ({"already": True} if already else {}))

    async def _retry(self, request: web.Request) -> web.Response:
        body = await body_of(request, RetryBody)
        ref, by = request.match_info["ref"], by_of(request)
        if (array := await self._controller.find_array(ref)) is not None:
            again = await self._controller.retry_array(array, body.secrets, by)
            return web.json_response(await shown_array(self._controller, array) | {"runs": again})
        run = await self._controller.retry(ref, body.secrets, by=by)
        CALL.get().run = run.id
        return web.json_response({"id": run.id, "name": run.name, "state": run.state})

    async def _set(self, request: web.Request) -> web.Response:
        body = await body_of(request, SetBody)
        ref = request.match_info["ref"]
        CALL.get().said = ", ".join(f"{key}={value}" for key, value in body.changes.items())
        runs = await self._controller.change(ref, body.changes, by=by_of(request))
        if (array := await self._controller.find_array(ref)) is not None:
            return web.json_response(await shown_array(self._controller, array) | {"runs": len(runs)})
        return web.json_response({"id": runs[0].id, "name": runs[0].name, "state": runs[0].state})
