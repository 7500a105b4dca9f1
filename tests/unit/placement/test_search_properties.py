"""What holds of every placement on every small cluster, against a search that tries everything."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.placement.gang import Part, predict_parts
from orchestrator.placement.search import find, place
from orchestrator.placement.tree import Free, Topology
from orchestrator.placement.values import Placement, Rejection, Request
from orchestrator.spec_values import Workers
from orchestrator.testing.hardware import cluster, node

KINDS = (
    {"gpus": 4, "nics": 4},
    {"gpus": 4, "islands": ((0, 1), (2, 3)), "nvlink": "NV4", "model": "A100", "nics": 2, "rate_gbps": 200.0},
    {"gpus": 3, "islands": ((0, 2),), "nvlink": "NV2", "model": "V100", "nics": 1, "rate_gbps": 100.0},
    {"gpus": 2, "nvlink": None, "model": "A100"},
    {"gpus": 4, "islands": ((0, 3), (1, 2)), "nvlink": "NV4", "nics": 1},
)


@st.composite
def clusters(draw: st.DrawFn, levels: int = 1, uniform: bool = False) -> tuple[Topology, Free]:
    """Up to six nodes of up to two kinds under up to three leaves, with GPUs taken at random."""
    count = draw(st.integers(1, 6))
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=1 if uniform else 2))
    leaves = [draw(st.integers(0, 2)) for _ in range(count)]
    nodes = []
    for i in range(count):
        labels = {"leaf": f"l{leaves[i]}"}
        if levels > 1:
            labels["pod"] = f"p{leaves[i] // 2}"
        nodes.append(node(f"n{i}", **draw(st.sampled_from(kinds)), **labels))  # type: ignore[arg-type]
    topology = Topology(cluster(*nodes), oversubscription={"leaf": draw(st.sampled_from([1.0, 2.0]))})
    free = Free(topology)
    for each in topology.nodes:
        mask = draw(st.integers(0, each.kind.full))
        free.take(each.name, each.kind.gpus_of(mask))
    return topology, free


def shapes() -> st.SearchStrategy[Workers]:
    exact = st.builds(lambda n, k: Workers(total=n * k, nodes=n), st.integers(1, 4), st.integers(1, 4))
    return exact | st.builds(lambda n: Workers(total=n), st.integers(1, 10))


def every_even_place(topology: Topology, free: Free, workers: Workers) -> Iterator[tuple[Part, ...]]:
    for nodes in range(1, workers.total + 1):
        if workers.total % nodes or workers.nodes not in (None, nodes):
            continue
        count = workers.total // nodes
        choices = []
        for each in topology.nodes:
            bits = [p for p in range(each.kind.size) if free.mask(each.index) >> p & 1]
            choices.append([(each.index, sum(1 << p for p in c)) for c in itertools.combinations(bits, count)])
        for indices in itertools.combinations(range(len(topology.nodes)), nodes):
            if len({topology.nodes[i].kind.models for i in indices}) == 1:
                yield from itertools.product(*(choices[i] for i in indices))


def whole_after(topology: Topology, free: Free, parts: tuple[Part, ...]) -> tuple[int, int, list[int]]:
    """Whole leaves, whole nodes and the sizes of whole islands that a place leaves."""
    left = {each.index: free.mask(each.index) for each in topology.nodes}
    for index, mask in parts:
        left[index] &= ~mask
    leaves = [d for d in topology.domains if d.depth == 1]
    whole = [each.index for each in topology.nodes if left[each.index] == each.kind.full]
    islands = [
        island.bit_count()
        for each in topology.nodes
        for island in each.kind.subsets.islands
        if island & left[each.index] == island
    ]
    return (
        sum(all(i in whole for i in range(leaf.first, leaf.end)) for leaf in leaves),
        len(whole),
        sorted(islands, reverse=True),
    )


@settings(max_examples=150)
@given(clusters(), shapes())
def test_no_other_place_is_faster_and_none_as_fast_leaves_larger_domains_whole(
    world: tuple[Topology, Free], workers: Workers
) -> None:
    topology, free = world
    every = {parts: predict_parts(topology, parts).busbw for parts in every_even_place(topology, free, workers)}
    found = find(Request(workers, "cuda"), topology, free)
    if not every:
        assert found is None or workers.nodes is None
        return
    assert found is not None
    best = max(every.values())
    busbw = predict_parts(topology, found).busbw
    assert busbw >= best or math.isclose(busbw, best)
    if found in every:
        equals = [parts for parts, value in every.items() if value == best]
        kept = max(whole_after(topology, free, parts) for parts in equals)
        assert whole_after(topology, free, found) == kept


@settings(max_examples=150)
@given(clusters(levels=2), shapes())
def test_with_pods_no_other_place_is_faster(world: tuple[Topology, Free], workers: Workers) -> None:
    topology, free = world
    best = max((predict_parts(topology, p).busbw for p in every_even_place(topology, free, workers)), default=-1.0)
    found = find(Request(workers, "cuda"), topology, free)
    assert (predict_parts(topology, found).busbw if found else -1.0) >= best - 1e-9


@settings(max_examples=150)
@given(clusters(levels=2), st.lists(shapes(), max_size=8))
def test_no_gpu_is_given_twice_and_a_gang_gets_what_it_asked_for(
    world: tuple[Topology, Free], queue: list[Workers]
) -> None:
    topology, free = world
    for workers in queue:
        answer = place(Request(workers, "cuda"), topology, free)
        if isinstance(answer, Rejection):
            continue
        assert answer.world_size == workers.total
        assert [r for part in answer.nodes for r in part.ranks] == list(range(workers.total))
        if workers.nodes is not None:
            assert [len(part.gpus) for part in answer.nodes] == [workers.per_node] * workers.nodes
        for part in answer.nodes:
            free.take(part.node, part.gpus)  # refuses what is held


@settings(max_examples=150)
@given(clusters(levels=2), shapes(), st.sampled_from(["node", "nvlink", "leaf", "pod"]))
def test_a_required_level_is_never_exceeded(world: tuple[Topology, Free], workers: Workers, near: str) -> None:
    topology, free = world
    answer = place(Request(workers, "cuda", near=near, required=True), topology, free)
    if isinstance(answer, Placement):
        order = ["nvlink", "node", "leaf", "pod", "cluster"]
        assert workers.total == 1 or order.index(answer.level) <= order.index(near)


@settings(max_examples=150)
@given(clusters(), shapes(), st.data())
def test_freeing_a_gpu_never_makes_the_answer_worse(
    world: tuple[Topology, Free], workers: Workers, data: st.DataObject
) -> None:
    topology, free = world
    held = [(each, each.kind.full & ~free.mask(each.index)) for each in topology.nodes]
    held = [(each, mask) for each, mask in held if mask]
    if not held:
        return
    before = find(Request(workers, "cuda"), topology, free)
    each, mask = data.draw(st.sampled_from(held))
    free.give(each.name, [data.draw(st.sampled_from(each.kind.gpus_of(mask)))])
    after = find(Request(workers, "cuda"), topology, free)
    if before is not None:
        assert after is not None
        # An uneven split is searched for its links, not for its last microsecond of switch latency.
        least = 1.0 if workers.nodes is not None else 0.999
        assert predict_parts(topology, after).busbw >= predict_parts(topology, before).busbw * least


@settings(max_examples=100)
@given(clusters(levels=2), shapes())
def test_same_input_same_answer_and_a_search_changes_nothing(world: tuple[Topology, Free], workers: Workers) -> None:
    topology, free = world
    before = free.copy()
    first = place(Request(workers, "cuda"), topology, free)
    again = Topology(topology.cluster, oversubscription={"leaf": topology.oversubscription[0]})
    assert first == place(Request(workers, "cuda"), topology, before)
    assert (free.states, free.room, free.unheld) == (before.states, before.room, before.unheld)
    assert [n.name for n in again.nodes] == [n.name for n in topology.nodes]


@settings(max_examples=100)
@given(clusters(levels=2), shapes())
def test_taking_and_giving_back_restores_every_count(world: tuple[Topology, Free], workers: Workers) -> None:
    topology, free = world
    before = free.copy()
    answer = place(Request(workers, "cuda"), topology, free)
    if isinstance(answer, Placement):
        for part in answer.nodes:
            free.take(part.node, part.gpus)
        assert sum(free.room) < sum(before.room)
        for part in answer.nodes:
            free.give(part.node, part.gpus)
    assert (free.states, free.room, free.unheld) == (before.states, before.room, before.unheld)


@settings(max_examples=100)
@given(clusters(levels=2), shapes())
def test_never_is_said_exactly_when_the_empty_cluster_has_no_place(
    world: tuple[Topology, Free], workers: Workers
) -> None:
    topology, free = world
    answer = place(Request(workers, "cuda"), topology, free)
    if isinstance(answer, Rejection):
        assert answer.never == isinstance(place(Request(workers, "cuda"), topology, topology.empty), Rejection)
