"""A small GPT that learns to write Python, letter by letter, from the source of Python's own standard library.

An ordinary torchrun script: torchrun --standalone --nproc-per-node 2 jobs/chargpt.py --steps 100
With a checkpoint folder (--checkpoint, or ORCH_CHECKPOINT_DIR) it saves now and then, and when it is told to stop, and
goes on from there when it is started again. On a GPU, a larger one: --layers 8 --width 512 --context 512 --batch 32.
"""

import argparse
import os
import signal
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


def save(path: Path, state: dict[str, object]) -> None:
    """Writes the checkpoint beside its place and renames it: whoever reads finds the old one or the new one, whole."""
    draft = path.with_name(f"{path.name}.{os.environ.get('ORCH_ATTEMPT', os.getpid())}")
    torch.save(state, draft)
    with open(draft, "rb") as file:
        os.fsync(file.fileno())
    draft.replace(path)


def train(args: argparse.Namespace, device: torch.device, told_to_stop: list[bool]) -> int:
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

    first = 0
    path = args.checkpoint / "chargpt.pt" if args.checkpoint else None
    if path and path.exists():
        saved = torch.load(path, map_location=device, weights_only=True)
        model.module.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["steps_done"]
        say(f"resumed from {path}: {first} of {args.steps} steps are done")
    elif path:
        path.parent.mkdir(parents=True, exist_ok=True)

    began, counted_from = time.perf_counter(), first
    for step in range(first, args.steps):
        # The step and the rank choose the text, so that a resumed run reads what an unbroken one would have read.
        dice = torch.Generator().manual_seed(step * world + rank)
        starts = torch.randint(len(text) - args.context, (args.batch,), generator=dice)
        window = torch.stack([text[start : start + args.context + 1] for start in starts]).long().to(device)
        loss = F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        done = step + 1
        if done % args.every and done != args.steps:
            continue
        # SIGTERM reaches the ranks at different moments; they agree here, so that all leave after the same step.
        stop = torch.tensor([float(bool(told_to_stop))], device=device)
        dist.all_reduce(stop, op=dist.ReduceOp.MAX)
        speed = (done - counted_from) * world * args.batch * args.context / (time.perf_counter() - began)
        say(f"step {done}/{args.steps}  loss {loss.item():.3f}  {speed:,.0f} tokens/s")
        if path and rank == 0:
            save(path, {"model": model.module.state_dict(), "optimizer": optimizer.state_dict(), "steps_done": done})
        if stop.item() and done < args.steps:
            say(f"told to stop: {done} of {args.steps} steps are done{f' and saved in {path}' if path else ''}")
            return 128 + signal.SIGTERM
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

    told_to_stop: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: told_to_stop.append(True))

    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group(os.environ.get("ORCH_BACKEND") or ("nccl" if cuda else "gloo"))
    code = train(args, device, told_to_stop)
    # Why train() holds the DDP model, and torch.distributed.nn is imported above: digits.py says it at this place.
    dist.destroy_process_group()
    return code


sys.exit(main())
