"""A run that goes on from a checkpoint of orchestrator.checkpoint: damaged, told to stop, and what the ledger makes of it."""

from __future__ import annotations

import pytest
from rows import fault

pytestmark = [pytest.mark.ray, pytest.mark.torch]

TRAINS = """
import os, pathlib, signal, sys, time, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from orchestrator import checkpoint
dist.init_process_group("gloo")
model = DistributedDataParallel(torch.nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
rank, again = dist.get_rank(), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
with checkpoint.Saver(model=model, optimizer=optimizer, every=None if sys.argv[1:] else 10) as saver:
    if rank == 0:
        print("from", saver.resume(), "again", again, "of", os.environ["TORCHELASTIC_MAX_RESTARTS"], flush=True)
    for step in saver.steps(10**9 if sys.argv[1:] and not again else 60):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        time.sleep(0.02)
        if step == 12 and rank == 0:
            print("begun", flush=True)
        if not sys.argv[1:] and step == 54 and not again:
            dist.barrier()
            if rank == 0:
                newest = checkpoint.latest()
                os.truncate(newest.path / "state.pt", 100)
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
"""


@fault(36)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning_and_what_came_after_the_one_before_is_lost(
    home, job, measured
):
    run = home.submit(job(TRAINS, workers=2, checkpoint="ckpt", retry="{infra: 10, user: 1}"))
    home.reaches(run, "succeeded", timeout=150)
    assert "from 0 again 0 of 11" in home.logs(run, "--rank", 0, "--attempt", 1)
    said = home.logs(run, "--rank", 0, "--attempt", 2)
    assert "from 40 again 1 of 11" in said
    (warning,) = (line for line in said if "passed over as damaged" in line)
    assert "step-50-attempt-1: state.pt has 100 of" in warning
    assert "step-40-attempt-1 is used instead" in warning
    measured.lost(steps=55 - 40)
    found = home.show(run)
    # Steps 51 to 55, as far as orch can know: that the newest one is damaged nobody has told it.
    assert 0 < found["gpu_seconds"]["lost"] < found["gpu_seconds"]["productive"]


def test_a_run_that_is_cancelled_saves_the_step_it_is_in_and_goes_on_from_it_when_it_is_tried_again(home, job):
    run = home.submit(job(TRAINS, arguments="endless", workers=2, checkpoint="ckpt"))
    home.prints(run, "begun")
    home("cancel", run)
    home.reaches(run, "cancelled")
    first = home.show(run)["attempts"][0]
    assert first["exit_codes"] == {"0": 143, "1": 143}
    home("retry", run)
    home.reaches(run, "succeeded")
    (line,) = (line for line in home.logs(run, "--rank", 0, "--attempt", 2) if line.startswith("from"))
    step = int(line.split()[1])
    assert step >= 13
