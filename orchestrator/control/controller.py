"""The controller: observe, decide, record, act.

It holds nothing that the database does not, but for secrets: killed anywhere, the next one takes up the runs where they are. The
nodes are roster.py's and the live attempts gangs.py's; the API (api.py) and the Ray actor (ray_backend.py) are around it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from orchestrator.control.backend import Backend
from orchestrator.control.benches import Benches
from orchestrator.control.expiry import Expiry
from orchestrator.control.gangs import Gangs
from orchestrator.control.logs import LogFolder
from orchestrator.control.runtime import Runtime, Settings
from orchestrator.hardware.model import Cluster
from orchestrator.history.asking import Asked
from orchestrator.history.filters import RunFilter
from orchestrator.history.store import Store
from orchestrator.placement import nccl_env
from orchestrator.placement.draw import draw_placement
from orchestrator.placement.explain import alternatives, at_best, hint_levels
from orchestrator.placement.fabric import fabric_of
from orchestrator.placement.search import place
from orchestrator.placement.tree import Topology
from orchestrator.placement.values import Rejection
from orchestrator.placement.wishes import is_known
from orchestrator.scheduling.lifecycle import Event, State
from orchestrator.scheduling.plan import Snapshot, device_of, plan, request_of
from orchestrator.scheduling.run import NewRun, Run
from orchestrator.scheduling.unfit import left_out
from orchestrator.spec import JobSpec


class Refused(Exception):
    """A request that cannot be met; `code` is the exit code that the contract gives it."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class Controller:
    """One per ORCH_HOME; a second one fences the first out by its epoch."""

    def __init__(
        self,
        store: Store,
        backend: Backend,
        settings: Settings,
        declared: Cluster = Cluster(),  # noqa: B008 - frozen
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
        superseded: Callable[[], None] = lambda: None,
    ) -> None:
        self.runtime = Runtime(store, settings, now=now, monotonic=monotonic, superseded=superseded)
        self.logs = LogFolder(settings.home / "logs")
        self.gangs = Gangs(self.runtime, backend, self.logs, declared)
        self.roster, self.surveys = self.gangs.roster, self.gangs.surveys
        self.benches = Benches(self.runtime, self.logs, self.roster)
        self.gangs.on_success = self.benches.take
        self._store = store
        self._reasons: dict[int, str] = {}
        """Why each waiting run waits, as the last plan said."""
        self._starts_runs = True

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Takes over: fences out whoever ran before, takes up the live runs, finds the nodes."""
        runtime = self.runtime
        runtime.epoch = await runtime.db(self._store.claim_epoch, f"controller {time.time():.0f}", runtime.now())
        await self.benches.start()
        for run in await runtime.db(self._store.live):
            self.gangs.adopt(run)
        await self.roster.start()
        await self.gangs.give_up_missing()
        Expiry(runtime).start()
        runtime.forever("scheduling", self._schedule_when_woken, 0.0)
        runtime.wake.set()

    async def close(self) -> None:
        await self.runtime.close()

    def start_no_more(self) -> None:
        """From now on what waits stays where it is: the cluster goes down, and the next one takes it up."""
        self._starts_runs = False

    # -- what users ask for --------------------------------------------------------------------------------------

    async def submit(self, new: NewRun, secrets: Mapping[str, str]) -> tuple[Run, bool]:
        """Records a run; it is on disk when this returns. Raises Refused(5) where the cluster could never hold it."""
        values = _values(new.spec, secrets)
        self._check_fits(new.spec)
        await self._check_requires(new.spec)
        run, created = await self.runtime.db(self._store.submit, new, self.runtime.now())
        if created:
            self.runtime.counts.submissions += 1
            self.gangs.secrets[run.id] = values
            self.runtime.wake.set()
        return run, created

    async def dry_run(self, spec: JobSpec) -> dict[str, Any]:
        """Where the job would go now, what a looser or tighter wish would give, or why it would wait. Raises Refused(5)."""
        self._check_fits(spec)
        unfit = await self._check_requires(spec)
        free = self.roster.free(await self.busy())
        topology = free.topology
        patient = spec.near is not None and spec.near.patience is not None
        request = request_of(spec, topology, patient=patient, unfit=unfit)
        answer = place(request, topology, free)
        others = [
            {"level": other.level, "answer": str(other), "busbw_predicted": other.busbw}
            for other in (
                alternatives(request, topology, free) if request.device == "cuda" and spec.workers.total > 1 else ()
            )
        ]
        now = {"device": request.device, "alternatives": others, "notices": self.notices(spec)}
        if isinstance(answer, Rejection):
            reason = f"{answer.reason}; {left_out(unfit)}" if unfit else answer.reason
            return {"fits_now": False, "reason": reason, "placement": None} | now
        drawing = draw_placement(topology, [(part.node, part.gpus, part.ranks) for part in answer.nodes])
        return {"fits_now": True, "reason": None, "placement": asdict(answer), "drawing": drawing} | now

    def _check_fits(self, spec: JobSpec) -> None:
        topology = self.roster.inventory.topology
        if unknown := sorted(set(spec.only) - topology.index.keys()):
            have = ", ".join(list(topology.index)[:8]) + (", ..." if len(topology.index) > 8 else "")
            raise Refused(3, f"only: no such node: {', '.join(unknown)}; the cluster has {have or 'none yet'}")
        answer = at_best(request_of(spec, topology), topology)
        if isinstance(answer, Rejection):
            raise Refused(5, f"can never fit this cluster: {answer.reason}")

    async def _check_requires(self, spec: JobSpec) -> dict[str, str]:
        """The nodes that the job cannot have, or not yet, and why. Raises Refused(5) where what is left could never hold it."""
        topology = self.roster.inventory.topology
        device = device_of(spec, topology)
        await self.surveys.settle_for(spec, device)
        fail, unknown = self.surveys.judge(spec, device)
        if fail and isinstance(place(request_of(spec, topology, unfit=fail), topology, topology.empty), Rejection):
            fit = len(topology.nodes) - len(fail)
            raise Refused(
                5,
                f"can never fit this cluster: {fit} of {len(topology.nodes)} nodes have what it requires; {left_out(fail)}",
            )
        return fail | unknown

    def notices(self, spec: JobSpec) -> list[str]:
        """What the submitter should know, though nothing is wrong with the job."""
        topology = self.roster.inventory.topology
        found = [str(notice) for notice in nccl_env.notices(spec.env)]
        if spec.device == "auto" and device_of(spec, topology) == "cpu":
            found.append("device: auto takes the CPU here: no node of the cluster has a GPU")
        if spec.near is not None and not is_known(spec.near.level, topology):
            have = ", ".join(level for level in hint_levels(topology) if level != "cluster")
            found.append(
                f"near: this cluster has no level or label {spec.near.level!r}, so the wish is moot; it has {have}"
            )
        return found

    async def cancel(self, ref: str, by: str | None = None) -> tuple[Run, bool]:
        """Asks for the run's end; answers (run, whether it had ended already)."""
        run = await self.find(ref)
        if run.ended:
            return run, True
        run = await self.runtime.db(self._store.record, run.id, Event.CANCEL_ASKED, self.runtime.now(), by=by)
        if run.live:
            self.gangs.cancel(run)
        self.runtime.tell(run.id)
        self.runtime.wake.set()
        return run, False

    async def retry(self, ref: str, secrets: Mapping[str, str], by: str | None = None) -> Run:
        """Another attempt of a run that failed or was cancelled. Raises Refused."""
        run = await self.find(ref)
        if not run.ended or run.state is State.SUCCEEDED:
            raise Refused(7, f"run {run.id} is {run.state}: only one that failed or was cancelled is tried again")
        values = _values(run.spec, secrets)
        self._check_fits(run.spec)
        await self._check_requires(run.spec)
        self.gangs.secrets[run.id] = values
        run = await self.runtime.db(self._store.record, run.id, Event.RETRY_ASKED, self.runtime.now(), by=by)
        self.runtime.tell(run.id)
        self.runtime.wake.set()
        return run

    async def find(self, ref: str) -> Run:
        """One run whole. Raises Refused(3)."""
        run = await self.runtime.db(self._store.get, int(ref) if ref.isdigit() else ref)
        if run is None:
            gone = await self.runtime.db(self._store.expired, int(ref)) if ref.isdigit() and len(ref) < 19 else None
            raise Refused(3, gone or f"no such run: {ref!r}")
        return self._with_reason(run)

    async def runs(self, wanted: RunFilter) -> list[Run]:
        return [self._with_reason(run) for run in await self.runtime.db(self._store.runs, wanted)]

    async def asked(self, question: Asked) -> list[dict[str, Any]]:
        """Groups, or flat rows. Raises ValueError."""
        if question.by:
            return await self.runtime.db(self._store.groups, question.wanted, question.by, question.sort)
        return await self.runtime.db(self._store.rows, question.wanted, question.columns)

    async def compare(self, refs: Sequence[str]) -> dict[str, Any]:
        """Runs side by side. Raises Refused(3)."""
        found = await self.runtime.db(self._store.compare, refs)
        if not isinstance(found, dict):
            raise Refused(3, f"no such run: {found!r}")
        return found

    async def against_its_like(self, run: Run) -> dict[str, Any] | None:
        return await self.runtime.db(self._store.against_its_like, run)

    async def live(self) -> list[Run]:
        """What holds a place."""
        return await self.runtime.db(self._store.live)

    async def waiting(self) -> list[Run]:
        """What waits, in its order."""
        return [self._with_reason(run) for run in await self.runtime.db(self._store.waiting)]

    async def busy(self) -> dict[str, dict[int, int]]:
        """By node and GPU (or CPU slot), the run that holds it."""
        return await self.runtime.db(self._store.busy)

    def _with_reason(self, run: Run) -> Run:
        return replace(run, reason=self._reasons.get(run.id, run.reason)) if run.state is State.QUEUED else run

    # -- deciding ------------------------------------------------------------------------------------------------

    async def _schedule_when_woken(self) -> None:
        await self.runtime.wake.wait()
        self.runtime.wake.clear()
        runtime, store = self.runtime, self._store
        began = runtime.monotonic()
        await runtime.db(store.release_fenced, runtime.now())
        busy = await runtime.db(store.busy)
        waiting = [run for run in await runtime.db(store.waiting) if not await self._lost_its_secrets(run)]
        fenced = {run for gpus in busy.values() for run in gpus.values()}
        blocked = {r.id: "waits until the lease of its last attempt has run out" for r in waiting if r.id in fenced}
        free = self.roster.free(busy)
        unfit = self._unfit(waiting, free.topology)
        decided = plan(Snapshot(tuple(waiting), free, blocked, unfit=unfit), runtime.now())
        runtime.counts.cycle(runtime.monotonic() - began)
        self._reasons = {run.id: reason for run, reason in decided.waits}
        if decided.look_again_s is not None:
            runtime.wake_in(decided.look_again_s + 0.01)
        for run, placement in decided.starts:
            if not self._starts_runs:
                break
            fabric = fabric_of(self.roster.inventory.topology, placement)
            self.gangs.begin(await runtime.db(store.place, run.id, placement, runtime.now(), fabric))
        for run in waiting:
            runtime.tell(run.id)

    def _unfit(self, waiting: Sequence[Run], topology: Topology) -> dict[int, Mapping[str, str]]:
        """By run: the nodes that lack what it requires, or have not said yet."""
        found: dict[int, Mapping[str, str]] = {}
        for run in waiting:
            self.surveys.want(run.spec.python)
            fail, unknown = self.surveys.judge(run.spec, device_of(run.spec, topology))
            if fail or unknown:
                found[run.id] = fail | unknown
        return found

    async def _lost_its_secrets(self, run: Run) -> bool:
        if not run.spec.secrets or run.id in self.gangs.secrets:
            return False
        reason = (
            f"its secrets ({', '.join(run.spec.secrets)}) are kept in the controller's memory alone and went when it was "
            f"restarted; `orch retry {run.id}` from a shell that has them goes on"
        )
        await self.runtime.db(self._store.record, run.id, Event.FAILED, self.runtime.now(), reason=reason)
        self.runtime.tell(run.id)
        return True


def _values(spec: JobSpec, given: Mapping[str, str]) -> dict[str, str]:
    """The values of the secrets that the spec names. Raises Refused(2) where some were not sent."""
    if missing := sorted(set(spec.secrets) - given.keys()):
        raise Refused(2, f"secrets: {', '.join(missing)}: no value was sent")
    return {name: given[name] for name in spec.secrets}
