"""Whether a machine is what was declared: the node that counts, and where the declaration and the machine disagree."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from orchestrator.hardware.model import Node, nvlinks


@dataclass(frozen=True)
class Disagreement:
    """One thing that was declared and not found so."""

    node: str
    what: str
    """gpus, model, links, nics, rate, cpus or clique."""
    declared: str
    found: str

    def __str__(self) -> str:
        return f"{self.node}: declared {self.declared}, found {self.found}"


def merge(declared: Node, probed: Node) -> tuple[Node, tuple[Disagreement, ...]]:
    """The node as the machine is, with the declared labels, and every disagreement.

    The machine is right about itself; what it cannot tell (links that its driver hides, NICs without RDMA) is taken
    from the declaration.
    """
    shape, said = probed.shape, declared.shape
    same_gpus = shape.indices == said.indices
    merged = replace(
        shape,
        links=shape.links or (said.links if same_gpus else ()),
        nics=shape.nics or said.nics,
        cpus=shape.cpus if shape.cpus is not None else said.cpus,
        memory_mib=shape.memory_mib if shape.memory_mib is not None else said.memory_mib,
    )
    node = replace(
        probed,
        name=declared.name,
        shape=merged,
        labels={**probed.labels, **declared.labels},
        clique=probed.clique or declared.clique,
    )
    return node, tuple(_disagreements(declared, probed))


def _disagreements(declared: Node, probed: Node) -> Iterator[Disagreement]:
    """What was not declared cannot disagree."""

    def differ(what: str, said: str, found: str) -> Disagreement:
        return Disagreement(declared.name, what, said, found)

    if len(declared.gpus) != len(probed.gpus):
        yield differ("gpus", _gpus(len(declared.gpus)), str(len(probed.gpus)))
    models = Counter(gpu.model for gpu in declared.gpus if gpu.model)
    found = Counter(gpu.model for gpu in probed.gpus if gpu.model)
    if models and found and not all(any(_same_model(said, model) for said in models) for model in found):
        yield differ("model", ", ".join(models), ", ".join(found))
    if declared.shape.indices == probed.shape.indices:
        yield from _link_disagreements(declared, probed)
    if declared.nics and probed.nics:
        active = [nic for nic in probed.nics if nic.state in (None, "ACTIVE")]
        if len(active) < len(declared.nics):
            yield differ("nics", f"{len(declared.nics)} NICs", f"{len(active)} active")
        said_rate, rates = (
            max(nic.rate_gbps or 0 for nic in declared.nics),
            [n.rate_gbps for n in active if n.rate_gbps],
        )
        if said_rate and rates and min(rates) < said_rate:
            slow = sum(rate < said_rate for rate in rates)
            yield differ("rate", f"NICs of {said_rate:g} Gb/s", f"{slow} slower, the slowest {min(rates):g} Gb/s")
    if declared.shape.cpus is not None and probed.shape.cpus not in (None, declared.shape.cpus):
        yield differ("cpus", f"{declared.shape.cpus} CPUs", str(probed.shape.cpus))
    if declared.clique and probed.clique and declared.clique != probed.clique:
        yield differ("clique", f"NVLink clique {declared.clique}", probed.clique)


def _link_disagreements(declared: Node, probed: Node) -> Iterator[Disagreement]:
    wrong = []
    for a, b, said in declared.shape.pairs():
        found = probed.link(a, b)
        if found is not None and nvlinks(said) != nvlinks(found):
            wrong.append((a, b, said, found))
    if wrong:
        a, b, said, found = wrong[0]
        more = f" (and {len(wrong) - 1} more pairs)" if len(wrong) > 1 else ""
        yield Disagreement(declared.name, "links", f"{said} between GPUs {a} and {b}", f"{found}{more}")


def _gpus(count: int) -> str:
    return f"{count} GPU" if count == 1 else f"{count} GPUs"


def _same_model(said: str, found: str) -> bool:
    """Whether `H100` or `A100-SXM4-80GB` is meant by the driver's `NVIDIA A100-SXM4-80GB`: all its words are there."""
    words = set(re.split(r"[^a-z0-9]+", found.lower()))
    return all(word in words for word in re.split(r"[^a-z0-9]+", said.lower()) if word)
