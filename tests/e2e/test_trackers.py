"""TensorBoard over two attempts of one run: one curve, without the steps that were done twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from orch_home import OrchHome, until

pytestmark = pytest.mark.ray

SCRIPT = """
import json, os, pathlib
from torch.utils.tensorboard import SummaryWriter

checkpoint = pathlib.Path(os.environ["ORCH_CHECKPOINT_DIR"]) / "step"
begin = int(checkpoint.read_text()) if checkpoint.exists() else 0
with SummaryWriter(os.environ["ORCH_TENSORBOARD_DIR"], purge_step=begin) as writer:
    for step in range(begin, 10):
        # The value tells which attempt wrote it.
        writer.add_scalar("attempt", int(os.environ["ORCH_ATTEMPT"]), step)
        if step == 3:
            checkpoint.write_text("4")
        if step == 6 and os.environ["ORCH_ATTEMPT"] == "1":
            writer.flush()
            raise SystemExit("after the step that no checkpoint holds")
print(json.dumps({name: os.environ.get(name) for name in ("ORCH_TENSORBOARD_DIR", "ORCH_RUN_KEY", "WANDB_RUN_ID", "WANDB_RESUME")}))
"""


def test_two_attempts_are_one_curve(home: OrchHome, job: Any) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = home.submit(job(SCRIPT, name="curve", checkpoint="ckpt"), "--wait", code=1)
    home("retry", run)
    until(lambda: home.show(run)["state"] == "succeeded", 60, "the second attempt succeeds")
    told = json.loads(home.logs(run, "--rank", 0)[-1])
    assert told["WANDB_RUN_ID"] == told["ORCH_RUN_KEY"] == Path(told["ORCH_TENSORBOARD_DIR"]).name
    assert told["WANDB_RESUME"] == "allow"
    events = accumulator.EventAccumulator(told["ORCH_TENSORBOARD_DIR"])
    events.Reload()
    curve = [(one.step, int(one.value)) for one in events.Scalars("attempt")]
    assert curve == [(step, 1 if step < 4 else 2) for step in range(10)]
