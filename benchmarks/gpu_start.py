"""Command start to the first all-reduce done, on this machine's GPUs: `orch submit --wait` warm against bare torchrun.

Both start the same script, which writes the time when its first NCCL all-reduce was done on rank 0; the clock starts before the
command's process does. They take turns, so that what drifts drifts for both. Medians and ranges of N runs after one of each that
is not counted. Prints a table in Markdown and, after it, the placement and GPU memory that were seen.

    python benchmarks/gpu_start.py [--runs 7] [--gpus 2]
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
from pathlib import Path

SCRIPT = """
import json, os, time
import torch, torch.distributed as dist
device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
torch.cuda.set_device(device)
dist.init_process_group("nccl", device_id=device)
ones = torch.ones(1 << 20, device=device)
dist.all_reduce(ones)
torch.cuda.synchronize()
if dist.get_rank() == 0:
    assert ones[0].item() == dist.get_world_size()
    with open(os.environ["STAMP"], "w") as file:
        json.dump({"at": time.time(), "world": dist.get_world_size(), "device": torch.cuda.get_device_name()}, file)
dist.destroy_process_group()
"""


def gpu_memory() -> str:
    query = ["nvidia-smi", "--query-gpu=index,memory.used", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip().replace("\n", "; ")


def timed(command: list[str], folder: Path, stamp: Path) -> tuple[float, float]:
    """Seconds from the command's start to the first all-reduce, and to the command's end."""
    stamp.unlink(missing_ok=True)
    began = time.time()
    env = {**os.environ, "STAMP": str(stamp)}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env, check=False, timeout=60)
    ended = time.time()
    if done.returncode or not stamp.exists():
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return json.loads(stamp.read_text())["at"] - began, ended - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--gpus", type=int, default=1)
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="ob-"))
    folder = home / "job"
    folder.mkdir()
    (folder / "start.py").write_text(SCRIPT)
    stamp = home / "stamp.json"
    os.environ["ORCH_HOME"] = str(home / "h")
    job = {"run": "start.py", "workers": f"1x{options.gpus}", "device": "cuda", "env": {"STAMP": str(stamp)}}
    (folder / "job.yaml").write_text(json.dumps(job))
    (folder / "cold.yaml").write_text(json.dumps(job | {"env": job["env"] | {"TORCH_LOGS": "-all"}}))  # type: ignore[operator]
    orch = [sys.executable, "-m", "cli"]
    ways = {
        "torchrun": [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={options.gpus}",
            "start.py",
        ],
        "orch, warm": [*orch, "submit", "job.yaml", "--wait"],
        "orch, cold": [*orch, "submit", "cold.yaml", "--wait"],
    }
    subprocess.run([*orch, "up"], check=True)
    try:
        timed(ways["orch, cold"], folder, stamp)  # by its end the warm process has imported torch
        time.sleep(10)
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for turn in range(options.runs + 1):
            for way, command in ways.items():
                seconds = timed(command, folder, stamp)
                if turn:
                    found[way].append(seconds)
        device = json.loads(stamp.read_text())["device"]
        base = statistics.median(s for s, _ in found["torchrun"])
        print(f"\n{options.gpus} x {device}, n={options.runs}, medians (min-max), {time.strftime('%Y-%m-%d')}\n")
        print("| way | to the first all-reduce, s | of torchrun | to the command's end, s |\n|---|---|---|---|")
        for way, rows in found.items():
            first, end = [a for a, _ in rows], [b for _, b in rows]
            middle = statistics.median(first)
            row = f"{middle:.2f} ({min(first):.2f}-{max(first):.2f}) | {middle / base:.2f}"
            print(f"| {way} | {row} | {statistics.median(end):.2f} ({min(end):.2f}-{max(end):.2f}) |")
        subprocess.run([*orch, "show", "start", "--json"], check=True)
        print(f"GPU memory used between runs: {gpu_memory()}")
    finally:
        subprocess.run([*orch, "down", "--force"], check=False)


if __name__ == "__main__":
    main()
