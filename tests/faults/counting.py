"""A run of one rank on a private cluster that counts its steps into a checkpoint."""

from __future__ import annotations

from pathlib import Path

from orch_home import OrchHome, until

STEPS = """
import os, pathlib, sys, time
folder = pathlib.Path(os.environ["ORCH_CHECKPOINT_DIR"])
kept = folder / "step"
step = int(kept.read_text()) if kept.exists() else 0
print(f"attempt {os.environ['ORCH_ATTEMPT']} begins at {step}", flush=True)
while not pathlib.Path(sys.argv[1]).exists():
    step += 1
    (folder / "new").write_text(str(step))
    (folder / "new").rename(kept)
    time.sleep(0.1)
print("through", flush=True)
"""
"""Counts steps into its checkpoint until the file that it is given is there."""


def start(home: OrchHome, gate: Path, kept: Path | None = None) -> tuple[int, Path]:
    """A run that counts; its id and the file that it counts into (`kept`: its path where the storage is elsewhere)."""
    code = home.folder / "code"
    code.mkdir()
    (code / "train.py").write_text(STEPS)
    (code / "train.yaml").write_text(f"run: train.py {gate}\nworkers: 1\ncheckpoint: ckpt\n")
    run = home.submit(code / "train.yaml")
    kept = kept or home.root / "storage" / "checkpoints" / str(run) / "ckpt" / "step"
    until(lambda: kept.exists() and int(kept.read_text()) > 3, 60, "the run counts")
    return run, kept
