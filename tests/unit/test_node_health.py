"""What is wrong with a node, by what its agent saw and what it had before."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.health import node_past
from orchestrator.health.facts import Adapter, NodeFacts
from orchestrator.health.node_health import (
    Finding,
    Known,
    Severity,
    examine,
    for_doctor,
    unfit,
    worst,
)
from orchestrator.health.node_past import Counter, Past, remember
from orchestrator.health.vitals import Disk, GpuVitals, Port, Vitals

DAY, GIB = 86400.0, 1 << 30
XID = "NVRM: Xid (PCI:0000:1a:00): {}, pid=1234, name=python, something"


def found(*looks: Vitals, every: float = 30.0, start: float = 1e9, forgiven: float = 0.0) -> tuple[Finding, ...]:
    """What is wrong after these looks, so many seconds apart."""
    past, at = Past(), start
    for number, look in enumerate(looks):
        at = start + number * every
        past = remember(past, look, at)
    return examine(Known("a", looks[-1], past, at, forgiven_at=forgiven))


def gpus(*which: GpuVitals) -> Vitals:
    return Vitals(gpus=which)


def port(active: bool = True, rate: float | None = 400.0, downs: int | None = 0, name: str = "mlx5_0:1") -> Port:
    return Port(name, active, rate, downs)


G0, G1 = GpuVitals(0, nvlinks=18), GpuVitals(1, nvlinks=18)
WELL = Vitals(
    (G0, G1),
    (port(), port(name="mlx5_1:1")),
    (Disk("attempts", "/tmp/x", 50 * GIB, 100 * GIB),),
    shm_free=GIB,
    boot_id="b1",
)


def test_a_node_that_has_what_it_had_is_well() -> None:
    assert found(WELL) == found(WELL, WELL) == ()
    assert worst(()) is Severity.OK
    assert unfit(()) is None


@pytest.mark.parametrize(
    ("looks", "what", "severity", "words"),
    [
        pytest.param([gpus(G0, G1), gpus(G0)], "gpus", "fatal", "1 of 2 GPUs answer", id="a GPU fell off the bus"),
        pytest.param(
            [gpus(replace(G0, remap_failed=True, remap_pending=True))],
            "remap", "fatal", "GPU 0 has a bad row of memory and no spare one left", id="no spare row",
        ),
        pytest.param(
            [gpus(replace(G0, remap_pending=True))],
            "remap", "degraded", "GPU 0 remaps a bad row of memory with its next reset", id="a row waits for a reset",
        ),
        pytest.param(
            [gpus(replace(G0, uncorrected=3)), gpus(replace(G0, uncorrected=4))],
            "ecc", "degraded", "GPU 0 met 1 memory error within a day that ECC could not correct", id="a new ECC error",
        ),
        pytest.param(
            [gpus(replace(G0, action="NODE_REBOOT"))],
            "recovery", "fatal", "the driver asks for NODE_REBOOT because of GPU 0", id="the driver wants a boot",
        ),
        pytest.param(
            [Vitals(xids=(XID.format(79),))],
            "xid", "fatal", "Xid 79: the GPU has fallen off the bus (NVRM: Xid (PCI:0000:1a:00): 79, pid", id="Xid 79",
        ),
        pytest.param(
            [Vitals(xids=(XID.format(94), XID.format(94)))],
            "xid", "degraded", "Xid 94, 2 times: a memory error that was contained", id="Xid 94 twice",
        ),
        pytest.param(
            [Vitals(xids=("nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 12028, Non-fatal, Link 32",))],
            "xid", "degraded", "SXid 12028: an NVSwitch met a fault (nvidia-nvswitch3: SXid", id="an SXid",
        ),
        pytest.param(
            [gpus(G0, G1), gpus(replace(G0, nvlinks=17), replace(G1, nvlinks=17))],
            "nvlink", "degraded", "GPU 0 has 17 NVLinks up where it had 18", id="an NVLink went down",
        ),
        pytest.param(
            [gpus(G0, replace(G1, nvlinks=16))],
            "nvlink", "degraded", "GPU 1 has 16 NVLinks up where its like have 18", id="fewer NVLinks than its like",
        ),
        pytest.param(
            [gpus(replace(G0, nvlink_errors=5)), gpus(replace(G0, nvlink_errors=7))],
            "nvlink", "warning", "NVLinks of GPU 0 had 2 errors within an hour", id="NVLink errors",
        ),
        pytest.param(
            [gpus(replace(G0, nvlink_errors=5)), gpus(replace(G0, nvlink_errors=105))],
            "nvlink", "degraded", "NVLinks of GPU 0 had 100 errors within an hour", id="many NVLink errors",
        ),
        pytest.param(
            [Vitals(ports=(port(), port(name="m1"))), Vitals(ports=(port(active=False), port(name="m1")))],
            "port", "degraded", "mlx5_0:1 is down, of 2 adapters that worked", id="one of two ports is down",
        ),
        pytest.param(
            [Vitals(ports=(port(),)), Vitals(ports=(port(active=False),))],
            "port", "fatal", "mlx5_0:1 is down, of 1 adapter that worked", id="the last port is down",
        ),
        pytest.param(
            [Vitals(ports=(port(),)), Vitals(ports=(port(rate=100.0),))],
            "rate", "degraded", "mlx5_0:1 runs at 100 Gb/s where it had 400", id="a port is slower",
        ),
        pytest.param(
            [Vitals(ports=(port(downs=4),)), Vitals(ports=(port(downs=5),))],
            "flaps", "warning", "the link of mlx5_0:1 went down 1 time within an hour", id="one flap",
        ),
        pytest.param(
            [Vitals(ports=(port(downs=4),)), Vitals(ports=(port(downs=7),))],
            "flaps", "degraded", "the link of mlx5_0:1 went down 3 times within an hour", id="three flaps",
        ),
        pytest.param(
            [Vitals(disks=(Disk("attempts", "/t", 1 << 20, GIB),))],
            "disk", "fatal", "attempts (/t) has 1 MiB of 1 GiB left: full", id="no attempt can be laid out",
        ),
        pytest.param(
            [Vitals(disks=(Disk("storage", "/s", 1 << 20, GIB),))],
            "disk", "degraded", "storage (/s) has 1 MiB of 1 GiB left: full", id="the storage is full",
        ),
        pytest.param(
            [Vitals(disks=(Disk("tmp", "/t", GIB // 2, 100 * GIB),))],
            "disk", "degraded", "tmp (/t) has 512 MiB of 100 GiB left", id="little room",
        ),
        pytest.param(
            [Vitals(disks=(Disk("tmp", "/t", 15 * GIB, 1000 * GIB),))],
            "disk", "warning", "tmp (/t) has 15 GiB of 1000 GiB left", id="room goes",
        ),
        pytest.param(
            [Vitals(disks=(Disk("storage", "/s", silent_s=40.0),))],
            "disk", "degraded", "storage (/s) has not answered for 40 s", id="the storage does not answer",
        ),
        pytest.param([Vitals(shm_free=1 << 20)], "shm", "degraded", "shared memory (/dev/shm) has 1 MiB left", id="shm"),
        pytest.param(
            [gpus(replace(G0, held_mib=3000, holders=(7,)))],
            "memory", "warning", "3000 MiB of GPU 0 are held by process 7, which is of no run", id="leftover memory",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_has_a_severity_and_a_sentence_with_numbers(
    looks: list[Vitals], what: str, severity: str, words: str
) -> None:
    first = found(*looks)[0]
    assert (first.node, first.what, first.severity.word) == ("a", what, severity)
    assert first.text.startswith(words)
    assert first.fix
    assert (unfit([first]) == f"not fit: {first.text}") is (severity == "fatal")


@pytest.mark.parametrize(
    "looks",
    [
        pytest.param([Vitals(xids=(XID.format(31), XID.format(13)))], id="Xids that a program causes"),
        pytest.param([Vitals(xids=("NVRM: Xid (PCI:0000:1a:00): 999, new",))], id="an Xid that nobody knows"),
        pytest.param([Vitals(xids=("oom-kill: constraint", "Xid"))], id="other lines"),
        pytest.param([gpus(replace(G0, uncorrected=9))], id="errors from before the first look"),
        pytest.param([gpus(replace(G0, uncorrected=9)), gpus(replace(G0, uncorrected=2))], id="a counter begins anew"),
        pytest.param([gpus(G0), gpus(replace(G0, nvlinks=None))], id="a driver that says nothing"),
        pytest.param([Vitals(ports=(port(active=False),))], id="a port that never worked"),
        pytest.param([Vitals(disks=(Disk("storage", "/s", silent_s=2.0),))], id="a disk that is slow once"),
        pytest.param([gpus(replace(G0, held_mib=500))], id="a bare context"),
        pytest.param([gpus(replace(G0, action="NONE"))], id="a content driver"),
    ],
)
def test_what_says_nothing_of_the_node_is_no_finding(looks: list[Vitals]) -> None:
    assert found(*looks) == ()


def test_what_happened_is_forgotten_in_time() -> None:
    flapped = [Vitals(ports=(port(downs=downs),)) for downs in (0, 3, 3)]
    assert [one.what for one in found(*flapped, every=1800)] == ["flaps"]
    assert found(*flapped, every=3601) == ()
    worn = [Vitals(xids=(XID.format(94),))] * 3
    assert [one.what for one in found(*worn, every=DAY / 2)] == ["xid"]
    assert found(*worn, every=DAY * 0.6) == ()
    # Broken is broken until the machine boots.
    broken = [Vitals(xids=(XID.format(79),), boot_id="b1")] * 3
    assert [one.what for one in found(*broken, every=DAY)] == ["xid"]
    assert found(*broken, Vitals(boot_id="b2"), every=DAY) == ()


def test_what_somebody_calls_well_is_not_held_against_the_node() -> None:
    seen = Vitals((G0,), (port(rate=100.0, downs=9),), xids=(XID.format(79),), boot_id="b1")
    past = remember(remember(Past(), WELL, 1e9), seen, 1e9 + 30)
    before = examine(Known("a", seen, past, 1e9 + 30))
    assert {one.what for one in before} == {"gpus", "xid", "rate", "flaps"}
    again = remember(node_past.forgiven(past), seen, 1e9 + 60)
    assert examine(Known("a", seen, again, 1e9 + 60, forgiven_at=1e9 + 45)) == ()
    # The same message again, word for word.
    worse = replace(seen, ports=(port(rate=50.0, downs=10),), xids=seen.xids * 2)
    later = examine(Known("a", worse, remember(again, worse, 1e9 + 90), 1e9 + 90, forgiven_at=1e9 + 45))
    assert [(one.what, one.severity.word) for one in later] == [
        ("xid", "fatal"), ("rate", "degraded"), ("flaps", "warning")
    ]  # fmt: skip


@pytest.mark.parametrize(("total", "severity"), [(2, "fatal"), (1, "degraded"), (None, "fatal")])
def test_a_gpu_that_the_cluster_does_not_count_on_any_more_leaves_the_others_usable(
    total: int | None, severity: str
) -> None:
    past = remember(remember(Past(), gpus(G0, G1), 1e9), gpus(G0), 1e9 + 30)
    (one,) = examine(Known("a", gpus(G0), past, 1e9 + 30, total))
    assert (one.what, one.severity.word) == ("gpus", severity)


def test_doctors_own_findings_are_warnings_of_health_and_are_not_told_to_it_twice() -> None:
    adapters = (Adapter("mlx5_0", 400.0, active=False), Adapter("mlx5_1", 400.0))
    host = NodeFacts("a", gpus_unfit=("GPU 3: the driver asks for GPU_RESET",), adapters=adapters, shm=1 << 40)
    known = Known("a", gpus(replace(G0, action="SYSTEM_REBOOT")), Past(), 1e9, host=host, clock_ahead=-7.0)
    every = examine(known)
    assert [one.severity.word for one in every] == ["fatal", "warning", "warning", "warning"]
    assert [one.what for one in every] == ["recovery", "clock", "doctor", "doctor"]
    assert every[1].text == "its clock is 7.0 s behind the head's"
    assert [(one.severity, one.node) for one in for_doctor(every)] == [("error", "a")]


def test_the_worst_is_told_first() -> None:
    every = found(
        gpus(G0, G1), Vitals((replace(G0, remap_pending=True),), disks=(Disk("tmp", "/", 15 * GIB, 1000 * GIB),))
    )
    assert [one.severity for one in every] == sorted((one.severity for one in every), reverse=True)
    assert worst(every) is Severity.FATAL


small = st.integers(0, 5)
a_gpu = st.builds(GpuVitals, st.integers(0, 3), st.none() | small, nvlinks=st.none() | small, nvlink_errors=small)
a_port = st.builds(Port, st.sampled_from(["p", "q"]), st.booleans(), st.none() | st.floats(1, 800), st.none() | small)
a_line = st.sampled_from([XID.format(code) for code in (13, 48, 94, 999)])
a_look = st.builds(
    Vitals,
    st.lists(a_gpu, max_size=4, unique_by=lambda gpu: gpu.index).map(tuple),
    st.lists(a_port, max_size=2, unique_by=lambda port: port.name).map(tuple),
    xids=st.lists(a_line, max_size=3).map(tuple),
    boot_id=st.sampled_from(["b1", "b2", None]),
)


@given(st.lists(a_look, min_size=1, max_size=8))
def test_a_past_is_the_same_after_the_database_and_never_forgets_the_most(looks: list[Vitals]) -> None:
    past = Past()
    for number, look in enumerate(looks):
        past = remember(past, look, 1e9 + 30 * number)
        assert node_past.of_json(node_past.to_json(past)) == past
        assert remember(past, look, 1e9 + 30 * number) == past, "the same look again changes nothing"
    assert past.gpus == max(len(look.gpus) for look in looks)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30))
def test_a_counter_grows_by_what_was_added_to_it(values: list[int]) -> None:
    counter = Counter(values[0])
    for number, value in enumerate(values[1:]):
        counter = counter.now(value, float(number))
    steps = pairwise(values)
    assert counter.grown(0.0) == sum(max(0, later - earlier) for earlier, later in steps)
