"""How long the scheduler takes to decide: CPU time of single calls of plan() and why(), and gangs a second through plan().

`python benchmarks/scheduling_speed.py [--waiting N] [--nodes N] [--kueue-share F]` prints two tables. Times are CPU time of this
process, garbage collection included, which is set as in the controller.

1. A full cluster of 1,250 nodes of eight GPUs (leaves of 16 nodes, pods of 16 leaves) and 10,000 waiting runs of 200 users in 20
   teams with shares, guaranteed parts and limits: gangs of 1 to 512 GPUs, in shapes and totals, with and without hints, time
   limits and history. Cold: the first decision after a start. Then: nothing has changed; a run of eight GPUs has ended; ten have
   ended; a run has come.
2. Kueue's test of topology-aware scheduling (kubernetes-sigs/kueue, test/performance/scheduler/configs/tas): 15,000 gangs of 2, 4
   and 8 pods on 640 nodes in 10 racks, a third each with the rack required, preferred and balanced, five cohorts of six queues,
   sent at the test's intervals and running for the test's times. A pod is a GPU here, a cohort a team that may hold 120, a queue
   one of its users, and "balanced" is left to the placement. Kueue's figure (37.4 a second) has a Kubernetes API server around
   it, and this has nothing: it is not like for like.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from dataclasses import replace
from datetime import datetime, timedelta

from orchestrator.control.runtime import spare_the_collector
from orchestrator.placement.search import place
from orchestrator.placement.tree import Free, Topology
from orchestrator.placement.values import Placement, Request
from orchestrator.policy import OTHERS, Policy, Quota, Team
from orchestrator.scheduling.decision import Plan
from orchestrator.scheduling.lifecycle import State
from orchestrator.scheduling.memory import Memory
from orchestrator.scheduling.plan import plan
from orchestrator.scheduling.run import Attempt
from orchestrator.scheduling.snapshot import Snapshot
from orchestrator.scheduling.why import why
from orchestrator.testing import START, a_run
from orchestrator.testing.hardware import cluster, node
from orchestrator.testing.queue import Queue

SHAPES = (1, 1, 1, 2, 4, 8, "1x8", "2x8", "4x8", "8x8", "16x8", "2x4", "4x2", 16, 64, "64x8")
HINTS = (None, None, None, "leaf", "leaf!", "node", "pod!", "leaf~30m")


def clos(nodes: int) -> Topology:
    return Topology(cluster(*(node(f"n{i}", 8, nics=8, leaf=f"l{i // 16}", pod=f"p{i // 256}") for i in range(nodes))))


def policy(users: int, teams: int) -> Policy:
    def team(number: int) -> Team:
        return Team(
            Quota(1.0 + number % 3, guaranteed=200, limit=2000 if number % 2 else None), {OTHERS: Quota(limit=1500)}
        )

    return Policy(teams={f"team{number}": team(number) for number in range(teams)})


def spec_of(rng: random.Random, number: int) -> dict[str, object]:
    near = rng.choice(HINTS)
    return {
        "workers": rng.choice(SHAPES),
        "near": near,
        "name": f"job{rng.randrange(50)}",
        "time_limit": rng.choice((None, 3600.0, 14400.0, 86400.0)),
        "priority": rng.choice((0, 0, 0, 0, 5, 10)),
        "team": f"team{rng.randrange(20)}",
    }


def full_cluster(topology: Topology, waiting: int, seed: int = 1) -> Snapshot:
    """All GPUs held by runs that started in the last two days."""
    rng = random.Random(seed)
    free, running, number = Free(topology), [], 0
    while free.room[0] > 100:
        number += 1
        fields = spec_of(rng, number)
        shape = rng.choice(("1x8", "2x8", "4x8", 1, 2, 4, "8x8"))
        run = a_run(number, State.RUNNING, user=f"u{rng.randrange(200)}", **{**fields, "workers": shape, "near": None})
        answer = place(Request(run.spec.workers, "cuda"), topology, free)
        if not isinstance(answer, Placement):
            continue
        for part in answer.nodes:
            free.take(part.node, part.gpus)
        begun = START - timedelta(seconds=rng.randrange(3000))
        running.append(replace(run, attempts=(Attempt(1, answer, begun, ranks_started_at=begun),)))
    runs = tuple(
        a_run(
            100_000 + i,
            at=START - timedelta(seconds=rng.randrange(80_000)),
            user=f"u{rng.randrange(200)}",
            **spec_of(rng, i),
        )
        for i in range(waiting)
    )
    history = {(f"u{u}", f"job{j}"): (100.0, 900.0, 4000.0) for u in range(0, 200, 2) for j in range(50)}
    return Snapshot(runs, free, tuple(running), history=history, policy=policy(200, 20))


def timed(snapshot: Snapshot, now: datetime, memory: Memory | None) -> tuple[Plan, float]:
    begin = time.process_time()
    answer = plan(snapshot, now, memory)
    return answer, (time.process_time() - begin) * 1000


def after(snapshot: Snapshot, decided: Plan, ends: int, now: datetime) -> Snapshot:
    """The plan carried out, and then so many runs of eight GPUs ended."""
    free = snapshot.free.copy()
    started = {start.run.id: start for start in decided.starts}
    running = list(snapshot.running)
    for start in decided.starts:
        for part in start.placement.nodes:
            free.take(part.node, part.gpus)
        attempt = Attempt(1, start.placement, now, ranks_started_at=now)
        running.append(replace(start.run, state=State.RUNNING, attempts=(attempt,)))
    over = [run for run in running if run.spec.workers.total == 8][:ends]
    for run in over:
        for part in run.attempts[-1].placement.nodes:
            free.give(part.node, part.gpus)
    gone = {run.id for run in over}
    return replace(
        snapshot,
        waiting=tuple(run for run in snapshot.waiting if run.id not in started),
        free=free,
        running=tuple(run for run in running if run.id not in gone),
    )


def cycles(nodes: int, waiting: int) -> None:
    topology = clos(nodes)
    snapshot = full_cluster(topology, waiting)
    spare_the_collector()
    print(f"\n| {nodes:,} nodes of 8, {len(snapshot.running):,} run, {waiting:,} wait | ms | starts |\n|---|---|---|")
    now, memory = START, None
    decided = Plan()
    for what, ends, comes in (
        ("cold", 0, 0),
        ("nothing has changed", 0, 0),
        ("a run of 8 GPUs has ended", 1, 0),
        ("nothing has changed", 0, 0),
        ("ten runs of 8 GPUs have ended", 10, 0),
        ("a run has come", 0, 1),
    ):
        if what != "cold":
            now += timedelta(seconds=1)
            snapshot = after(snapshot, decided, ends, now)
            new = tuple(a_run(500_000 + i, at=now, user="u1", workers="2x8", team="team1") for i in range(comes))
            snapshot = replace(snapshot, waiting=(*snapshot.waiting, *new))
        decided, spent = timed(snapshot, now, memory)
        memory = decided.memory
        print(f"| {what} | {spent:.0f} | {len(decided.starts)} |", flush=True)
    print("\n| `why` of the run at | ms | suggestions |\n|---|---|---|")
    for position in (1, 10, 100, 1_000, len(decided.waits) // 2, len(decided.waits)):
        run = decided.waits[min(position, len(decided.waits)) - 1].run.id
        begin = time.process_time()
        told = why(run, snapshot, now, memory)
        print(
            f"| place {position:,} | {(time.process_time() - begin) * 1000:.0f} | {len(told.suggestions)} |", flush=True
        )


def kueue(share: int) -> None:
    """One in `share` of the queues' workloads."""
    topology = Topology(cluster(*(node(f"n{i}", 8, nics=8, leaf=f"rack{i // 64}") for i in range(640))))
    teams = {f"cohort{i}": Team(Quota(limit=120)) for i in range(5)}
    queue = Queue(topology, Policy(teams=teams, preemption="off"))
    number = 0
    for cohort in range(5):
        for line in range(6):
            for size, counts, every, runs, priority in (
                (2, (120, 120, 110), 0.1, 0.2, 50),
                (4, (34, 33, 33), 0.5, 0.5, 100),
                (8, (17, 17, 16), 1.2, 1.0, 200),
            ):
                for near, count in zip(("leaf!", "leaf", "any"), counts, strict=True):
                    for i in range(0, count, share):
                        number += 1
                        run = a_run(
                            number, workers=size, near=near, priority=priority, team=f"cohort{cohort}", user=f"q{line}"
                        )
                        queue.submit(run, runs, i * every)
    clock = _Clocked(queue)
    queue.run_until(100_000)
    assert len(queue.ended) == number
    took = (max(queue.ended.values()) - START).total_seconds()
    print(
        f"\nKueue's topology test: {number:,} gangs in {clock.calls:,} decisions, {clock.spent:.1f} s of CPU time: "
        f"{number / clock.spent:,.0f} gangs a second (Kueue: 37.4, with a Kubernetes API server). "
        f"Simulated time {took:.0f} s; at most {clock.most:,} waited."
    )


class _Clocked:
    """Counts the CPU time that a queue spends deciding."""

    def __init__(self, queue: Queue) -> None:
        self.spent, self.calls, self.most = 0.0, 0, 0
        decide = queue.decide

        def timed_decide(snapshot: Snapshot, now: datetime, memory: Memory | None) -> Plan:
            begin = time.process_time()
            decided = decide(snapshot, now, memory)
            self.spent += time.process_time() - begin
            self.calls += 1
            self.most = max(self.most, len(snapshot.waiting))
            return decided

        queue.decide = timed_decide


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--waiting", type=int, default=10_000)
    parser.add_argument("--nodes", type=int, default=1250)
    parser.add_argument("--kueue-share", type=int, default=1, help="one in so many of Kueue's workloads; 0: none")
    arguments = parser.parse_args()
    if arguments.waiting:
        cycles(arguments.nodes, arguments.waiting)
    if arguments.kueue_share:
        kueue(arguments.kueue_share)
    return 0


if __name__ == "__main__":
    sys.exit(main())
