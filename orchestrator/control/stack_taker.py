"""Where the ranks of a node stand: their stacks by py-spy, or what the kernel tells, and torch's flight recorder.

Everything is bounded in time and size: it is asked of processes of which nothing is known but that they hang. py-spy is
orch's own interpreter's; it reads ranks of any Python. Where the kernel lets nobody look into a process of the same user
(Yama's ptrace_scope, a container without SYS_PTRACE), what /proc tells is left.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import stat
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from orchestrator.health.flight_recorder import LARGEST, Recorded, read_dump
from orchestrator.health.stacks import Frame, RankStack

LOOK_S, NATIVE_S = 5.0, 12.0
"""How long py-spy may take for one process; with native frames, for which it reads the symbols of every library."""
RECORDER_S = 4.0
"""How long torch may take to write a dump; it looks for the request once a second (TORCH_NCCL_COORD_CHECK_MILSEC)."""
TEXT_BYTES = 64 << 10
MOST_FRAMES, MOST_THREADS, MOST_CHILDREN = 60, 40, 4
AT_ONCE = 8
"""Of py-spy: a node of eight ranks must not be kept busy by more."""


async def take(pids: Mapping[int, int | None], recorder: Path, *, whole: bool) -> tuple[RankStack, ...]:
    """Every rank's stack, by the pids of its processes; None for one that has none any more.

    `whole`: with native frames, children and the flight recorder, for which a process is held for up to a second; without,
    nobody is held up. `recorder` is the folder of the flight recorder's pipes and dumps.
    """
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(rank: int, pid: int | None) -> RankStack:
        async with turns:
            return RankStack(rank, 0, "") if pid is None else await _one(rank, pid, whole=whole)

    asked = ask_recorders(recorder, pids) if whole else {}
    found = await asyncio.gather(*(one(rank, pid) for rank, pid in pids.items()))
    if asked:
        stopped = {stack.rank for stack in found if stack.stopped}
        dumps = await asyncio.to_thread(_dumps, recorder, {r: at for r, at in asked.items() if r not in stopped})
        found = [replace(stack, recorded=dumps.get(stack.rank)) for stack in found]
    return tuple(found)


async def _one(rank: int, pid: int, *, whole: bool) -> RankStack:
    state, facts = await asyncio.to_thread(kernel_facts, pid)
    if not state:
        return RankStack(rank, pid, "")
    # A process that is stopped, or stuck in the kernel, cannot be attached to; its memory can be read.
    native = whole and state not in ("T", "t", "D", "Z")
    threads, why = await py_spy(pid, native=native)
    if not threads and native:
        threads, why = await py_spy(pid, native=False)
    lines = [f"pid {pid}, state {state}: {facts}"]
    lines += [why] if why else []
    lines += [line for thread in threads[:MOST_THREADS] for line in _thread_lines(thread)]
    if whole:
        for child in _children(pid):
            inner, _ = await py_spy(child, native=False)
            lines.append(f"child {child}, state {kernel_facts(child)[0]}")
            lines += [f"  {line}" for thread in inner[:1] for line in _thread_lines(thread)]
    return RankStack(rank, pid, state, _frames(threads), "\n".join(lines)[:TEXT_BYTES], moved_bytes(pid))


# === py-spy ===


def _program() -> str:
    """Beside the interpreter, where pip puts it; else where PATH has it, as after `pip install --target`."""
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.exists() else shutil.which("py-spy") or str(beside)


async def py_spy(pid: int, *, native: bool) -> tuple[list[Any], str]:
    """The threads of a process as py-spy gives them, the main one first; none, and why not, where it cannot look."""
    how = ["--native"] if native else ["--nonblocking"]
    try:
        process = await asyncio.create_subprocess_exec(
            _program(), "dump", "--json", *how, "--pid", str(pid),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except OSError as error:
        return [], f"py-spy could not be started: {error.strerror}"
    try:
        out, errors = await asyncio.wait_for(process.communicate(), NATIVE_S if native else LOOK_S)
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        return [], "py-spy gave no answer in time"
    with suppress(ValueError, TypeError, KeyError):
        threads = json.loads(out)
        if threads and isinstance(threads, list):
            return sorted(threads, key=lambda thread: thread["os_thread_id"] != pid), ""
    said = errors.decode("utf-8", "replace").strip().splitlines()
    denied = any(word in line.lower() for line in said for word in ("permission denied", "ptrace"))
    hint = (
        "; `sysctl kernel.yama.ptrace_scope=0` on the node, or CAP_SYS_PTRACE in its container, lets it"
        if denied
        else ""
    )
    return [], f"py-spy could not look: {said[0][:200] if said else 'it said nothing'}{hint}"


def _frames(threads: list[Any]) -> tuple[Frame, ...]:
    """Of the main thread."""
    return tuple(map(_frame, threads[0].get("frames", [])[:MOST_FRAMES])) if threads else ()


def _frame(frame: Any) -> Frame:
    file = frame.get("short_filename") or frame.get("filename") or frame.get("module") or "?"
    # A name of C++ with its templates may be thousands of characters long.
    return Frame(str(frame.get("name", "?"))[:120], str(file)[-160:], int(frame.get("line") or 0))


def _thread_lines(thread: Any) -> list[str]:
    frames = thread.get("frames", [])
    name = str(thread.get("thread_name") or "")[:64]
    head = f"thread {thread.get('os_thread_id')}{f' {name!r}' if name else ''}" + (
        ", active" if thread.get("active") else ", idle"
    )
    more = [f"  ... {len(frames) - MOST_FRAMES} more"] if len(frames) > MOST_FRAMES else []
    return [head, *(f"  {_frame(frame)}" for frame in frames[:MOST_FRAMES]), *more]


def _children(pid: int) -> list[int]:
    with suppress(psutil.Error):
        return [child.pid for child in psutil.Process(pid).children()[:MOST_CHILDREN]]
    return []


# === the kernel ===


def kernel_facts(pid: int, proc: Path = Path("/proc")) -> tuple[str, str]:
    """The state's letter, and what else the kernel tells without asking the process; empty where there is none."""
    folder = proc / str(pid)
    state, facts = "", []
    try:
        status = dict(line.partition(":")[::2] for line in (folder / "status").read_text().splitlines())
        state = status["State"].split()[0]
        facts.append(f"threads {status['Threads'].strip()}, {status.get('VmRSS', '?').strip()} resident")
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        ticks = os.sysconf("SC_CLK_TCK")
        facts.append(f"{(int(fields[11]) + int(fields[12])) / ticks:.1f} s of CPU")
    except (OSError, KeyError, ValueError, IndexError):
        return "", ""
    for name in ("wchan", "syscall", "stack"):
        # The last of them is root's alone.
        with suppress(OSError):
            text = " ".join((folder / name).read_text().split())
            if text and text != "0":
                facts.append(f"{name} {text[:400]}")
    return state, "; ".join(facts)


def moved_bytes(pid: int) -> int:
    """What the process has read and written so far, caches included; 0 where that is not told."""
    with suppress(OSError, ValueError, KeyError):
        told = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
        return int(told["rchar"]) + int(told["wchar"])
    return 0


# === the flight recorder ===


def recorder_env(folder: Path) -> dict[str, str]:
    """How a rank of the NCCL backend is told where its pipe and its dump are: torch adds the rank's number to both.

    How many collectives are kept is torch's own default, 2,000: nothing is added to what it does anyway.
    """
    return {
        "TORCH_FR_DUMP_TEMP_FILE": str(folder / "dump-"),
        "TORCH_NCCL_DEBUG_INFO_PIPE_FILE": str(folder / "ask-"),
    }


def ask_recorders(folder: Path, ranks: Mapping[int, int | None]) -> dict[int, float]:
    """Asks those that listen for a dump; by rank, the wall-clock time before which its dump is an old one."""
    asked = {}
    for rank in ranks:
        with suppress(OSError):
            # Without a reader this fails, and a rank that has no pipe has no NCCL.
            pipe = os.open(folder / f"ask-{rank}.pipe", os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                asked[rank] = time.time()
                os.write(pipe, b"1\n")
            finally:
                os.close(pipe)
    return asked


def _dumps(folder: Path, asked: Mapping[int, float]) -> dict[int, Recorded]:
    """The dumps as they become whole; of those that do not in time, there are none."""
    found: dict[int, Recorded] = {}
    deadline = time.monotonic() + RECORDER_S
    while asked.keys() - found.keys() and time.monotonic() < deadline:
        for rank in asked.keys() - found.keys():
            data = _fresh(folder / f"dump-{rank}", asked[rank])
            if data is not None and (read := read_dump(data)) is not None:
                found[rank] = read
        time.sleep(0.1)
    return found


def _fresh(path: Path, since: float) -> bytes | None:
    """The file's bytes if it was written since then. What lies there is the script's to choose: a link, a pipe, a hole."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            info = os.fstat(descriptor)
            # A second's grace: some file systems keep no better times.
            if stat.S_ISREG(info.st_mode) and info.st_mtime >= since - 1 and info.st_size <= LARGEST:
                return file.read(LARGEST)
    return None
