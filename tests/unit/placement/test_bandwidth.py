"""The cost model against NCCL's own tables and graphs, and against bandwidths that were measured."""

from __future__ import annotations

import itertools
import math
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.hardware.model import Gpu, Nic, Shape, all_to_all
from orchestrator.placement import nccl_cost
from orchestrator.placement.bandwidth import (
    Figure,
    Links,
    Own,
    ShapeLinks,
    Span,
    allreduce_time_us,
    predict,
    sm_of_model,
)
from orchestrator.placement.nccl_cost import Graph

# NCCL_DEBUG_SUBSYS=TUNING of NCCL 2.27.7 on two A100 over one NVLink left of twelve, and over all twelve.
ONE_LINK = """
Algorithm   |                            Tree                  |                            Ring                  |
Protocol    |             LL |          LL128 |         Simple |             LL |          LL128 |         Simple |
AllReduce |     8.0/   3.2 |    16.5/   9.3 |    16.4/  12.0 |     7.8/  10.0 |    17.8/  18.4 |    15.2/  20.0 |
"""
TWELVE_LINKS = """
Algorithm   |                            Tree                  |                            Ring                  |
Protocol    |             LL |          LL128 |         Simple |             LL |          LL128 |         Simple |
AllReduce |     8.0/  37.9 |    16.5/ 112.0 |    16.4/ 144.0 |     7.8/  87.7 |    17.8/ 220.8 |    15.2/ 240.0 |
"""


def cells(log: str) -> dict[tuple[str, str], tuple[float, float]]:
    row = next(line for line in log.splitlines() if line.strip().startswith("AllReduce"))
    pairs = [tuple(map(float, cell.split("/"))) for cell in row.split("|")[1:-1]]
    names = itertools.product(("tree", "ring"), ("LL", "LL128", "Simple"))
    return dict(zip(names, pairs, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize(("log", "channels"), [(ONE_LINK, 1), (TWELVE_LINKS, 12)], ids=["one NVLink", "NV12"])
def test_the_table_is_the_one_that_nccl_prints(log: str, channels: int) -> None:
    ring, tree = Graph(channels, 20.0, 0.0), Graph(channels, 40.0, 0.0)
    ours = nccl_cost.table(ring, tree, None, ranks=2, nodes=1, capability=80)
    assert {key: (round(c.latency_us, 1), round(c.algbw, 1)) for key, c in ours.items()} == cells(log)


@pytest.mark.parametrize(
    ("available", "capability", "channels", "speed"),
    [
        pytest.param(370.8, 90, 12, 30.0, id="H200, NV18: nChannels 12, bw 30"),
        pytest.param(48 / 1.2, 90, 2, 20.0, id="H200 through a host bridge: nChannels 2, bw 20"),
        pytest.param(1.25, 90, 1, 1.2, id="H200 over an interface of unknown speed: nChannels 1, bw 1.2"),
        pytest.param(240.0, 80, 12, 20.0, id="A100, NV12"),
        pytest.param(20.0, 80, 1, 20.0, id="A100, one NVLink: nChannels 1, bw 20"),
        pytest.param(120.0, 70, 6, 20.0, id="V100, six NVLinks"),
    ],
)
def test_channels_are_cut_as_nccl_logs_them(available: float, capability: int, channels: int, speed: float) -> None:
    assert nccl_cost.search_channels(available, capability) == (channels, speed)


def two_h200(link: str) -> float:
    links = ShapeLinks(Shape((Gpu(0, "H200"), Gpu(1, "H200")), (link,))).of(0b11)
    return predict(links, 2, Span(1)).busbw


def test_two_h200_are_ranked_as_measured_and_near_it() -> None:
    alone = ShapeLinks(Shape((Gpu(0, "H200"),), (), (Nic("eth0", rate_gbps=1000.0),)))
    sockets = predict(alone.of(1), 2, Span(2)).busbw
    assert two_h200("NV18") > two_h200("SYS") > sockets
    assert two_h200("NV18") == pytest.approx(332, rel=0.25)
    assert two_h200("PHB") == pytest.approx(28, rel=0.25)
    assert sockets == pytest.approx(3.6, rel=0.25)
    assert sockets == pytest.approx(4.2, rel=0.25)


def test_small_messages_are_bound_by_latency_and_large_ones_by_bandwidth() -> None:
    links = ShapeLinks(Shape((Gpu(0, "H200"), Gpu(1, "H200")), ("NV18",))).of(0b11)
    times = [allreduce_time_us(size, links, 2, Span(1)) for size in (8, 1 << 20, 1 << 30)]
    assert times[0] < 15
    assert times == sorted(times)
    assert (1 << 30) / times[2] / 1000 == pytest.approx(332, rel=0.1)


# The hybrid cube mesh of DGX-1 with V100, as nvidia-smi's NV# words.
MESH = {
    (0, 1): 1, (0, 2): 1, (0, 3): 2, (0, 4): 2, (1, 2): 2, (1, 3): 1, (1, 5): 2, (2, 3): 2,
    (2, 6): 1, (3, 7): 1, (4, 5): 1, (4, 6): 1, (4, 7): 2, (5, 6): 2, (5, 7): 1, (6, 7): 2,
}  # fmt: skip


def dgx1() -> Shape:
    pairs = itertools.combinations(range(8), 2)
    links = tuple(f"NV{MESH[pair]}" if pair in MESH else "SYS" for pair in pairs)
    return Shape(tuple(Gpu(i, "V100") for i in range(8)), links)


def test_a_mesh_is_worth_its_rings() -> None:
    links = ShapeLinks(dgx1())
    everything = predict(links.of(0xFF), 8, Span(1)).busbw
    assert everything == pytest.approx(113, rel=0.05)
    assert links.of(0b1001).intra > links.of(0b0011).intra > links.of(0b100001).intra
    assert links.intra_kind(0b100001) == "shm"


def test_leaving_the_nvlink_pair_costs_most_of_the_bandwidth() -> None:
    links = ShapeLinks(Shape(tuple(Gpu(i, "A100") for i in range(4)), ("NV12", *["NODE"] * 4, "NV12")))
    assert links.of(0b0011).intra > 7 * links.of(0b1111).intra
    assert links.of(0b1111).intra == pytest.approx(25, rel=0.15)


def test_the_nics_that_count_are_those_next_to_the_chosen_gpus() -> None:
    nics = tuple(Nic(f"mlx5_{i}", near=(2 * i, 2 * i + 1), rate_gbps=200.0) for i in range(4))
    links = ShapeLinks(Shape(tuple(Gpu(i, "A100") for i in range(8)), all_to_all(8, "NV12"), nics))
    assert links.of(0b0011).net == links.of(0b0001).net == links.of(0xFF).net / 4
    assert links.of(0b0101).net == 2 * links.of(0b0011).net
    assert links.nic_text(0xFF) == "200 Gb/s x 4"


def test_a_nic_that_is_down_does_not_count() -> None:
    up, down = Nic("mlx5_0", near=(0,), rate_gbps=400.0), Nic("mlx5_1", near=(0,), rate_gbps=400.0, state="DOWN")
    gpu = (Gpu(0, "H100"),)
    assert ShapeLinks(Shape(gpu, (), (up, down))).of(1).net == ShapeLinks(Shape(gpu, (), (up,))).of(1).net


def test_without_rdma_a_nic_is_worth_what_a_tcp_connection_carries() -> None:
    shape = Shape((Gpu(0, "H100"),), (), (Nic("eth0", rate_gbps=100.0),))
    assert ShapeLinks(shape).of(1).net == 4.0
    assert ShapeLinks(shape).nic_text(1) == "TCP over 100 Gb/s x 1"


ON = date(2026, 11, 26)


@pytest.mark.parametrize("factor", [0.6, 0.9, 1.09])
def test_what_was_measured_inside_a_node_corrects_what_is_predicted_there(factor: float) -> None:
    shape = Shape(tuple(Gpu(i, "H200") for i in range(8)), all_to_all(8, "NV18"))
    plain, measured = ShapeLinks(shape), ShapeLinks(shape, {"H200/nvlink/8": Figure(factor, ON)})
    model = predict(plain.of(0xFF), 8, Span(1)).busbw
    assert predict(measured.of(0xFF), 8, Span(1)).busbw == pytest.approx(factor * model)
    assert measured.figure(0xFF)[1] == Figure(factor, ON)


def test_a_figure_for_another_number_of_gpus_may_lower_a_prediction_and_never_raise_it() -> None:
    shape = Shape(tuple(Gpu(i, "H200") for i in range(8)), all_to_all(8, "NV18"))
    model = predict(ShapeLinks(shape).of(0b1111), 4, Span(1)).busbw
    for factor, expected in ((0.8, 0.8), (1.2, 1.0)):
        links = ShapeLinks(shape, {"H200/nvlink/8": Figure(factor, ON)})
        assert predict(links.of(0b1111), 4, Span(1)).busbw == pytest.approx(expected * model)
        assert links.figure(0b1111)[1] is None


def test_what_was_measured_inside_a_node_says_nothing_of_a_gang_over_several() -> None:
    links = Links(300.0, 0.0, 47.0, 90, factor=0.5)
    assert predict(links, 16, Span(2), between=1.0).busbw == 2 * predict(links, 16, Span(2)).busbw


def test_a_node_that_stays_behind_has_slower_links_of_its_own() -> None:
    nics = (Nic("mlx5_0", near=(0, 1), rate_gbps=400.0),)
    shape = Shape((Gpu(0, "H100"), Gpu(1, "H100")), ("NV18",), nics)
    like, slow = ShapeLinks(shape).of(0b11), ShapeLinks(shape, None, Own(0.5, 0.25, ON)).of(0b11)
    assert (slow.intra, slow.net) == (like.intra / 2, like.net / 4)


def test_models_are_known_by_their_names() -> None:
    names = {
        "NVIDIA A100-SXM4-80GB": 80,
        "NVIDIA A10G": 86,
        "NVIDIA H100 80GB HBM3": 90,
        "GB200": 100,
        "Tesla V100": 70,
    }
    assert {name: sm_of_model(name) for name in names} == names


@pytest.mark.parametrize(("link", "expected"), [("NV18", 444), ("NV12", 224)])
def test_a_machine_whose_models_are_not_said_is_known_by_its_nvlinks(link: str, expected: float) -> None:
    links = ShapeLinks(Shape(tuple(Gpu(i) for i in range(8)), all_to_all(8, link)))
    assert predict(links.of(0xFF), 8, Span(1)).busbw == pytest.approx(expected, rel=0.02)


finite = st.floats(1.0, 1000.0)
links = st.builds(Links, finite, st.just(0.0) | finite, finite, st.sampled_from([70, 80, 90, 100]))


@given(links, links, st.integers(1, 64), st.sampled_from([1, 2, 4, 8]))
def test_better_links_never_predict_less(a: Links, b: Links, nodes: int, per_node: int) -> None:
    ranks = nodes * per_node
    if ranks < 2 or a.sm != b.sm:
        return
    worse = a.worst(b)
    assert predict(worse, ranks, Span(nodes)).busbw <= predict(a, ranks, Span(nodes)).busbw * (1 + 1e-9)


@given(links, st.integers(2, 64), st.integers(0, 3), st.integers(1, 8))
def test_a_wider_span_never_predicts_more(link: Links, nodes: int, height: int, parts: int) -> None:
    near, far = Span(nodes, height, parts), Span(nodes, height + 1, parts + 1, 2.0)
    assert predict(link, nodes * 4, far).busbw <= predict(link, nodes * 4, near).busbw


def test_one_rank_has_nobody_to_reduce_with() -> None:
    assert math.isinf(predict(Links(math.inf, math.inf, 1.0, 90), 1, Span(1)).busbw)
