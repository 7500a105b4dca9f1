"""The cluster through Ray: nodes, holds as placement groups, one detached agent actor a node, and the controller's own actor.

The only module, with cluster.py and ray_dashboard.py, that imports Ray.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import ray
from aiohttp import web
from ray.exceptions import RayActorError, RayError, RaySystemError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

import orchestrator
from orchestrator.control import bench_script, ray_calls
from orchestrator.control.agent import NodeAgent
from orchestrator.control.api import Api
from orchestrator.control.audit import AuditLog
from orchestrator.control.backend import (
    Agent,
    AgentGone,
    ClusterLost,
    HoldRefused,
    NodeFacts,
    PartStatus,
    Report,
    StartPart,
)
from orchestrator.control.code_store import CodeStore
from orchestrator.control.code_version import speaks_with, this_code
from orchestrator.control.controller import Controller
from orchestrator.control.home import ClusterNote, Home, own_node_folder
from orchestrator.control.inventory import probe_node
from orchestrator.control.monitoring import write_monitoring
from orchestrator.control.open_doors import open_doors
from orchestrator.control.private_file import TokenFile
from orchestrator.control.ray_auth import warning
from orchestrator.control.ray_calls import RayCalls
from orchestrator.control.ray_dashboard import ray_exporters, serve_dashboard
from orchestrator.control.ray_metrics import tell_ray
from orchestrator.control.runtime import Settings, spare_the_collector
from orchestrator.control.shared_folder import FolderLook, Tokens
from orchestrator.control.survey import Surveyed
from orchestrator.hardware.formats import read_hardware
from orchestrator.hardware.model import Cluster
from orchestrator.health.stacks import RankStack
from orchestrator.history.retention import Keep
from orchestrator.history.store import Store
from orchestrator.policy_text import policy_of

log = logging.getLogger("orch")

CONTROLLER, AGENT = "orch-controller", "orch-agent"
CALL_S = 60.0
"""No call to an agent takes longer, a first start with its download aside."""
START_S = 600.0
START_ACTOR_S = 30.0
SIGN_OF_LIFE_S = 2.0
HOLD_S, HOLD_TRIES = 2.0, 3
"""How long Ray may take to give a node, which takes it a tenth of a second. A group for which a call of Ray's own was lost on the
way (CommitBundleResources) waits for ever, and another one is given the node at once."""
NODE_ID = "ray.io/node-id"
HEAD = "node:__internal_head__"
"""A resource that the head's node alone has."""


def hold_name(namespace: str, node: str) -> str:
    """The placement group by which the home holds the node."""
    return f"orch-hold-{namespace}-{node}"


# -- on every node -------------------------------------------------------------------------------------------------


def node_info() -> dict[str, Any]:
    """What this node is and which versions it has: for placement, `orch nodes` and the history."""
    found = probe_node(os.environ)
    versions = {"python": platform.python_version()}
    for package in ("torch", "ray"):
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return found | {"versions": versions | found["versions"]}


class AgentActor:
    """The node's agent as the Ray dashboard shows it."""

    def __init__(self, namespace: str, node: str, address: str, home: str, storage: str, code: str) -> None:
        """`code`: the controller's. What is here may be newer, or older, where an upgrade is not done everywhere yet."""
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s", force=True)
        self._namespace, self._node = namespace, node
        self._other = None if speaks_with(code) else _of_other_code(code)
        folder = own_node_folder(namespace) / f"node-{node}"
        # On other nodes than the head ORCH_HOME need not be there.
        disks = {"ORCH_HOME": Path(home), "attempts": folder, "storage": Path(storage), "tmp": Path(gettempdir())}
        self._node_agent = NodeAgent(namespace, node, address, folder, self._fetch, node_info, disks=disks)

    def __repr__(self) -> str:
        return f"orch agent on {self._node}"

    @property
    def _agent(self) -> NodeAgent:
        """Raises AgentGone where controller and agent do not understand each other: nothing is touched then."""
        if self._other is not None:
            raise AgentGone(self._other)
        return self._node_agent

    async def _fetch(self, sha256: str) -> AsyncIterator[bytes]:
        controller = ray.get_actor(CONTROLLER, namespace=self._namespace)
        offset = 0
        while chunk := await controller.read_code.remote(sha256, offset):
            yield chunk
            offset += len(chunk)

    async def sync(self, epoch: int, ack: int, lease_s: float, wait_s: float) -> Report:
        return await self._agent.sync(epoch, ack, lease_s, wait_s)

    async def check(self, epoch: int, gpus: tuple[int, ...]) -> tuple[str, ...]:
        return await self._agent.check(epoch, gpus)

    async def reserve_port(self, epoch: int, run: int, attempt: int) -> int:
        return await self._agent.reserve_port(epoch, run, attempt)

    async def start(self, epoch: int, part: StartPart) -> PartStatus:
        return await self._agent.start(epoch, part)

    async def stop(self, epoch: int, run: int, attempt: int, grace_s: float) -> None:
        await self._agent.stop(epoch, run, attempt, grace_s)

    async def forget(self, epoch: int, run: int, attempt: int) -> None:
        await self._agent.forget(epoch, run, attempt)

    async def stacks(self, epoch: int, run: int, attempt: int, whole: bool) -> tuple[RankStack, ...]:
        return await self._agent.stacks(epoch, run, attempt, whole)

    async def survey(self, epoch: int, python: str | None, look: bool) -> Surveyed:
        return await self._agent.survey(epoch, python, look)

    async def checkpoint_folder(self, epoch: int, folder: str, tokens: Tokens) -> FolderLook:
        return await self._agent.checkpoint_folder(epoch, folder, tokens)

    async def close(self, epoch: int) -> None:
        await self._agent.close(epoch)


class RemoteAgent:
    """The controller's side of one agent actor: Ray's ways of failing become AgentGone."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle

    async def _call(self, method: str, *arguments: Any, timeout_s: float = CALL_S) -> Any:
        try:
            return await asyncio.wait_for(getattr(self.handle, method).remote(*arguments), timeout_s)
        except RayTaskError as error:
            # Ray's own text is the agent's traceback; what the agent raised says what a person needs. It may be one of Ray's
            # own: the agent asks the controller for code.
            if isinstance(error.cause, RayError):
                raise AgentGone(f"{method}: {str(error.cause).splitlines()[0]}") from None
            raise error.cause from None
        except (RayActorError, RaySystemError) as error:
            raise AgentGone(str(error).splitlines()[0]) from None
        except TimeoutError:
            raise AgentGone(f"no answer to {method} within {timeout_s:.0f} s") from None

    async def sync(self, epoch: int, ack: int, lease_s: float, wait_s: float) -> Report:
        report: Report = await self._call("sync", epoch, ack, lease_s, wait_s, timeout_s=wait_s + 20)
        return report

    async def check(self, epoch: int, gpus: tuple[int, ...]) -> tuple[str, ...]:
        problems: tuple[str, ...] = await self._call("check", epoch, gpus)
        return problems

    async def reserve_port(self, epoch: int, run: int, attempt: int) -> int:
        port: int = await self._call("reserve_port", epoch, run, attempt)
        return port

    async def start(self, epoch: int, part: StartPart) -> PartStatus:
        status: PartStatus = await self._call("start", epoch, part, timeout_s=START_S)
        return status

    async def stop(self, epoch: int, run: int, attempt: int, grace_s: float) -> None:
        await self._call("stop", epoch, run, attempt, grace_s)

    async def forget(self, epoch: int, run: int, attempt: int) -> None:
        await self._call("forget", epoch, run, attempt)

    async def stacks(self, epoch: int, run: int, attempt: int, whole: bool) -> tuple[RankStack, ...]:
        found: tuple[RankStack, ...] = await self._call("stacks", epoch, run, attempt, whole, timeout_s=30)
        return found

    async def survey(self, epoch: int, python: str | None, look: bool) -> Surveyed:
        found: Surveyed = await self._call("survey", epoch, python, look, timeout_s=20)
        return found

    async def checkpoint_folder(self, epoch: int, folder: str, tokens: Tokens) -> FolderLook:
        found: FolderLook = await self._call("checkpoint_folder", epoch, folder, tokens)
        return found

    async def close(self, epoch: int) -> None:
        await self._call("close", epoch, timeout_s=10)


# -- on the head ---------------------------------------------------------------------------------------------------


class RayBackend:
    """The Backend protocol over one Ray cluster."""

    def __init__(self, namespace: str, address: str, home: Path, storage: Path) -> None:
        self._namespace, self._home, self._storage = namespace, home, storage
        self._call = RayCalls(address)
        self._holds: dict[str, PlacementGroup] = {}
        self._owed: set[str] = set()
        """The nodes that could not be given back while the head was away."""
        self._dead: frozenset[str] = frozenset()
        self._agents: dict[str, Any] = {}
        """By node id."""

    async def nodes(self) -> list[NodeFacts]:
        found = await self._call(self._nodes)
        for name in tuple(self._owed):
            await self.release(name)
        return found

    def _nodes(self) -> list[NodeFacts]:
        from ray._private.state import available_resources_per_node

        rows = ray.nodes()
        alive = [row for row in rows if row["Alive"]]
        self._dead = frozenset(row["NodeID"] for row in rows if not row["Alive"])
        for gone in self._dead & self._agents.keys():
            # Its node never comes back under that id: Ray would look for a place for it for ever.
            ray.kill(self._agents.pop(gone))
        available = available_resources_per_node()
        names = _names(alive)
        return [self._facts(row, names[row["NodeID"]], available.get(row["NodeID"], {})) for row in alive]

    def _facts(self, row: dict[str, Any], name: str, available: dict[str, float]) -> NodeFacts:
        resources = row["Resources"]
        kind = "GPU" if resources.get("GPU") else "CPU"
        total = int(resources.get(kind, 0))
        foreign = 0 if name in self._holds else total - int(available.get(kind, total))
        return NodeFacts(
            name=name,
            id=row["NodeID"],
            address=row["NodeManagerAddress"],
            device="cuda" if kind == "GPU" else "cpu",
            total=total,
            head=HEAD in resources,
            labels=dict(row.get("Labels") or {}),
            foreign=max(0, foreign),
        )

    def is_dead(self, node: NodeFacts) -> bool:
        return node.id in self._dead

    async def agent(self, node: NodeFacts) -> Agent:
        return await self._call(self._agent, node, timeout_s=START_ACTOR_S)

    def _agent(self, node: NodeFacts) -> RemoteAgent:
        actor = ray.remote(AgentActor).options(
            name=f"{AGENT}-{node.name}-{node.id[:8]}-{this_code()}",
            namespace=self._namespace,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_concurrency=100,
            label_selector={NODE_ID: node.id},
        )
        try:
            folders = str(self._home), str(self._storage)
            self._agents[node.id] = actor.remote(self._namespace, node.name, node.address, *folders, this_code())
            return RemoteAgent(self._agents[node.id])
        except RayError as error:
            raise AgentGone(str(error).splitlines()[0]) from None

    async def hold(self, node: NodeFacts) -> None:
        self._owed.discard(node.name)
        if node.name not in self._holds:
            await self._call(self._hold, node, timeout_s=HOLD_TRIES * HOLD_S + ray_calls.CALL_S)

    def _hold(self, node: NodeFacts) -> None:
        from ray._private.state import available_resources_per_node

        kind = "GPU" if node.device == "cuda" else "CPU"
        for _ in range(HOLD_TRIES):
            group = placement_group(
                [{kind: float(node.total)}],
                strategy="STRICT_PACK",
                lifetime="detached",
                name=hold_name(self._namespace, node.name),
                bundle_label_selector=[{NODE_ID: node.id}],
            )
            if group.wait(HOLD_S):
                # Here, not by who asked: it may have given up on a head that was slow.
                self._holds[node.name] = group
                return
            remove_placement_group(group)
            deadline = time.monotonic() + HOLD_S / 2
            while available_resources_per_node().get(node.id, {}).get(kind, 0.0) < node.total:
                if time.monotonic() >= deadline:
                    raise HoldRefused(
                        f"Ray did not give the {node.total} {kind}s of {node.name}: other work holds some of them"
                    )
                time.sleep(0.1)
        raise HoldRefused(f"Ray did not give the {node.total} {kind}s of {node.name}, though nobody holds them")

    async def release(self, node_name: str) -> None:
        if (group := self._holds.get(node_name)) is None:
            return
        try:
            await self._call(remove_placement_group, group)
        except ClusterLost:
            self._owed.add(node_name)
        else:
            self._owed.discard(node_name)
            self._holds.pop(node_name, None)

    def end_other_agents(self) -> None:
        """Ends the agents of another orch, before an upgrade: those that follow find launchers and ranks where they are."""
        for name in ray.util.list_named_actors():
            if name.startswith(f"{AGENT}-") and not name.endswith(f"-{this_code()}"):
                log.warning("%s is of another orch and is replaced", name)
                with suppress(ValueError):
                    ray.kill(ray.get_actor(name, namespace=self._namespace))

    def take_up_holds(self) -> None:
        """The holds that a controller before this one made: kept by name; the controller gives back what it does not need."""
        start = hold_name(self._namespace, "")
        for row in placement_group_table().values():
            if row["name"].startswith(start) and row["state"] != "REMOVED":
                group = ray.util.get_placement_group(row["name"])
                if row["state"] == "CREATED":
                    self._holds[row["name"].removeprefix(start)] = group
                else:
                    remove_placement_group(group)


def _of_other_code(code: str) -> str:
    return (
        f"orch {this_code()} is installed there, and the controller is of {code}: install one on both, then `orch up`"
    )


def _names(alive: list[dict[str, Any]]) -> dict[str, str]:
    """By node id: the name the operator gave (`--node-name`), else the host's; a second raylet of one host gets a suffix."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for row in sorted(alive, key=lambda r: (r["NodeManagerAddress"], r["NodeManagerPort"])):
        given = row.get("NodeName") or ""
        name = given if given and given != row["NodeManagerAddress"] else row["NodeManagerHostname"]
        name = name if name not in taken else f"{name}-{row['NodeID'][:6]}"
        taken.add(name)
        names[row["NodeID"]] = name
    return names


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
        await asyncio.to_thread(backend.end_other_agents)
        await asyncio.to_thread(backend.take_up_holds)
        settings = Settings(
            home=self._home.root,
            storage=Path(note.storage),
            lease_s=note.lease_s,
            log_limit=note.log_limit,
            preflight=note.preflight,
            keep=Keep(note.keep_runs, note.keep_series, note.keep_logs),
            policy=policy_of(note.policy),
            open_ray=warning(note.address) if note.ray_auth == "none" else None,
        )
        declared = read_declared(note)
        self._controller = Controller(
            store,
            backend,
            settings,
            declared,
            superseded=lambda: os._exit(1),
            last_alive=self._home.controller_last_alive(),
        )
        await self._controller.start()
        self._code = CodeStore(self._home.root / "code", note.code_limit)
        await self._code.put(*await asyncio.to_thread(bench_script.to_store))
        token, metrics_token = TokenFile(self._home.token_file()), TokenFile(self._home.metrics_token_file())
        audit = AuditLog(self._home.audit_file)
        api = Api(
            self._controller,
            self._code,
            token.current,
            self._status,
            self._down,
            metrics_token.current,
            audit,
            open_doors(note),
        )
        runner = api.runner()
        await runner.setup()
        port = await self._listen(runner)
        self._url = f"http://127.0.0.1:{port}"
        write_monitoring(self._home.monitoring, self._url, self._home.metrics_token_file(), ray_exporters())
        if note.dashboard_proxy is not None:
            self._dashboard = await serve_dashboard(self._controller, note.dashboard_proxy)
        tell_ray(self._controller)
        self._home.write_controller(self._url, orchestrator.__version__, this_code())
        audit.write(
            {"uid": os.getuid(), "call": "controller started", "said": f"pid {os.getpid()}, {orchestrator.__version__}"}
        )
        self._controller.runtime.forever("sign of life", self._sign_of_life, SIGN_OF_LIFE_S)
        spare_the_collector()
        return self._url

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
