"""The order of ranks and their CPUs."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.hardware.model import Gpu, Shape, all_to_all, nvlinks
from orchestrator.placement.ranks import cpu_affinity, local_order
from orchestrator.placement.search import place
from orchestrator.placement.tree import Free, Kind, Topology
from orchestrator.placement.values import Placement, Request
from orchestrator.spec_values import Workers
from orchestrator.testing.hardware import cluster, node

MESH = {
    (0, 1): 1, (0, 2): 1, (0, 3): 2, (0, 4): 2, (1, 2): 2, (1, 3): 1, (1, 5): 2, (2, 3): 2,
    (2, 6): 1, (3, 7): 1, (4, 5): 1, (4, 6): 1, (4, 7): 2, (5, 6): 2, (5, 7): 1, (6, 7): 2,
}  # fmt: skip
DGX1 = Shape(
    tuple(Gpu(i, "V100") for i in range(8)),
    tuple(f"NV{MESH[pair]}" if pair in MESH else "SYS" for pair in itertools.combinations(range(8), 2)),
)


@given(st.integers(1, 255))
def test_local_ranks_follow_the_rings_of_a_mesh(mask: int) -> None:
    order = local_order(Kind(0, DGX1, 8, None), mask)
    assert sum(1 << gpu for gpu in order) == mask
    if mask == 255:
        assert all(nvlinks(DGX1.link(a, b)) for a, b in itertools.pairwise((*order, order[0])))


def test_on_a_switch_local_ranks_follow_numa_nodes() -> None:
    shape = Shape(tuple(Gpu(i, "H100", numa=i % 2) for i in range(8)), all_to_all(8, "NV18"))
    assert local_order(Kind(0, shape, 8, None), 0xFF) == (0, 2, 4, 6, 1, 3, 5, 7)


def test_neighbours_in_rank_are_neighbours_in_the_tree() -> None:
    # leaf l1: n1 n10, leaf l2: n2 n9, given in no order
    nodes = [node(n, 8, leaf=leaf) for n, leaf in (("n2", "l2"), ("n10", "l1"), ("n9", "l2"), ("n1", "l1"))]
    topology = Topology(cluster(*nodes))
    answer = place(Request(Workers(total=32, nodes=4), "cuda"), topology, Free(topology))
    assert isinstance(answer, Placement)
    assert [part.node for part in answer.nodes] == ["n1", "n10", "n2", "n9"]
    assert [part.ranks[0] for part in answer.nodes] == [0, 8, 16, 24]


def test_local_rank_i_has_the_same_rail_on_every_node() -> None:
    # a: GPUs 0-3 are taken; b: nothing. Both get 4-7.
    topology = Topology(cluster(node("a", 8, nics=8, leaf="l"), node("b", 8, nics=8, leaf="l")))
    free = Free(topology)
    free.take("a", range(4))
    answer = place(Request(Workers(total=8, nodes=2), "cuda"), topology, free)
    assert isinstance(answer, Placement)
    assert [part.gpus for part in answer.nodes] == [(4, 5, 6, 7), (4, 5, 6, 7)]


def test_a_ranks_cpus_are_those_of_its_gpus_numa_node() -> None:
    shape = Shape(tuple(Gpu(i, "H100", numa=i // 2) for i in range(4)), all_to_all(4, "NV18"))
    cpus = {0: range(0, 8), 1: range(8, 16)}
    assert cpu_affinity(shape, (0, 3), cpus) == (tuple(range(8)), tuple(range(8, 16)))


@given(st.lists(st.sampled_from([None, 0, 1, 7]), min_size=1, max_size=8), st.integers(0, 12), st.integers(0, 12))
def test_a_rank_has_cpus_wherever_the_node_has_any(numas: list[int | None], first: int, second: int) -> None:
    shape = Shape(tuple(Gpu(i, "H100", numa=numa) for i, numa in enumerate(numas)))
    cpus = {0: range(first), 1: range(first, first + second)}
    found = cpu_affinity(shape, range(len(numas)), cpus)
    assert len(found) == len(numas)
    assert all(found) == bool(first + second)
    for numa, mine in zip(numas, found, strict=True):
        near = cpus.get(numa, ()) if numa is not None else ()
        assert mine == tuple(near or range(first + second))
