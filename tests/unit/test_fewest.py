import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.placement.fewest import place
from orchestrator.placement.values import NodeView, Placement, Rejection, Request
from orchestrator.spec import Workers


def node(name: str, free: int, total: int = 8, usable: bool = True, note: str | None = None) -> NodeView:
    return NodeView(name, "cuda", total, tuple(range(total - free, total)), usable, note)


def ask(workers: str) -> Request:
    nodes, _, each = workers.rpartition("x")
    size = Workers(total=int(nodes) * int(each), nodes=int(nodes)) if nodes else Workers(total=int(each))
    return Request(size, "cuda")


@pytest.mark.parametrize(
    ("workers", "free", "expected"),
    [
        ("2x2", {"a": 4, "b": 2, "c": 8}, {"a": 2, "b": 2}),  # the tightest nodes that fit
        ("4", {"a": 8, "b": 4}, {"b": 4}),  # one node, and the fullest that holds it
        ("6", {"a": 4, "b": 3, "c": 1}, {"a": 4, "b": 2}),  # as few nodes as possible
        ("1", {"a": 0, "b": 1}, {"b": 1}),
    ],
)
def test_fewest_nodes_first(workers: str, free: dict[str, int], expected: dict[str, int]) -> None:
    answer = place(ask(workers), [node(name, count) for name, count in free.items()])
    assert isinstance(answer, Placement)
    assert {part.node: len(part.gpus) for part in answer.nodes} == expected


def test_the_lowest_free_indices_are_taken_and_ranks_are_counted_through() -> None:
    answer = place(ask("2x2"), [node("a", 3), node("b", 8)])
    assert isinstance(answer, Placement)
    assert [(p.node, p.gpus, p.ranks) for p in answer.nodes] == [("a", (5, 6), (0, 1)), ("b", (0, 1), (2, 3))]


@pytest.mark.parametrize(
    ("workers", "free", "reason", "never"),
    [
        ("2x8", {"a": 8, "b": 6}, "needs 2 nodes with 8 GPUs each; 1 of 2 nodes have that many free", False),
        ("3x8", {"a": 8, "b": 6}, "needs 3 nodes with 8 GPUs each; 2 of 2 nodes are large enough", True),
        ("9", {"a": 8, "b": 0}, "needs 9 GPUs; 8 of 16 GPUs on 2 nodes are free", False),
        ("17", {"a": 8, "b": 8}, "needs 17 GPUs; the cluster has 16 GPUs on 2 nodes", True),
    ],
)
def test_a_refusal_says_by_how_much(workers: str, free: dict[str, int], reason: str, never: bool) -> None:
    answer = place(ask(workers), [node(name, count) for name, count in free.items()])
    assert answer == Rejection(reason, never)


def test_a_node_that_is_not_usable_gets_nothing_and_is_named() -> None:
    answer = place(ask("1x8"), [node("a", 8, usable=False, note="its agent does not answer")])
    assert answer == Rejection(
        "needs 1 node with 8 GPUs each; 0 of 1 node have that many free (a: its agent does not answer)", False
    )


NODES = st.lists(st.integers(0, 8), min_size=1, max_size=6).map(lambda f: [node(f"n{i}", n) for i, n in enumerate(f)])
WORKERS = st.one_of(
    st.integers(1, 50).map(lambda n: Workers(total=n)),
    st.tuples(st.integers(1, 6), st.integers(1, 8)).map(lambda s: Workers(total=s[0] * s[1], nodes=s[0])),
)


@given(NODES, WORKERS)
def test_no_gpu_is_given_that_is_not_free_and_the_gang_is_whole(nodes: list[NodeView], workers: Workers) -> None:
    answer = place(Request(workers, "cuda"), nodes)
    assert answer == place(Request(workers, "cuda"), list(reversed(nodes)))
    if isinstance(answer, Rejection):
        return
    free = {n.name: set(n.free) for n in nodes}
    assert answer.world_size == workers.total
    assert [r for part in answer.nodes for r in part.ranks] == list(range(workers.total))
    for part in answer.nodes:
        assert len(set(part.gpus)) == len(part.gpus) == len(part.ranks)
        assert set(part.gpus) <= free[part.node]
        assert workers.nodes is None or len(part.gpus) == workers.per_node
