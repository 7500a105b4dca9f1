"""What there is to place on: each node's own account of itself, put together with what is declared of it and of the fabric."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.bench.calibrate import Calibration
from orchestrator.control.gpus import visible_gpus
from orchestrator.control.rank_env import base_env
from orchestrator.hardware.environment import node_facts
from orchestrator.hardware.merge import Disagreement, merge
from orchestrator.hardware.model import Cluster, Gpu, Nic, Node, Shape
from orchestrator.hardware.nvml import GpuState
from orchestrator.hardware.probe import Probe, probe
from orchestrator.health.vitals import GpuVitals, Vitals
from orchestrator.placement.tree import Free, Topology


@dataclass(frozen=True)
class Seen:
    """One node as the cluster and its agent show it."""

    name: str
    total: int
    """GPUs that the cluster gives to work, or CPU slots on a node without GPU."""
    cuda: bool
    labels: Mapping[str, str] = field(default_factory=dict)
    probed: Node | None = None
    """None until the agent has reported."""


@dataclass(frozen=True)
class Inventory:
    """The cluster that placement sees."""

    topology: Topology
    disagreements: tuple[Disagreement, ...] = ()
    absent: tuple[str, ...] = ()
    """Nodes that are declared and have not joined."""


def take_inventory(
    seen: Iterable[Seen],
    declared: Cluster,
    calibration: Calibration = Calibration(),  # noqa: B008 - frozen
) -> Inventory:
    """Nodes that have joined, with what is declared of them; the fabric as declared; links as far as they were measured.

    A machine is right about itself; what it cannot tell is taken from the declaration.
    """
    known = {node.name: node for node in declared.nodes}
    nodes: list[Node] = []
    slots: dict[str, int] = {}
    disagreements: list[Disagreement] = []
    for one in seen:
        node = _given(one)
        if one.name in known:
            node, said = merge(known[one.name], node)
            # Before the agent has reported, nothing can disagree with it.
            disagreements += said if one.probed is not None else ()
            node = replace(node, shape=_first(node.shape, one.total if one.cuda else 0))
        nodes.append(node)
        if not one.cuda:
            slots[one.name] = one.total
    joined = {node.name for node in nodes}
    domains = tuple(
        replace(domain, members=tuple(m for m in domain.members if m in joined or m not in known))
        for domain in declared.domains
    )
    cluster = Cluster(tuple(nodes), domains, declared.notes)
    topology = Topology(cluster, slots=slots, measured=calibration.measured, own=calibration.own)
    return Inventory(topology, tuple(disagreements), tuple(sorted(known.keys() - joined)))


def _given(one: Seen) -> Node:
    """The node with as many GPUs as the cluster gives to work, and the labels that the cluster knows it by."""
    probed = one.probed or Node(one.name)
    labels = {**probed.labels, **plain_labels(one.labels)}
    clique = probed.clique or one.labels.get("ray.io/gpu-domain")
    model = one.labels.get("ray.io/accelerator-type")
    shape = _first(probed.shape, one.total if one.cuda else 0, model)
    return replace(probed, name=one.name, shape=shape, labels=labels, clique=clique)


def plain_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Ray's labels as placement knows them: by their whole key, and those of orch by its last word (`orch.io/leaf`: `leaf`)."""
    plain = {key: value for key, value in labels.items() if key != "ray.io/node-id"}
    return plain | {key.rpartition("/")[2]: value for key, value in labels.items() if key.startswith("orch.io/")}


def _first(shape: Shape, gpus: int, model: str | None = None) -> Shape:
    """The shape with exactly the first `gpus` GPUs; those that no driver shows are known by their index alone."""
    have = len(shape.gpus)
    if have == gpus:
        return shape
    if have > gpus:
        return visible(shape, list(range(gpus)))
    if have:
        return replace(shape, gpus=_plain_gpus(gpus, shape.gpus[0].model), links=(), peer_access=())
    return replace(shape, gpus=_plain_gpus(gpus, model), links=(), peer_access=())


def _plain_gpus(count: int, model: str | None) -> tuple[Gpu, ...]:
    return tuple(Gpu(index, model) for index in range(count))


def visible(shape: Shape, positions: Sequence[int]) -> Shape:
    """The shape of a machine of which only the GPUs at these positions are given, numbered anew in this order."""
    chosen = [shape.gpus[position] for position in positions]
    new = {gpu.index: index for index, gpu in enumerate(chosen)}
    pairs = [(a, b) for i, a in enumerate(chosen) for b in chosen[i + 1 :]]
    return replace(
        shape,
        gpus=tuple(replace(gpu, index=new[gpu.index]) for gpu in chosen),
        links=tuple(shape.link(a.index, b.index) for a, b in pairs) if shape.links else (),
        peer_access=tuple(shape.peer(a.index, b.index) for a, b in pairs) if shape.peer_access else (),
        nics=tuple(_near(nic, new) for nic in shape.nics),
    )


def _near(nic: Nic, new: Mapping[int, int]) -> Nic:
    return replace(nic, near=tuple(sorted(new[index] for index in nic.near if index in new)))


def positions_of(names: Sequence[str], node: Node) -> list[int]:
    """Where CUDA's names (indices or UUIDs) of the GPUs that Ray was given stand among the node's GPUs."""
    by_index = {str(gpu.index): position for position, gpu in enumerate(node.gpus)}
    by_uuid = {uuid: position for position, uuid in enumerate(node.uuids)}
    found = (by_index.get(name, next((p for u, p in by_uuid.items() if u.startswith(name)), None)) for name in names)
    return [position for position in found if position is not None]


def free_view(
    topology: Topology,
    busy: Mapping[str, Mapping[int, int]],
    notes: Mapping[str, str],
    unfit: Mapping[str, Mapping[int, str]] | None = None,
    health: Mapping[str, float] | None = None,
) -> Free:
    """What nobody holds now; `notes` says of which nodes nothing may be given, and why; `unfit` of which GPUs.

    `health` has those nodes that are not quite well (1.0): among equal places others are taken.
    """
    free = Free(topology)
    for name, held in busy.items():
        if name in topology.index:
            # A node may have come back with fewer GPUs than an attempt held on it.
            kind = topology.nodes[topology.index[name]].kind
            has = set(kind.gpus_of(kind.full))
            free.take(name, [gpu for gpu in held if gpu in has])
    for name, bad in (unfit or {}).items():
        if name in topology.index and bad:
            kind = topology.nodes[topology.index[name]].kind
            well = [gpu for gpu in kind.gpus_of(kind.full) if gpu not in bad]
            free.set_usable(name, well, "; ".join(f"GPU {gpu}: {why}" for gpu, why in sorted(bad.items())))
    for name, note in notes.items():
        if name in topology.index:
            free.set_usable(name, (), note)
    for name, score in (health or {}).items():
        if name in topology.index:
            free.health[topology.index[name]] = score
    return free


class FreeView:
    """The same kept up: only what was taken and given back since is looked at, unless the nodes themselves changed."""

    def __init__(self) -> None:
        self._of: tuple[object, ...] | None = None
        self._busy: Mapping[str, Mapping[int, int]] = {}
        self._free: Free | None = None

    def now(
        self,
        topology: Topology,
        busy: Mapping[str, Mapping[int, int]],
        notes: Mapping[str, str],
        unfit: Mapping[str, Mapping[int, str]],
        health: Mapping[str, float] | None = None,
    ) -> Free:
        """As `free_view`; the caller may change what it gets, but not `busy`."""
        if self._free is None or self._of != (topology, notes, unfit, health):
            self._free = free_view(topology, busy, notes, unfit, health)
            self._of = (topology, notes, unfit, health)
        else:
            for name in self._busy.keys() | busy.keys():
                before, after = self._busy.get(name, {}).keys(), busy.get(name, {}).keys()
                if before != after and name in topology.index:
                    kind = topology.nodes[topology.index[name]].kind
                    has = set(kind.gpus_of(kind.full))
                    self._free.give(name, (before - after) & has)
                    self._free.take(name, (after - before) & has)
        self._busy = busy
        return self._free.copy()


def unfit_gpus(states: Iterable[GpuState], indices: Sequence[int]) -> dict[int, str]:
    """By orch's index, the GPUs that no run should get, and why: the driver's own verdict, and MIG.

    `indices` are the driver's own, in orch's order.
    """
    order = {index: position for position, index in enumerate(indices)}
    found = {}
    for state in states:
        if state.index not in order:
            continue
        if state.recovery_action not in (None, "NONE"):
            found[order[state.index]] = f"the driver asks for {state.recovery_action}"
        elif state.mig:
            found[order[state.index]] = "it is cut into MIG instances"
    return found


def probe_node(environ: Mapping[str, str]) -> dict[str, Any]:
    """This node as its agent reports it: the GPUs that Ray was given, by orch's index, and the versions."""
    found = probe()
    node = found.node
    positions = positions_of(visible_gpus(environ), node)
    uuids = tuple(node.uuids[position] for position in positions) if node.uuids else ()
    node = replace(node, shape=visible(node.shape, positions), uuids=uuids)
    given = replace(found, node=node, gpus=tuple(found.gpus[position] for position in positions))
    versions = {
        "driver": found.versions.driver,
        "cuda_driver": found.versions.cuda_driver,
        "kernel": found.versions.kernel or os.uname().release,
    }
    return {
        "node": node,
        "host": node_facts(given, base_env(environ)),
        "versions": {name: value for name, value in versions.items() if value is not None},
        "unfit": unfit_gpus(found.gpus, [found.node.gpus[position].index for position in positions]),
        "boot_id": found.boot_id,
        "shm_mib": found.shm_mib,
        "notes": list(found.notes),
        "vitals": vitals_of(given),
    }


def vitals_of(given: Probe) -> Vitals:
    """What the look says of the health of the GPUs that Ray was given, by orch's index."""
    gpus = tuple(
        GpuVitals(
            index,
            state.uncorrected_errors,
            state.remap_pending,
            state.remap_failed,
            state.recovery_action,
            state.nvlinks,
            state.nvlink_errors,
        )
        for index, state in enumerate(given.gpus)
    )
    return Vitals(gpus, boot_id=given.boot_id)
