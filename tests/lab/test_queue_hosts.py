"""The queue over three hosts of two slots each, with gangs that span them: who goes first, who fits in between, who gives way."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from itertools import pairwise

import pytest
from hosts import wait_until
from invariants import one_writer
from orchlab import Orch
from raycluster import RayCluster

from orchestrator.scheduling.run import Run

pytestmark = [pytest.mark.lab, pytest.mark.ray, pytest.mark.torch, pytest.mark.timeout(150)]

WAITS = """
import os, pathlib, sys, time
run = os.environ["ORCH_RUN"]
while not pathlib.Path(os.environ["SHARED"], f"over-{run}").exists():
    time.sleep(0.05)
sys.exit(3 if os.environ["RANK"] == os.environ.get("FAILS") else 0)
"""
"""Holds its place until it is told that it is over (`Orch.let_end`); the rank FAILS then ends with exit code 3."""

SAVES_WHEN_TOLD = """
import os, pathlib, time, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from orchestrator import checkpoint
run, attempt, rank = (os.environ[name] for name in ("ORCH_RUN", "ORCH_ATTEMPT", "RANK"))
shared = pathlib.Path(os.environ["SHARED"])
dist.init_process_group("gloo")
model = DistributedDataParallel(torch.nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
record = open(shared / "steps" / f"{run}.{attempt}.{rank}", "a", buffering=1)
with checkpoint.Saver(model=model, optimizer=optimizer) as saver:
    for step in saver.steps(10**9):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        record.write(f"{step + 1} {time.monotonic()}\\n")
        over = torch.tensor([float(rank == "0" and (shared / f"over-{run}").exists())])
        dist.all_reduce(over)
        if over:
            break
        time.sleep(0.05)
dist.destroy_process_group()
"""
"""Trains without end, and saves at no time but when it is told to stop."""

ROUNDED = timedelta(milliseconds=2)


@pytest.fixture(scope="module")
def faulty(lab):
    """orch over the three hosts; team red is guaranteed three slots and never holds more."""
    cluster = RayCluster(lab, num_cpus=2)
    (lab.shared / "storage").mkdir()
    (lab.shared / "steps").mkdir()
    for host in lab.hosts:
        host.variables |= {
            "ORCH_LEASE": "8s",
            "ORCH_STORAGE": str(lab.shared / "storage"),
            "ORCH_POLICY_MIN_RUNTIME": "1s",
            "ORCH_TEAMS": "{red: {guaranteed: 3, limit: 3}, blue: {}}",
        }
    orch = Orch(lab, cluster)
    orch("up")
    return orch


@pytest.fixture(autouse=True)
def _empty(orch: Orch):
    """Nothing waits or runs after a test, also after one that fails."""
    yield
    if left := orch("ps", "-o", "name").split():
        orch("cancel", *left)
        wait_until(lambda: not json.loads(orch("ps", "--json")), 30, f"{left} have ended", every=0.2)


def submit(orch: Orch, workers: str, job: str = "", *, script: str = WAITS, environ: str = "") -> int:
    """`environ` is added to its `env:` (", FAILS: '4'")."""
    env = f"env: {{SHARED: {orch.lab.shared}, OMP_NUM_THREADS: '1'{environ}}}"
    return orch.submit(script, workers, job=f"{env}\n{job}")


def wait_runs(orch: Orch, *runs: int) -> None:
    """Until all ranks of these have started."""

    def start() -> bool:
        attempts = [orch.recorded(run).attempt for run in runs]
        return all(one is not None and one.ended_at is None and one.ranks_started_at is not None for one in attempts)

    wait_until(start, 30, f"runs {runs} run: {[orch.recorded(run).reason for run in runs]}")


def why(orch: Orch, run: int) -> dict:
    """Why it waits, once the scheduler has come upon it."""
    told: list[dict] = []

    def decided() -> bool:
        told[:] = [json.loads(orch("why", run, "--json"))["waits"]]
        return bool(told[0] and told[0]["reasons"])

    wait_until(decided, 15, f"it is known why run {run} waits", every=0.2)
    return told[0]


def begun(run: Run, attempt: int = 1) -> datetime:
    return run.attempts[attempt - 1].started_at


def over(run: Run, attempt: int = 1) -> datetime:
    ended = run.attempts[attempt - 1].ended_at
    assert ended is not None
    return ended


def hosts_of(run: Run, attempt: int = 1) -> list[str]:
    return [part.node for part in run.attempts[attempt - 1].placement.nodes]


def test_a_gang_of_higher_priority_overtakes_an_older_one(orch: Orch) -> None:
    holder = submit(orch, "3x2", "priority: 9")
    wait_runs(orch, holder)
    older, urgent = submit(orch, "2x2"), submit(orch, "2x2", "priority: 5")
    told = why(orch, older)
    assert [run["id"] for run in told["ahead"]] == [urgent]
    assert any(reason["kind"] == "priority" for reason in told["reasons"])
    orch.let_end(holder)
    wait_runs(orch, urgent)
    assert orch.recorded(older).state == "queued"
    first, second = orch.let_end(urgent), orch.let_end(older)
    assert len(hosts_of(first)) == len(hosts_of(second)) == 2
    assert over(first) <= begun(second)


def test_a_short_gang_goes_before_one_that_is_promised_a_place_and_the_promise_is_kept(orch: Orch) -> None:
    holder = submit(orch, "3x1", "time_limit: 2m")
    wait_runs(orch, holder)
    gang = submit(orch, "3x2")
    told = why(orch, gang)
    assert told["sure"] == "promised"
    promised = datetime.fromisoformat(told["start"])
    endless = submit(orch, "3x1")
    assert f"kept for run {gang}" in why(orch, endless)["reasons"][0]["text"]
    short = submit(orch, "3x1", "time_limit: 10s")
    wait_runs(orch, short)
    assert datetime.fromisoformat(why(orch, gang)["start"]) <= promised + ROUNDED
    filled = orch.let_end(short)
    assert len(hosts_of(filled)) == 3
    assert orch.recorded(endless).state == orch.recorded(gang).state == "queued"
    orch.let_end(holder)
    wait_runs(orch, gang)
    assert begun(filled) < begun(orch.recorded(gang)) <= promised + ROUNDED
    assert orch.recorded(endless).state == "queued"
    orch.let_end(gang)
    orch.let_end(endless)


def test_a_gang_that_gives_way_saves_keeps_its_age_and_goes_on_from_its_step_at_the_cost_of_no_retry(
    orch: Orch,
) -> None:
    # Any retry that it drew on would be its end.
    low = submit(orch, "3x2", "checkpoint: ckpt\ngrace: 20s\nretry: {infra: 0, user: 0}", script=SAVES_WHEN_TOLD)
    orch.wait_trained(low, 1, ranks=6)
    younger = submit(orch, "3x2")
    high = submit(orch, "2x2", "priority: 10")
    wait_runs(orch, high)
    (gave_way,) = orch.recorded(low).attempts
    assert (gave_way.outcome, gave_way.failure) == ("preempted", None)
    assert gave_way.stop is not None
    assert (gave_way.stop.kind, gave_way.stop.for_run) == ("preempted", high)
    # 128 + SIGTERM, by their own hand: nobody had to be killed.
    assert gave_way.exit_codes == dict.fromkeys(range(6), 143)
    queued = [run["id"] for run in json.loads(orch("ps", "--json")) if run["state"] == "queued"]
    assert queued == [low, younger]
    orch.let_end(high)
    orch.wait_trained(low, 2, ranks=6)
    assert orch.recorded(younger).state == "queued"
    ended = orch.let_end(low)
    assert [str(one.outcome) for one in ended.attempts] == ["preempted", "succeeded"]
    steps = orch.steps(low)
    one_writer(steps)
    for rank in range(6):
        assert steps[2][rank][0][0] == steps[1][rank][-1][0] + 1
    orch.let_end(younger)


def test_an_array_of_gangs_is_one_row_and_no_more_run_at_once_than_its_limit(orch: Orch) -> None:
    job = "array: {seed: 0..3}\narray_limit: 2\nname: sweep"
    first = submit(orch, "2x1", job, environ=", SEED: '{seed}'")
    elements = range(first, first + 4)
    wait_runs(orch, first, first + 1)
    # A third would fit.
    assert "2 of" in why(orch, first + 2)["reasons"][0]["text"]
    (row,) = (line.split("\t") for line in orch("ps").splitlines())
    assert row[:2] == [f"{first}[]", "sweep[]"]
    assert json.loads(orch("show", "sweep", "--json"))["array"]["states"] == {"queued": 2, "running": 2}
    for run in elements:
        (orch.lab.shared / f"over-{run}").touch()
    wait_until(lambda: all(orch.recorded(run).state == "succeeded" for run in elements), 30, "the array is done")
    runs = [orch.recorded(run) for run in elements]
    assert {len(hosts_of(run)) for run in runs} == {2}
    for run in runs:
        assert sum(begun(other) <= begun(run) < over(other) for other in runs) <= 2


def test_what_follows_a_gang_that_failed_is_cancelled_all_along_the_chain_and_says_by_what(orch: Orch) -> None:
    good = submit(orch, "2x2", "name: good")
    bad = submit(orch, "3x2", f"name: bad\nafter: [{good}]", environ=", FAILS: '4'")
    second = submit(orch, "3x2", "name: second\nafter: [bad]")
    third = submit(orch, "2x1", "name: third\nafter: [second]")
    assert f"run {good}" in why(orch, bad)["reasons"][0]["text"]
    assert begun(orch.let_end(good)) is not None
    wait_runs(orch, bad)
    (orch.lab.shared / f"over-{bad}").touch()
    for run in (second, third):
        found = orch.reaches(run, "cancelled")
        assert found["attempts"] == []
        assert f"run {bad} (bad), which it was to follow, failed: rank 4 on lab3 ended with" in found["reason"]
        assert f"run {bad} (bad)" in orch("why", run)
    assert begun(orch.recorded(bad)) >= over(orch.recorded(good))


def test_a_limit_holds_while_others_borrow_and_a_guaranteed_part_is_taken_back(orch: Orch) -> None:
    reds = [submit(orch, "3x1", "team: red") for _ in range(2)]
    wait_runs(orch, reds[0])
    # Three slots are free, and red may not have them.
    told = why(orch, reds[1])["reasons"][0]
    assert (told["kind"], told["numbers"]) == ("quota", {"held": 3, "limit": 3, "asked": 3})
    blues = [submit(orch, "3x1", "team: blue\npriority: 50") for _ in range(2)]
    wait_runs(orch, blues[0])
    orch.let_end(reds[0])
    wait_runs(orch, reds[1])
    orch.let_end(reds[1])
    wait_runs(orch, *blues)
    reds.append(submit(orch, "3x1", "team: red"))
    wait_runs(orch, reds[2])
    gave_way = [run for run in map(orch.recorded, blues) if run.attempts[0].outcome == "preempted"]
    (victim,) = gave_way
    stop = victim.attempts[0].stop
    assert stop is not None
    assert stop.for_run == reds[2]
    assert "takes back its guaranteed quota" in (stop.reason or "")
    assert victim.state == "queued"
    orch.let_end(reds[2])
    wait_runs(orch, victim.id)
    for run in blues:
        orch.let_end(run)
    held = sorted((begun(run), over(run)) for run in map(orch.recorded, reds))
    assert all(one[1] <= other[0] for one, other in pairwise(held))
