"""What a warm rank is: a process that has imported torch already and turns into `python -u script.py`.

Run by the interpreter of the job as `python -u rank.py FD PRELOAD PADDING`, with ORCH_PADDING in its environment: the zygote. It
imports the modules of PRELOAD, then forks ranks as FD, a socket to the launcher, asks. Python 3.9 or later, standard library only.

The script is not run by `runpy`: that tears its module down while the interpreter still lives, and DDP's destructor then waits for
a lock which its caller holds. It runs in a module that stays `__main__` until the interpreter ends, as after `python script.py`.
"""

from __future__ import annotations

import sys

# What this version of Python puts into the namespace of a script, in its order.
SCRIPT_NAMES = [name for name in list(globals()) if name.startswith("__")]
THIS_FILE = __file__
# Before any other import: a module beside this file must not hide one of the same name from torch.
if sys.path[0] == THIS_FILE.rpartition("/")[0]:
    del sys.path[0]
LOADED_BY_PYTHON = frozenset(sys.modules)

import array  # noqa: E402
import ctypes  # noqa: E402
import gc  # noqa: E402
import importlib  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import socket  # noqa: E402
import time  # noqa: E402
from types import CodeType, ModuleType  # noqa: E402
from typing import Any  # noqa: E402

PR_SET_PDEATHSIG = 1
SIGKILL = 9


def load(names: list[str]) -> dict[str, Any]:
    """Imports the modules; answers what the launcher must know, or why there can be no warm ranks."""
    began = time.monotonic()
    missing = []
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            # Not installed at all is no failure: the job has no need of it. Half an import is one.
            if error.name != name.split(".")[0]:
                raise
            missing.append(name)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise RuntimeError("importing torch initialised CUDA, which does not survive a fork")
    gc.collect()
    gc.freeze()
    # OpenBLAS has a pool of threads from its import on, and ends it before a fork, to start it again when it is next used.
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    top_level = {name.split(".")[0] for name in sys.modules} - {name.split(".")[0] for name in LOADED_BY_PYTHON}
    top_level.discard("__main__")
    return {
        "seconds": time.monotonic() - began,
        "missing": missing,
        "threads": len(os.listdir("/proc/self/task")),
        "modules": sorted(top_level),
        "files": loaded_files(top_level),
    }


def loaded_files(top_level: set[str]) -> list[str]:
    """Files whose change means that a rank started now would no longer be what a fresh interpreter gives."""
    standard = os.path.dirname(os.__file__)
    folders = [path for path in sys.path if os.path.isdir(path) and os.path.basename(path).endswith("-packages")]
    files = [getattr(sys.modules.get(name), "__file__", None) for name in top_level]
    installed = [path for path in files if path and (not path.startswith(standard) or "-packages" in path)]
    return sorted({sys.executable, *folders, *installed})


def serve(control: socket.socket) -> tuple[CodeType, dict[str, Any]]:
    """Forks ranks as they are asked for. Comes back only in a rank, with the script to run and the namespace to run it in."""
    libc = ctypes.CDLL(None)
    while True:
        word, ancillary, _, _ = control.recvmsg(1, socket.CMSG_SPACE(8))
        if not word:
            os._exit(0)
        passed = array.array("i")
        passed.frombytes(ancillary[0][2])
        request, line = os.fdopen(passed[0], "rb"), socket.socket(fileno=passed[1])
        threads = len(os.listdir("/proc/self/task"))
        if threads > 1:
            line.send(json.dumps({"refused": f"it has {threads} threads"}).encode())
        else:
            # A process between, which ends at once, so that the ranks are the launcher's own children.
            pid = os.fork()
            if pid == 0:
                between = os.getpid()
                control.close()
                with request:
                    asked = json.load(request)
                for rank in asked["ranks"]:
                    if os.fork() == 0:
                        prepare(rank, line, libc)
                        line.close()
                        stay_with(asked["launcher"], between, libc)
                        return script_of(rank)
                os._exit(0)
            os.waitpid(pid, 0)
        request.close()
        line.close()


def prepare(rank: dict[str, Any], line: socket.socket, libc: Any) -> None:
    """Makes of this fork what `python -u script.py` finds itself in, tells the launcher, and waits for its word to go on."""
    try:
        os.setsid()
        log = os.open(rank["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        os.chdir(rank["cwd"])
        take_environment(rank["env"], libc)
        show_in_proc(rank, libc)
        refresh_modules()
    except BaseException as error:
        line.send(json.dumps({"rank": rank["rank"], "error": f"{type(error).__name__}: {error}"}).encode())
        os._exit(1)
    line.send(json.dumps({"rank": rank["rank"], "pid": os.getpid()}).encode())
    if not line.recv(1):
        os._exit(1)


def stay_with(launcher: int, between: int, libc: Any) -> None:
    """Waits until the launcher is the parent, and has the kernel end this process with it: without it nobody watches the lease."""
    while os.getppid() == between:
        time.sleep(0.0002)
    libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    if os.getppid() != launcher:
        os._exit(1)


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


def show_in_proc(rank: dict[str, Any], libc: Any) -> None:
    """Writes argv and environment where the kernel reads /proc/PID/cmdline and environ: over the padding given at exec."""
    with open("/proc/self/stat", "rb") as stream:
        fields = stream.read().rpartition(b")")[2].split()
    arg_start, arg_end, env_start, env_end = (int(field) for field in fields[45:49])
    argv = [sys.executable, "-u", *rank["argv"]]
    for start, end, words in (
        (arg_start, arg_end, argv),
        (env_start, env_end, [f"{name}={value}" for name, value in rank["env"].items()]),
    ):
        text = b"".join(os.fsencode(word) + b"\0" for word in words)
        if len(text) > end - start:
            raise OverflowError(f"{len(text)} bytes do not fit into {end - start}")
        ctypes.memmove(start, text + b"\0" * (end - start - len(text)), end - start)
    sys.argv[:] = rank["argv"]
    if hasattr(sys, "orig_argv"):
        sys.orig_argv[:] = argv


def refresh_modules() -> None:
    """Renews what modules took, when they were imported, from a process that was another one."""
    loaded = sys.modules
    importlib.invalidate_caches()
    if "numpy.random" in loaded:
        loaded["numpy.random"].seed()
    if "multiprocessing.process" in loaded:
        process = loaded["multiprocessing.process"]
        process.ORIGINAL_DIR = os.getcwd()
        process.current_process().authkey = os.urandom(32)
    if "logging" in loaded:
        start = loaded["logging"]._startTime
        loaded["logging"]._startTime = time.time_ns() if isinstance(start, int) else time.time()
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads and "torch" in loaded:
        # libgomp read the variable when it was loaded.
        loaded["torch"].set_num_threads(int(threads))


def script_of(rank: dict[str, Any]) -> tuple[CodeType, dict[str, Any]]:
    """The compiled script, and `__main__` as Python makes it for a script."""
    path = os.path.join(os.getcwd(), rank["argv"][0])
    if not getattr(sys.flags, "safe_path", False):
        sys.path.insert(0, os.path.dirname(os.path.realpath(path)))
    module = ModuleType("__main__")
    fresh = {
        "__name__": "__main__",
        "__loader__": type(globals()["__loader__"])("__main__", path),
        "__builtins__": sys.modules["builtins"],
        "__annotations__": {},
        "__file__": path,
    }
    namespace = vars(module)
    namespace.clear()
    namespace.update((name, fresh.get(name)) for name in SCRIPT_NAMES)
    sys.modules["__main__"] = module
    with open(path, "rb") as stream:
        source = stream.read()
    return compile(source, path, "exec", dont_inherit=True), namespace


def hide_this_file(error: BaseException) -> None:
    """Has an uncaught exception shown as in a plain run: without the frames of this file, through the script's own hook."""
    script_hook = sys.excepthook

    def hook(kind: Any, value: Any, traceback: Any) -> None:
        sys.excepthook = script_hook
        while traceback is not None and traceback.tb_frame.f_code.co_filename == THIS_FILE:
            traceback = traceback.tb_next
        sys.last_traceback = traceback
        script_hook(kind, value.with_traceback(traceback), traceback)

    if not isinstance(error, SystemExit):
        sys.excepthook = hook


def zygote() -> tuple[CodeType, dict[str, Any]]:
    control = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(control.fileno(), False)
    try:
        found = load([name for name in sys.argv[2].split(",") if name])
    except BaseException as error:
        control.send(json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
        raise
    control.send(json.dumps(found).encode())
    return serve(control)


if __name__ == "__main__":
    try:
        # No name may hold the namespace: what the script leaves in it is torn down when the interpreter ends, not before.
        exec(*zygote())
    except BaseException as error:
        hide_this_file(error)
        raise
