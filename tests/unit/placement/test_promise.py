"""What links a placement promises."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.hardware.model import Cluster, Node
from orchestrator.health.verdict import PlannedLinks
from orchestrator.placement.promise import promised
from orchestrator.testing import a_placement
from orchestrator.testing.hardware import cluster, node


def pairs(found: PlannedLinks, *ranks: tuple[int, int]) -> list[str | None]:
    return [found.between(a, b) for a, b in ranks]


def with_links(links: tuple[str, ...], peers: tuple[str, ...] = ()) -> Node:
    bare = node("a", gpus=3, nvlink=None)
    return replace(bare, shape=replace(bare.shape, links=links, peer_access=peers))


def test_within_an_island_nvlink_and_beyond_it_shared_memory() -> None:
    #      a: 0=1  2=3
    hardware = cluster(node("a", gpus=4, islands=((0, 1), (2, 3))))
    found = promised(a_placement(a=(0, 1, 3)), hardware)
    assert pairs(found, (0, 1), (1, 2)) == ["P2P/NVLink", "SHM"]


def test_pcie_promises_p2p_only_where_nccl_uses_it_and_nothing_forbids_it() -> None:
    found = promised(a_placement(a=(0, 1, 2)), Cluster((with_links(("PIX", "PHB", "PXB")),)))
    assert pairs(found, (0, 1), (1, 2)) == ["P2P", "P2P"]
    refused = promised(a_placement(a=(0, 1, 2)), Cluster((with_links(("PIX", "PHB", "SYS"), ("CNS", "OK", "OK")),)))
    assert pairs(refused, (0, 1), (0, 2), (1, 2)) == ["SHM", "SHM", "SHM"]


def test_between_nodes_it_is_what_their_adapters_give() -> None:
    fast, slow = node("a", gpus=2, nics=2), node("b", gpus=2, nics=2)
    assert promised(a_placement("leaf", a=(0,), b=(0,)), cluster(fast, slow)).across == "RDMA+GDR"
    # Of two GPUs only the first has an adapter beside it.
    half = replace(slow, shape=replace(slow.shape, nics=slow.nics[:1]))
    assert promised(a_placement("leaf", a=(0, 1), b=(0, 1)), cluster(fast, half)).across == "RDMA"
    assert promised(a_placement("leaf", a=(0,), b=(0,)), cluster(fast, half)).across == "RDMA+GDR"
    down = replace(slow, shape=replace(slow.shape, nics=tuple(replace(nic, state="DOWN") for nic in slow.nics)))
    assert promised(a_placement("leaf", a=(0,), b=(0,)), cluster(fast, down)).across == "Socket"


def test_one_nvlink_domain_over_nodes_promises_nvlink_between_them() -> None:
    rack = cluster(node("a", gpus=4, clique="r.1"), node("b", gpus=4, clique="r.1"))
    assert promised(a_placement("nvlink", a=(0, 1), b=(0, 1)), rack).across == "P2P/NVLink"


def test_of_a_node_that_has_gone_nothing_is_promised() -> None:
    assert pairs(promised(a_placement(gone=(0, 1)), cluster()), (0, 1)) == ["SHM"]


def test_gpus_have_the_ranks_that_the_placement_gives_them() -> None:
    hardware = cluster(node("a", gpus=4, islands=((0, 1), (2, 3))))
    found = promised(a_placement(a=(3, 0, 2, 1)), hardware)
    assert pairs(found, (0, 2), (1, 3), (0, 1)) == ["P2P/NVLink", "P2P/NVLink", "SHM"]
