"""What being observed costs a training step: one loop with and without the observer, in turns.

    python benchmarks/progress_overhead.py [--rounds 40] [--steps 50] [--step-ms 10]

In one process with one thread: blocks of steps, by turns observed and not (the observer's hook and its wrapper around the
DataLoader's iterator are put in and taken out), so that what else changes in the process meets both alike. A step draws a
batch, runs forward and backward, spins until it has used its time by the thread's CPU clock, and steps an optimizer.
Printed are the medians over the blocks of CPU time and wall-clock time a step, and their ratios; the noise of the machine
shows in the wall-clock time and in the spread. Beside them the observer's own work for a step, measured alone, with warm and
with cold caches.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.optim import optimizer as optim
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data import dataloader as loading

sys.path.insert(0, str(Path(__file__).parents[1]))
from orchestrator.progress import file, observer, on_import

Block = Callable[[], tuple[float, float]]


def block_of(steps: int, step_s: float) -> Block:
    """A function that trains so many steps, and gives CPU and wall-clock seconds a step."""
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = DataLoader(TensorDataset(torch.zeros(steps * 4, 8)), batch_size=4)

    def block() -> tuple[float, float]:
        batches = iter(loader)
        cpu, wall = time.thread_time(), time.perf_counter()
        for _ in range(steps):
            # Drawing the batch and stepping are outside the time that is spun away, as the observer's work is.
            (batch,) = next(batches)
            end = time.thread_time() + step_s
            model(batch).sum().backward()
            while time.thread_time() < end:
                pass
            optimizer.step()
        return (time.thread_time() - cpu) / steps, (time.perf_counter() - wall) / steps

    return block


def alone(folder: Path, step_s: float) -> tuple[float, float]:
    """CPU seconds of the observer's work for one step and one batch: called at once again, and after a step's work.

    In the second its code and data have left the caches, as they have in training.
    """
    one = observer.Observer(file, str(folder / "alone"))
    optimizer = object()
    loader = DataLoader(TensorDataset(torch.zeros(1_000_000, 1)), batch_size=4)
    iterator = iter(loader)
    next(iterator)
    batch = next(iterator)
    count = 100_000
    began = time.thread_time()
    for _ in range(count):
        one.drawn(iterator, batch, one.clock())
        one.stepped(optimizer, (), {})
    warm = (time.thread_time() - began) / count
    matrix, cold, empty = torch.randn(700, 700), [], []
    for turn in range(600):
        end = time.thread_time() + step_s
        while time.thread_time() < end:
            matrix @ matrix
        began = time.thread_time()
        if turn % 2:
            one.drawn(iterator, batch, one.clock())
            one.stepped(optimizer, (), {})
        (cold if turn % 2 else empty).append(time.thread_time() - began)
    return warm, statistics.median(cold) - statistics.median(empty)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--step-ms", type=float, default=10)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        ways_to_call = zip(
            ("again at once", "after a step's work"), alone(Path(name), asked.step_ms / 1000), strict=True
        )
        for how, own in ways_to_call:
            share = own / asked.step_ms * 1e5
            print(f"the observer alone, {how}: {own * 1e6:.2f} us a step, {share:.3f} % of {asked.step_ms:g} ms")
        plain_next, plain_hooks = loading._BaseDataLoaderIter.__next__, dict(optim._global_optimizer_post_hooks)
        on_import.patch(observer.observe(file, str(Path(name) / "progress")))
        ways = {
            "plain": (plain_next, plain_hooks),
            "observed": (loading._BaseDataLoaderIter.__next__, dict(optim._global_optimizer_post_hooks)),
        }
        block = block_of(asked.steps, asked.step_ms / 1000)
        found: dict[str, list[tuple[float, float]]] = {"plain": [], "observed": []}
        for turn in range(asked.rounds):
            for way in sorted(ways, reverse=bool(turn % 2)):
                loading._BaseDataLoaderIter.__next__, hooks = ways[way]
                optim._global_optimizer_post_hooks.clear()
                optim._global_optimizer_post_hooks.update(hooks)
                found[way].append(block())
    result = {}
    for index, clock in enumerate(("cpu", "wall")):
        plain, observed = ([one[index] * 1000 for one in found[way][1:]] for way in ("plain", "observed"))
        for way, times in (("plain", plain), ("observed", observed)):
            low, _, high = statistics.quantiles(times, n=4)
            print(
                f"{clock:4}  {way:8}  median {statistics.median(times):.4f} ms a step (half of them {low:.4f} to {high:.4f})"
            )
        result[clock] = statistics.median(observed) / statistics.median(plain)
        print(f"{clock:4}  ratio     {result[clock]:.5f} ({(result[clock] - 1) * 100:+.3f} %)")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
