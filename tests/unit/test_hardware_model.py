"""The vocabulary of hardware: islands, places, paths."""

from __future__ import annotations

import time
import tracemalloc

import pytest

from orchestrator.hardware.model import Cluster, Domain, Gpu, Node, Shape, nvlinks
from orchestrator.testing.hardware import cluster, node


def test_gpus_joined_by_nvlink_are_one_island_and_the_others_stand_alone():
    shape = Shape(tuple(Gpu(i) for i in range(4)), ("NV4", "SYS", "SYS", "SYS", "SYS", "PIX"))
    assert shape.islands == ((0, 1), (2,), (3,))


def test_islands_are_connected_components_not_cliques():
    shape = Shape(tuple(Gpu(i) for i in range(3)), ("NV2", "SYS", "NV1"))
    assert shape.islands == ((0, 1, 2),)


def test_a_link_is_found_by_index_in_either_order():
    shape = Shape((Gpu(0), Gpu(1), Gpu(3)), ("NV4", "SYS", "PIX"))
    assert [shape.link(3, 0), shape.link(1, 3), shape.link(0, 1), shape.link(0, 0)] == ["SYS", "PIX", "NV4", None]


def test_unknown_links_leave_every_gpu_alone():
    assert Shape((Gpu(0), Gpu(1))).islands == ((0,), (1,))


@pytest.mark.parametrize("links", [("NV4", "NV4"), ("NV4",) * 4])
def test_a_matrix_of_the_wrong_size_is_refused(links):
    with pytest.raises(ValueError, match="3 GPUs have 3 pairs"):
        Shape((Gpu(0), Gpu(1), Gpu(2)), links)


def test_a_switch_is_seen_by_more_links_than_a_gpu_has():
    assert node("a", gpus=8, nvlink="NV12").shape.nvswitch
    assert not node("a", gpus=2, nvlink="NV12").shape.nvswitch


@pytest.mark.parametrize(("link", "count"), [("NV12", 12), ("PIX", 0), (None, 0), ("NV", 0)])
def test_the_word_of_a_link_says_how_many_nvlinks_it_is(link, count):
    assert nvlinks(link) == count


def test_labels_that_name_levels_place_the_nodes_widest_first():
    c = cluster(node("a", leaf="l1", pod="p1"), node("b", leaf="l2", pod="p1"))
    assert c.levels == ("pod", "leaf")
    assert [c.path("a"), c.path("b")] == [("p1", "l1"), ("p1", "l2")]


def test_any_label_can_be_asked_for_as_a_level():
    c = cluster(node("a", row="7"), node("b"))
    assert c.place("a", "row") == "7"
    assert c.place("b", "row") is None
    assert c.members("row") == {"7": ("a",)}


def test_a_node_that_nobody_places_stands_alone():
    c = cluster(node("a", leaf="l1", pod="p1"), node("b", leaf="l2"), node("c", pod="p1"), node("d"))
    assert [c.path(n) for n in "abcd"] == [("p1", "l1"), ("l2", "l2"), ("p1", "c"), ("d", "d")]


def test_nodes_of_one_clique_are_together_at_nvlink():
    c = cluster(node("a", clique="u.1"), node("b", clique="u.1"), node("c", clique="u.2"))
    assert c.members("nvlink") == {"u.1": ("a", "b"), "u.2": ("c",)}


def test_leaves_of_one_rail_group_are_one_place():
    #        rail 0  rail 1
    # a, b     l0      l1
    # c, d     l2      l3
    domains = [("l0", "ab"), ("l1", "ab"), ("l2", "cd"), ("l3", "cd")]
    c = Cluster(tuple(Node(n) for n in "abcd"), tuple(Domain("leaf", name, "p", tuple(held)) for name, held in domains))
    assert [c.path(n) for n in "abcd"] == [("l0+1",), ("l0+1",), ("l2+1",), ("l2+1",)]


def test_one_cable_in_the_wrong_leaf_does_not_join_two_racks():
    racks = {"a": [f"a{i}" for i in range(8)], "b": [f"b{i}" for i in range(8)]}
    held = {f"{rack}-rail{rail}": list(names) for rack, names in racks.items() for rail in range(4)}
    held["a-rail0"].remove("a0")
    held["b-rail0"].append("a0")
    c = Cluster(
        tuple(Node(name) for names in racks.values() for name in names),
        tuple(Domain("leaf", leaf, None, tuple(names)) for leaf, names in held.items()),
    )
    assert c.members("leaf") == {"a-rail0+3": tuple(racks["a"]), "b-rail0+3": tuple(racks["b"])}


def test_domains_nest_by_their_members():
    c = Cluster(
        (Node("a"), Node("b")),
        (Domain("pod", "p", None, ("l1", "l2")), Domain("leaf", "l1", "p", ("a",)), Domain("leaf", "l2", "p", ("b",))),
    )
    assert [c.path("a"), c.path("b")] == [("p", "l1"), ("p", "l2")]


def test_domains_in_a_circle_do_not_hang():
    c = Cluster((Node("a"),), (Domain("pod", "x", "y", ("y", "a")), Domain("leaf", "y", "x", ("x",))))
    assert c.path("a") == ("x", "a")


def test_100_000_gpus_are_quick_and_small():
    tracemalloc.start()
    start = time.process_time()
    c = cluster(*(node(f"n{i}", gpus=8, nics=8, leaf=f"l{i // 32}", pod=f"p{i // 512}") for i in range(12_500)))
    assert c.path("n12499") == ("p24", "l390")
    seconds, (_, peak) = time.process_time() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len({id(n.shape) for n in c.nodes}) == 1
    assert peak < 50e6
    assert seconds < 5
