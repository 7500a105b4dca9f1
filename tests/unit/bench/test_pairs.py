"""A bad node is found in two rounds, whichever it is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.bench.compare import behind
from orchestrator.bench.pairs import Pair, first_round, second_round, verdicts

names = st.integers(2, 33).map(lambda count: [f"gpu-{i:02}" for i in range(count)])


@given(names)
def test_every_node_is_measured_in_the_first_round_and_only_of_an_odd_number_one_twice(nodes: list[str]) -> None:
    pairs = first_round(nodes)
    measured = [node for pair in pairs for node in pair]
    assert set(measured) == set(nodes)
    assert len(measured) == len(nodes) + len(nodes) % 2
    assert all(a != b for a, b in pairs)


def reached(pairs: list[Pair], bad: set[str]) -> dict[Pair, float | None]:
    """A pair is as fast as the slower of its two."""
    return {pair: 200.0 if set(pair) & bad else 400.0 for pair in pairs}


@given(st.integers(3, 16), st.data())
def test_bad_nodes_are_told_from_the_good_ones_that_they_were_paired_with(half: int, data: st.DataObject) -> None:
    nodes = [f"gpu-{i:02}" for i in range(2 * half)]
    pairs = first_round(nodes)
    # Fewer than half of the pairs have a bad node: of what most do, nobody can say that it is bad.
    spoiled = data.draw(st.lists(st.sampled_from(pairs), max_size=(half - 1) // 2, unique=True))
    bad = {data.draw(st.sampled_from(pair)) for pair in spoiled}
    first = reached(pairs, bad)
    second = second_round(first)
    assert {node for node, _ in second} == {node for pair in spoiled for node in pair}
    assert all(not set(pair) <= bad for pair in second)
    best = verdicts(first | reached(second, bad))
    assert behind({node: figure for node, figure in best.items() if figure is not None}).keys() == bad


def test_the_nodes_of_a_pair_whose_run_failed_are_measured_again_too() -> None:
    assert second_round({("a", "b"): None, ("c", "d"): 400.0}) == [("a", "c"), ("b", "d")]
    assert verdicts({("a", "b"): None, ("a", "c"): 400.0}) == {"a": 400.0, "b": None, "c": 400.0}


def test_where_no_pair_did_well_there_is_nothing_to_be_held_against() -> None:
    assert second_round({("a", "b"): None}) == []
    assert second_round({("a", "b"): 400.0, ("c", "d"): 390.0}) == []
