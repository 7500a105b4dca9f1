"""What the launcher is asked to start for a part: each rank's interpreter, command, environment, files and CPUs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import psutil

from orchestrator.control.backend import RankStart, StartPart
from orchestrator.control.node_files import AttemptFolder
from orchestrator.control.rank_env import interpreter_env, rank_env
from orchestrator.progress.file import VARIABLE as PROGRESS_VARIABLE


class LaunchRequests:
    """How ranks are started on one node of a cluster."""

    def __init__(self, cluster: str, node: str, base: Mapping[str, str], visible: tuple[str, ...]) -> None:
        """`base` is the node's environment as ranks get it, `visible` are CUDA's names of its GPUs."""
        self._cluster, self._node, self._base, self._visible = cluster, node, base, visible
        # Cores, not hyperthreads: that is what MKL and OpenBLAS count, and what a rank gains by.
        self._cores = min(len(os.sched_getaffinity(0)), psutil.cpu_count(logical=False) or 1)

    def of(self, part: StartPart, folder: AttemptFolder, cpus: tuple[tuple[int, ...], ...]) -> list[dict[str, Any]]:
        """A request for each rank; `cpus` has those of each local rank, or is empty."""
        python, base = interpreter_env(self._base, part.python)
        return [
            {
                "rank": rank.rank,
                "python": python,
                "argv": list(part.argv),
                "cwd": str(folder.code),
                "log": str(folder.log(rank.rank).path),
                "env": self._env(base, part, rank, folder),
                "cpus": list(cpus[rank.local_rank]) if cpus else None,
                "cudnn": part.cudnn,
            }
            for rank in part.ranks
        ]

    def _env(self, base: Mapping[str, str], part: StartPart, rank: RankStart, folder: AttemptFolder) -> dict[str, str]:
        env = rank_env(
            base,
            part,
            rank,
            visible=self._visible,
            cores=self._cores,
            # Of this node alone: two nodes may share one machine, and the part that ends first must not take the other's ranks.
            mark=f"{self._cluster}.{part.key}.{self._node}",
            nccl_log=folder.nccl if part.nccl_log == "file" else None,
            recorder=folder.recorder if part.attempt > 0 else None,
        )
        # What is no attempt has no progress, and is not slowed by being watched.
        return env | {PROGRESS_VARIABLE: str(folder.progress(rank.rank))} if part.attempt > 0 else env
