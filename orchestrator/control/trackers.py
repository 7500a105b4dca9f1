"""What experiment trackers need to take a run's attempts for one run: an id that stays the same over all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from orchestrator.scheduling.run import Run


def run_key(run: Run) -> str:
    """The run's name in other systems: the same on every attempt, and no other run's, of this cluster or another."""
    # A cluster that is begun anew counts from 1 again; the submission's time tells its runs from those before.
    told = f"{run.user}\0{run.name}\0{run.id}\0{run.submitted_at.isoformat()}"
    return f"orch-{run.id}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def tracker_env(rank: int, env: Mapping[str, str]) -> dict[str, str]:
    """What is added to a rank's environment; nothing that the job or the node sets is changed.

    Weights & Biases resumes a run by WANDB_RUN_ID with WANDB_RESUME=allow (docs.wandb.ai/guides/runs/resuming). Only rank 0
    gets it: of scripts that begin a run of W&B in every rank, all ranks would write into one.
    """
    key = env.get("ORCH_RUN_KEY")
    if rank != 0 or key is None or "WANDB_RUN_ID" in env:
        return {}
    return {"WANDB_RUN_ID": key} | ({} if "WANDB_RESUME" in env else {"WANDB_RESUME": "allow"})
