"""How large and how slow a report is: a made-up run of a week on 64 ranks, and a cluster of 40 nodes over 30 days.

    python benchmarks/report_size.py [FOLDER]

Writes into a fresh SQLite file what a controller would have left there after ageing (rows of ten minutes and of an hour),
then reads and draws both pages, and prints bytes and seconds. With FOLDER the pages stay there to be looked at.
"""

from __future__ import annotations

import math
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from orchestrator.health.failure import Failure
from orchestrator.history.measurements import Measured
from orchestrator.history.store import Store
from orchestrator.pictures.cluster_page import cluster_page
from orchestrator.pictures.runs_page import runs_page
from orchestrator.placement.values import NodePlacement, Placement
from orchestrator.progress.values import GangSample, GpuSample, Progress, RankSample
from orchestrator.scheduling.lifecycle import Event, Outcome
from orchestrator.scheduling.run import NodeRecord
from orchestrator.testing import a_new_run

START = datetime(2026, 11, 1, 8, tzinfo=UTC)
RANKS, NODES = 64, 8
DAYS = 7.0
SLOW_RANK = 21


def a_placement(nodes: list[str]) -> Placement:
    parts = tuple(NodePlacement(node, tuple(range(8)), tuple(range(i * 8, i * 8 + 8))) for i, node in enumerate(nodes))
    return Placement("cuda", "leaf", parts, 181.0, "gpu-03 <-> gpu-07: 400 Gb/s x 8")


def at(hours: float) -> datetime:
    return START + timedelta(hours=hours)


def stretches(first: float, last: float, minutes: float) -> list[float]:
    return [first + i * minutes / 60 for i in range(int((last - first) * 60 / minutes))]


def measure(
    store: Store, run: int, attempt: int, nodes: list[str], first: float, last: float, dice: random.Random
) -> None:
    """What one attempt leaves between two hours: a straggler from the middle on, a dip, saves."""
    gang, ranks, gpus = [], [], []
    for hour in stretches(first, last, 10):
        slow = 1.32 if 70 < hour < 104 else 1.0
        step = 0.41 * slow * dice.uniform(0.99, 1.03)
        steps = int(600 / step)
        loss = {"loss": 2 + 6 * math.exp(-hour / 30) + dice.uniform(0, 0.05)}
        gang.append(
            GangSample(
                at(hour), 600, 600_000, steps, steps * 2048, step, step * 0.99, step * 1.3, step * 0.6, step * 0.9, loss
            )
        )
    for hour in stretches(first, last, 60):
        for rank in range(RANKS):
            slow = 1.5 if rank == SLOW_RANK and 70 < hour < 104 else 1.0
            own = 0.26 * slow * dice.uniform(0.97, 1.04)
            ranks.append(RankSample(rank, at(hour), 3600, 3_600_000, 8000, 8000 * 32, 0.41, own, 4000))
            heat = 74 if slow == 1 else 88
            why = () if slow == 1 else ("hw_thermal",)
            use = dice.uniform(88, 97) / slow
            gpus.append(
                GpuSample(
                    nodes[rank // 8],
                    rank % 8,
                    at(hour),
                    3600,
                    360,
                    use,
                    61_000,
                    640 / slow,
                    heat,
                    1900,
                    0.4 * len(why),
                    why,
                )
            )
    busy = int((last - first) * 3.5e6)
    seen = Progress(
        "auto",
        int(busy / 410),
        int(busy / 410) * 2048,
        4980.0,
        0.41,
        0.405,
        0.55,
        0.25,
        0.29,
        SLOW_RANK,
        0.03,
        at(first),
        at(last),
    )
    seen = replace(
        seen,
        busy_ms=busy,
        save_ms=300_000,
        unsaved_ms=1_400_000,
        saves=30,
        saved_steps=int(busy / 410) - 3000,
        resumed=attempt > 1,
    )
    store.measure([Measured(run, attempt, seen, tuple(gang), tuple(ranks), tuple(gpus))], at(last))


def a_week(store: Store, nodes: list[str]) -> int:
    """Three attempts: a node lost, a preemption, then to the end."""
    dice = random.Random(7)
    run, _ = store.submit(a_new_run(name="llama-8b", workers=RANKS, run="train.py --config 8b.toml", team="nlp"), START)
    ends = ((40.0, Outcome.INFRA_ERROR), (96.0, Outcome.PREEMPTED), (DAYS * 24, Outcome.SUCCEEDED))
    began = 0.4
    for number, (end, outcome) in enumerate(ends, 1):
        store.place(run.id, a_placement(nodes), at(began))
        store.record(run.id, Event.STARTED, at(began + 0.01))
        measure(store, run.id, number, nodes, began + 0.05, end, dice)
        failure = Failure("node_lost", "gpu-05 did not answer for 30 s", None, "gpu-05") if number == 1 else None
        last = number == len(ends)
        store.finish(run.id, Event.SUCCEEDED if last else Event.REQUEUED, outcome, at(end), failure=failure)
        began = end + (0.2 if number == 1 else 5.5)
    return run.id


def a_month(store: Store, nodes: list[str]) -> None:
    """Short runs of several people, sizes and fates, one after another on each node."""
    dice = random.Random(3)
    people = [("ana", "vision"), ("ben", "vision"), ("chen", "nlp"), ("dara", "nlp"), ("eli", "speech"), ("fay", None)]
    for node_of, node in enumerate(nodes):
        hour = dice.uniform(0, 30)
        while hour < 26 * 24:
            user, team = dice.choice(people)
            gpus = dice.choice((1, 1, 2, 4, 8))
            took, wait = dice.expovariate(1 / 9), dice.expovariate(1 / (0.05 * gpus * gpus))
            name = dice.choice(("resnet50", "vit-b16", "whisper-ft"))
            run, _ = store.submit(
                a_new_run(user=user, name=name, workers=gpus, **({"team": team} if team else {})),
                at(max(0.0, hour - wait)),
            )
            place = Placement("cuda", "node", (NodePlacement(node, tuple(range(gpus)), tuple(range(gpus))),))
            store.place(run.id, place, at(hour))
            store.record(run.id, Event.STARTED, at(hour + 0.01))
            rate = 400 * gpus * (1 - 0.03 * math.log2(gpus)) * dice.uniform(0.95, 1.05)
            busy = int(took * 3.3e6)
            failed = dice.random() < 0.13
            seen = Progress(
                "auto",
                1000,
                64_000,
                rate,
                0.1,
                0.1,
                0.12,
                first_step_at=at(hour + 0.03),
                last_step_at=at(hour + took),
                busy_ms=busy,
            )
            store.measure(
                [Measured(run.id, 1, replace(seen, unsaved_ms=busy // 6, save_ms=busy // 50))], at(hour + took)
            )
            outcome, event = (Outcome.USER_ERROR, Event.FAILED) if failed else (Outcome.SUCCEEDED, Event.SUCCEEDED)
            failure = Failure("exit", "exit code 1", 0, node) if failed else None
            store.finish(run.id, event, outcome, at(hour + took), failure=failure, exit_codes={0: int(failed)})
            hour += took + dice.expovariate(1 / (2 + node_of % 5))


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
    folder.mkdir(exist_ok=True)
    database = Path(tempfile.mkdtemp()) / "orch.db"
    names = [f"gpu-{i:02d}" for i in range(1, 41)]
    with Store.open(f"sqlite:///{database}") as store:
        store.claim_epoch("report_size", START)
        shape = {
            "device": "cuda",
            "total": 8,
            "gpus": [{"index": i, "model": "NVIDIA H100 80GB HBM3"} for i in range(8)],
            "islands": [list(range(8))],
        }
        for name in names:
            store.upsert_nodes([NodeRecord(name, "10.0.0.1", "up", START, START, shape)])
        with store.group():
            run = a_week(store, names[:NODES])
            a_month(store, names[NODES:])
        month = START + timedelta(days=30)
        shown(
            folder,
            "run of a week on 64 ranks",
            lambda: store.run_pictured(run, at(DAYS * 24 + 1)),
            lambda data: runs_page([data]),
        )
        shown(folder, "cluster of 40 nodes, 30 days", lambda: store.cluster_pictured(START, month), cluster_page)


def shown(folder: Path, what: str, read: Callable[[], Any], draw: Callable[[Any], str]) -> None:
    begun = time.perf_counter()
    data = read()
    then = time.perf_counter()
    page = draw(data)
    done = time.perf_counter()
    (folder / f"{what.split()[0]}.html").write_text(page)
    print(f"{what}: {len(page.encode()) / 1000:.0f} kB, read in {then - begun:.2f} s, drawn in {done - then:.2f} s")


if __name__ == "__main__":
    main()
