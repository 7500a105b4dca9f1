"""The job that every launcher starts: two ranks, Gloo, DDP over one small layer, five steps of SGD.

Rank 0 writes when it came how far, as Unix times, to the file that BENCH_OUT names.
"""

import time

stamps = {"first_line": time.time()}

import json  # noqa: E402
import os  # noqa: E402

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

stamps["torch_imported"] = time.time()


def main(out: str, *, group_is_there: bool = False) -> None:
    torch.set_num_threads(1)
    if not group_is_there:
        dist.init_process_group("gloo")
    stamps["group_ready"] = time.time()
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(64, 64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stamps["ddp_ready"] = time.time()
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(8, 64)).pow(2).mean().backward()
        optimizer.step()
        stamps.setdefault("first_step", time.time())
    rank = dist.get_rank()
    # Before the group: when DDP's reducer is the last to let go of it, the group's destructor joins its threads with the GIL held,
    # which one of them may be waiting for. One start hung at its end before this was so.
    del model, optimizer
    if not group_is_there:
        dist.destroy_process_group()
    stamps["last_line"] = time.time()
    if rank == 0:
        with open(out + ".part", "w") as file:
            json.dump(stamps, file)
        os.replace(out + ".part", out)


if __name__ == "__main__":
    main(os.environ["BENCH_OUT"])
