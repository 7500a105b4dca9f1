"""Where gangs go on drawn clusters, and what is said when they cannot."""

from __future__ import annotations

import pytest

from orchestrator.placement.search import place
from orchestrator.placement.tree import Free, Topology
from orchestrator.placement.values import Placement, Rejection, Request
from orchestrator.spec_values import Workers
from orchestrator.testing.hardware import cluster, node


def workers(text: str) -> Workers:
    nodes, _, count = text.partition("x")
    return Workers(total=int(nodes) * int(count), nodes=int(nodes)) if count else Workers(total=int(text))


def world(leaves: dict[str, dict[str, int]], *, pods: dict[str, str] | None = None, size: int = 8) -> Free:
    """Nodes by leaf with the number of GPUs that are free on each, the highest indices free."""
    nodes = []
    for leaf, members in leaves.items():
        labels = {"leaf": leaf} | ({"pod": pods[leaf]} if pods else {})
        nodes.extend(node(name, size, nics=size, **labels) for name in members)
    free = Free(Topology(cluster(*nodes)))
    for members in leaves.values():
        for name, count in members.items():
            free.take(name, range(size - count))
    return free


def ask(free: Free, shape: str, **wishes: object) -> Placement | Rejection:
    return place(Request(workers(shape), "cuda", **wishes), free.topology, free)  # type: ignore[arg-type]


def names(answer: Placement | Rejection) -> list[str]:
    assert isinstance(answer, Placement), answer
    return [part.node for part in answer.nodes]


# leaf  l1        l2
# free  a:8 b:4   c:8 d:8
BROKEN_LEAF = {"l1": {"a": 8, "b": 4}, "l2": {"c": 8, "d": 8}}
# leaf  l1              l2
# free  a:8 b:8 c:8     d:8 e:8 f:0
FULLER_LEAF = {"l1": {"a": 8, "b": 8, "c": 8}, "l2": {"d": 8, "e": 8, "f": 0}}


@pytest.mark.parametrize(
    ("leaves", "shape", "expected", "level"),
    [
        pytest.param(BROKEN_LEAF, "1x4", ["b"], "nvlink", id="a node already broken"),
        pytest.param(BROKEN_LEAF, "1x8", ["a"], "nvlink", id="a leaf already broken"),
        pytest.param(BROKEN_LEAF, "2x8", ["c", "d"], "leaf", id="one leaf, not two"),
        pytest.param(BROKEN_LEAF, "2x4", ["a", "b"], "leaf", id="the whole leaf stays whole"),
        pytest.param(FULLER_LEAF, "2x8", ["d", "e"], "leaf", id="the fuller leaf"),
        pytest.param({"l1": {"a": 3, "b": 3}, "l2": {"c": 2}}, "6", ["a", "b"], "leaf", id="a total is cut evenly"),
        pytest.param({"l1": {"a": 4, "b": 3}, "l2": {"c": 0}}, "7", ["a", "b"], "leaf", id="or unevenly if it must"),
    ],
)
def test_a_gang_breaks_as_little_as_it_can(
    leaves: dict[str, dict[str, int]], shape: str, expected: list[str], level: str
) -> None:
    answer = ask(world(leaves), shape)
    assert names(answer) == expected
    assert isinstance(answer, Placement)
    assert answer.level == level


def test_a_gang_that_outgrows_a_leaf_stays_in_one_pod_and_in_few_leaves() -> None:
    # pod   p1                  p2
    # leaf  l1       l2         l3       l4       l5
    # free  a:8      b:8        c:8 d:8  e:8 f:8  g:8
    leaves = {"l1": {"a": 8}, "l2": {"b": 8}, "l3": {"c": 8, "d": 8}, "l4": {"e": 8, "f": 8}, "l5": {"g": 8}}
    pods = {"l1": "p1", "l2": "p1", "l3": "p2", "l4": "p2", "l5": "p2"}
    answer = ask(world(leaves, pods=pods), "4x8")
    assert names(answer) == ["c", "d", "e", "f"]
    assert isinstance(answer, Placement)
    assert answer.level == "pod"
    # The third node comes from the leaf that has just one.
    assert names(ask(world(leaves, pods=pods), "3x8", near="pod", required=True)) == ["c", "d", "g"]


def test_gpus_are_chosen_by_island_and_not_by_index() -> None:
    # islands (0,2) (1,3); GPU 0 is taken
    free = Free(Topology(cluster(node("a", 4, islands=((0, 2), (1, 3)), nvlink="NV12", model="A100"))))
    free.take("a", [0])
    pair = ask(free, "1x2")
    assert isinstance(pair, Placement)
    assert pair.nodes[0].gpus == (1, 3)
    single = ask(free, "1x1")
    assert isinstance(single, Placement)
    assert single.nodes[0].gpus == (2,)


def test_a_run_that_recovers_gets_its_own_nodes_back() -> None:
    free = world({"l1": {"a": 8, "b": 8}, "l2": {"c": 8, "d": 8, "e": 8}})
    assert names(ask(free, "2x8")) == ["a", "b"]
    assert names(ask(free, "2x8", prefer=frozenset({"d", "e"}))) == ["d", "e"]


def test_a_healthier_node_is_taken_among_equals() -> None:
    free = world({"l1": {"a": 8, "b": 8, "c": 8}})
    free.health[0] = 0.5
    assert names(ask(free, "1x8")) == ["b"]
    assert names(ask(free, "2x8")) == ["b", "c"]


def test_unhealthy_gpus_drained_nodes_and_excluded_nodes_are_never_given() -> None:
    free = world({"l1": {"a": 8, "b": 8, "c": 8}})
    free.set_usable("a", (), "drained")
    free.set_usable("b", range(1, 8), "GPU 0 has row-remap failures")
    assert names(ask(free, "1x8")) == ["c"]
    refused = ask(free, "2x8")
    assert refused == Rejection(
        "the cluster has room for 8 of 16 workers in parts of 8 to a node (15 GPUs are free on 2 nodes) "
        "(a: drained; b: GPU 0 has row-remap failures)"
    )
    assert ask(free, "1x8", exclude=frozenset({"c"})) == Rejection(
        "no node has 8 GPUs free; b has the most, 7 (1 node excluded by the run; a: drained; "
        "b: GPU 0 has row-remap failures)"
    )


def test_a_wish_is_given_up_only_when_it_may_be() -> None:
    free = world({"l1": {"a": 8, "b": 0}, "l2": {"c": 8, "d": 0}})
    assert names(ask(free, "2x8", near="leaf")) == ["a", "c"]
    reason = "leaf l1 has room for 8 of 16 workers; no other leaf has more"
    assert ask(free, "2x8", near="leaf", relax=False) == Rejection(reason)
    assert ask(free, "2x8", near="leaf", required=True) == Rejection(reason)


@pytest.mark.parametrize(
    ("shape", "wishes", "reason"),
    [
        ("1x9", {}, "no node has 9 GPUs; a has the most, 8"),
        ("5x8", {}, "the cluster, even if it were empty, has room for 32 of 40 workers in parts of 8 to a node"),
        ("40", {}, "the cluster, even if it were empty, has room for 32 of 40 workers"),
        ("3x8", {"near": "leaf"},
         "even if the cluster were empty, leaf l1 has room for 16 of 24 workers; no other leaf has more"),
        ("12", {"near": "node"},
         "even if the cluster were empty, a has room for 8 of 12 workers; no other node has more"),
        ("2x8", {"gpu": ("A100",)}, "no node has GPUs of model A100; the cluster has H100"),
        ("2x8", {"near": "row"}, "the cluster has no level or label 'row' to stay within; it has leaf, node, nvlink"),
    ],
)  # fmt: skip
def test_what_can_never_fit_is_refused_for_good_with_numbers(
    shape: str, wishes: dict[str, object], reason: str
) -> None:
    free = world({"l1": {"a": 8, "b": 8}, "l2": {"c": 8, "d": 1}})
    assert ask(free, shape, required=True, **wishes) == Rejection(reason, never=True)


def test_models_are_mixed_only_when_several_are_listed() -> None:
    free = Free(
        Topology(cluster(node("a", 8, model="NVIDIA A100-SXM4-80GB", nvlink="NV12"), node("h", 8, model="H100")))
    )
    assert names(ask(free, "1x8")) == ["h"]
    assert names(ask(free, "1x8", gpu=("A100",))) == ["a"]
    assert names(ask(free, "2x8", gpu=("A100", "H100"))) == ["a", "h"]
    refused = ask(free, "2x8")
    assert isinstance(refused, Rejection)
    assert refused.never


def test_any_label_of_the_nodes_can_be_a_level() -> None:
    # row r1: a c, row r2: b d; leaf l1: a b, leaf l2: c d
    nodes = [node(n, 8, leaf=leaf, row=row) for n, leaf, row in
             (("a", "l1", "r1"), ("b", "l1", "r2"), ("c", "l2", "r1"), ("d", "l2", "r2"))]  # fmt: skip
    free = Free(Topology(cluster(*nodes)))
    free.take("a", [0])
    assert names(ask(free, "2x8", near="row", required=True)) == ["b", "d"]
    free.take("b", [0])
    assert ask(free, "2x8", near="row", required=True) == Rejection(
        "row r1 has room for 8 of 16 workers; no other row has more"
    )


def test_an_nvlink_rack_is_an_island_across_nodes() -> None:
    trays = [node(f"t{i}", 4, model="GB200", nics=4, clique=f"rack{i // 4}", leaf="l1") for i in range(8)]
    free = Free(Topology(cluster(*trays)))
    free.take("t1", [0])
    answer = ask(free, "4x4", near="nvlink", required=True)
    assert names(answer) == ["t4", "t5", "t6", "t7"]
    assert isinstance(answer, Placement)
    assert answer.level == "nvlink"
    wider = ask(free, "5x4")
    assert isinstance(wider, Placement)
    assert isinstance(ask(free, "5x4", near="nvlink", required=True), Rejection)
    assert answer.busbw_predicted is not None
    assert answer.busbw_predicted > 600


def test_cpu_ranks_go_to_nodes_without_gpus() -> None:
    free = Free(Topology(cluster(node("a", cpus=4), node("b", cpus=4), node("g", 8))))
    answer = place(Request(workers("2x3"), "cpu"), free.topology, free)
    assert names(answer) == ["a", "b"]
    assert isinstance(answer, Placement)
    assert answer.busbw_bottleneck == "a <-> b: Gloo"
    assert place(Request(workers("9"), "cpu"), free.topology, free) == Rejection(
        "the cluster, even if it were empty, has room for 8 of 9 workers", never=True
    )


def test_the_bottleneck_is_named() -> None:
    free = world({"l1": {"a": 8, "b": 8, "c": 8}, "l2": {"d": 8}})
    answer = ask(free, "3x8")
    assert isinstance(answer, Placement)
    assert answer.busbw_bottleneck == "a <-> b: 400 Gb/s x 8"
    narrow = Topology(free.topology.cluster, oversubscription={"leaf": 4.0})
    crossing = place(Request(workers("4x8"), "cuda"), narrow, Free(narrow))
    assert isinstance(crossing, Placement)
    assert crossing.busbw_bottleneck == "c <-> d: 400 Gb/s x 8, 4:1 oversubscribed below the cluster"


def test_the_free_view_refuses_to_give_twice_what_is_held_once() -> None:
    free = world({"l1": {"a": 8}})
    free.take("a", [0, 1])
    with pytest.raises(ValueError, match=r"a: \(1,\) are held already"):
        free.take("a", [1, 2])
    with pytest.raises(ValueError, match=r"a: \(2,\) are not held"):
        free.give("a", [1, 2])
    with pytest.raises(KeyError):
        free.take("a", [8])


def test_a_large_total_that_nothing_divides_is_placed_on_the_fewest_nodes() -> None:
    free = world({f"l{i}": {f"n{i}-{j}": 8 for j in range(8)} for i in range(6)})
    answer = ask(free, "379")
    assert len(names(answer)) == 48
    assert isinstance(ask(free, "397"), Rejection)


def test_only_the_named_nodes_are_given_also_where_others_would_do_better() -> None:
    free = world({"l1": {"a": 8, "b": 8}, "l2": {"c": 8, "d": 8}})
    assert names(ask(free, "2x8", only=frozenset("bc"))) == ["b", "c"]
    assert names(ask(free, "4", only=frozenset("d"))) == ["d"]


def test_a_run_that_its_named_nodes_cannot_hold_hears_that_it_is_for_them() -> None:
    free = world({"l1": {"a": 8, "b": 4}})
    assert ask(free, "1x8", only=frozenset("b")) == Rejection(
        "no node has 8 GPUs free; b has the most, 4 (the run takes only b)"
    )
    assert ask(free, "2x8", only=frozenset("b")) == Rejection(
        "the cluster, even if it were empty, has room for 8 of 16 workers in parts of 8 to a node (the run takes only b)",
        never=True,
    )
