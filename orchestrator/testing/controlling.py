"""A controller over a real database and a fake cluster, with short waits, and how a test waits for what it does."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from orchestrator.config_keys import Preflight
from orchestrator.control.backend import Backend
from orchestrator.control.controller import Controller
from orchestrator.control.runtime import Settings
from orchestrator.history.database import BUSY_TIMEOUT_S
from orchestrator.history.store import Store
from orchestrator.policy import Policy
from orchestrator.scheduling.lifecycle import State
from orchestrator.scheduling.run import NewRun, Run
from orchestrator.spec import JobSpec
from orchestrator.testing.cluster import FakeCluster


def job(workers: str = "1", name: str = "job", key: str | None = None, **more: Any) -> NewRun:
    """A submission by ana; `more` are keys of the job file."""
    spec = JobSpec.model_validate({"name": name, "run": "train.py", "workers": workers, **more})
    return NewRun(spec, "ana", None, "/w", key)


@asynccontextmanager
async def started(
    backend: Backend,
    settings: Settings,
    *,
    database: str | None = None,
    busy_timeout_s: float = BUSY_TIMEOUT_S,
    **more: Any,
) -> AsyncIterator[Controller]:
    """A controller, until the block ends: then it is gone as if it had been killed.

    Its database is in `settings.home`, or at the URL `database`; it waits so long for others who use that.
    `more` are further arguments of Controller.
    """
    store = Store.open(database or f"sqlite:///{settings.home}/orch.db", busy_timeout_s=busy_timeout_s)
    controller = Controller(store, backend, settings, **more)
    await controller.start()
    try:
        yield controller
    finally:
        await controller.close()
        store.close()


@asynccontextmanager
async def controlling(
    home: Path,
    cluster: FakeCluster,
    lease_s: float = 30.0,
    policy: Policy | None = None,
    preflight: Preflight = "quick",
    **more: Any,
) -> AsyncIterator[Controller]:
    """What `started` gives, with short waits."""
    settings = Settings(
        home,
        home / "storage",
        lease_s,
        sync_wait_s=0.05,
        watch_s=0.02,
        lost_after_s=0.05,
        look_for_newer_s=0.05,
        fenced_out_s=0.2,
        progress_look_s=0.02,
        confirm_s=0.05,
        policy=policy or Policy(),
        preflight=preflight,
    )
    async with started(cluster, settings, **more) as controller:
        yield controller


async def until(condition: Callable[[], object], seconds: float = 10.0) -> Any:
    """The first true value of the condition, awaited where it can be; AssertionError with its last after so many seconds."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not (value := await now if inspect.isawaitable(now := condition()) else now):
        assert asyncio.get_running_loop().time() < deadline, f"still {value!r}"
        await asyncio.sleep(0.005)
    return value


async def reaches(controller: Controller, run: Run, state: State) -> Run:
    """The run once it is in that state."""

    async def there() -> bool:
        return (await controller.find(str(run.id))).state is state

    await until(there)
    return await controller.find(str(run.id))
