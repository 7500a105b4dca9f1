"""The version matrix: which differences are seen, which rules speak, and what they say."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.health.cluster_rules import CLUSTER_RULES
from orchestrator.health.compatibility import minimum_driver, nccl_of_torch, version
from orchestrator.health.facts import Adapter, NodeFacts
from orchestrator.health.matrix import matrix, to_json
from orchestrator.health.node_rules import NODE_RULES

GOOD = NodeFacts(
    "a",
    driver="580.159.04",
    cuda_driver="13.0",
    torch="2.11.0+cu130",
    cuda="13.0",
    cudnn="91900",
    nccl="2.28.9",
    nccl_loaded="2.28.9",
    gpus=("NVIDIA H100",) * 8,
    kernel="6.8.0",
    hostname="a",
    boot_id="1",
    shm=64 << 30,
    memlock=float("inf"),
    nofile=1 << 20,
    adapters=(Adapter("mlx5_0", 400.0, "28.39"), Adapter("mlx5_1", 400.0, "28.39")),
    peer_memory=True,
    iommu=False,
    interface="bond0",
    mtu=9000,
)


def test_a_good_node_has_no_findings() -> None:
    assert matrix([GOOD, replace(GOOD, node="b", hostname="b", boot_id="2")]).findings == ()


def conf(**variables: str) -> dict[str, Any]:
    return {"environment": variables}


NODE_CASES: list[tuple[dict[str, Any], str, str]] = [
    ({"driver": "550.54.15"}, "error", "driver 550.54.15 is older than 580"),
    ({"driver": "520.1", "cuda": "12.8", "torch": "2.8.0"}, "error", "driver 520.1 is older than 525"),
    ({"torch": None}, "error", "torch is not there"),
    ({"torch": None, "python": "/p", "python_problem": "is not there"}, "error", "/p is not there: no rank can start"),
    (
        {"gpus_unfit": ("GPU 3: the driver asks for GPU_RESET",)},
        "warning",
        "GPU 3: the driver asks for GPU_RESET: no run",
    ),
    ({"mig": 2}, "warning", "2 of 8 GPUs are cut into MIG instances"),
    ({"ecc_errors": 4}, "warning", "4 memory errors could not be corrected"),
    ({"ecc_off": 8}, "note", "ECC is off on 8 of 8 GPUs"),
    ({"peers_denied": ("0-1 CNS", "0-2 NS")}, "warning", "2 of 28 pairs of GPUs have no peer access (0-1 CNS, 0-2 NS)"),
    ({"acs": ("0000:10:01.0",)}, "warning", "PCIe ACS redirects P2P on 1 bridges above GPUs (0000:10:01.0)"),
    ({"cuda": None}, "error", "torch 2.11.0+cu130 is a build for CPUs: 8 NVIDIA H100 would stay idle"),
    ({"gpus": ()}, "warning", "driver 580.159.04 is there but no GPU is"),
    ({"gpus": (), "driver": None}, "note", "no GPU"),
    ({"nccl_loaded": "2.21.5"}, "warning", "NCCL 2.21.5 is loaded, torch 2.11.0+cu130 was built with 2.28.9"),
    ({"nccl": None, "nccl_loaded": "2.21.5"}, "warning", "NCCL 2.21.5 is loaded"),
    ({"shm": 64 << 20}, "error", "shared memory (/dev/shm) has 64 MiB"),
    ({"shm": 512 << 20}, "warning", "shared memory (/dev/shm) has 512 MiB"),
    ({"memlock": 8 << 20}, "error", "only 8 MiB of memory may be locked"),
    ({"nofile": 1024}, "warning", "a process may have 1024 files open"),
    (conf(NCCL_P2P_DISABLE="1"), "error", "NCCL_P2P_DISABLE=1: "),
    ({"conf": {"NCCL_IB_DISABLE": "1"}}, "error", "NCCL_IB_DISABLE=1 in nccl.conf: "),
    (conf(NCCL_NET_GDR_LEVEL="SYS"), "warning", "NCCL_NET_GDR_LEVEL=SYS: "),
    (conf(NCCL_PROTO="LL128"), "warning", "NCCL_PROTO=LL128: "),
    (conf(NCCL_SOCKET_IFNAME="=lo"), "error", "NCCL_SOCKET_IFNAME==lo: "),
    (
        conf(NCCL_IB_HCA="mlx5_1") | {"adapters": (Adapter("mlx5_1"), Adapter("mlx5_10"))},
        "warning",
        "NCCL_IB_HCA=mlx5_1 also takes mlx5_10",
    ),
    ({"plugins": ("/opt/libnccl-net.so",)}, "note", "/opt/libnccl-net.so will be loaded"),
    ({"interface": "docker0"}, "error", "NCCL will use docker0"),
    (
        {"adapters": (Adapter("mlx5_0"), Adapter("mlx5_1", active=False))},
        "warning",
        "1 of 2 adapters have no link: mlx5_1",
    ),
    ({"peer_memory": False}, "error", "adapters (mlx5_0 (400 Gb/s), mlx5_1 (400 Gb/s)) cannot reach"),
    ({"iommu": True}, "warning", "the IOMMU is on"),
]


@pytest.mark.parametrize(("changes", "severity", "problem"), NODE_CASES, ids=[case[2][:40] for case in NODE_CASES])
def test_a_node_that_is_wrong_in_one_thing_has_one_finding(
    changes: dict[str, Any], severity: str, problem: str
) -> None:
    (finding,) = matrix([replace(GOOD, **changes)]).findings
    assert (finding.severity, finding.node) == (severity, "a")
    assert finding.problem.startswith(problem)
    assert finding.mend


@pytest.mark.parametrize(
    "fine",
    [
        {"driver": None},
        {"shm": 64 << 20, "gpus": ("NVIDIA H100",)},
        conf(NCCL_P2P_DISABLE="0"),
        conf(NCCL_IB_HCA="=mlx5_1") | {"adapters": (Adapter("mlx5_1"), Adapter("mlx5_10"))},
        {"plugins": ("/opt/libnccl-net.so",)} | conf(NCCL_NET_PLUGIN="none"),
        {"peer_memory": None},
        {"memlock": 8 << 20, "adapters": ()},
        {"interface": "lo"},
        {"peers_denied": (), "acs": (), "mig": 0, "ecc_off": 0, "ecc_errors": 0},
        {"clock_ahead": 0.4},
    ],
)
def test_what_is_unknown_or_meant_is_no_finding(fine: dict[str, Any]) -> None:
    assert matrix([replace(GOOD, **fine)]).findings == ()


CLUSTER_CASES: list[tuple[dict[str, Any], str, str]] = [
    ({"nccl": None, "nccl_loaded": "2.27.5", "torch": "2.10.0", "cuda": "12.8"}, "error", "NCCL differs: 2.27.5 on b; 2.28.9 on a"),
    ({"adapters": GOOD.adapters[:1]}, "error", "the set of adapters differs: mlx5_0 (400 Gb/s) on b;"),
    ({"mtu": 1500}, "warning", "the MTU differs: 1500 on b; 9000 on a"),
    ({"driver": "580.65.06"}, "warning", "the driver differs"),
    ({"gpus": ("NVIDIA A100",) * 8}, "note", "the GPUs' model differs"),
    (conf(NCCL_CROSS_NIC="1"), "warning", "NCCL's variables differs"),
    ({"interface": "lo"}, "error", "b would talk over lo, which reaches no other host"),
    ({"clock_ahead": -3.21}, "warning", "the clocks of b are off by more than 1 s (b is 3.2 s behind the head)"),
    ({"hostname": "a", "boot_id": "1"}, "warning", "a, b have the same name and boot id a (1)"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "severity", "problem"), CLUSTER_CASES, ids=[case[2][:30] for case in CLUSTER_CASES]
)
def test_nodes_that_do_not_fit_together_are_a_finding_of_the_cluster(
    changes: dict[str, Any], severity: str, problem: str
) -> None:
    other = replace(GOOD, node="b", **{"hostname": "b", "boot_id": "2", **changes})
    findings = [finding for finding in matrix([GOOD, other]).findings if finding.node is None]
    assert (severity, True) in [(finding.severity, finding.problem.startswith(problem)) for finding in findings]


def test_drift_is_told_against_what_most_nodes_have() -> None:
    nodes = [replace(GOOD, node=name) for name in "abc"] + [replace(GOOD, node="d", driver="570.1", mtu=None)]
    (drift,) = (component for component in matrix(nodes).components if component.drifts)
    assert (drift.what, drift.values) == ("driver", (("580.159.04", ("a", "b", "c")), ("570.1", ("d",))))


def test_a_node_without_gpus_need_not_have_what_those_with_gpus_have() -> None:
    head = NodeFacts("head", torch="2.13.0+cpu", adapters=(), interface="bond0", mtu=1500)
    assert [finding.severity for finding in matrix([GOOD, head]).findings] == ["note"]


def test_nodes_of_another_model_may_have_other_adapters() -> None:
    other = replace(GOOD, node="b", hostname="b", boot_id="2", gpus=("NVIDIA A100",) * 8, adapters=())
    assert [one.problem.split(" differs")[0] for one in matrix([GOOD, other]).findings] == ["the GPUs' model"]


def test_a_thousand_nodes_are_a_line_for_each_value() -> None:
    nodes = [replace(GOOD, node=f"gpu-{i:04}", hostname=f"h{i}", shm=64 << 20) for i in range(1000)]
    found = to_json(matrix([*nodes[:-2], *(replace(one, driver="570.1") for one in nodes[-2:])]))
    drivers = next(one for one in found["components"] if one["what"] == "driver")
    assert [(value["value"], len(value["nodes"])) for value in drivers["values"]] == [("580.159.04", 998), ("570.1", 2)]
    assert found["drift"] == ["driver"]
    # What is wrong on many nodes is said once.
    first = found["findings"][0]
    assert (first["severity"], len(first["nodes"])) == ("error", 1000)
    assert len(found["findings"]) < 5


def test_the_matrix_is_json_whatever_is_in_it() -> None:
    found = json.loads(json.dumps(to_json(matrix([GOOD])), allow_nan=False))
    assert found["nodes"][0]["memlock"] == "unlimited"
    assert found["nodes"][0]["adapters"][0]["firmware"] == "28.39"


def test_the_worst_finding_comes_first() -> None:
    bad = replace(GOOD, plugins=("/x/libnccl-net.so",), iommu=True, torch=None)
    assert [finding.severity for finding in matrix([bad]).findings] == ["error", "warning", "note"]


def test_a_machine_without_gpus_gets_something_useful() -> None:
    (finding,) = matrix([NodeFacts("laptop", torch="2.13.0+cpu")]).findings
    assert finding.severity == "note"
    assert "Gloo" in finding.problem


@pytest.mark.parametrize("rule", [*NODE_RULES, *CLUSTER_RULES])
def test_every_rule_says_why(rule: Any) -> None:
    assert rule.__doc__
    assert rule.__doc__.splitlines()[0].endswith(".")


DRIVERS = {"13.0": "580", "12.8": "525", "12": "525", "11.8": "450", "10.2": None, None: None}


@pytest.mark.parametrize("cuda", DRIVERS)
def test_cuda_needs_its_driver(cuda: str | None) -> None:
    assert minimum_driver(cuda) == DRIVERS[cuda]


def test_torch_brings_its_nccl_and_cudnn_numbers_are_understood() -> None:
    assert nccl_of_torch("2.8.0+cu128") == "2.27.3"
    assert nccl_of_torch("3.0") is None
    assert str(version("91002")) == "9.10.2"
    assert str(version("8907")) == "8.9.7"
    assert version("unknown") is None
