"""What an interpreter brings: its torch, CUDA, cuDNN and NCCL, told by the interpreter itself in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.health.compatibility import version
from orchestrator.health.facts import Interpreter

PROGRAM = Path(__file__).with_name("tell_versions.py")
MARK = "orch-versions: "
TIMEOUT_S = 120.0
"""Importing torch takes 2 s from a warm disk, and a minute from a network file system that is busy."""

Stamps = Mapping[str, tuple[int, int, int] | None]


@dataclass(frozen=True)
class Told:
    """An interpreter's answer, and the files that it holds for."""

    interpreter: Interpreter
    stamps: Stamps
    certain: bool = True
    """False where asking again might give another answer though no file has changed: it took too long."""

    def holds(self) -> bool:
        """Whether none of the files has changed since."""
        return all(stamp(path) == seen for path, seen in self.stamps.items())


def stamp(path: str) -> tuple[int, int, int] | None:
    """What changes with a file; None where there is none."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def ask(
    python: str,
    env: Mapping[str, str],
    timeout_s: float = TIMEOUT_S,
    started: Callable[[subprocess.Popen[str]], None] = lambda process: None,
) -> Told:
    """Runs the interpreter once, with the environment that ranks get. Never raises for what is wrong with it.

    It imports torch, at the lowest priority, and makes no CUDA context. `started` gets the process, whose group ends with it.
    """
    stamps = {python: stamp(python)}
    if stamps[python] is None:
        return Told(Interpreter(python, problem="is not there"), stamps)
    try:
        process = subprocess.Popen(
            [python, "-u", str(PROGRAM)],
            env=dict(env),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return Told(Interpreter(python, problem=f"cannot be run: {error.strerror}"), stamps)
    try:
        started(process)
        said, complaints = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return Told(
            Interpreter(python, problem=f"did not import torch within {timeout_s:.0f} s"), stamps, certain=False
        )
    finally:
        # What it may have started goes with it.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=5)
    told = _answer(said)
    if told is None:
        return Told(Interpreter(python, problem=_why_silent(process.returncode, complaints)), stamps, certain=False)
    files: Sequence[str] = told.pop("files", ())
    return Told(_interpreter(python, told), stamps | {path: stamp(path) for path in files})


def _answer(said: str) -> dict[str, Any] | None:
    """The last line with the mark: what else was imported may print too."""
    for line in reversed(said.splitlines()):
        if line.startswith(MARK):
            with suppress(ValueError):
                told = json.loads(line.removeprefix(MARK))
                return told if isinstance(told, dict) else None
    return None


def _why_silent(code: int, complaints: str) -> str:
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    last = (complaints.strip().splitlines() or ["and said nothing"])[-1]
    return f"{how} when it was asked for its versions: {last[:300]}"


def _interpreter(python: str, told: Mapping[str, Any]) -> Interpreter:
    cudnn = None if told.get("cudnn") is None else str(told["cudnn"])
    number = version(cudnn)
    return Interpreter(
        python,
        told.get("version"),
        told.get("torch"),
        told.get("cuda"),
        str(number) if number else cudnn,
        told.get("nccl"),
        told.get("nccl_loaded"),
        told.get("nccl_path"),
        tuple(told.get("plugins") or ()),
        told.get("problem"),
    )
