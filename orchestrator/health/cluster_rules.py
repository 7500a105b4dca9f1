"""What is known to go wrong between nodes that are each well by themselves: a rule each, on what is known of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from orchestrator.health.facts import NodeFacts, active_adapters
from orchestrator.health.finding import Finding, Severity

CLOCKS_APART_S = 1.0
"""More than this between a node's clock and the head's is told."""


def _values(nodes: Sequence[NodeFacts], value: Callable[[NodeFacts], object]) -> dict[str, list[str]]:
    """The nodes by what they have, those left out of which nothing is known."""
    groups: dict[str, list[str]] = {}
    for facts in nodes:
        if (found := value(facts)) is not None:
            groups.setdefault(str(found), []).append(facts.node)
    return groups


def _who(groups: dict[str, list[str]]) -> str:
    return "; ".join(f"{value} on {_few(nodes)}" for value, nodes in sorted(groups.items()))


def _few(nodes: Sequence[str]) -> str:
    return ", ".join(nodes) if len(nodes) <= 4 else f"{', '.join(nodes[:3])} and {len(nodes) - 3} more"


def _with_gpus(facts: NodeFacts) -> object:
    """Nodes with and without GPUs never share a run."""
    return bool(facts.gpus)


def _models(facts: NodeFacts) -> object:
    """A run takes one model of GPU unless it lists several."""
    return frozenset(facts.gpus)


Value = Callable[[NodeFacts], object]

MUST_AGREE: tuple[tuple[str, Value, Value, Severity, str, str], ...] = (
    (
        "NCCL",
        lambda f: f.nccl_loaded or f.nccl,
        _with_gpus,
        "error",
        "ranks of one communicator must have the same NCCL; others fail or hang when they connect",
        "install the same torch on all, and look for another libnccl.so.2 in LD_LIBRARY_PATH",
    ),
    (
        "torch",
        lambda f: f.torch,
        _with_gpus,
        "error",
        "a checkpoint or a collective of one may not fit the other",
        "install one torch on all",
    ),
    (
        "the set of adapters",
        active_adapters,
        _models,
        "error",
        "NCCL starts and then spins for ever (GPUs at 100 % and cool, memory at 0 %), as it pairs adapters by number",
        "name those that all nodes have with NCCL_IB_HCA, and set NCCL_IGNORE_NET_MISMATCH=0 to fail instead",
    ),
    (
        "NCCL's variables",
        lambda f: (
            ", ".join(f"{k}={v}" for k, v in sorted(f.variables.items()) if k not in ("NCCL_HOSTID", "NCCL_DEBUG"))
            or "none"
        ),
        _with_gpus,
        "warning",
        "ranks that choose differently do not fit together",
        "set them in the job or on every node",
    ),
    (
        "the MTU",
        lambda f: f.mtu,
        _with_gpus,
        "warning",
        "large packets are dropped between them: hangs without an error",
        "set one MTU",
    ),
    (
        "the driver",
        lambda f: f.driver,
        _with_gpus,
        "warning",
        "faults will show on some nodes only",
        "install one driver on all",
    ),
    (
        "the GPUs' model",
        lambda f: ", ".join(sorted(set(f.gpus))) or None,
        _with_gpus,
        "note",
        "a run over both goes at the pace of the slower",
        "name one model with `gpu:` in the job",
    ),
)
"""What, of which facts, among nodes that are alike in what, how bad a difference is, why, how to mend."""


def nodes_agree(nodes: Sequence[NodeFacts]) -> Iterator[Finding]:
    """Ranks of one run talk to each other, so what differs between their nodes breaks what works on each of them."""
    for what, value, alike, severity, breaks, mend in MUST_AGREE:
        kinds: dict[object, list[NodeFacts]] = {}
        for facts in nodes:
            kinds.setdefault(alike(facts), []).append(facts)
        for kind in kinds.values():
            if len(groups := _values(kind, value)) > 1:
                yield Finding(severity, None, f"{what} differs: {_who(groups)}: {breaks}", mend)


def hosts_are_told_apart(nodes: Sequence[NodeFacts]) -> Iterator[Finding]:
    """NCCL knows a host by its name and boot id, or NCCL_HOSTID: equal on two hosts, it tries shared memory between them."""
    identity = _values(nodes, lambda f: f"{f.hostname} ({f.boot_id})" if f.hostname and f.boot_id else None)
    ids = _values(nodes, lambda f: f.variables.get("NCCL_HOSTID"))
    for what, groups in (("name and boot id", identity), ("NCCL_HOSTID", ids)):
        for value, same in groups.items():
            if len(same) > 1:
                problem = f"{_few(same)} have the same {what} {value}: NCCL takes them for one host"
                mend = (
                    "set NCCL_HOSTID apart on hosts that are different; leave it where these are containers of one host"
                )
                yield Finding("warning", None, problem, mend)


def loopback_joins_nobody(nodes: Sequence[NodeFacts]) -> Iterator[Finding]:
    """A node that the others know by its loopback address is right only where all of them are one machine."""
    hosts = {(facts.hostname, facts.boot_id) for facts in nodes}
    alone = [facts.node for facts in nodes if facts.interface == "lo"]
    if alone and len(hosts) > 1:
        problem = (
            f"{_few(alone)} would talk over lo, which reaches no other host: runs of several nodes hang at their start"
        )
        yield Finding(
            "error", None, problem, "start Ray there with --node-ip-address and the address of the shared network"
        )


def clocks_agree(nodes: Sequence[NodeFacts]) -> Iterator[Finding]:
    """Logs and traces of several nodes are put in order by their clocks; leases are not, and hold whatever clocks say."""
    ahead = {facts.node: facts.clock_ahead for facts in nodes if facts.clock_ahead is not None}
    apart = [node for node, by in ahead.items() if abs(by) > CLOCKS_APART_S]
    if apart:
        worst = max(apart, key=lambda node: abs(ahead[node]))
        by = ahead[worst]
        problem = (
            f"the clocks of {_few(apart)} are off by more than {CLOCKS_APART_S:g} s ({worst} is {abs(by):.1f} s "
            f"{'ahead of' if by > 0 else 'behind'} the head): logs of ranks cannot be put in order"
        )
        yield Finding("warning", None, problem, "run chrony or another NTP client on every node")


CLUSTER_RULES: tuple[Callable[[Sequence[NodeFacts]], Iterable[Finding]], ...] = (
    nodes_agree,
    hosts_are_told_apart,
    loopback_joins_nobody,
    clocks_agree,
)
