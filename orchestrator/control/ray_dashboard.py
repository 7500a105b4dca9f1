"""Ray's side of dashboard.py: the jobs that Ray itself knows, and its check of the token. Adapts to Ray 2.60's internals."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from orchestrator.control.controller import Controller
from orchestrator.control.dashboard import Dashboard

log = logging.getLogger("orch.dashboard")

ANSWER_S = 3.0
"""A GCS that hangs must not keep orch's own runs off the page."""


async def ray_jobs() -> list[dict[str, Any]]:
    """What the dashboard would list by itself; nothing where this Ray's internals are others than 2.60's.

    From the GCS, not from the dashboard: that would ask us again (the form is job_head.py's `list_jobs`).
    """
    try:
        return await asyncio.wait_for(_ray_jobs(), ANSWER_S)
    except Exception as error:  # whatever has moved inside Ray, orch's own runs are shown
        log.warning("Ray's own jobs could not be listed for its dashboard: %r", error)
        return []


async def _ray_jobs() -> list[dict[str, Any]]:
    from ray._private.worker import global_worker
    from ray.dashboard.modules.job.common import JobInfoStorageClient
    from ray.dashboard.modules.job.pydantic_models import JobDetails, JobType
    from ray.dashboard.modules.job.utils import get_driver_jobs

    gcs = global_worker.gcs_client
    (drivers, drivers_of), submissions = await asyncio.gather(
        get_driver_jobs(gcs), JobInfoStorageClient(gcs).get_all_jobs()
    )
    submitted = [
        JobDetails(
            **dataclasses.asdict(job),
            submission_id=submission,
            job_id=drivers_of[submission].id if submission in drivers_of else None,
            driver_info=drivers_of.get(submission),
            type=JobType.SUBMISSION,
        )
        for submission, job in submissions.items()
    ]
    return [_plain(job) for job in (*submitted, *drivers.values())]


def _plain(job: Any) -> dict[str, Any]:
    """JSON, without the environment: Ray redacts it for browsers only, and it may hold secrets."""
    found: dict[str, Any] = job.model_dump(mode="json") if hasattr(job, "model_dump") else job.dict()
    return found | {"runtime_env": {}}


def ray_exporters() -> Path | None:
    """The file in which Ray lists its own exporters for Prometheus and keeps the list up to date."""
    from ray._private.worker import global_worker

    folder = global_worker.node.get_temp_dir_path() if global_worker.node is not None else None
    return Path(folder) / "prom_metrics_service_discovery.json" if folder else None


def token_middleware() -> Callable[[web.Request, Any], Awaitable[web.StreamResponse]]:
    """Ray's own check: whoever may look at the dashboard may look at this."""
    from ray._private.authentication.http_token_authentication import get_token_auth_middleware

    checked: Callable[[web.Request, Any], Awaitable[web.StreamResponse]] = get_token_auth_middleware(aiohttp)
    return checked


async def serve_dashboard(controller: Controller, port: int) -> web.AppRunner | None:
    """Answers Ray's dashboard on this port of the loopback interface; None, said in the log, where the port is taken."""
    runner = web.AppRunner(Dashboard(controller, ray_jobs).app([token_middleware()]), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
    except OSError as error:
        log.warning("Ray's dashboard will not show orch's runs: %s", error)
        await runner.cleanup()
        return None
    return runner
