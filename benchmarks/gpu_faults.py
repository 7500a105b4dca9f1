"""Ranks on real GPUs that hang, break or are killed: what orch says of each, after how long, and what is left on the GPUs.

    python benchmarks/gpu_faults.py [--gpus 2] [--only NAME ...]

Each case is a DDP loop over NCCL whose rank 1 does something wrong at step 30 of its first attempt; where orch tries again, the
second attempt trains to its end. The script writes the wall-clock time of the fault; what is timed is from there until the
attempt is over, and to the first step of the next. After each case nvidia-smi must know no process and no memory on any GPU.
`hang: 10s` stands for the 60 s that are the default. Prints Markdown for docs/gpu.md and ends with 1 where a cause is not as it
should be.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gpu_parts import Failure, Home, check, device_name, section, table, the_end

SCRIPT = """
import os, pathlib, signal, sys, time
import torch, torch.distributed as dist
case, stamps = sys.argv[1], pathlib.Path(sys.argv[2])
rank, local, attempt = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"]), int(os.environ["ORCH_ATTEMPT"])
device = torch.device("cuda", local)
torch.cuda.set_device(device)
dist.init_process_group("nccl")
model = torch.nn.Sequential(*(torch.nn.Linear(2048, 2048) for _ in range(8))).to(device)
model = torch.nn.parallel.DistributedDataParallel(model, device_ids=[local])
optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
batch = torch.randn(64, 2048, device=device)

def stamp(name):
    (stamps / f"{name}-{attempt}").write_text(str(time.time()))

def fault():
    if case == "stays out of a collective":
        time.sleep(3600)
    elif case == "is stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif case == "has a kernel that never ends":
        torch.cuda._sleep(1 << 62)
        torch.cuda.synchronize()
    elif case == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif case == "asks for more memory than there is":
        torch.empty(1 << 40, dtype=torch.uint8, device=device)
    elif case == "has an index out of bounds":
        model.module[0].weight[torch.tensor([5000], device=device)].sum().item()
    elif case == "raises":
        raise ValueError("no such sample")

def train(steps):
    for step in range(steps):
        if step == 30 and rank == 1 and attempt == 1 and case != "is slow":
            torch.cuda.synchronize()
            stamp("fault")
            fault()
        if case == "is slow" and rank == 1:
            for _ in range(60):
                model.module(batch)
        optimizer.zero_grad(set_to_none=True)
        model(batch).square().mean().backward()
        optimizer.step()
        if case == "is slow":
            time.sleep(0.002)
        torch.cuda.synchronize()
        if step == 0 and rank == 0:
            stamp("first")

stamp("start") if rank == 0 else None
began, more = time.time(), torch.ones(1, device=device)
train(200)
while case == "is slow" and more.item():
    train(200)
    more.fill_(time.time() - began < 60)
    dist.broadcast(more, 0)
dist.destroy_process_group()
"""


@dataclass(frozen=True)
class Expected:
    kind: str
    says: str
    """A pattern of the failure's message."""
    again: bool
    """Whether another attempt follows by itself."""


CASES = {
    "stays out of a collective": Expected("hang", r"rank 1 on \S+ has not called nccl:\w+ #\d+", True),
    "is stopped": Expected("hang", r"rank 1 on \S+ is stopped", True),
    "has a kernel that never ends": Expected("hang", r"no step for", True),
    "is killed": Expected("signal", r"rank 1.*SIGKILL", True),
    "asks for more memory than there is": Expected("cuda_oom", r"rank 1", False),
    "has an index out of bounds": Expected("cuda", r"rank 1", False),
    "raises": Expected("python", r"rank 1.*no such sample", False),
}


def on_gpus() -> str:
    """What nvidia-smi knows of processes on GPUs."""
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()


def used_mib() -> list[int]:
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return [int(line) for line in subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()]


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def one(home: Home, number: int, name: str, gpus: int) -> list[str]:
    expected = CASES[name]
    stamps = home.folder / f"stamps{number}"
    stamps.mkdir()
    job = home.job(
        SCRIPT,
        workers=f"1x{gpus}",
        name=f"case{number}",
        run=f"'{name}' {stamps}",
        hang={"after": "10s", "first": "60s"},
        grace="2s",
    )
    run = home("submit", job).strip()
    try:
        home("logs", "-f", run)
    except Failure as failure:
        print(f"    {failure}")
    shown: dict[str, Any] = home.json("show", run)
    empty_after = wait_empty()
    attempt = shown["attempts"][0]
    cause = attempt["failure"] or {}
    message = str(cause.get("message"))
    print(
        f"\n**Rank 1 {name}**: {shown['state']}, {len(shown['attempts'])} attempts; `{cause.get('kind')}`:\n\n    {message}"
    )
    check(f"{name}: kind {expected.kind}", cause.get("kind") == expected.kind)
    check(f"{name}: it says {expected.says}", re.search(expected.says, message) is not None)
    check(f"{name}: rank 1 is the one that is named", cause.get("rank") == 1)
    check(f"{name}: {'one' if expected.again else 'no'} attempt after it", len(shown["attempts"]) == 1 + expected.again)
    check(f"{name}: nothing is left on the GPUs ({used_mib()} MiB)", empty_after is not None)
    if expected.kind == "hang":
        stacks = home("logs", run, "--attempt", "1", "--stacks")
        print(
            "\n".join(
                f"    {line}"
                for line in stacks.splitlines()
                if re.search(r"#\d+ nccl|^\S*\s*rank \d|case\d+\.py", line)
            )[:3000]
        )
        check(f"{name}: the recorder's collectives stand with the stacks", "nccl:" in stacks)
    faulted = float((stamps / "fault-1").read_text()) if (stamps / "fault-1").exists() else None
    again = stamps / "first-2"
    if faulted is None:
        return [name, str(cause.get("kind")), "no fault", "", ""]
    recorded = at(attempt["ended_at"]) - faulted
    stepped = float(again.read_text()) - faulted if again.exists() else None
    return [name, str(cause.get("kind")), seconds(recorded), seconds(stepped), shown["state"]]


def wait_empty(limit_s: float = 15.0) -> float | None:
    """Seconds until nvidia-smi knows no process and no memory on a GPU; None where that does not come."""
    began = time.monotonic()
    while time.monotonic() - began < limit_s:
        if not on_gpus() and max(used_mib()) < 10:
            return time.monotonic() - began
        time.sleep(0.2)
    print(f"    left on the GPUs: {on_gpus()!r}, {used_mib()} MiB")
    return None


def slow(home: Home, gpus: int) -> None:
    """A rank that does more work than its peer is named with its GPU, and nothing is killed."""
    section("A slow rank")
    job = home.job(SCRIPT, workers=f"1x{gpus}", name="slow", run=f"'is slow' {home.folder}", grace="2s")
    run = home("submit", job).strip()
    home("logs", "-f", run)
    shown = home.json("show", run)
    print(f"    {shown['throughput']}")
    notes = [event for event in shown["events"] if event["event"] == "noted"]
    for event in notes:
        print(f"    {at(event['at']) - at(shown['started_at']):.0f} s after the start: {event['reason']}")
    check(
        "rank 1 is named with its GPU",
        any(re.search(r"rank 1 on \S+ \(GPU \d+\): [0-9.]+x slower", e["reason"]) for e in notes),
    )
    check("and the run went on to its end", shown["state"] == "succeeded")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--only", action="append", choices=[*CASES, "is slow"])
    options = parser.parse_args()
    wanted = options.only or [*CASES, "is slow"]
    section(f"Faults of ranks on {options.gpus} × {device_name('cuda')}")
    with Home("cuda", options.gpus) as home:
        rows = []
        for number, name in enumerate(CASES):
            if name in wanted:
                rows.append(one(home, number, name, options.gpus))
        print()
        print(table(["rank 1", "kind", "attempt over, s after the fault", "first step of the next", "run"], rows))
        if "is slow" in wanted:
            slow(home, options.gpus)
    the_end()


if __name__ == "__main__":
    main()
