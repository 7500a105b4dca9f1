"""Who starts, watches and ends the ranks of a node, outlives the agent, and kills what its lease does not cover.

Run as `python launcher.py DIR`; listens on DIR/launcher.sock. What it is asked and tells: docs/protocols.md, "Agent
and launcher". Standard library only. One thread; it waits for nothing but the start of a cold rank's program.

Which processes belong to an attempt is not guessed. Every rank carries two signs that its descendants inherit: the
marker in its environment, and a number of the attempt as its soft limit RLIMIT_LOCKS, which the kernel keeps, shows
in /proc/PID/limits, and has had no use for since Linux 2.4. The second survives `env -i`, `setsid`, a double fork and
a close of all files; only a process that sets that very limit anew escapes. So several attempts side by side, and
daemons without any tie to their rank, are told apart at any time.

An ended rank is kept unreaped until its attempt has ended: as long as neither its process id nor its group's can be
another's.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import re
import resource
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Message = dict[str, Any]

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
RLIMIT_LOCKS = 10
ARGV_PADDING = 16 << 10
ENV_PADDING = 64 << 10
"""Bytes in which a warm rank shows its own command line and environment; one that needs more is started cold."""
WARM_START_S = 5.0
"""How long a zygote may take to fork before it is given up."""
KEEP_ENDED_S = 3600.0
"""How long the ends of attempts are kept for an agent that does not come back."""
SWEEP_S = 0.01
LOCK_S = 1.0
"""How long a new launcher waits for one that is just ending."""
PRELOAD = "torch,torch.distributed,torch._dynamo"
LIBC = ctypes.CDLL(None)

# Read when Python starts or torch and what it imports are loaded (traced with torch 2.13): too late in a process that
# has done so.
READ_AT_IMPORT = re.compile(
    r"(LD_|PYTHON|_PYTHON|GLIBC_|MALLOC_|LC_|TORCH|PYTORCH|PT2_|TRITON_|AOT|INDUCTOR_|FX_|FAKE_|COMPILE_|PARTITIONER_|DUMP_"
    r"|OMP_|GOMP_|KMP_|ACC_|MKL|DNNL_|ONEDNN_|OPENBLAS_|GOTO_|BLIS_|NVPL_|NPY_|NUMPY_"
    r"|NUMEXPR_|GFORTRAN_|SYMPY_|MPMATH_|CUTLASS_|CUTEDSL_|CUDA_|KINETO_|OPENSSL_|I_MPI_|MPI_|OMPI_).*"
    r"|LANG|LANGUAGE|HOME|USER|LOGNAME|LNAME|USERNAME|TMPDIR|TEMP|TMP"
)
# These match it, but are read when CUDA or a process group is made, or are applied after the fork.
READ_LATER = re.compile(
    r"CUDA_VISIBLE_DEVICES|CUDA_DEVICE_ORDER|OMP_NUM_THREADS|TORCH_HOME|(TORCH_NCCL|TORCH_FR|TORCHELASTIC)_.*"
)


class RefusedError(Exception):
    """What was asked cannot be done; the text is the answer."""


@dataclass(frozen=True)
class Process:
    """One row of the process table; `pid` and `began` (ticks since boot) together name a process for good."""

    pid: int
    parent: int
    began: int
    alive: bool


@dataclass
class Rank:
    pid: int
    warm: bool
    why_cold: str | None
    exit: int | None = None
    at: float | None = None


@dataclass
class Attempt:
    name: str
    mark: str
    lease_end: float
    ranks: dict[str, Rank] = field(default_factory=dict)
    kill_at: float | None = None
    killing: bool = False
    ended: bool = False
    killed: set[tuple[int, int]] = field(default_factory=set)
    clean_looks: int = 0
    refusal: tuple[str, list[Callable[[Message], None]]] | None = None
    """Set where a start failed halfway: the reason, and whom to tell it once nothing of it is left."""

    @property
    def tag(self) -> int:
        return tag_of(self.mark)

    @property
    def over(self) -> bool:
        """No rank can do anything any more, or none may."""
        return self.killing or all(rank.exit is not None for rank in self.ranks.values())


@dataclass
class Zygote:
    """The process that forks warm ranks of one interpreter."""

    python: str
    pid: int
    control: socket.socket
    env: dict[str, str]
    ready: bool = False
    modules: tuple[str, ...] = ()
    most_threads: int | None = None
    """How many threads torch uses of itself. MKL caps a larger OMP_NUM_THREADS, but only where it reads it itself."""
    files: dict[str, tuple[int, int, int] | None] = field(default_factory=dict)


@dataclass
class Starting:
    """An attempt whose warm ranks have been asked of their zygotes; no rank runs the script before all are there."""

    attempt: Attempt
    ranks: dict[str, Message]
    deadline: float
    answers: list[Callable[[Message], None]]
    why_cold: dict[str, str] = field(default_factory=dict)
    pids: dict[str, int] = field(default_factory=dict)
    lines: dict[socket.socket, tuple[Zygote, set[str]]] = field(default_factory=dict)


def now() -> float:
    """Seconds since boot, suspended time included: a lease runs out while the machine sleeps, too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def process(pid: int) -> Process | None:
    """The process as it is at this moment; None if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(b")")[2].split()
    # A process whose first thread has ended is shown as a zombie while its other threads run.
    alive = fields[0] not in (b"Z", b"X") or int(fields[17]) > 1
    return Process(pid, int(fields[1]), int(fields[19]), alive)


def processes() -> dict[int, Process]:
    found = (process(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {one.pid: one for one in found if one is not None}


def kill(pid: int, began: int) -> bool:
    """SIGKILL to that very process, never to another that has come by its pid; false if it is gone."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        found = process(pid)
        if found is None or found.began != began or not found.alive:
            return False
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        return True
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(handle)


def tag_of(mark: str) -> int:
    """The limit that the attempt's processes have: 49 bits of the marker's hash."""
    return int.from_bytes(hashlib.sha256(mark.encode()).digest()[:6], "big") | 1 << 48


def signs_of(pid: int) -> tuple[str | None, int | None]:
    """The marker and the number by which a process of this user belongs to an attempt, each None where it has none."""
    mark, tag = None, None
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if entry.startswith(b"ORCH_MARK="):
                mark = os.fsdecode(entry[10:])
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/limits").read_bytes().splitlines():
            if line.startswith(b"Max file locks"):
                soft = line.split()[3]
                tag = int(soft) if soft.isdigit() else None
    return mark, tag


def of_this_user(pid: int) -> bool:
    try:
        return os.getuid() in (0, os.stat(f"/proc/{pid}").st_uid)
    except FileNotFoundError:
        return False


def stamp(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def why_cold(rank: Message, zygote: Zygote | None) -> str | None:
    """Why this rank needs a fresh interpreter; None where a fork of the zygote is as good."""
    if rank.get("cold"):
        return "asked for"
    if zygote is None or not zygote.ready:
        return f"no warm process of {rank['python']} is ready"
    env, script = rank["env"], os.path.join(rank["cwd"], rank["argv"][0])
    for name in sorted(env.keys() | zygote.env.keys()):
        if env.get(name) != zygote.env.get(name) and READ_AT_IMPORT.fullmatch(name) and not READ_LATER.fullmatch(name):
            return f"{name} is read when torch or Python is loaded"
    threads = env.get("OMP_NUM_THREADS", "1")
    if not re.fullmatch(r"[1-9]\d{0,4}", threads):
        return "OMP_NUM_THREADS is not a plain number"
    if zygote.most_threads is not None and int(threads) > zygote.most_threads:
        return f"OMP_NUM_THREADS is more than the {zygote.most_threads} threads that torch uses here"
    if rank["argv"][0].startswith("-") or not script.endswith(".py") or not os.path.isfile(script):
        return f"{rank['argv'][0]} is not the file of a script"
    folder = os.path.dirname(os.path.realpath(script))
    for name in zygote.modules:
        if os.path.exists(f"{folder}/{name}.py") or os.path.exists(f"{folder}/{name}/__init__.py"):
            return f"{folder} has a module named {name}, which hides the one that is loaded"
    if sum(len(os.fsencode(f"{name}={value}")) + 1 for name, value in env.items()) > ENV_PADDING:
        return f"the environment is larger than {ENV_PADDING} bytes"
    if sum(len(os.fsencode(word)) + 1 for word in [rank["python"], "-u", *rank["argv"]]) > ARGV_PADDING:
        return f"the command line is larger than {ARGV_PADDING} bytes"
    return None


def check_rank(rank: Any) -> Message:
    """Refuses a rank that could not be started; makes its log file."""
    types = {"rank": int, "python": str, "argv": list, "cwd": str, "env": dict, "log": str}
    if not isinstance(rank, dict) or any(not isinstance(rank.get(name), kind) for name, kind in types.items()):
        raise RefusedError(f"a rank needs {', '.join(f'{name} ({kind.__name__})' for name, kind in types.items())}")
    who = f"rank {rank['rank']}"
    words = [*rank["argv"], *rank["env"].keys(), *rank["env"].values()]
    if not rank["argv"] or any(not isinstance(word, str) or "\0" in word for word in words):
        raise RefusedError(f"{who}: argv and env must be strings without NUL, and argv not empty")
    if any("=" in name or not name for name in rank["env"]):
        raise RefusedError(f"{who}: an environment variable without a name, or with = in it")
    if not os.path.isabs(rank["python"]) or not os.access(rank["python"], os.X_OK) or os.path.isdir(rank["python"]):
        raise RefusedError(f"{who}: python: {rank['python']} is not the absolute path of a program that may be run")
    if not os.path.isabs(rank["cwd"]) or not os.path.isdir(rank["cwd"]) or not os.access(rank["cwd"], os.X_OK):
        raise RefusedError(f"{who}: cwd: {rank['cwd']} is not a folder that may be entered")
    try:
        os.close(open_log(rank["log"]))
    except OSError as error:
        raise RefusedError(f"{who}: log: {error.strerror}: {rank['log']}") from None
    return rank


def open_log(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def spawn(
    argv: list[str], *, env: dict[str, str], cwd: str, log: str, keep: tuple[int, ...] = (), tag: int | None = None
) -> int:
    """Starts a program as the leader of its own session; its pid. OSError where it cannot be.

    The kernel ends it with this process, without which nobody watches its lease.
    """

    launcher = os.getpid()

    def bind() -> None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != launcher:
            os._exit(1)
        hard = resource.getrlimit(RLIMIT_LOCKS)[1]
        if tag is not None and hard == resource.RLIM_INFINITY:
            resource.setrlimit(RLIMIT_LOCKS, (tag, hard))

    output = open_log(log)
    try:
        child = subprocess.Popen(
            argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True, pass_fds=keep, preexec_fn=bind,
        )  # fmt: skip
    finally:
        os.close(output)
    # The launcher reaps by itself; Popen must not when it is collected.
    child.returncode = 0
    return child.pid


def started(attempt: Attempt) -> Message:
    return {
        key: {"pid": rank.pid, "warm": rank.warm, **({"why_cold": rank.why_cold} if rank.why_cold else {})}
        for key, rank in attempt.ranks.items()
    }


class Connection:
    """One peer on the socket: lines in, lines out, never waiting for it."""

    LIMIT = 64 << 20

    def __init__(self, sock: socket.socket, selector: selectors.BaseSelector) -> None:
        self.sock, self.selector = sock, selector
        self.received, self.unsent = b"", b""
        self.open = True
        sock.setblocking(False)

    def lines(self) -> Iterator[bytes]:
        try:
            chunk = self.sock.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        self.received += chunk
        if not chunk or len(self.received) > self.LIMIT:
            self.open = False
        *whole, self.received = self.received.split(b"\n")
        yield from whole

    def send(self, message: Message) -> None:
        self.unsent += json.dumps(message).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        try:
            self.unsent = self.unsent[self.sock.send(self.unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self.open = False
        if len(self.unsent) > self.LIMIT:
            self.open = False
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self.unsent and self.open else 0)
        if self.selector.get_key(self.sock).events != wanted:
            self.selector.modify(self.sock, wanted, self.selector.get_key(self.sock).data)


class Launcher:
    def __init__(self, folder: Path, preload: str, idle_s: float) -> None:
        self.folder, self.preload, self.idle_s = folder, preload, idle_s
        self.live = folder / "live"
        self.live.mkdir(mode=0o700, exist_ok=True)
        self.boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self.selector = selectors.DefaultSelector()
        self.connections: list[Connection] = []
        self.attempts: dict[str, Attempt] = {}
        self.starting: dict[str, Starting] = {}
        self.zygotes: dict[str, Zygote] = {}
        self.quitting = False
        self.done = False
        self.observe_at = float("inf")
        self.observe_not_before = 0.0
        self.idle_since = now()

    # The loop

    def run(self, listener: socket.socket, signals: socket.socket) -> None:
        self.selector.register(listener, selectors.EVENT_READ, lambda _: self.accept(listener))
        self.selector.register(signals, selectors.EVENT_READ, lambda _: self.signalled(signals.recv(4096)))
        self.take_up_leftovers()
        while not self.done:
            for key, events in self.selector.select(max(0.0, self.next_deadline() - now())):
                key.data(events)
            self.tick()
        for zygote in list(self.zygotes.values()):
            self.drop_zygote(zygote)

    def next_deadline(self) -> float:
        # select() sleeps by a clock that stops in suspend, leases don't: look at least once a second.
        times = [
            now() + (1.0 if self.attempts or self.starting else 10.0),
            self.observe_at,
            self.idle_since + self.idle_s,
        ]
        times += [starting.deadline for starting in self.starting.values()]
        for attempt in self.attempts.values():
            if not attempt.ended:
                times += [attempt.lease_end] if attempt.kill_at is None else [attempt.lease_end, attempt.kill_at]
        return min(times)

    def tick(self) -> None:
        at = now()
        for starting in list(self.starting.values()):
            if at >= starting.deadline:
                for line, (zygote, _) in list(starting.lines.items()):
                    self.lose_zygote(zygote, f"forked nothing within {WARM_START_S:.0f} s")
                    self.give_up_line(starting, line, "the warm process did not answer")
                self.finish_if_ready(starting)
                if starting.attempt.name in self.starting:
                    self.refuse(starting, f"it could not be started within {WARM_START_S:.0f} s")
        for attempt in self.attempts.values():
            if attempt.ended or attempt.killing:
                continue
            if at >= attempt.lease_end:
                self.begin_killing(attempt)
                self.tell({"event": "lease_expired", "attempt": attempt.name})
            elif attempt.kill_at is not None and at >= attempt.kill_at:
                self.begin_killing(attempt)
        if at >= self.observe_at:
            self.observe()
        kept = any(not attempt.ended for attempt in self.attempts.values()) or self.starting
        if self.quitting and not kept:
            self.done = True
        if kept or self.connections:
            self.idle_since = at
        elif at >= self.idle_since + (KEEP_ENDED_S if self.attempts else self.idle_s):
            self.done = True

    def signalled(self, numbers: bytes) -> None:
        if set(numbers) - {signal.SIGCHLD}:
            self.quitting = True
            for starting in list(self.starting.values()):
                self.refuse(starting, "the launcher was told to end")
            for attempt in self.attempts.values():
                if not attempt.ended:
                    self.begin_killing(attempt)
        self.reap()
        self.observe_soon()

    def accept(self, listener: socket.socket) -> None:
        sock, _ = listener.accept()
        _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid != os.getuid():
            sock.close()
            return
        connection = Connection(sock, self.selector)
        self.connections.append(connection)
        self.selector.register(sock, selectors.EVENT_READ, lambda events: self.serve(connection, events))

    def serve(self, connection: Connection, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            connection.flush()
        if events & selectors.EVENT_READ:
            for line in connection.lines():
                self.answer(connection, line)
        if not connection.open:
            self.selector.unregister(connection.sock)
            connection.sock.close()
            self.connections.remove(connection)

    def tell(self, event: Message) -> None:
        for connection in self.connections:
            connection.send(event)

    # Requests

    def answer(self, connection: Connection, line: bytes) -> None:
        number: Any = None

        def reply(message: Message) -> None:
            if connection.open:
                connection.send({"id": number, **message})

        try:
            request = json.loads(line)
            number = request["id"]
            handler = {
                "hello": self.hello, "warm": self.warm, "start": self.start, "lease": self.lease,
                "stop": self.stop, "forget": self.forget, "quit": self.quit,
            }.get(request.get("op"))  # fmt: skip
            if handler is None:
                raise RefusedError(f"unknown op {request.get('op')!r}")
            handler(request, reply)
        except RefusedError as refusal:
            reply({"error": str(refusal)})
        except OSError as error:
            # A full disk or too many open files: no reason to end, and with this process every rank.
            reply({"error": f"{error.strerror}: {error.filename or 'in the launcher'}"})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            reply({"error": f"not a request of this protocol: {type(error).__name__}: {error}"})

    def hello(self, request: Message, reply: Callable[[Message], None]) -> None:
        attempts = {
            name: {
                "ranks": {
                    key: {"pid": rank.pid, "exit": rank.exit, "at": rank.at, "warm": rank.warm}
                    for key, rank in attempt.ranks.items()
                },
                "lease_s": round(attempt.lease_end - now(), 3),
                "ended": attempt.ended,
            }
            for name, attempt in self.attempts.items()
            if attempt.refusal is None
        }
        zygotes = {python: {"pid": zygote.pid, "ready": zygote.ready} for python, zygote in self.zygotes.items()}
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        reply({"pid": os.getpid(), "boot": self.boot, "attempts": attempts, "zygotes": zygotes, "nice": nice})

    def lease(self, request: Message, reply: Callable[[Message], None]) -> None:
        leases = {name: float(seconds) for name, seconds in request["attempts"].items()}
        for name, seconds in leases.items():
            if name in self.attempts:
                self.attempts[name].lease_end = now() + seconds
            elif name in self.starting:
                self.starting[name].attempt.lease_end = now() + seconds
        reply({"unknown": sorted(leases.keys() - self.attempts.keys() - self.starting.keys())})

    def stop(self, request: Message, reply: Callable[[Message], None]) -> None:
        name, grace_s = request["attempt"], float(request["grace_s"])
        if name in self.starting:
            self.refuse(self.starting[name], "stopped while it was starting")
        elif name not in self.attempts:
            raise RefusedError(f"attempt {name} is not known here")
        elif not self.attempts[name].ended:
            attempt = self.attempts[name]
            first = attempt.kill_at is None
            attempt.kill_at = min(now() + grace_s, now() + grace_s if attempt.kill_at is None else attempt.kill_at)
            if grace_s <= 0:
                self.begin_killing(attempt)
            elif first:
                for rank in attempt.ranks.values():
                    if rank.exit is None:
                        # It is not reaped, so that its process group is still its own.
                        with contextlib.suppress(ProcessLookupError):
                            os.killpg(rank.pid, signal.SIGTERM)
        reply({})

    def forget(self, request: Message, reply: Callable[[Message], None]) -> None:
        attempt = self.attempts.get(request["attempt"])
        if attempt is not None and not attempt.ended:
            raise RefusedError(f"attempt {attempt.name} has not ended")
        self.attempts.pop(request["attempt"], None)
        reply({})

    def quit(self, request: Message, reply: Callable[[Message], None]) -> None:
        alive = sorted([name for name, attempt in self.attempts.items() if not attempt.ended] + list(self.starting))
        if alive:
            raise RefusedError(f"attempts still live: {', '.join(alive)}")
        reply({})
        self.done = True

    # Zygotes

    def warm(self, request: Message, reply: Callable[[Message], None]) -> None:
        python, env = str(request["python"]), dict(request.get("env") or os.environ)
        known = self.zygotes.get(python)
        if known is not None and known.env == env:
            reply({})
            return
        if known is not None:
            self.drop_zygote(known)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        script = str(Path(__file__).resolve().with_name("rank.py"))
        argv = [python, "-u", script, str(theirs.fileno()), self.preload, " " * ARGV_PADDING]
        padded = {"ORCH_PADDING": " " * ENV_PADDING, **env}
        log = str(self.folder / "zygote.log")
        try:
            with theirs:
                pid = spawn(argv, env=padded, cwd=str(self.folder), log=log, keep=(theirs.fileno(),))
        except OSError as error:
            ours.close()
            raise RefusedError(f"python: {error.strerror}: {python}") from None
        zygote = Zygote(python, pid, ours, env)
        self.zygotes[python] = zygote
        self.selector.register(ours, selectors.EVENT_READ, lambda _: self.zygote_says(zygote))
        reply({})

    def zygote_says(self, zygote: Zygote) -> None:
        try:
            text = zygote.control.recv(1 << 20)
        except OSError:
            text = b""
        if not text:
            self.lose_zygote(zygote, f"it ended; its last words are in {self.folder / 'zygote.log'}")
            return
        found = json.loads(text)
        if "error" in found:
            self.lose_zygote(zygote, found["error"])
        elif found["threads"] > 1:
            self.lose_zygote(zygote, f"it has {found['threads']} threads after its imports, which a fork would lose")
        else:
            zygote.modules = tuple(found["modules"])
            zygote.most_threads = found["most_threads"]
            zygote.files = {path: stamp(path) for path in found["files"]}
            zygote.ready = True
            missing = f"not installed there: {', '.join(found['missing'])}" if found["missing"] else None
            seconds = round(found["seconds"], 3)
            self.tell({"event": "warm", "python": zygote.python, "ok": True, "error": missing, "seconds": seconds})

    def lose_zygote(self, zygote: Zygote, why: str) -> None:
        if self.zygotes.get(zygote.python) is zygote:
            self.drop_zygote(zygote)
            self.tell({"event": "warm", "python": zygote.python, "ok": False, "error": why, "seconds": None})

    def drop_zygote(self, zygote: Zygote) -> None:
        del self.zygotes[zygote.python]
        self.selector.unregister(zygote.control)
        zygote.control.close()
        # Our own child and not reaped before, so that the pid is its own.
        with contextlib.suppress(ProcessLookupError):
            os.kill(zygote.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(zygote.pid, 0)

    def fresh_zygote(self, python: str) -> Zygote | None:
        """The interpreter's zygote, unless a package has changed since it was loaded."""
        zygote = self.zygotes.get(python)
        changed = [path for path, seen in zygote.files.items() if stamp(path) != seen] if zygote else []
        if zygote is not None and changed:
            self.lose_zygote(zygote, f"{changed[0]} has changed since it was loaded")
            return None
        return zygote

    # Starting

    def start(self, request: Message, reply: Callable[[Message], None]) -> None:
        name, lease_s = request["attempt"], float(request["lease_s"])
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
            raise RefusedError(f"attempt: {name!r} is not a name such as 42.1")
        if name in self.attempts and self.attempts[name].refusal is None:
            reply({"ranks": started(self.attempts[name])})
            return
        if name in self.starting:
            self.starting[name].answers.append(reply)
            return
        if name in self.attempts or self.quitting:
            raise RefusedError(f"attempt {name}: what its failed start left, or the launcher itself, is being ended")
        asked_at = now()
        ranks = {str(rank["rank"]): rank for rank in map(check_rank, request["ranks"])}
        marks = {rank["env"].get("ORCH_MARK") for rank in ranks.values()}
        if not ranks or len(ranks) != len(request["ranks"]):
            raise RefusedError(f"attempt {name}: ranks must be one or more, with different numbers")
        mark = marks.pop()
        if marks or not mark:
            raise RefusedError(f"attempt {name}: every rank's env needs the same ORCH_MARK")
        attempt = Attempt(name, mark, lease_end=asked_at + lease_s)
        # A launcher that comes after this one finds by it what this one leaves, however it ends.
        (self.live / name).write_text(mark)
        starting = Starting(attempt, ranks, deadline=asked_at + WARM_START_S, answers=[reply])
        self.starting[name] = starting
        self.ask_zygotes(starting)
        self.finish_if_ready(starting)

    def ask_zygotes(self, starting: Starting) -> None:
        zygotes = {python: self.fresh_zygote(python) for python in {rank["python"] for rank in starting.ranks.values()}}
        groups: dict[str, list[str]] = {}
        for key, rank in starting.ranks.items():
            reason = why_cold(rank, zygotes[rank["python"]])
            if reason is None:
                groups.setdefault(rank["python"], []).append(key)
            else:
                starting.why_cold[key] = reason
        for python, keys in groups.items():
            zygote = zygotes[python]
            assert zygote is not None
            line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            line.setblocking(False)
            starting.lines[line] = (zygote, set(keys))
            self.selector.register(line, selectors.EVENT_READ, lambda _, line=line: self.line_says(starting, line))
            request = os.memfd_create("start", os.MFD_CLOEXEC)
            with theirs, os.fdopen(request, "wb") as stream:
                asked = {
                    "launcher": os.getpid(),
                    "tag": starting.attempt.tag,
                    "ranks": [starting.ranks[key] for key in keys],
                }
                stream.write(json.dumps(asked).encode())
                stream.flush()
                os.lseek(request, 0, os.SEEK_SET)
                passed = array.array("i", [request, theirs.fileno()])
                try:
                    zygote.control.sendmsg(
                        [str(len(keys)).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)], socket.MSG_DONTWAIT
                    )
                except OSError as error:
                    self.give_up_line(starting, line, f"the warm process took no request: {error.strerror}")

    def line_says(self, starting: Starting, line: socket.socket) -> None:
        while line in starting.lines:
            try:
                text = line.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError:
                text = b""
            zygote, keys = starting.lines[line]
            said: Message = json.loads(text) if text else {"refused": "the warm process ended"}
            if "refused" in said:
                # Whatever it has forked ends by itself when the line is closed, before its script has begun.
                self.give_up_line(starting, line, said["refused"])
                if text:
                    self.lose_zygote(zygote, said["refused"])
            elif "error" in said:
                self.refuse(starting, f"rank {said['rank']}: {said['error']}")
                return
            else:
                starting.pids[str(said["rank"])] = said["pid"]
                if keys <= starting.pids.keys():
                    self.selector.unregister(line)
                    break
        self.finish_if_ready(starting)

    def give_up_line(self, starting: Starting, line: socket.socket, why: str) -> None:
        _, keys = starting.lines.pop(line)
        with contextlib.suppress(KeyError):
            self.selector.unregister(line)
        line.close()
        for key in keys:
            starting.pids.pop(key, None)
            starting.why_cold[key] = why

    def finish_if_ready(self, starting: Starting) -> None:
        """Starts the cold ranks and lets the warm ones go, once all of these have said that they are there."""
        attempt = starting.attempt
        if (
            self.starting.get(attempt.name) is not starting
            or starting.ranks.keys() != starting.pids.keys() | starting.why_cold.keys()
        ):
            return
        for key in starting.why_cold:
            rank = starting.ranks[key]
            try:
                argv = [rank["python"], "-u", *rank["argv"]]
                pid = spawn(argv, env=rank["env"], cwd=rank["cwd"], log=rank["log"], tag=attempt.tag)
            except (OSError, ValueError, subprocess.SubprocessError) as error:
                self.refuse(starting, f"rank {key}: {rank['python']}: {getattr(error, 'strerror', None) or error}")
                return
            self.add_rank(attempt, key, pid, starting.why_cold[key])
        for key, pid in starting.pids.items():
            self.add_rank(attempt, key, pid, None)
        del self.starting[attempt.name]
        self.attempts[attempt.name] = attempt
        for line, (_, keys) in starting.lines.items():
            for _ in keys:
                line.send(b"g")
            line.close()
        for reply in starting.answers:
            reply({"ranks": started(attempt)})
        self.reap()
        self.observe_soon()

    def add_rank(self, attempt: Attempt, key: str, pid: int, why: str | None) -> None:
        attempt.ranks[key] = Rank(pid, warm=why is None, why_cold=why)

    def refuse(self, starting: Starting, why: str) -> None:
        """Ends a start that failed. The refusal is told when nothing of the attempt is left."""
        attempt = starting.attempt
        del self.starting[attempt.name]
        for line in list(starting.lines):
            self.give_up_line(starting, line, why)
        attempt.refusal = (why, starting.answers)
        self.attempts[attempt.name] = attempt
        self.begin_killing(attempt)

    # Ending

    def take_up_leftovers(self) -> None:
        """What a launcher that was killed has left behind is swept, and shown as ended attempts without ranks."""
        for path in self.live.iterdir():
            mark = path.read_text()
            if mark:
                self.attempts[path.name] = attempt = Attempt(path.name, mark, lease_end=0.0)
                self.begin_killing(attempt)

    def begin_killing(self, attempt: Attempt) -> None:
        attempt.killing = True
        self.observe_at = 0.0

    def reap(self) -> None:
        """Takes note of ranks that have ended, and leaves them unreaped: see the head of this file."""
        for attempt in self.attempts.values():
            for key, rank in attempt.ranks.items():
                if rank.exit is not None or attempt.ended:
                    continue
                try:
                    found = os.waitid(os.P_PID, rank.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                except ChildProcessError:
                    continue  # Its first parent has not ended yet; we are told when it becomes ours.
                if found is not None:
                    rank.exit = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
                    rank.at = time.time()
                    if attempt.refusal is None:
                        self.tell(
                            {
                                "event": "exit",
                                "attempt": attempt.name,
                                "rank": int(key),
                                "code": rank.exit,
                                "at": rank.at,
                            }
                        )
            if attempt.over and not attempt.ended:
                self.observe_at = 0.0

    def observe_soon(self) -> None:
        self.observe_at = min(self.observe_at, max(now(), self.observe_not_before))

    def observe(self) -> None:
        """Looks at the process table: buries orphans, and kills what is left of attempts that are over."""
        began = now()
        table = processes()
        ranks = {rank.pid for attempt in self.attempts.values() if not attempt.ended for rank in attempt.ranks.values()}
        unreaped = ranks | {pid for starting in self.starting.values() for pid in starting.pids.values()}
        unreaped |= {zygote.pid for zygote in self.zygotes.values()}
        for one in table.values():
            if one.parent == os.getpid() and not one.alive and one.pid not in unreaped:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(one.pid, os.WNOHANG)
        over = [attempt for attempt in self.attempts.values() if attempt.over and not attempt.ended]
        if over:
            left = self.members(over, table)
            for attempt in over:
                self.sweep(attempt, left[attempt.name])
        cost = now() - began
        # Not more than a twentieth of a core for orphans that come and go.
        self.observe_not_before = now() + 20 * cost
        still = any(attempt.over and not attempt.ended for attempt in self.attempts.values())
        self.observe_at = now() + max(SWEEP_S, cost) if still else float("inf")

    def members(self, attempts: list[Attempt], table: dict[int, Process]) -> dict[str, list[Process]]:
        """The living processes of each of these attempts."""
        by_mark = {attempt.mark: attempt.name for attempt in attempts}
        by_tag = {attempt.tag: attempt.name for attempt in attempts}
        found: dict[str, list[Process]] = {attempt.name: [] for attempt in attempts}
        for one in table.values():
            # Process 2 is the parent of the kernel's own threads.
            if one.alive and one.parent != 2 and one.pid != os.getpid() and of_this_user(one.pid):
                mark, tag = signs_of(one.pid)
                name = by_mark.get(mark or "") or by_tag.get(tag or 0)
                if name is not None:
                    found[name].append(one)
        return found

    def sweep(self, attempt: Attempt, left: list[Process]) -> None:
        """Kills what is left of an attempt that is over; it has ended when two looks have found nothing."""
        ranks = {rank.pid for rank in attempt.ranks.values()}
        for one in left:
            if kill(one.pid, one.began) and one.pid not in ranks:
                attempt.killed.add((one.pid, one.began))
        self.reap()
        if left or any(rank.exit is None for rank in attempt.ranks.values()):
            attempt.clean_looks = 0
            return
        # One look can miss a process whose parent ended while the table was read.
        attempt.clean_looks += 1
        if attempt.clean_looks < 2:
            return
        attempt.ended = True
        for pid in ranks:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        with contextlib.suppress(OSError):
            (self.live / attempt.name).unlink(missing_ok=True)
        if attempt.refusal is None:
            self.tell({"event": "ended", "attempt": attempt.name, "swept": len(attempt.killed)})
            return
        why, answers = attempt.refusal
        del self.attempts[attempt.name]
        for reply in answers:
            reply({"error": why})


def lock(folder: Path) -> int:
    """Makes this process the folder's only launcher; the lock goes with it."""
    descriptor = os.open(folder / "launcher.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = now() + LOCK_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if now() >= deadline:
                sys.exit(f"another launcher (process {os.pread(descriptor, 20, 0).decode().strip()}) serves {folder}")
            time.sleep(0.02)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def listen(folder: Path) -> socket.socket:
    path = folder / "launcher.sock"
    if len(os.fsencode(path)) > 107:
        sys.exit(
            f"{path} has {len(os.fsencode(path))} bytes; the path of a socket may have 107: choose a shorter folder"
        )
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(16)
    return listener


def become_init_of_ranks() -> socket.socket:
    """Sheds what this process inherited and its ranks must not; the answer is readable when a signal has come."""
    for number in signal.valid_signals():
        if signal.getsignal(number) == signal.SIG_IGN and number not in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.detach())
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # A handler, not SIG_IGN, which a rank would inherit.
        signal.signal(number, lambda *_: None)
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # Ray makes its workers nice and first to be killed when memory is short; a rank is neither.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("0")
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    return ours


def main() -> None:
    parser = argparse.ArgumentParser(description="Starts and watches the ranks of a node.")
    parser.add_argument("folder", type=Path, help="where the socket is; made if it is not there")
    parser.add_argument(
        "--preload", default=PRELOAD, help="modules that warm ranks find imported (default: %(default)s)"
    )
    parser.add_argument("--idle", type=float, default=60.0, help="seconds without connection and attempt until it ends")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        sys.exit(f"{folder} belongs to another user")
    folder.chmod(0o700)
    lock(folder)
    signals = become_init_of_ranks()
    launcher = Launcher(folder, arguments.preload, arguments.idle)
    launcher.run(listen(folder), signals)
    (folder / "launcher.sock").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
