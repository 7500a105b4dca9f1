"""What waits, over a real database and a fake cluster: arrays, dependencies, time limits, changes, and giving way."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError

from orchestrator.control.controller import Controller
from orchestrator.control.refused import Refused
from orchestrator.history.errors import NoSuchRun, NothingFollows
from orchestrator.history.filters import RunFilter
from orchestrator.history.measurements import Measured
from orchestrator.placement.values import NodePlacement, Placement
from orchestrator.policy import Policy
from orchestrator.progress.values import Progress
from orchestrator.scheduling.lifecycle import Event, Outcome, State
from orchestrator.scheduling.run import Run, Stop
from orchestrator.testing.cluster import FakeCluster
from orchestrator.testing.controlling import controlling, job, reaches, until


async def is_true(condition: Callable[[], object]) -> object:
    return condition()


def story(
    tell: Callable[[Controller, FakeCluster], Awaitable[None]], home: Path, policy: Policy | None = None, **nodes: int
) -> None:
    async def told() -> None:
        cluster = FakeCluster(**nodes)
        async with controlling(home, cluster, policy=policy) as controller:
            await tell(controller, cluster)

    asyncio.run(told())


async def submit(controller: Controller, workers: str = "1", **more: object) -> Run:
    return (await controller.submit(job(workers, **more), {}))[0]


async def reason(controller: Controller, run: Run) -> str:
    return (await controller.find(str(run.id))).reason or ""


# --- time limits ---


def test_a_run_that_reaches_its_time_limit_gets_its_grace_and_has_failed_however_its_ranks_end(tmp_path: Path) -> None:
    async def tell(controller: Controller, cluster: FakeCluster) -> None:
        run = await submit(controller, time_limit=0.2, grace=7.0)
        await reaches(controller, run, State.RUNNING)
        part = cluster.agents["a"].parts[run.id, 1]
        cluster.agents["a"].obeys_stop = False
        await until(lambda: is_true(lambda: part.stopped_with == 7.0))
        assert (await controller.find(str(run.id))).state is State.STOPPING
        cluster.agents["a"].end(run.id, 1, 0)
        ended = await reaches(controller, run, State.FAILED)
        attempt = ended.attempts[0]
        assert attempt.failure is not None
        assert (attempt.outcome, attempt.failure.kind) == (Outcome.USER_ERROR, "time_limit")
        assert ended.reason == "reached its time limit of 0.2s"
        assert await controller.busy() == {}

    story(tell, tmp_path, a=1)


def test_the_time_that_ranks_take_to_start_does_not_count(tmp_path: Path) -> None:
    async def tell(controller: Controller, cluster: FakeCluster) -> None:
        cluster.agents["b"].slow_start = asyncio.Event()
        run = await submit(controller, "2x1", time_limit=0.05)
        await until(lambda: is_true(lambda: (run.id, 1) in cluster.agents["a"].parts))
        await asyncio.sleep(0.2)
        assert cluster.agents["a"].parts[run.id, 1].stopped_with is None
        cluster.agents["b"].slow_start.set()
        await reaches(controller, run, State.FAILED)

    story(tell, tmp_path, a=1, b=1)


def test_the_next_controller_goes_on_with_a_time_limit_and_with_what_it_ends(tmp_path: Path) -> None:
    async def told() -> None:
        cluster = FakeCluster(a=1, b=1)
        async with controlling(tmp_path, cluster) as controller:
            for agent in cluster.agents.values():
                agent.obeys_stop = False
            stopping = await submit(controller, time_limit=0.1)
            later = await submit(controller, time_limit=1.0)
            await reaches(controller, stopping, State.STOPPING)
            await until(lambda: is_true(lambda: any((later.id, 1) in agent.parts for agent in cluster.agents.values())))
        for agent in cluster.agents.values():
            agent.obeys_stop = True
        async with controlling(tmp_path, cluster) as controller:
            for run in (stopping, later):
                ended = await reaches(controller, run, State.FAILED)
                assert ended.attempts[0].failure is not None
                assert ended.attempts[0].failure.kind == "time_limit"

    asyncio.run(told())


# --- dependencies ---


def test_a_run_waits_for_those_before_it_and_says_for_which(tmp_path: Path) -> None:
    async def tell(controller: Controller, cluster: FakeCluster) -> None:
        first = await submit(controller, name="pretrain")
        second = await submit(controller, name="tune", after=["pretrain"])
        await reaches(controller, first, State.RUNNING)
        await until(lambda: reason(controller, second))
        assert await reason(controller, second) == f"waits for run {first.id} (pretrain)"
        assert [(need.first, need.last, need.word) for need in second.after] == [(first.id, first.id, "pretrain")]
        cluster.agents["a"].end(first.id, 1)
        await reaches(controller, second, State.RUNNING)

    story(tell, tmp_path, a=2)


def test_a_failure_is_handed_on_with_the_name_of_the_run_that_it_all_hangs_on(tmp_path: Path) -> None:
    async def tell(controller: Controller, cluster: FakeCluster) -> None:
        first = await submit(controller, name="pretrain")
        second = await submit(controller, name="tune", after=[first.id])
        third = await submit(controller, name="test", after=["tune"])
        await reaches(controller, first, State.RUNNING)
        cluster.agents["a"].end(first.id, 1, 3)
        second, third = [await reaches(controller, run, State.CANCELLED) for run in (second, third)]
        root = f"run {first.id} (pretrain), which it was to follow, failed: rank 0 on a ended with exit code 3"
        assert second.reason == root
        assert third.reason == f"it was to follow run {second.id} (tune), and {root}"
        with pytest.raises(Refused, match=rf"is to follow run {second.id} \(tune\): retry that first"):
            await controller.retry(str(third.id), {})
        with pytest.raises(NothingFollows, match="has failed"):
            await submit(controller, after=[first.id])

    story(tell, tmp_path, a=1)


def test_what_was_to_follow_a_run_can_be_tried_again_with_it(tmp_path: Path) -> None:
    async def tell(controller: Controller, cluster: FakeCluster) -> None:
        first = await submit(controller, name="pretrain")
        second = await submit(controller, after=[first.id])
        await reaches(controller, first, State.RUNNING)
        await controller.cancel(str(first.id))
        await reaches(controller, second, State.CANCELLED)
        await controller.retry(str(first.id), {})
        await controller.retry(str(second.id), {})
        await reaches(controller, first, State.RUNNING)
        assert (await controller.find(str(second.id))).state is State.QUEUED
        cluster.agents["a"].end(first.id, 2)
        await reaches(controller, second, State.RUNNING)

    story(tell, tmp_path, a=1)


def test_what_is_to_follow_a_run_that_does_not_exist_is_refused_and_another_users_name_is_none(tmp_path: Path) -> None:
    async def tell(controller: Controller, cluster: FakeCluster) -> None:
        theirs = job(name="pretrain")
        await controller.submit(type(theirs)(theirs.spec, "ben", None, "/w"), {})
        for after in ([99], ["nobody"], ["pretrain"], ["nobody[3]"]):
            with pytest.raises(NoSuchRun) as refused:
                await submit(controller, after=after)
            assert refused.value.exit_code == 3

    story(tell, tmp_path, a=1)


def test_a_plan_says_what_submitting_would_say_of_the_runs_before_it(tmp_path: Path) -> None:
    async def tell(controller: Controller, cluster: FakeCluster) -> None:
        with pytest.raises(NoSuchRun, match="after: there is no run '99'"):
            await controller.dry_run(job(after=[99]).spec, "ana")
        first = await submit(controller, name="pretrain")
        await reaches(controller, first, State.RUNNING)
        plan = await controller.dry_run(job(after=["pretrain"]).spec, first.user)
        assert (plan["fits_now"], plan["reason"]) == (False, f"waits for run {first.id} (pretrain)")
        cluster.agents["a"].end(first.id, 1)
        await reaches(controller, first, State.SUCCEEDED)
        assert (await controller.dry_run(job(after=["pretrain"]).spec, first.user))["fits_now"]
        await reaches(controller, broken := await submit(controller), State.RUNNING)
        cluster.agents["a"].end(broken.id, 1, 3)
        await reaches(controller, broken, State.FAILED)
        with pytest.raises(NothingFollows, match="has failed"):
            await controller.dry_run(job(after=[broken.id]).spec, "ana")

    story(tell, tmp_path, a=2)


# --- arrays ---


async def an_array(controller: Controller, runs: int, name: str = "sweep", **more: object) -> range:
    first = await submit(controller, name=name, run="train.py {x}", array={"x": f"0..{runs - 1}"}, **more)
    array = await controller.find_array(f"{first.id}[]")
    assert array is not None
    return array.runs


def test_an_array_runs_as_many_of_its_runs_at_once_as_it_may(tmp_path: Path) -> None:
    async def tell(controller: Controller, cluster: FakeCluster) -> None:
        runs = await an_array(controller, 5, array_limit=2)

        def live() -> list[int]:
            return [run.id for run in controller.runtime.book.live() if run.state is State.RUNNING]

        await until(lambda: is_true(lambda: live() == list(runs[:2])))
        last = await controller.find(f"sweep[{4}]")
        assert (last.id, last.spec.argv) == (runs[4], ["train.py", "4"])
        await until(lambda: reason(controller, last))
        assert await reason(controller, last) == "2 of its array run, as many as may at once (array_limit)"
        cluster.agents["a"].end(runs[0], 1)
        await until(lambda: is_true(lambda: live() == list(runs[1:3])))
        await controller.change("sweep", {"array_limit": "3"})
        await until(lambda: is_true(lambda: live() == list(runs[1:4])))

    story(tell, tmp_path, a=8)


def test_an_array_is_cancelled_and_tried_again_as_one(tmp_path: Path) -> None:
    async def tell(controller: Controller, cluster: FakeCluster) -> None:
        runs = await an_array(controller, 4)
        for run in runs[:2]:
            await reaches(controller, await controller.find(str(run)), State.RUNNING)
        cluster.agents["a"].end(runs[0], 1, 1)
        cluster.agents["a"].end(runs[1], 1, 0)
        for run in runs[2:]:
            await reaches(controller, await controller.find(str(run)), State.RUNNING)
        array = await controller.find_array("sweep")
        assert array is not None
        assert await controller.cancel_array(array, "ana") == 2
        for run in runs[2:]:
            await reaches(controller, await controller.find(str(run)), State.CANCELLED)
        assert await controller.cancel_array(array, "ana") == 0
        assert await controller.retry_array(array, {}) == 1
        await reaches(controller, await controller.find(str(runs[0])), State.RUNNING)
        assert await controller.past.counts(array) == {State.RUNNING: 1, State.SUCCEEDED: 1, State.CANCELLED: 2}
        cluster.agents["a"].end(runs[0], 2)
        await reaches(controller, await controller.find(str(runs[0])), State.SUCCEEDED)
        # By now all of it had ended, and it had been forgotten.
        assert await controller.retry_array(array, {}) == 2
        assert controller.runtime.book.arrays == {array.id: array}
        assert controller.runtime.book == await controller.runtime.db(controller.runtime.store.book)

    story(tell, tmp_path, a=2)


def test_what_follows_an_array_waits_for_all_of_it_and_no_longer_than_until_one_fails(tmp_path: Path) -> None:
    async def tell(controller: Controller, cluster: FakeCluster) -> None:
        runs = await an_array(controller, 3)
        follows = await submit(controller, name="pick", after=["sweep"])
        await until(lambda: reason(controller, follows))
        assert await reason(controller, follows) == "waits for 3 of the 3 runs of sweep"
        one_more = await submit(controller, name="pick", after=["sweep[2]"])
        for run in runs:
            await reaches(controller, await controller.find(str(run)), State.RUNNING)
        cluster.agents["a"].end(runs[2], 1)
        await reaches(controller, one_more, State.RUNNING)
        cluster.agents["a"].end(runs[0], 1)
        await until(lambda: _says(controller, follows, "waits for 1 of the 3"))
        cluster.agents["a"].end(runs[1], 1, 9)
        ended = await reaches(controller, follows, State.CANCELLED)
        assert (ended.reason or "").startswith(f"run {runs[1]} (sweep[1]), which it was to follow, failed")

    story(tell, tmp_path, a=4)


def test_the_best_runs_of_an_array_are_those_whose_metric_is_smallest_or_largest(tmp_path: Path) -> None:
    async def tell(controller: Controller, cluster: FakeCluster) -> None:
        runs = await an_array(controller, 4)
        array = await controller.find_array("sweep")
        assert array is not None
        for run, loss in zip(runs, (0.5, 0.1, float("nan")), strict=False):
            await reaches(controller, await controller.find(str(run)), State.RUNNING)
            measured = Measured(run, 1, Progress(metrics={"loss": loss}))
            await controller.runtime.write(controller.runtime.store.measure, [measured], controller.runtime.now())
        assert [run.id for run, _ in await controller.past.best(array, "loss", 3)] == [runs[1], runs[0]]
        ((best, metrics),) = await controller.past.best(array, "-loss", 1)
        assert (best.id, metrics) == (runs[0], {"loss": 0.5})
        assert await controller.past.best(array, "accuracy", 3) == []

    story(tell, tmp_path, a=4)


async def _says(controller: Controller, run: Run, words: str) -> bool:
    return words in await reason(controller, run)


def test_an_arrays_key_given_twice_is_the_array_of_then(tmp_path: Path) -> None:
    async def tell(controller: Controller, cluster: FakeCluster) -> None:
        controller.start_no_more()
        new = job(name="sweep", key="k", run="train.py {x}", array={"x": "0..4"})
        first, created = await controller.submit(new, {})
        again, created_again = await controller.submit(new, {})
        assert (first.id, created, created_again) == (again.id, True, False)
        assert len(await controller.runs(RunFilter())) == 5

    story(tell, tmp_path, a=1)


# --- changes ---


def test_a_waiting_runs_priority_decides_from_when_it_is_set_and_who_set_it_is_on_record(tmp_path: Path) -> None:
    async def tell(controller: Controller, cluster: FakeCluster) -> None:
        running = await submit(controller)
        await reaches(controller, running, State.RUNNING)
        first, second = await submit(controller), await submit(controller)
        await controller.change(str(second.id), {"priority": "5", "time_limit": "2h", "near": "node"}, by="ana")
        cluster.agents["a"].end(running.id, 1)
        await reaches(controller, second, State.RUNNING)
        changed = await controller.find(str(second.id))
        assert (changed.spec.priority, changed.spec.time_limit, str(changed.spec.near)) == (5, 7200.0, "node")
        event = next(one for one in changed.events if one.event is Event.CHANGED)
        assert (event.by, event.reason) == ("ana", "priority 0 → 5, time_limit none → 2h, near none → node")
        assert (await controller.find(str(first.id))).state is State.QUEUED

    story(tell, tmp_path, a=1)


def test_a_change_that_comes_too_late_or_cannot_be_is_refused_with_a_sentence(tmp_path: Path) -> None:
    async def tell(controller: Controller, cluster: FakeCluster) -> None:
        run = await submit(controller)
        await reaches(controller, run, State.RUNNING)
        waits = await submit(controller)
        for ref, key, value, code, words in [
            (run, "priority", "5", 7, "is running: priority can be changed only while a run waits"),
            (waits, "priority", "high", 2, "priority: must be a whole number, not 'high'"),
            (waits, "workers", "2", 2, "workers is fixed once a run is submitted"),
            (waits, "prio", "2", 2, "'prio' cannot be set. Did you mean 'priority'?"),
            (waits, "array_limit", "2", 2, "array_limit is an array's"),
            (waits, "time_limit", "2", 2, "time_limit: has no unit"),
        ]:
            with pytest.raises(Refused, match=words) as refused:
                await controller.change(str(ref.id), {key: value})
            assert refused.value.code == code
        cluster.agents["a"].end(run.id, 1)
        await reaches(controller, run, State.SUCCEEDED)
        with pytest.raises(Refused, match="nothing of it can be changed any more"):
            await controller.change(str(run.id), {"time_limit": "1h"})

    story(tell, tmp_path, a=1)


def test_a_running_runs_time_limit_can_be_moved_but_not_to_before_now(tmp_path: Path) -> None:
    async def tell(controller: Controller, cluster: FakeCluster) -> None:
        run = await submit(controller, time_limit=3600.0)
        await reaches(controller, run, State.RUNNING)
        await asyncio.sleep(0.02)
        with pytest.raises(Refused, match="has run for"):
            await controller.change(str(run.id), {"time_limit": "0.01s"})
        await controller.change(str(run.id), {"time_limit": "0.2s"})
        ended = await reaches(controller, run, State.FAILED)
        assert ended.reason == "reached its time limit of 0.2s"

    story(tell, tmp_path, a=1)


def test_a_time_limit_that_another_run_was_promised_a_place_by_is_not_made_longer(tmp_path: Path) -> None:
    async def tell(controller: Controller, cluster: FakeCluster) -> None:
        run = await submit(controller, time_limit=3600.0)
        await reaches(controller, run, State.RUNNING)
        waits = await submit(controller)

        async def promised() -> bool:
            return any(one.run.id == waits.id and one.start is not None for one in controller.queue.last.reservations)

        await until(promised)
        with pytest.raises(Refused, match=rf"run {waits.id} \(job\) is promised a place"):
            await controller.change(str(run.id), {"time_limit": "2h"})
        await controller.change(str(run.id), {"time_limit": "30m"})

    story(tell, tmp_path, a=1)


# --- giving way ---


def test_a_run_that_gives_way_goes_back_to_its_place_with_its_age_and_runs_again(tmp_path: Path) -> None:
    async def tell(controller: Controller, cluster: FakeCluster) -> None:
        run = await submit(controller, grace=3.0)
        running = await reaches(controller, run, State.RUNNING)
        agent = cluster.agents["a"]
        agent.obeys_stop = False
        await controller.gangs.stop(running, Stop("preempted", "gives way to run 9 (urgent)", 9))
        part = agent.parts[run.id, 1]
        await until(lambda: is_true(lambda: part.stopped_with == 3.0))
        stopping = await controller.find(str(run.id))
        assert (stopping.state, stopping.reason) == (State.STOPPING, "gives way to run 9 (urgent)")
        agent.end(run.id, 1, 0)
        again = await reaches(controller, run, State.RUNNING)
        first, second = again.attempts
        assert (first.outcome, first.failure, second.outcome) == (Outcome.PREEMPTED, None, None)
        assert again.queued_at == run.queued_at
        assert [one.event for one in again.events][3:5] == [Event.STOP_ASKED, Event.REQUEUED]

    story(tell, tmp_path, a=1)


def test_the_next_controller_goes_on_with_a_run_that_gives_way(tmp_path: Path) -> None:
    async def told() -> None:
        cluster = FakeCluster(a=1)
        async with controlling(tmp_path, cluster) as controller:
            run = await submit(controller)
            running = await reaches(controller, run, State.RUNNING)
            cluster.agents["a"].obeys_stop = False
            await controller.gangs.stop(running, Stop("preempted", "gives way"))
            await reaches(controller, run, State.STOPPING)
        cluster.agents["a"].end(run.id, 1, 0)
        async with controlling(tmp_path, cluster) as controller:
            again = await reaches(controller, run, State.RUNNING)
            assert [one.outcome for one in again.attempts] == [Outcome.PREEMPTED, None]

    asyncio.run(told())


def test_a_cancel_of_a_run_that_gives_way_stands(tmp_path: Path) -> None:
    async def tell(controller: Controller, cluster: FakeCluster) -> None:
        run = await submit(controller)
        running = await reaches(controller, run, State.RUNNING)
        cluster.agents["a"].obeys_stop = False
        await controller.gangs.stop(running, Stop("preempted", "gives way"))
        await controller.cancel(str(run.id))
        cluster.agents["a"].end(run.id, 1, 0)
        ended = await reaches(controller, run, State.CANCELLED)
        assert ended.attempts[0].outcome is Outcome.CANCELLED

    story(tell, tmp_path, a=1)


def test_a_run_of_higher_priority_takes_the_place_of_one_of_lower_which_comes_back_after_it(tmp_path: Path) -> None:
    async def tell(controller: Controller, cluster: FakeCluster) -> None:
        low = await submit(controller, "2", name="low")
        other = await submit(controller, "2", name="other", priority=20)
        for run in (low, other):
            await reaches(controller, run, State.RUNNING)
        high = await submit(controller, "2", name="high", priority=10)
        await reaches(controller, high, State.RUNNING)
        gave_way = await controller.find(str(low.id))
        (attempt,) = gave_way.attempts
        assert (gave_way.state, attempt.outcome, gave_way.queued_at) == (State.QUEUED, Outcome.PREEMPTED, low.queued_at)
        assert attempt.stop is not None
        assert (attempt.stop.kind, attempt.stop.for_run) == ("preempted", high.id)
        assert (await controller.find(str(other.id))).state is State.RUNNING
        node = next(name for name, agent in cluster.agents.items() if (high.id, 1) in agent.parts)
        cluster.agents[node].end(high.id, 1)
        back = await reaches(controller, low, State.RUNNING)
        assert [one.outcome for one in back.attempts] == [Outcome.PREEMPTED, None]

    story(tell, tmp_path, Policy(min_runtime=0.0), a=2, b=2)


def test_what_attempts_used_is_entered_as_they_end_and_read_again_by_the_next_controller(tmp_path: Path) -> None:
    async def told() -> None:
        cluster = FakeCluster(a=4)
        async with controlling(tmp_path, cluster) as controller:
            for team in ("vision", None):
                run = await submit(controller, "2", team=team)
                await reaches(controller, run, State.RUNNING)
                await asyncio.sleep(0.05)
                cluster.agents["a"].end(run.id, 1)
                await reaches(controller, run, State.SUCCEEDED)
            used = controller.queue.snapshot().usage.used
            assert set(used) == {("vision", "ana"), ("-", "ana")}
            assert all(0.1 <= seconds < 5 for seconds in used.values())
            took = controller.queue.snapshot().history["ana", "job"]
        async with controlling(tmp_path, cluster) as controller:
            again = controller.queue.snapshot()
            assert again.usage.used == pytest.approx(used, rel=1e-3)
            assert again.history["ana", "job"] == pytest.approx(took)

    asyncio.run(told())


# --- what is in memory, and on disk ---


def test_a_submission_is_answered_after_its_commit_and_not_before(tmp_path: Path) -> None:
    async def tell(controller: Controller, cluster: FakeCluster) -> None:
        with sqlite3.connect(tmp_path / "orch.db", isolation_level=None) as somebody:
            somebody.execute("BEGIN IMMEDIATE")
            tasks = [asyncio.create_task(submit(controller)) for _ in range(20)]
            await asyncio.wait(tasks, timeout=0.2)
            assert not any(task.done() for task in tasks)
            assert controller.runtime.book.runs == {}
            somebody.execute("COMMIT")
            runs = await asyncio.gather(*tasks)
            there = {row[0] for row in somebody.execute("SELECT id FROM runs")}
        assert {run.id for run in runs} == there == set(range(1, 21))

    story(tell, tmp_path, a=1)


def test_a_write_that_the_database_refuses_leaves_those_that_share_its_transaction(tmp_path: Path) -> None:
    async def tell(controller: Controller, cluster: FakeCluster) -> None:
        controller.start_no_more()
        runs = [await submit(controller) for _ in range(3)]
        runtime = controller.runtime
        twice = Placement("cuda", "node", (NodePlacement("a", (0, 0), (0, 1)),))
        answers = await asyncio.gather(
            controller.cancel(str(runs[0].id)),
            runtime.write(runtime.store.place, runs[1].id, twice, runtime.now()),
            controller.cancel(str(runs[2].id)),
            return_exceptions=True,
        )
        assert isinstance(answers[1], IntegrityError)
        states = [(await controller.find(str(run.id))).state for run in runs]
        assert states == [State.CANCELLED, State.QUEUED, State.CANCELLED]

    story(tell, tmp_path, a=1)


def test_what_the_controller_keeps_in_memory_is_what_is_in_the_database(tmp_path: Path) -> None:
    async def tell(controller: Controller, cluster: FakeCluster) -> None:
        runs = await an_array(controller, 6, array_limit=3)
        await submit(controller, after=["sweep"])
        for run in runs[:3]:
            await reaches(controller, await controller.find(str(run)), State.RUNNING)
        cluster.agents["a"].end(runs[0], 1)
        cluster.agents["a"].end(runs[1], 1, 1)
        await controller.change(f"sweep[{5}]", {"priority": "3"})
        await controller.cancel(f"sweep[{4}]")
        await reaches(controller, await controller.find(str(runs[5])), State.RUNNING)

        async def same() -> bool:
            return controller.runtime.book == await controller.runtime.db(controller.runtime.store.book)

        await until(same)
        await controller.retry(str(runs[1]), {})
        await until(same)

    story(tell, tmp_path, a=3)


def test_why_a_run_waited_is_known_when_it_runs_and_when_it_has_ended(tmp_path: Path) -> None:
    async def tell(controller: Controller, cluster: FakeCluster) -> None:
        first = await submit(controller)
        await reaches(controller, first, State.RUNNING)
        second = await submit(controller)
        await until(lambda: reason(controller, second))
        waits = (await controller.why(str(second.id)))["waits"]
        assert (waits["position"], [one["kind"] for one in waits["reasons"]][:1]) == (1, ["shape"])
        cluster.agents["a"].end(first.id, 1)
        await reaches(controller, second, State.RUNNING)
        cluster.agents["a"].end(second.id, 1, 2)
        await reaches(controller, second, State.FAILED)
        said = await controller.why(str(second.id))
        (waited,) = said["waited"]
        assert (waited["attempt"], [one["kind"] for one in waited["reasons"]]) == (1, ["shape"])
        assert said["ended"]["failure"]["kind"] == "exit"
        assert (await controller.why(str(first.id)))["waited"] == []

    story(tell, tmp_path, a=1)
