"""What a run ran with, as factors that can be compared: transport, placement, versions, code, spec, neighbours, nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.history.explain import Factors
from orchestrator.scheduling.run import Attempt, Code, Run

VERSIONS = ("torch", "cuda", "cudnn", "nccl", "driver", "cuda_driver", "python_version", "kernel", "container")
"""Of attempts.environment, by node (health/recorded.py)."""
NOT_OF_SPEED = frozenset(
    ("name", "team", "tags", "priority", "secrets", "time_limit", "grace", "retry", "hang", "after", "array", "throughput",
     "on_degraded", "requires", "workdir", "checkpoint")
)  # fmt: skip
"""Parts of a job file that cannot change how fast its steps are."""


@dataclass(frozen=True)
class Surroundings:
    """What is known of where a run's last attempt was, beside its placement."""

    leaves: int | None = None
    neighbours: int | None = None
    gpu: str | None = None
    """The GPU model."""


def factors_of(run: Run, around: Surroundings, nodes: Iterable[str] = ()) -> Factors:
    """By name, in the order in which they are shown. `nodes`: for each of these, whether the run was on it."""
    attempt = run.attempt
    found: dict[str, str] = {}
    if attempt is not None:
        found |= _transport(attempt)
        found |= _placement(attempt, around)
        found |= _versions(attempt)
    if run.code is not None:
        found["code"] = code_name(run.code)
    found |= {f"spec.{key}": value for key, value in _flat(run.spec.model_dump(mode="json")) if key not in NOT_OF_SPEED}
    if around.neighbours is not None:
        found["neighbours"] = crowd(around.neighbours)
    if attempt is not None:
        here = {part.node for part in attempt.placement.nodes}
        found |= {f"node {node}": "yes" if node in here else "no" for node in nodes}
    return found


def code_name(code: Code) -> str:
    """The commit; where the tree had changes, or was of no repository, what tells its content apart too."""
    if code.git is None:
        return code.sha256[:12]
    return code.git[:12] + (f"+{code.sha256[:8]}" if code.dirty else "")


def crowd(neighbours: int) -> str:
    """How many other runs, in steps that matter."""
    for most, name in ((0, "0"), (4, "1-4"), (19, "5-19")):
        if neighbours <= most:
            return name
    return "20+"


def _transport(attempt: Attempt) -> dict[str, str]:
    seen = attempt.transport or {}
    found = {"transport": str(seen["verdict"])} if seen.get("verdict") else {}
    if seen.get("links"):
        found["transport.links"] = " + ".join(sorted(seen["links"]))
    return found


def _placement(attempt: Attempt, around: Surroundings) -> dict[str, str]:
    found = {"level": attempt.placement.level, "nodes": str(len(attempt.placement.nodes))}
    if around.leaves is not None:
        found["leaves"] = str(around.leaves)
    if around.gpu is not None:
        found["gpu"] = around.gpu
    return found


def _versions(attempt: Attempt) -> dict[str, str]:
    """Where the nodes differed, all of theirs."""
    found = {}
    for name in VERSIONS:
        seen = {str(node[name]) for node in (attempt.environment or {}).values() if node.get(name) is not None}
        if seen:
            found[name] = " / ".join(sorted(seen))
    return found


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            if prefix or key not in NOT_OF_SPEED:
                yield from _flat(inner, f"{prefix}{key}.")
        elif isinstance(inner, list):
            yield f"{prefix}{key}", ", ".join(map(str, inner))
        else:
            yield f"{prefix}{key}", "" if inner is None else str(inner)
