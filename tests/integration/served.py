"""The API over a real controller and database and a fake cluster, in a thread, as a test talks to it: over a socket."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from aiohttp import web
from sqlalchemy import NullPool, create_engine, select

from orchestrator.control.api import Api
from orchestrator.control.audit import AuditLog
from orchestrator.control.code_store import CodeStore
from orchestrator.control.controller import Controller
from orchestrator.history.schema import METADATA
from orchestrator.testing.cluster import FakeCluster
from orchestrator.testing.controlling import controlling, until

TOKEN, METRICS_TOKEN = "the-token-of-the-tests", "the-token-for-metrics"


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Served:
    """One API that answers, and what is to be seen behind it."""

    def __init__(
        self, home: Path, port: int, loop: asyncio.AbstractEventLoop, controller: Controller, database: str
    ) -> None:
        self.home, self.port, self.loop, self.controller = home, port, loop, controller
        self._engine = create_engine(database, poolclass=NullPool)

    def __call__(
        self,
        method: str,
        target: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        token: str | None = TOKEN,
    ) -> Answer:
        """One request; `body` is sent as it is where it is bytes, else as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        sent = ({} if token is None else {"Authorization": f"Bearer {token}"}) | dict(headers or {})
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as connection:
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, target, data, sent)
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read().decode())

    def digest(self) -> str:
        """Of the whole database: of SQLite the bytes of its files, which each commit changes, else of every row."""
        if self._engine.dialect.name == "sqlite":
            files = (self.home / name for name in ("orch.db", "orch.db-wal"))
            return hashlib.sha256(b"".join(file.read_bytes() for file in files if file.exists())).hexdigest()
        with self._engine.connect() as connection:
            rows = [repr(sorted(map(repr, connection.execute(select(table))))) for table in METADATA.sorted_tables]
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()

    def do(self, work: Callable[[], Any]) -> Any:
        """Runs a coroutine function on the controller's loop."""
        return asyncio.run_coroutine_threadsafe(work(), self.loop).result(20)


async def _all_up(controller: Controller) -> bool:
    nodes = controller.roster.nodes.values()
    return bool(nodes) and all(node.up for node in nodes)


@contextmanager
def serving(home: Path, cluster: FakeCluster, database: str | None = None) -> Iterator[Served]:
    """The API of a controller over `cluster`."""
    url = database or f"sqlite:///{home}/orch.db"
    ready: list[Served] = []
    failed: list[BaseException] = []
    started = threading.Event()
    stop = asyncio.Event()

    async def serve() -> None:
        async with controlling(home, cluster, preflight="off", database=url) as controller:
            nothing: dict[str, Any] = {"controller": "up", "address": "x:1", "api_url": "", "dashboard_url": None}

            async def down() -> None: ...

            code, audit = CodeStore(home / "code", 1 << 20), AuditLog(home / "audit.log")
            api = Api(controller, code, lambda: TOKEN, lambda: nothing, down, lambda: METRICS_TOKEN, audit)
            runner = api.runner()
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            # What the nodes say of themselves is recorded once; from now on nothing moves by itself.
            await until(lambda: _all_up(controller))
            await controller.runtime.db(lambda: None)
            ready.append(Served(home, runner.addresses[0][1], asyncio.get_running_loop(), controller, url))
            started.set()
            await stop.wait()
            await runner.cleanup()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            failed.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=run)
    thread.start()
    started.wait(30)
    if failed:
        raise failed[0]
    try:
        yield ready[0]
    finally:
        ready[0].loop.call_soon_threadsafe(stop.set)
        thread.join(30)
