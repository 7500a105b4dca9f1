"""Which pairs of a gang are tried before it starts, and who is to blame for what came of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.bench.trial import (
    HOLDS,
    Evidence,
    Kept,
    Pair,
    Shape,
    Tried,
    best,
    failures,
    kept_of,
    neighbours,
    rounds,
    stands,
)
from orchestrator.testing import START
from orchestrator.testing.benches import a_bench

SHAPE = Shape("H100", 16, "570.1", "2.28.9")
KEPT = Kept(("a", "b"), START, 7, "H100", 16, 45.0, 48.0, None, {"driver": "570.1", "nccl": "2.28.9"})
MOST_ROUNDS = 5


def tried(first: str, second: str, reached: float | None = 1.0, failure: str | None = None, *culprits: str) -> Tried:
    """A collective that reached so much of 48 GB/s, or failed."""
    busbw = None if failure or reached is None else 48.0 * reached
    return Tried((first, second), busbw, 48.0, failure, frozenset(culprits))


def hung(first: str, second: str) -> Tried:
    return tried(first, second, None, "hung")


def played(nodes: list[str], bad: set[str], bad_links: set[frozenset[str]] = frozenset()) -> Evidence:  # type: ignore[assignment]
    """A whole trial of a gang in which these nodes hang with everybody (but not alone), and these links for themselves."""

    def try_(pair: Pair) -> Tried:
        broken = pair[0] != pair[1] and (bad & set(pair) or frozenset(pair) in bad_links)
        return hung(*pair) if broken else tried(*pair)

    evidence = Evidence(nodes, [try_(pair) for pair in neighbours(nodes)])
    for _ in range(MOST_ROUNDS):
        if not (more := evidence.open_pairs()):
            return evidence
        evidence = Evidence(nodes, [*evidence.tried, *map(try_, more)])
    raise AssertionError("no end")


def left_out(evidence: Evidence) -> list[str]:
    return [problem.node for problem in evidence.verdict().bad]


GANGS = st.integers(2, 40).map(lambda count: [f"n{i}" for i in range(count)])


# -- which pairs -------------------------------------------------------------------------------------------------------


@given(GANGS)
def test_every_node_is_tried_in_two_rounds_and_with_at_most_as_many_pairs_as_nodes(nodes: list[str]) -> None:
    pairs = neighbours(nodes)
    assert len(pairs) <= len(nodes)
    assert {node for pair in pairs for node in pair} == set(nodes)
    plan = rounds(pairs)
    assert len(plan) <= 2
    assert sorted(pair for one in plan for pair in one) == sorted(pairs)
    for one in plan:
        busy = [node for pair in one for node in pair]
        assert len(busy) == len(set(busy))


def test_a_gang_of_one_node_has_no_pairs_and_one_of_two_has_one() -> None:
    assert neighbours(["a"]) == []
    assert neighbours(["a", "b"]) == [("a", "b")]


# -- what is known -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kept", "known"),
    [
        pytest.param(KEPT, True, id="the same again"),
        pytest.param(replace(KEPT, ranks=32), True, id="with more GPUs than are asked for"),
        pytest.param(replace(KEPT, ranks=2), False, id="with fewer: other adapters were not tried"),
        pytest.param(replace(KEPT, model="A100"), False, id="other GPUs"),
        pytest.param(replace(KEPT, versions={"driver": "560", "nccl": "2.28.9"}), False, id="another driver"),
        pytest.param(replace(KEPT, versions={"driver": "570.1", "nccl": "2.21.5"}), False, id="another NCCL"),
        pytest.param(replace(KEPT, versions={}), True, id="versions that nobody knew"),
        pytest.param(replace(KEPT, at=START - HOLDS - timedelta(1)), False, id="long ago"),
        pytest.param(replace(KEPT, busbw=None, failure="hung"), False, id="a failure is tried again"),
        pytest.param(replace(KEPT, busbw=5.0), True, id="slow, as the same run found"),
        pytest.param(replace(KEPT, busbw=5.0, run=6), False, id="slow, as another run found"),
    ],
)
def test_a_result_stands_for_the_same_links_and_versions(kept: Kept, known: bool) -> None:
    assert stands(kept, SHAPE, 7, START) is known


def test_a_result_of_orch_bench_stands_for_its_pair_and_not_for_larger_rings() -> None:
    found = kept_of(a_bench("a", "b", busbw=40.0))
    assert found is not None
    assert found.nodes == ("a", "b")
    assert kept_of(a_bench("a", busbw=40.0)) is None
    assert kept_of(a_bench("a", "b", "c", busbw=40.0)) is None


def test_the_past_of_links_alike_and_of_nodes_is_summed_up() -> None:
    slow, failed = (
        replace(KEPT, nodes=("a", "c"), busbw=12.0),
        replace(KEPT, nodes=("a", "d"), busbw=None, failure="hung"),
    )
    assert best([KEPT, slow, failed], SHAPE, START) == 45 / 48
    assert best([slow], replace(SHAPE, ranks=2), START) is None
    assert failures([KEPT, slow, failed], ["a", "b", "c"], START) == {"a": 2, "c": 1}


# -- who is to blame ---------------------------------------------------------------------------------------------------


@given(GANGS.filter(lambda nodes: len(nodes) > 2), st.data())
def test_one_bad_node_of_three_or_more_is_found_wherever_it_is(nodes: list[str], data: st.DataObject) -> None:
    bad = data.draw(st.sampled_from(nodes))
    assert left_out(played(nodes, {bad})) == [bad]


@given(GANGS, st.data())
def test_no_node_that_did_well_is_left_out_beside_bad_ones(nodes: list[str], data: st.DataObject) -> None:
    bad = data.draw(st.sets(st.sampled_from(nodes), max_size=len(nodes) // 3))
    evidence = played(nodes, bad)
    if len(nodes) > 2:
        assert set(left_out(evidence)) <= bad
        assert not evidence.good & bad


@given(GANGS.filter(lambda nodes: len(nodes) > 3), st.data())
def test_a_broken_link_between_two_good_nodes_costs_one_of_them(nodes: list[str], data: st.DataObject) -> None:
    link = data.draw(st.sampled_from(neighbours(nodes)))
    (one,) = played(nodes, set(), {frozenset(link)}).verdict().bad
    assert one.node in link
    assert "which of the two is at fault cannot be told" in one.text


@given(GANGS.filter(lambda nodes: len(nodes) > 2))
def test_where_no_pair_works_nobody_is_left_out(nodes: list[str]) -> None:
    verdict = played(nodes, set(nodes)).verdict()
    assert verdict.bad == ()
    assert verdict.note is not None
    assert "no pair does better" in verdict.note


def test_all_well_says_nothing() -> None:
    assert Evidence("abc", [tried("a", "b"), tried("b", "c")]).verdict().note is None


def test_the_reason_names_the_others_and_what_happened() -> None:
    evidence = Evidence("abcd", [tried("c", "d"), hung("a", "b"), hung("b", "c"), tried("a", "d")])
    assert list(map(str, evidence.verdict().bad)) == ["b: all-reduce with a and c hung"]
    slow = Evidence("abcd", [tried("c", "d"), tried("a", "b", 0.1), tried("b", "c", 0.1), tried("a", "d")])
    assert list(map(str, slow.verdict().bad)) == ["b: all-reduce with a and c reaches 4.8 GB/s of 48 promised"]


class TestOfTwoNodes:
    def test_each_is_tried_alone(self) -> None:
        assert Evidence("ab", [hung("a", "b")]).open_pairs() == [("a", "a"), ("b", "b")]

    def test_the_one_that_fails_alone_is_left_out(self) -> None:
        evidence = Evidence("ab", [hung("a", "b"), tried("a", "a", None, "hung"), tried("b", "b", None)])
        assert list(map(str, evidence.verdict().bad)) == ["a: its own ranks alone: all-reduce hung"]

    def test_else_the_one_with_the_worse_history(self) -> None:
        alone = [hung("a", "b"), tried("a", "a", None), tried("b", "b", None)]
        assert list(map(str, Evidence("ab", alone, worse={"a": 2, "b": 1}).verdict().bad)) == [
            "a: all-reduce with b hung; it failed with 2 others before, b with 1"
        ]

    def test_else_one_of_them_and_it_is_said_that_it_cannot_be_told(self) -> None:
        alone = [hung("a", "b"), tried("a", "a", None), tried("b", "b", None)]
        assert list(map(str, Evidence("ab", alone).verdict().bad)) == [
            "b: all-reduce with a hung; which of the two is at fault cannot be told"
        ]

    def test_a_trial_that_works_not_even_alone_says_nothing_of_nodes(self) -> None:
        alone = [tried(a, b, None, "failed: bad env") for a, b in ("ab", "aa", "bb")]
        verdict = Evidence("ab", alone).verdict()
        assert verdict.bad == ()
        assert verdict.note == "all-reduce between a and b failed: bad env; no pair does better, so no node is left out"

    def test_slow_with_nothing_to_hold_it_against_may_be_the_models_fault(self) -> None:
        evidence = Evidence("ab", [tried("a", "b", 0.2)])
        assert evidence.open_pairs() == []
        verdict = evidence.verdict()
        assert verdict.bad == ()
        assert verdict.note is not None
        assert verdict.note.startswith("all-reduce between a and b reaches 9.6 GB/s of 48 promised")

    def test_slow_beside_what_links_like_it_reached_is_a_fault(self) -> None:
        assert left_out(Evidence("ab", [tried("a", "b", 0.2)], past=0.9)) == ["b"]

    def test_two_slow_pairs_with_a_node_in_common_are_held_against_a_third(self) -> None:
        slow = [tried("a", "b", 0.1), tried("b", "c", 0.1)]
        assert Evidence("abc", slow).open_pairs() == [("a", "c")]
        assert left_out(Evidence("abc", [*slow, tried("a", "c", 0.9)])) == ["b"]
        assert left_out(Evidence("abc", [*slow, tried("a", "c", 0.1)])) == []

    def test_nothing_more_is_tried_where_no_link_like_it_ever_reached_more(self) -> None:
        assert Evidence("abc", [tried("a", "b", 0.1), tried("b", "c", 0.1)], past=0.12).open_pairs() == []

    def test_half_of_what_the_best_reach_is_enough(self) -> None:
        assert left_out(Evidence("abc", [tried("a", "b", 0.31), tried("b", "c", 0.6)])) == []


class TestCulprits:
    def test_a_node_whose_ranks_end_at_once_is_left_out_with_their_words(self) -> None:
        found = Evidence("ab", [tried("a", "b", None, "ended before it began: no torch", "b")])
        assert found.open_pairs() == []
        assert list(map(str, found.verdict().bad)) == ["b: ended before it began: no torch"]

    def test_one_that_is_to_blame_by_its_own_trial_too_is_named_once(self) -> None:
        found = Evidence(
            "ab", [tried("a", "b", None, "hung"), tried("a", "a", 1.0), tried("b", "b", None, "hung", "b")]
        )
        assert list(map(str, found.verdict().bad)) == ["b: hung"]

    def test_where_all_do_the_run_itself_will_say_so(self) -> None:
        verdict = Evidence("ab", [tried("a", "b", None, "ended before it began: no torch", "a", "b")]).verdict()
        assert verdict.bad == ()
        assert verdict.note == "its links were not tried: ended before it began: no torch"


def test_what_was_not_tried_in_time_is_told() -> None:
    assert Evidence("ab", []).verdict(in_time=False).note == "not every pair could be tried in time"


@given(GANGS, st.data())
def test_whatever_comes_of_it_a_trial_ends_and_never_leaves_all_out(nodes: list[str], data: st.DataObject) -> None:
    outcomes = st.tuples(st.sampled_from([1.0, 0.2, None]), st.booleans())

    def try_(pair: Pair) -> Tried:
        reached, dies = data.draw(outcomes)
        culprits = [data.draw(st.sampled_from(pair))] if reached is None and dies else []
        return tried(*pair, reached, "hung" if reached is None else None, *culprits)

    evidence = Evidence(nodes, [try_(pair) for pair in neighbours(nodes)])
    for _ in range(3 * len(nodes)):
        more = evidence.open_pairs()
        if not more:
            break
        assert len(rounds(more)) == 1
        done = {frozenset(one.pair) for one in evidence.tried}
        assert not done & set(map(frozenset, more))
        evidence = Evidence(nodes, [*evidence.tried, *map(try_, more)])
    else:
        raise AssertionError("no end")
    bad = left_out(evidence)
    assert len(bad) == len(set(bad)) < len(nodes)
