"""How long a job takes where it is put: by the bandwidth model, and by what was measured."""

from __future__ import annotations

import json

import pytest
from test_traces import real

from orchestrator.placement.gang import predict_parts
from orchestrator.placement.tree import Topology
from orchestrator.scheduling.simulate.clusters import plain
from orchestrator.scheduling.simulate.gavel_profile import plain as plain_name
from orchestrator.scheduling.simulate.jobs import Job
from orchestrator.scheduling.simulate.pollux_profile import key_of, profile_of
from orchestrator.scheduling.simulate.profiles import read_profiles
from orchestrator.scheduling.simulate.speed import Speed
from orchestrator.scheduling.simulate.traces import TraceError

TOPOLOGY = Topology(plain(4, 8, 2))
TOGETHER, APART = ((0, 0xFF),), ((0, 0x0F), (2, 0x0F))


def test_communication_grows_as_bandwidth_shrinks_and_computing_does_not():
    fast, slow = (predict_parts(TOPOLOGY, parts).busbw for parts in (TOGETHER, APART))
    speed = Speed(TOPOLOGY, talk=0.3)
    job = Job("a", 8, 0, 100.0)

    assert speed.seconds(job, TOGETHER) == 100
    assert speed.seconds(job, APART) == pytest.approx(70 + 30 * fast / slow)
    assert Speed(TOPOLOGY, talk=0.0).seconds(job, APART) == 100


def test_a_single_gpu_is_as_fast_anywhere():
    assert Speed(TOPOLOGY, talk=1.0).seconds(Job("a", 1, 0, 100.0), ((3, 0b1000),)) == 100


def test_a_job_of_which_nothing_is_known_is_refused():
    with pytest.raises(ValueError, match="no profile knows bert: --profiles DIR names measured speeds"):
        Speed(TOPOLOGY).seconds(Job("a", 1, 0, model="bert", steps=5, batch_size=8), ((0, 1),))


@pytest.mark.parametrize(
    ("counts", "key"), [((4,), "4"), ((2, 1, 1), "112"), ((1, 2, 1), "112"), ((4, 2, 4), "244"), ((3, 1, 2), "123")]
)
def test_the_key_of_a_placement_is_its_smallest_turn(counts, key):
    assert key_of(counts) == key


# One GPU takes 1 s for 4 samples and 2 s for 8; two on two nodes 3 s for 4, of which 1 s is synchronisation.
MEASURED = profile_of(
    {
        "net": (
            [("1", (4, 1.0, 0.0)), ("1", (8, 2.0, 0.0)), ("11", (4, 3.0, 1.0)), ("2", (4, 2.0, 1.0))],
            [(4, 8, (4, 5.0, 2.0)), (4, 4, (4, 4.0, 2.0))],
        )
    }
)


def net(batch: int, **fields: object) -> Job:
    return Job("a", 1, 0, model="net", batch_size=batch, **fields)  # type: ignore[arg-type]


def test_between_measured_batches_a_step_is_linear():
    assert MEASURED.step_s(net(6), (1,)) == pytest.approx(1.5)


def test_a_batch_that_does_not_fit_takes_several_passes_and_synchronises_in_the_last():
    # 16 on two GPUs are 8 each: one pass of 8; the largest that was measured of "11" is 4, and it is the same for 8.
    assert MEASURED.step_s(net(16), (1, 1)) == pytest.approx(3.0)
    # 32 on two GPUs are two passes of 8: the first without its second of synchronisation.
    assert MEASURED.step_s(net(32), (1, 1)) == pytest.approx(3.0 + 2.0)


def test_a_batch_that_is_rounded_up_takes_fewer_steps():
    # 7 on two GPUs are 4 each, 8 in all.
    assert MEASURED.step_s(net(7), (1, 1)) == pytest.approx(3.0 * 7 / 8)


def test_a_placement_that_was_not_measured_lies_between_those_of_its_size():
    # Four nodes of 4 to 8 GPUs: 6 lie in the middle.
    assert MEASURED.step_s(net(24), (2, 2, 1, 1)) == pytest.approx(4.5)


def test_work_takes_steps_and_a_duration_is_stretched():
    assert MEASURED.seconds(net(4, steps=10.0), (1,), (1,)) == pytest.approx(10)
    spread, packed = MEASURED.step_s(net(8), (1, 1)), MEASURED.step_s(net(8), (2,))
    assert MEASURED.seconds(net(8, duration_s=90.0), (1, 1), (2,)) == pytest.approx(90 * spread / packed)


GAVEL = {
    "v100": {
        "('ResNet-50 (batch size 64)', 2)": {"null": 8.0, "other": [1, 2]},
        "('ResNet-50 (batch size 64)', 8)": {"null": 20.0},
        "('LM (batch size 5)', 2)": {"null": 0.0},
    },
    "v100_unconsolidated": {
        "('ResNet-50 (batch size 64)', 2)": {"null": 4.0},
        "('ResNet-50 (batch size 64)', 8)": {"null": 5.0},
    },
    "k80": {},
}


@pytest.fixture
def gavel(tmp_path):
    (tmp_path / "simulation_throughputs.json").write_text(json.dumps(GAVEL))
    return tmp_path


@pytest.mark.parametrize("model", ["ResNet-50 (batch size 64)", "resnet50", "ResNet-50"])
def test_gavels_table_tells_what_spreading_costs(gavel, model):
    profile = read_profiles(gavel)
    job = Job("a", 8, 0, 100.0, model=model)

    assert profile.seconds(job, (8,), (8,)) == 100
    assert profile.seconds(job, (4, 4), (8,)) == 400
    assert profile.slowdown(model, 4) == 2
    assert profile.slowdown(model, 64) == 4
    assert profile.slowdown(model, 1) == 2


def test_a_model_that_was_not_measured_is_left_to_the_bandwidth_model(gavel):
    profile = read_profiles(gavel)

    assert not profile.knows(Job("a", 8, 0, 100.0, model="LM (batch size 5)"))
    assert Speed(TOPOLOGY, [profile], talk=0.0).seconds(Job("a", 8, 0, 100.0, model="vgg16"), APART) == 100


def test_names_of_models_are_compared_without_their_dress():
    assert plain_name("ResNet-50 (batch size 64)") == plain_name("resnet50 (64)")


WRONG = {
    "t.json": ("{", "t.json:1: "),
    "simulation_throughputs.json": ("{}", "has no GPU v100: it has none"),
    "net/placements.csv": (
        "placement,local_bsz,step_time,sync_time\n0x,4,1,0\n",
        "placements.csv:2: placement: must be",
    ),
    "nothing.txt": ("", "holds neither simulation_throughputs.json nor folders with a placements.csv"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_profile_is_refused(tmp_path, name):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(WRONG[name][0])

    with pytest.raises(TraceError) as caught:
        read_profiles(file if name == "t.json" else tmp_path)
    assert WRONG[name][1] in str(caught.value)


def test_recorded_profiles_are_read_whole():
    pollux = read_profiles(real("pollux/profiles"))
    gavel = read_profiles(real("gavel/simulation_throughputs.json"))

    # facts of the data: bert on 2+2 takes 2.8 times as long a step as on one node of four (median over batch sizes).
    bert = [Job("a", 4, 0, model="bert", batch_size=4 * size) for size in (4, 6, 8, 11, 12)]
    ratios = sorted(pollux.step_s(job, (2, 2)) / pollux.step_s(job, (4,)) for job in bert)
    assert ratios[2] == pytest.approx(2.83, abs=0.05)
    assert 3 < gavel.slowdown("LM", 8) < 11
    assert gavel.slowdown("ResNet-50", 8) < 1.2
