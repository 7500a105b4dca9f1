"""The runs of an array are queued, limited, cancelled, retried, followed and ranked as one."""

from pathlib import Path

from told import an_array, reason, says, story, submit

from orchestrator.control.controller import Controller
from orchestrator.history.filters import RunFilter
from orchestrator.history.measurements import Measured
from orchestrator.progress.values import Progress
from orchestrator.scheduling.lifecycle import State
from orchestrator.testing.cluster import FakeCluster
from orchestrator.testing.controlling import job, reaches, until


def test_an_array_runs_as_many_of_its_runs_at_once_as_it_may(tmp_path: Path) -> None:
    async def tell(controller: Controller, cluster: FakeCluster) -> None:
        runs = await an_array(controller, 5, array_limit=2)

        def live() -> list[int]:
            return [run.id for run in controller.runtime.book.live() if run.state is State.RUNNING]

        await until(lambda: live() == list(runs[:2]))
        last = await controller.find(f"sweep[{4}]")
        assert (last.id, last.spec.argv) == (runs[4], ["train.py", "4"])
        await until(lambda: reason(controller, last))
        assert await reason(controller, last) == "2 of its array run, as many as may at once (array_limit)"
        cluster.agents["a"].end(runs[0], 1)
        await until(lambda: live() == list(runs[1:3]))
        await controller.change("sweep", {"array_limit": "3"})
        await until(lambda: live() == list(runs[1:4]))

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
        await until(lambda: says(controller, follows, "waits for 1 of the 3"))
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


def test_an_arrays_key_given_twice_is_the_array_of_then(tmp_path: Path) -> None:
    async def tell(controller: Controller, cluster: FakeCluster) -> None:
        controller.start_no_more()
        new = job(name="sweep", key="k", run="train.py {x}", array={"x": "0..4"})
        first, created = await controller.submit(new, {})
        again, created_again = await controller.submit(new, {})
        assert (first.id, created, created_again) == (again.id, True, False)
        assert len(await controller.runs(RunFilter())) == 5

    story(tell, tmp_path, a=1)
