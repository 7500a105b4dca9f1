"""How attempts end: ranks' ends are noted, what is left of an attempt that is over is killed, and nothing is left.

An ended rank is kept unreaped until its attempt has ended: as long as neither its process id nor its group's can be
another's.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from attempts import Attempt, now
from process_table import Process, kill, of_this_user, processes, signs_of
from wire import Message

SWEEP_S = 0.01


class Sweeper:
    def __init__(
        self,
        folder: Path,
        attempts: dict[str, Attempt],
        tell: Callable[[Message], None],
        others: Callable[[], set[int]],
    ) -> None:
        """`folder`: where a launcher that comes after this one finds what it leaves; `others`: children to leave alone."""
        self.folder, self.attempts, self.tell, self.others = folder, attempts, tell, others
        folder.mkdir(mode=0o700, exist_ok=True)
        self.observe_at = float("inf")
        self.observe_not_before = 0.0

    def remember(self, attempt: Attempt) -> None:
        """A launcher that comes after this one finds by it what this one leaves, however it ends."""
        (self.folder / attempt.name).write_text(attempt.mark)

    def take_up_leftovers(self) -> None:
        """What a launcher that was killed has left behind is swept, and shown as ended attempts without ranks."""
        for path in self.folder.iterdir():
            mark = path.read_text()
            if mark:
                self.attempts[path.name] = attempt = Attempt(path.name, mark, lease_end=0.0)
                self.begin_killing(attempt)

    def begin_killing(self, attempt: Attempt) -> None:
        # What ended before this moment has not been told to.
        self.reap()
        attempt.killing = True
        attempt.told_at = attempt.told_at or now()
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
                    rank.at, rank.told_at = now(), attempt.told_at
                    if attempt.refusal is None:
                        self.tell(
                            {
                                "event": "exit",
                                "attempt": attempt.name,
                                "rank": int(key),
                                "code": rank.exit,
                                "at": rank.at,
                                "told_at": rank.told_at,
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
        unreaped = ranks | self.others()
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
            (self.folder / attempt.name).unlink(missing_ok=True)
        if attempt.refusal is None:
            self.tell({"event": "ended", "attempt": attempt.name, "swept": len(attempt.killed)})
            return
        why, answers = attempt.refusal
        del self.attempts[attempt.name]
        for reply in answers:
            reply({"error": why})
