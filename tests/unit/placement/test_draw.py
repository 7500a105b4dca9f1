from orchestrator.control.inventory import free_view
from orchestrator.placement.draw import LEGEND, draw_free, draw_placement
from orchestrator.placement.tree import Topology
from orchestrator.testing.hardware import cluster, node


def test_the_tree_shows_what_is_free_busy_and_not_usable_island_by_island() -> None:
    topology = Topology(
        cluster(
            node("a", 4, leaf="l1", islands=((0, 1), (2, 3))),
            node("b", 4, leaf="l1", islands=((0, 1), (2, 3))),
            node("c", 2, leaf="l2"),
        )
    )
    busy = {"a": {0: 7, 1: 7, 2: 9}}
    free = free_view(topology, busy, {"c": "drained"})
    assert [line.replace("  H100", "") for line in draw_free(free, busy)] == [
        "cluster: 3 nodes, 5 of 10 GPUs free",
        "├─ leaf l1: 2 nodes, 5 of 8 GPUs free",
        "│  ├─ a  ■■|■□  runs 7, 9",
        "│  └─ b  □□|□□",
        "└─ leaf l2: 1 node, 0 of 2 GPUs free",
        "   └─ c  ××  (drained)",
        LEGEND,
    ]


def test_of_a_large_cluster_only_what_is_not_wholly_free_is_drawn_node_by_node() -> None:
    topology = Topology(cluster(*(node(f"n{i:03}", 8, leaf="l1") for i in range(100))))
    lines = draw_free(free_view(topology, {"n042": {3: 5}}, {}), {"n042": {3: 5}})
    assert len(lines) == 5
    assert "n042  □□□■□□□□" in lines[2]
    assert "792 free" in lines[3]


def test_an_empty_cluster_is_a_sentence() -> None:
    topology = Topology(cluster())
    assert draw_free(free_view(topology, {}, {}), {}) == ["no node has joined the cluster yet"]


def test_a_placement_names_places_gpus_and_ranks() -> None:
    topology = Topology(cluster(node("a", 8, leaf="l1"), node("b", 8, leaf="l1")))
    parts = [("a", (0, 1, 2, 3, 6), range(5)), ("b", (2, 0), (5, 6))]
    assert draw_placement(topology, parts) == [
        "leaf l1 / a: GPU 0-3,6 = rank 0-4",
        "leaf l1 / b: GPU 2,0 = rank 5-6",
    ]
