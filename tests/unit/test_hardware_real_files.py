"""Files that real machines and fabrics wrote say what they say; the expected values were read off each file by hand.

The files lie outside of the repository: in the folder that ORCH_REAL_FILES names, or in a `shared/real` beside one of
the folders above the repository.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from orchestrator.hardware.as_json import to_json
from orchestrator.hardware.formats import FormatError, detect, read_hardware


def _folder() -> Path | None:
    above = [parent / "shared" / "real" for parent in Path(__file__).resolve().parents]
    named = os.environ.get("ORCH_REAL_FILES")
    return next((path for path in ([Path(named)] if named else above) if path.is_dir()), None)


REAL = _folder()
pytestmark = pytest.mark.skipif(REAL is None, reason="the folder of real files is not here (ORCH_REAL_FILES)")

ALL8 = [[0, 1, 2, 3, 4, 5, 6, 7]]
ALONE8 = [[i] for i in range(8)]
ONE_TO_ONE = {i: [i] for i in range(8)}

# file: islands, how many pairs have which link, GPUs near each NIC
MACHINES = {
    "a100_8gpu_nv12_no_nic.txt": (ALL8, {"NV12": 28}, {}),
    "a100_hgx8_nic4_pxb.txt": (ALL8, {"NV12": 28}, {"NIC0": [0, 1], "NIC1": [0, 1], "NIC2": [2, 3], "NIC3": [2, 3]}),
    "desktop_2gpu_phb.txt": ([[0], [1]], {"PHB": 1}, {}),
    "dgx1_v100_8gpu_mlx5_4.txt": (
        ALL8,
        {"NV1": 8, "NV2": 8, "SYS": 12},
        {"mlx5_0": [0, 1], "mlx5_2": [4, 5], "mlx5_1": [2, 3], "mlx5_3": [6, 7]},
    ),
    "dgx_a100_8gpu_mlx5_12.txt": (
        ALL8,
        {"NV12": 28},
        {"mlx5_0": [0, 1], "mlx5_1": [0, 1], "mlx5_2": [2, 3], "mlx5_3": [2, 3], "mlx5_4": [], "mlx5_5": []}
        | {"mlx5_6": [4, 5], "mlx5_7": [4, 5], "mlx5_8": [6, 7], "mlx5_9": [6, 7], "mlx5_10": [], "mlx5_11": []},
    ),
    "gb200_4gpu_nv18.txt": ([[0, 1, 2, 3]], {"NV18": 6}, {}),
    "h100_8gpu_nv18_smt_affinity.txt": (ALL8, {"NV18": 28}, {}),
    "hgx8_nv18_nic10_ansi_header.txt": (
        ALL8,
        {"NV18": 28},
        {"mlx5_0": [3], "mlx5_1": [3], "mlx5_2": [3], "mlx5_3": [0], "mlx5_4": [2], "mlx5_5": [1]}
        | {"mlx5_6": [7], "mlx5_7": [4], "mlx5_8": [6], "mlx5_9": [5]},
    ),
    "hgx8_nv18_nic8_1to1_sglang_env.txt": (ALL8, {"NV18": 28}, {f"mlx5_{i + 1}": [i] for i in range(8)}),
    "nv4_pairs_4gpu_nic1.txt": ([[0, 1], [2, 3]], {"NV4": 2, "SYS": 4}, {"NIC0": [2, 3]}),
    "nv4_pairs_4gpu_truncated_affinity.txt": ([[0, 1], [2, 3]], {"NV4": 2, "SYS": 4}, {}),
    "p2p_read_matrix_8gpu_ok.txt": (ALONE8, {}, {}),
    "p2p_read_matrix_l4_cns.txt": ([[0], [1]], {}, {}),
    "rtx4090_8gpu_node_sys.txt": (ALONE8, {"NODE": 12, "SYS": 16}, {}),
    "rtx6000ada_4gpu_pcie_2numa_nic4.txt": (
        [[0], [1], [2], [3]],
        {"NODE": 2, "SYS": 4},
        {f"mlx5_{i}": [] for i in range(4)},
    ),
    "savio_8gpu_pcie_pxb_nic2.txt": (ALONE8, {"PXB": 10, "PIX": 2, "SYS": 16}, {"mlx5_0": [], "mlx5_1": []}),
    "threadripper_2gpu_phb_nic2.txt": ([[0], [1]], {"PHB": 1}, {"mlx5_0": [], "mlx5_1": []}),
    "v100_3gpu_nvlink_pair_ansi.txt": ([[0], [1, 2]], {"NODE": 2, "NV6": 1}, {}),
    "v100_4gpu_nv1_nv2_nic1.txt": ([[0, 1, 2, 3]], {"NV1": 3, "NV2": 3}, {"mlx5_0": []}),
    # Override files: no <gpu>, no NVLink; GPUs numbered by PCI address, NICs called by theirs.
    "aws_p4d_24xl.xml": (
        ALONE8,
        {"PIX": 4, "PHB": 8, "SYS": 16},
        {"0000:10:1b.0": [0, 1], "0000:20:1b.0": [2, 3], "0000:90:1b.0": [4, 5], "0000:a0:1b.0": [6, 7]},
    ),
    "azure_ndv2.xml": (ALONE8, {"PHB": 12, "SYS": 16}, {"0101:00:00.0": []}),
    "azure_ndv4.xml": (
        ALONE8,
        {"PIX": 4, "SYS": 24},
        {f"010{nic}:00:00.0": gpus for nics, gpus in (("12", [0, 1]), ("34", [2, 3])) for nic in nics}
        | {f"010{nic}:00:00.0": gpus for nics, gpus in (("56", [4, 5]), ("78", [6, 7])) for nic in nics},
    ),
    "azure_nc48v4.xml": ([[0, 1]], {"NV12": 1}, {"eth0": []}),
    "oci_H100_topology.xml": (
        ALL8,
        {"NV18": 28},
        {
            f"mlx5_{nic}": [gpu]
            for gpu, nics in enumerate([(0, 1), (3, 4), (5, 6), (7, 8), (9, 10), (12, 13), (14, 15), (16, 17)])
            for nic in nics
        },
    ),
    "sugarlxn_4x4090_dump.xml": ([[0], [1], [3], [4]], {"SYS": 6}, None),
    # The two GPUs do not agree (1 link, 12 links): the fewer, and a note.
    "timez_nccl_topo_dump.xml": ([[0, 1]], {"NV1": 1}, {"mlx5_0": [], "mlx5_1": []}),
    # What fails in it, fails in NCCL's fusion of NICs; as a description of the machine it is whole.
    "timez_topo_fail.xml": ([[0, 1]], {"NV1": 1}, {"mlx5_0+mlx5_1": []}),
    "yccl_topo_h800.xml": (ALL8, {"NV8": 28}, {f"mlx5_{n}": [i] for i, n in enumerate((0, 3, 4, 5, 6, 7, 8, 9))}),
}


@pytest.mark.parametrize("file", MACHINES)
def test_a_machine_is_what_its_file_says(file):
    islands, links, near = MACHINES[file]
    cluster = read_hardware([REAL / "hardware" / file])
    (node,) = to_json(cluster)["nodes"]
    assert node["name"] == Path(file).stem
    assert node["islands"] == islands
    assert Counter(link["type"] for link in node["links"]) == links
    if near is not None:
        assert {nic["name"]: nic["near"] for nic in node["nics"]} == near


def test_every_file_of_a_machine_is_in_the_table():
    files = {path.name for path in (REAL / "hardware").iterdir() if path.suffix in (".txt", ".xml")}
    assert files - MACHINES.keys() == set()


def _node(file):
    return read_hardware([REAL / "hardware" / file]).nodes[0]


def test_numa_nodes_come_from_the_affinity_columns():
    assert [gpu.numa for gpu in _node("dgx_a100_8gpu_mlx5_12.txt").gpus] == [3, 3, 1, 1, 7, 7, 5, 5]
    assert [gpu.numa for gpu in _node("desktop_2gpu_phb.txt").gpus] == [None, None]
    assert [gpu.numa for gpu in _node("sugarlxn_4x4090_dump.xml").gpus] == [3, 2, 0, 7]
    assert [gpu.numa for gpu in _node("azure_ndv4.xml").gpus] == [1, 1, 0, 0, 3, 3, 2, 2]


def test_peer_access_is_read_off_the_p2p_matrix():
    assert _node("p2p_read_matrix_l4_cns.txt").shape.peer(0, 1) == "CNS"
    assert set(_node("p2p_read_matrix_8gpu_ok.txt").shape.peer_access) == {"OK"}


def test_models_and_rates_come_from_the_xml():
    h800 = _node("yccl_topo_h800.xml")
    assert {(gpu.model, gpu.sm) for gpu in h800.gpus} == {("H800-SXM5-80GB", 90)}
    assert {(nic.rate_gbps, nic.link_layer) for nic in h800.nics} == {(400, "InfiniBand")}
    assert {gpu.model for gpu in _node("aws_p4d_24xl.xml").gpus} == {"A100-SXM4-40GB"}
    assert len(_node("sugarlxn_4x4090_dump.xml").nics) == 16


def _fabric(*files):
    return read_hardware([REAL / "fabric" / file for file in files])


# file: nodes, domains by level
FABRICS = {
    "ibnetdiscover_ports_test.txt": (3, {"leaf": 2, "pod": 1}),
    "superbench_ibnetdiscover.txt": (10, {"leaf": 5, "pod": 2, "spine": 1}),
    "topograph_ibnetdiscover_example.txt": (121, {"leaf": 31, "pod": 1}),
    "slurm_topology_circe_dgx2.conf": (79, {"leaf": 5}),
    "slurm_topology_test133_case1.conf": (10_000, {"leaf": 500, "pod": 26, "spine": 2, "core": 1}),
    "slurm_topology_test133_case3.conf": (400, {"leaf": 20, "pod": 2, "spine": 1}),
    "topograph_slinky-dra-block.conf": (96, {"nvlink": 12}),
    "topograph_model_medium.yaml": (8, {"nvlink": 4, "leaf": 4, "pod": 2, "spine": 1}),
    "topograph_model_nvl72.yaml": (72, {"nvlink": 4, "leaf": 4, "pod": 2, "spine": 1}),
    "lingjun_847_hosts_clos.csv": (847, {"leaf": 119, "pod": 3, "spine": 1}),
}
REFUSED = {"topograph_ibnetdiscover_example-bad.txt": (11, "dgx-gb200-n01-c1 HCA-1: the text is cut off")}


@pytest.mark.parametrize("file", FABRICS)
def test_a_fabric_is_what_its_file_says(file):
    nodes, domains = FABRICS[file]
    cluster = _fabric(file)
    assert len(cluster.nodes) == nodes
    assert Counter(domain.level for domain in cluster.domains) == domains


@pytest.mark.parametrize("file", REFUSED)
def test_a_file_that_is_cut_off_is_refused_with_its_line(file):
    line, reason = REFUSED[file]
    with pytest.raises(FormatError, match=reason) as caught:
        _fabric(file)
    assert caught.value.line == line
    assert file in str(caught.value)


def test_every_file_of_a_fabric_is_in_a_table():
    files = {path.name for path in (REAL / "fabric").iterdir() if path.suffix != ".source"}
    assert files - FABRICS.keys() - REFUSED.keys() == set()


def test_a_port_report_places_hosts_under_their_leaves():
    cluster = _fabric("ibnetdiscover_ports_test.txt")
    assert cluster.members("leaf") == {"ib-i1l1s01": ("o0001", "o0002"), "ib-i4l1s01": ("p0001",)}
    assert cluster.place("o0001", "pod") == "ib-i1l2s01"
    assert cluster.node("o0001").nics[0].rate_gbps == 100


def test_a_director_switch_is_the_pods_and_the_spine_above_the_leaves():
    cluster = _fabric("superbench_ibnetdiscover.txt")
    chassis = "rmd70-0101-0908-01ib1-A:MCS8500"
    assert cluster.path("RMD701091906037") == (f"{chassis}/S01/U1", f"{chassis}/L02/U1", "rmd70-0101-0919-12ib0")
    assert cluster.members("leaf")["rmd70-0101-0919-01ib0"] == ("RMD701091901003", "RMD701091901019")


def test_racks_of_a_rail_optimised_fabric_are_one_leaf_each():
    cluster = _fabric("topograph_ibnetdiscover_example.txt")
    racks = cluster.members("leaf")
    assert len(racks) == 8
    assert len(racks["A09-P1-IBLEAF-01-04+3"]) == 17
    assert all(name.startswith("a08-p1-dgx-04-") for name in racks["A09-P1-IBLEAF-01-04+3"])
    assert [nic.switch for nic in cluster.node("b08-p1-dgx-08-c10").nics] == [
        f"B09-P1-IBLEAF-0{rail}-08" for rail in (1, 2, 3, 4)
    ]
    leaf = next(domain for domain in cluster.domains if domain.name == "A09-P1-IBLEAF-04-04")
    assert leaf.members == tuple(f"a08-p1-dgx-04-c{n:02}" for n in range(1, 18))


def test_adapters_without_a_hosts_name_are_left_out_and_counted():
    notes = " ".join(_fabric("topograph_ibnetdiscover_example.txt").notes)
    assert "69 adapters call themselves 'MT4129 ConnectX7   Mellanox Technologies'" in notes


def test_a_node_that_slurm_lists_twice_is_noted():
    cluster = _fabric("slurm_topology_circe_dgx2.conf")
    assert cluster.notes == ("circe-n051 is on 2 leaf switches.",)
    assert {"n019", "n020"} <= set(cluster.members("leaf")["s0"])


def test_slurms_tree_nests():
    assert _fabric("slurm_topology_test133_case1.conf").path("peta19999") == ("root", "im1", "grp35", "leaf599")


def test_an_nvl72_rack_is_an_nvlink_domain_below_its_leaf():
    cluster = _fabric("topograph_model_nvl72.yaml")
    assert cluster.path("node2118") == ("core", "spine-2", "leaf-2-1", "nvl-2-1")
    assert cluster.place("node2118", "topology.kubernetes.io/zone") == "zone1"


def test_access_switches_of_different_pods_are_different_leaves():
    cluster = _fabric("lingjun_847_hosts_clos.csv")
    assert max(len(hosts) for hosts in cluster.members("leaf").values()) == 8
    assert {pod: len(hosts) for pod, hosts in cluster.members("pod").items()} == {"P10": 362, "P12": 306, "P8": 179}
    assert len(cluster.members("ASW")) == 119


def test_formats_are_told_by_content_not_by_name():
    kinds = {path.name: detect(path.read_text(), "x") for path in (REAL / "fabric").iterdir() if path.name in FABRICS}
    assert Counter(kinds.values()) == {"ibnetdiscover": 3, "slurm": 4, "topograph": 2, "csv": 1}
