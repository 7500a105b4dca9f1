"""What a request's wishes mean on this cluster: which GPU models a gang may be made of, and within what it must
stay."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.placement.tree import CLUSTER, NODE, Topology
from orchestrator.placement.values import Request

NVLINK, ANY = "nvlink", "any"


@dataclass(frozen=True)
class Scope:
    """What a search may look at."""

    depth: int = 0
    """The widest level that the gang may span; 0 is the cluster."""
    single_node: bool = False
    one_island: bool = False
    """Whether NVLink must join the GPUs of each part."""
    nodes: frozenset[int] | None = None
    """The only nodes that may be used, where it is not all."""


def model_groups(request: Request, topology: Topology) -> list[tuple[str | None, ...] | None]:
    """The sets of GPU models that a gang may be made of: each model by itself, or all listed ones together."""
    if request.device == "cpu":
        return [None]
    models = list(dict.fromkeys(model for kind in topology.kinds for model in kind.models))
    if not request.gpu:
        return [(model,) for model in models]
    accepted = [model for model in models if any(matches(wanted, model) for wanted in request.gpu)]
    if len(request.gpu) > 1:
        return [tuple(accepted)] if accepted else []
    return [(model,) for model in accepted]


def matches(wanted: str, model: str | None) -> bool:
    """Whether a model is of the wanted kind: `H100` and `h100-80gb` both name `NVIDIA H100 80GB HBM3`."""
    words = set(re.findall(r"[a-z0-9]+", (model or "").lower()))
    return all(word in words or f"{word}b" in words for word in re.findall(r"[a-z0-9]+", wanted.lower()))


def scopes(request: Request, topology: Topology) -> Iterator[Scope]:
    """The scopes that satisfy `near`; a place in any of them will do."""
    near = request.near
    narrowest = len(topology.levels) - 1
    if near in (None, ANY, CLUSTER):
        yield Scope()
    elif near == NODE:
        yield Scope(narrowest, single_node=True)
    elif near == NVLINK:
        yield Scope(narrowest, single_node=True, one_island=True)
        if NVLINK in topology.levels:
            joined = frozenset(node.index for node in topology.nodes if node.clique is not None)
            yield Scope(topology.levels.index(NVLINK), one_island=True, nodes=joined)
    elif near in topology.levels:
        yield Scope(topology.levels.index(near))
    else:
        # One node is inside any domain, whatever is known of the fabric.
        yield Scope(narrowest, single_node=True)
        for members in topology.cluster.members(str(near)).values():
            yield Scope(nodes=frozenset(topology.index[name] for name in members))


def is_known(near: str | None, topology: Topology) -> bool:
    """Whether this cluster has such a level or label."""
    if near in (None, ANY, CLUSTER, NODE, NVLINK) or near in topology.levels:
        return True
    return bool(topology.cluster.members(str(near)))
