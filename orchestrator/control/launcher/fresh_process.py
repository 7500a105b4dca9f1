"""What a fork of a warm process changes to be what `python -u script.py` finds itself in: a fresh interpreter's process.

Loaded by rank.py in any interpreter from Python 3.9 on: standard library only.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
import threading
import time
from typing import Any

TORCH_FIXED_SEED = 67280421310721
"""What some versions of torch start every process with; others draw a seed."""
ZYGOTE_FOLDER = os.getcwd()


def openblas_setters() -> list[Any]:
    """The functions that set the number of threads of each OpenBLAS in this process, numpy's for instance."""
    with open("/proc/self/maps") as stream:
        paths = {line.split(maxsplit=5)[5].strip() for line in stream if "openblas" in line}
    names = [
        f"{prefix}openblas_set_num_threads{suffix}" for prefix in ("", "scipy_") for suffix in ("", "64_", "_64", "_")
    ]
    libraries = [ctypes.CDLL(path) for path in paths]
    return [getattr(library, name) for library in libraries for name in names if hasattr(library, name)]


def prepare(rank: dict[str, Any], libc: Any, openblas: list[Any]) -> None:
    """Makes of this fork what `python -u script.py` finds itself in."""
    os.setsid()
    log = os.open(rank["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.chdir(rank["cwd"])
    take_environment(rank["env"], libc)
    show_in_proc(rank["argv"], rank["env"])
    loaded = sys.modules
    move_to(os.getcwd())
    if rank.get("cpus"):
        run_on(rank["cpus"])
    if "logging" in loaded:
        logging = vars(loaded["logging"])
        logging["_startTime"] = time.time_ns() if isinstance(logging["_startTime"], int) else time.time()
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads and "torch" in loaded:
        # libgomp and OpenBLAS read the variable when they were loaded.
        loaded["torch"].set_num_threads(int(threads))
        if not {"OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS"} & os.environ.keys():
            for set_threads in openblas:
                set_threads(min(int(threads), len(os.sched_getaffinity(0))))
    set_cudnn(rank["cudnn"])


def run_on(cpus: list[int]) -> None:
    os.sched_setaffinity(0, cpus)
    inductor = sys.modules.get("torch._inductor.config")
    if inductor is not None and hasattr(inductor, "decide_compile_threads"):
        # It has counted the CPUs when it was imported.
        vars(inductor)["_config"]["compile_threads"].default = inductor.decide_compile_threads()


def set_cudnn(flags: dict[str, bool]) -> None:
    for name, value in flags.items():
        setattr(sys.modules["torch"].backends.cudnn, name, value)


def move_to(folder: str) -> None:
    """Replaces the folder that modules took for the current one when they were imported."""
    loaded = sys.modules
    if "multiprocessing.process" in loaded:
        vars(loaded["multiprocessing.process"])["ORIGINAL_DIR"] = folder
    for name in ("torch._dynamo.config", "torch._inductor.config"):
        for entry in getattr(loaded.get(name), "_config", {}).values():
            default = getattr(entry, "default", None)
            if isinstance(default, str) and default.startswith(ZYGOTE_FOLDER):
                entry.default = folder + default[len(ZYGOTE_FOLDER) :]


def renew() -> None:
    """Gives this fork its own numbers, its own identity, and import caches as empty as a fresh interpreter's."""
    loaded = sys.modules
    importlib.invalidate_caches()
    if "numpy.random" in loaded:
        loaded["numpy.random"].seed()
    if "torch" in loaded:
        generator = loaded["torch"].default_generator
        if generator.initial_seed() != TORCH_FIXED_SEED:
            generator.seed()
    if "multiprocessing.process" in loaded:
        loaded["multiprocessing.process"].current_process().authkey = os.urandom(32)
    # Python 3.11 keeps the parent's.
    set_native_id = getattr(threading.main_thread(), "_set_native_id", None)
    if set_native_id is not None:
        set_native_id()


def take_environment(env: dict[str, str], libc: Any) -> None:
    """Replaces the environment, of Python and of C, by `env` and what the imports would have added to it."""
    with open("/proc/self/environ", "rb") as stream:
        at_start = {entry.split(b"=", 1)[0] for entry in stream.read().split(b"\0")}
    added = {name: value for name, value in os.environ.items() if os.fsencode(name) not in at_start}
    os.environ.clear()
    libc.clearenv()
    os.environ.update(env)
    for name, value in added.items():
        os.environ.setdefault(name, value)
    time.tzset()


def show_in_proc(words: list[str], env: dict[str, str] | None) -> None:
    """Writes argv, and the environment if it is another, where /proc/PID/cmdline and environ are read.

    That is over what was given at exec, which must have been as long.
    """
    with open("/proc/self/stat", "rb") as stream:
        fields = stream.read().rpartition(b")")[2].split()
    arg_start, arg_end, env_start, env_end = (int(field) for field in fields[45:49])
    argv = [sys.executable, "-u", *words]
    texts = [(arg_start, arg_end, argv)]
    if env is not None:
        texts.append((env_start, env_end, [f"{name}={value}" for name, value in env.items()]))
    for start, end, parts in texts:
        text = b"".join(os.fsencode(part) + b"\0" for part in parts)
        if len(text) > end - start:
            raise OverflowError(f"{len(text)} bytes do not fit into {end - start}")
        ctypes.memmove(start, text + b"\0" * (end - start - len(text)), end - start)
    sys.argv[:] = words
    if hasattr(sys, "orig_argv"):
        sys.orig_argv[:] = argv
