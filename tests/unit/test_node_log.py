"""What a node's ranks say of their links while they say it, and the nodes' parts put together."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.health.nccl_lines import said as messages
from orchestrator.health.nccl_log import Link, NcclLog, read
from orchestrator.health.node_log import FAR_ENDS, NodeLog
from orchestrator.health.transport import combine, sentence, set_by, to_json
from orchestrator.health.verdict import PlannedLinks, PlannedNode, verdict

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared/real/nccl_logs"
NVLINKED = PlannedLinks((PlannedNode("vm", (0, 1), ((0, 1),)),))


def said(rank: int, *texts: str, host: str = "h", gpu: int | None = None) -> list[str]:
    device = rank if gpu is None else gpu
    return [f"{host}:{100 + rank}:{100 + rank} [{device}] NCCL INFO {text}" for text in texts]


def made(rank: int, size: int, *, of: str = "0x1", gpu: int | None = None) -> tuple[str, str]:
    device = rank if gpu is None else gpu
    who = f"ncclCommInitRankConfig comm {of} rank {rank} nranks {size} cudaDev {device} nvmlDev {device} busId {device + 1}0"
    return f"{who} commId 0x7 - Init START", f"{who} commId 0x7 - Init COMPLETE"


def via(a: int, b: int, how: str, channel: int = 0) -> str:
    return f"Channel {channel:02}/0 : {a}[{a}] -> {b}[{b}] via {how}"


RINGS = "Connected all rings, use ring PXN 0 GDR 0"


def two(how: str) -> NodeLog:
    log = NodeLog((0, 1), 2)
    log.take({r: said(r, *made(r, 2), via(r, 1 - r, how), RINGS) for r in (0, 1)})
    return log


# Settled ---------------------------------------------------------------------------------------------------------------


def test_it_is_settled_when_the_last_rank_has_connected_and_not_before() -> None:
    log = NodeLog((0, 1), 2)
    log.take({r: said(r, *made(r, 2), via(r, 1 - r, "P2P/CUMEM")) for r in (0, 1)})
    assert (log.settled, log.begun) == (False, False)
    log.take({0: said(0, RINGS)})
    assert (log.settled, log.begun, log.all_begun) == (False, True, False)
    log.take({1: said(1, RINGS)})
    assert log.settled


def test_a_proxy_that_connects_settles_nothing() -> None:
    log = NodeLog((0,), 2)
    log.take({0: said(0, *made(0, 2), "Connected to proxy localRank 0 -> connection 0x7f4334004f70")})
    assert not log.begun


def test_where_links_are_made_at_initialisation_its_end_settles_with_all_of_them() -> None:
    start, complete = made(0, 2)
    log = NodeLog((0,), 2)
    log.take({0: said(0, start, via(0, 1, "P2P/CUMEM"), "Connected all rings")})
    assert not log.settled  # the trees come next
    log.take({0: said(0, via(0, 1, "P2P/CUMEM", 1), "Connected all trees", complete)})
    assert log.settled
    assert (log.value().links, log.value().connected) == ({"P2P": 2}, ("rings", "trees"))


def test_before_2_18_the_size_of_a_communicator_is_told_at_its_end_and_that_settles() -> None:
    end = "comm 0x1 rank 0 nranks 2 cudaDev 0 busId 10 - Init COMPLETE"
    log = NodeLog((0,), 2)
    log.take({0: said(0, "Channel 00 : 0[10] -> 1[20] via P2P/IPC", "Connected all rings", "Connected all trees", end)})
    assert log.settled
    assert log.value().links == {"P2P": 1}


@pytest.mark.parametrize("how", ["NET/Socket/0", "SHM/direct/direct", "P2P/CUMEM"])
def test_a_communicator_that_comes_later_changes_nothing(how: str) -> None:
    log = two("P2P/CUMEM")
    before = log.value()
    log.take({r: said(r, *made(r, 2, of="0x2"), via(r, 1 - r, how, 5), RINGS) for r in (0, 1)})
    assert log.value() == before


def test_a_smaller_communicator_that_came_first_is_known_by_its_gpus() -> None:
    # Ranks 2 and 3 of four are 0 and 1 of a group of two, on the node's GPUs 2 and 3.
    log = NodeLog((2, 3), 4)
    how = {r: f"Channel 00/0 : {r - 2}[{r}] -> {3 - r}[{5 - r}] via SHM/direct/direct" for r in (2, 3)}
    log.take({r: said(r, *made(r - 2, 2, gpu=r), how[r], RINGS) for r in (2, 3)})
    assert (log.settled, log.all_begun) == (False, True)
    assert [(link.ranks, link.kind) for link in log.value().found] == [((2, 3), "SHM")]


def test_a_link_of_a_smaller_communicator_over_the_network_is_judged_by_the_node_that_it_leaves() -> None:
    log = NodeLog((0, 1), 4)
    log.take({0: said(0, *made(0, 2), "Channel 00/0 : 0[0] -> 1[0] [send] via NET/Socket/0", RINGS)})
    value = log.value()
    assert [link.ranks for link in value.found] == [(0, 0)]
    nodes = (PlannedNode("a", (0, 1), ((0, 1),)), PlannedNode("b", (2, 3), ((2, 3),)))
    assert verdict(PlannedLinks(nodes, "Socket"), value, {}, {}).word == "as planned"
    assert verdict(PlannedLinks(nodes, "RDMA"), value, {}, {}).word == "worse than planned"


def test_a_reduction_in_the_switch_leaves_the_node_and_is_its_ranks_own() -> None:
    lines = (
        "CollNet 00/0 : 0 [send] via COLLNET/SHARP/0/GDRDMA",
        "CollNet 00/0 : 0 [receive] via COLLNET/SHARP/0/GDRDMA",
    )
    log = NodeLog((2,), 4)  # rank 0 of a group of node leaders
    log.take({2: said(2, *made(0, 2, gpu=0), *lines, "Connected collnet")})
    value = log.value()
    assert [(link.ranks, link.kind) for link in value.found] == [((2, 2), "COLLNET/SHARP/GDRDMA")]
    nodes = (PlannedNode("a", (0, 1), ((0, 1),)), PlannedNode("b", (2, 3), ((2, 3),)))
    assert verdict(PlannedLinks(nodes, "RDMA+GDR"), value, {}, {}).word == "as planned"


# Of what size it is ----------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.integers(2, 400), st.integers(1, 8))
def test_a_nodes_part_stays_small_however_many_ranks_and_channels_there_are(world: int, channels: int) -> None:
    log = NodeLog((0,), world)
    lines = [
        f"Channel {c:02}/0 : 0[0] -> {far}[0] [send] via NET/IB/{far % 4}"
        for far in range(1, world)
        for c in range(channels)
    ]
    log.take({0: said(0, *made(0, world), *lines, RINGS)})
    value = log.value()
    assert len(value.found) <= FAR_ENDS
    assert sum(value.links.values()) == (world - 1) * channels


# Put together ----------------------------------------------------------------------------------------------------------


def ring(world: int, per_node: int, gdr: bool = False) -> dict[int, dict[int, list[str]]]:
    """By node, by rank: the lines of one ring over nodes of `per_node` GPUs, both ends of links between nodes speaking."""
    found: dict[int, dict[int, list[str]]] = {}
    for rank in range(world):
        node, gpu = divmod(rank, per_node)
        texts = list(made(rank, world, gpu=gpu))
        for a, b, end in ((rank - 1) % world, rank, "receive"), (rank, (rank + 1) % world, "send"):
            ids = f"{a}[{a % per_node}] -> {b}[{b % per_node}]"
            if a // per_node != b // per_node:
                texts.append(
                    f"Channel 00/0 : {ids} [{end}] via NET/IB/0" + ("/GDRDMA" if gdr and end == "send" else "")
                )
            elif end == "send":
                texts.append(f"Channel 00/0 : {ids} via P2P/CUMEM")
        found.setdefault(node, {})[rank] = said(rank, *texts, RINGS, host=f"node{node}", gpu=gpu)
    return found


def part(node: int, lines: dict[int, list[str]], world: int) -> NcclLog:
    log = NodeLog(lines, world)
    log.take(lines)
    assert log.settled
    return log.value()


@given(st.integers(2, 6), st.integers(1, 4), st.booleans())
def test_the_parts_of_the_nodes_say_together_what_all_files_say(nodes: int, per_node: int, gdr: bool) -> None:
    world = nodes * per_node
    lines = ring(world, per_node, gdr)
    whole = read(line for ranks in lines.values() for text in ranks.values() for line in text)
    seen = combine(part(node, ranks, world) for node, ranks in lines.items())
    assert seen.links == whole.links
    assert (seen.ranks, seen.version, seen.gdr, seen.worst) == (whole.ranks, whole.version, whole.gdr, whole.worst)
    assert seen.rank_hosts == whole.rank_hosts


def test_a_thousand_ranks_are_judged_in_one_go() -> None:
    world, per_node = 1024, 8
    lines = ring(world, per_node, gdr=True)
    seen = combine(part(node, ranks, world) for node, ranks in lines.items())
    nodes = tuple(PlannedNode(f"node{n}", tuple(ranks), (tuple(ranks),)) for n, ranks in lines.items())
    found = verdict(PlannedLinks(nodes, "RDMA+GDR"), seen, {}, {})
    assert found.word == "as planned"
    assert dict(found.links) == {"P2P": 896, "NET/IB/GDRDMA": 128}


def test_both_ends_of_a_link_count_once_and_gpudirect_at_one_of_them_is_enough() -> None:
    near = NcclLog(ranks=2, found=(Link((0, 1), ("a", None), "NET/IB", 2),))
    far = NcclLog(ranks=2, found=(Link((0, 1), (None, "b"), "NET/IB/GDRDMA", 2),))
    assert combine([near, far]).links == {"NET/IB/GDRDMA": 2}
    assert combine([near, near]).links == {"NET/IB": 2}


# Real logs, by rank ----------------------------------------------------------------------------------------------------


def by_rank(name: str) -> dict[int, list[str]]:
    """A log of one host's processes, split into what each rank's own file would hold."""
    lines = (REAL / f"{name}.txt").read_text(errors="replace").splitlines()
    rank_of = {m[1]: int(m[2]) for line in lines if (m := re.match(r"\w+:(\d+):\d+ \[\d\].* rank (\d) nranks", line))}
    found: dict[int, list[str]] = {rank: [] for rank in rank_of.values()}
    for line in lines:
        if (who := re.match(r"\w+:(\d+):", line)) and who[1] in rank_of:
            found[rank_of[who[1]]].append(line)
    return found


BY_PROCESS = (
    "coriv100_2x8_ib_nogdr_nccl2.4.8", "coriv100_2x8_socket_fallback_nccl2.5.6", "jeanzay_v100_1x4_nvlink_nccl2.7.8",
    "jeanzay_a100_4x8_ib_nccl2.10.3", "polaris_a100_2x4_ofi_gdr_nccl2.20.5", "polaris_a100_2x4_ofi_nogdr_nccl2.20.5",
    "lm2_4gpu_shm_nccl2.23.4", "h200x2_default_nccl2.28.9", "h200x2_shm_nccl2.28.9", "h200x2_socket_nccl2.28.9",
    "h200x2_hostid_nccl2.28.9",
)  # fmt: skip
"""Those in which each rank is a process that says its rank."""


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the recorded logs are not at {REAL}")
@pytest.mark.parametrize("name", BY_PROCESS)
def test_a_recorded_job_told_node_by_node_is_the_job(name: str) -> None:
    lines = (REAL / f"{name}.txt").read_text(errors="replace").splitlines()
    rank_of: dict[tuple[str | None, int], int] = {}
    for line in lines:
        for message in messages(line):
            if found := re.search(r"comm 0x\w+ rank (\d+) n[rR]anks", message.text):
                rank_of[message.host, message.pid] = int(found[1])
    nodes: dict[str | None, dict[int, list[str]]] = {}
    for line in lines:
        for message in messages(line):
            if (process := (message.host, message.pid)) in rank_of:
                nodes.setdefault(message.host, {}).setdefault(rank_of[process], []).append(line)
                break
    parts = []
    for own in nodes.values():
        log = NodeLog(own, len(rank_of))
        log.take(own)
        assert log.settled
        parts.append(log.value())
    whole, seen = read(lines), combine(parts)
    for field in ("links", "ranks", "nodes", "gdr", "worst", "channels", "rank_hosts"):
        assert getattr(seen, field) == getattr(whole, field), field


CAUSES = {
    "h200x2_default_nccl2.28.9": ("as planned", {}, ""),
    "h200x2_shm_nccl2.28.9": ("worse than planned", {"NCCL_P2P_DISABLE": "1"}, "NCCL_P2P_DISABLE is set"),
    "h200x2_socket_nccl2.28.9": (
        "worse than planned", {"NCCL_P2P_DISABLE": "1", "NCCL_SHM_DISABLE": "1"}, "NCCL_SHM_DISABLE is set",
    ),
    "h200x2_hostid_nccl2.28.9": ("worse than planned", {}, "NCCL takes one host for several: NCCL_HOSTID differs"),
    "lm2_4gpu_shm_nccl2.23.4": ("worse than planned", {}, "the GPUs have no peer access"),
}  # fmt: skip


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the recorded logs are not at {REAL}")
@pytest.mark.parametrize("name", CAUSES)
@pytest.mark.parametrize("piece", [1, 7, 100_000], ids="{} lines at a time".format)
def test_a_recorded_run_settles_with_the_links_of_the_whole_and_its_cause(name: str, piece: int) -> None:
    word, env, cause = CAUSES[name]
    lines = by_rank(name)
    log = NodeLog(lines, len(lines))
    for start in range(0, max(map(len, lines.values())), piece):
        log.take({rank: own[start : start + piece] for rank, own in lines.items()})
    assert log.settled
    seen = combine([log.value()])
    whole = read((REAL / f"{name}.txt").read_text(errors="replace").splitlines())
    assert (seen.links, seen.version, seen.nodes, seen.worst) == (whole.links, whole.version, whole.nodes, whole.worst)
    ranks = tuple(lines)
    found = verdict(PlannedLinks((PlannedNode("vm", ranks, (ranks,)),)), seen, env, {})
    value = to_json(found, seen)
    assert value["verdict"] == word
    if cause:
        assert cause in sentence(value)
        assert sentence(value).index(cause) < sentence(value).index("links promised NVLink")
        assert set_by(found, env) == bool(env)


def test_a_verdict_without_links_says_why_in_its_json() -> None:
    seen = combine([NodeLog((0,), 2).value()])
    value = to_json(verdict(NVLINKED, seen, {}, {}), seen)
    assert (value["verdict"], value["links"]) == ("unknown", {})
    assert "NCCL_DEBUG=INFO" in value["reason"]
