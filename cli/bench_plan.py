"""What `orch bench` has to run: the options and the cluster to job files, one for each link that is to be measured. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cli.errors import NOT_FOUND, USAGE, Fail
from orchestrator.bench.pairs import Pair, first_round
from orchestrator.bench.results import TAGS

CPU_RANKS = 2
"""Ranks on one node without GPUs, unless asked otherwise: it has as many slots as cores, and Gloo gains by none of them."""
_SIZE = re.compile(r"([0-9]{1,12})([kKMGT]?)(iB|B)?")
_POWER = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4}


def bytes_of(text: str) -> int:
    """Bytes of `1M`, `64MiB`, `1G`, `4096`: powers of 1024, as nccl-tests reads them. Raises ValueError."""
    found = _SIZE.fullmatch(text)
    size = int(found[1]) << 10 * _POWER[found[2]] if found else 0
    if not 4 <= size <= 1 << 40:
        raise ValueError(f"{text!r} is no size from 4 bytes to 1T, such as 64K, 1M or 1G")
    return size


@dataclass(frozen=True)
class Ask:
    """The options."""

    nodes: tuple[str, ...] = ()
    per_node: int | None = None
    gpus: int | None = None
    near: str | None = None
    backend: tuple[str, ...] = ()
    collectives: tuple[str, ...] = ("all_reduce",)
    least: int = 1 << 20
    most: int | None = None
    iters: int = 0
    device: str = "auto"
    python: str | None = None


@dataclass(frozen=True)
class Plan:
    """The runs, as job files; what they share; and what the user should know."""

    runs: tuple[dict[str, Any], ...]
    common: dict[str, Any]
    per_node: int
    notes: tuple[str, ...] = ()


def plan_runs(
    ask: Ask, nodes: Sequence[dict[str, Any]], domains: Sequence[dict[str, Any]], *, pairs: bool = False
) -> Plan:
    """`nodes` and `domains` as the API lists them. Raises Fail(3) for names that the cluster does not have, Fail(2)."""
    up = [node for node in nodes if node["state"] == "up"]
    device = ask.device if ask.device != "auto" else "cuda" if any(n["device"] == "cuda" for n in up) else "cpu"
    if "nccl" in ask.backend and device == "cpu":
        raise Fail("--backend nccl needs GPUs, and the ranks are on CPUs: choose gloo", USAGE)
    of_device = {node["node"]: node for node in nodes if node["device"] == device}
    up_now = {name for name, node in of_device.items() if node["state"] == "up"}
    # A node that was asked for by its own name is waited for: a gang without it would be another link.
    awaited = set() if pairs else set(ask.nodes) & of_device.keys()
    named = _named(ask.nodes, nodes, domains)
    unit = "GPU" if device == "cuda" else "CPU slot"
    chosen = [name for name in named or sorted(of_device, key=_natural) if name in up_now | awaited]
    notes = [f"{name} is down or has no {unit} and is left out" for name in named if name not in chosen]
    if not chosen:
        raise Fail(f"no node of the cluster is up and has a {unit}", USAGE)
    have = {name: int(of_device[name]["total"]) for name in chosen}
    several = pairs or len(named) > 1 or (ask.near is not None and ask.near not in ("node", "nvlink"))
    per_node = ask.per_node or _per_node(device, [have[name] for name in chosen], several, bool(named) or pairs)
    common = _common(ask, device)
    if pairs:
        if len(chosen) < 2:
            raise Fail("--pairs needs two nodes or more that are up", USAGE)
        plan = Plan((), common, per_node, tuple(notes))
        return Plan(pair_runs(plan, first_round(chosen)), common, per_node, tuple(notes))
    job = common | ({"only": chosen} if named else {}) | ({"near": f"{ask.near}!"} if ask.near else {})
    if ask.gpus:
        job["workers"] = ask.gpus
    elif named:
        job["workers"] = f"{len(chosen)}x{per_node}"
    else:
        job["workers"] = f"{2 if several else 1}x{per_node}"
    if job["workers"] == "1x1":
        raise Fail("one rank alone moves nothing: ask for two or more with --per-node, --gpus or --nodes", USAGE)
    return Plan((job,), common, per_node, tuple(notes))


def pair_runs(plan: Plan, pairs: Sequence[Pair]) -> tuple[dict[str, Any], ...]:
    """A run for each pair. They queue: pairs that share a node wait for each other."""
    return tuple(plan.common | {"only": list(pair), "workers": f"2x{plan.per_node}"} for pair in pairs)


def _common(ask: Ask, device: str) -> dict[str, Any]:
    # With = and no space: a value must not be taken for an option.
    words = ["collectives.py", f"--collective={','.join(ask.collectives)}", f"--least={ask.least}"]
    words += [f"--backend={','.join(ask.backend)}"] if ask.backend else []
    words += [f"--most={ask.most}"] if ask.most else []
    words += [f"--iters={ask.iters}"] if ask.iters else []
    job: dict[str, Any] = {"name": "bench", "run": shlex.join(words), "device": device, "tags": TAGS}
    return job | ({"python": ask.python} if ask.python else {})


def _named(names: Sequence[str], nodes: Sequence[dict[str, Any]], domains: Sequence[dict[str, Any]]) -> list[str]:
    """The nodes that are meant: by their names, or by that of a domain which has them below it."""
    known = {node["node"] for node in nodes}
    found: dict[str, None] = {}
    unknown = []
    for name in names:
        below = [name] if name in known else _below(name, known, domains)
        found |= dict.fromkeys(below)
        unknown += [] if below else [name]
    if unknown:
        raise Fail(
            f"no such node, leaf or pod: {', '.join(unknown)}; the cluster has {_some(sorted(known, key=_natural))}",
            NOT_FOUND,
        )
    return list(found)


def _below(name: str, known: set[str], domains: Sequence[dict[str, Any]]) -> list[str]:
    members = [m for domain in domains if domain["name"] == name for m in domain["members"]]
    inner = [domain["name"] for domain in domains if domain["parent"] == name]
    deeper = [
        node for one in (*members, *inner) if one not in known and one != name for node in _below(one, known, domains)
    ]
    return sorted({*(m for m in members if m in known), *deeper}, key=_natural)


def _per_node(device: str, totals: Sequence[int], several: bool, named: bool) -> int:
    if device == "cpu":
        return 1 if several else min(CPU_RANKS, max(totals))
    # As many as every one of the named nodes has; of nodes that orch picks, as many as the largest.
    return min(totals) if named else max(totals)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name) if part]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "none"
