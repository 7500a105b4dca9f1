"""Who starts, watches and ends the ranks of a node, outlives the agent, and kills what its lease does not cover.

Run as `python -I FOLDER_OF_THIS_FILE DIR`; listens on DIR/launcher.sock. What it is asked and tells: docs/protocols.md,
"Agent and launcher". Standard library only, and nothing else of orch: these modules find each other because Python puts
the folder that it runs first on its path.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import signal
import socket
import sys
import time
from pathlib import Path

from attempts import now
from node_launcher import Launcher
from spawning import LIBC

PR_SET_CHILD_SUBREAPER = 36
LOCK_S = 1.0
"""How long a new launcher waits for one that is just ending."""
PRELOAD = "torch,torch.distributed,torch._dynamo"


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
    parser.add_argument("--code", help="what `hello` says of the code that this is")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        sys.exit(f"{folder} belongs to another user")
    folder.chmod(0o700)
    lock(folder)
    signals = become_init_of_ranks()
    launcher = Launcher(folder, arguments.preload, arguments.idle, arguments.code)
    launcher.run(listen(folder), signals)


if __name__ == "__main__":
    main()
