"""After which step all ranks stop, once any of them was told to.

A signal finds ranks at different steps, and a rank that stopped at once would leave the others waiting for it in a collective. So:

1. A rank that is told writes `stop` into the store by which the process group has met. A thread in each rank looks for that a few
   times a second, and hears of its own signals at once, also while the training is held up in a collective; the training itself
   looks at nothing but a flag of its own process.
2. Each rank's thread raises that flag, from when on its training waits at the end of the step it is in, and writes that step's
   number. It can do so while the training is held up in a collective.
3. Rank 0 takes the highest number. No rank is beyond it, as each was held; all go on to the end of that step, and stop there.

So whoever is behind is let go on as soon as all threads have answered. Where one does not, its rank is dead or frozen, and no step
will ever end that needs it: each rank then stops where it is.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from orchestrator.checkpoint.ranks import Ranks
from orchestrator.checkpoint.signals import Signals

LOOK_S, MOST_LOOKS_A_SECOND = 0.25, 2000
"""How often a thread looks; more seldom where all ranks together would look so often."""
ANSWER_S = 0.02
ANSWERS_WITHIN_S = 10.0
"""After that a rank that has not answered is given up."""
LEAVES_WITHIN_S = 5.0
"""So long a training may then take to come to the end of its step; it is in a collective that never ends otherwise."""
HEARD_WITHIN_S = 2.0
NEVER = 2**62

_number = itertools.count()


class Stopping:
    """One rank's part in it. `begin` and `end` around the training; `reached` at the end of each step, on every rank."""

    def __init__(self, ranks: Ranks, signals: Signals) -> None:
        self._ranks, self._signals = ranks, signals
        # Made in the same order on every rank, so that each meets its like.
        self._store: Any = ranks.store(f"orch-checkpoint-{next(_number)}")
        self._told = self._held = False
        self._reached = 0
        self._last: int | None = None
        self.agreed = True
        """Whether all ranks stop after the same step; else this one has given the others up."""
        self._known, self._ended, self._left = threading.Event(), threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def possible(self) -> bool:
        """Whether the ranks have a way to agree."""
        return self._store is not None or self._ranks.world_size == 1

    def begin(self) -> None:
        """From now on this rank answers."""
        if self._store is not None:
            self._thread = threading.Thread(target=self._follow, name="orch-checkpoint", daemon=True)
            self._thread.start()

    def resumed(self, step: int) -> None:
        """`step` steps are done already."""
        self._reached = step

    def tell(self) -> None:
        """This rank is to stop. Called by a signal's handler, so it only sets flags."""
        self._told = True
        if self._store is None:
            self._last, self._held = self._reached + 1, True
            self._known.set()

    def reached(self, step: int) -> bool:
        """Whether to stop now that `step` steps are done; waits for the other ranks' answers once any of them was told to."""
        # In this order: the thread raises the flag first and reads the number then.
        self._reached = step
        if not self._held:
            return False
        self._known.wait()
        stop = not self.agreed or (self._last is not None and step >= self._last)
        if stop:
            self._left.set()
        return stop

    def end(self) -> None:
        """The training is over, however: nobody has to wait for this rank."""
        self._ended.set()
        self._left.set()
        self._signals.wake()
        if self._thread is not None:
            self._thread.join(HEARD_WITHIN_S)

    def leave_together(self) -> None:
        """After the last save, rank 0's above all: a launcher ends what is left once one rank has ended."""
        if self._store is None or not self.agreed:
            return
        others, deadline = self._ranks.world_size - 1, time.monotonic() + HEARD_WITHIN_S
        # The store may be rank 0's, and go with it.
        with suppress(Exception):
            if self._ranks.rank == 0:
                self._store.set("saved", "1")
                while self._store.add("heard", 0) < others and time.monotonic() < deadline:
                    time.sleep(ANSWER_S)
            else:
                while not self._store.check(["saved"]):
                    time.sleep(ANSWER_S)
                self._store.add("heard", 1)

    # -- the thread ------------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        try:
            agreed = self._agree()
        except Exception:
            # The store is gone, and rank 0 with it: once this rank is told to stop, there is nobody to agree with.
            while not (self._told or self._held or self._ended.is_set()):
                if self._signals.wait(LOOK_S):
                    self._told = True
            agreed = self._ended.is_set()
        self.agreed = agreed
        self._held = self._held or not agreed
        self._known.set()
        if not agreed and not self._left.wait(LEAVES_WITHIN_S):
            with suppress(Exception):
                sys.stdout.flush()
                sys.stderr.write(f"rank {self._ranks.rank} was told to stop, another rank does not answer: it ends\n")
                sys.stderr.flush()
            os._exit(128 + 15)

    def _agree(self) -> bool:
        """Learns after which step to stop, once there is one; False where a rank does not answer."""
        store, pause = self._store, max(LOOK_S, self._ranks.world_size / MOST_LOOKS_A_SECOND)
        while not (self._ended.is_set() or self._told or store.check(["stop"])):
            if self._signals.wait(pause):
                self._told = True
        if self._told:
            store.set("stop", "1")
        self._held = True
        store.set(f"at/{self._ranks.rank}", str(self._reached + 1))
        if self._ranks.rank == 0:
            store.set("last", str(self._highest()))
        deadline = time.monotonic() + 2 * ANSWERS_WITHIN_S
        while not store.check(["last"]):
            if self._ended.wait(ANSWER_S):
                return True
            if time.monotonic() > deadline:
                return False
        self._last = int(store.get("last"))
        return self._last >= 0

    def _highest(self) -> int:
        """The last step that any rank is in; -1 where one does not answer, and NEVER where rank 0 is past its last."""
        keys = [f"at/{rank}" for rank in range(self._ranks.world_size)]
        deadline = time.monotonic() + ANSWERS_WITHIN_S
        while not self._store.check(keys):
            if self._ended.wait(ANSWER_S):
                return NEVER
            if time.monotonic() > deadline:
                return -1
        return max(int(self._store.get(key)) for key in keys)
