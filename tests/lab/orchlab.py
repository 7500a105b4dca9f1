"""orch on the hosts of a lab: its commands on the head, its processes on every host, its database from outside."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from hosts import Host, Lab, wait_until
from invariants import Marked, one_writer
from measuring import Measured
from raycluster import RayCluster

from orchestrator.history import ledger
from orchestrator.history.store import Store
from orchestrator.scheduling.run import Attempt, Run

SLEEPS = "import time\nprint('asleep', flush=True)\ntime.sleep(600)\n"
"""Nothing but a process: it does not notice that a peer is gone."""

STEPS = """
import datetime, os, pathlib, signal, time, torch, torch.distributed as dist
run, attempt, rank = (os.environ[name] for name in ("ORCH_RUN", "ORCH_ATTEMPT", "RANK"))
shared, checkpoints = pathlib.Path(os.environ["SHARED"]), pathlib.Path(os.environ["ORCH_CHECKPOINT_DIR"])
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=120))
model = torch.nn.Linear(int(os.environ.get("WIDTH", 8)), 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
newest = checkpoints / "newest.pt"
step = torch.load(newest)["step"] if newest.exists() else 0
record = open(shared / "steps" / f"{run}.{attempt}.{rank}", "a", buffering=1)
print("from", step, flush=True)
if os.environ.get("DEAF"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
over = torch.zeros(1)
while not over:
    optimizer.zero_grad()
    model(torch.randn(4, model.in_features)).pow(2).mean().backward()
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
    over = torch.tensor([float(rank == "0" and (shared / f"over-{run}").exists())])
    dist.all_reduce(over)
    optimizer.step()
    step += 1
    record.write(f"{step} {time.monotonic()}\\n")
    if rank == "0" and step % 10 == 0:
        torch.save({"step": step}, checkpoints / "next.pt")
        os.replace(checkpoints / "next.pt", newest)
    time.sleep(0.05)
print("done", flush=True)
dist.destroy_process_group()
"""
"""Trains until somebody says that it is over (`Orch.let_end`), 20 steps a second at most, with a checkpoint every ten; goes on from
the newest. Each rank keeps a record of its steps and their times, from which two writers at once can be told."""


class Orch:
    """orch on the head of a lab."""

    def __init__(self, lab: Lab, cluster: RayCluster) -> None:
        self.lab, self.cluster, self.head = lab, cluster, lab.hosts[0]
        self.acknowledged: list[int] = []
        """What `orch submit` has printed."""

    def __call__(self, *argv: object, code: int | None = 0) -> str:
        """What a command prints; it must end with `code`, where that is not None."""
        done = self.ask(*argv)
        assert code in (None, done.returncode), (
            f"orch {argv} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done.stdout

    def ask(self, *argv: object, timeout: float = 90) -> subprocess.CompletedProcess[str]:
        return self.head.orch(*map(str, argv), timeout=timeout)

    def write_job(self, script: str, workers: str, job: str = "", **files: str) -> None:
        """work/job.yaml on the head, with its script and other files; `job` is what else the job file says, lines of YAML."""
        work = self.head.disk / "home" / "work"
        work.mkdir(exist_ok=True)
        (work / "train.py").write_text(script)
        for name, text in files.items():
            (work / f"{name}.py").write_text(text)
        grace = "" if "grace:" in job else "grace: 2s\n"
        (work / "job.yaml").write_text(f"run: train.py\nworkers: {workers}\n{grace}{job}\n")

    def submit(self, script: str, workers: str, *options: object, code: int = 0, job: str = "", **files: str) -> int:
        self.write_job(script, workers, job, **files)
        run = int(self("submit", "work/job.yaml", *options, "-o", "name", code=code).split()[0])
        self.acknowledged.append(run)
        return run

    def show(self, run: int) -> dict:
        return json.loads(self("show", run, "--json"))

    def reaches(self, run: int, state: str, timeout: float = 30) -> dict:
        seen: list[dict] = [{}]

        def there() -> bool:
            seen[0] = self.show(run)
            return seen[0]["state"] == state

        try:
            wait_until(there, timeout, f"run {run} is {state}", every=0.2)
        except AssertionError as error:
            others = self("ps", "--all")
            raise AssertionError(f"{error}; it is {seen[0]['state']}: {seen[0]['reason']}\n{others}") from None
        return seen[0]

    def begins(self, script: str, workers: str, line: str, ranks: int, job: str = "") -> int:
        """A run all of whose ranks have printed `line`."""
        run = self.submit(script, workers, job=job)
        wait_until(lambda: self("logs", run).count(line) == ranks, 60, f"{ranks} ranks print {line}", every=0.2)
        return run

    def ranks(self, run: int, *hosts: Host) -> dict[str, list[int]]:
        """The processes of a run by host (of all that are on): pids as seen from outside."""
        there = [host for host in hosts or self.lab.hosts if host.is_on]
        mark = f"ORCH_RUN={run}\0"
        return {host.name: sorted(process.pid for process in host.processes(environ=mark)) for host in there}

    def marked(self) -> list[Marked]:
        """Every living process of any attempt, on all hosts that are on."""
        return [
            Marked(host.name, int(variables["ORCH_RUN"]), int(variables["ORCH_ATTEMPT"]), process.pid)
            for host in self.lab.hosts
            if host.is_on
            for process in host.processes(environ="ORCH_MARK=")
            if (variables := environ_of(process.pid))
        ]

    def rank_pid(self, run: int, rank: int) -> int:
        """The process of one rank, as seen from outside."""
        (pid,) = (
            pid
            for pids in self.ranks(run).values()
            for pid in pids
            if environ_of(pid).get("RANK") == str(rank) and not _is_child_of_rank(pid)
        )
        return pid

    def on(self, run: int) -> list[Host]:
        """The hosts of its newest attempt."""
        attempt = self.recorded(run).attempt
        assert attempt is not None
        return self.hosts_of(attempt)

    def hosts_of(self, attempt: Attempt) -> list[Host]:
        return [self.lab[part.node] for part in attempt.placement.nodes]

    def master_port(self, run: int) -> str:
        """Where the ranks of its living attempt meet."""
        return environ_of(self.rank_pid(run, 0))["MASTER_PORT"]

    def victim(self, run: int) -> Host:
        """A host of the run that is not the head."""
        return next(host for host in self.on(run) if host is not self.head)

    def of_attempt(self, run: int, attempt: int, *hosts: Host) -> list[Marked]:
        """Its living processes, on all hosts or on these."""
        names = {host.name for host in hosts or self.lab.hosts}
        return [one for one in self.marked() if (one.run, one.attempt) == (run, attempt) and one.host in names]

    def mend(self) -> None:
        """Three hosts again that orch can use: those that are off, or whose raylet has ended, are started anew."""

        def all_up() -> bool:
            for host in self.lab.hosts[1:]:
                # A raylet that was taken for dead ends once it hears of that.
                if not host.is_on or not host.processes("raylet/raylet"):
                    host.restart()
                    self.cluster.join(host)
            nodes = self.nodes()
            return all(nodes.get(host.name, {}).get("state") == "up" for host in self.lab.hosts)

        wait_until(all_up, 90, "orch has three hosts", every=0.5)

    def nodes(self) -> dict[str, dict]:
        return {node["node"]: node for node in json.loads(self("nodes", "--json"))}

    def wait_up(self, *hosts: Host) -> None:
        names = {host.name for host in hosts}
        wait_until(
            lambda: {name for name, node in self.nodes().items() if node["state"] == "up"} >= names,
            60,
            f"orch has agents on {names}",
            every=0.3,
        )

    # -- the database, from outside: quicker than a command, and there while no controller is ------------------------

    @property
    def database(self) -> str:
        return f"sqlite:///{self.head.disk / 'home' / '.orch' / 'orch.db'}"

    @contextmanager
    def store(self) -> Iterator[Store]:
        with Store.open(self.database, readonly=True) as store:
            yield store

    def recorded(self, run: int) -> Run:
        with self.store() as store:
            found = store.get(run)
        assert found is not None
        return found

    def wait_ended(self, run: int, number: int = 1, timeout: float = 30) -> Attempt:
        """An attempt of the run, once its end is on record."""
        with self.store() as store:
            found: list[Attempt] = []

            def ended() -> bool:
                attempts = store.get(run).attempts
                found[:] = [one for one in attempts if one.number == number and one.ended_at is not None]
                return bool(found)

            try:
                wait_until(ended, timeout, f"attempt {number} of run {run} has ended")
            except AssertionError as error:
                raise AssertionError(f"{error}\n{self.ask('show', run).stdout}\n{self.ask('nodes').stdout}") from None
        return found[0]

    # -- runs of STEPS -----------------------------------------------------------------------------------------------

    def submit_steps(self, workers: str, job: str = "", environ: str = "", before: str = "") -> int:
        """A run of STEPS; `environ` is added to its `env:` (", WIDTH: '9'"), and `before` to the script's beginning."""
        (self.lab.shared / "steps").mkdir(exist_ok=True)
        env = f"env: {{SHARED: {self.lab.shared}, OMP_NUM_THREADS: '1'{environ}}}"
        return self.submit(before + STEPS, workers, job=f"checkpoint: ckpt\n{env}\n{job}")

    def trains(self, workers: str, ranks: int, job: str = "", environ: str = "", steps: int = 15) -> int:
        """A run of STEPS all of whose ranks have taken that many steps: past the first checkpoint."""
        run = self.submit_steps(workers, job, environ)
        self.wait_trained(run, 1, ranks, steps)
        return run

    def steps(self, run: int) -> dict[int, dict[int, list[tuple[int, float]]]]:
        """By attempt and rank: the steps taken, each with its time (of the one monotonic clock that all hosts share)."""
        found: dict[int, dict[int, list[tuple[int, float]]]] = {}
        for path in sorted((self.lab.shared / "steps").glob(f"{run}.*")):
            _, attempt, rank = map(int, path.name.split("."))
            # The last line of a rank that was killed may be half.
            lines = [line.split() for line in path.read_text().split("\n")[:-1]]
            found.setdefault(attempt, {})[rank] = [(int(step), float(at)) for step, at in lines]
        return found

    def wait_trained(self, run: int, attempt: int, ranks: int, steps: int = 1, timeout: float = 60) -> None:
        """Until every rank of that attempt has taken so many steps."""

        def there() -> bool:
            by_rank = self.steps(run).get(attempt, {})
            return len(by_rank) == ranks and all(len(taken) >= steps for taken in by_rank.values())

        try:
            wait_until(there, timeout, f"{ranks} ranks of attempt {attempt} of run {run} have taken {steps} steps")
        except AssertionError as error:
            run_now = self.recorded(run)
            raise AssertionError(f"{error}; it is {run_now.state}: {run_now.reason}\n{self('logs', run)}") from None

    def goes_on(self, run: int, ranks: int, measured: Measured, timeout: float = 60) -> Run:
        """The run, whose first attempt is broken, trains again by itself, from its checkpoint, and is let come to its end."""
        self.wait_trained(run, 2, ranks, timeout=timeout)
        measured.recovered()
        found = self.let_end(run)
        steps = self.steps(run)
        one_writer(steps)
        last = max((taken[-1][0] for taken in steps.get(1, {}).values() if taken), default=0)
        first = min(taken[0][0] for taken in steps[2].values())
        assert [str(one.outcome) for one in found.attempts][1:] == ["succeeded"]
        # One that was saved is saved: the checkpoints are ten steps apart.
        assert first > last - 11
        measured.lost(steps=last - first + 1, gpu_seconds=self.gpu_seconds_lost(run))
        return found

    def gpu_seconds_lost(self, run: int) -> float:
        """What its slots were held for in vain: work that was thrown away, waiting for what was gone, starting again."""
        found = self.recorded(run)
        used = ledger.gpu_time(found)
        # One start was needed: that of the first attempt which trained.
        trained = next(one for one in found.attempts if one.progress is not None and one.progress.first_step_at)
        needed = ledger.gpu_time(replace(found, attempts=(trained,))).starting
        return round((used.lost + used.idle + used.starting - needed) / 1000, 1)

    def let_end(self, run: int, timeout: float = 60) -> Run:
        """Tells a run of STEPS that it is over; the run, once it has succeeded."""
        (self.lab.shared / f"over-{run}").touch()
        self.reaches(run, "succeeded", timeout)
        return self.recorded(run)


def environ_of(pid: int) -> dict[str, str]:
    """Empty where the process has ended."""
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(entry.partition("=")[::2] for entry in text.split("\0") if "=" in entry)


def _is_child_of_rank(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    parent = int(stat.rpartition(")")[2].split()[1])
    return environ_of(parent).get("RANK") == environ_of(pid).get("RANK") and "ORCH_MARK" in environ_of(parent)


def nothing_left(orch: Orch, run: int) -> None:
    wait_until(lambda: not any(orch.ranks(run).values()), 10, f"nothing of run {run} is left: {orch.ranks(run)}")
