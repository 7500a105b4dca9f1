"""How long from the request to the first optimizer step of two Gloo ranks: warm ranks, and plain processes.

    PYTHONPATH=. python benchmarks/launcher_floor.py [ROUNDS]

Prints medians and worst cases in seconds, and what a zygote and a waiting rank cost in memory (PSS, MiB).
"""

import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from orchestrator.control.launcher_client import LauncherClient
from orchestrator.control.rank_env import base_env

SCRIPT = """
import time
first_line = time.time()
import torch, torch.distributed as dist
dist.init_process_group("gloo")
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(8, 8))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model(torch.ones(2, 8)).sum().backward()
optimizer.step()
print(first_line, time.time())
"""
ENV = base_env(os.environ)


def environment(rank: int, port: int, mark: str) -> dict[str, str]:
    gang = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    return {
        **ENV,
        **gang,
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "ORCH_MARK": mark,
    }


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def pss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid} has no Pss")


def times(folder: Path, round_: str, asked: float) -> tuple[float, float, float]:
    """Seconds until the last rank's first line, until its first step, and until the end of this call."""
    lines = [list(map(float, (folder / f"{round_}.{rank}.log").read_text().split())) for rank in (0, 1)]
    return max(line[0] for line in lines) - asked, max(line[1] for line in lines) - asked, time.time() - asked


def plain(folder: Path, round_: str) -> tuple[float, float, float]:
    port, asked = free_port(), time.time()
    processes = []
    for rank in (0, 1):
        with open(folder / f"{round_}.{rank}.log", "wb") as log:
            argv = [sys.executable, "-u", "train.py"]
            env = environment(rank, port, "plain")
            processes.append(subprocess.Popen(argv, cwd=folder, env=env, stdout=log, stderr=log))
    assert [process.wait() for process in processes] == [0, 0]
    return times(folder, round_, asked)


async def launched(client: LauncherClient, folder: Path, round_: str) -> tuple[float, float, float]:
    port, asked = free_port(), time.time()
    ranks: list[dict[str, Any]] = [
        {
            "rank": rank, "python": sys.executable, "argv": ["train.py"], "cwd": str(folder),
            "env": environment(rank, port, f"floor.{round_}"), "log": str(folder / f"{round_}.{rank}.log"),
        }
        for rank in (0, 1)
    ]  # fmt: skip
    answer = await client.call("start", attempt=round_, lease_s=60, ranks=ranks)
    assert all(rank["warm"] for rank in answer["ranks"].values()), answer
    async for event in client.events():
        assert event.get("code", 0) == 0, event
        if event["event"] == "ended":
            break
    await client.call("forget", attempt=round_)
    return times(folder, round_, asked)


def report(name: str, rows: list[tuple[float, float, float]]) -> None:
    print(f"{name}, {len(rows)} rounds, seconds from the request (median, worst):")
    for what, column in zip(("first line", "first step", "end"), zip(*rows, strict=True), strict=True):
        print(f"  {what:<12}{statistics.median(column):8.3f}{max(column):8.3f}")


async def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "train.py").write_text(SCRIPT)
        async with LauncherClient(folder / "l", ENV) as client:
            await client.call("warm", python=sys.executable, env=ENV)
            async for event in client.events():
                if event["event"] == "warm":
                    print(f"zygote ready after {event['seconds']:.1f} s of imports")
                    break
            rows = []
            for round_ in range(rounds):
                rows.append(await launched(client, folder, f"w.{round_}"))
                # Runs do not follow one another at once: the next finds its ranks forked, as in use.
                await asyncio.sleep(0.7)
            report("warm", rows)
            zygote = (await client.call("hello"))["zygotes"][sys.executable]["pid"]
            parents = {int(p.name): p for p in Path("/proc").iterdir() if p.name.isdigit()}
            waiting = [pid for pid in parents if pid != zygote and os.getsid(pid) == zygote]
            each = ", ".join(f"{pss_mib(pid):.0f}" for pid in waiting)
            print(f"PSS in MiB: zygote {pss_mib(zygote):.0f}, waiting ranks {each}")
            await client.call("quit")
        report("plain processes", [plain(folder, f"p.{round_}") for round_ in range(max(3, rounds // 4))])


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20))
