"""Gangs a second through the controller: its scheduler, its database and its conversation with the agents, without machines.

Kueue's test of topology-aware scheduling (kubernetes-sigs/kueue, test/performance/scheduler/configs/tas): 15,000 gangs of 2, 4
and 8 pods on 640 nodes in 10 racks, a third each with the rack required, preferred and free, of five teams that may hold 120 GPUs
each, six users in each. A pod is a GPU here. All gangs are submitted at once. A fake cluster in the same process starts the ranks
of a gang as soon as it is told to, and ends them 0.2, 0.5 or 1 s later, as Kueue's test does. All else is the real controller: each
gang is a submission, an attempt with its allocations, a start and an end in SQLite on disk, and a conversation with the agents of
its nodes. The clock stops when the last gang has ended; the teams' limits alone make that 37 s at the least.

Kueue's figure (37.4 a second) has a Kubernetes API server around it and no agents: it is not like for like.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

from harness import record, table

from orchestrator.control.backend import PartStatus, StartPart
from orchestrator.control.controller import Controller
from orchestrator.control.runtime import Settings, spare_the_collector
from orchestrator.history.store import Store
from orchestrator.policy import Policy, Quota, Team
from orchestrator.scheduling.run import NewRun
from orchestrator.spec import JobSpec
from orchestrator.testing.cluster import FakeAgent, FakeCluster
from orchestrator.testing.hardware import cluster, node

NODES, RACKS = 640, 10
SIZES = ((2, (120, 120, 110), 0.2, 50), (4, (34, 33, 33), 0.5, 100), (8, (17, 17, 16), 1.0, 200))
"""GPUs; of each queue how many with the rack required, preferred, and free; seconds that they run; priority."""


class BriefAgent(FakeAgent):
    """Ranks that end by themselves after a time."""

    async def start(self, epoch: int, part: StartPart) -> PartStatus:
        status = await super().start(epoch, part)
        lasts = float(part.env["LASTS"])
        asyncio.get_running_loop().call_later(lasts, self._over, part.run, part.attempt)
        return status

    def _over(self, run: int, attempt: int) -> None:
        if (run, attempt) in self.parts:
            self.end(run, attempt)


def gangs(share: int) -> list[NewRun]:
    """One in `share` of the test's, in the order in which it sends them: small ones first within a queue."""
    found = []
    for cohort in range(5):
        for line in range(6):
            for size, counts, lasts, priority in SIZES:
                for near, count in zip(("leaf!", "leaf", None), counts, strict=True):
                    spec = JobSpec.model_validate(
                        {
                            "run": "train.py",
                            "workers": size,
                            "near": near,
                            "priority": priority,
                            "team": f"cohort{cohort}",
                            "env": {"LASTS": str(lasts)},
                        }
                    )
                    found += [NewRun(spec, f"q{line}", None, "/w")] * (count // share)
    return found


async def measure(home: Path, wanted: list[NewRun]) -> tuple[float, float, float]:
    """Seconds until all are submitted, until the last has ended, and of processor time in all."""
    fake = FakeCluster()
    for number in range(NODES):
        fake.add(f"n{number}", 8)
        fake.agents[f"n{number}"] = BriefAgent()
    declared = cluster(*(node(f"n{i}", 8, nics=8, leaf=f"rack{i // (NODES // RACKS)}") for i in range(NODES)))
    teams = {f"cohort{i}": Team(Quota(limit=120)) for i in range(5)}
    store = Store.open(f"sqlite:///{home}/orch.db")
    settings = Settings(home, home / "storage", policy=Policy(teams=teams, preemption="off"))
    controller = Controller(store, fake, settings, declared)
    await controller.start()
    spare_the_collector()
    while not all(known.up for known in controller.roster.nodes.values()):
        await asyncio.sleep(0.05)
    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(controller.submit(new, {}) for new in wanted))
    submitted = time.perf_counter() - began
    while left := len(controller.runtime.book.runs):
        print(f"\r{time.perf_counter() - began:5.0f} s  {left:6,} left ", end="", flush=True)
        await asyncio.sleep(0.5)
    took, used = time.perf_counter() - began, time.process_time() - cpu
    print()
    await controller.close()
    store.close()
    return submitted, took, used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=int, default=1, help="one in so many of the test's gangs")
    parser.add_argument("--record", action="store_true", help="write the results to docs/performance.md")
    given = parser.parse_args()
    wanted = gangs(given.share)
    with tempfile.TemporaryDirectory(prefix="ob-", dir="/tmp") as folder:
        submitted, took, used = asyncio.run(measure(Path(folder), wanted))
    rows = [
        [
            f"{len(wanted):,}",
            f"{submitted:.1f}",
            f"{took:.1f}",
            f"{len(wanted) / took:.0f}",
            f"{used / len(wanted) * 1e3:.2f}",
        ]
    ]
    titles = ["gangs", "submitted after, s", "ended after, s", "gangs a second", "processor time of each, ms"]
    said = (
        "`benchmarks/controller_gangs.py`, Kueue's test through the controller with a fake backend; wanted: 200 a second. "
        "Kueue's 37.4 has a Kubernetes API server around it and no agents: not like for like."
    )
    record("Gangs through the controller", f"{said}\n\n{table(titles, rows)}", keep=given.record)


if __name__ == "__main__":
    main()
