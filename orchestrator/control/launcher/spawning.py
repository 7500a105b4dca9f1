"""How a program becomes a process of this launcher: its own session, its log, its CPUs, and an end with the launcher."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess

PR_SET_PDEATHSIG = 1
RLIMIT_LOCKS = 10
LIBC = ctypes.CDLL(None)


def open_log(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def spawn(
    argv: list[str],
    *,
    env: dict[str, str],
    cwd: str,
    log: str,
    keep: tuple[int, ...] = (),
    tag: int | None = None,
    cpus: list[int] | None = None,
) -> int:
    """Starts a program as the leader of its own session; its pid. OSError or SubprocessError where it cannot be.

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
        if cpus is not None:
            os.sched_setaffinity(0, cpus)

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
