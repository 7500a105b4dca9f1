"""What the scripts for real GPUs share: a private cluster, the command, torchrun, a DDP script, and checks that are counted.

Unlike harness.py it takes the environment as it is: on such a machine Ray and the rest are found through PYTHONPATH.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
ORCH = [sys.executable, "-m", "cli"]
FAILED: list[str] = []
# A time limit from outside must not leave a cluster behind.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
LIMIT_S = 150.0

DDP = """
import argparse, json, os, time
import torch, torch.distributed as dist
options = argparse.ArgumentParser()
for name in ("--device", "--seconds"):
    options.add_argument(name)
options = options.parse_args()
cuda = options.device == "cuda"
local = int(os.environ["LOCAL_RANK"])
device = torch.device("cuda", local) if cuda else torch.device("cpu")
if cuda:
    torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_tf32 = True
else:
    torch.set_num_threads(1)
dist.init_process_group("nccl" if cuda else "gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
width, batch = (4096, 8192) if cuda else (256, 64)  # on GPUs 134 MB of gradients
model = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.ReLU(), torch.nn.Linear(width, width)).to(device)
model = torch.nn.parallel.DistributedDataParallel(model, device_ids=[local] if cuda else None)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
x = torch.randn(batch, width, device=device)

def steps(count):
    for _ in range(count):
        optimizer.zero_grad(set_to_none=True)
        model(x).pow(2).mean().backward()
        optimizer.step()
    if cuda:
        torch.cuda.synchronize()

steps(20)
dist.barrier()
blocks, began = [], time.time()
while True:
    before = time.perf_counter()
    steps(10)
    blocks.append((time.perf_counter() - before) / 10)
    more = torch.tensor([float(time.time() - began < float(options.seconds))], device=device)
    dist.broadcast(more, 0)
    if not more.item():
        break
blocks.sort()
if rank == 0:
    step = blocks[len(blocks) // 2]
    told = {"ranks": ranks, "step_ms": step * 1e3, "samples_per_s": ranks * batch / step, "began": began, "ended": time.time()}
    print("RESULT " + json.dumps(told), flush=True)
del model, optimizer
dist.destroy_process_group()
"""
"""Weak scaling: the batch of a rank is the same however many there are. Prints the median of blocks of ten steps."""


def check(what: str, good: bool) -> bool:
    print(f"- {'ok' if good else 'FAILED'}: {what}", flush=True)
    if not good:
        FAILED.append(what)
    return good


def table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [titles, ["---"] * len(titles), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def section(title: str) -> None:
    print(f"\n## {title}\n", flush=True)


class Failure(RuntimeError):
    """A command did not do what it should."""


def run(
    command: Sequence[str], *, env: dict[str, str] | None = None, cwd: Path | None = None, timeout: float = LIMIT_S
) -> str:
    """A command's standard output. Raises Failure with what it said. What it started is ended with it after `timeout`."""
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        cwd=cwd,
        start_new_session=True,
    ) as process:
        try:
            said, complaint = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise Failure(f"{' '.join(command)[:200]}: no end within {timeout:.0f} s") from None
    if process.returncode:
        raise Failure(f"{' '.join(command)[:200]} ended with {process.returncode}: {(said + complaint)[-1500:]}")
    return said


def result(text: str) -> dict[str, Any]:
    """What a script said in its line RESULT."""
    lines = [line.partition("RESULT ")[2] for line in text.splitlines() if "RESULT " in line]
    if not lines:
        raise Failure(f"no line RESULT in {text[-500:]!r}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def torchrun(script: Path, ranks: int, *arguments: str) -> str:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return run([*launcher, str(script), *arguments], env=env, cwd=script.parent)


class Home:
    """One ORCH_HOME in a short temporary folder, and `orch` on it."""

    def __init__(self, device: str, slots: int, **variables: str) -> None:
        self.device = device
        self.folder = Path(tempfile.mkdtemp(prefix="ob-", dir="/tmp"))
        paths = [str(REPOSITORY), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ORCH_")}
        self.env = kept | {
            "ORCH_HOME": str(self.folder / "h"),
            "ORCH_LOCAL_SLOTS": str(slots),
            "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
            **variables,
        }

    def __call__(self, *arguments: str, timeout: float = LIMIT_S) -> str:
        return run([*ORCH, *arguments], env=self.env, cwd=self.folder, timeout=timeout)

    def json(self, *arguments: str, timeout: float = LIMIT_S) -> Any:
        return json.loads(self(*arguments, "--json", timeout=timeout))

    def job(self, script: str, *, workers: str, name: str = "train", run: str = "", **keys: Any) -> str:
        """Writes a job and gives its file's path."""
        folder = self.folder / f"{name}-{workers}"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(script)
        job = {"run": f"{name}.py {run}".strip(), "name": name, "workers": workers, "device": self.device, **keys}
        (folder / "job.yaml").write_text(json.dumps(job))  # JSON is YAML
        return str(folder / "job.yaml")

    def finished(self, run_id: str) -> str:
        """Waits for a run's end; rank 0's log."""
        return self("logs", "--rank", "0", "-f", run_id)

    def __enter__(self) -> Home:
        try:
            self("up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Failure):
            self("down", "--force")
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def two_raylets(device: str, each: int) -> Iterator[str]:
    """This host as a Ray cluster of two nodes with half of the GPUs (or CPU slots) each; the head's address.

    NCCL_HOSTID makes NCCL take them for two hosts: it then goes over the network, as between real ones.
    """
    import psutil
    from harness import free_port

    folder = Path(tempfile.mkdtemp(prefix="or-", dir="/tmp"))
    started = time.time()
    port = free_port()
    try:
        for number, name in enumerate(("half-a", "half-b")):
            gpus = ",".join(str(number * each + i) for i in range(each)) if device == "cuda" else ""
            env = os.environ | {"RAY_AUTH_MODE": "disabled", "NCCL_HOSTID": name, "CUDA_VISIBLE_DEVICES": gpus}
            role = (
                ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}",
                 f"--ray-client-server-port={free_port()}"]
                if number == 0
                else [f"--address={_address()}:{port}"]
            )  # fmt: skip
            command = [sys.executable, "-m", "ray.scripts.scripts", "start", *role, f"--node-name={name}"]
            command += [f"--node-ip-address={_address()}", f"--num-cpus={max(2, each)}"]
            command += [f"--num-gpus={each if device == 'cuda' else 0}", f"--dashboard-agent-listen-port={free_port()}"]
            command += ["--disable-usage-stats", "--object-store-memory=200000000"]
            run(command, env=env)
        yield f"{_address()}:{port}"
    finally:
        # Not `ray stop`, which ends every Ray of the machine: what was started here since and names the session's folder.
        mine = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                named = any(str(folder) in word for word in process.cmdline())
                if named and process.pid != os.getpid() and process.create_time() >= started - 1:
                    mine += [process, *process.children(recursive=True)]
        for process in mine:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(mine, timeout=5)
        shutil.rmtree(folder, ignore_errors=True)


def _address() -> str:
    """This machine's own address: a head on loopback is not found by `ray.init`."""
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # sends nothing; says by which address this host would
        return str(probe.getsockname()[0])
    return socket.gethostbyname(socket.gethostname())


def device_name(device: str) -> str:
    if device == "cpu":
        return "CPU rank"
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()


def gigabytes(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def bytes_of(text: str) -> int:
    """Bytes of `64M` or `1G`."""
    return int(text[:-1]) << {"K": 10, "M": 20, "G": 30}[text[-1]]


def shown(count: int) -> str:
    """Bytes as `64M` or `1G`."""
    return next((f"{count >> p}{letter}" for letter, p in (("G", 30), ("M", 20)) if count >= 1 << p), f"{count >> 10}K")


def the_end() -> None:
    print(f"\n{'All checks passed.' if not FAILED else 'FAILED: ' + '; '.join(FAILED)}", flush=True)
    sys.exit(bool(FAILED))
