"""How the nodes' versions and settings differ, and what will go wrong with NCCL because of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from orchestrator.health.facts import NodeFacts, active_adapters, counted, size
from orchestrator.health.rules import CLUSTER_RULES, NODE_RULES, SEVERITIES, Finding


@dataclass(frozen=True)
class Drift:
    """One thing in which nodes differ."""

    what: str
    usual: str
    """What most nodes have."""
    others: tuple[tuple[str, str], ...]
    """Node and value, of those that have something else."""

    def __str__(self) -> str:
        return f"{self.what}: {self.usual}, but " + ", ".join(f"{value} on {node}" for node, value in self.others)


@dataclass(frozen=True)
class Matrix:
    """The nodes side by side."""

    nodes: tuple[NodeFacts, ...]
    drift: tuple[Drift, ...]
    findings: tuple[Finding, ...]
    """The worst first."""


def matrix(nodes: Iterable[NodeFacts]) -> Matrix:
    """Compares the nodes and applies every rule."""
    nodes = tuple(sorted(nodes, key=lambda facts: facts.node))
    findings = [finding for facts in nodes for rule in NODE_RULES for finding in rule(facts)]
    findings += [finding for rule in CLUSTER_RULES for finding in rule(nodes)]
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Matrix(nodes, tuple(_drift(nodes)), tuple(findings))


COMPARED: tuple[tuple[str, Callable[[NodeFacts], object]], ...] = (
    ("driver", lambda facts: facts.driver),
    ("CUDA of the driver", lambda facts: facts.cuda_driver),
    ("torch", lambda facts: facts.torch),
    ("CUDA of torch", lambda facts: facts.cuda),
    ("cuDNN", lambda facts: facts.cudnn),
    ("NCCL of torch", lambda facts: facts.nccl),
    ("NCCL loaded", lambda facts: facts.nccl_loaded),
    ("GPUs", lambda facts: counted(facts.gpus)),
    ("kernel", lambda facts: facts.kernel),
    ("shared memory", lambda facts: None if facts.shm is None else size(facts.shm)),
    ("locked memory", lambda facts: None if facts.memlock is None else size(facts.memlock)),
    ("open files", lambda facts: facts.nofile),
    ("adapters", active_adapters),
    (
        "adapters' firmware",
        lambda facts: ", ".join(sorted({a.firmware for a in facts.adapters or () if a.firmware})) or None,
    ),
    ("peer memory", lambda facts: _yes(facts.peer_memory)),
    ("IOMMU", lambda facts: _yes(facts.iommu)),
    ("NCCL's variables", lambda facts: _variables(facts)),
    ("interface", lambda facts: facts.interface),
    ("MTU", lambda facts: facts.mtu),
)
"""What is compared; None takes no part, as nothing is known."""


def _drift(nodes: Sequence[NodeFacts]) -> Iterator[Drift]:
    for what, value in COMPARED:
        known = {facts.node: str(found) for facts in nodes if (found := value(facts)) is not None}
        counts = Counter(known.values())
        if len(counts) > 1:
            usual = min(counts, key=lambda text: (-counts[text], text))
            yield Drift(what, usual, tuple((node, text) for node, text in known.items() if text != usual))


def _yes(value: bool | None) -> str | None:
    return None if value is None else "yes" if value else "no"


def _variables(facts: NodeFacts) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(facts.variables.items())) or "none"
