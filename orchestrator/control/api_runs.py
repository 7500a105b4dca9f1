"""The part of the HTTP API that tells of runs: which there are, one whole, why it waits, its logs as they come."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from aiohttp import web

from orchestrator.control.api_query import number, seconds, stream
from orchestrator.control.arrays import array_json, queue_rows
from orchestrator.control.controller import Controller
from orchestrator.control.follow import Positions, follow, kept_lines, log_lines
from orchestrator.control.refused import Refused
from orchestrator.history import render
from orchestrator.history.asking import asked
from orchestrator.scheduling.run import Array


class RunsApi:
    """The routes over one controller."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/api/v1/runs", self._runs),
            web.get("/api/v1/compare", self._compare),
            web.get("/api/v1/runs/{ref}", self._show),
            web.get("/api/v1/runs/{ref}/why", self._why),
            web.get("/api/v1/runs/{ref}/logs", self._logs),
            web.get("/api/v1/runs/{ref}/report", self._report),
            web.get("/api/v1/runs/{ref}/follow", self._follow),
        ]

    async def _runs(self, request: web.Request) -> web.Response:
        if request.query.get("live") == "1":
            return web.json_response(await self._live(request))
        given = {name: request.query.getall(name) for name in request.query}
        best = number(request.query.get("best"), "best")
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
                found = await self._controller.past.best(array, by, best)
                rows = ((render.list_json(self._controller.with_reason(run)), metrics) for run, metrics in found)
                return web.json_response([row | {"metrics": metrics} for row, metrics in rows])
            question = question.of_array(array.runs)
        if question.by or question.columns:
            try:
                return web.json_response(await self._controller.past.asked(question))
            except ValueError as error:
                raise Refused(2, str(error)) from None
        return web.json_response([render.list_json(run) for run in await self._controller.runs(question.wanted)])

    async def _live(self, request: web.Request) -> list[dict[str, Any]]:
        """What runs, then what waits in its order; with `arrays=1` an array is one row."""
        controller, limit = self._controller, number(request.query.get("limit"), "limit")
        live, waiting = await controller.live(), controller.queue.waiting()
        if request.query.get("arrays") == "1":
            arrays = controller.runtime.book.arrays
            counts = {array.id: await controller.past.counts(array) for array in arrays.values()}
            return queue_rows(live, waiting, arrays, counts, controller.with_reason, limit)
        rows = [render.list_json(run) | {"position": None} for run in live[:limit]]
        left = None if limit is None else limit - len(rows)
        shown = enumerate(map(controller.with_reason, waiting[:left]), 1)
        return rows + [render.list_json(run) | {"position": i} for i, run in shown]

    async def _show(self, request: web.Request) -> web.Response:
        ref = request.match_info["ref"]
        if (array := await self._controller.find_array(ref)) is not None:
            return web.json_response(
                await shown_array(self._controller, array) | {"spec": array.spec.model_dump(mode="json")}
            )
        run = await self._controller.find(ref)
        sizes = await self._controller.past.scaling(run.name)
        answer = render.show_json(run) | {"scaling": render.scaling_json(sizes)}
        if request.query.get("like") == "1":
            answer["compared"] = await self._controller.past.against_its_like(run)
        return web.json_response(answer)

    async def _compare(self, request: web.Request) -> web.Response:
        return web.json_response(await self._controller.past.compare(request.query.getall("run", [])))

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
                await self._controller.take_stacks(run, number(query.get("attempt"), "attempt"))
            said = kept_lines(
                kept[wanted],
                run,
                rank=number(query.get("rank"), "rank"),
                attempt=number(query.get("attempt"), "attempt"),
                positions=Positions.parse(query.get("from", "")),
            )
            return await stream(request, said)
        lines = log_lines(
            self._controller,
            run,
            rank=number(query.get("rank"), "rank"),
            attempt=number(query.get("attempt"), "attempt"),
            since_s=seconds(query.get("since")),
            positions=Positions.parse(query.get("from", "")),
            keep_on=query.get("follow") == "1",
        )
        return await stream(request, lines)

    async def _report(self, request: web.Request) -> web.Response:
        """What the run's page is drawn from."""
        return web.json_response(await self._controller.past.run_pictured(request.match_info["ref"]))

    async def _follow(self, request: web.Request) -> web.StreamResponse:
        run = await self._controller.find(request.match_info["ref"])
        return await stream(request, follow(self._controller, run.id, Positions.parse(request.query.get("from", ""))))


async def shown_array(controller: Controller, array: Array) -> dict[str, Any]:
    """An array as JSON: how many of its runs are in each state."""
    first = await controller.find(str(array.id))
    after = [asdict(need) for need in first.after]
    return array_json(array, await controller.past.counts(array), first) | {"after": after}
