"""Learns to read handwritten digits: a small convolutional network under DDP, with checkpoints.

An ordinary torchrun script: torchrun --standalone --nproc-per-node 2 jobs/digits.py
It fails (exit code 1) when fewer than 97 % of the digits that it never saw are read right. With a checkpoint folder
(--checkpoint, or ORCH_CHECKPOINT_DIR) it saves after every epoch and goes on from there when it is started again.

The digits are the 1,797 of jobs/digits.csv.gz (jobs/digits.txt says where they are from); a fifth of them, drawn at
random but always the same, is held out.
"""

import argparse
import gzip
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.nn  # before init_process_group: see main()
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from orchestrator import checkpoint

HELD_OUT = 360
GLOBAL_BATCH = 64
PASS_MARK = 97.0


def load_digits() -> tuple[TensorDataset, TensorDataset]:
    """Digits to train on and digits held out: images of shape [N, 1, 8, 8] in 0..1, labels of shape [N]."""
    with gzip.open(Path(__file__).with_name("digits.csv.gz"), "rt") as file:
        table = torch.tensor([[float(cell) for cell in line.split(",")] for line in file])
    table = table[torch.randperm(len(table), generator=torch.Generator().manual_seed(0))]
    digits = TensorDataset(table[:, :64].reshape(-1, 1, 8, 8) / 16, table[:, 64].long())
    return TensorDataset(*digits[HELD_OUT:]), TensorDataset(*digits[:HELD_OUT])


def make_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(64 * 4 * 4, 10),
    )


@torch.no_grad()
def accuracy(model: nn.Module, held_out: TensorDataset, device: torch.device) -> float:
    """Per cent of the held-out digits that are read right; every rank reads its share of them."""
    images, labels = (t[dist.get_rank() :: dist.get_world_size()].to(device) for t in held_out.tensors)
    model.eval()
    right = (model(images).argmax(1) == labels).sum()
    model.train()
    dist.all_reduce(right)
    return 100 * right.item() / len(held_out)


def train(args: argparse.Namespace, device: torch.device) -> int:
    """Trains, from the checkpoint if there is one, and says how well it reads; the exit code of the job."""
    rank, world = dist.get_rank(), dist.get_world_size()

    def say(text: str) -> None:
        if rank == 0:
            print(text, flush=True)

    training, held_out = load_digits()
    torch.manual_seed(0)
    model = DistributedDataParallel(make_model().to(device), device_ids=None if device.type == "cpu" else [device])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    sampler = DistributedSampler(training, seed=0)
    loader = DataLoader(training, batch_size=max(1, GLOBAL_BATCH // world), sampler=sampler)

    # Saves after every epoch; when told to stop, after the one that is under way, the same on all ranks.
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    with checkpoint.Saver(**parts, every=1, dir=args.checkpoint) as saver:
        if done := saver.resume():
            say(f"resumed from {args.checkpoint}: {done} of {args.epochs} epochs are done")
        for epoch in saver.steps(args.epochs):
            began = time.perf_counter()
            sampler.set_epoch(epoch)
            torch.manual_seed(epoch * world + rank)  # so that a resumed run drops out what an unbroken one would have
            for images, labels in loader:
                loss = F.cross_entropy(model(images.to(device)), labels.to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()
            speed = len(training) / (time.perf_counter() - began)
            say(f"epoch {epoch + 1}/{args.epochs}  loss {loss.item():.4f}  {speed:,.0f} samples/s")

    percent = accuracy(model.module, held_out, device)
    say(f"accuracy {percent:.2f} % of {len(held_out)} held-out digits, by {world} ranks")
    if percent < PASS_MARK:
        say(f"failed: it should be at least {PASS_MARK} %")
        return 1
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Learns to read handwritten digits.")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--checkpoint", type=Path, default=os.environ.get("ORCH_CHECKPOINT_DIR"), metavar="FOLDER")
    args = parser.parse_args()

    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group(os.environ.get("ORCH_BACKEND") or ("nccl" if cuda else "gloo"))
    try:
        code = train(args, device)
    except checkpoint.Stopped as stopped:
        if dist.get_rank() == 0:
            where = f" and saved in {args.checkpoint}" if args.checkpoint else ""
            print(f"told to stop: {stopped.step} of {args.epochs} epochs are done{where}", flush=True)
        code = stopped.code
    # Gloo's threads must end before the interpreter does: one that lets go of a tensor while it shuts down aborts the
    # process ("terminate called without an active exception"). They end here, where the process group's last user is
    # gone. So the DDP model lives in train(), and torch.distributed.nn, whose functions keep the process group of the
    # moment as a default argument, is imported above, and not by DDP in the middle of the work.
    dist.destroy_process_group()
    return code


sys.exit(main())
