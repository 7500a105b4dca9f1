"""What a warm rank is: a process that has imported torch already and turns into `python -u script.py`.

Run by the interpreter of the job as `python -u rank.py FD PRELOAD PADDING`, with ORCH_PADDING in its environment: the
zygote. It imports the modules of PRELOAD, then forks ranks as FD, a socket to the launcher, asks. As `python -u rank.py
become FLAGS script.py ...` it is a cold rank that sets FLAGS of cuDNN first. Either kind is watched where ORCH_PROGRESS
is in its environment (../../progress/observer.py). Python 3.9 or later, standard library only.

The script is not run by `runpy`: that tears its module down while the interpreter still lives, and DDP's destructor
then waits for a lock which its caller holds. It runs in a module that stays `__main__` until the interpreter ends, as
after `python script.py`.
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
import contextlib  # noqa: E402
import ctypes  # noqa: E402
import gc  # noqa: E402
import importlib.util  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import resource  # noqa: E402
import select  # noqa: E402
import socket  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
from types import CodeType, ModuleType  # noqa: E402
from typing import Any, Dict, Tuple  # noqa: E402

PR_SET_PDEATHSIG = 1
PR_SET_PTRACER, PR_SET_PTRACER_ANY = 0x59616D61, 2 ** (8 * ctypes.sizeof(ctypes.c_ulong)) - 1
SIGKILL = 9
RLIMIT_LOCKS = 10
SPARES = 2
MOST_SPARES = 16
"""How many ranks wait, forked, for a script: as many as were ever asked for at once, within these bounds."""
QUIET_S = 0.25
"""How long after a request spares are forked anew: not while the ranks that it started need the cores."""
HEAD_START_S = 0.1
"""How long the other ranks of rank 0's node let it go ahead, at most."""
MOST_ERRORS, LONGEST_TEXT = 8, 1000
"""Of a last word: exceptions, and characters of each."""
TORCH_FIXED_SEED = 67280421310721
"""What some versions of torch start every process with; others draw a seed."""
ZYGOTE_FOLDER = os.getcwd()
PROGRESS_FOLDER = os.path.join(THIS_FILE.rsplit("/", 3)[0], "progress")
OBSERVING = ("file", "observer", "on_import")
"""The modules of PROGRESS_FOLDER that observing needs."""
OUR_FILES = (THIS_FILE, *(os.path.join(PROGRESS_FOLDER, name + ".py") for name in OBSERVING))
WORD = {"path": "", "pid": 0}
"""Where this rank leaves its last word, beside its progress file, and which process that is: not a child that it forks."""
Script = Tuple[CodeType, Dict[str, Any]]
"""The compiled script, and the namespace to run it in."""


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
    # OpenBLAS has a pool of threads from its import on, and ends it before a fork, to start it again when it is next
    # used.
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    top_level = {name.split(".")[0] for name in sys.modules} - {name.split(".")[0] for name in LOADED_BY_PYTHON}
    top_level.discard("__main__")
    return {
        "seconds": time.monotonic() - began,
        "missing": missing,
        "most_threads": torch.get_num_threads() if torch is not None else None,
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


def serve(control: socket.socket) -> Script:
    """Hands requests to ranks. Comes back only in a rank, with its script.

    A fork of a process with torch in it takes 6 ms and more, so some ranks are forked beforehand and wait for their
    script.
    """
    libc = ctypes.CDLL(None)
    openblas = openblas_setters()
    progress = observers()
    wanted = SPARES
    spares: list[socket.socket] = []
    quiet = 0.0
    while True:
        missing = wanted - len(spares)
        ready, _, _ = select.select([control], [], [], quiet if missing > 0 else None)
        count, passed = 0, array.array("i")
        if ready:
            word, ancillary, _, _ = control.recvmsg(16, socket.CMSG_SPACE(8))
            if not word:
                os._exit(0)
            count, quiet = int(word), QUIET_S
            passed = array.array("i", ancillary[0][2])
            wanted, missing = max(wanted, min(count, MOST_SPARES)), count - len(spares)
        if missing > 0:
            threads = len(os.listdir("/proc/self/task"))
            if threads == 1:
                more, mine = fork_ranks(missing)
                if mine is not None:
                    # The parent's ends of the others' sockets: while open here, they would outlive their zygote.
                    for other in [control, *spares]:
                        other.close()
                    for descriptor in passed:
                        os.close(descriptor)
                    return wait_for_script(mine, libc, openblas, progress)
                spares += more
            elif ready:
                os.write(passed[1], json.dumps({"refused": f"it has {threads} threads"}).encode())
                count = 0
            else:
                wanted = 0
        for index in range(count):
            with spares.pop(0) as spare:
                spare.sendmsg([str(index).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
        for descriptor in passed:
            os.close(descriptor)


def openblas_setters() -> list[Any]:
    """The functions that set the number of threads of each OpenBLAS in this process, numpy's for instance."""
    with open("/proc/self/maps") as stream:
        paths = {line.split(maxsplit=5)[5].strip() for line in stream if "openblas" in line}
    names = [
        f"{prefix}openblas_set_num_threads{suffix}" for prefix in ("", "scipy_") for suffix in ("", "64_", "_64", "_")
    ]
    libraries = [ctypes.CDLL(path) for path in paths]
    return [getattr(library, name) for library in libraries for name in names if hasattr(library, name)]


def fork_ranks(count: int) -> tuple[list[socket.socket], socket.socket | None]:
    """Forks so many ranks: in the zygote, the sockets to them; in a rank, its own.

    A process between ends at once, so that the ranks become the launcher's own children.
    """
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(count)]
    pid = os.fork()
    if pid == 0:
        between = os.getpid()
        for _, mine in pairs:
            if os.fork() == 0:
                for ours, theirs in pairs:
                    ours.close()
                    if theirs is not mine:
                        theirs.close()
                while os.getppid() == between:
                    time.sleep(0.0002)
                return [], mine
        os._exit(0)
    os.waitpid(pid, 0)
    for _, theirs in pairs:
        theirs.close()
    return [ours for ours, _ in pairs], None


def wait_for_script(post: socket.socket, libc: Any, openblas: list[Any], progress: list[ModuleType]) -> Script:
    """The life of a rank until its script begins."""
    # A rank without its launcher has no lease, so the kernel ends it with the launcher.
    libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    let_stacks_be_read(libc)
    renew()
    word, ancillary, _, _ = post.recvmsg(16, socket.CMSG_SPACE(8))
    post.close()
    if not word:
        os._exit(0)
    passed = array.array("i", ancillary[0][2])
    request, line = passed[0], socket.socket(fileno=passed[1])
    asked = json.loads(os.pread(request, os.fstat(request).st_size, 0))
    os.close(request)
    rank = asked["ranks"][int(word)]
    try:
        # What every descendant inherits, whatever it does to its environment and session; the kernel has no other use
        # for it.
        hard = resource.getrlimit(RLIMIT_LOCKS)[1]
        if hard == resource.RLIM_INFINITY:
            resource.setrlimit(RLIMIT_LOCKS, (asked["tag"], hard))
        prepare(rank, libc, openblas)
    except BaseException as error:
        line.send(json.dumps({"rank": rank["rank"], "error": f"{type(error).__name__}: {error}"}).encode())
        os._exit(1)
    line.send(json.dumps({"rank": rank["rank"], "pid": os.getpid()}).encode())
    # No rank begins before all of them are there.
    if not line.recv(1) or os.getppid() != asked["launcher"]:
        os._exit(1)
    line.close()
    observe(progress)
    script = script_of(rank["argv"][0])
    follow_rank_zero(rank["env"])
    return script


def let_stacks_be_read(libc: Any) -> None:
    """Any process of this user may read this one's stack, as it may where there is no Yama (Linux, admin-guide/LSM/Yama.rst).

    The agent, which asks py-spy where ranks stand when they hang, is not their parent. It holds through exec, and not for
    what the script starts.
    """
    libc.prctl(PR_SET_PTRACER, ctypes.c_ulong(PR_SET_PTRACER_ANY), 0, 0, 0)


def module_of(name: str) -> ModuleType:
    """A module of PROGRESS_FOLDER, under no name in sys.modules: the script may have one that is called the same."""
    spec = importlib.util.spec_from_file_location("orch_" + name, os.path.join(PROGRESS_FOLDER, name + ".py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def observers() -> list[ModuleType]:
    """What observing needs, loaded; nothing where this interpreter cannot load it: a rank runs all the same."""
    with contextlib.suppress(Exception):
        return [module_of(name) for name in OBSERVING]
    return []


def observe(modules: list[ModuleType]) -> None:
    """Has what the script does written down, where its environment says so and that can be done."""
    path = os.environ.get("ORCH_PROGRESS")
    WORD.update(path=path + ".end" if path else "", pid=os.getpid())
    if path and modules:
        layout, observer, on_import = modules
        with contextlib.suppress(Exception):
            if patches := observer.observe(layout, path):
                on_import.patch(patches)


def follow_rank_zero(env: dict[str, str]) -> None:
    """Lets rank 0, where it is on this node, come to its rendezvous first.

    A client of torch's store that finds nobody listening pauses for 0.25 to 0.75 s before it tries again, and ranks that are forked
    together come to it together: without a head start a busy machine loses that race every other time.
    """
    port = env.get("MASTER_PORT", "")
    if env.get("NODE_RANK") != "0" or env.get("RANK") == "0" or not port.isdigit():
        return
    address = b":%04X" % int(port)
    deadline = time.monotonic() + HEAD_START_S
    while time.monotonic() < deadline:
        for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
            with contextlib.suppress(OSError), open(table, "rb") as stream:
                # Local address, and 0A for one that listens.
                if any(row[1].endswith(address) and row[3] == b"0A" for row in map(bytes.split, stream)):
                    return
        time.sleep(0.002)


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


def script_of(name: str) -> Script:
    """The compiled script, and `__main__` as Python makes it for a script."""
    path = os.path.join(os.getcwd(), name)
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
    # `__mp_main__` too, which multiprocessing adds.
    for name, loaded in list(sys.modules.items()):
        if getattr(loaded, "__file__", None) == THIS_FILE:
            sys.modules[name] = module
    with open(path, "rb") as stream:
        source = stream.read()
    return compile(source, path, "exec", dont_inherit=True), namespace


def without_ours(error: BaseException, seen: set[int]) -> Any:
    """The error's traceback without the frames of this file and of the observer, those of its causes too."""
    seen.add(id(error))
    for other in (error.__cause__, error.__context__):
        if other is not None and id(other) not in seen:
            other.__traceback__ = without_ours(other, seen)
    frames, at = [], error.__traceback__
    while at is not None:
        if at.tb_frame.f_code.co_filename not in OUR_FILES:
            frames.append(at)
        at = at.tb_next
    following = None
    for frame in reversed(frames):
        frame.tb_next = following
        following = frame
    return following


def hide_this_file(error: BaseException) -> None:
    """Has an uncaught exception shown as in a plain run: without frames of this file, by the script's own hook."""
    script_hook = sys.excepthook

    def hook(kind: Any, value: Any, traceback: Any) -> None:
        sys.excepthook = script_hook
        traceback = without_ours(value, set())
        sys.last_traceback = traceback
        script_hook(kind, value.with_traceback(traceback), traceback)

    if not isinstance(error, SystemExit):
        sys.excepthook = hook


def errors_of(error: BaseException | None) -> list[list[str]]:
    """Type and text of the exception, then of those that it came from, as a traceback would show them."""
    found: list[list[str]] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen and len(found) < MOST_ERRORS:
        seen.add(id(error))
        if not isinstance(error, SystemExit):
            kind = type(error)
            name = (
                kind.__qualname__
                if kind.__module__ in ("builtins", "__main__")
                else kind.__module__ + "." + kind.__qualname__
            )
            found.append([name, str(error)[:LONGEST_TEXT]])
        hidden = error.__cause__ is not None or error.__suppress_context__
        error = error.__cause__ if hidden else error.__context__
    return found


def leave_word(error: BaseException | None) -> None:
    """Writes down how the script ends: what follows may take long, and may end otherwise.

    A process group that is torn down with the interpreter can abort it: exit codes are lost by that, 75 among them.
    """
    if not WORD["path"] or os.getpid() != WORD["pid"]:
        return
    code = 0 if error is None else None
    if isinstance(error, SystemExit):
        code = 0 if error.code is None else error.code & 0xFF if isinstance(error.code, int) else 1
    with contextlib.suppress(Exception):
        word = {"at": time.clock_gettime(time.CLOCK_BOOTTIME), "exit": code, "errors": errors_of(error)}
        with open(os.open(str(WORD["path"]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
            stream.write(json.dumps(word))


def zygote() -> Script:
    control = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(control.fileno(), False)
    try:
        found = load([name for name in sys.argv[2].split(",") if name])
    except BaseException as error:
        control.send(json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
        raise
    control.send(json.dumps(found).encode())
    return serve(control)


def become() -> Script:
    """Of a cold rank: is observed, and where flags are set imports torch as its script would, from where it would."""
    flags = json.loads(sys.argv[2])
    show_in_proc(sys.argv[3:], None)
    observe(observers())
    let_stacks_be_read(ctypes.CDLL(None))
    mine = sys.modules.keys() - LOADED_BY_PYTHON
    script = script_of(sys.argv[0])
    folder = os.path.dirname(os.path.realpath(sys.argv[0]))
    for name in mine:
        # The script may have a module of that name beside it, and means that one.
        if os.path.exists(f"{folder}/{name}.py") or os.path.exists(f"{folder}/{name}/__init__.py"):
            del sys.modules[name]
    if not flags:
        return script
    try:
        importlib.import_module("torch")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        sys.exit(f"cudnn is to be set, and there is no torch in {sys.executable}")
    set_cudnn(flags)
    return script


if __name__ == "__main__":
    try:
        # No name may hold the namespace: what the script leaves in it is torn down when the interpreter ends, not
        # before.
        exec(*(become() if sys.argv[1] == "become" else zygote()))  # noqa: S102
    except BaseException as error:
        leave_word(error)
        hide_this_file(error)
        raise
    else:
        leave_word(None)
