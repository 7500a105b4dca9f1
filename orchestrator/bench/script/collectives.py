"""Measures torch's collectives as nccl-tests does: time, algorithm bandwidth and bus bandwidth by size.

An ordinary torchrun script that needs nothing but torch. Rank 0 prints a table, and after each row the same as one line that
a program reads: MARK and a JSON object. docs/bench.md says what is measured and how. Ends with 1 where a value was wrong.
"""

import argparse
import json
import os
import pathlib
import re
import signal
import socket
import sys
import time

MARK = "ORCH_BENCH "
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all")
IN_PLACE = ("all_reduce", "broadcast")
ELEMENT = 4  # float32
BUDGET_S = 0.25
FEWEST, MOST, WARMUP = 3, 100, 5


def busbw_factor(collective, ranks):
    """What turns S/t into bus bandwidth (nccl-tests, doc/PERFORMANCE.md). S is the whole buffer, also of the ranks' parts."""
    if collective == "all_reduce":
        return 2 * (ranks - 1) / ranks
    return 1.0 if collective == "broadcast" else (ranks - 1) / ranks


def fitted(size, collective, ranks):
    """Bytes that are really sent: whole elements, and the same number of them for each rank where each has a part."""
    parts = 1 if collective in IN_PLACE else ranks
    return max(1, size // (ELEMENT * parts)) * ELEMENT * parts


def sizes_between(least, most, factor):
    found, size = [], least
    while size <= most:
        found.append(size)
        size = max(size + 1, int(size * factor))
    return found


def iterations(seconds, asked):
    """How often a collective of so many seconds is repeated: enough to measure, few enough to stay within the budget."""
    return asked or max(FEWEST, min(MOST, int(BUDGET_S / max(seconds, 1e-9))))


class Buffers:
    """The tensors of one collective at one size, the values that they begin with, and those that must come out."""

    def __init__(self, torch, collective, size, rank, ranks, device):
        self.torch, self.collective, self.rank, self.ranks = torch, collective, rank, ranks
        count = size // ELEMENT
        part = count // ranks if collective not in IN_PLACE else count
        self.sent = torch.empty(part if collective == "all_gather" else count, device=device)
        self.got = self.sent
        if collective not in IN_PLACE:
            self.got = torch.empty(part if collective == "reduce_scatter" else count, device=device)

    def values(self, count, of_rank, start=0):
        # Small whole numbers, whose sums floats hold exactly in any order.
        ramp = self.torch.arange(start, start + count, device=self.sent.device).remainder_(61)
        return ramp.to(self.torch.float32).add_(of_rank)

    def fill(self):
        self.got.fill_(-1.0)
        self.sent.copy_(self.values(self.sent.numel(), self.rank))

    def wrong(self):
        """How many values are not what they must be after one call that began with `fill`."""
        count, ranks, torch = self.sent.numel(), self.ranks, self.torch
        part = max(1, self.got.numel() // ranks)
        if self.collective in ("all_reduce", "reduce_scatter"):
            start = self.rank * self.got.numel() if self.collective == "reduce_scatter" else 0
            due = self.values(self.got.numel(), 0, start).mul_(ranks).add_(ranks * (ranks - 1) / 2)
        elif self.collective == "broadcast":
            due = self.values(count, 0)
        elif self.collective == "all_gather":
            due = torch.cat([self.values(count, other) for other in range(ranks)])
        else:
            due = torch.cat([self.values(part, other, self.rank * part) for other in range(ranks)])
        return int((self.got != due).sum())

    @staticmethod
    def newest(dist, name, name_before):
        # torch 2.13 renamed them, and warns of the names that earlier ones know.
        return getattr(dist, name, None) or getattr(dist, name_before)

    def call(self, dist, group):
        if self.collective == "all_reduce":
            dist.all_reduce(self.sent, group=group)
        elif self.collective == "broadcast":
            dist.broadcast(self.sent, 0, group=group)
        elif self.collective == "all_gather":
            self.newest(dist, "all_gather_single", "all_gather_into_tensor")(self.got, self.sent, group=group)
        elif self.collective == "reduce_scatter":
            self.newest(dist, "reduce_scatter_single", "reduce_scatter_tensor")(self.got, self.sent, group=group)
        else:
            dist.all_to_all_single(self.got, self.sent, group=group)


class Bench:
    """The ranks of one run. `control` is a Gloo group for what they tell each other beside what is measured."""

    def __init__(self, torch, device):
        import torch.distributed as dist

        self.torch, self.dist, self.device = torch, dist, device
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()

    def over_ranks(self, value, how):
        """Sum or greatest of a number over the ranks."""
        told = self.torch.tensor([float(value)], dtype=self.torch.float64)
        self.dist.all_reduce(told, op=getattr(self.dist.ReduceOp, how))
        return float(told[0])

    def together(self, work):
        """The ranks' failure to do `work`, in words; None where all did it. One that fails alone must not leave the others."""
        said = None
        try:
            work()
        except (RuntimeError, NotImplementedError, ValueError) as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        told = [None] * self.ranks
        self.dist.all_gather_object(told, said)
        return next((one for one in told if one), None)

    def seconds(self, buffers, group, count):
        """Mean seconds of one call, over `count` calls and over the ranks."""
        torch = self.torch
        self.dist.barrier()
        if self.device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            begin.record()
            for _ in range(count):
                buffers.call(self.dist, group)
            end.record()
            end.synchronize()
            mine = begin.elapsed_time(end) / 1e3
        else:
            began = time.perf_counter()
            for _ in range(count):
                buffers.call(self.dist, group)
            mine = time.perf_counter() - began
        return self.over_ranks(mine, "SUM") / self.ranks / count

    def once(self, buffers, group):
        buffers.fill()
        buffers.call(self.dist, group)
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()

    def measure(self, backend, group, collective, size, asked):
        """One row: {"collective", "backend", "bytes", "time_us", "algbw", "busbw", "iterations", "wrong"} or with "skipped"."""
        size = fitted(size, collective, self.ranks)
        row = {"collective": collective, "backend": backend, "bytes": size, "in_place": collective in IN_PLACE}
        made = []
        failed = self.together(
            lambda: made.append(Buffers(self.torch, collective, size, self.rank, self.ranks, self.device))
        )
        failed = failed or self.together(lambda: self.once(made[0], group))
        if failed:
            return {**row, "skipped": failed}
        buffers = made[0]
        self.once(buffers, group)
        wrong = self.over_ranks(buffers.wrong(), "SUM")
        first = self.seconds(buffers, group, 1)
        count = int(self.over_ranks(iterations(first, asked), "MIN"))
        for _ in range(min(WARMUP, count // 2)):
            buffers.call(self.dist, group)
        took = self.seconds(buffers, group, count)
        self.once(buffers, group)
        wrong += self.over_ranks(buffers.wrong(), "SUM")
        algbw = size / took / 1e9
        return {
            **row,
            "time_us": round(took * 1e6, 2),
            "algbw": round(algbw, 4),
            "busbw": round(algbw * busbw_factor(collective, self.ranks), 4),
            "iterations": count,
            "wrong": int(wrong),
        }


def say(rank, value, text):
    """The same for people and for programs, each line in one write."""
    if rank == 0:
        sys.stdout.write(f"{text}\n{MARK}{json.dumps(value, separators=(',', ':'))}\n")
        sys.stdout.flush()


def row_text(row):
    if "skipped" in row:
        return f"{row['bytes']:>14,}  skipped: {row['skipped']}"
    return (
        f"{row['bytes']:>14,} {row['time_us']:>12,.1f} {row['algbw']:>10.2f} {row['busbw']:>10.2f} {row['iterations']:>6} "
        f"{row['wrong']:>7}"
    )


VIA = re.compile(r" via (P2P|SHM|COLLNET|NVLS|NET/[^/\s(]+)([^\n]*)")


def log_nccl():
    """Lets NCCL say to a file over what its channels go; the pattern of the files' names. A file that is set already stays."""
    if os.environ.get("NCCL_DEBUG", "").upper() in ("", "VERSION", "WARN"):
        os.environ["NCCL_DEBUG"] = "INFO"
    if "NCCL_DEBUG_FILE" not in os.environ:
        os.environ["NCCL_DEBUG_FILE"] = os.path.abspath("nccl.%h.%p.log")  # noqa: PTH100
    return os.environ["NCCL_DEBUG_FILE"]


def transports(pattern):
    """How many of this process's channels go over what, by NCCL's own log; {} where it wrote none."""
    log = pathlib.Path(pattern.replace("%h", socket.gethostname()).replace("%p", str(os.getpid())))
    found = {}
    for kind, rest in VIA.findall(log.read_text(errors="replace")) if log.is_file() else ():
        kind += "/GDRDMA" if "GDRDMA" in rest else ""
        found[kind] = found.get(kind, 0) + 1
    return found


def versions(torch, cuda):
    found = {"torch": torch.__version__, "cuda": torch.version.cuda}
    if cuda:
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
        found["cudnn"] = torch.backends.cudnn.version()
    return {name: value for name, value in found.items() if value is not None}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="auto", help="nccl, gloo or both, with commas")
    parser.add_argument("--collective", default="all_reduce", help=f"of {', '.join(COLLECTIVES)}, with commas")
    parser.add_argument("--least", type=int, default=1 << 20, help="bytes")
    parser.add_argument("--most", type=int, default=0, help="bytes; 0: 1 GiB by NCCL, 64 MiB by Gloo")
    parser.add_argument("--factor", type=float, default=2.0)
    parser.add_argument("--iters", type=int, default=0, help="0: as many as fit into a quarter of a second")
    parser.add_argument(
        "--within", type=float, default=0, help="seconds, after which each rank is killed, whatever it waits for"
    )
    return parser.parse_args()


def main():
    options = arguments()
    # Not handled, so that it ends a rank that hangs in NCCL's or Gloo's own code too.
    signal.setitimer(signal.ITIMER_REAL, options.within)
    pattern = log_nccl()

    import torch
    import torch.distributed as dist

    if options.within:
        # From here on what goes wrong is between the ranks.
        print(MARK + json.dumps({"here": int(os.environ["RANK"])}), flush=True)
    local = int(os.environ["LOCAL_RANK"])
    cuda = bool(os.environ.get("CUDA_VISIBLE_DEVICES", "all")) and torch.cuda.is_available()
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    else:
        # Reductions by Gloo run in its own threads.
        torch.set_num_threads(1)
    names = ("nccl" if cuda else "gloo") if options.backend == "auto" else options.backend
    dist.init_process_group("gloo")
    bench = Bench(torch, device)
    where = [None] * bench.ranks
    dist.all_gather_object(where, (socket.gethostname(), torch.cuda.get_device_name(device) if cuda else "CPU"))
    begun = {"ranks": bench.ranks, "versions": versions(torch, cuda), "devices": sorted({model for _, model in where})}
    say(bench.rank, begun, f"# {bench.ranks} x {', '.join(begun['devices'])}: {begun['versions']}")
    bad = 0
    for backend in names.split(","):
        if backend == "nccl" and not cuda:
            for collective in options.collective.split(","):
                row = {"collective": collective, "backend": backend, "bytes": 0, "skipped": "NCCL needs GPUs"}
                say(bench.rank, row, row_text(row))
            continue
        group = dist.new_group(backend=backend)
        most = options.most or (1 << 30 if backend == "nccl" else 64 << 20)
        for collective in options.collective.split(","):
            if bench.rank == 0:
                print(f"# {collective} by {backend}\n#        bytes      time us      algbw      busbw  iters   wrong")
            for size in sizes_between(min(options.least, most), most, options.factor):
                row = bench.measure(backend, group, collective, size, options.iters)
                say(bench.rank, row, row_text(row))
                bad += row.get("wrong", 0)
                if "skipped" in row:
                    break
        if backend == "nccl":
            told = [None] * bench.ranks
            dist.all_gather_object(told, transports(pattern))
            every = sorted({kind for one in told for kind in one})
            links = {kind: sum(one.get(kind, 0) for one in told) for kind in every}
            if links:
                say(bench.rank, {"transport": links}, f"# NCCL's channels: {links}")
    dist.barrier()
    dist.destroy_process_group()
    if bad:
        sys.exit(f"{bad} values were wrong: what was measured moved the wrong bytes")


if __name__ == "__main__":
    main()
