"""Says hello from every rank, and proves with one all-reduce that the ranks hear each other.

An ordinary torchrun script: torchrun --standalone --nproc-per-node 2 jobs/hello.py
"""

import os
import platform
import sys

import torch
import torch.distributed as dist


def main() -> None:
    local_rank = int(os.environ["LOCAL_RANK"])
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    backend = os.environ.get("ORCH_BACKEND") or ("nccl" if cuda else "gloo")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group(backend)
    rank, world = dist.get_rank(), dist.get_world_size()

    total = torch.tensor([rank + 1], device=device)
    dist.all_reduce(total)
    what = torch.cuda.get_device_name(device) if cuda else "cpu"
    # One write with its line end in it: ranks that share a terminal must not cut each other's lines.
    sys.stdout.write(
        f"rank {rank} of {world} on {platform.node()}: {device} ({what}), {backend}; "
        f"the ranks, counted from 1, sum to {total.item()}\n"
    )
    sys.stdout.flush()
    dist.destroy_process_group()
    if total.item() != world * (world + 1) // 2:
        sys.exit(f"rank {rank}: the sum should be {world * (world + 1) // 2}")


main()
