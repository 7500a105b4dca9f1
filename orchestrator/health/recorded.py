"""What history keeps of the versions that an attempt ran with: in a line, and as the `requires:` block that pins them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.health.compatibility import version
from orchestrator.health.facts import NodeFacts, counted
from orchestrator.health.requires import COMPONENTS

Environment = Mapping[str, Mapping[str, Any]]
"""By node: its versions, as `attempts[].environment` of `orch show --json` has them."""

_WORDS = (("torch", "torch"), ("cuda", "CUDA"), ("cudnn", "cuDNN"), ("nccl", "NCCL"), ("driver", "driver"),
          ("python_version", "python"))  # fmt: skip


def record(nodes: Iterable[NodeFacts]) -> dict[str, dict[str, Any]]:
    """What is kept of the nodes of an attempt; None where it was not known, or is not there."""
    return {
        facts.node: {
            "torch": facts.torch,
            "cuda": facts.cuda,
            "cudnn": facts.cudnn,
            "nccl": facts.nccl_loaded or facts.nccl,
            "driver": facts.driver,
            "cuda_driver": facts.cuda_driver,
            "python": facts.python,
            "python_version": facts.python_version,
            "gpus": list(facts.gpus),
            "kernel": facts.kernel,
            "container": facts.container,
        }
        for facts in nodes
    }


def in_words(environment: Environment) -> list[tuple[str, list[str]]]:
    """`torch 2.11.0, CUDA 13.0, ..., 8 NVIDIA H100` with the nodes that have just that, most nodes first."""
    groups: dict[str, list[str]] = {}
    for node, has in environment.items():
        said = [f"{word} {has[key]}" for key, word in _WORDS if has.get(key)]
        said += [counted(tuple(has["gpus"]))] if has.get("gpus") else []
        said += [f"in {has['container']}"] if has.get("container") not in (None, "none") else []
        groups.setdefault(", ".join(said), []).append(node)
    return sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))


def pinned(environment: Environment) -> dict[str, str]:
    """The `requires:` of a job that takes exactly these versions, without what differs between the nodes."""
    return {name: next(iter(groups)) for name, groups in _groups(environment) if len(groups) == 1}


def lock(environment: Environment) -> str:
    """The same as a block of a job file; a comment says of what was left out how it differed."""
    lines = ["requires:"]
    for name, groups in _groups(environment):
        told = "; ".join(f"{exact} on {', '.join(nodes[:4])}" for exact, nodes in sorted(groups.items()))
        lines.append(f'  {name}: "{next(iter(groups))}"' if len(groups) == 1 else f"  # {name} differed: {told}")
    return "\n".join(lines) + "\n"


def _groups(environment: Environment) -> Iterable[tuple[str, dict[str, list[str]]]]:
    """By component that any node had: the exact condition, and the nodes that had it."""
    for component in COMPONENTS:
        groups: dict[str, list[str]] = {}
        for node, has in environment.items():
            told = str(has.get(component) or "")
            if (found := version(told)) is not None:
                # A build's own mark is no part of a condition; 580.159.04 is written as its vendor writes it.
                exact = found.public if told.isdecimal() else told.partition("+")[0]
                groups.setdefault(f"=={exact}", []).append(node)
        if groups:
            yield component, groups
