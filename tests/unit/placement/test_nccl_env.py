"""What NCCL and torch are told, and what is said of what the job tells them itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.hardware.model import Nic
from orchestrator.placement.nccl_env import NodeFacts, notices, rank_environment, ras_port

RAILS = tuple(Nic(f"mlx5_{i}", near=(i,), rate_gbps=400.0, link_layer="InfiniBand") for i in (0, 1))
A = NodeFacts("a", "eth0", RAILS)
B = NodeFacts("b", "eth0", RAILS)


def variables(node: NodeFacts = A, gang: tuple[NodeFacts, ...] = (A, B), **more: object) -> dict[str, str]:
    options: dict[str, object] = {"run": 7, "attempt": 1, "rdma_promised": True} | more
    return rank_environment(node, gang, **options).variables  # type: ignore[arg-type]


def test_interfaces_and_adapters_are_named_exactly() -> None:
    found = variables()
    assert found["NCCL_SOCKET_IFNAME"] == "=eth0"
    assert found["NCCL_IB_HCA"] == "=mlx5_0:1,mlx5_1:1"


def test_a_promise_of_rdma_fails_rather_than_fall_back_to_tcp() -> None:
    assert variables()["NCCL_NET"] == "IB"
    assert variables()["NCCL_IGNORE_NET_MISMATCH"] == "0"
    assert "NCCL_NET" not in variables(rdma_promised=False)


def test_nodes_with_different_adapters_are_let_differ() -> None:
    other = replace(B, nics=RAILS[:1])
    assert "NCCL_IGNORE_NET_MISMATCH" not in variables(gang=(A, other))


def test_a_gang_on_one_node_needs_no_network() -> None:
    found = variables(gang=(A,))
    assert not {"NCCL_IB_HCA", "NCCL_NET", "NCCL_IGNORE_NET_MISMATCH"} & found.keys()
    assert found["NCCL_SOCKET_IFNAME"] == "=eth0"


def test_an_adapter_that_is_down_is_not_named() -> None:
    half = replace(A, nics=(RAILS[0], replace(RAILS[1], state="DOWN")))
    assert variables(half, (half, half))["NCCL_IB_HCA"] == "=mlx5_0:1"


def test_two_attempts_on_a_node_have_different_ras_ports() -> None:
    ports = {ras_port(run, attempt) for run in range(1, 200) for attempt in (1, 2)}
    assert len(ports) == 398
    assert all(28100 <= port < 30000 for port in ports)
    assert 28028 not in ports


def test_hangs_leave_a_record() -> None:
    # Where it goes is the agent's to say: a file for each rank in the attempt's folder.
    assert variables()["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1"


def test_nccl_tells_of_links_where_its_log_is_read_and_never_of_single_collectives() -> None:
    assert variables()["NCCL_DEBUG"] == "WARN"
    found = variables(tell_links=True)
    assert found["NCCL_DEBUG"] == "INFO"
    assert not {"ALL", "COLL", "TUNING"} & set(found["NCCL_DEBUG_SUBSYS"].split(","))
    # Where it goes is the agent's to say: a file for each process in the attempt's folder.
    assert "NCCL_DEBUG_FILE" not in found
    own = variables(tell_links=True, job={"NCCL_DEBUG": "TRACE", "NCCL_DEBUG_SUBSYS": "ALL"})
    assert (own["NCCL_DEBUG"], own["NCCL_DEBUG_SUBSYS"]) == ("TRACE", "ALL")


def test_containers_of_one_host_are_told_that_they_are() -> None:
    apart = replace(A, distinct_hostname=False, host_id="boot-1")
    assert variables(apart)["NCCL_HOSTID"] == "boot-1"
    assert "NCCL_HOSTID" not in variables()


def test_nvlink_between_nodes_is_required_where_it_was_promised() -> None:
    assert variables(nvlink_between_nodes=True)["NCCL_MNNVL_ENABLE"] == "1"
    assert "NCCL_MNNVL_ENABLE" not in variables()


@pytest.mark.parametrize(
    "name", ["NCCL_ALGO", "NCCL_PROTO", "NCCL_P2P_LEVEL", "NCCL_NET_GDR_LEVEL", "NCCL_NVLS_ENABLE"]
)
def test_what_nccl_knows_best_is_left_alone(name: str) -> None:
    assert name not in variables(nvlink_between_nodes=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NCCL_P2P_DISABLE", "1"),
        ("NCCL_SHM_DISABLE", "1"),
        ("NCCL_IB_DISABLE", "1"),
        ("NCCL_ALGO", "Ring"),
        ("NCCL_NET_GDR_LEVEL", "SYS"),
        ("NCCL_SOCKET_IFNAME", "eth"),
        ("NCCL_IB_HCA", "mlx5_1"),
        ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0"),
    ],
)
def test_what_the_job_sets_wins_with_a_notice_where_it_is_a_hazard(name: str, value: str) -> None:
    options = {"run": 7, "attempt": 1, "rdma_promised": True}
    found = rank_environment(A, (A, B), **options, job={name: value})  # type: ignore[arg-type]
    assert found.variables[name] == value
    assert [notice.variable for notice in found.notices] == [name]
    assert str(found.notices[0]).startswith(f"{name}: ")


@pytest.mark.parametrize(
    "job",
    [{"NCCL_P2P_DISABLE": "0"}, {"NCCL_DEBUG": "INFO"}, {"NCCL_SOCKET_IFNAME": "=eth0"}, {"OMP_NUM_THREADS": "4"}],
    ids=lambda job: next(iter(job)),
)
def test_harmless_settings_pass_without_a_word(job: dict[str, str]) -> None:
    assert notices(job, variables()) == ()


def test_replacing_what_discovery_found_is_said() -> None:
    (notice,) = notices({"NCCL_SOCKET_IFNAME": "=eth1"}, variables())
    assert str(notice) == "NCCL_SOCKET_IFNAME: the job's '=eth1' replaces '=eth0', which discovery found"
