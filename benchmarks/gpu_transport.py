"""Real NCCL on two GPUs or more of one host, with links taken away: what verdict comes, when, and what the reading costs.

    python benchmarks/gpu_transport.py [--gpus 2] [--steps 400] [--rounds 3]

Each case is an ordinary DDP job (134 MB of gradients) whose rank 0 writes the time at the end of every step. The event's time in
the history is held against those: the verdict must come before the tenth step ends. Where several GPUs are to be several hosts,
each rank sets NCCL_HOSTID itself before it imports torch.

Costs: the same job with orch's own NCCL log (INFO) and with NCCL_DEBUG=WARN in its env (nothing is read), in turns; and bare
torchrun of the same script in the same turns. Medians of the steps after the fiftieth, in milliseconds, over all rounds.
Prints Markdown for docs/gpu.md and ends with 1 where a verdict is not as it should be.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

ORCH = [sys.executable, "-m", "cli"]
FAILED: list[str] = []

SCRIPT = """
import os, sys, time
if os.environ.get("APART"):
    os.environ["NCCL_HOSTID"] = "host" + os.environ["RANK"]
import torch, torch.distributed as dist
from torch import nn
steps, stamps = int(sys.argv[1]), sys.argv[2]
device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
torch.cuda.set_device(device)
dist.init_process_group("nccl")
model = nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(8))).to(device)
model = nn.parallel.DistributedDataParallel(model, device_ids=[device.index])
optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
batch = torch.randn(64, 2048, device=device)
ends = []
for _ in range(steps):
    optimizer.zero_grad(set_to_none=True)
    model(batch).square().mean().backward()
    optimizer.step()
    torch.cuda.synchronize()
    ends.append(time.time())
if dist.get_rank() == 0:
    open(stamps, "w").write("\\n".join(map(str, ends)))
dist.destroy_process_group()
"""

CASES: dict[str, tuple[dict[str, str], str, str, str]] = {
    # environment, verdict, a link's kind, how the event goes on
    "as it is": ({}, "as planned", "P2P/NVLink", ""),
    "NCCL_P2P_DISABLE=1": ({"NCCL_P2P_DISABLE": "1"}, "worse than planned", "SHM", "NCCL_P2P_DISABLE is set"),
    "P2P and SHM off": (
        {"NCCL_P2P_DISABLE": "1", "NCCL_SHM_DISABLE": "1"},
        "worse than planned",
        "NET/Socket",
        "NCCL_SHM_DISABLE is set",
    ),
    "NCCL_HOSTID by rank": (
        {"APART": "1", "NCCL_SOCKET_IFNAME": "lo"},
        "worse than planned",
        "NET/Socket",
        "NCCL_HOSTID differs between ranks of one host",
    ),
}


def check(what: str, good: bool) -> None:
    print(f"- {'ok' if good else 'FAILED'}: {what}", flush=True)
    if not good:
        FAILED.append(what)


class Bench:
    def __init__(self, gpus: int, steps: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ob-", dir="/tmp"))
        self.job = self.folder / "job"
        self.job.mkdir()
        (self.job / "step.py").write_text(SCRIPT)
        self.gpus, self.steps = gpus, steps
        self.stamps = self.folder / "stamps"
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("ORCH_", "RAY_"))}
        self.env["ORCH_HOME"] = str(self.folder / "home")

    def orch(self, *argv: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*ORCH, *argv], cwd=self.job, env=self.env, capture_output=True, text=True, timeout=timeout, check=False
        )

    def submit(self, env: dict[str, str], **keys: Any) -> tuple[dict[str, Any], list[float], str]:
        """Runs the job; the run as `orch show` gives it, the times of its steps, and what the follower was told."""
        self.stamps.unlink(missing_ok=True)
        spec = {
            "run": f"step.py {self.steps} {self.stamps}",
            "workers": f"1x{self.gpus}",
            "device": "cuda",
            "env": env,
            "grace": "2s",
            **keys,
        }
        (self.job / "job.yaml").write_text(json.dumps(spec))
        done = self.orch("submit", "job.yaml", "--follow")
        run = json.loads(self.orch("show", "step", "--json").stdout)
        ends = [float(line) for line in self.stamps.read_text().split()] if self.stamps.exists() else []
        return run, ends, done.stderr

    def torchrun(self) -> list[float]:
        self.stamps.unlink(missing_ok=True)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.gpus}"]
        command += ["step.py", str(self.steps), str(self.stamps)]
        subprocess.run(command, cwd=self.job, env=self.env, capture_output=True, timeout=240, check=True)
        return [float(line) for line in self.stamps.read_text().split()]


def step_ms(ends: list[float]) -> list[float]:
    return [(b - a) * 1000 for a, b in pairwise(ends[49:])]


def at(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["at"]).timestamp()


def verdicts(bench: Bench) -> None:
    print(f"\n## Verdicts, {bench.gpus} GPUs\n")
    print("| case | verdict | links | event during step | ms after the first step's end |\n|---|---|---|---|---|")
    told: dict[str, tuple[dict[str, Any], str]] = {}
    rows = []
    for name, (env, *_) in CASES.items():
        run, ends, said = bench.submit(env)
        transport = run["attempts"][-1]["transport"] or {}
        notes = [event for event in run["events"] if event["event"] == "noted"]
        # As planned is no event: then there is nothing to be timed.
        when = at(notes[0]) if notes else None
        step = "" if when is None else str(1 + sum(end <= when for end in ends))
        late = "" if when is None or not ends else f"{(when - ends[0]) * 1000:.0f}"
        links = ", ".join(f"{count} {kind}" for kind, count in transport.get("links", {}).items())
        print(f"| {name} | {transport.get('verdict')} | {links} | {step} | {late} |", flush=True)
        told[name] = transport, said
        rows.append((name, run, notes, ends, when))
    print()
    for name, run, notes, ends, when in rows:
        _, verdict, kind, cause = CASES[name]
        transport, said = told[name]
        check(f"{name}: the run succeeded", run["state"] == "succeeded")
        check(f"{name}: {verdict}", transport.get("verdict") == verdict)
        check(f"{name}: {kind}", kind in transport.get("links", {}))
        if cause:
            check(f"{name}: the event names the cause", bool(notes) and cause in notes[0]["reason"])
            check(f"{name}: told to the follower at once", bool(notes) and notes[0]["reason"] in said)
            check(f"{name}: before the tenth step's end", when is not None and len(ends) > 9 and when < ends[9])
            print(f"    {notes[0]['reason'] if notes else 'no event'}")
        else:
            check(f"{name}: no event", not notes)
        for line in transport.get("warnings", ()):
            print(f"    NCCL warned: {line}")
    run, _, _ = bench.submit({"NCCL_P2P_DISABLE": "1"}, on_degraded="fail")
    failure = run["attempts"][-1]["failure"] or {}
    check(
        "on_degraded: fail ends the attempt as degraded", (run["state"], failure.get("kind")) == ("failed", "degraded")
    )
    said = subprocess.run(
        [*ORCH, "doctor", "--nccl-log", "-", "--json"],
        input=bench.orch("logs", "step", "--nccl").stdout,
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    print(f"\n    $ orch logs step --nccl | orch doctor --nccl-log - --json\n    {' '.join(said.split())}")


def costs(bench: Bench, rounds: int) -> None:
    print(f"\n## Step times, ms: medians of steps 51 to {bench.steps}, {rounds} rounds in turns\n")
    found: dict[str, list[float]] = {"orch, its log read": [], "orch, NCCL_DEBUG=WARN": [], "torchrun": []}
    for turn in range(rounds):
        for way in sorted(found, reverse=bool(turn % 2)):
            env = {"NCCL_DEBUG": "WARN"} if "WARN" in way else {}
            ends = bench.torchrun() if way == "torchrun" else bench.submit(env)[1]
            found[way].append(statistics.median(step_ms(ends)))
    base = statistics.median(found["torchrun"])
    print("| way | step, ms (rounds) | of torchrun |\n|---|---|---|")
    for way, medians in found.items():
        middle = statistics.median(medians)
        print(f"| {way} | {middle:.3f} ({', '.join(f'{one:.3f}' for one in medians)}) | {middle / base:.3f} |")
    read, unread = (statistics.median(found[way]) for way in ("orch, its log read", "orch, NCCL_DEBUG=WARN"))
    print(
        f"\nReading the log: {(read / unread - 1) * 100:+.2f} %; against torchrun: {(read / base - 1) * 100:+.2f} %.\n"
    )
    check("throughput within 2 % of bare torchrun", read <= base * 1.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    bench = Bench(options.gpus, options.steps)
    try:
        up = bench.orch("up")
        if up.returncode:
            raise SystemExit(up.stderr)
        bench.submit({})  # the warm process imports torch meanwhile
        time.sleep(5)
        verdicts(bench)
        costs(bench, options.rounds)
        shown = bench.orch("show", "step").stdout
        print("\n" + "\n".join(f"    {line}" for line in shown.splitlines() if "transport" in line))
    finally:
        bench.orch("down", "--force")
    print(f"\n{'All checks passed.' if not FAILED else 'FAILED: ' + '; '.join(FAILED)}")
    sys.exit(bool(FAILED))


if __name__ == "__main__":
    main()
