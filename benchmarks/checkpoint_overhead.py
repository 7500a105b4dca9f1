"""What orchestrator.checkpoint costs: a step, a save, a load. `python benchmarks/checkpoint_overhead.py [MB]`

step: 2 ranks over Gloo on this machine train with DDP; what each call of `Saver.step` takes after a step that has driven its
code out of the caches (300 calls, the median and the 99th percentile), beside the median of the steps. And what a call takes when
nothing else runs: the median of 20 stretches of 20,000.
save and load: a model of MB (256) megabytes in 64 tensors, in the folder CHECKPOINT_BENCH_DIR (a temporary one): five times
torch.save to one file with fsync, and `checkpoint.save`, which hashes as well; the same for torch.load and `checkpoint.load`, which
holds the file against its hash. Medians.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from orchestrator import checkpoint

STEPS, CALLS = 300, 20_000


def median_of(times: int, work: Callable[[], object]) -> float:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def a_rank() -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    model = DistributedDataParallel(torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(8))))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    batch = torch.randn(512, 256)
    steps, calls = [], []
    with checkpoint.Saver(model=model, optimizer=optimizer, every=10**9) as saver:
        saver.resume()
        for number in range(STEPS):
            began = time.perf_counter_ns()
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
            trained = time.perf_counter_ns()
            saver.step(number)
            calls.append(time.perf_counter_ns() - trained)
            steps.append(trained - began)

        def warm() -> None:
            for number in range(CALLS):
                saver.step(number)

        alone = median_of(20, warm) / CALLS
    if dist.get_rank() == 0:
        step, call = statistics.median(steps), statistics.median(calls)
        last = statistics.quantiles(calls, n=100)[98]
        print(f"step       {step / 1e6:.2f} ms")
        print(f"call       {call / 1e3:.2f} us after it ({call / step:.4%}), 99 % within {last / 1e3:.1f} us")
        print(f"           {alone * 1e9:.0f} ns when nothing else runs")
    dist.destroy_process_group()
    os._exit(0)


def saves(megabytes: int, folder: Path) -> None:
    state = {f"layer{i}": torch.randn(megabytes << 12) for i in range(64)}
    plain = folder / "plain.pt"
    number = 0

    def torch_save() -> None:
        with open(plain, "wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())

    def our_save() -> None:
        nonlocal number
        number += 1
        checkpoint.save(state, step=number, dir=folder / "ckpt", keep=1)

    print(
        f"save       {median_of(5, torch_save):.3f} s torch.save and fsync, {median_of(5, our_save):.3f} s checkpoint.save"
    )
    load = median_of(5, lambda: torch.load(plain, weights_only=True))
    print(
        f"load       {load:.3f} s torch.load, {median_of(5, lambda: checkpoint.load(dir=folder / 'ckpt')):.3f} s checkpoint.load"
    )


def main() -> None:
    env = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29617", "OMP_NUM_THREADS": "1"}
    env |= {"GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    ranks = [subprocess.Popen([sys.executable, __file__], env=env | {"RANK": str(rank)}) for rank in range(2)]
    try:
        for rank in ranks:
            rank.wait()
    finally:
        for rank in ranks:
            rank.kill()
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 256
    with tempfile.TemporaryDirectory(dir=os.environ.get("CHECKPOINT_BENCH_DIR")) as folder:
        print(f"           {megabytes} MB, load average {os.getloadavg()[0]:.1f}")
        saves(megabytes, Path(folder))


if __name__ == "__main__":
    a_rank() if "RANK" in os.environ else main()
