"""Many short runs over several hosts while parts of the cluster are killed, stopped and cut off, all along.

What happens when is drawn from one seed. The runs count steps into files (lab/guarded.py), so that a step that was lost, taken
twice or taken by two attempts at once is found.
"""

from __future__ import annotations

import heapq
import os
import random
import signal
import sqlite3
import statistics
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import psutil
from guarded import COUNTS
from hosts import Host
from orchlab import Orch

BATCH = 5
"""Runs of one submission: an array."""
OPEN = 25
"""So many runs are waiting or living at a time."""
SHAPES = ("1", "1", "2", "2x1", "3", "2x2", "3x1", "4")
FIELDS = ("rss_mb", "fds", "threads")
WARM_S = 60.0


@dataclass(frozen=True)
class Sample:
    """The controller's process at a moment."""

    at: float
    pid: int
    rss_mb: float
    fds: int
    threads: int


@dataclass
class Soak:
    """`run()` submits and breaks until every run has ended; what it saw is in the other attributes."""

    orch: Orch
    runs: int
    seed: int
    pause_s: tuple[float, float]
    """Between two faults, the shortest and the longest."""
    limit_s: float
    faults: Counter[str] = field(default_factory=Counter)
    log: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    """What commands did that they must not."""
    slowest_s: float = 0.0
    steps_of: dict[int, int] = field(default_factory=dict)
    """By acknowledged run, how many steps it is to take."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._began = time.monotonic()
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        """What mends a fault, by when."""
        self._numbers = count()
        self._submitted = 0
        self._batch: tuple[str, int] | None = None
        self.took_s = 0.0

    # -- the loop ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        (self.orch.lab.shared / "steps").mkdir(exist_ok=True)
        next_fault, next_sample = self._in(3.0), 0.0
        while not self._over():
            now = time.monotonic() - self._began
            assert not self.complaints, self.told()
            assert now < self.limit_s, f"not over within {self.limit_s:.0f} s: {self._states()}\n" + self.told()
            while self._later and self._later[0][0] <= now:
                heapq.heappop(self._later)[2]()
            if self._submitted < self.runs and sum(self._open()) < OPEN:
                self._submit()
            if now >= next_fault:
                self._break()
                next_fault = self._in(self._random.uniform(*self.pause_s))
            if now >= next_sample:
                self._sample()
                next_sample = now + 2.0
                self._ask("ps", "--json")
            time.sleep(0.2)
        for _, _, mend in sorted(self._later):
            mend()
        self.took_s = time.monotonic() - self._began

    def told(self) -> str:
        return "\n".join([f"seed {self.seed}", *self.log, *self.complaints])

    def _in(self, seconds: float) -> float:
        return time.monotonic() - self._began + seconds

    def _over(self) -> bool:
        return self._submitted >= self.runs and not any(self._open())

    def _open(self) -> list[int]:
        return [n for state, n in self._states().items() if state not in ("succeeded", "failed", "cancelled")]

    def _states(self) -> dict[str, int]:
        path = self.orch.database.removeprefix("sqlite:///")
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as database:
            return dict(database.execute("SELECT state, count(*) FROM runs GROUP BY state").fetchall())

    # -- what users do -------------------------------------------------------------------------------------------

    def _ask(self, *argv: object) -> tuple[int, str]:
        began = time.monotonic()
        done = self.orch.ask(*argv, timeout=60)
        took = time.monotonic() - began
        self.slowest_s = max(self.slowest_s, took)
        said = f"orch {' '.join(map(str, argv))}"
        if "Traceback" in done.stderr or done.returncode not in (0, 6):
            self.complaints.append(f"{said} ended with {done.returncode}: {done.stderr[-500:]}")
        return done.returncode, done.stdout

    def _submit(self) -> None:
        """A batch; one that was not acknowledged is sent again with its key, and is there once."""
        if self._batch is None:
            self._batch = self._random.choice(SHAPES), self._random.randint(30, 150)
            workers, steps = self._batch
            env = f"env: {{SHARED: {self.orch.lab.shared}, STEPS: '{steps}', NUMBER: '{{n}}'}}"
            job = f"name: soak\ncheckpoint: ckpt\nretry: {{infra: 100, user: 100}}\narray: {{n: 0..{BATCH - 1}}}\n{env}"
            self.orch.write_job(COUNTS, workers, job)
        code, out = self._ask("submit", "work/job.yaml", "--key", f"soak-{self._submitted}", "-o", "name")
        ids = [int(word) for word in out.split()]
        if code == 0 and len(ids) == BATCH:
            self.orch.acknowledged += ids
            self.steps_of |= dict.fromkeys(ids, self._batch[1])
            self._submitted += BATCH
            self._batch = None

    # -- faults --------------------------------------------------------------------------------------------------

    def _break(self) -> None:
        faults: list[Callable[[], str | None]] = [
            *[lambda: self._signal_rank(signal.SIGKILL)] * 3,
            *[lambda: self._kill("ray::AgentActor")] * 2,
            *[lambda: self._kill("control/launcher ")] * 2,
            lambda: self._kill("raylet/raylet "),
            lambda: self._cut(self._random.uniform(1, 4)),
            lambda: self._cut(self._random.uniform(12, 25)),
            lambda: self._signal_rank(signal.SIGSTOP),
            lambda: self._stop("ray::AgentActor"),
            lambda: self._stop("control/launcher "),
            lambda: self._stop("raylet/raylet "),
        ]
        # The controller of the second half is the one that is measured.
        if self._submitted < self.runs / 2:
            faults += [*[lambda: self._kill("ray::ControllerActor", self.orch.head)] * 2]
            faults += [lambda: self._kill("gcs/gcs_server ", self.orch.head)]
        self._random.shuffle(faults)
        # Where there is no such process just now, another fault is made.
        said = next((said for fault in faults if (said := fault()) is not None), "nothing to break")
        self.faults[said.split(" on ")[0]] += 1
        self.log.append(f"{time.monotonic() - self._began:6.1f} s: {said}")

    def _worker(self) -> Host:
        return self._random.choice(self.orch.lab.hosts[1:])

    def _signal_rank(self, number: signal.Signals) -> str | None:
        ranks = sorted((one.host, one.run, one.pid) for one in self.orch.marked() if one.attempt > 0)
        if not ranks:
            return None
        host, run, pid = self._random.choice(ranks)
        if not _send(pid, number):
            return None
        if number is signal.SIGSTOP:
            self._mend(self._random.uniform(2, 8), lambda: _send(pid, signal.SIGCONT))
        return f"{number.name} to a rank on {host} (run {run})"

    def _kill(self, command: str, host: Host | None = None) -> str | None:
        host = host or self._worker()
        pid = _pid(host, command)
        return (
            f"SIGKILL to {_short(command)} on {host.name}" if pid is not None and _send(pid, signal.SIGKILL) else None
        )

    def _stop(self, command: str) -> str | None:
        host = self._worker()
        pid = _pid(host, command)
        if pid is None or not _send(pid, signal.SIGSTOP):
            return None
        seconds = self._random.uniform(2, 12)
        self._mend(seconds, lambda: _send(pid, signal.SIGCONT))
        return f"SIGSTOP to {_short(command)} on {host.name} for {seconds:.0f} s"

    def _cut(self, seconds: float) -> str | None:
        host = self._worker()
        host.link("down")
        self._mend(seconds, lambda: host.link("up"))
        return f"{'short' if seconds < 5 else 'long'} cut on {host.name} for {seconds:.0f} s"

    def _mend(self, seconds: float, how: Callable[[], object]) -> None:
        heapq.heappush(self._later, (self._in(seconds), next(self._numbers), lambda: (how(), None)[1]))

    # -- what the controller takes -------------------------------------------------------------------------------

    def _sample(self) -> None:
        pid = _pid(self.orch.head, "ray::ControllerActor")
        with suppress(psutil.Error):
            if pid is not None:
                process = psutil.Process(pid)
                rss = process.memory_info().rss / 2**20
                self.samples.append(Sample(self._in(0), pid, rss, process.num_fds(), process.num_threads()))

    def steady(self) -> dict[str, tuple[float, float]]:
        """Of the last controller, by field: the median of the first and of the last third after it had warmed up."""
        if not self.samples:
            return {}
        mine = [sample for sample in self.samples if sample.pid == self.samples[-1].pid]
        warm = [sample for sample in mine if sample.at - mine[0].at >= WARM_S]
        third = len(warm) // 3
        if third < 5:
            return {}
        return {
            name: (
                statistics.median(getattr(sample, name) for sample in warm[:third]),
                statistics.median(getattr(sample, name) for sample in warm[-third:]),
            )
            for name in FIELDS
        }


def _short(command: str) -> str:
    return Path(command.strip()).name.removeprefix("ray::")


def _pid(host: Host, command: str) -> int | None:
    """The process of the host with that on its command line."""
    return next((process.pid for process in host.processes(command)), None)


def _send(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
