"""Ray on the hosts of a lab as systemd keeps it, started again and again; and a script that counts steps without torch."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from subprocess import DEVNULL
from typing import Literal

from hosts import Host, Lab, Running, wait_until
from orchlab import Orch
from raycluster import RayCluster

COUNTS = """
import os, pathlib, time
run, attempt, rank = (os.environ[name] for name in ("ORCH_RUN", "ORCH_ATTEMPT", "RANK"))
shared, checkpoints = pathlib.Path(os.environ["SHARED"]), pathlib.Path(os.environ["ORCH_CHECKPOINT_DIR"])
kept, new = checkpoints / f"step.{rank}", checkpoints / f"step.{rank}.{attempt}"
step, most = int(kept.read_text()) if kept.exists() else 0, int(os.environ.get("STEPS", 1_000_000))
record = open(shared / "steps" / f"{run}.{attempt}.{rank}", "a", buffering=1)
print("from", step, flush=True)
while step < most and not (shared / f"over-{run}").exists():
    time.sleep(0.1)
    step += 1
    record.write(f"{step} {time.monotonic()}\\n")
    new.write_text(str(step))
    new.rename(kept)
print("done", flush=True)
"""
"""Each rank counts for itself, ten steps a second, with a checkpoint at each: to STEPS, or until the run is let end."""


class GuardedCluster(RayCluster):
    """`ray start --block` in an endless loop on each host; the head gives no CPU to work, and runs on no other cluster's state."""

    def __init__(
        self, lab: Lab, *, num_cpus: int, storage: Literal["memory", "rocksdb"], env: Mapping[str, str] | None = None
    ) -> None:
        """With `rocksdb` the head's state is on its own disk."""
        self.storage = storage
        self.guards: dict[str, Running] = {}
        super().__init__(lab, num_cpus=num_cpus, env=env)

    def guard(self, host: Host) -> None:
        """Starts the loop, on a host that was restarted too."""
        env = dict(self.env)
        if host is self.head and self.storage == "rocksdb":
            env |= {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(host.home / "ray-head")}
        start = shlex.join([*self._argv(host), "--block"])
        loop = f"while :; do {start} >> /tmp/ray-start.log 2>&1; sleep 1; done"
        self.guards[host.name] = host.popen(["bash", "-c", loop], env=env, stdout=DEVNULL, stderr=DEVNULL)

    def join(self, host: Host) -> None:
        self.guard(host)

    def _start(self) -> None:
        for host in self.lab.hosts:
            self.guard(host)
        names = {host.name for host in self.lab.hosts}
        wait_until(lambda: self._up() == names, 180, f"Ray runs on {names}")

    def _up(self) -> set[str]:
        try:
            return self.alive()
        except Exception:  # the head does not answer yet
            return set()

    def _argv(self, host: Host) -> list[str]:
        cpus = 0 if host is self.head else self.num_cpus
        return [f"--num-cpus={cpus}" if word.startswith("--num-cpus=") else word for word in super()._argv(host)]


def two_writers(steps: dict[int, dict[int, list[tuple[int, float]]]]) -> list[str]:
    """Where attempts of a run of COUNTS overlapped in time, or a rank did not go on from its last checkpoint."""
    wrong = []
    numbers = sorted(steps)
    for before, after in pairwise(numbers):
        last = max((taken[-1][1] for taken in steps[before].values() if taken), default=float("-inf"))
        first = min((taken[0][1] for taken in steps[after].values() if taken), default=float("inf"))
        if first < last:
            wrong.append(f"attempt {before} wrote {last - first:.2f} s after {after} had begun")
    for rank in {rank for taken in steps.values() for rank in taken}:
        at = 0
        for number in numbers:
            for step, _ in steps[number].get(rank, ()):
                # A step may be on record without its checkpoint: then it is taken again.
                if step not in (at, at + 1):
                    wrong.append(f"rank {rank} took step {step} after {at} in attempt {number}")
                at = step
    return wrong


def wait_back(orch: Orch, timeout: float = 90) -> None:
    """Until the controller answers and has heard of every host."""
    names = {host.name for host in orch.lab.hosts}

    def heard() -> bool:
        done = orch.ask("nodes", "--json")
        return done.returncode == 0 and names <= {n["node"] for n in json.loads(done.stdout) if n["state"] == "up"}

    wait_until(heard, timeout, f"the controller is back and has heard of {names}", every=0.5)


def counting(orch: Orch, workers: str, ranks: int, steps: int = 5) -> int:
    """A run of COUNTS all of whose ranks have taken that many steps."""
    shared: Path = orch.lab.shared
    (shared / "steps").mkdir(exist_ok=True)
    run = orch.submit(COUNTS, workers, job=f"checkpoint: ckpt\nenv: {{SHARED: {shared}}}")
    orch.wait_trained(run, 1, ranks, steps)
    return run
