"""What says where nodes sit, of Slurm, ibnetdiscover and topograph; what is broken is refused with its line."""

from __future__ import annotations

import pytest
from hardware_files import FIXTURES, LISTED, TREE, refused

from orchestrator.hardware.formats import parse, read_hardware
from orchestrator.hardware.formats.hostlist import expand

# Slurm


def test_slurms_tree_is_read_as_slurm_reads_it():
    cluster = read_hardware([FIXTURES / "tree.topology.conf"])
    assert cluster.members("leaf") == {
        "leaf1": ("gpu-01", "gpu-02", "gpu-03", "gpu-07", "login"),
        "leaf2": ("r1n8", "r1n9", "r2n8", "r2n9"),
    }
    assert {cluster.place(node.name, "pod") for node in cluster.nodes} == {"top"}


def test_slurms_blocks_are_nvlink_domains():
    cluster = parse("BlockLevels=0,1\nBlockName=b1 Nodes=n[1-2]\nBlockName=b2 Nodes=n[3-4]\nBlockSizes=2,4\n")
    assert cluster.members("nvlink") == {"b1": ("n1", "n2"), "b2": ("n3", "n4")}


def test_a_switch_above_leaves_and_pods_is_as_high_as_its_highest():
    text = "SwitchName=top Switches=p,l2\nSwitchName=p Switches=l1\nSwitchName=l1 Nodes=a\nSwitchName=l2 Nodes=b\n"
    cluster = parse(text)
    assert [cluster.path("a"), cluster.path("b")] == [("top", "p", "l1"), ("top", "l2", "l2")]


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("SwitchName=a Nodes=n[1-", 1, "brackets of n[1- do not match"),
        ("SwitchName=a Nodes=n[9-1]", 1, "runs backwards"),
        ("SwitchName=a Nodes=n1\n\nSwitchName=a Nodes=n2", 3, "a is described twice (first on line 1)"),
        ("SwitchName=a Switches=b", 1, "names switch b, which has no line of its own"),
        ("SwitchName=a Switches=b\nSwitchName=b Switches=a", None, "is below itself"),
        ("SwitchName=a", 1, "neither Nodes nor Switches"),
        ("SwitchName=a Nodes=n1\nSwitchName=b Colour=red", 2, "unknown key colour"),
        ("SwitchName=a Nodes=n1\nhello", 2, "'hello' is not of the form Key=Value"),
        ("SwitchName=a Nodes=n[1-99999999]", 1, "more than 200000 names"),
    ],
)
def test_a_line_that_slurm_would_not_take_is_refused(text, line, reason):
    found = refused(text)
    assert found[0] == line
    assert reason in found[1]


def test_a_file_that_is_included_is_asked_for():
    cluster = parse("include leaves.conf\nSwitchName=top Switches=l1\n")
    assert "includes leaves.conf, which was not read" in cluster.notes[0]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("gpu-[01-03,20],login", ["gpu-01", "gpu-02", "gpu-03", "gpu-20", "login"]),
        ("r[1-2]n[8-9]", ["r1n8", "r1n9", "r2n8", "r2n9"]),
        ("[1101-1102]", ["1101", "1102"]),
        ("n[9-11]x", ["n9x", "n10x", "n11x"]),
        ("", []),
    ],
)
def test_a_hostlist_stands_for_its_names(text, names):
    assert expand(text) == names


# ibnetdiscover


def test_a_host_on_two_rails_is_under_both_leaves_and_in_one_place():
    cluster = read_hardware([FIXTURES / "rails.ibnetdiscover.txt"])
    leaves = {domain.name: domain.members for domain in cluster.domains if domain.level == "leaf"}
    assert leaves == {"leaf-a1": ("gpu-01", "gpu-02", "gpu-03"), "leaf-a2": ("gpu-01", "gpu-02", "gpu-03")}
    assert cluster.path("gpu-03") == ("spine-1+1", "leaf-a1+1")
    assert [(nic.name, nic.port, nic.switch, nic.rate_gbps) for nic in cluster.node("gpu-01").nics] == [
        ("mlx5_0", 1, "leaf-a1", 400),
        ("mlx5_0", 2, "leaf-a2", 400),
    ]
    assert [nic.rate_gbps for nic in cluster.node("gpu-03").nics] == [200, 200]


def test_the_port_report_is_read_from_either_end():
    reverse = "SW   2 10 0x00000000000000bb 4x EDR - CA   1  1 0x00000000000000aa ( 'leaf one' - 'n1 HCA-1' )\n"
    for text in (LISTED, reverse, LISTED + reverse):
        cluster = parse(text)
        assert cluster.members("leaf") == {"leaf one": ("n1",)}
        assert [nic.rate_gbps for nic in cluster.nodes[0].nics] == [100]


def test_ports_that_are_down_make_no_leaf():
    down = "SW   3  7 0x00000000000000cc 4x ???                                    'leaf two'\n"
    assert [domain.name for domain in parse(LISTED + down).domains] == ["leaf one"]


def test_switches_with_one_description_are_told_apart_by_guid():
    lines = [f"CA {i} 1 0x{i:016x} 4x EDR - SW 9 1 0x{i + 160:016x} ( 'n{i} HCA-1' - 'Quantum' )\n" for i in (1, 2)]
    assert [domain.name for domain in parse("".join(lines)).domains] == [
        "Quantum 00000000000000a1",
        "Quantum 00000000000000a2",
    ]


RAILS = (FIXTURES / "rails.ibnetdiscover.txt").read_text()


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        (RAILS[: RAILS.index("gpu-03 mlx5_0")], 10, "cut off"),
        (RAILS[: RAILS.index('"\t\t# "MF0;leaf-a2')], 16, "cut off"),
        (RAILS[: RAILS.index('[1](1) \t"S')], 33, "no port follows for adapter gpu-01 mlx5_0"),
        (LISTED + LISTED[:40], 2, "cut off"),
        (
            'Ca\t1 "H-01"\t\t# "gpu-01 mlx5_0"\n[1](1) "H-02"[1] # lid 1 "gpu-02 mlx5_0" 4xNDR\n',
            None,
            "names no switch",
        ),
        ('Switch\t65 "S-01"\t\t# "leaf"\n[1] "H-02"[1] # "localhost mlx5_0" 4xNDR\n', None, "carries a host's name"),
    ],
)
def test_a_fabric_that_is_cut_off_is_refused(text, line, reason):
    found = refused(text)
    assert found[0] == line
    assert reason in found[1]


# topograph


def test_a_topograph_model_nests_and_hands_labels_down():
    cluster = parse(TREE)
    assert [cluster.path(name) for name in ("n1", "n3")] == [("top", "l1", "nv1"), ("top", "l2", "n3")]
    assert (cluster.place("n1", "row"), cluster.place("n3", "zone")) == ("1", "z1")


def test_the_older_forms_of_a_topograph_model_are_read_too():
    text = """
switches:
- {name: S1, switches: [S2, S3]}
- {name: S2, capacity_blocks: [CB2]}
- {name: S3, nodes: [I34]}
capacity_blocks:
- {name: CB2, nvlink: nv2, nodes: [I21, "I[22-23]"]}
"""
    cluster = parse(text)
    assert cluster.members("leaf") == {"S2": ("I21", "I22", "I23"), "S3": ("I34",)}
    assert cluster.members("nvlink") == {"nv2": ("I21", "I22", "I23")}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("switches: {a: {switches: [b]}, b: {switches: [a]}}\nblocks: [{nodes: [n1]}]", "below itself"),
        ("switches: 7", "switches: a mapping is wanted, not int"),
        ("blocks:\n- nodes: [[n1]]", "nodes: names are wanted, not list"),
        ("blocks:\n- nodes: ['n[1-']", "brackets of n[1- do not match"),
        ("switches: {a: {}}", "it names no nodes"),
        ("switches: [", "broken YAML"),
    ],
)
def test_a_model_that_makes_no_sense_is_refused(text, reason):
    assert reason in refused(text)[1]
