"""A run waits for those before it, and is cancelled with the reason when one of them fails."""

from pathlib import Path

import pytest
from told import reason, story, submit

from orchestrator.control.controller import Controller
from orchestrator.control.refused import Refused
from orchestrator.history.errors import NoSuchRun, NothingFollows
from orchestrator.scheduling.lifecycle import State
from orchestrator.testing.cluster import FakeCluster
from orchestrator.testing.controlling import job, reaches, until


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
