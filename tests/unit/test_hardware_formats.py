"""Which format a file has, and how several files make one cluster."""

from __future__ import annotations

import pytest
from hardware_files import FIXTURES, LISTED, TREE, TWO, links

from orchestrator.hardware.formats import FormatError, detect, read_hardware


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
    assert links(read_hardware([tmp_path / "a.txt"]).nodes[0]) == ["NV2"]


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
