"""Each format, in the variants that its sources have; broken input is refused with its line."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from orchestrator.hardware.as_json import to_json
from orchestrator.hardware.formats import FormatError, detect, parse, read_hardware
from orchestrator.hardware.formats.hostlist import expand
from orchestrator.hardware.formats.levels_csv import parse as parse_csv

FIXTURES = Path(__file__).parents[1] / "fixtures" / "hardware"


def _near(node):
    return {nic.name: nic.near for nic in node.nics}


def _links(node):
    return [link for _, _, link in node.shape.pairs()]


def _refused(text, filename="x"):
    with pytest.raises(FormatError) as caught:
        parse(text, filename)
    return caught.value.line, caught.value.message


# nvidia-smi


def test_a_topo_matrix_gives_islands_nics_by_their_legend_and_numa():
    (node,) = read_hardware([FIXTURES / "pairs.topo.txt"]).nodes
    assert node.islands == ((0, 1), (2, 3))
    assert _near(node) == {"mlx5_2": (0, 1), "mlx5_bond_0": (3,)}
    assert [gpu.numa for gpu in node.gpus] == [0, 0, 1, 1]
    assert [nic.numa for nic in node.nics] == [0, 1]


def test_the_json_has_the_contracts_keys():
    found = to_json(read_hardware([FIXTURES / "pairs.topo.txt"]))
    assert found["domains"] == []
    (node,) = found["nodes"]
    assert node["gpus"][0] == {"index": 0, "model": None}
    assert node["links"][:2] == [{"a": 0, "b": 1, "type": "NV6"}, {"a": 0, "b": 2, "type": "SYS"}]
    assert node["nics"] == [{"name": "mlx5_2", "near": [0, 1]}, {"name": "mlx5_bond_0", "near": [3]}]
    assert set(node) == {"name", "gpus", "islands", "links", "nics"}


def test_prefixes_of_a_parallel_shell_name_the_nodes():
    cluster = read_hardware([FIXTURES / "pdsh.topo.txt"])
    assert {node.name: _links(node) for node in cluster.nodes} == {"gpu-02": ["SYS"], "gpu-01": ["NV4"]}


@pytest.mark.parametrize(
    ("prefixes", "names"),
    [
        (("0: ", "1: "), ["topo-0", "topo-1"]),
        (("[1,0]<stdout>:", "[1,8]<stdout>:"), ["topo-0", "topo-8"]),
        (("[pod/worker-0/main] ", "[pod/worker-1/main] "), ["worker-0", "worker-1"]),
        (("3: ",), ["topo"]),
    ],
    ids=["srun", "mpirun", "kubectl", "one task alone"],
)
def test_a_launchers_prefixes_part_the_nodes_though_their_lines_are_mixed(prefixes, names):
    text = "".join(f"{prefix}{line}\n" for line in LEGEND.splitlines() for prefix in prefixes)
    nodes = parse(text, "topo.txt").nodes
    assert [node.name for node in nodes] == names
    assert all(_links(node) == ["NV2"] and _near(node) == {"mlx5_2": (0,)} for node in nodes)


def test_lines_that_a_terminal_wrapped_and_words_of_old_drivers_are_read():
    (node,) = read_hardware([FIXTURES / "wrapped.topo.txt"]).nodes
    assert _links(node) == ["SYS"]
    assert _near(node) == {"mlx5_0": (0,), "mlx5_1": ()}
    assert [gpu.numa for gpu in node.gpus] == [0, 1]


LEGEND = "\tGPU0\tGPU1\tNIC0\tNUMA Affinity\nGPU0\t X \tNV2\tPIX\t0\nGPU1\tNV2\t X \tSYS\t0\n\nNIC Legend:\n\n  NIC0: mlx5_2\n"
TWO = "\tGPU0\tGPU1\tCPU Affinity\nGPU0\t X \tNV2\t0-7\nGPU1\tNV2\t X \t0-7\n"


@pytest.mark.parametrize(
    "text",
    [
        TWO,
        TWO.replace("\n", "\r\n"),
        TWO.lstrip(),
        TWO.replace("\t", "   "),
        TWO.replace("NV2\t X", "\t X"),
        "".join(f"[rank0] 12:00:0{i} INFO {line}\n" for i, line in enumerate(TWO.splitlines())),
        "root@host:~# nvidia-smi topo -m\n" + TWO + "root@host:~#",
        "Wed Jan  1 2026\n" + TWO + "  MIG 1g.5gb     Device  0: (UUID: MIG-1)\n",
        TWO.replace("\tCPU Affinity", "").replace("\t0-7", ""),
        "Topology: " + TWO,
        "- topology: " + TWO.splitlines()[0] + "\n```\n" + TWO + "```\n",
        TWO.replace("GPU0\tGPU1", "   GPU0 GPU1").replace(" X \tNV2", " X   NV2"),
        "".join(f"2026-11-26T10:00:00Z {line}\n" for line in TWO.splitlines()),
        "".join(f"|{line}|\n" for line in TWO.replace("\t", "|").splitlines()),
        "\x1b]0;user@gpu-01: ~\x07\x1b[?2004h$ nvidia-smi topo -m\n\x1b[?2004l\r" + TWO,
    ],
    ids=[
        "as it is",
        "DOS line ends",
        "header without its tab",
        "spaces for tabs",
        "a blank cell that the other side fills",
        "log prefixes",
        "a prompt around",
        "MIG lines",
        "no affinity",
        "a title before the header",
        "a report that gives the header twice",
        "tabs and spaces mixed",
        "times before the lines",
        "a table of Markdown",
        "a recorded terminal",
    ],
)
def test_a_matrix_is_read_however_it_was_saved(text):
    assert _links(parse(text).nodes[0]) == ["NV2"]


def test_peer_access_and_links_of_one_machine_are_put_together():
    p2p = " \tGPU0\tGPU1\n GPU0\tX\tNS\n GPU1\tOK\tX\n"
    for text in (TWO + p2p, p2p + TWO):
        (node,) = parse(text).nodes
        assert (_links(node), node.shape.peer_access) == (["NV2"], ("NS",))


def test_every_matrix_of_one_machine_goes_into_one_node():
    pcie = TWO.replace("NV2", "PHB")
    reads, writes = (f" \tGPU0\tGPU1\n GPU0\tX\t{word}\n GPU1\t{word}\tX\n" for word in ("OK", "CNS"))
    for text in (TWO + pcie + reads + writes, reads + writes + pcie + TWO):
        (node,) = parse(text).nodes
        assert (_links(node), node.shape.peer_access) == (["NV2"], ("OK",))


def test_two_matrices_without_names_are_two_machines():
    assert [node.name for node in parse(TWO + TWO, "a.txt").nodes] == ["a", "a-2"]


def test_models_and_uuids_stand_beside_the_matrix():
    (node,) = parse("GPU 0: NVIDIA H100 (UUID: GPU-a)\nGPU 1: NVIDIA H100 (UUID: GPU-b)\n" + TWO).nodes
    assert [gpu.model for gpu in node.gpus] == ["NVIDIA H100"] * 2
    assert node.uuids == ("GPU-a", "GPU-b")


def test_models_are_taken_from_the_table_that_nvidia_smi_prints():
    table = (
        "|   0  Tesla V100-SXM2...  On   | 00000000:06:00.0 Off |                    0 |\n"
        "| N/A   31C    P0    41W / 300W |      0MiB / 16160MiB |      0%      Default |\n"
        "|   1  NVIDIA H100 80GB HBM3          On  |   00000000:3B:00.0 Off |                    0 |\n"
    )
    (node,) = parse(table + TWO).nodes
    assert [gpu.model for gpu in node.gpus] == ["Tesla V100-SXM2", "NVIDIA H100 80GB HBM3"]


def test_one_gpu_is_a_matrix_too():
    assert parse("\tGPU0\tCPU Affinity\nGPU0\t X \t0-7\n").nodes[0].islands == ((0,),)


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        (TWO[: TWO.index("GPU1\tNV2")], 2, "no row follows for GPU1"),
        (TWO[: TWO.rindex(" X")], 3, "row GPU1 has 1 of 2 cells"),
        (TWO.replace("GPU1\tNV2", "GPU1\tSYS"), 3, "GPU0 to GPU1 is NV2, but GPU1 to GPU0 is SYS"),
        (TWO.replace("GPU0\t X ", "GPU0\tNV2"), 2, "GPU0 to GPU0 is NV2"),
        (TWO + "GPU1\tNV2\t X \t0-7\n", 4, "GPU1 has a second row"),
        (TWO + "GPU7\tNV2\t X \t0-7\n", 4, "the row GPU7 has no column"),
        (TWO.replace("\t", " ").replace("X  0-7", "X SYS"), 3, "the row has 3 cells, the header 2"),
    ],
)
def test_a_matrix_that_is_cut_or_contradicts_itself_is_refused(text, line, reason):
    found = _refused(text)
    assert found[0] == line
    assert reason in found[1]


# NCCL XML


def test_a_dump_gives_links_through_the_switch_and_pcie():
    (node,) = read_hardware([FIXTURES / "dump.xml"]).nodes
    assert node.islands == ((0, 1), (2,))
    assert _links(node) == ["NV18", "SYS", "SYS"]
    # GPU 0 hangs one switch higher than the NIC: still no CPU between them.
    assert _near(node) == {"mlx5_0": (0, 1), "eth0": ()}
    assert [(gpu.model, gpu.sm, gpu.numa) for gpu in node.gpus] == [
        ("H100-SXM5-80GB", 90, 0),
        ("H100-SXM5-80GB", 90, 0),
        (None, 90, 1),
    ]
    assert [nic.numa for nic in node.nics] == [0, None]


def _xml(*cpus):
    return '<system version="1">' + "".join(cpus) + "</system>"


def _gpu_xml(busid, dev, *links):
    nvlinks = "".join(f'<nvlink target="{target}" count="{count}"/>' for target, count in links)
    return f'<pci busid="{busid}" class="0x030200"><gpu dev="{dev}" sm="80">{nvlinks}</gpu></pci>'


def test_a_dump_of_several_machines_gives_a_node_for_each():
    cpus = [f'<cpu numaid="0" host_hash="0x{h}">{_gpu_xml("0000:01:00.0", 0)}</cpu>' for h in ("aa", "bb")]
    assert [node.name for node in parse(_xml(*cpus)).nodes] == ["host-0xaa", "host-0xbb"]


def test_gpus_that_disagree_about_their_links_have_the_fewer():
    one, two = "0000:01:00.0", "00000000:02:00.0"
    cluster = parse(_xml(f"<cpu>{_gpu_xml(one, 0, ('0000:02:00.0', 12))}{_gpu_xml(two, 1, (one, 4))}</cpu>"))
    assert _links(cluster.nodes[0]) == ["NV4"]
    assert "GPU 0 names 12 NVLinks to GPU 1, GPU 1 names 4 back" in cluster.notes[0]


def test_what_a_terminal_left_around_a_topology_is_no_part_of_it():
    plain = _xml(f"<cpu>{_gpu_xml('0000:01:00.0', 0)}</cpu>")
    assert parse(f"$ cat topo.xml\n{plain}\n$ exit\n", "x.txt").nodes[0].shape == parse(plain).nodes[0].shape
    assert _refused("$ cat topo.xml\n" + plain.replace("</cpu>", "</gpu>"))[0] == 2


BOMB = '<!DOCTYPE s [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>' + _xml("<cpu>&b;</cpu>")


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        (BOMB, 1, "DOCTYPE"),
        ('<system version="1">\n<cpu>\n</system>', 3, "broken XML: mismatched tag"),
        ('\n\n<?xml version="1.0"?>\n<graphs version="1"/>', 4, "NCCL's graph"),
        ("<html/>", 1, "<html> is not NCCL's topology"),
        (_xml("<cpu/>"), 1, "names no GPU and no NIC"),
        (_xml(f"\n<cpu>{_gpu_xml('0000:01:00.0', 0)}\n{_gpu_xml('0000:02:00.0', 0)}</cpu>"), 3, "dev=0"),
        (_xml(f"<cpu>{_gpu_xml('0000:01:00.0', 'zero')}</cpu>"), 1, "'zero', which is no number"),
        ("<pci>" * 100, 1, "nested deeper than 64"),
    ],
)
def test_xml_that_is_no_topology_is_refused(text, line, reason):
    found = _refused(text)
    assert found[0] == line
    assert reason in found[1]


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
    found = _refused(text)
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


LISTED = "CA   1  1 0x00000000000000aa 4x EDR - SW   2 10 0x00000000000000bb ( 'n1 HCA-1' - 'leaf one' )\n"


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
    found = _refused(text)
    assert found[0] == line
    assert reason in found[1]


# topograph


TREE = """
switches:
  top: {switches: [l1, l2], labels: {zone: z1}}
  l1: {labels: {row: 1}}
  l2: {}
blocks:
- {switch: l1, nodes: ["n[1-2]"], annotations: {accelerator.x/domain: nv1, accelerator.x/sub-domain: s1}}
- {switch: l2, nodes: [n3]}
"""


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
    assert reason in _refused(text)[1]


# CSV


def test_columns_are_ordered_by_how_many_values_they_have():
    text = "leafsw,core,host\nl1,c,a\nl1,c,b\nl2,c,d\n"
    cluster = parse(text, "x.csv")
    assert cluster.levels == ("pod", "leaf")
    assert cluster.path("d") == ("c", "l2")
    assert cluster.place("d", "leafsw") == "l2"


def test_a_name_below_two_wider_ones_is_two_places():
    cluster = parse_csv("node,pod,leaf\na,p1,s1\nb,p2,s1\nc,p1,s1\n")
    assert cluster.members("leaf") == {"p1/s1": ("a", "c"), "p2/s1": ("b",)}


def test_gpus_in_a_csv_are_counted():
    (a, b) = parse_csv("node,gpus,model,rack\na,8,H100,r1\nb,0,,r1\n").nodes
    assert ([gpu.model for gpu in a.gpus], b.gpus) == (["H100"] * 8, ())


def test_a_list_of_machines_without_places_has_no_levels():
    cluster = parse_csv("sn,cpu_milli,memory_mib,gpu,model\nn0,64000,262144,2,P100\nn1,64000,262144,0,\n")
    assert (cluster.levels, len(cluster.nodes[0].gpus)) == ((), 2)


def test_levels_may_be_declared():
    cluster = parse_csv("node,a,b\nx,1,1\ny,1,2\n", levels=["b"])
    assert cluster.members("leaf") == {"1": ("x",), "2": ("y",)}


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("node,leaf\na,l1\na,l2\n", 3, "a comes twice (first on line 2)"),
        ("# places\nnode,leaf\na,l1\nb\n", 4, "the row has 1 cells, the header 2"),
        ("node,leaf\n", 1, "no row below"),
        ("node,gpus\na,eight\n", 2, "'eight' is no number of GPUs"),
        ('node,leaf\na,"l1\n', None, "broken CSV"),
        ("x,y\n1,1\n1,1\n", 1, "which one names the node"),
    ],
)
def test_a_csv_that_does_not_add_up_is_refused(text, line, reason):
    found = _refused(text, "x.csv")
    assert found[0] == line
    assert reason in found[1]


# cluster.yaml


def test_declared_hardware_is_a_cluster():
    cluster = read_hardware([FIXTURES / "cluster.yaml"])
    assert [node.name for node in cluster.nodes] == ["gpu-01", "gpu-02", "old-1", "login"]
    assert cluster.node("gpu-02").islands == (tuple(range(8)),)
    assert cluster.node("old-1").islands == ((0, 1), (2, 3))
    assert _near(cluster.node("old-1")) == {"mlx5_0": (0, 1)}
    assert cluster.node("gpu-01").shape is cluster.node("gpu-02").shape
    assert cluster.path("gpu-01") == ("p1", "l1")
    assert cluster.place("old-1", "row") == "7"
    assert Counter(domain["level"] for domain in to_json(cluster)["domains"]) == {"leaf": 2, "pod": 1}


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("nodes:\n  a: {gpu: 8}\n", 2, "a: unknown key gpu. Did you mean gpus?"),
        ("nodes:\n  a: {gpus: 8xH100, islands: [[0, 9]]}\n", 2, "whole number"),
        ("nodes:\n  a: {gpus: 2xH100, nvlink: 4, islands: [[0, 1], [1]]}\n", 2, "islands: GPU 1 is in two"),
        ("nodes:\n  a: {gpus: H100}\n", 2, "COUNTxMODEL is wanted"),
        ("nodes:\n  a: {gpus: 1}\n  'a,b': {}\n", 3, "a is declared twice"),
        ("nodes: {}\nhardware: {}\n", None, "declares no nodes"),
        ("cluster_name: a\nmetadata: {orch: {lease: 30s}}\n", None, "it declares no hardware"),
    ],
)
def test_a_declaration_that_makes_no_sense_is_refused(text, line, reason):
    found = _refused(text, "cluster.yaml")
    assert found[0] == line
    assert reason in found[1]


# several files, and which format one has


def test_files_about_the_same_node_are_put_together(tmp_path):
    (tmp_path / "gpu-01.txt").write_text((FIXTURES / "pairs.topo.txt").read_text())
    fabric = FIXTURES / "rails.ibnetdiscover.txt"
    cluster = read_hardware([tmp_path / "gpu-01.txt", fabric, FIXTURES / "cluster.yaml"])
    node = cluster.node("gpu-01")
    assert node.islands == ((0, 1), (2, 3))
    assert [nic.name for nic in node.nics][:3] == ["mlx5_2", "mlx5_bond_0", "mlx5_0"]
    assert cluster.place("gpu-01", "leaf") == "leaf-a1+1"
    assert "gpu-01 has 4 GPUs in one file and 8 in another: the first counts." in cluster.notes


def test_files_of_one_name_in_two_folders_are_two_machines(tmp_path):
    for folder in ("n1", "n2"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "topo.txt").write_text(TWO)
    names = [node.name for node in read_hardware(sorted(tmp_path.glob("*/topo.txt"))).nodes]
    assert names == ["n1-topo", "n2-topo"]


def test_a_file_that_cannot_be_read_is_refused_by_its_path(tmp_path):
    with pytest.raises(FormatError, match=r"nothing\.txt: No such file"):
        read_hardware([tmp_path / "nothing.txt"])


def test_what_a_windows_shell_saved_is_read(tmp_path):
    (tmp_path / "a.txt").write_bytes(TWO.encode("utf-16"))
    assert _links(read_hardware([tmp_path / "a.txt"]).nodes[0]) == ["NV2"]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (TWO, "nvidia-smi"),
        ("<system/>", "nccl-xml"),
        ("blocksizes=1", "slurm"),
        (LISTED, "ibnetdiscover"),
        (TREE, "topograph"),
        ("node,leaf\na,b\n", "csv"),
        ("nodes:\n  a: {}\n", "cluster.yaml"),
    ],
)
def test_a_format_is_told_by_its_content(text, kind):
    assert detect(text, "file") == kind


@pytest.mark.parametrize("text", ["", "  \n", "hello"])
def test_what_has_no_format_is_refused(text):
    with pytest.raises(FormatError):
        detect(text, "file")
