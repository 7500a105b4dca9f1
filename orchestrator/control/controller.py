"""The controller: observe, decide, record, act.

It holds nothing that the database does not, but for secrets: killed anywhere, the next one takes up the runs where they are. The
nodes are roster.py's, the live attempts gangs.py's, what waits queue.py's; the API (api.py) and the Ray actor (ray_controller.py)
are around it.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Any

from orchestrator.array import parse_ref, run_id
from orchestrator.control.admission import Admission
from orchestrator.control.backend import Backend
from orchestrator.control.benches import Benches
from orchestrator.control.changes import Change, check_limit, check_state, parse_changes
from orchestrator.control.expiry import Expiry
from orchestrator.control.fitness import Fitness
from orchestrator.control.gangs import Gangs
from orchestrator.control.logs import LogFolder
from orchestrator.control.node_care import NodeCare
from orchestrator.control.past import Past
from orchestrator.control.preflight import Preflight
from orchestrator.control.queue import Queue
from orchestrator.control.reasons import preview_json, why
from orchestrator.control.refused import Refused
from orchestrator.control.runtime import Runtime, Settings
from orchestrator.control.steady import SteadyClock
from orchestrator.control.storage import StorageWatch
from orchestrator.control.trials import Trials
from orchestrator.hardware.model import Cluster
from orchestrator.history.filters import RunFilter
from orchestrator.history.store import Store
from orchestrator.placement.draw import draw_placement
from orchestrator.placement.explain import alternatives
from orchestrator.placement.search import place
from orchestrator.placement.values import Rejection
from orchestrator.scheduling.ask import request_of
from orchestrator.scheduling.lifecycle import Event, State, said
from orchestrator.scheduling.run import Array, NewRun, Run
from orchestrator.scheduling.unfit import left_out
from orchestrator.spec import JobSpec
from orchestrator.units import format_duration

MOST_RECENT = 1000
TWIN_S = 60.0
"""Two submissions of one job within this time may be one that was sent twice."""
STORAGE_S = 2.0
"""How often the storage is asked whether it answers."""
AT_ONCE = 1000
"""Runs of an array that are changed by one write."""


class Controller:
    """One per ORCH_HOME; a second one fences the first out by its epoch."""

    def __init__(
        self,
        store: Store,
        backend: Backend,
        settings: Settings,
        declared: Cluster = Cluster(),  # noqa: B008 - frozen
        *,
        now: Callable[[], datetime] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        superseded: Callable[[], None] = lambda: None,
        last_alive: datetime | None = None,
    ) -> None:
        """`last_alive`: when the controller before this one was last known to live."""
        now = now or SteadyClock(monotonic=monotonic, on_step=self._clock_stepped)
        self.runtime = Runtime(store, settings, now=now, monotonic=monotonic, superseded=superseded)
        self.logs = LogFolder(settings.home / "logs")
        self.gangs = Gangs(self.runtime, backend, self.logs, declared)
        self.roster, self.surveys = self.gangs.roster, self.gangs.surveys
        self.care = NodeCare(self.runtime, self.gangs)
        self.benches = Benches(self.runtime, self.logs, self.roster)
        self.gangs.endings.on_success = self.benches.take
        fitness = Fitness(self.runtime, self.surveys, Preflight(self.runtime, self.roster))
        self.trials = Trials(self.runtime, self.gangs, fitness)
        self.queue = Queue(self.runtime, self.gangs, fitness, self.trials)
        self.past = Past(self.runtime)
        self.storage = StorageWatch(settings.storage, monotonic)
        self.admission = Admission(self.roster, self.surveys, settings.open_ray)
        self._recent: dict[object, int] = {}
        """By job and user, the newest run, the oldest first."""
        self._store, self._last_alive = store, last_alive

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Takes over: fences out whoever ran before, takes up the live runs, finds the nodes."""
        runtime = self.runtime
        await runtime.take_over(f"process {os.getpid()} on {platform.node()}")
        await self.benches.start()
        await self.trials.load()
        await self.care.load()
        self.gangs.unwatched_since = self._last_alive
        for run in runtime.book.live():
            self.gangs.adopt(run)
        await self.roster.start()
        runtime.spawn(self.gangs.give_up_missing())
        runtime.forever("looking for a newer controller", runtime.look_for_newer, runtime.settings.look_for_newer_s)
        self.gangs.measuring.start()
        self.gangs.watch.start()
        Expiry(runtime).start()
        runtime.forever("watching the storage", self.storage.look, STORAGE_S)
        await self.care.start()
        await self.queue.start()

    async def close(self) -> None:
        await self.runtime.close()
        self.queue.close()

    def _clock_stepped(self, seconds: float) -> None:
        if not seconds:
            self.runtime.alarms.clear("clock")
            return
        text = (
            f"This machine's clock was put {'forward' if seconds > 0 else 'back'} by {format_duration(abs(round(seconds)))}: "
            "times go on as before until the controller is started again."
        )
        self.runtime.alarms.set("clock", text, self.runtime.now())

    def start_no_more(self) -> None:
        """From now on what waits stays where it is: the cluster goes down, and the next one takes it up."""
        self.queue.starts_runs = False

    # -- what users ask for --------------------------------------------------------------------------------------

    async def submit(self, new: NewRun, secrets: Mapping[str, str]) -> tuple[Run, bool]:
        """Records a run, or an array, of which it gives the first; it is on disk when this returns.

        Raises Refused(5) where the cluster could never hold it, and a StoreError for `after:`.
        """
        values = _values(new.spec, secrets)
        try:
            self.admission.check_fits(new.spec)
            await self.admission.check_requires(new.spec)
        except Refused:
            # What was acknowledged stays so, whatever has become of the cluster since.
            if (known := await self.runtime.read(self._store.submitted, new)) is None:
                raise
            return known, False
        run, created = await self.runtime.submit(new)
        if created:
            self.runtime.counts.submissions += 1
            array = self.array_of(run)
            for made in array.runs if array is not None and values else [run.id]:
                self.gangs.secrets[made] = values
            self.queue.has_come()
        return run, created

    async def dry_run(self, spec: JobSpec, user: str) -> dict[str, Any]:
        """Where the job would go, when, at whose cost; what a looser or tighter wish would give. Raises as `submit`."""
        self.admission.check_fits(spec)
        follows = await self.runtime.read(self._store.needs, spec.after, user)
        unfit = await self.admission.check_requires(spec)
        free = self.roster.free(await self.busy())
        topology = free.topology
        patient = spec.near is not None and spec.near.patience is not None
        request = request_of(spec, topology, patient=patient, exclude=unfit)
        answer = place(request, topology, free)
        others = [
            {"level": other.level, "answer": str(other), "busbw_predicted": other.busbw}
            for other in (
                alternatives(request, topology, free) if request.device == "cuda" and spec.workers.total > 1 else ()
            )
        ]
        now = {"device": request.device, "alternatives": others, "notices": self.admission.notices(spec)}
        now |= await self._preview(spec, user)
        if (waits := self.queue.waits_for(follows)) is not None:
            return {"fits_now": False, "reason": waits, "placement": None} | now
        if isinstance(answer, Rejection):
            reason = f"{answer.reason}; {left_out(unfit)}" if unfit else answer.reason
            return {"fits_now": False, "reason": reason, "placement": None} | now
        drawing = draw_placement(topology, [(part.node, part.gpus, part.ranks) for part in answer.nodes])
        return {"fits_now": True, "reason": None, "placement": asdict(answer), "drawing": drawing} | now

    async def _preview(self, spec: JobSpec, user: str) -> dict[str, Any]:
        """When it would start, and whom it would delay. Of an array: its first run."""
        now = self.runtime.now()
        one = spec if spec.array is None else spec.element(0)
        run = Run(0, one, user, None, "", State.QUEUED, None, submitted_at=now, queued_at=now)
        said = await self.queue.preview(run)
        return {"waits": None, "delays": [], "preempts": []} if said is None else preview_json(said)

    def twin_of(self, run: Run) -> Run | None:
        """An earlier submission of the same job by the same user, a moment ago, that has not ended. Asked once for each run."""
        key = run.user, run.code and run.code.sha256, run.spec.model_dump_json()
        before = self._recent.pop(key, None)
        self._recent[key] = run.id
        if len(self._recent) > MOST_RECENT:
            del self._recent[next(iter(self._recent))]
        twin = None if before is None else self.runtime.book.runs.get(before)
        return twin if twin and run.submitted_at - twin.submitted_at <= timedelta(seconds=TWIN_S) else None

    async def cancel(self, ref: str, by: str | None = None) -> tuple[Run, bool]:
        """Asks for the run's end; answers (run, whether it had ended already)."""
        run = await self.find(ref)
        if run.ended:
            return run, True
        return await self._cancel(run, by), False

    async def _cancel(self, run: Run, by: str | None) -> Run:
        runtime, now = self.runtime, self.runtime.now()
        waited = self.queue.waits.over(run, now) if run.state is State.QUEUED else None
        run = await runtime.write(self._store.record, run.id, Event.CANCEL_ASKED, now, None, by, waited)
        self._cancelled(run)
        return run

    def _cancelled(self, run: Run) -> None:
        """It is on record that the run is to end."""
        if run.live:
            self.gangs.cancel(run)
        else:
            self.gangs.secrets.pop(run.id, None)
        self.runtime.tell(run.id)
        self.runtime.wake.set()

    async def cancel_array(self, array: Array, by: str | None = None) -> int:
        """Asks for the end of every run of it that has not ended; how many there were."""
        runtime, now = self.runtime, self.runtime.now()
        cancelled = 0
        for part in _parts(sorted(runtime.book.open_runs.get(array.id, ()))):
            runs = [runtime.book.runs[run] for run in part if run in runtime.book.runs]
            waited = {run.id: over for run in runs if (over := self.queue.waits.over(run, now)) is not None}
            ids = [run.id for run in runs]
            for run in await runtime.write(self._store.record_each, ids, Event.CANCEL_ASKED, now, None, by, waited):
                self._cancelled(run)
                cancelled += 1
        return cancelled

    async def retry(self, ref: str, secrets: Mapping[str, str], by: str | None = None) -> Run:
        """Another attempt of a run that failed or was cancelled. Raises Refused."""
        run = await self.find(ref)
        if not run.ended or run.state is State.SUCCEEDED:
            raise Refused(7, f"run {run.id} {said(run.state)}: only one that failed or was cancelled is tried again")
        again = await self._retry([run], secrets, by)
        if not again:
            raise Refused(7, f"run {run.id} was tried again by somebody else just now")
        return again[0]

    async def retry_array(self, array: Array, secrets: Mapping[str, str], by: str | None = None) -> int:
        """Another attempt of the runs of it that failed, or else of those that were cancelled; how many. Raises Refused."""
        for state in (State.FAILED, State.CANCELLED):
            wanted = RunFilter(ids=array.runs, state=state, sort="id")
            if runs := await self.runtime.read(self._store.runs, wanted):
                return len(await self._retry(runs, secrets, by))
        raise Refused(7, f"no run of {array.name} has failed or was cancelled: there is nothing to try again")

    async def _retry(self, runs: Sequence[Run], secrets: Mapping[str, str], by: str | None) -> list[Run]:
        values = _values(runs[0].spec, secrets)
        self.admission.check_fits(runs[0].spec)
        await self.admission.check_requires(runs[0].spec)
        for need in runs[0].after:
            if (broken := await self.runtime.read(self._store.broken, need)) is not None:
                raise Refused(7, f"run {runs[0].id} is to follow run {broken.id} ({broken.label}): retry that first")
        for run in runs:
            self.gangs.secrets[run.id] = values
        now = self.runtime.now()
        again: list[Run] = []
        for part in _parts([run.id for run in runs]):
            again += await self.runtime.write(self._store.record_each, part, Event.RETRY_ASKED, now, None, by)
        for run in again:
            self.runtime.tell(run.id)
        self.runtime.wake.set()
        return again

    async def change(self, ref: str, texts: Mapping[str, str], by: str | None = None) -> list[Run]:
        """`orch set`: changes priority, time limit or nearness of a run, or of the runs of an array. Raises Refused."""
        array = await self.find_array(ref)
        change = parse_changes(texts, array=array is not None)
        if array is None:
            runs = [await self.find(ref)]
            check_state(runs[0], change)
        else:
            mine = (self.runtime.book.runs[run] for run in self.runtime.book.open_runs.get(array.id, ()))
            runs = [run for run in mine if run.state is State.QUEUED or (change.live and run.live)]
            if not runs and change.keys:
                raise Refused(7, f"no run of {array.name} waits any more")
            if change.array_limit is not False:
                await self.runtime.write(self._store.limit_array, array, change.array_limit)
        if change.keys and runs:
            runs = await self._change(runs, change, by)
        self.runtime.wake.set()
        return runs

    async def _change(self, runs: Sequence[Run], change: Change, by: str | None) -> list[Run]:
        spec = change.applied(runs[0].spec)
        self.admission.check_fits(spec)
        now = self.runtime.now()
        for run in runs:
            check_limit(run, spec, now, self.queue.last.reservations)
        what = change.words(runs[0].spec, spec)
        changed: list[Run] = []
        for part in _parts([run.id for run in runs]):
            changed += await self.runtime.write(self._store.change, part, change.keys, now, what, by)
        for run in changed:
            if (gang := self.gangs.of(run)) is not None:
                self.gangs.limits.set(gang, run.spec.time_limit)
            self.runtime.tell(run.id)
        return changed

    async def take_stacks(self, run: Run, attempt: int | None) -> None:
        """Keeps where the ranks of a live run stand at this moment; of an attempt that is over, what was kept stays."""
        gang = self.gangs.of(run)
        if gang is not None and attempt in (None, gang.attempt):
            await self.gangs.watch.keep_stacks(gang)

    async def why(self, ref: str) -> dict[str, Any]:
        """Why a run waits, or waited and ended. Raises Refused(3)."""
        return await why(self.queue, await self.find(ref), self.runtime.now())

    # -- what is known -------------------------------------------------------------------------------------------

    async def find(self, ref: str) -> Run:
        """One run whole. Raises Refused(3)."""
        run = await self.runtime.read(self._store.get, word := run_id(ref))
        if run is None:
            gone = await self.runtime.read(self._store.expired, word) if isinstance(word, int) else None
            raise Refused(3, gone or f"no such run: {ref!r}")
        return self.with_reason(run)

    async def find_array(self, ref: str) -> Array | None:
        """The array that is meant: by empty brackets, or by a name whose latest submission it is. None where a run is meant."""
        parsed = parse_ref(ref)
        if parsed is None or parsed.index is not None or (parsed.word.isdigit() and not parsed.whole):
            return None
        ids = await self.runtime.read(self._store.ids_of, parsed)
        array = None if ids is None else await self.runtime.read(self._store.array_of, ids[0])
        if array is None and parsed.whole:
            raise Refused(3, f"no such array: {ref!r}")
        return array

    def array_of(self, run: Run) -> Array | None:
        """The array that a run is of, while any run of it has not ended."""
        return None if run.element is None else self.runtime.book.arrays.get(run.element.array)

    async def runs(self, wanted: RunFilter) -> list[Run]:
        return [self.with_reason(run) for run in await self.runtime.read(self._store.runs, wanted)]

    async def live(self) -> list[Run]:
        """What holds a place."""
        return self.runtime.book.live()

    async def waiting(self) -> list[Run]:
        """What waits, in its order."""
        return [self.with_reason(run) for run in self.queue.waiting()]

    async def busy(self) -> dict[str, dict[int, int]]:
        """By node and GPU (or CPU slot), the run that holds it."""
        return self.trials.with_taken(self.runtime.book.busy())

    def with_reason(self, run: Run) -> Run:
        """The run with the reason of the last plan, where it waits."""
        if run.state is not State.QUEUED or (reason := self.queue.waits.reason(run.id)) is None:
            return run
        return replace(run, reason=reason.text)


def _parts(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    """Some at a time, so that the writes of others come in between."""
    for at in range(0, len(ids), AT_ONCE):
        yield ids[at : at + AT_ONCE]


def _values(spec: JobSpec, given: Mapping[str, str]) -> dict[str, str]:
    """The values of the secrets that the spec names. Raises Refused(2) where some were not sent."""
    if missing := sorted(set(spec.secrets) - given.keys()):
        raise Refused(2, f"secrets: {', '.join(missing)}: no value was sent")
    return {name: given[name] for name in spec.secrets}
