"""A year of a busy cluster as rows, the same for the same seed: what benchmarks/history_scale.py fills a database with.

RUNS runs over 365 days by 200 users in 12 teams, under 1,000 names of which some are used far more than others, on 512 nodes
of 8 GPUs (three in four H100, the others A100) under 16 leaves; gangs of 1 GPU to 16 nodes. Seven of ten succeed, two fail, one
is cancelled; infrastructure ends one attempt in ten, and the next one follows. 300 runs wait. Each run's throughput stands for 50
samples of ten seconds. Their series: history_series.py.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from orchestrator.history.ledger_days import periods_of, shares, spread
from orchestrator.testing import a_spec

DAYS, USERS, TEAMS, NAMES, NODES, LEAVES, WAITING = 365, 200, 12, 1000, 512, 16, 300
END = datetime(2026, 11, 1, tzinfo=UTC)
START = END - timedelta(days=DAYS)
SHAPES = ((1, 1), (1, 2), (1, 4), (1, 8), (2, 8), (4, 8), (16, 8))
OFTEN = (40, 15, 15, 20, 7, 2, 1)
KINDS = ("node_lost", "start_failed", "lease_expired")
PRICE = 2.5
Row = tuple[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Job:
    """What is submitted again and again."""

    name: str
    user: str
    team: str
    shape: tuple[int, int]
    spec: str
    speed: float


def jobs(chance: random.Random) -> list[Job]:
    found = []
    for number in range(NAMES):
        user = f"user{chance.randrange(USERS):03}"
        team = f"team{int(user[4:]) % TEAMS:02}"
        shape = chance.choices(SHAPES, OFTEN)[0]
        name = f"{chance.choice(('resnet', 'bert', 'gpt', 'vit', 'unet'))}-{number:04}"
        spec = a_spec(f"{shape[0]}x{shape[1]}", name=name, team=team, run=f"train.py --config {name}.yaml")
        found.append(Job(name, user, team, shape, json.dumps(spec.model_dump(mode="json")), chance.uniform(200, 2000)))
    return found


class Year:
    """Yields rows in the order of `runs.id`; the sums over days are kept meanwhile and come last."""

    def __init__(self, runs: int, seed: int = 1) -> None:
        self.count = runs
        self.chance = random.Random(seed)
        self.sums: dict[str, dict[tuple[Any, ...], list[float]]] = defaultdict(dict)

    def rows(self) -> Iterator[Row]:
        """(table, values in the order of the table's columns)."""
        chance = self.chance
        all_jobs = jobs(chance)
        weights = [1 / (rank + 5) for rank in range(NAMES)]
        for number in range(NODES):
            hardware = {"device": "cuda", "total": 8, "labels": {}}
            yield "nodes", (f"n{number:03}", "10.0.0.1", "up", START, END, json.dumps(hardware), "{}")
        drawn = chance.choices(all_jobs, weights, k=self.count)
        step = (END - START) / self.count
        for index, job in enumerate(drawn):
            yield from self._run(index + 1, job, START + step * index, waits=index >= self.count - WAITING)
        for table, sums in self.sums.items():
            for key, values in sums.items():
                yield (
                    table,
                    (*key, *values) if table != "node_days" else (*key, *values[:2], None, *[0] * 4, *values[2:]),
                )

    def _run(self, run: int, job: Job, submitted: datetime, waits: bool) -> Iterator[Row]:
        chance = self.chance
        state = "queued" if waits else chance.choices(("succeeded", "failed", "cancelled"), (70, 20, 10))[0]
        wait = timedelta(seconds=round(chance.expovariate(1 / 900), 3))
        attempts = [] if waits else list(self._attempts(run, job, submitted + wait, state))
        started = attempts[0][4] if attempts else None
        ended = attempts[-1][5] if attempts else None
        sha = f"{chance.getrandbits(64):016x}" * 4
        git = f"{hash_of(job.name, submitted):040x}"
        yield "runs", (
            run, job.name, job.user, job.team, state, None, 0, job.spec, sha, git, chance.random() < 0.3, "/home/work",
            None, submitted, submitted, started, ended, 2 + 2 * len(attempts),
        )  # fmt: skip
        if chance.random() < 0.3:
            yield "tags", (run, "sweep", f"s{run // 400}")
        if chance.random() < 0.5:
            yield "tags", (run, "purpose", chance.choice(("production", "trial")))
        yield from self._events(run, submitted, attempts, state)
        if attempts:
            yield from self._placed(run, job, submitted, wait, state, attempts)

    def _attempts(self, run: int, job: Job, at: datetime, state: str) -> Iterator[tuple[Any, ...]]:
        """(number, outcome, failure kind, nodes, start, end) for each."""
        chance, number = self.chance, 1
        while True:
            broke = chance.random() < 0.1
            first = chance.randrange(NODES - job.shape[0])
            end = at + timedelta(seconds=round(60 + chance.expovariate(1 / 3000), 3))
            nodes = range(first, first + job.shape[0])
            if not broke or number == 5:
                outcome = {"succeeded": "succeeded", "failed": "user_error", "cancelled": "cancelled"}[state]
                yield number, outcome, "exit" if outcome == "user_error" else None, nodes, at, end
                return
            yield number, "infra_error", chance.choice(KINDS), nodes, at, end
            number, at = number + 1, end + timedelta(seconds=60)

    def _events(self, run: int, submitted: datetime, attempts: list[Any], state: str) -> Iterator[Row]:
        def event(at: datetime, what: str, now: str, attempt: int | None) -> Row:
            return "events", (None, run, at, what, now, None, attempt, None)

        yield event(submitted, "submitted", "queued", None)
        for number, _, _, _, start, end in attempts:
            yield event(start, "placed", "starting", number)
            yield event(start, "started", "running", number)
            if number < len(attempts):
                yield event(end, "requeued", "queued", number)
            elif state == "cancelled":
                yield event(end, "cancel_asked", "stopping", number)
                yield event(end, "stopped", "cancelled", number)
            else:
                yield event(end, state, state, number)

    def _placed(
        self, run: int, job: Job, submitted: datetime, wait: timedelta, state: str, attempts: list[Any]
    ) -> Iterator[Row]:
        chance, each = self.chance, job.shape[1]
        whole: dict[str, int] = dict.fromkeys(gpu_time(0), 0)
        speed, progress = None, None
        for number, outcome, kind, nodes, start, end in attempts:
            leaves = {leaf_of(node) for node in nodes}
            level = "node" if len(nodes) == 1 else "leaf" if len(leaves) == 1 else "cluster"
            parts = [
                {"node": f"n{n:03}", "gpus": list(range(each)), "ranks": list(range(i * each, (i + 1) * each))}
                for i, n in enumerate(nodes)
            ]
            placement = {"device": "cuda", "level": level, "nodes": parts, "busbw_predicted": 200.0}
            at_fault = chance.choice(nodes) if outcome == "infra_error" else None
            failure = (
                {
                    "kind": kind,
                    "message": "it broke",
                    "rank": None,
                    "node": f"n{at_fault:03}" if at_fault is not None else None,
                }
                if kind
                else None
            )
            yield "attempts", (
                run, number, json.dumps(placement), start, start, end, outcome, json.dumps(failure) if failure else None,
                "{}", None, None, None,
            )  # fmt: skip
            seconds = (end - start).total_seconds() * each * len(nodes)
            kept, gone = (0.0, 0.9) if outcome == "infra_error" else (0.9, 0.0)
            total = gpu_time(seconds * 1000, starting=0.02, productive=kept, checkpoint=0.03, lost=gone, idle=0.05)
            for name, value in total.items():
                whole[name] += value
            speed = job.speed * (0.8 if len(leaves) > 1 else 1.0) * chance.gauss(1, 0.02)
            if (end - start).total_seconds() > 120:
                steps = int((end - start).total_seconds() * speed / 64)
                progress = (speed, 64 / speed, steps, steps * 64)
                yield "attempt_progress", (run, number, "auto", *progress_of(speed, steps, start, end))
            days = shares(start, end)
            for n, on_node in zip(nodes, spread(total, [1.0] * len(nodes)), strict=True):
                name, model = f"n{n:03}", model_of(n)
                yield "attempt_nodes", (
                    run, number, name, f"leaf{leaf_of(n):02}", model, each, start, end, outcome, kind, n == at_fault,
                )  # fmt: skip
                yield "gpu_time", (run, number, name, each, "cuda", model, PRICE, start, end, *on_node.values())
                for gpu in range(each):
                    yield "allocations", (run, number, name, gpu, start, end, None)
                for (day, _), piece in zip(days, spread(on_node, [share for _, share in days]), strict=True):
                    cost = piece["allocated_ms"] / 3.6e6 * PRICE
                    self._add("gpu_days", (day, job.user, job.team, job.name, model), [*piece.values(), cost])
                    self._add("node_days", (day, name), [0, 0, *piece.values()])
                self._add("node_days", (end.date(), name), [1, int(n == at_fault), *[0] * 6])
        _, outcome, kind, nodes, _, _ = attempts[-1]
        models = "+".join(sorted({model_of(n) for n in nodes}))
        wait_ms = wait // timedelta(milliseconds=1)
        figures = progress or (None, None, None, None)
        cost = whole["allocated_ms"] / 3.6e6 * PRICE
        yield "run_summaries", (
            run, submitted.date(), state, len(attempts), "cuda", models, each * len(nodes), len(nodes),
            len({leaf_of(n) for n in nodes}), "node" if len(nodes) == 1 else "leaf", outcome, kind, wait_ms,
            chance.randrange(30), *figures, cost, *whole.values(),
        )  # fmt: skip
        counted = [
            *whole.values(), 1, len(attempts), 1, wait_ms, int(progress is not None), figures[0] or 0, figures[3] or 0, cost,
        ]  # fmt: skip
        for period, first in periods_of(submitted.date()).items():
            self._add("run_sums", (period, first, job.user, job.team, state, models), counted)
            self._add("name_sums", (period, first, job.name, state), counted)

    def _add(self, table: str, key: tuple[Any, ...], values: list[float]) -> None:
        sums = self.sums[table].setdefault(key, [0] * len(values))
        for index, value in enumerate(values):
            sums[index] += value


def gpu_time(milliseconds: float, **shares_of: float) -> dict[str, int]:
    parts = {
        f"{part}_ms": round(milliseconds * shares_of.get(part, 0))
        for part in ("starting", "productive", "checkpoint", "lost", "idle")
    }
    return {"allocated_ms": sum(parts.values()), **parts}


def progress_of(speed: float, steps: int, start: datetime, end: datetime) -> tuple[Any, ...]:
    """The columns of attempt_progress from `steps` on."""
    step = 64 / speed
    busy = int((end - start).total_seconds() * 900)
    return (
        steps, steps * 64, speed, step, step, step * 1.3, step * 0.97, step * 1.03, 0, 0.02, start, end, busy, 0, 0, 0,
        3, steps, end, False, None, None, end,
    )  # fmt: skip


def leaf_of(node: int) -> int:
    return node * LEAVES // NODES


def model_of(node: int) -> str:
    return "NVIDIA H100 80GB HBM3" if node < NODES * 3 // 4 else "NVIDIA A100-SXM4-80GB"


def hash_of(name: str, at: datetime) -> int:
    """A commit that a name keeps for a week."""
    return random.Random(f"{name} {at.isocalendar()[:2]}").getrandbits(160)
