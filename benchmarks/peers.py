"""What else starts such jobs: torchrun, Ray's job submission, Ray Train, Slurm; each as its users run it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness import Meter, free_port

HERE = Path(__file__).resolve().parent
SCRIPT = HERE / "ddp_step.py"
SETTLE_S = 1.5
LIMIT_S = 180.0
"""No launcher takes so long, whatever else the machine does."""
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"]
RANK_ENV = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


@dataclass(frozen=True)
class Trial:
    """One start of the job; times are Unix seconds."""

    began: float
    returned: float
    """When the command ended."""
    finished: float
    stamps: Mapping[str, float]
    cpu: float
    """CPU seconds from `began` until SETTLE_S after `finished`."""
    idle: float
    """What of them the daemons use without any job."""
    load: float

    @property
    def first_step(self) -> float:
        """Seconds from the start of the command."""
        return self.stamps["first_step"] - self.began


class Launcher:
    """One way to start the job."""

    def __init__(
        self,
        name: str,
        command: Callable[[], list[str]],
        meter: Meter,
        out: Path,
        *,
        finished: Callable[[str], None] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """`command()`: what a user types; `out`: where the job leaves its stamps.

        `finished(output)` waits for the job's end where the command does not.
        """
        self.name, self.command, self.meter, self._out = name, command, meter, out
        self._finished = finished
        self._env = {**(os.environ if env is None else env), **RANK_ENV, "BENCH_OUT": str(out)}

    def start(self, env: Mapping[str, str] | None = None) -> Trial:
        """Runs the job once. Raises RuntimeError where it leaves no stamps."""
        self._out.unlink(missing_ok=True)
        used, began = self.meter.seconds(), time.time()
        with subprocess.Popen(
            self.command(), env={**self._env, **(env or {})}, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, preexec_fn=self.meter.enter, cwd=self._out.parent,
        ) as process:  # fmt: skip
            try:
                said, _ = process.communicate(timeout=LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise RuntimeError(f"{self.name}: no end within {LIMIT_S:.0f} s") from None
        returned = time.time()
        if self._finished is not None:
            self._finished(said)
        finished = time.time()
        if not self._out.exists():
            raise RuntimeError(f"{self.name}: the job left no stamps: {said[-2000:]}")
        stamps = json.loads(self._out.read_text())
        time.sleep(SETTLE_S)
        idle = self.meter.idle * (time.time() - began)
        return Trial(began, returned, finished, stamps, self.meter.seconds() - used, idle, os.getloadavg()[0])


def plain_launchers(folder: Path, meter: Meter) -> list[Launcher]:
    """Two processes and nothing else, and torchrun."""
    out = folder / "stamps.json"

    def two_processes() -> list[str]:
        address = f"MASTER_ADDR=127.0.0.1 MASTER_PORT={free_port()} WORLD_SIZE=2"
        return ["sh", "-c", f"export {address}; for r in 0 1; do RANK=$r {sys.executable} {SCRIPT} & done; wait"]

    return [
        Launcher("two plain processes", two_processes, meter, out),
        Launcher("torchrun --standalone", lambda: [sys.executable, *TORCHRUN, str(SCRIPT)], meter, out),
    ]


def ray_launchers(python: str, train: bool, address: str, dashboard: str, folder: Path, meter: Meter) -> list[Launcher]:
    out = folder / "stamps.json"
    env = {**os.environ, "RAY_AUTH_MODE": "disabled", "PATH": f"{Path(python).parent}:{os.environ['PATH']}"}
    variables = json.dumps({"env_vars": {**RANK_ENV, "BENCH_OUT": str(out), "RAY_ADDRESS": address}})

    def finished(said: str) -> None:
        found = re.search(r"raysubmit_\w+", said)
        if found is None:
            raise RuntimeError(f"ray job submit: {said[-2000:]}")
        while True:
            with urllib.request.urlopen(f"{dashboard}/api/jobs/{found[0]}", timeout=30) as answer:
                if json.load(answer)["status"] in ("SUCCEEDED", "FAILED", "STOPPED"):
                    return
            time.sleep(0.02)

    def submit(*entrypoint: str) -> list[str]:
        options = ["--no-wait", "--address", dashboard, "--runtime-env-json", variables]
        return [python, "-m", "ray.scripts.scripts", "job", "submit", *options, "--", *entrypoint]

    entrypoints = {"ray job submit → torchrun": [python, *TORCHRUN, str(SCRIPT)]}
    if train:
        entrypoints["ray job submit → Ray Train"] = [python, str(HERE / "ray_train_step.py"), str(folder / "results")]
    return [
        Launcher(name, lambda words=words: submit(*words), meter, out, finished=finished, env=env)  # type: ignore[misc]
        for name, words in entrypoints.items()
    ]


SLURM_CONF = """
ClusterName=bench
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
SlurmctldPort={port}
SlurmdPort={node_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
# What its administrators set for short jobs; the defaults start a job two seconds later.
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1,bf_continue
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory=1000
PartitionName=p Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""
SLURM_JOB = """#!/bin/sh
#SBATCH --nodes=1 --ntasks=2 --output=/dev/null
export MASTER_ADDR=127.0.0.1 MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
exec srun --mpi=none sh -c 'RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID exec {python} {script}'
"""


@contextlib.contextmanager
def slurm(folder: Path, meter: Meter) -> Iterator[Launcher]:
    """A Slurm of our own: munge, a controller and one node, tuned for short jobs. Raises RuntimeError where it does not come up."""
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    host = os.uname().nodename.partition(".")[0]
    conf = SLURM_CONF.format(
        host=host, folder=folder, port=free_port(), node_port=free_port(), cpus=max(2, os.cpu_count() or 2)
    )
    (folder / "slurm.conf").write_text(conf)
    (folder / "job.sh").write_text(SLURM_JOB.format(python=sys.executable, script=SCRIPT))
    env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    munged = ["munged", "--foreground", "--force", f"--socket={folder}/munge.sock", f"--key-file={folder}/munge.key"]
    munged += [f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed"]
    daemons: list[subprocess.Popen[bytes]] = []

    def ask(*command: str) -> str:
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False).stdout

    def daemon(*command: str) -> None:
        daemons.append(
            subprocess.Popen(
                command, env=env, preexec_fn=meter.enter, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )  # fmt: skip

    def finished(said: str) -> None:
        found = re.search(r"batch job (\d+)", said)
        if found is None:
            raise RuntimeError(f"sbatch: {said}")
        while not re.search(r"JobState=(COMPLETED|FAILED|CANCELLED)", ask("scontrol", "-o", "show", "job", found[1])):
            time.sleep(0.02)

    try:
        daemon(*munged)
        deadline = time.monotonic() + 30
        while not (folder / "munge.sock").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        daemon("slurmctld", "-D")
        daemon("slurmd", "-D")
        while "idle" not in ask("sinfo", "-h", "-o", "%T"):
            if time.monotonic() > deadline:
                raise RuntimeError("Slurm's node did not become idle within 30 s")
            time.sleep(0.1)
        yield Launcher(
            "sbatch → srun", lambda: ["sbatch", str(folder / "job.sh")], meter, folder / "stamps.json",
            finished=finished, env=env,
        )  # fmt: skip
    finally:
        for process in reversed(daemons):
            process.terminate()
            process.wait()
