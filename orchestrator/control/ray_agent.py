"""One node's agent as a Ray actor, and how the controller calls it."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
from collections.abc import AsyncIterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import ray
from ray.exceptions import RayActorError, RaySystemError, RayTaskError

from orchestrator.control.agent import NodeAgent
from orchestrator.control.backend import AgentGone, PartStatus, Report, StartPart
from orchestrator.control.home import own_node_folder
from orchestrator.control.inventory import probe_node
from orchestrator.control.shared_folder import FolderLook, Tokens
from orchestrator.control.survey import Surveyed
from orchestrator.health.stacks import RankStack

CONTROLLER = "orch-controller"
CALL_S = 60.0
"""No call to an agent takes longer, a first start with its download aside."""
START_S = 600.0


def node_info() -> dict[str, Any]:
    """What this node is and which versions it has: for placement, `orch nodes` and the history."""
    found = probe_node(os.environ)
    versions = {"python": platform.python_version()}
    for package in ("torch", "ray"):
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return found | {"versions": versions | found["versions"]}


class AgentActor(NodeAgent):
    """The node's agent as the Ray dashboard shows it."""

    def __init__(self, namespace: str, node: str, address: str, home: str, storage: str) -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s", force=True)
        self._namespace, self._name = namespace, node
        folder = own_node_folder(namespace) / f"node-{node}"
        # On other nodes than the head ORCH_HOME need not be there.
        disks = {"ORCH_HOME": Path(home), "attempts": folder, "storage": Path(storage), "tmp": Path(gettempdir())}
        super().__init__(namespace, node, address, folder, self._fetch_code, node_info, disks=disks)

    def __repr__(self) -> str:
        return f"orch agent on {self._name}"

    async def _fetch_code(self, sha256: str) -> AsyncIterator[bytes]:
        controller = ray.get_actor(CONTROLLER, namespace=self._namespace)
        offset = 0
        while chunk := await controller.read_code.remote(sha256, offset):
            yield chunk
            offset += len(chunk)


class RemoteAgent:
    """The controller's side of one agent actor: Ray's ways of failing become AgentGone."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle

    async def _call(self, method: str, *arguments: Any, timeout_s: float = CALL_S) -> Any:
        try:
            return await asyncio.wait_for(getattr(self.handle, method).remote(*arguments), timeout_s)
        except (RayActorError, RaySystemError) as error:
            raise AgentGone(str(error).splitlines()[0]) from None
        except RayTaskError as error:
            # Ray's own text is the agent's traceback; what the agent raised says what a person needs.
            raise error.cause from None
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
