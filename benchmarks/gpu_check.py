"""What only real GPUs can show, in one command: the probe against nvidia-smi, placement, cuDNN's switches, a killed run's GPU.

    python benchmarks/gpu_check.py [--gpus 2]

Prints sections in Markdown for docs/gpu.md and ends with 1 if a check failed. Nothing is left running.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from orchestrator.hardware.probe import probe

ORCH = [sys.executable, "-m", "cli"]
FAILED: list[str] = []

CUDNN = """
import os, torch
flags = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, os.environ.get("CUBLAS_WORKSPACE_CONFIG")
print("cudnn", torch.backends.cudnn.version(), *flags)
"""
HOLD = """
import os, time, torch
kept = torch.ones(1 << 28, device="cuda")
print("holding", torch.cuda.memory_allocated() >> 20, "MiB as", os.getpid(), flush=True)
time.sleep(600)
"""
REDUCE = """
import os, time, torch, torch.distributed as dist
rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
torch.cuda.set_device(local)
dist.init_process_group("nccl", device_id=torch.device("cuda", local))
x = torch.ones(64 << 20, device="cuda")
for _ in range(5):
    dist.all_reduce(x)
torch.cuda.synchronize()
began = time.perf_counter()
for _ in range(20):
    dist.all_reduce(x)
torch.cuda.synchronize()
n, seconds = dist.get_world_size(), (time.perf_counter() - began) / 20
if rank == 0:
    print(f"all-reduce of 256 MiB on {n} GPUs: bus bandwidth {x.nbytes / seconds * 2 * (n - 1) / n / 1e9:.0f} GB/s")
dist.destroy_process_group()
"""


def check(what: str, good: bool) -> None:
    print(f"- {'ok' if good else 'FAILED'}: {what}", flush=True)
    if not good:
        FAILED.append(what)


def run(*command: str, timeout: float = 90) -> subprocess.CompletedProcess[str]:
    print(f"\n    $ {' '.join(command).replace(sys.executable + ' -m cli', 'orch')}", flush=True)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as late:
        done = subprocess.CompletedProcess(command, 124, str(late.stdout or ""), f"no end within {timeout:.0f} s")
    for line in (done.stdout + done.stderr).splitlines():
        print(f"    {line}", flush=True)
    return done


def smi(*fields: str) -> list[list[str]]:
    query = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    text = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    return [[cell.strip() for cell in row] for row in csv.reader(text.splitlines())]


def against_nvidia_smi() -> None:
    print("\n## The probe against nvidia-smi\n")
    began = time.perf_counter()
    found = probe()
    print(f"The probe took {time.perf_counter() - began:.2f} s: {found.versions}, {len(found.node.nics)} RDMA ports.\n")
    for (index, uuid, name, memory, bus, driver), gpu, mine in zip(
        smi("index", "uuid", "name", "memory.total", "pci.bus_id", "driver_version"),
        found.node.gpus,
        found.node.uuids,
        strict=True,
    ):
        same = (str(gpu.index), mine, gpu.model, driver) == (index, uuid, name, found.versions.driver)
        check(f"GPU {index}: {name}, {uuid}, driver {driver}", same)
        check(f"GPU {index}: {memory} MiB, PCI {bus}", abs(int(memory) - (gpu.memory_mib or 0)) <= 1)
        check(f"GPU {index}: its PCI address", bus.lower().endswith((gpu.bus_id or "?").lower().removeprefix("0000")))
    run("nvidia-smi", "topo", "-m")
    print(f"\n    links {found.node.shape.pairs()}, islands {found.node.islands}, NVSwitch {found.node.shape.nvswitch}")
    for note in found.notes:
        print(f"    {note}")


def on_a_cluster(gpus: int) -> None:
    home = Path(tempfile.mkdtemp(prefix="oc-"))
    os.environ["ORCH_HOME"] = str(home / "h")
    job = home / "job"
    job.mkdir()
    os.chdir(job)
    for name, text in (("cudnn", CUDNN), ("hold", HOLD), ("reduce", REDUCE)):
        Path(f"{name}.py").write_text(text)
    Path("cudnn.yaml").write_text("run: cudnn.py\ncudnn: {benchmark: true, deterministic: true}\n")
    Path("hold.yaml").write_text("run: hold.py\ngrace: 1s\nretry: {infra: 0}\n")
    Path("reduce.yaml").write_text(f"run: reduce.py\nworkers: 1x{gpus}\n")
    try:
        run(*ORCH, "up")
        print("\n## What orch sees")
        run(*ORCH, "nodes")
        run(*ORCH, "topo")
        run(*ORCH, "topo", "--node", json.loads(run(*ORCH, "nodes", "--json").stdout)[0]["node"])
        run(*ORCH, "plan", "reduce.yaml")
        versions()
        print("\n## A gang on all GPUs")
        check("the gang's run succeeded", run(*ORCH, "submit", "reduce.yaml", "--follow").returncode == 0)
        shown = json.loads(
            subprocess.run([*ORCH, "show", "reduce", "--json"], capture_output=True, text=True, check=True).stdout
        )
        print(f"\n    placement {shown['attempts'][0]['placement']}")
        print("\n## cuDNN's switches")
        for way in ([], ["--set", "env={TORCH_LOGS: -all}"]):
            said = run(*ORCH, "submit", "cudnn.yaml", "--follow", *way)
            check("set before the script's first line", "True True :4096:8" in said.stdout)
        print("\n## A run that is killed leaves nothing on the GPU")
        run_id = run(*ORCH, "submit", "hold.yaml").stdout.strip()
        wait(lambda: "holding" in quiet(*ORCH, "logs", run_id), 60)
        print(f"\n    nvidia-smi while it runs: {smi('memory.used')} MiB")
        pid = quiet(*ORCH, "logs", run_id).split()[-1]
        subprocess.run(["kill", "-9", pid], check=True)
        began = time.perf_counter()
        wait(lambda: '"state": "failed"' in quiet(*ORCH, "show", run_id, "--json"), 60)
        print(f"    seen as failed {time.perf_counter() - began:.2f} s after kill -9")
        run(*ORCH, "show", run_id)
        print(f"\n    nvidia-smi after it: {smi('memory.used')} MiB")
        left = subprocess.run(
            ["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader"], capture_output=True, text=True
        )
        check("no process is left on a GPU", not left.stdout.strip())
    finally:
        run(*ORCH, "down", "--force")


def versions() -> None:
    """doctor against nvidia-smi and torch itself; a driver that is not there is refused with numbers."""
    import torch

    print("\n## Doctor against nvidia-smi and torch")
    run(*ORCH, "doctor")
    facts = json.loads(quiet(*ORCH, "doctor", "--json"))["nodes"][0]
    cudnn = torch.backends.cudnn.version()
    told = {
        "driver": smi("driver_version")[0][0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": f"{cudnn // 10000}.{cudnn // 100 % 100}.{cudnn % 100}",
        "nccl_loaded": ".".join(map(str, torch.cuda.nccl.version())),
        "gpus": [name for (name,) in smi("name")],
    }
    for key, expected in told.items():
        check(f"{key}: {expected}", facts[key] == expected)
    Path("newer.yaml").write_text('run: cudnn.py\nrequires: {driver: ">=999", torch: ">=2"}\n')
    refused = run(*ORCH, "submit", "newer.yaml")
    says = f"driver {told['driver']} is older than 999" in refused.stderr
    check("a run that requires a newer driver is refused with the numbers", refused.returncode == 5 and says)


def quiet(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout


def wait(condition: object, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            FAILED.append("a wait")
            print(f"    not within {seconds:.0f} s")
            return
        time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=len(smi("index")))
    options = parser.parse_args()
    against_nvidia_smi()
    on_a_cluster(options.gpus)
    print(f"\n{'All checks passed.' if not FAILED else 'FAILED: ' + '; '.join(FAILED)}")
    sys.exit(bool(FAILED))


if __name__ == "__main__":
    main()
