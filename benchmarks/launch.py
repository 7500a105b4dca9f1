"""How long from the command to the first optimizer step of the same job, under orch and under what else starts such jobs.

The job is ddp_step.py: two ranks on the CPU, Gloo. Every launcher starts it in turn, round after round, so that whatever else the
machine does meets all of them; a first round is thrown away. Ray's, Slurm's and orch's daemons run all the time, as they do in use.

- First step, finished, CLI returns: seconds from the start of the command, by the wall clock.
- CPU: seconds of processor time of the command, the ranks and the launcher's daemons, from the start of the command until 1.5 s
  after the job has finished (orch makes its next warm ranks in that time), by a cgroup of each launcher's own where the kernel lets
  us make one. "of it idle" is what the daemons use in as long a time while nothing is submitted.
- orch warm: ranks are forked from a process that has torch loaded. orch cold: the job sets a variable that torch reads when it is
  loaded, so that orch starts plain interpreters. Both wait for the run's end (`orch submit --wait`).
- Where the time goes: from the run's events, the job's own stamps, and an audit hook in the CLI that notes its connections.
- The floor: launcher_floor.py, the same ranks started by orch's launcher with nothing above it.

Ray Train needs ray[train], which orch does not: `--ray-train-python` names an interpreter that has it. Slurm needs root,
slurmctld, slurmd and munged. What is not there is left out, with a line that says so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path

from harness import REPOSITORY, Meter, Orch, ray_head, record, spread, table
from peers import HERE, RANK_ENV, SCRIPT, Launcher, Trial, plain_launchers, ray_launchers, slurm

WARM, COLD, TORCHRUN = "orch submit --wait, warm", "orch submit --wait, cold", "torchrun --standalone"
WARM_LIMIT, COLD_LIMIT, CPU_LIMIT_S = 0.12, 1.1, 1.5

STAMPED_CLI = """
import atexit, json, os, sys, time
stamps = {"python": time.time(), "connects": []}
def note(event, arguments):
    if event == "import" and arguments[0] in ("orchestrator.jobfile", "orchestrator.control.snapshot"):
        stamps.setdefault(arguments[0], time.time())
    elif event == "socket.connect":
        stamps["connects"].append(time.time())
sys.addaudithook(note)
atexit.register(lambda: open(os.environ["CLI_STAMPS"], "w").write(json.dumps(stamps)))
from cli.main import main
main()
"""


def orch_launchers(orch: Orch, meter: Meter) -> list[Launcher]:
    launchers = []
    # PYTORCH_JIT is read when torch is loaded; 1 is its default.
    for name, folder, env in ((WARM, "warm", {}), (COLD, "cold", {"PYTORCH_JIT": "1"})):
        given = {**RANK_ENV, "BENCH_OUT": str(orch.folder / "stamps.json"), **env}
        job = orch.job(folder, SCRIPT.read_text(), {"workers": 2, "device": "cpu", "env": given})
        command = [sys.executable, "-m", "cli", "submit", "--wait", str(job)]
        launchers.append(
            Launcher(name, lambda command=command: command, meter, orch.folder / "stamps.json", env=orch.env)  # type: ignore[misc]
        )
    return launchers


def breakdown(orch: Orch, warm: Launcher, rounds: int) -> dict[str, list[float]]:
    """By stage, its seconds in each of so many warm runs."""
    notes = orch.folder / "cli.json"
    warm.command = lambda: [sys.executable, "-c", STAMPED_CLI, "submit", "--wait", str(orch.folder / "warm/job.yaml")]
    stages: dict[str, list[float]] = {}
    for _ in range(rounds):
        trial = warm.start({"CLI_STAMPS": str(notes)})
        cli, stamps = json.loads(notes.read_text()), trial.stamps
        run = orch.json("show", "ddp-warm")
        at = {row["event"]: datetime.fromisoformat(row["at"]).timestamp() for row in run["events"]}
        began = [
            ("CLI: Python starts", trial.began),
            ("CLI: click, the configuration", cli["python"]),
            ("CLI and controller: the job file is checked", cli["connects"][0]),
            ("CLI: the snapshot", cli["orchestrator.control.snapshot"]),
            (f"CLI and controller: {len(cli['connects']) - 2} calls until the run is recorded", cli["connects"][1]),
            ("controller: commit, decide", at["submitted"]),
            ("controller, agent, launcher: commit, hold, lay out the code, fork", at["placed"]),
            ("script: imports (loaded already)", stamps["first_line"]),
            ("script: rendezvous", stamps["torch_imported"]),
            ("script: DDP", stamps["group_ready"]),
            ("script: first step", stamps["ddp_ready"]),
            ("script: the rest", stamps["first_step"]),
            ("ranks: the interpreters' end; sweep, logs, report", stamps["last_line"]),
            ("controller: commit; the CLI hears of it and ends", at["succeeded"]),
        ]
        ends = [when for _, when in began[1:]] + [trial.finished]
        for (stage, start), end in zip(began, ends, strict=True):
            stages.setdefault(stage, []).append(end - start)
    return stages


def floor(rounds: int) -> str:
    done = subprocess.run(
        [sys.executable, str(HERE / "launcher_floor.py"), str(rounds)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return "```\n" + (done.stdout if done.returncode == 0 else done.stderr[-1000:]).strip() + "\n```"


def results(trials: dict[str, list[Trial]]) -> str:
    """The table, and the verdicts on the limits."""
    median = {name: statistics.median(t.first_step for t in rows) for name, rows in trials.items() if rows}
    rows = [
        [
            name,
            spread([t.first_step for t in of]),
            f"{median[name] / median[TORCHRUN]:.2f}",
            spread([t.finished - t.began for t in of]),
            spread([t.returned - t.began for t in of]),
            spread([t.cpu for t in of]),
            f"{statistics.median(t.idle for t in of):.2f}",
        ]
        for name, of in trials.items()
        if of
    ]
    titles = ["launcher", "first step, s", "of torchrun", "finished, s", "CLI returns, s", "CPU, s", "of it idle"]
    cpu = statistics.median(t.cpu for t in trials[WARM])
    verdicts = [
        verdict("warm first step, of torchrun's", median[WARM] / median[TORCHRUN], WARM_LIMIT),
        verdict("cold first step, of torchrun's", median[COLD] / median[TORCHRUN], COLD_LIMIT),
        verdict("CPU seconds of a warm job", cpu, CPU_LIMIT_S),
    ]
    loads = [t.load for of in trials.values() for t in of]
    return f"{table(titles, rows)}\n\nLoad average meanwhile {spread(loads, '.1f')}.\n\n" + "\n".join(verdicts)


def verdict(what: str, value: float, limit: float) -> str:
    return f"- {what}: {value:.2f}, wanted at most {limit:g}: {'met' if value <= limit else 'missed'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=7, help="rounds that count")
    parser.add_argument(
        "--only", default="", help="launchers whose name holds one of these words (a,b); torchrun and orch always"
    )
    parser.add_argument("--ray-train-python", help="an interpreter with ray[train], torch and the same Ray")
    parser.add_argument("--record", action="store_true", help="write the results to docs/performance.md")
    given = parser.parse_args()
    left_out = []
    folder = Path(tempfile.mkdtemp(prefix="obl-", dir="/tmp"))
    meters = {name: Meter(name) for name in ("plain", "orch", "ray", "slurm")}
    try:
        with contextlib.ExitStack() as stack:
            wanted = [word for word in given.only.split(",") if word]
            orch = stack.enter_context(Orch(4, meters["orch"]))
            launchers = plain_launchers(folder, meters["plain"]) + orch_launchers(orch, meters["orch"])
            warm = next(one for one in launchers if one.name == WARM)
            if not wanted or any("ray" in word for word in wanted):
                python = given.ray_train_python or sys.executable
                head = stack.enter_context(ray_head(python, 6, folder / "ray", meters["ray"]))
                launchers += ray_launchers(python, bool(given.ray_train_python), *head, folder, meters["ray"])
                if not given.ray_train_python:
                    left_out.append("Ray Train left out: it needs ray[train] (--ray-train-python).")
            if not wanted or any("sbatch" in word for word in wanted):
                if os.geteuid() == 0 and all(map(shutil.which, ("slurmctld", "slurmd", "munged", "sbatch"))):
                    launchers.append(stack.enter_context(slurm(folder, meters["slurm"])))
                else:
                    left_out.append("Slurm left out: it needs root, slurmctld, slurmd, slurm-client and munge.")
            always = (WARM, COLD, TORCHRUN)
            launchers = [
                one for one in launchers if one.name in always or not wanted or any(word in one.name for word in wanted)
            ]
            for meter in {one.meter for one in launchers}:
                meter.measure_idle(5.0)
            trials: dict[str, list[Trial]] = {one.name: [] for one in launchers}
            for round_ in range(given.n + 1):
                for one in launchers:
                    trial = one.start()
                    print(
                        f"round {round_}: {one.name}: {trial.first_step:.2f} s, CPU {trial.cpu:.2f} s",
                        file=sys.stderr,
                        flush=True,
                    )
                    if round_:
                        trials[one.name].append(trial)
            stages = breakdown(orch, warm, given.n)
        where = table(["stage", "s"], [[stage, spread(values, ".3f")] for stage, values in stages.items()])
        text = [
            results(trials),
            *left_out,
            "### Where a warm run's time goes",
            where,
            "### The launcher alone",
            floor(20),
        ]
        record("Starting a job", f"n = {given.n}, median (least–most).\n\n" + "\n\n".join(text), keep=given.record)
    finally:
        for meter in meters.values():
            meter.close()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
