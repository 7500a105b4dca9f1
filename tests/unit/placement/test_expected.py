"""What a collective of a size should reach on chosen GPUs."""

from __future__ import annotations

from datetime import date

import pytest

from orchestrator.placement.bandwidth import GLOO_GB_S, REFERENCE_BYTES, Figure
from orchestrator.placement.gang import expected, predict_parts
from orchestrator.placement.tree import Topology
from orchestrator.testing.hardware import cluster, node

#   leaf l1: a:8  b:8     c: a node without GPUs
NODES = (node("a", 8, nics=8, leaf="l1"), node("b", 8, nics=8, leaf="l1"), node("c", leaf="l1"))
ON = date(2026, 11, 26)
PLAIN = Topology(cluster(*NODES))
MEASURED = Topology(
    cluster(*NODES), measured={"H100/nvlink/8": Figure(0.8, ON), "H100/between/leaf/8": Figure(0.7, ON)}
)
ALL = (1 << 8) - 1


def parts(topology: Topology, *names: str) -> list[tuple[int, int]]:
    return [(topology.index[name], ALL if name != "c" else 0b11) for name in names]


@pytest.mark.parametrize("names", ["a", "ab", "c"])
@pytest.mark.parametrize("topology", [PLAIN, MEASURED])
def test_a_large_all_reduce_is_expected_to_reach_what_placement_predicts(topology: Topology, names: str) -> None:
    backend = "gloo" if names == "c" else "nccl"
    gang = parts(topology, *names)
    assert expected(topology, gang, "all_reduce", backend, REFERENCE_BYTES) == pytest.approx(
        predict_parts(topology, gang).busbw
    )


@pytest.mark.parametrize(("names", "factor"), [("a", 0.8), ("ab", 0.7)])
def test_plainly_the_model_knows_nothing_of_measurements(names: str, factor: float) -> None:
    gang = parts(MEASURED, *names)
    plain = expected(MEASURED, gang, "all_reduce", "nccl", REFERENCE_BYTES, plain=True)
    assert plain == expected(PLAIN, gang, "all_reduce", "nccl", REFERENCE_BYTES)
    assert expected(MEASURED, gang, "all_reduce", "nccl", REFERENCE_BYTES) == pytest.approx(factor * (plain or 0))


def test_the_switch_helps_an_all_reduce_alone() -> None:
    gang = parts(PLAIN, "a")
    reduced = expected(PLAIN, gang, "all_reduce", "nccl", REFERENCE_BYTES) or 0
    others = {expected(PLAIN, gang, c, "nccl", REFERENCE_BYTES) for c in ("all_gather", "broadcast", "all_to_all")}
    assert len(others) == 1
    assert 0.7 * reduced < (others.pop() or 0) < reduced


def test_small_sizes_are_expected_to_reach_less() -> None:
    gang = parts(PLAIN, "a", "b")
    found = [expected(PLAIN, gang, "all_reduce", "nccl", 1 << power) or 0 for power in range(10, 31, 4)]
    assert found == sorted(found)
    assert found[0] < 0.01 * found[-1]


def test_gloo_between_gpus_is_gloo_and_nccl_between_cpus_is_nothing() -> None:
    assert expected(PLAIN, parts(PLAIN, "a"), "all_reduce", "gloo", 1 << 30) == pytest.approx(GLOO_GB_S, rel=0.01)
    assert expected(PLAIN, parts(PLAIN, "c"), "all_reduce", "nccl", 1 << 30) is None
    assert expected(PLAIN, [(0, 1)], "all_reduce", "nccl", 1 << 30) is None
