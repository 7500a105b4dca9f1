"""What looser and tighter wishes would give."""

from __future__ import annotations

from orchestrator.placement.explain import alternatives, at_best
from orchestrator.placement.search import place
from orchestrator.placement.tree import Free, Topology
from orchestrator.placement.values import Placement, Rejection, Request
from orchestrator.spec_values import Workers
from orchestrator.testing.hardware import cluster, node


def world() -> Free:
    # pod   p1          p2
    # leaf  l1    l2    l3
    # free  a:8   b:8   c:8 d:0
    places = {"a": ("l1", "p1"), "b": ("l2", "p1"), "c": ("l3", "p2"), "d": ("l3", "p2")}
    nodes = [node(name, 8, nics=8, leaf=leaf, pod=pod) for name, (leaf, pod) in places.items()]
    free = Free(Topology(cluster(*nodes), oversubscription={"leaf": 4.0}))
    free.take("d", range(8))
    return free


def test_every_level_says_what_it_would_give_or_why_not() -> None:
    free = world()
    request = Request(Workers(total=16, nodes=2), "cuda")
    nvlink, on_node, leaf, pod, anywhere = alternatives(request, free.topology, free)
    assert [a.level for a in (nvlink, on_node, leaf, pod, anywhere)] == ["nvlink", "node", "leaf", "pod", "cluster"]
    assert isinstance(on_node.answer, Rejection)
    assert on_node.answer.never
    assert str(leaf) == "leaf: leaf l1 has room for 8 of 16 workers; no other leaf has more"
    assert pod.busbw is not None
    assert str(pod) == (
        f"pod: {pod.busbw:.0f} GB/s, bounded by a <-> b: 400 Gb/s x 8, 4:1 oversubscribed below the pod"
    )
    assert anywhere.busbw == pod.busbw


def test_the_best_that_waiting_could_give_is_what_the_empty_cluster_gives() -> None:
    free = world()
    request = Request(Workers(total=16, nodes=2), "cuda")
    best, now = at_best(request, free.topology), place(request, free.topology, free)
    assert isinstance(best, Placement)
    assert isinstance(now, Placement)
    assert best.level == "leaf"
    assert (best.busbw_predicted or 0) > 2 * (now.busbw_predicted or 0)
