"""Trends and the 95 % rule."""

from __future__ import annotations

from statistics import median_low

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.bench.compare import FALLS_BEHIND, behind, compare
from orchestrator.testing.benches import a_bench


def test_a_result_is_held_against_the_median_of_its_links_earlier_ones() -> None:
    past = [a_bench("a", busbw=busbw, day=day, run=day) for day, busbw in enumerate([400.0, 440.0, 420.0], 1)]
    new = a_bench("a", busbw=378.0, day=9, run=9)
    (found,) = compare([new], [*past, new])
    assert (found.earlier_median, found.earlier) == (420.0, 3)
    assert found.change == pytest.approx(-0.1)


def test_later_results_other_sizes_backends_and_collectives_are_no_past() -> None:
    new = a_bench("a", busbw=100.0, day=5, run=5)
    others = [
        a_bench("a", busbw=1.0, day=6, run=6),
        a_bench("a", busbw=1.0, day=1, run=1, size=1 << 20),
        a_bench("a", busbw=1.0, day=1, run=2, backend="gloo"),
        a_bench("a", busbw=1.0, day=1, run=3, collective="all_gather"),
        a_bench("a", busbw=1.0, day=1, run=4, per_node=4),
    ]
    (found,) = compare([new], others)
    assert (found.earlier_median, found.like_median, found.suspect) == (None, None, False)


@pytest.mark.parametrize(("busbw", "suspect"), [(94.9, True), (95.0, False), (120.0, False)])
def test_below_95_percent_of_its_like_a_link_is_suspect(busbw: float, suspect: bool) -> None:
    likes = [a_bench(name, busbw=100.0, run=run) for run, name in enumerate("bcd", 2)]
    (found,) = compare([a_bench("a", busbw=busbw)], likes)
    assert (found.suspect, found.like_median, found.likes) == (suspect, 100.0, 3)


def test_a_link_is_held_against_the_newest_result_of_each_link_like_it() -> None:
    likes = [a_bench("b", busbw=300.0, day=1, run=2), a_bench("b", busbw=100.0, day=2, run=3)]
    (found,) = compare([a_bench("a", busbw=100.0)], likes)
    assert (found.like_median, found.likes) == (100.0, 1)


@pytest.mark.parametrize("unlike", [{"model": "A100"}, {"level": "node"}, {"kind": "shm"}, {"per_node": 4}])
def test_links_of_another_model_level_kind_or_size_are_not_like_it(unlike: dict[str, object]) -> None:
    (found,) = compare([a_bench("a", busbw=10.0)], [a_bench("b", busbw=100.0, run=2, **unlike)])  # type: ignore[arg-type]
    assert not found.suspect


def test_small_sizes_make_no_suspect() -> None:
    (found,) = compare([a_bench("a", busbw=10.0, size=1 << 20)], [a_bench("b", busbw=100.0, run=2, size=1 << 20)])
    assert (found.suspect, found.like_median) == (False, 100.0)


figures = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.floats(1.0, 1000.0), max_size=8)


@given(figures)
def test_who_falls_behind_is_below_95_percent_of_the_others_and_the_best_never_is(
    given_figures: dict[str, float],
) -> None:
    found = behind(given_figures)
    for name, due in found.items():
        assert due == median_low(figure for other, figure in given_figures.items() if other != name)
        assert given_figures[name] < FALLS_BEHIND * due
    assert not found or max(given_figures, key=lambda name: given_figures[name]) not in found


@given(st.integers(3, 8), st.floats(1.0, 1000.0), st.floats(2.0, 100.0))
def test_one_link_that_looks_too_good_makes_no_other_suspect(count: int, figure: float, times: float) -> None:
    assert not behind({0: figure * times} | dict.fromkeys(range(1, count), figure))
