"""Planned links against seen ones: what is worse, why it is likely so, and what the log alone means."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.health.facts import Adapter, NodeFacts
from orchestrator.health.meaning import meaning
from orchestrator.health.nccl_log import NcclLog, read
from orchestrator.health.verdict import PlannedLinks, PlannedNode, Promise, verdict

OWN = Path(__file__).resolve().parents[1] / "fixtures/nccl"

# a: 0=1  2=3   b: 4=5  6=7      = NVLink; islands of a node by PCIe beyond NCCL's P2P level
TWO_NODES = (
    PlannedNode("a", (0, 1, 2, 3), ((0, 1), (2, 3))),
    PlannedNode("b", (4, 5, 6, 7), ((4, 5), (6, 7))),
)


def seen(*links: str, said: str = "", ranks: int = 8) -> NcclLog:
    """A log with links such as `0-1 P2P/CUMEM`, ranks 0 to 3 on host a, the rest on b, and one more message."""
    lines = []
    for link in links:
        (low, high), kind = (int(rank) for rank in link.split()[0].split("-")), link.partition(" ")[2]
        host = "a" if low < 4 else "b"
        lines.append(f"{host}:{low + 1}:1 [0] NCCL INFO Channel 00/0 : {low}[0] -> {high}[1] via {kind}")
    lines.append(f"a:1:1 [0] NCCL INFO comm 0x1 rank 0 nranks {ranks} cudaDev 0 busId 1000 - Init COMPLETE")
    return read([*lines, f"a:1:1 [0] NCCL INFO {said}"])


AS_PLANNED = {
    "each as promised": (["0-1 P2P/CUMEM", "1-2 SHM/direct/direct", "3-4 NET/IB/0/GDRDMA"], "RDMA+GDR"),
    "better than promised": (["0-1 P2P/CUMEM", "1-2 P2P/IPC", "3-4 NET/IB/0/GDRDMA"], "Socket"),
    "a plugin's RDMA": (["3-4 NET/AWS Libfabric/0/GDRDMA"], "RDMA+GDR"),
    "RDMA without GPUDirect, and no more was promised": (["3-4 NET/IB/0"], "RDMA"),
    "NVLink between nodes": (["3-4 P2P/MNNVL"], "P2P/NVLink"),
}


@pytest.mark.parametrize("case", AS_PLANNED)
def test_links_that_keep_their_promise_are_as_planned(case: str) -> None:
    links, across = AS_PLANNED[case]
    found = verdict(PlannedLinks(TWO_NODES, across), seen(*links), {}, {})
    assert (found.word, found.shortfalls) == ("as planned", ())


WORSE: dict[str, tuple[str, Promise, str, dict[str, str], dict[str, NodeFacts], str]] = {
    # link seen, promised across, message, environment, facts; how the first cause begins
    "P2P off": ("0-1 SHM/direct", "RDMA", "", {"NCCL_P2P_DISABLE": "1"}, {}, "NCCL_P2P_DISABLE is set"),
    "P2P off, by the log": (
        "0-1 SHM/direct", "RDMA", "NCCL_P2P_DISABLE set by environment to 1", {}, {}, "NCCL_P2P_DISABLE is set",
    ),
    "P2P off, by the node": (
        "0-1 SHM/direct", "RDMA", "", {}, {"a": NodeFacts("a", conf={"NCCL_P2P_DISABLE": "1"})}, "NCCL_P2P_DISABLE is",
    ),
    "P2P refused": ("0-1 SHM/direct", "RDMA", "P2P is disabled between connected GPUs 0 and 1", {}, {}, "the GPUs have no peer"),
    "P2P refused, by the node": (
        "0-1 SHM/direct", "RDMA", "", {}, {"a": NodeFacts("a", peers_denied=("0-1 CNS",))}, "the GPUs have no peer",
    ),
    "one host in two": ("0-1 NET/Socket/0", "RDMA", "", {"NCCL_SHM_DISABLE": "1"}, {}, "NCCL_SHM_DISABLE is set"),
    "small shared memory": (
        "1-2 NET/Socket/0", "RDMA", "", {}, {"a": NodeFacts("a", shm=64 << 20)}, "shared memory is too small",
    ),
    "no adapter": ("3-4 NET/Socket/0", "RDMA", "NET/IB : No device found.", {}, {}, "NCCL found no InfiniBand"),
    "adapters off": ("3-4 NET/Socket/0", "RDMA", "", {"NCCL_IB_DISABLE": "1"}, {}, "NCCL_IB_DISABLE is set"),
    "adapter without a link": (
        "3-4 NET/Socket/0", "RDMA", "", {}, {"b": NodeFacts("b", adapters=(Adapter("mlx5_0", active=False),))},
        "a node has no adapter with a link",
    ),
    "wrong adapter": ("3-4 NET/Socket/0", "RDMA", "", {"NCCL_IB_HCA": "mlx5_9"}, {}, "NCCL_IB_HCA names no adapter"),
    "wrong adapter, by the node": (
        "3-4 NET/Socket/0", "RDMA", "NET/IB : No device found.", {"NCCL_IB_HCA": "=mlx5_1"},
        {"a": NodeFacts("a", adapters=(Adapter("mlx5_10"),))}, "NCCL_IB_HCA names no adapter",
    ),
    "no peer memory": (
        "3-4 NET/IB/0", "RDMA+GDR", "", {}, {"b": NodeFacts("b", peer_memory=False)}, "the kernel does not let adapters",
    ),
    "far adapter": (
        "3-4 NET/IB/0", "RDMA+GDR", "GPU Direct RDMA Disabled for GPU 0 / HCA 1 (distance 5 > 3)", {}, {},
        "the adapter that is used is too far",
    ),
    "no IMEX": ("3-4 NET/IB/0/GDRDMA", "P2P/NVLink", "", {}, {}, "the nodes are in no common NVLink domain"),
}  # fmt: skip


@pytest.mark.parametrize("case", WORSE)
def test_a_worse_link_is_told_with_its_likely_cause(case: str) -> None:
    link, across, said, env, facts, cause = WORSE[case]
    found = verdict(PlannedLinks(TWO_NODES, across), seen(link, "4-5 P2P/CUMEM", said=said), env, facts)
    assert found.word == "worse than planned"
    (shortfall,) = found.shortfalls
    assert shortfall.causes[0].text.startswith(cause)
    assert all(one.mend for one in shortfall.causes)
    assert "1 of " in found.reason


def test_the_worst_shortfall_comes_first_with_its_share() -> None:
    log = seen("0-1 SHM/direct", "2-3 P2P/CUMEM", "3-4 NET/Socket/0")
    found = verdict(PlannedLinks(TWO_NODES, "RDMA+GDR"), log, {}, {})
    assert [shortfall.seen for shortfall in found.shortfalls] == ["NET/Socket", "SHM"]
    assert found.reason == (
        "1 of 1 links promised RDMA straight to the GPU go over TCP sockets (such as rank 3 and rank 4)"
    )
    assert str(found.shortfalls[1]).startswith("1 of 2 links promised NVLink go over shared memory")


@pytest.mark.parametrize(("model", "numbers"), [("NVIDIA H200", True), ("NVIDIA H100 80GB HBM3", False)])
def test_numbers_are_quoted_only_for_hardware_they_were_measured_on(model: str, numbers: bool) -> None:
    facts = {"a": NodeFacts("a", gpus=(model,) * 4)}
    found = verdict(PlannedLinks(TWO_NODES), seen("0-1 SHM/direct"), {}, facts)
    assert ("28 GB/s over shared memory where it reaches 332 over NVLink, 12 times less" in found.reason) == numbers


def test_without_links_the_verdict_is_unknown_and_says_why() -> None:
    found = verdict(PlannedLinks(TWO_NODES), seen(), {}, {})
    assert (found.word, found.links) == ("unknown", ())
    assert "none of 2 lines of NCCL tells of a link" in found.reason
    assert "NCCL_DEBUG=INFO" in verdict(PlannedLinks(TWO_NODES), read([]), {}, {}).reason
    assert verdict(PlannedLinks(TWO_NODES), seen("8-9 P2P/CUMEM"), {}, {}).reason.startswith("no link in the log")


def test_a_smaller_communicator_in_the_log_does_not_mislead() -> None:
    # Ranks 0 and 1 of the smaller one are on different hosts, where the plan promised no NVLink.
    small = "a:1:1 [0] NCCL INFO comm 0x2 rank 0 nranks 2 cudaDev 0 busId 1000 - Init COMPLETE"
    ends = [
        "a:1:1 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[0] [send] via NET/IB/0/GDRDMA",
        "b:5:1 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[0] [receive] via NET/IB/0/GDRDMA",
        "a:1:1 [0] NCCL INFO comm 0x1 rank 0 nranks 8 cudaDev 0 busId 1000 - Init COMPLETE",
    ]
    assert verdict(PlannedLinks(TWO_NODES, "RDMA+GDR"), read([small, *ends]), {}, {}).word == "as planned"


def texts(name: str) -> str:
    return " ".join(one.text for one in meaning(read((OWN / f"{name}.log").read_text().splitlines())))


@pytest.mark.parametrize(
    ("name", "text"),
    {
        "rccl_xgmi_socket": "1 of 2 links go over TCP sockets, the slowest that there is.",
        "pcie_mixed_2.12": "2 of 4 links go through the host's memory (SHM).",
        "mpirun_nvls_collnet_gdr": "Hosts have different adapters",
        "no_collective_yet_2.28": "No link is seen: none of 5 lines of NCCL tells of a link",
    }.items(),
)
def test_a_log_alone_means_something(name: str, text: str) -> None:
    assert text in texts(name)


def test_one_host_that_nccl_takes_for_two_is_named() -> None:
    lines = [
        "vm:1:1 [0] NCCL INFO comm 0x1 rank 0 nRanks 2 nNodes 2 localRanks 1 localRank 0 MNNVL 0",
        "vm:2:2 [1] NCCL INFO comm 0x1 rank 1 nRanks 2 nNodes 2 localRanks 1 localRank 0 MNNVL 0",
        "vm:1:1 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] [send] via NET/Socket/0",
    ]
    sockets, apart = meaning(read(lines))
    assert sockets.causes[0].text.startswith("NCCL takes one host for several")
    assert apart.text == "NCCL counts 2 nodes, but all 2 ranks are on vm."


def test_a_debug_switch_in_the_log_is_told() -> None:
    log = seen("0-1 P2P/CUMEM", said="NCCL_ALGO set by environment to Tree")
    assert any(one.text.startswith("NCCL_ALGO=Tree:") for one in meaning(log))
