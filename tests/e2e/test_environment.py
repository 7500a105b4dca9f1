"""What a rank finds in its environment."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.ray

PRINTS_ENVIRONMENT = """
import json, os
print(json.dumps(dict(os.environ)))
"""

FAILS_AT_FIRST = """
import os, pathlib, sys
folder = pathlib.Path(os.environ["ORCH_CHECKPOINT_DIR"])
print(folder, os.environ["ORCH_ATTEMPT"])
state = folder / "state"
if not state.exists():
    state.write_text("step 100")
    sys.exit(3)
print(state.read_text())
"""


def test_a_rank_finds_what_torchrun_and_orch_promise_and_nothing_of_ray(home, job):
    run = home.submit(job(PRINTS_ENVIRONMENT, workers=2, env="{LR: 1e-3, ANSWER: no}", checkpoint="ckpt"), "--wait")
    first, second = (json.loads(home.logs(run, "--rank", rank)[0]) for rank in (0, 1))
    same = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "NODE_RANK": "0",
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "ORCH_RUN": str(run),
        "ORCH_ATTEMPT": "1",
        "ORCH_BACKEND": "gloo",
        "CUDA_VISIBLE_DEVICES": "",
        "LR": "1e-3",
        "ANSWER": "no",
    }
    for env, rank in ((first, "0"), (second, "1")):
        assert env.items() >= (same | {"RANK": rank, "LOCAL_RANK": rank}).items()
        assert 1024 < int(env["MASTER_PORT"]) < 65536
        assert env["ORCH_CHECKPOINT_DIR"].startswith(str(home.root / "storage"))
        assert [name for name in env if "RAY" in name.upper().split("_")] == []
        assert {name for name in env if name.startswith("ORCH_")} == {
            *("ORCH_RUN", "ORCH_ATTEMPT", "ORCH_BACKEND", "ORCH_CHECKPOINT_DIR", "ORCH_MARK"),
            *("ORCH_RUN_KEY", "ORCH_TENSORBOARD_DIR", "ORCH_PROGRESS"),
        }
    assert first["MASTER_PORT"] == second["MASTER_PORT"]


def test_the_checkpoint_folder_is_the_same_on_every_attempt(home, job):
    run = home.submit(job(FAILS_AT_FIRST, checkpoint="ckpt"), "--wait", code=1)
    home("retry", run)
    home.end(run)
    folder, number = home.logs(run, "--attempt", 1)[0].split()
    assert number == "1"
    assert home.logs(run) == [f"{folder} 2", "step 100"]
