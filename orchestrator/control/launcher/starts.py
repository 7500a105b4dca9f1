"""How an attempt starts: all of its ranks, warm or cold, or none.

No rank runs its script before all warm ones have said that they are there and all cold ones have been started.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import re
import selectors
import socket
import subprocess
from dataclasses import dataclass, field

from attempts import Attempt, Rank, now, started
from rank_request import check_rank, is_script
from spawning import spawn
from sweeper import Sweeper
from why_cold import why_cold
from wire import Message, RefusedError, Reply
from zygotes import RANK_PROGRAM, Zygote, Zygotes

WARM_START_S = 5.0
"""How long a zygote may take to fork before it is given up."""


@dataclass
class Starting:
    """An attempt whose warm ranks have been asked of their zygotes; no rank runs the script before all are there."""

    attempt: Attempt
    ranks: dict[str, Message]
    deadline: float
    answers: list[Reply]
    why_cold: dict[str, str] = field(default_factory=dict)
    pids: dict[str, int] = field(default_factory=dict)
    lines: dict[socket.socket, tuple[Zygote, set[str]]] = field(default_factory=dict)


def cold_argv(rank: Message) -> list[str]:
    """The command of a cold rank: the script itself, or what becomes it, once it is observed and cuDNN's flags are set."""
    becomes = rank["cudnn"] or ("ORCH_PROGRESS" in rank["env"] and is_script(rank))
    before = [RANK_PROGRAM, "become", json.dumps(rank["cudnn"])] if becomes else []
    return [rank["python"], "-u", *before, *rank["argv"]]


class Starts:
    def __init__(
        self, selector: selectors.BaseSelector, attempts: dict[str, Attempt], zygotes: Zygotes, sweeper: Sweeper
    ) -> None:
        self.selector, self.attempts, self.zygotes, self.sweeper = selector, attempts, zygotes, sweeper
        self.starting: dict[str, Starting] = {}
        self.closed = False

    def start(self, request: Message, reply: Reply) -> None:
        name, lease_s = request["attempt"], float(request["lease_s"])
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
            raise RefusedError(f"attempt: {name!r} is not a name such as 42.1")
        if name in self.attempts and self.attempts[name].refusal is None:
            reply({"ranks": started(self.attempts[name])})
            return
        if name in self.starting:
            self.starting[name].answers.append(reply)
            return
        if name in self.attempts or self.closed:
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
        self.sweeper.remember(attempt)
        starting = Starting(attempt, ranks, deadline=asked_at + WARM_START_S, answers=[reply])
        self.starting[name] = starting
        self.ask_zygotes(starting)
        self.finish_if_ready(starting)

    def give_up_late_ones(self, at: float) -> None:
        for starting in list(self.starting.values()):
            if at >= starting.deadline:
                for line, (zygote, _) in list(starting.lines.items()):
                    self.zygotes.lose(zygote, f"forked nothing within {WARM_START_S:.0f} s")
                    self.give_up_line(starting, line, "the warm process did not answer")
                self.finish_if_ready(starting)
                if starting.attempt.name in self.starting:
                    self.refuse(starting, f"it could not be started within {WARM_START_S:.0f} s")

    def close(self, why: str) -> None:
        """Nothing starts any more."""
        self.closed = True
        for starting in list(self.starting.values()):
            self.refuse(starting, why)

    def ask_zygotes(self, starting: Starting) -> None:
        zygotes = {
            python: self.zygotes.fresh(python) for python in {rank["python"] for rank in starting.ranks.values()}
        }
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
                    self.zygotes.lose(zygote, said["refused"])
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
                pid = spawn(
                    cold_argv(rank),
                    env=rank["env"],
                    cwd=rank["cwd"],
                    log=rank["log"],
                    tag=attempt.tag,
                    cpus=rank.get("cpus"),
                )
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
        self.sweeper.reap()
        self.sweeper.observe_soon()

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
        self.sweeper.begin_killing(attempt)
