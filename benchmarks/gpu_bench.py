"""Is `orch bench` right? Against a plain torchrun script on the same GPUs, in turns; NCCL beside Gloo; predicted beside measured.

    python benchmarks/gpu_bench.py [--gpus 2,4,8] [--turns 3] [--max 1G] [--device cuda]

The plain script below is written apart from orch's and by its own method (fixed repetitions, a wall clock around a synchronised
loop). It and `orch bench` take turns on one warm machine; a table gives each size's median of both and their ratio, which
should be within 3 % from 16 MiB on. Then NCCL and Gloo beside what the model says without measurements, and what `orch plan`
predicts of the same gang now that it was measured. Prints Markdown for docs/gpu.md and ends with 1 if a check failed;
about one minute for each number of GPUs. `--device cpu` tries it by Gloo on a machine without GPUs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from typing import Any

from gpu_parts import (
    Home,
    bytes_of,
    check,
    device_name,
    gigabytes,
    result,
    section,
    shown,
    table,
    the_end,
    torchrun,
)

PLAIN = """
import json, os, sys, time
import torch, torch.distributed as dist
device, sizes = sys.argv[1], [int(size) for size in sys.argv[2].split(",")]
local = int(os.environ["LOCAL_RANK"])
if device == "cuda":
    torch.cuda.set_device(local)
    dist.init_process_group("nccl", device_id=torch.device("cuda", local))
else:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
wait = torch.cuda.synchronize if device == "cuda" else lambda: None
found = {}
for size in sizes:
    x = torch.ones(size // 4, device=device)
    warm, count = (5, 20) if device == "cuda" else (2, 8)
    for _ in range(warm):
        dist.all_reduce(x)
    dist.barrier()
    wait()
    began = time.perf_counter()
    for _ in range(count):
        dist.all_reduce(x)
    wait()
    found[size] = size / ((time.perf_counter() - began) / count) * 2 * (ranks - 1) / ranks / 1e9
if rank == 0:
    print("RESULT " + json.dumps(found), flush=True)
dist.destroy_process_group()
"""
AGREE, FROM_BYTES = 0.03, 16 << 20


def against_torchrun(orch: Home, gpus: int, most: int, turns: int) -> list[dict[str, Any]]:
    """Prints the comparison; the first of orch's results, which were predicted before anything was measured."""
    script = orch.folder / "plain.py"
    script.write_text(PLAIN)
    plain: dict[int, list[float]] = defaultdict(list)
    ours: dict[int, list[float]] = defaultdict(list)
    first: list[dict[str, Any]] = []
    backend = "nccl" if orch.device == "cuda" else "gloo"
    for _ in range(turns):
        answer = orch.json(
            "bench", "--per-node", str(gpus), "--device", orch.device, "--backend", backend, "--max", shown(most)
        )
        first = first or answer["results"]
        for row in answer["results"]:
            ours[row["bytes"]].append(row["busbw"])
        told = result(torchrun(script, gpus, orch.device, ",".join(map(str, ours))))
        for size, busbw in told.items():
            plain[int(size)].append(busbw)
    rows, ratios = [], {}
    for size in sorted(ours):
        a, b = statistics.median(plain[size]), statistics.median(ours[size])
        ratios[size] = b / a
        rows.append([shown(size), gigabytes(a), gigabytes(b), f"{b / a:.3f}"])
    print(f"All-reduce by {backend}, GB/s of bus bandwidth, medians of {turns} in turns\n")
    print(table(["size", "plain torchrun", "orch bench", "ratio"], rows) + "\n")
    told_sizes = [ratio for size, ratio in ratios.items() if size >= FROM_BYTES]
    if told_sizes:
        worst = max(told_sizes, key=lambda ratio: abs(ratio - 1))
        what = f"within 3 % of a plain script from 16 MiB on: the worst is {worst - 1:+.1%}"
        if orch.device == "cpu":  # they differ by more from one minute to the next
            print(f"- not judged on CPU ranks: {what}")
        else:
            check(what, abs(worst - 1) <= AGREE)
    return first


def backends(orch: Home, gpus: int, first: list[dict[str, Any]], most: int) -> None:
    """NCCL beside Gloo, and beside each what the model says without measurements."""
    gloo = orch.json(
        "bench",
        "--per-node",
        str(gpus),
        "--device",
        orch.device,
        "--backend",
        "gloo",
        "--max",
        shown(min(most, 64 << 20)),
    )["results"]
    by_size: dict[int, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in [*first, *gloo]:
        by_size[row["bytes"]][row["backend"]] = row
    rows = []
    for size, found in sorted(by_size.items()):
        cells = [gigabytes(found.get(b, {}).get(k)) for b in ("nccl", "gloo") for k in ("modelled", "busbw")]
        rows.append([shown(size), *cells])
    print(table(["size", "NCCL by the model", "measured", "Gloo by the model", "measured"], rows) + "\n")
    largest = max(first, key=lambda row: row["bytes"])
    via = ", ".join(largest["transport"] or {"not told by NCCL": 0})
    print(f"Bounded by {largest['bottleneck']}; NCCL's channels: {via}; {largest['versions']}\n")


def predicted_next(orch: Home, gpus: int, first: list[dict[str, Any]]) -> None:
    job = orch.job("pass\n", workers=f"1x{gpus}", name="next")
    placement = orch.json("plan", job)["placement"]
    largest = max(first, key=lambda row: row["bytes"])
    print(
        f"`orch plan` of 1x{gpus} now: {gigabytes(placement['busbw_predicted'])} GB/s, {placement['busbw_bottleneck']} "
        f"(the model alone said {gigabytes(largest['modelled'])} at {shown(largest['bytes'])}; "
        f"{gigabytes(largest['busbw'])} was measured)\n"
    )
    check("the next prediction says that it was measured", "measured on" in (placement["busbw_bottleneck"] or ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", default="2", help="numbers of GPUs, with commas")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--max", default="1G")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    counts = [int(text) for text in options.gpus.split(",")]
    print(f"# orch bench on {max(counts)} x {device_name(options.device)}, {time.strftime('%Y-%m-%d')}")
    with Home(options.device, max(counts)) as orch:
        for gpus in counts:
            section(f"{gpus} x {device_name(options.device)}")
            first = against_torchrun(orch, gpus, bytes_of(options.max), options.turns)
            backends(orch, gpus, first, bytes_of(options.max))
            predicted_next(orch, gpus, first)
        section("What was kept")
        print(f"{len(orch.json('bench', '--history'))} results in the history")
    the_end()


if __name__ == "__main__":
    main()
