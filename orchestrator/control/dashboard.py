"""orch's runs on the Jobs page of Ray's dashboard, those that have ended and those of a cluster before this one included.

A Ray head that was started with `--proxy-server-url` asks this server first, and answers itself where it gets a 404 or no answer
(ray/dashboard/http_server_head.py, `proxy_server_middleware`; experimental in Ray 2.60): the dashboard works on while the
controller is away. Only the calls that the Jobs page makes are answered; all else is left to Ray.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from typing import Any

from aiohttp import web

from orchestrator.array import run_id
from orchestrator.control.controller import Controller
from orchestrator.control.follow import Positions, log_lines
from orchestrator.history.filters import RunFilter
from orchestrator.pictures.runs_page import runs_page
from orchestrator.scheduling.lifecycle import State
from orchestrator.scheduling.run import Run

RUNS_SHOWN = 500
"""The page draws every row that it is given and slows down with thousands."""
LOG_LINES = 5000
NODE = "orch"
"""What stands where the page wants the driver's node: without one it asks for no log. No node of Ray has this id."""
_ID = re.compile(r"orch-([0-9]{1,18})")
_FILE = re.compile(r"job-driver-(orch-[0-9]{1,18})\.log")

STATUS = {
    State.QUEUED: "PENDING",
    State.STARTING: "PENDING",
    State.RUNNING: "RUNNING",
    State.STOPPING: "RUNNING",
    State.SUCCEEDED: "SUCCEEDED",
    State.FAILED: "FAILED",
    State.CANCELLED: "STOPPED",
}
"""Ray's word for each state: what its page has a colour and a filter for."""

RayJobs = Callable[[], Awaitable[list[dict[str, Any]]]]


class Dashboard:
    """What Ray's dashboard is told of orch's runs, beside the jobs that Ray itself knows (`ray_jobs`)."""

    def __init__(self, controller: Controller, ray_jobs: RayJobs) -> None:
        self._controller, self._ray_jobs = controller, ray_jobs

    def app(self, middlewares: Iterable[Any] = ()) -> web.Application:
        """The routes; `middlewares` check the token that the dashboard hands on."""
        app = web.Application(middlewares=list(middlewares))
        app.add_routes(
            [
                web.get("/api/jobs/", self._list),
                web.get("/api/jobs/{id}", self._one),
                web.get("/api/jobs/{id}/logs", self._logs),
                web.get("/api/v0/logs/file", self._log_file),
                web.get("/orch/runs/{id}", self._page),
            ]
        )
        return app

    async def _list(self, request: web.Request) -> web.Response:
        runs = await self._controller.runs(RunFilter(limit=RUNS_SHOWN))
        return web.json_response([*map(job_of, runs), *await self._ray_jobs()])

    async def _one(self, request: web.Request) -> web.Response:
        return web.json_response(job_of(await self._run(request.match_info["id"])))

    async def _logs(self, request: web.Request) -> web.Response:
        """What `ray job logs orch-42` prints."""
        return web.json_response({"logs": await self._text(await self._run(request.match_info["id"]))})

    async def _log_file(self, request: web.Request) -> web.Response:
        """What the page of one job shows: it asks for the file that Ray would keep its driver's output in."""
        if (found := _FILE.fullmatch(request.query.get("filename", ""))) is None:
            raise web.HTTPNotFound
        return web.Response(text=await self._text(await self._run(found[1])))

    async def _page(self, request: web.Request) -> web.Response:
        """The run's report: the page of `orch report`."""
        word = request.match_info["id"]
        if not isinstance(number := run_id(word), int):
            raise web.HTTPNotFound
        runtime = self._controller.runtime
        data = await runtime.read(runtime.store.run_pictured, number, runtime.now())
        if data is None:
            raise web.HTTPNotFound
        page = await asyncio.to_thread(runs_page, [data])
        headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
        return web.Response(
            body=page.encode("utf-8", "replace"), content_type="text/html", charset="utf-8", headers=headers
        )

    async def _text(self, run: Run) -> str:
        """The last lines of every rank of the latest attempt, as `orch logs` has them."""
        lines = log_lines(
            self._controller, run, rank=None, attempt=None, since_s=None, positions=Positions.parse(""), keep_on=False
        )
        found = [f"[rank {line['rank']}] {line['line']}" async for line in lines if line is not None and "line" in line]
        left_out = len(found) - LOG_LINES
        head = [f"({left_out} lines before these: `orch logs {run.id}`)"] if left_out > 0 else []
        return "\n".join([*head, *found[-LOG_LINES:]])

    async def _run(self, name: str) -> Run:
        """The run that is asked for. Raises HTTPNotFound where it is none of ours: Ray answers then."""
        run = None
        if found := _ID.fullmatch(name):
            run = await self._controller.runtime.db(self._controller.runtime.store.get, int(found[1]))
        if run is None:
            raise web.HTTPNotFound
        return run


def job_of(run: Run) -> dict[str, Any]:
    """A run in the form of Ray's JobDetails (ray/dashboard/modules/job/pydantic_models.py)."""
    failure = run.attempt.failure if run.attempt else None
    where = ", ".join(f"{part.node}:{len(part.gpus)}" for part in run.attempt.placement.nodes) if run.attempt else ""
    metadata = {
        # The key that the page reads its Name column from.
        "job_name": run.name,
        "orch_run": str(run.id),
        "orch_state": run.state.value,
        "user": run.user,
        "team": run.spec.team or "",
        "attempts": str(len(run.attempts)),
        "where": where,
        "report": f"/orch/runs/{run.id}",
        "more": f"orch show {run.id}",
    }
    return {
        "type": "SUBMISSION",
        "submission_id": f"orch-{run.id}",
        "job_id": None,
        "driver_info": None,
        "status": STATUS[run.state],
        "entrypoint": run.spec.run,
        "message": failure.message if failure else run.reason or _said(run, where),
        "error_type": failure.kind if failure else None,
        "start_time": _ms(run.submitted_at),
        "end_time": _ms(run.finished_at),
        "metadata": {key: value for key, value in metadata.items() if value},
        "runtime_env": {},
        "driver_agent_http_address": None,
        "driver_node_id": NODE,
        "driver_exit_code": None,
    }


def _said(run: Run, where: str) -> str:
    ranks = run.attempt.placement.world_size if run.attempt else run.spec.workers.total
    return f"{ranks} rank{'s' if ranks != 1 else ''}{f' on {where}' if where else ''}; report: /orch/runs/{run.id}"


def _ms(at: datetime | None) -> int | None:
    return None if at is None else int(at.timestamp() * 1000)
