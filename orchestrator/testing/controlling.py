"""A controller over a real database and a fake cluster, with short waits, and how a test waits for what it does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from orchestrator.config import Preflight
from orchestrator.control.controller import Controller
from orchestrator.control.runtime import Settings
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
async def controlling(
    home: Path,
    cluster: FakeCluster,
    lease_s: float = 30.0,
    policy: Policy | None = None,
    preflight: Preflight = "quick",
) -> AsyncIterator[Controller]:
    """A controller of the database in `home`, until the block ends: then it is gone as if it had been killed."""
    store = Store.open(f"sqlite:///{home}/orch.db")
    settings = Settings(
        home,
        home / "storage",
        lease_s,
        sync_wait_s=0.05,
        watch_s=0.02,
        lost_after_s=0.05,
        policy=policy or Policy(),
        preflight=preflight,
    )
    controller = Controller(store, cluster, settings)
    await controller.start()
    try:
        yield controller
    finally:
        await controller.close()
        store.close()


async def until(condition: Callable[[], Awaitable[object]], seconds: float = 10.0) -> None:
    """Waits until the condition holds; AssertionError with what it last was after so many seconds."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not (value := await condition()):
        assert asyncio.get_running_loop().time() < deadline, f"still {value!r}"
        await asyncio.sleep(0.005)


async def reaches(controller: Controller, run: Run, state: State) -> Run:
    """The run once it is in that state."""

    async def there() -> bool:
        return (await controller.find(str(run.id))).state is state

    await until(there)
    return await controller.find(str(run.id))
