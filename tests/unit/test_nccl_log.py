"""What NCCL's log is read as: real logs of many versions, awkward lines, and any damage to them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.health.nccl_log import NcclLog, read, to_json

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared/real/nccl_logs"
OWN = ROOT / "tests/fixtures/nccl"


def lines_of(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines(keepends=True)


# version, ranks, nodes, links, transports, GPUDirect RDMA, worst
REAL_LOGS = {
    "coriv100_2x8_ib_nogdr_nccl2.4.8": ("2.4.8", 16, 2, {"P2P": 168, "NET/IB": 36}, ["P2P", "NET/IB"], False, "NET/IB"),
    "coriv100_2x8_socket_fallback_nccl2.5.6": (
        "2.5.6", 16, 2, {"P2P": 88, "NET/Socket": 8}, ["P2P", "NET/Socket"], False, "NET/Socket",
    ),
    "jeanzay_v100_1x4_nvlink_nccl2.7.8": ("2.7.8", 4, 1, {"P2P": 64}, ["P2P"], False, "P2P"),
    "jeanzay_a100_4x8_ib_nccl2.10.3": (
        "2.10.3", 32, 4, {"P2P/NVLink": 56, "NET/IB": 14}, ["P2P", "NET/IB"], False, "NET/IB",
    ),
    "polaris_a100_2x4_ofi_gdr_nccl2.20.5": (
        "2.20.5", 8, 2, {"P2P/NVLink": 32, "NET/AWS Libfabric/GDRDMA": 8}, ["P2P", "NET/AWS Libfabric"], True,
        "NET/AWS Libfabric",
    ),
    "polaris_a100_2x4_ofi_nogdr_nccl2.20.5": (
        "2.20.5", 8, 2, {"P2P/NVLink": 32, "NET/AWS Libfabric": 8}, ["P2P", "NET/AWS Libfabric"], False,
        "NET/AWS Libfabric",
    ),
    "lm2_4gpu_shm_nccl2.23.4": ("2.23.4", 4, 1, {"SHM": 16}, ["SHM"], False, "SHM"),
    "s114_2x2_roce_shm_nccl2.26.6": ("2.26.6", 4, 2, {"NET/IB": 8}, ["NET/IB"], False, "NET/IB"),
    "roce_2gpu_nvlink_fault_nccl2.27.7": ("2.27.7", 2, 1, {"P2P/NVLink": 2}, ["P2P"], False, "P2P"),
    "h200x2_default_nccl2.28.9": ("2.28.9", 2, 1, {"P2P/NVLink": 24}, ["P2P"], False, "P2P"),
    "h200x2_shm_nccl2.28.9": ("2.28.9", 2, 1, {"SHM": 4}, ["SHM"], False, "SHM"),
    "h200x2_socket_nccl2.28.9": ("2.28.9", 2, 2, {"NET/Socket": 2}, ["NET/Socket"], False, "NET/Socket"),
    "h200x2_hostid_nccl2.28.9": ("2.28.9", 2, 2, {"NET/Socket": 2}, ["NET/Socket"], False, "NET/Socket"),
    # An excerpt: neither a version nor the number of ranks is in it, but rank is 8 + device on the one host that is.
    "tpgds_h100_2x8_roce_gdr_ge2.25_EXCERPT": (
        None, 16, 2, {"P2P": 10, "NET/IB/GDRDMA": 2}, ["P2P", "NET/IB"], True, "NET/IB",
    ),
}  # fmt: skip


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the recorded logs are not at {REAL}")
@pytest.mark.parametrize("name", REAL_LOGS)
def test_a_recorded_log_is_read_as_what_it_shows(name: str) -> None:
    fields = ("version", "ranks", "nodes", "links", "transports", "gdr", "worst")
    assert to_json(read(lines_of(REAL / f"{name}.txt"))) == dict(zip(fields, REAL_LOGS[name], strict=True))


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the recorded logs are not at {REAL}")
def test_every_recorded_log_has_its_row() -> None:
    assert {path.stem for path in REAL.glob("*.txt")} - {"GRAMMAR_by_version"} == set(REAL_LOGS)


def own(name: str) -> NcclLog:
    return read(lines_of(OWN / f"{name}.log"))


def test_mpirun_timestamps_nvls_collnet_and_proxied_links_are_read() -> None:
    log = own("mpirun_nvls_collnet_gdr")
    assert log.links == {"P2P/NVLink": 2, "NET/IB/GDRDMA": 1, "COLLNET/SHARP/GDRDMA": 1}
    assert log.transports == ("P2P", "NET/IB", "NVLS", "COLLNET")
    assert (log.gdr, log.worst, log.pxn, log.nvls_channels, log.nodes) == (True, "NET/IB", True, 16, 2)
    assert log.adapters == (("node-a", ("mlx5_0:1/IB", "mlx5_1:1/IB")), ("node-b", ("mlx5_0:1/IB",)))
    assert log.interfaces == ("bond0",)
    assert log.env == {"NCCL_IB_HCA": "mlx5_0,mlx5_1"}
    assert log.warnings == (("socketPollConnect: connect to 10.0.0.1<4000> returned Connection refused", 1),)
    assert dict(log.rank_hosts) == {0: "node-a", 1: "node-a", 2: "node-b", 3: "node-b"}
    assert [link.hosts for link in log.found if link.kind.startswith("NET/")] == [("node-a", "node-b")]


def test_rccl_is_read_like_nccl() -> None:
    log = own("rccl_xgmi_socket")
    assert (log.library, log.version, log.ranks, log.nodes) == ("RCCL", "2.18.3", 3, 2)
    assert log.links == {"P2P/xGMI": 1, "NET/Socket": 1}


def test_p2p_is_named_by_the_table_of_paths() -> None:
    assert own("pcie_mixed_2.12").links == {"P2P/NVLink": 1, "P2P/PCIe": 1, "SHM": 2}


def test_one_end_with_gpudirect_is_enough() -> None:
    log = own("v100_gdr_one_way_2.8")
    assert (log.version, log.links, log.gdr) == ("2.8.4", {"NET/IB/GDRDMA": 1}, True)


def test_garbled_and_cut_lines_add_nothing_that_is_not_there() -> None:
    log = own("garbled_2.20")
    assert (log.links, log.hosts, log.nodes) == ({"SHM": 2}, ("node-a",), 1)


def test_a_log_without_links_says_nothing_of_transport_whatever_network_it_names() -> None:
    log = own("no_collective_yet_2.28")
    assert (log.ranks, log.nodes, log.network) == (16, 2, ("IB",))
    assert (log.links, log.transports, log.gdr, log.worst) == ({}, (), None, None)


P2P = "h:1:1 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/"


@pytest.mark.parametrize(
    ("line", "kind"),
    {
        P2P + "CUMEM": "P2P",
        P2P + "IPC": "P2P",
        P2P + "direct pointer/CE": "P2P",
        P2P + "IPC/read": "P2P/NVLink",
        P2P + "MNNVL/read": "P2P/NVLink",
        P2P + "indirect/3[3]": "P2P/NVLink",
        "h:1:1 [0] NCCL INFO Channel 03 : 0[0] -> 1[1] via SHM/direct": "SHM",
        "h:1:1 [0] NCCL INFO Channel 03 : 0[0] -> 1[1] via SHM/CE/direct": "SHM",
        "NCCL INFO Channel 03 : 0[1b000] -> 1[1c000] via direct shared memory": "SHM",
        "h:1:1 [0] NCCL INFO Ring 00 : 7 -> 8 [send] via NET/IB/0": "NET/IB",
        "h:1:1 [0] NCCL INFO Channel 00/1 : 0[0] -> 8[0] [send] via NET/IBext_v8/3/GDRDMA/Shared": "NET/IBext_v8/GDRDMA",
        "h:1:1 [0] NCCL INFO Channel 00/0 : 0[0] -> 8[0] [send] via NET/FastSocket/0": "NET/FastSocket",
        "h:1:1 [0] NCCL INFO Channel 00/0 : 0[0] -> 8[0] [send] via NET/AWS Libfabric/11(7)": "NET/AWS Libfabric",
        "h:1:1 [0] NCCL INFO Channel 00/0 : 0[0] -> 8[0] [send] via NET/gIB/0/GDRDMA(PCI)": "NET/gIB/GDRDMA",
        "h:1:1 [0] NCCL INFO Channel 00/0 : 0[0] -> 8[0] [send] via NET/Libfabric (v10)/0/GDRDMA": "NET/Libfabric/GDRDMA",
        "h:1:1 [0] NCCL INFO Coll 00 : 4 [receive] via COLLNET/SHARP/1": "COLLNET/SHARP",
    }.items(),
)
def test_each_spelling_of_a_link_is_its_kind(line: str, kind: str) -> None:
    assert read([line]).links == {kind: 1}


@pytest.mark.parametrize(
    "line",
    [
        "h:1:1 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via ",
        "h:1:1 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] [send] via NET/IB",
        "h:1:1 [0] NCCL INFO Channel 00/0 : 0[0] -> 99999999[1] via P2P/IPC",
        "h:1:1 [0] NCCL INFO Ring 00 : 0 -> 1 -> 2",
        "the route via NET/IB/0 is not a line of NCCL",
    ],
)
def test_what_is_no_whole_link_is_no_link(line: str) -> None:
    assert read([line]).links == {}


def test_reading_proves_nvlink_only_where_nobody_asked_for_it() -> None:
    asked = "h:1:1 [0] NCCL INFO NCCL_P2P_READ_ENABLE set by environment to 1."
    assert read([P2P + "IPC/read", asked]).links == {"P2P": 1}


def test_a_known_topology_names_p2p_that_the_log_cannot() -> None:
    lines = [P2P + "CUMEM", "h:1:1 [0] NCCL INFO Channel 00/0 : 1[1] -> 2[2] via P2P/CUMEM"]
    assert read(lines, islands={"h": [[0, 1], [2, 3]]}).links == {"P2P/NVLink": 1, "P2P/PCIe": 1}


def test_equal_ranks_of_two_communicators_on_two_hosts_are_two_links() -> None:
    other = P2P.replace("h:", "other:")
    assert read([P2P + "CUMEM", other + "CUMEM"]).links == {"P2P": 2}


def test_the_tuning_table_has_a_cell_for_each_algorithm_and_protocol() -> None:
    table = """
h:1:1 [0] NCCL INFO  Algorithm  |  Tree  |  Ring  |
h:2:2 [1] NCCL INFO  Algorithm  |  PAT  |
h:1:1 [0] NCCL INFO  Protocol  |  LL |  LL128 |  Simple |  LL |  LL128 |  Simple |
h:1:1 [0] NCCL INFO  AllReduce |  8.0/  3.2 |  16.5/  9.3 |  16.4/  12.0 |  7.8/  10.0 |  17.8/  18.4 |  15.2/  20.0 |
h:3:3 [0] NCCL INFO  Latency/AlgBw |  Tree/  LL |  Ring/ Simple |
h:3:3 [0] NCCL INFO  Broadcast |  4.4/  0.0 |  11.0/ 20.1 |
"""
    cells = {(c.collective, c.algorithm, c.protocol): (c.latency, c.bandwidth) for c in read(table.splitlines()).tuning}
    assert cells["AllReduce", "Ring", "Simple"] == (15.2, 20.0)
    assert cells["AllReduce", "Tree", "LL"] == (8.0, 3.2)
    assert cells["Broadcast", "Ring", "Simple"] == (11.0, 20.1)
    assert len(cells) == 8


# Damage -----------------------------------------------------------------------------------------------------------------

LOGS = [lines_of(path) for path in sorted(OWN.glob("*.log"))]
logs = st.sampled_from(LOGS)


@given(logs, st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_the_order_of_lines_does_not_matter(lines: list[str], chance: random.Random) -> None:
    shuffled = list(lines)
    chance.shuffle(shuffled)
    assert read(shuffled) == read(lines)


@given(logs, logs, st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_interleaved_files_are_read_as_one_after_the_other(
    one: list[str], other: list[str], chance: random.Random
) -> None:
    mixed, left, right = [], list(one), list(other)
    while left or right:
        mixed.append((left if left and (not right or chance.random() < 0.5) else right).pop(0))
    assert read(mixed) == read([*one, *other])


@given(logs, st.integers(0, 4000))
@settings(max_examples=60)
def test_a_cut_log_shows_no_transport_that_the_whole_lacks(lines: list[str], cut: int) -> None:
    whole = "".join(lines)
    assert set(read(whole[:cut].splitlines()).transports) <= set(read(lines).transports)


@given(logs, st.randoms(use_true_random=False), st.text(max_size=40))
@settings(max_examples=60)
def test_no_damage_raises(lines: list[str], chance: random.Random, noise: str) -> None:
    text = "".join(lines)
    for _ in range(5):
        start = chance.randrange(len(text))
        text = text[:start] + chance.choice([noise, text[-start:], ""]) + text[start + chance.randrange(60) :]
    to_json(read(text.splitlines()))


def test_an_endless_line_costs_no_more_than_its_beginning() -> None:
    assert read([P2P + "CUMEM " + "NCCL a:1:1 [0] " * 500_000]).links == {"P2P": 1}


# Damage to the recorded logs --------------------------------------------------------------------------------------------

recorded = pytest.mark.skipif(not REAL.is_dir(), reason=f"the recorded logs are not at {REAL}")
each = pytest.mark.parametrize("name", REAL_LOGS)
seeds = st.integers(0, 2**32)


def whole(name: str) -> tuple[list[str], NcclLog]:
    lines = lines_of(REAL / f"{name}.txt")
    return lines, read(lines)


@recorded
@each
@given(seed=seeds)
@settings(max_examples=5)
def test_a_recorded_log_says_the_same_in_any_order(name: str, seed: int) -> None:
    lines, log = whole(name)
    random.Random(seed).shuffle(lines)
    assert read(lines) == log


@recorded
@each
@given(seed=seeds, other=st.sampled_from(sorted(REAL_LOGS)))
@settings(max_examples=5)
def test_a_recorded_log_interleaved_with_another_is_both(name: str, seed: int, other: str) -> None:
    one, two, mixed, chance = lines_of(REAL / f"{name}.txt"), lines_of(REAL / f"{other}.txt"), [], random.Random(seed)
    left, right = 0, 0
    while left < len(one) or right < len(two):
        if right == len(two) or (left < len(one) and chance.random() < 0.5):
            mixed.append(one[left])
            left += 1
        else:
            mixed.append(two[right])
            right += 1
    assert read(mixed) == read([*one, *two])


@recorded
@each
@given(seed=seeds)
@settings(max_examples=5)
def test_a_recorded_log_that_is_cut_shows_no_transport_that_the_whole_lacks(name: str, seed: int) -> None:
    lines, log = whole(name)
    chance, text = random.Random(seed), "".join(lines)
    start, end = sorted(chance.randrange(len(text)) for _ in range(2))
    assert set(read(text[start:end].splitlines()).transports) <= set(log.transports)
    # A line here and there without its end, as a process leaves it that is killed.
    torn = [line[: chance.randrange(len(line))] if chance.random() < 0.1 else line for line in lines]
    found = read(torn)
    assert set(found.transports) <= set(log.transports)
    assert sum(found.links.values()) <= sum(log.links.values())


@recorded
@each
@given(seed=seeds)
@settings(max_examples=5)
def test_processes_that_write_into_each_others_lines_add_no_transport(name: str, seed: int) -> None:
    lines, log = whole(name)
    chance, garbled = random.Random(seed), []
    for line in lines:
        if garbled and chance.random() < 0.05:
            at = chance.randrange(len(garbled[-1]))
            garbled[-1] = garbled[-1][:at] + line.rstrip("\n") + garbled[-1][at:]
        else:
            garbled.append(line)
    # How many ranks a link's name says can be garbled; over what it goes cannot.
    assert set(read(garbled).transports) <= set(log.transports)
