"""A small GPT that learns to write Python, letter by letter, from the source of Python's own standard library.

An ordinary torchrun script: torchrun --standalone --nproc-per-node 2 jobs/chargpt.py --steps 100
With a checkpoint folder (--checkpoint, or ORCH_CHECKPOINT_DIR) it saves now and then, and when it is told to stop, and
goes on from there when it is started again. On a GPU, a larger one: --layers 8 --width 512 --context 512 --batch 32.
"""

import argparse
import os
import sys
import sysconfig
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.nn  # before init_process_group: see main()
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from orchestrator import checkpoint

LETTERS = 128  # ASCII


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.after_attention = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        split = self.query_key_value(self.before_attention(x)).view(batch, length, 3, self.heads, -1)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.after_attention(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(x)


class CharGPT(nn.Module):
    def __init__(self, layers: int, width: int, context: int) -> None:
        super().__init__()
        self.context = context
        self.letter = nn.Embedding(LETTERS, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads=max(1, width // 32)) for _ in range(layers)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, LETTERS))

    def forward(self, letters: torch.Tensor) -> torch.Tensor:
        """From letters [batch, length] to the logits of each one's successor [batch, length, 128]."""
        places = torch.arange(letters.shape[1], device=letters.device)
        return self.head(self.blocks(self.letter(letters) + self.position(places)))

    @torch.no_grad()
    def write(self, prompt: str, length: int, device: torch.device) -> str:
        """The prompt and `length` letters after it."""
        text = torch.tensor([list(prompt.encode("ascii"))], device=device)
        for _ in range(length):
            odds = F.softmax(self(text[:, -self.context :])[:, -1] / 0.8, dim=-1)
            text = torch.cat([text, torch.multinomial(odds, 1)], dim=1)
        return bytes(text[0].tolist()).decode("ascii")


def standard_library() -> torch.Tensor:
    """The source of the modules at the top of Python's standard library, as one tensor of ASCII codes."""
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = bytearray().join(path.read_bytes() for path in modules)
    letters = torch.frombuffer(text, dtype=torch.uint8)
    return letters[letters < LETTERS]


def train(args: argparse.Namespace, device: torch.device) -> int:
    """Trains, from the checkpoint if there is one, and writes a sample; the exit code of the job."""
    rank, world = dist.get_rank(), dist.get_world_size()

    def say(text: str) -> None:
        if rank == 0:
            print(text, flush=True)

    text = standard_library()
    torch.manual_seed(0)
    model = DistributedDataParallel(
        CharGPT(args.layers, args.width, args.context).to(device),
        device_ids=None if device.type == "cpu" else [device],
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    say(f"{len(text) / 1e6:.1f} M letters of Python, {size:.2f} M parameters, {world} ranks on {device.type}")

    # Saves now and then, and at the end; when told to stop, after the step that is under way, the same on all ranks.
    with checkpoint.Saver(model=model, optimizer=optimizer, every=args.every, dir=args.checkpoint) as saver:
        counted_from = saver.resume()
        if counted_from:
            say(f"resumed from {args.checkpoint}: {counted_from} of {args.steps} steps are done")
        began = time.perf_counter()
        for step in saver.steps(args.steps):
            # The step and the rank choose the text, so that a resumed run reads what an unbroken one would have read.
            dice = torch.Generator().manual_seed(step * world + rank)
            starts = torch.randint(len(text) - args.context, (args.batch,), generator=dice)
            window = torch.stack([text[start : start + args.context + 1] for start in starts]).long().to(device)
            loss = F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

            done = step + 1
            if done % args.every == 0 or done == args.steps:
                speed = (done - counted_from) * world * args.batch * args.context / (time.perf_counter() - began)
                say(f"step {done}/{args.steps}  loss {loss.item():.3f}  {speed:,.0f} tokens/s")
                began, counted_from = time.perf_counter(), done

    if rank == 0 and args.letters:
        model.eval()
        say("\n" + model.module.write("def ", args.letters, device))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Learns to write Python, letter by letter.")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=16, help="texts a rank reads in a step")
    parser.add_argument("--context", type=int, default=96, help="letters in a text")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--every", type=int, default=10, help="steps between lines, and between checkpoints")
    parser.add_argument("--letters", type=int, default=400, help="length of the sample at the end")
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
            print(f"told to stop: {stopped.step} of {args.steps} steps are done{where}", flush=True)
        code = stopped.code
    # Why train() holds the DDP model, and torch.distributed.nn is imported above: digits.py says it at this place.
    dist.destroy_process_group()
    return code


sys.exit(main())
