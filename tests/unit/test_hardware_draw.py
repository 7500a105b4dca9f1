"""`orch topo --from`: the drawing and the command around it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from cli.topo import topo
from orchestrator.hardware.draw import MOST_LINES, draw
from orchestrator.hardware.formats.hostlist import compress, expand
from orchestrator.testing.hardware import cluster, node

FIXTURES = Path(__file__).parents[1] / "fixtures" / "hardware"


def _orch_topo(*arguments):
    return CliRunner().invoke(topo, [str(argument) for argument in arguments])


def test_one_machine_is_drawn_with_every_gpu():
    assert _orch_topo("--from", FIXTURES / "pairs.topo.txt").stdout.splitlines() == [
        "1 node, 4 GPUs",
        "└─ pairs.topo: 4 GPUs in NVLink islands of 2+2 (NV6; SYS between), 2 NICs",
        "     island 0-1  NV6, direct",
        "       GPU 0  NUMA 0  near mlx5_2",
        "       GPU 1  NUMA 0  near mlx5_2",
        "     island 2-3  NV6, direct",
        "       GPU 2  NUMA 1",
        "       GPU 3  NUMA 1  near mlx5_bond_0",
    ]


def test_equal_nodes_below_one_leaf_share_a_line():
    #     p1
    #  l1    l2
    c = cluster(
        *(node(f"gpu-{i:02}", gpus=8, nics=8, leaf="l1", pod="p1") for i in range(1, 12)),
        node("gpu-20", gpus=4, leaf="l2", pod="p1"),
        node("gpu-21", gpus=4, nvlink=None, leaf="l2", pod="p1"),
        node("login"),
    )
    assert draw(c) == [
        "14 nodes, 96 GPUs",
        "├─ pod p1: 13 nodes, 96 GPUs",
        "│  ├─ leaf l1: 11 nodes, 88 GPUs, each 8 x H100 in one NVLink island (NV18), 8 NICs of 400 Gb/s: gpu-[01-11]",
        "│  └─ leaf l2: 2 nodes, 8 GPUs",
        "│     ├─ gpu-20: 4 x H100 in one NVLink island (NV18)",
        "│     └─ gpu-21: 4 x H100 without NVLink (SYS)",
        "└─ login: 64 CPUs",
    ]


@pytest.mark.parametrize("leaves", [30, 1000])
def test_a_large_cluster_stays_a_page_and_every_node_is_counted(leaves):
    c = cluster(*(node(f"n{i}", gpus=8, leaf=f"l{i % leaves}", pod=f"p{i % leaves % 7}") for i in range(10_000)))
    lines = draw(c)
    assert len(lines) <= MOST_LINES
    assert lines[0] == "10000 nodes, 80000 GPUs"
    pods = [line for line in lines if line.startswith(("├─", "└─"))]
    counts = [int(line.split(": ")[1].split()[0]) for line in pods]
    assert sum(counts) == 10_000


@given(st.lists(st.from_regex(r"[a-z]{0,2}(0|[0-9]{1,3})?[a-z]?", fullmatch=True).filter(bool), max_size=20))
def test_a_compressed_hostlist_stands_for_the_same_names(names):
    assert sorted(expand(compress(names))) == sorted(set(names))


def test_numbers_of_one_width_are_one_range():
    assert compress(["c09", "c10", "c08", "x", "0", "1"]) == "c[08-10],[0-1],x"


def test_json_names_and_one_node_are_as_the_contract_says():
    fabric = FIXTURES / "rails.ibnetdiscover.txt"
    everything = json.loads(_orch_topo("--from", fabric, "--json").stdout)
    assert set(everything) == {"nodes", "domains"}
    assert everything["domains"][0] == {
        "level": "pod",
        "name": "spine-1+1",
        "parent": None,
        "members": ["leaf-a1", "leaf-a2"],
    }
    assert _orch_topo("--from", fabric, "-o", "name").stdout.split() == ["gpu-01", "gpu-02", "gpu-03"]
    one = json.loads(_orch_topo("--from", fabric, "-o", "json", "--node", "gpu-02").stdout)
    assert [found["name"] for found in one["nodes"]] == ["gpu-02"]
    assert [domain["name"] for domain in one["domains"]] == ["spine-1+1", "leaf-a1", "leaf-a2"]


def test_csv_is_what_from_reads_back(tmp_path):
    (tmp_path / "places.csv").write_text(_orch_topo("--from", FIXTURES / "cluster.yaml", "-o", "csv").stdout)
    again = _orch_topo("--from", tmp_path / "places.csv", "-o", "jsonl").stdout.splitlines()
    assert [(json.loads(line)["name"], len(json.loads(line)["gpus"])) for line in again] == [
        ("gpu-01", 8),
        ("gpu-02", 8),
        ("old-1", 4),
        ("login", 0),
    ]


def test_one_node_is_drawn_with_its_place():
    lines = _orch_topo("--from", FIXTURES / "cluster.yaml", "--node", "old-1").stdout.splitlines()
    assert lines[:2] == ["old-1: 4 x V100 in NVLink islands of 2+2 (NV2), 1 NIC of 100 Gb/s", "in leaf l2"]
    assert "    GPU 1  V100  near mlx5_0 100 Gb/s" in lines


def test_several_files_may_follow_one_from():
    result = _orch_topo("--from", FIXTURES / "cluster.yaml", FIXTURES / "tree.topology.conf", "-o", "name")
    assert set(result.stdout.split()) >= {"gpu-01", "login", "r1n8"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 6, "--from"),
        (("--from", "nothing.txt"), 2, "Error: nothing.txt: No such file or directory"),
        (("--from", FIXTURES / "cluster.yaml", "--node", "x"), 3, "there is no node x among 4: gpu-01, gpu-02"),
    ],
)
def test_a_refusal_is_one_line_with_its_exit_code(arguments, code, message):
    result = _orch_topo(*arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert result.stdout == ""


def test_what_a_reader_should_know_goes_to_stderr(tmp_path):
    (tmp_path / "t.conf").write_text("SwitchName=a Nodes=n1\nSwitchName=b Nodes=n1\n")
    assert _orch_topo("--from", tmp_path / "t.conf").stderr == "n1 is on 2 leaf switches.\n"
