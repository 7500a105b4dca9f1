import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.control.inventory import (
    FreeView,
    Seen,
    free_view,
    plain_labels,
    positions_of,
    take_inventory,
    unfit_gpus,
    visible,
)
from orchestrator.hardware.model import Cluster, Domain
from orchestrator.hardware.nvml import GpuState
from orchestrator.placement.tree import Topology
from orchestrator.testing.hardware import cluster, node


def seen(name: str, total: int = 8, **more: object) -> Seen:
    return Seen(name, total, cuda=True, probed=node(name, total), **more)  # type: ignore[arg-type]


def test_a_machine_is_right_about_itself_and_the_disagreement_is_told() -> None:
    found = take_inventory([seen("a", 7)], cluster(node("a", 8, leaf="l1")))
    assert next(map(str, found.disagreements)) == "a: declared 8 GPUs, found 7"
    here = found.topology.cluster.node("a")
    assert (len(here.gpus), here.labels["leaf"]) == (7, "l1")


def test_before_its_agent_has_reported_a_node_disagrees_with_nothing() -> None:
    found = take_inventory([Seen("a", 8, cuda=True)], cluster(node("a", 8)))
    assert found.disagreements == ()
    assert len(found.topology.cluster.node("a").gpus) == 8


def test_what_is_declared_and_has_not_joined_is_named_and_not_placed_on() -> None:
    declared = Cluster((node("a"), node("b")), (Domain("leaf", "l1", None, ("a", "b")),))
    found = take_inventory([seen("a")], declared)
    assert found.absent == ("b",)
    assert [one.name for one in found.topology.nodes] == ["a"]
    assert found.topology.cluster.place("a", "leaf") == "l1"


def test_labels_of_ray_are_levels_and_wishes() -> None:
    labels = {"ray.io/node-id": "ff", "orch.io/leaf": "l7", "rack": "r2", "ray.io/gpu-domain": "nvl.1"}
    assert plain_labels(labels) == {"orch.io/leaf": "l7", "leaf": "l7", "rack": "r2", "ray.io/gpu-domain": "nvl.1"}
    found = take_inventory([seen("a", labels=labels), seen("b", labels=labels)], Cluster())
    tree = found.topology.cluster
    assert tree.place("a", "leaf") == "l7"
    assert tree.members("rack") == {"r2": ("a", "b")}
    assert tree.node("a").clique == "nvl.1"


def test_gpus_that_no_driver_shows_are_known_by_number_and_the_model_that_ray_names() -> None:
    found = take_inventory([Seen("a", 4, cuda=True, labels={"ray.io/accelerator-type": "H100"})], Cluster())
    assert [(gpu.index, gpu.model) for gpu in found.topology.cluster.node("a").gpus] == [(i, "H100") for i in range(4)]


def test_a_node_without_gpu_has_the_slots_that_the_cluster_gives() -> None:
    found = take_inventory([Seen("a", 6, cuda=False, probed=node("a", 0))], Cluster())
    kind = found.topology.nodes[0].kind
    assert (kind.device, kind.size) == ("cpu", 6)


def test_a_part_of_a_machine_keeps_its_links_and_is_numbered_anew() -> None:
    # islands 0-3 and 4-7 of one machine, of which Ray was given 6, 7 and 0
    shape = node("a", 8, islands=((0, 1, 2, 3), (4, 5, 6, 7))).shape
    part = visible(shape, [6, 7, 0])
    assert part.indices == (0, 1, 2)
    assert part.islands == ((0, 1), (2,))


@pytest.mark.parametrize(("names", "positions"), [(("2", "0"), [2, 0]), (("GPU-bb", "GPU-aa"), [1, 0]), (("9",), [])])
def test_cudas_names_are_found_among_the_nodes_gpus(names: tuple[str, ...], positions: list[int]) -> None:
    machine = node("a", 3)
    machine = type(machine)("a", machine.shape, uuids=("GPU-aa-1", "GPU-bb-2", "GPU-cc-3"))
    assert positions_of(names, machine) == positions


def test_what_is_held_or_not_well_is_not_free() -> None:
    topology = take_inventory([seen("a"), seen("b")], Cluster()).topology
    free = free_view(topology, {"a": {0: 7, 1: 7}, "gone": {0: 8}}, {"b": "its agent does not answer"})
    assert free.mask(topology.index["a"]) == 0b11111100
    assert free.mask(topology.index["b"]) == 0
    assert free.notes[topology.index["b"]] == "its agent does not answer"


def test_a_gpu_that_is_held_and_no_longer_there_is_passed_over() -> None:
    topology = take_inventory([seen("a", 4)], Cluster()).topology
    assert free_view(topology, {"a": {7: 1}}, {}).mask(0) == 0b1111


def test_a_gpu_that_the_driver_would_reset_is_not_given_and_the_reason_is_told() -> None:
    states = (GpuState(4, recovery_action="NONE"), GpuState(5, recovery_action="GPU_RESET"), GpuState(6, mig=True))
    unfit = unfit_gpus(states, [6, 5, 4])
    assert unfit == {0: "it is cut into MIG instances", 1: "the driver asks for GPU_RESET"}
    topology = take_inventory([seen("a", 3)], Cluster()).topology
    free = free_view(topology, {}, {}, {"a": unfit})
    assert free.mask(0) == 0b100
    assert free.notes[0] == "GPU 0: it is cut into MIG instances; GPU 1: the driver asks for GPU_RESET"


@settings(max_examples=60)
@given(st.data())
def test_a_view_that_is_kept_up_is_the_view_that_is_made_anew(data: st.DataObject) -> None:
    nodes = cluster(*(node(name, 4, leaf=name[0]) for name in ("a1", "a2", "b1")))
    topologies = [Topology(nodes), Topology(nodes)]
    gpus = st.dictionaries(st.integers(0, 5), st.just(7), max_size=6)
    view = FreeView()
    for _ in range(data.draw(st.integers(1, 6))):
        topology = data.draw(st.sampled_from(topologies))
        busy = data.draw(st.dictionaries(st.sampled_from(["a1", "a2", "b1", "gone"]), gpus))
        notes = data.draw(st.sampled_from([{}, {"a1": "drained"}]))
        unfit = data.draw(st.sampled_from([{}, {"b1": {2: "sick"}}]))
        kept, anew = view.now(topology, busy, notes, unfit), free_view(topology, busy, notes, unfit)
        for name in ("topology", "unheld", "usable", "notes", "room", "states"):
            assert getattr(kept, name) == getattr(anew, name)
        # What it gives is the caller's own.
        kept.set_usable("a2", ())
