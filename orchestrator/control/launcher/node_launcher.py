"""The loop of the launcher: hears requests, signals and zygotes, keeps deadlines, and ends when nobody needs it.

One thread; it waits for nothing but the start of a cold rank's program.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
from pathlib import Path
from typing import Any

from attempts import Attempt, now
from starts import Starts
from sweeper import Sweeper
from wire import Connection, Message, Peers, RefusedError, Reply
from zygotes import Zygotes

KEEP_ENDED_S = 3600.0
"""How long the ends of attempts are kept for an agent that does not come back."""


class Launcher:
    def __init__(self, folder: Path, preload: str, idle_s: float, code: str | None = None) -> None:
        self.idle_s, self.code = idle_s, code
        self.boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self.selector = selectors.DefaultSelector()
        self.attempts: dict[str, Attempt] = {}
        self.peers = Peers(self.selector, self.answer)
        self.zygotes = Zygotes(folder, preload, self.selector, self.peers.tell)
        self.sweeper = Sweeper(folder / "live", self.attempts, self.peers.tell, self.other_children)
        self.starts = Starts(self.selector, self.attempts, self.zygotes, self.sweeper)
        self.listener: socket.socket | None = None
        self.quitting = False
        self.done = False
        self.idle_since = now()

    def other_children(self) -> set[int]:
        """Children of this process that are no attempt's rank yet, or never."""
        pids = {pid for starting in self.starts.starting.values() for pid in starting.pids.values()}
        return pids | {zygote.pid for zygote in self.zygotes.by_python.values()}

    def run(self, listener: socket.socket, signals: socket.socket) -> None:
        self.selector.register(listener, selectors.EVENT_READ, lambda _: self.let_in())
        self.selector.register(signals, selectors.EVENT_READ, lambda _: self.signalled(signals.recv(4096)))
        self.sweeper.take_up_leftovers()
        self.listener = listener
        while not self.done:
            for key, events in self.selector.select(max(0.0, self.next_deadline() - now())):
                key.data(events)
            self.tick()
        self.stop_listening()
        for zygote in list(self.zygotes.by_python.values()):
            self.zygotes.drop(zygote)

    def let_in(self) -> None:
        if self.listener is not None:
            self.peers.accept(self.listener)

    def stop_listening(self) -> None:
        """From here on who connects is refused, and starts another launcher: none is let in to be hung up on."""
        if self.listener is not None:
            self.selector.unregister(self.listener)
            Path(self.listener.getsockname()).unlink(missing_ok=True)
            self.listener.close()
            self.listener = None

    def next_deadline(self) -> float:
        # select() sleeps by a clock that stops in suspend, leases don't: look at least once a second.
        times = [
            now() + (1.0 if self.attempts or self.starts.starting else 10.0),
            self.sweeper.observe_at,
            self.idle_end,
        ]
        times += [starting.deadline for starting in self.starts.starting.values()]
        for attempt in self.attempts.values():
            # What is killed already has no deadline but the sweeper's: one in the past would keep select() from sleeping.
            if not (attempt.ended or attempt.killing):
                times += [attempt.lease_end] if attempt.kill_at is None else [attempt.lease_end, attempt.kill_at]
        return min(times)

    @property
    def idle_end(self) -> float:
        """When it ends by itself if nobody connects: later where the end of an attempt waits to be heard of."""
        return self.idle_since + (KEEP_ENDED_S if self.attempts else self.idle_s)

    def tick(self) -> None:
        at = now()
        self.starts.give_up_late_ones(at)
        for attempt in self.attempts.values():
            if attempt.ended or attempt.killing:
                continue
            if at >= attempt.lease_end:
                attempt.lease_expired = True
                self.sweeper.begin_killing(attempt)
                self.peers.tell({"event": "lease_expired", "attempt": attempt.name})
            elif attempt.kill_at is not None and at >= attempt.kill_at:
                self.sweeper.begin_killing(attempt)
        if at >= self.sweeper.observe_at:
            self.sweeper.observe()
        kept = any(not attempt.ended for attempt in self.attempts.values()) or self.starts.starting
        if self.quitting and not kept:
            self.done = True
        if kept or self.peers.connections:
            self.idle_since = at
        elif at >= self.idle_end:
            self.done = True

    def signalled(self, numbers: bytes) -> None:
        if set(numbers) - {signal.SIGCHLD}:
            self.quitting = True
            self.starts.close("the launcher was told to end")
            for attempt in self.attempts.values():
                if not attempt.ended:
                    self.sweeper.begin_killing(attempt)
        self.sweeper.reap()
        self.sweeper.observe_soon()

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
                "hello": self.hello, "warm": self.zygotes.warm, "start": self.starts.start, "lease": self.lease,
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

    def hello(self, request: Message, reply: Reply) -> None:
        # Whoever asked for them has gone, and does not hear of them: they would live until their lease ends, unknown to all.
        for starting in list(self.starts.starting.values()):
            self.starts.refuse(starting, "the agent that asked for it has gone")
        attempts = {
            name: {
                "ranks": {
                    key: {"pid": rank.pid, "exit": rank.exit, "at": rank.at, "told_at": rank.told_at, "warm": rank.warm}
                    for key, rank in attempt.ranks.items()
                },
                "lease_s": round(attempt.lease_end - now(), 3),
                "ended": attempt.ended,
                "lease_expired": attempt.lease_expired,
            }
            for name, attempt in self.attempts.items()
            if attempt.refusal is None
        }
        zygotes = {
            python: {"pid": zygote.pid, "ready": zygote.ready} for python, zygote in self.zygotes.by_python.items()
        }
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        known = {"pid": os.getpid(), "boot": self.boot, "nice": nice, "code": self.code}
        reply({**known, "attempts": attempts, "zygotes": zygotes})

    def lease(self, request: Message, reply: Reply) -> None:
        leases = {name: float(seconds) for name, seconds in request["attempts"].items()}
        for name, seconds in leases.items():
            if name in self.attempts:
                self.attempts[name].lease_end = now() + seconds
            elif name in self.starts.starting:
                self.starts.starting[name].attempt.lease_end = now() + seconds
        reply({"unknown": sorted(leases.keys() - self.attempts.keys() - self.starts.starting.keys())})

    def stop(self, request: Message, reply: Reply) -> None:
        name, grace_s = request["attempt"], float(request["grace_s"])
        if name in self.starts.starting:
            self.starts.refuse(self.starts.starting[name], "stopped while it was starting")
        elif name not in self.attempts:
            raise RefusedError(f"attempt {name} is not known here")
        elif not self.attempts[name].ended:
            attempt = self.attempts[name]
            first = attempt.kill_at is None
            attempt.kill_at = min(now() + grace_s, now() + grace_s if attempt.kill_at is None else attempt.kill_at)
            if grace_s <= 0:
                self.sweeper.begin_killing(attempt)
            elif first:
                self.sweeper.reap()
                attempt.told_at = now()
                for rank in attempt.ranks.values():
                    if rank.exit is None:
                        # It is not reaped, so that its process group is still its own.
                        with contextlib.suppress(ProcessLookupError):
                            os.killpg(rank.pid, signal.SIGTERM)
        reply({})

    def forget(self, request: Message, reply: Reply) -> None:
        attempt = self.attempts.get(request["attempt"])
        if attempt is not None and not attempt.ended:
            raise RefusedError(f"attempt {attempt.name} has not ended")
        self.attempts.pop(request["attempt"], None)
        reply({})

    def quit(self, request: Message, reply: Reply) -> None:
        alive = sorted(
            [name for name, attempt in self.attempts.items() if not attempt.ended] + list(self.starts.starting)
        )
        if alive:
            raise RefusedError(f"attempts still live: {', '.join(alive)}")
        self.stop_listening()
        reply({})
        self.done = True
