"""The controller as a detached Ray actor on the head: what it is made of, its API's port, and how it is found or made."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from aiohttp import web

import orchestrator
from orchestrator.control import bench_script
from orchestrator.control.api import Api
from orchestrator.control.audit import AuditLog
from orchestrator.control.backend import AgentGone
from orchestrator.control.code_store import CodeStore
from orchestrator.control.controller import Controller
from orchestrator.control.home import ClusterNote, Home
from orchestrator.control.monitoring import write_monitoring
from orchestrator.control.open_doors import open_doors
from orchestrator.control.private_file import TokenFile
from orchestrator.control.ray_agent import CONTROLLER
from orchestrator.control.ray_auth import warning
from orchestrator.control.ray_backend import HEAD, RayBackend
from orchestrator.control.ray_dashboard import ray_exporters, serve_dashboard
from orchestrator.control.ray_metrics import tell_ray
from orchestrator.control.runtime import Settings, spare_the_collector
from orchestrator.hardware.formats import read_hardware
from orchestrator.hardware.model import Cluster
from orchestrator.history.retention import Keep
from orchestrator.history.store import Store
from orchestrator.policy_text import policy_of

SIGN_OF_LIFE_S = 2.0


class ControllerActor:
    """The controller as a detached Ray actor on the head: Ray restarts it when it dies, and it goes on from the database."""

    def __init__(self, home: str, namespace: str) -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s", force=True)
        os.umask(0o077)
        self._home, self._namespace = Home(Path(home)), namespace
        self._code: CodeStore | None = None
        self._main = asyncio.get_event_loop().create_task(self._serve())

    def __repr__(self) -> str:
        return f"orch controller ({self._home.root})"

    async def ready(self) -> str:
        """Waits until the API answers; its URL. Raises what kept it from starting."""
        return await asyncio.shield(self._main)

    async def read_code(self, sha256: str, offset: int) -> bytes:
        await asyncio.shield(self._main)
        assert self._code is not None
        return self._code.read(sha256, offset)

    async def _serve(self) -> str:
        note = self._home.read_cluster()
        if note is None:
            raise FileNotFoundError(f"{self._home.cluster_file} is missing: `orch up` writes it")
        self._note = note
        store = Store.open(note.database)
        store.prices = note.prices
        backend = RayBackend(self._namespace, note.address, self._home.root, Path(note.storage))
        await asyncio.to_thread(backend.take_up_holds)
        self._controller = Controller(
            store,
            backend,
            settings_of(note, self._home),
            read_declared(note),
            superseded=lambda: os._exit(1),
            last_alive=self._home.controller_last_alive(),
        )
        await self._controller.start()
        self._code = CodeStore(self._home.root / "code", note.code_limit)
        await self._code.put(*await asyncio.to_thread(bench_script.to_store))
        audit = AuditLog(self._home.audit_file)
        self._url = await self._serve_api(note, self._code, audit)
        write_monitoring(self._home.monitoring, self._url, self._home.metrics_token_file(), ray_exporters())
        if note.dashboard_proxy is not None:
            self._dashboard = await serve_dashboard(self._controller, note.dashboard_proxy)
        tell_ray(self._controller)
        self._home.write_controller(self._url, orchestrator.__version__)
        audit.write(
            {"uid": os.getuid(), "call": "controller started", "said": f"pid {os.getpid()}, {orchestrator.__version__}"}
        )
        self._controller.runtime.forever("sign of life", self._sign_of_life, SIGN_OF_LIFE_S)
        spare_the_collector()
        return self._url

    async def _serve_api(self, note: ClusterNote, code: CodeStore, audit: AuditLog) -> str:
        """Answers HTTP from now on; the URL."""
        token, metrics_token = TokenFile(self._home.token_file()), TokenFile(self._home.metrics_token_file())
        api = Api(
            self._controller,
            code,
            token.current,
            self._status,
            self._down,
            metrics_token.current,
            audit,
            open_doors(note),
        )
        runner = api.runner()
        await runner.setup()
        return f"http://127.0.0.1:{await self._listen(runner)}"

    async def _listen(self, runner: web.AppRunner) -> int:
        """The port of the controller before this one where it is free, so that clients find us; else any."""
        previous = self._home.read_controller()
        ports = ([int(previous["url"].rsplit(":", 1)[1])] if previous else []) + [0]
        for port in ports:
            site = web.TCPSite(runner, "127.0.0.1", port)
            try:
                await site.start()
            except OSError:
                await site.stop()
                continue
            bound: int = runner.addresses[-1][1]
            return bound
        raise OSError("no port of the loopback interface could be bound")

    async def _sign_of_life(self) -> None:
        self._home.controller_lives()

    def _status(self) -> dict[str, Any]:
        return {
            "controller": "up",
            "address": self._note.address,
            "api_url": self._url,
            "dashboard_url": self._note.dashboard_url,
            "ray_auth": self._note.ray_auth,
            "version": orchestrator.__version__,
        }

    async def _down(self) -> None:
        """Ends what orch has on the nodes; who asked ends Ray, or this actor, afterwards."""
        controller = self._controller
        for _ in range(100):
            if not controller.gangs.any_left():
                break
            await asyncio.sleep(0.1)
        for node in controller.roster.nodes.values():
            if node.agent is not None:
                with suppress(AgentGone):
                    await node.agent.close(controller.runtime.epoch)


def settings_of(note: ClusterNote, home: Home) -> Settings:
    """What `orch up` was configured with, as the controller takes it."""
    return Settings(
        home=home.root,
        storage=Path(note.storage),
        lease_s=note.lease_s,
        log_limit=note.log_limit,
        preflight=note.preflight,
        keep=Keep(note.keep_runs, note.keep_series, note.keep_logs),
        policy=policy_of(note.policy),
        open_ray=warning(note.address) if note.ray_auth == "none" else None,
    )


def read_declared(note: ClusterNote) -> Cluster:
    """What the operator declared of nodes and fabric. Raises FormatError."""
    paths = [*note.fabric, *([note.hardware] if note.hardware else [])]
    return read_hardware(paths) if paths else Cluster()


def ensure_controller(home: Home, namespace: str) -> Any:
    """The controller's actor of this ORCH_HOME on the connected cluster, made if there is none.

    Pinned to whichever node is the head: one that is started again is another node to Ray, and has the actor back by itself.
    """
    return (
        ray.remote(ControllerActor)
        .options(
            name=CONTROLLER,
            namespace=namespace,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_concurrency=1000,
            resources={HEAD: 0.001},
        )
        .remote(str(home.root), namespace)
    )
