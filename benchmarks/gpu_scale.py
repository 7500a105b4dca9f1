"""What do 2, 4 and 8 GPUs of one host reach under orch? Bandwidth, DDP's scaling, neighbours, two halves, the start.

    python benchmarks/gpu_scale.py --gpus 8 [--device cuda] [--only bench,ddp,...] [--limit 460]

In this order, each part printed as a Markdown section for docs/gpu.md as soon as it is done; one that fails is named and the next
goes on; none is begun that would not end within `--limit` seconds of the command's start:

- probe: the probe against nvidia-smi (as in gpu_check.py)
- bench: `orch bench` of 2, 4, ... GPUs by NCCL and Gloo beside the model
- ddp: DDP at 1, 2, 4, ... GPUs by `orch submit` and bare torchrun in turns: samples a second, their ratio (within 2 %), efficiency
- neighbours: two runs of half the GPUs each, alone and side by side: the indices that orch chose, the slowdown (at most 3 %)
- halves: the host as two Ray nodes of half the GPUs each (NCCL_HOSTID): a gang over both, its ranks' order, NCCL's transport
- start: command to the first all-reduce of all ranks, `orch submit --wait` warm against torchrun (gpu_start.py)

`--device cpu` tries all but the probe and the start by Gloo on CPU ranks; what is compared there is only printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_parts import (
    DDP,
    FAILED,
    Failure,
    Home,
    check,
    device_name,
    gigabytes,
    result,
    section,
    shown,
    table,
    the_end,
    torchrun,
    two_raylets,
)

HERE = Path(__file__).resolve().parent
DDP_AGREES, NEIGHBOUR_COSTS = 0.02, 0.03
BEGAN = time.monotonic()


def counts_of(gpus: int, least: int = 1) -> list[int]:
    """1, 2, 4, ... up to all."""
    return [count for count in (1, 2, 4, 8, 16) if least <= count < gpus] + [gpus]


def judged(device: str, what: str, good: bool) -> None:
    """CPU ranks share cores with whatever else runs: there the figure is only printed."""
    if device == "cpu":
        print(f"- not judged on CPU ranks: {what}", flush=True)
    else:
        check(what, good)


# === parts ===


def probe(device: str, gpus: int) -> None:
    import gpu_check

    gpu_check.against_nvidia_smi()
    FAILED.extend(gpu_check.FAILED)


def bench(device: str, gpus: int) -> None:
    native, backends = ("nccl", "nccl,gloo") if device == "cuda" else ("gloo", "gloo")
    most = ["--max", "32M"] if device == "cpu" else []
    rows, sizes = [], {}
    with Home(device, gpus) as orch:
        for count in counts_of(gpus, 2):
            found = orch.json("bench", "--per-node", str(count), "--device", device, "--backend", backends, *most)[
                "results"
            ]
            best = {
                b: max((r for r in found if r["backend"] == b), key=lambda r: r["bytes"], default=None)
                for b in ("nccl", "gloo")
            }
            rows.append([count, *(cell for backend in ("nccl", "gloo") for cell in _cells(best[backend]))])
            sizes[count] = {row["bytes"]: row["busbw"] for row in found if row["backend"] == native}
            told = best[native]
            print(
                f"{count}: {told['bottleneck']}; {', '.join(told['transport'] or {}) or 'transport not told'}",
                flush=True,
            )
        print("\n" + table(["GPUs", "NCCL at", "GB/s", "model", "of it", "Gloo at", "GB/s", "model", "of it"], rows))
        every = sorted({size for found in sizes.values() for size in found})
        lines = [[shown(size), *(gigabytes(sizes[count].get(size)) for count in sizes)] for size in every]
        print(
            f"\nAll-reduce by {native}, GB/s of bus bandwidth\n\n"
            + table(["size", *(f"{c} GPUs" for c in sizes)], lines)
        )
        check(f"every number of GPUs from 2 to {gpus} was measured", all(sizes.values()))


def _cells(row: dict[str, Any] | None) -> list[str]:
    if row is None:
        return ["–"] * 4
    model = row["modelled"]
    return [
        shown(row["bytes"]),
        gigabytes(row["busbw"]),
        gigabytes(model),
        f"{row['busbw'] / model:.0%}" if model else "–",
    ]


def ddp(device: str, gpus: int, turns: int = 2) -> None:
    rows, alone = [], 0.0
    with Home(device, gpus) as orch:
        script = orch.folder / "train.py"
        script.write_text(DDP)
        words = ["--device", device, "--seconds", "2"]
        orch.finished(
            orch("submit", orch.job(DDP, workers="1x1", run=" ".join(words))).strip()
        )  # the warm process is there
        for count in counts_of(gpus):
            job = orch.job(DDP, workers=f"1x{count}", run=" ".join(words))
            ours, bare = [], []
            for _ in range(turns):
                bare.append(result(torchrun(script, count, *words))["samples_per_s"])
                ours.append(result(orch.finished(orch("submit", job).strip()))["samples_per_s"])
            a, b = statistics.median(bare), statistics.median(ours)
            alone = alone or b
            rows.append([count, f"{a:,.0f}", f"{b:,.0f}", f"{b / a:.3f}", f"{b / (alone * count):.1%}"])
            judged(device, f"DDP on {count}: orch is at {b / a - 1:+.1%} of torchrun's", b / a >= 1 - DDP_AGREES)
    print("\n" + table(["GPUs", "torchrun, samples/s", "orch, samples/s", "ratio", "orch's scaling efficiency"], rows))


def neighbours(device: str, gpus: int) -> None:
    half = gpus // 2
    with Home(device, gpus) as orch:
        job = orch.job(DDP, workers=f"1x{half}", run=f"--device {device} --seconds 10")
        ids = orch("submit", job).split()
        alone = result(orch.finished(ids[0]))["step_ms"]
        ids = [orch("submit", job).strip() for _ in range(2)]
        both = [result(orch.finished(run)) for run in ids]
        rows = []
        for run, told in zip(ids, both, strict=True):
            (part,) = orch.json("show", run)["attempts"][0]["placement"]["nodes"]
            rows.append(
                [run, part["gpus"], f"{alone:.2f}", f"{told['step_ms']:.2f}", f"{told['step_ms'] / alone - 1:+.1%}"]
            )
        print(table(["run", "GPUs", "step alone, ms", "side by side, ms", "slower by"], rows) + "\n")
        overlap = min(t["ended"] for t in both) - max(t["began"] for t in both)
        check(f"they ran {overlap:.1f} s at the same time", overlap > 5)
        check("they have no GPU in common", len({gpu for row in rows for gpu in row[1]}) == 2 * half)
        worst = max(told["step_ms"] for told in both) / alone - 1
        judged(device, f"neither is slower than alone by more than 3 %: {worst:+.1%}", worst <= NEIGHBOUR_COSTS)


def halves(device: str, gpus: int) -> None:
    half = gpus // 2
    with (
        two_raylets(device, half) as address,
        Home(device, gpus, ORCH_ADDRESS=address, RAY_AUTH_MODE="disabled") as orch,
    ):
        deadline = time.monotonic() + 60
        while any(node["state"] != "up" for node in orch.json("nodes")) and time.monotonic() < deadline:
            time.sleep(0.5)
        print("    " + orch("nodes").replace("\n", "\n    ").rstrip() + "\n")
        most = ["--max", "16M"] if device == "cpu" else ["--max", "256M"]
        answer = orch.json("bench", "--nodes", "half-a,half-b", "--per-node", str(half), "--device", device, *most)
        (run,) = answer["runs"]
        nodes = orch.json("show", str(run["id"]))["attempts"][0]["placement"]["nodes"]
        rows = [[part["node"], part["gpus"], part["ranks"]] for part in nodes]
        print(table(["node", "GPUs", "ranks"], rows) + "\n")
        largest = max(answer["results"], key=lambda row: row["bytes"])
        told = f"{gigabytes(largest['busbw'])} GB/s at {shown(largest['bytes'])}, the model {gigabytes(largest['modelled'])}"
        print(f"{told}; NCCL's channels: {largest['transport']}\n")
        ranks = [rank for part in nodes for rank in part["ranks"]]
        check("a gang over both, its ranks node by node", len(nodes) == 2 and ranks == list(range(2 * half)))
        if device == "cuda":
            kinds = set(largest["transport"] or {})
            check(f"NCCL went over the network between the halves: {', '.join(sorted(kinds))}", "NET/Socket" in kinds)


def start(device: str, gpus: int) -> None:
    command = [sys.executable, str(HERE / "gpu_start.py"), "--gpus", str(gpus), "--runs", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200, env=dict(os.environ))
    print("\n".join(line for line in done.stdout.splitlines() if line.startswith("|")))
    check("every start came to its first all-reduce", done.returncode == 0)
    if done.returncode:
        print(done.stderr[-1500:])


Part = Callable[[str, int], None]
PARTS: dict[str, tuple[str, Part, float]] = {
    "probe": ("The probe against nvidia-smi", probe, 10),
    "bench": ("orch bench", bench, 60),
    "ddp": ("DDP's scaling, beside bare torchrun", ddp, 90),
    "neighbours": ("Two runs of half the GPUs, side by side", neighbours, 45),
    "halves": ("The host as two nodes", halves, 40),
    "start": ("Start: command to the first all-reduce of all ranks", start, 90),
}
"""By name: its title, what does it, and about how many seconds it takes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--limit", type=float, default=460.0, help="seconds after which no further part is begun")
    options = parser.parse_args()
    if options.gpus < 2:
        parser.error("--gpus must be 2 or more")
    print(f"# {options.gpus} x {device_name(options.device)} of one host, {time.strftime('%Y-%m-%d')}")
    took = {}
    for name in options.only.split(","):
        title, part, about = PARTS[name]
        if options.device == "cpu" and name in ("probe", "start"):
            continue
        section(title)
        began = time.monotonic()
        if began - BEGAN + about > options.limit:
            check(
                f"{name}: not begun, {options.limit - (began - BEGAN):.0f} s are left and it takes about {about:.0f}",
                False,
            )
            continue
        try:
            part(options.device, options.gpus)
        except (Failure, subprocess.SubprocessError, OSError, KeyError, ValueError, json.JSONDecodeError) as error:
            traceback.print_exc(limit=3)
            check(f"{name}: {str(error)[-600:]}", False)
        took[name] = time.monotonic() - began
    print("\n" + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in took.items()))
    the_end()


if __name__ == "__main__":
    main()
