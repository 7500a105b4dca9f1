"""What the bandwidth model learns from results, and what it does not let itself be told."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.bench.calibrate import calibrate
from orchestrator.bench.results import Bench
from orchestrator.placement.bandwidth import Figure, Own
from orchestrator.placement.search import place
from orchestrator.placement.tree import Free, Topology
from orchestrator.placement.values import Placement, Request
from orchestrator.spec_values import Workers
from orchestrator.testing.benches import a_bench
from orchestrator.testing.hardware import cluster, node

INSIDE = "H100/nvlink/8"


def factor(*benches: Bench, key: str = INSIDE) -> float | None:
    found = calibrate(benches).measured.get(key)
    return None if found is None else found.factor


def test_a_class_of_links_is_corrected_by_what_its_links_reached() -> None:
    found = calibrate([a_bench("a", busbw=90.0, run=1, day=1), a_bench("b", busbw=92.0, run=2, day=3)])
    assert found.measured == {INSIDE: Figure(0.9, date(2026, 1, 8))}
    assert found.own == {}


def test_links_are_told_apart_by_model_kind_level_and_ranks_on_a_node() -> None:
    found = calibrate(
        [
            a_bench("a", busbw=90.0, run=1),
            a_bench("a", busbw=80.0, run=2, per_node=2),
            a_bench("b", busbw=70.0, run=3, model="A100"),
            a_bench("c", busbw=60.0, run=4, level="node", kind="shm"),
            a_bench("a", "b", busbw=50.0, run=5),
            a_bench("a", "c", busbw=40.0, run=6, level="pod"),
        ]
    )
    assert {key: one.factor for key, one in found.measured.items()} == {
        "H100/nvlink/8": 0.9,
        "H100/nvlink/2": 0.8,
        "A100/nvlink/8": 0.7,
        "H100/shm/8": 0.6,
        "H100/between/leaf/8": 0.5,
        "H100/between/pod/8": 0.4,
    }


@pytest.mark.parametrize(
    "other",
    [
        a_bench("a", busbw=10.0, run=2, collective="broadcast"),
        a_bench("a", busbw=10.0, run=2, backend="gloo"),
        a_bench("a", busbw=10.0, run=2, size=1 << 20),
        a_bench("a", busbw=10.0, run=2, modelled=None),
        a_bench("a", busbw=10.0, run=2, per_node=0),
    ],
)
def test_only_a_large_all_reduce_by_the_ranks_own_backend_counts(other: Bench) -> None:
    assert factor(a_bench("a", busbw=90.0), other) == 0.9


def test_of_a_run_the_largest_size_counts() -> None:
    assert factor(a_bench("a", busbw=50.0, size=64 << 20), a_bench("a", busbw=90.0)) == 0.9


def test_one_result_may_make_a_link_look_worse_but_two_are_needed_to_make_it_look_better() -> None:
    assert factor(a_bench("a", busbw=60.0)) == 0.6
    assert factor(a_bench("a", busbw=120.0)) == 1.0
    assert factor(a_bench("a", busbw=120.0, run=1), a_bench("a", busbw=110.0, run=2, day=1)) == 1.1


@given(st.lists(st.floats(1.0, 1e6), min_size=1, max_size=1), st.lists(st.floats(80.0, 100.0), min_size=0, max_size=8))
def test_one_outlier_never_makes_a_link_look_better_than_its_other_results_or_the_model(
    outlier: list[float], usual: list[float]
) -> None:
    runs = [a_bench("a", busbw=busbw, run=i, day=i) for i, busbw in enumerate([*usual, *outlier])]
    found = factor(*runs)
    assert found is not None
    assert found <= max([1.0, *(busbw / 100.0 for busbw in usual)])


def test_results_with_other_versions_are_not_mixed_and_the_newest_hold() -> None:
    old = [a_bench("a", busbw=90.0, run=run, day=run) for run in (1, 2, 3)]
    assert factor(*old, a_bench("a", busbw=70.0, run=4, day=4, nccl="2.29.7")) == 0.7


def test_a_result_of_another_driver_than_the_node_runs_now_is_left_out() -> None:
    bench = a_bench("a", busbw=60.0, driver="570")
    assert calibrate([bench], {"a": "580"}).measured == {}
    assert calibrate([bench], {"a": "570", "b": "580"}).measured[INSIDE].factor == 0.6


def test_a_node_below_95_percent_of_its_like_has_figures_of_its_own_and_spoils_not_its_class() -> None:
    found = calibrate([*(a_bench(n, busbw=90.0, run=i) for i, n in enumerate("abc")), a_bench("d", busbw=45.0, run=9)])
    assert found.measured[INSIDE].factor == 0.9
    assert found.own == {"d": Own(inside=0.5, on=date(2026, 1, 5))}


def test_a_node_is_as_good_as_its_best_pair() -> None:
    pairs = [("a", "b", 40.0), ("c", "d", 80.0), ("e", "f", 80.0), ("a", "c", 80.0), ("b", "d", 40.0)]
    found = calibrate([a_bench(x, y, busbw=busbw, run=i) for i, (x, y, busbw) in enumerate(pairs)])
    assert found.own == {"b": Own(between=0.5, on=date(2026, 1, 5))}
    assert found.measured["H100/between/leaf/8"].factor == 0.8


# === in a placement ===

#        leaf l1
#   a:8  b:8  c:8  d:8
FOUR = cluster(*(node(name, 8, nics=8, leaf="l1") for name in "abcd"))


def placed(shape: str, *benches: Bench) -> Placement:
    known = calibrate(benches)
    topology = Topology(FOUR, measured=known.measured, own=known.own)
    nodes, _, each = shape.partition("x")
    request = Request(Workers(total=int(nodes) * int(each), nodes=int(nodes)), "cuda")
    answer = place(request, topology, Free(topology))
    assert isinstance(answer, Placement)
    return answer


def test_a_prediction_is_what_was_measured_and_says_when() -> None:
    model = placed("1x8").busbw_predicted
    assert model is not None
    measured = placed("1x8", a_bench("a", busbw=80.0), a_bench("b", busbw=80.0, run=2))
    assert measured.busbw_predicted == pytest.approx(0.8 * model, abs=0.01)
    assert measured.busbw_bottleneck == "a: NVLink among 8 GPUs, measured on 2026-01-05"


def test_between_nodes_a_prediction_is_what_pairs_reached_also_for_more_of_them() -> None:
    for shape in ("2x8", "4x8"):
        model, measured = placed(shape), placed(shape, a_bench("a", "b", busbw=70.0))
        assert (model.busbw_predicted, measured.busbw_predicted) != (None, None)
        assert measured.busbw_predicted == pytest.approx(0.7 * (model.busbw_predicted or 0), abs=0.01)
        assert (measured.busbw_bottleneck or "").endswith(", measured on 2026-01-05")


def test_what_was_not_measured_is_the_models_and_says_nothing_of_a_date() -> None:
    measured = placed("1x4", a_bench("a", "b", busbw=70.0))
    assert measured == placed("1x4")


@pytest.mark.parametrize("slow", "ad")
def test_a_node_that_stays_behind_is_not_taken_where_another_is_free(slow: str) -> None:
    inside = [a_bench(n, busbw=40.0 if n == slow else 90.0, run=i) for i, n in enumerate("abcd")]
    assert [part.node for part in placed("1x8", *inside).nodes] != [slow]
    three = [part.node for part in placed("3x8", *_pairs(slow)).nodes]
    assert slow not in three
    whole, good = placed("4x8", *_pairs(slow)), placed("3x8", *_pairs(slow))
    assert (whole.busbw_predicted or 0) < 0.8 * (good.busbw_predicted or 0)


def _pairs(slow: str) -> list[Bench]:
    pairs = [("a", "b"), ("c", "d"), ("a", "c"), ("b", "d"), ("a", "d"), ("b", "c")]
    return [a_bench(*pair, busbw=45.0 if slow in pair else 90.0, run=i) for i, pair in enumerate(pairs)]
