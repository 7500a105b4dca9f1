"""nvidia-smi's matrix and NCCL's XML, however a machine's was saved; what is broken is refused with its line."""

from __future__ import annotations

import pytest
from hardware_files import FIXTURES, TWO, links, near, refused

from orchestrator.hardware.as_json import to_json
from orchestrator.hardware.formats import parse, read_hardware

# nvidia-smi


def test_a_topo_matrix_gives_islands_nics_by_their_legend_and_numa():
    (node,) = read_hardware([FIXTURES / "pairs.topo.txt"]).nodes
    assert node.islands == ((0, 1), (2, 3))
    assert near(node) == {"mlx5_2": (0, 1), "mlx5_bond_0": (3,)}
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
    assert {node.name: links(node) for node in cluster.nodes} == {"gpu-02": ["SYS"], "gpu-01": ["NV4"]}


def test_lines_that_a_terminal_wrapped_and_words_of_old_drivers_are_read():
    (node,) = read_hardware([FIXTURES / "wrapped.topo.txt"]).nodes
    assert links(node) == ["SYS"]
    assert near(node) == {"mlx5_0": (0,), "mlx5_1": ()}
    assert [gpu.numa for gpu in node.gpus] == [0, 1]


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
    ],
)
def test_a_matrix_is_read_however_it_was_saved(text):
    assert links(parse(text).nodes[0]) == ["NV2"]


def test_peer_access_and_links_of_one_machine_are_put_together():
    p2p = " \tGPU0\tGPU1\n GPU0\tX\tNS\n GPU1\tOK\tX\n"
    for text in (TWO + p2p, p2p + TWO):
        (node,) = parse(text).nodes
        assert (links(node), node.shape.peer_access) == (["NV2"], ("NS",))


def test_two_matrices_without_names_are_two_machines():
    assert [node.name for node in parse(TWO + TWO, "a.txt").nodes] == ["a", "a-2"]


def test_models_and_uuids_stand_beside_the_matrix():
    (node,) = parse("GPU 0: NVIDIA H100 (UUID: GPU-a)\nGPU 1: NVIDIA H100 (UUID: GPU-b)\n" + TWO).nodes
    assert [gpu.model for gpu in node.gpus] == ["NVIDIA H100"] * 2
    assert node.uuids == ("GPU-a", "GPU-b")


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
    found = refused(text)
    assert found[0] == line
    assert reason in found[1]


# NCCL XML


def test_a_dump_gives_links_through_the_switch_and_pcie():
    (node,) = read_hardware([FIXTURES / "dump.xml"]).nodes
    assert node.islands == ((0, 1), (2,))
    assert links(node) == ["NV18", "SYS", "SYS"]
    # GPU 0 hangs one switch higher than the NIC: still no CPU between them.
    assert near(node) == {"mlx5_0": (0, 1), "eth0": ()}
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
    assert links(cluster.nodes[0]) == ["NV4"]
    assert "GPU 0 names 12 NVLinks to GPU 1, GPU 1 names 4 back" in cluster.notes[0]


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
    found = refused(text)
    assert found[0] == line
    assert reason in found[1]
