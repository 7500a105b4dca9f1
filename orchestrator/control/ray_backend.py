"""The cluster through Ray: which nodes there are, holds on them as placement groups, and an agent's actor on each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from orchestrator.control.backend import Agent, AgentGone, ClusterLost, HoldRefused, NodeFacts
from orchestrator.control.ray_agent import AgentActor, RemoteAgent
from orchestrator.control.ray_calls import RayCalls

START_ACTOR_S = 30.0
NODE_ID = "ray.io/node-id"
HEAD = "node:__internal_head__"
"""A resource that the head's node alone has."""


def hold_name(namespace: str, node: str) -> str:
    """The placement group by which the home holds the node."""
    return f"orch-hold-{namespace}-{node}"


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
            name=f"orch-agent-{node.name}-{node.id[:8]}",
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
            self._agents[node.id] = actor.remote(self._namespace, node.name, node.address, *folders)
            return RemoteAgent(self._agents[node.id])
        except RayError as error:
            raise AgentGone(str(error).splitlines()[0]) from None

    async def hold(self, node: NodeFacts) -> None:
        self._owed.discard(node.name)
        if node.name not in self._holds:
            await self._call(self._hold, node)

    def _hold(self, node: NodeFacts) -> None:
        bundle = {"GPU" if node.device == "cuda" else "CPU": float(node.total)}
        group = placement_group(
            [bundle],
            strategy="STRICT_PACK",
            lifetime="detached",
            name=hold_name(self._namespace, node.name),
            bundle_label_selector=[{NODE_ID: node.id}],
        )
        if group.wait(2):
            # Here, not by who asked: it may have given up on a head that was slow.
            self._holds[node.name] = group
            return
        remove_placement_group(group)
        kind = next(iter(bundle))
        raise HoldRefused(f"Ray did not give the {node.total} {kind}s of {node.name}: other work holds some of them")

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
