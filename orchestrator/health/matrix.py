"""How the nodes' versions and settings differ, and what will go wrong with NCCL because of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.health.cluster_rules import CLUSTER_RULES
from orchestrator.health.facts import NodeFacts, active_adapters, counted, size
from orchestrator.health.finding import SEVERITIES, Finding
from orchestrator.health.node_rules import NODE_RULES


@dataclass(frozen=True)
class Component:
    """One thing that is compared, and which nodes have what; nodes of which nothing is known are left out."""

    what: str
    values: tuple[tuple[str, tuple[str, ...]], ...]
    """A value and the nodes that have it; what most nodes have comes first."""

    @property
    def drifts(self) -> bool:
        return len(self.values) > 1


@dataclass(frozen=True)
class Matrix:
    """The nodes side by side."""

    nodes: tuple[NodeFacts, ...]
    components: tuple[Component, ...]
    findings: tuple[Finding, ...]
    """The worst first."""


def matrix(nodes: Iterable[NodeFacts]) -> Matrix:
    """Compares the nodes and applies every rule."""
    nodes = tuple(sorted(nodes, key=lambda facts: facts.node))
    findings = [finding for facts in nodes for rule in NODE_RULES for finding in rule(facts)]
    findings += [finding for rule in CLUSTER_RULES for finding in rule(nodes)]
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Matrix(nodes, tuple(_components(nodes)), tuple(findings))


def to_json(found: Matrix) -> dict[str, Any]:
    """The matrix as `orch doctor --json` prints it; a finding that several nodes have is one."""
    together: dict[tuple[str, str, str], list[str]] = {}
    for one in found.findings:
        on = together.setdefault((one.severity, one.problem, one.mend), [])
        on += [one.node] if one.node is not None else []
    return {
        "nodes": [_facts_json(facts) for facts in found.nodes],
        "components": [
            {"what": one.what, "values": [{"value": value, "nodes": list(names)} for value, names in one.values]}
            for one in found.components
        ],
        "drift": [one.what for one in found.components if one.drifts],
        "findings": [
            {"severity": severity, "nodes": names, "problem": problem, "mend": mend}
            for (severity, problem, mend), names in together.items()
        ],
    }


def _facts_json(facts: NodeFacts) -> dict[str, Any]:
    found = asdict(facts)
    # JSON has no infinity.
    return {key: "unlimited" if value == float("inf") else value for key, value in found.items()}


COMPARED: tuple[tuple[str, Callable[[NodeFacts], object]], ...] = (
    ("driver", lambda facts: facts.driver),
    ("CUDA of the driver", lambda facts: facts.cuda_driver),
    ("python", lambda facts: facts.python_version),
    ("torch", lambda facts: facts.torch or ("none" if facts.python_version else None)),
    ("CUDA of torch", lambda facts: facts.cuda or ("none" if facts.torch else None)),
    ("cuDNN", lambda facts: facts.cudnn),
    ("NCCL of torch", lambda facts: facts.nccl),
    ("NCCL loaded", lambda facts: facts.nccl_loaded),
    ("NCCL's library", lambda facts: facts.nccl_path),
    ("GPUs", lambda facts: counted(facts.gpus)),
    ("MIG", lambda facts: _of(facts.mig, "GPUs cut")),
    ("ECC", lambda facts: None if facts.ecc_off is None else f"off on {facts.ecc_off}" if facts.ecc_off else "on"),
    ("ECC errors", lambda facts: facts.ecc_errors),
    ("peer access", lambda facts: _list(facts.peers_denied, "all pairs", "not ")),
    ("kernel", lambda facts: facts.kernel),
    ("container", lambda facts: facts.container),
    ("shared memory", lambda facts: None if facts.shm is None else size(facts.shm)),
    ("locked memory", lambda facts: None if facts.memlock is None else size(facts.memlock)),
    ("open files", lambda facts: None if facts.nofile is None else _number(facts.nofile)),
    ("adapters", active_adapters),
    (
        "adapters' firmware",
        lambda facts: ", ".join(sorted({a.firmware for a in facts.adapters or () if a.firmware})) or None,
    ),
    ("peer memory", lambda facts: _yes(facts.peer_memory)),
    ("IOMMU", lambda facts: _yes(facts.iommu)),
    ("ACS", lambda facts: _list(facts.acs, "no", "on ")),
    ("NCCL's variables", lambda facts: _variables(facts)),
    ("NCCL's plugins", lambda facts: ", ".join(facts.plugins) or "none"),
    ("interface", lambda facts: facts.interface),
    ("MTU", lambda facts: facts.mtu),
)
"""What is compared; None takes no part, as nothing is known."""


def _components(nodes: Sequence[NodeFacts]) -> Iterator[Component]:
    for what, value in COMPARED:
        groups: dict[str, list[str]] = {}
        for facts in nodes:
            if (found := value(facts)) is not None:
                groups.setdefault(str(found), []).append(facts.node)
        values = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
        if values:
            yield Component(what, tuple((text, tuple(names)) for text, names in values))


def _yes(value: bool | None) -> str | None:
    return None if value is None else "yes" if value else "no"


def _variables(facts: NodeFacts) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(facts.variables.items())) or "none"


def _of(count: int | None, what: str) -> str | None:
    return None if count is None else f"{count} {what}" if count else "off"


def _list(found: tuple[str, ...] | None, none: str, some: str) -> str | None:
    if found is None:
        return None
    more = f" and {len(found) - 4} more" if len(found) > 4 else ""
    return some + ", ".join(found[:4]) + more if found else none


def _number(value: float) -> str:
    return "unlimited" if value == float("inf") else f"{value:.0f}"
