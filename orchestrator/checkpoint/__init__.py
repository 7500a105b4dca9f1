"""Checkpoints for training scripts: saved so that a crash at any moment leaves a whole one, and found again.

    from orchestrator import checkpoint

    with checkpoint.Saver(model=model, optimizer=optimizer, every=100) as ckpt:
        for step in ckpt.steps(10_000):
            train_one_step()

goes on after the newest whole checkpoint, saves after every hundredth step and after the last, and on SIGTERM once more, after
the same step on all ranks. Under orch the folder is the job's `checkpoint:`; anywhere else it is `dir=`.

Runs in the script's interpreter, from Python 3.9 on: the standard library alone, and torch once something is saved or read.
docs/checkpoints.md is the guide.
"""

from __future__ import annotations

from orchestrator.checkpoint.folder import Checkpoint, CheckpointError, SupersededError
from orchestrator.checkpoint.reading import Loaded, latest, load
from orchestrator.checkpoint.sampler import Sampler
from orchestrator.checkpoint.saver import Saver, Stopped
from orchestrator.checkpoint.writing import save

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Loaded",
    "Sampler",
    "Saver",
    "Stopped",
    "SupersededError",
    "latest",
    "load",
    "save",
]
