"""What a warm rank is: a process that has imported torch already and turns into `python -u script.py`.

Run by the interpreter of the job as `python -u rank.py FD PRELOAD PADDING`, with ORCH_PADDING in its environment: the
zygote. It imports the modules of PRELOAD, then forks ranks as FD, a socket to the launcher, asks. As `python -u rank.py
become FLAGS script.py ...` it is a cold rank that sets FLAGS of cuDNN first. Either kind is watched where ORCH_PROGRESS
is in its environment (../../progress/observer.py). How a fork comes to be as a fresh process is in fresh_process.py, what is
kept of a script's end in last_word.py. Python 3.9 or later, standard library only.

The script is not run by `runpy`: that tears its module down while the interpreter still lives, and DDP's destructor
then waits for a lock which its caller holds. It runs in a module that stays `__main__` until the interpreter ends, as
after `python script.py`.
"""

from __future__ import annotations

import sys

# What this version of Python puts into the namespace of a script, in its order.
SCRIPT_NAMES = [name for name in list(globals()) if name.startswith("__")]
THIS_FILE = __file__
FOLDER = THIS_FILE.rpartition("/")[0]
# Before any other import: a module beside this file must not hide one of the same name from torch.
if sys.path[0] == FOLDER:
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
import time  # noqa: E402
from types import CodeType, ModuleType  # noqa: E402
from typing import TYPE_CHECKING, Any, Dict, Tuple  # noqa: E402


def module_at(path: str) -> ModuleType:
    """A module of ours, under no name in sys.modules: the script may have one that is called the same."""
    name = "orch_" + os.path.basename(path)[: -len(".py")]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if TYPE_CHECKING:
    import fresh_process
    import last_word
else:
    fresh_process = module_at(FOLDER + "/fresh_process.py")
    last_word = module_at(FOLDER + "/last_word.py")

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
PROGRESS_FOLDER = os.path.join(FOLDER.rsplit("/", 2)[0], "progress")
OBSERVING = ("file", "observer", "on_import")
"""The modules of PROGRESS_FOLDER that observing needs."""
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
    openblas = fresh_process.openblas_setters()
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
    fresh_process.renew()
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
        fresh_process.prepare(rank, libc, openblas)
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


def observers() -> list[ModuleType]:
    """What observing needs, loaded; nothing where this interpreter cannot load it: a rank runs all the same."""
    with contextlib.suppress(Exception):
        return [module_at(f"{PROGRESS_FOLDER}/{name}.py") for name in OBSERVING]
    return []


def observe(modules: list[ModuleType]) -> None:
    """Has what the script does written down, where its environment says so and that can be done."""
    path = os.environ.get("ORCH_PROGRESS")
    last_word.will_be_at(path + ".end" if path else "")
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
    fresh_process.show_in_proc(sys.argv[3:], None)
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
    fresh_process.set_cudnn(flags)
    return script


if __name__ == "__main__":
    try:
        # No name may hold the namespace: what the script leaves in it is torn down when the interpreter ends, not
        # before.
        exec(*(become() if sys.argv[1] == "become" else zygote()))  # noqa: S102
    except BaseException as error:
        last_word.leave_word(error)
        last_word.hide_our_frames(error)
        raise
    else:
        last_word.leave_word(None)
