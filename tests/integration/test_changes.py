"""What of a run can still be changed, from when it counts, and who is told to have done it."""

from pathlib import Path

import pytest
from told import story, submit

from orchestrator.control.controller import Controller
from orchestrator.control.refused import Refused
from orchestrator.scheduling.lifecycle import Event, State
from orchestrator.testing.cluster import FakeCluster
from orchestrator.testing.controlling import reaches


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
