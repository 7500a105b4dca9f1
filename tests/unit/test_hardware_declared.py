"""Hardware that people write down, as CSV and in cluster.yaml; what does not add up is refused with its line."""

from __future__ import annotations

from collections import Counter

import pytest
from hardware_files import FIXTURES, near, refused

from orchestrator.hardware.as_json import to_json
from orchestrator.hardware.formats import parse, read_hardware
from orchestrator.hardware.formats.levels_csv import parse as parse_csv

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
    found = refused(text, "x.csv")
    assert found[0] == line
    assert reason in found[1]


# cluster.yaml


def test_declared_hardware_is_a_cluster():
    cluster = read_hardware([FIXTURES / "cluster.yaml"])
    assert [node.name for node in cluster.nodes] == ["gpu-01", "gpu-02", "old-1", "login"]
    assert cluster.node("gpu-02").islands == (tuple(range(8)),)
    assert cluster.node("old-1").islands == ((0, 1), (2, 3))
    assert near(cluster.node("old-1")) == {"mlx5_0": (0, 1)}
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
    found = refused(text, "cluster.yaml")
    assert found[0] == line
    assert reason in found[1]
