"""Row 33: a clock that is put forward or back changes no duration, ends no lease early and keeps no place longer."""

from __future__ import annotations

from datetime import timedelta

import pytest
from crash_world import LEASE_S, World
from rows import fault

from orchestrator.control.steady import SteadyClock
from orchestrator.testing import START, ManualClock
from orchestrator.testing.crashes import Fuse
from orchestrator.testing.simulated import SimulatedClock, simulate

BACK, FORWARD = -7200.0, 86400.0


@pytest.mark.parametrize("step", [BACK, FORWARD])
def test_a_steady_clock_goes_on_evenly_and_tells_of_the_step_once(step: float) -> None:
    wall, told, counted = ManualClock(), [], [0.0]
    clock = SteadyClock(wall, lambda: counted[0], told.append)
    seen = []
    for second in range(10):
        counted[0] += 1.0
        wall.advance(1.0 if second != 5 else 1.0 + step)
        seen.append(clock())
    assert seen == [START + timedelta(seconds=second + 1) for second in range(10)]
    assert told == [pytest.approx(step)]
    wall.advance(-step)
    clock()
    assert told[-1] == pytest.approx(0.0, abs=2.0)


def test_a_steady_clock_follows_what_ntp_corrects_bit_by_bit_and_never_goes_back() -> None:
    wall, counted = ManualClock(), [0.0]
    clock = SteadyClock(wall, lambda: counted[0])
    before = clock()
    for _ in range(1000):
        counted[0] += 1.0
        wall.advance(0.99)
        now = clock()
        assert now >= before
        before = now
    assert before - wall() < timedelta(seconds=2)


@fault(33)
@pytest.mark.representative
@pytest.mark.parametrize("step", [BACK, FORWARD])
def test_a_fence_holds_until_the_lease_is_over_though_the_clock_is_put(step: float, template, tmp_path) -> None:
    async def story() -> World:
        url = template(tmp_path)
        world = World(f"clock {step}", url, tmp_path)
        world.clock = SteadyClock(wall := SimulatedClock(world.loop), world.loop.time)  # type: ignore[assignment]
        await world.control(Fuse())
        for _ in range(3):
            await world.submit("2x1", time_limit="1h")
        await world.passes(5.0)
        node = next(agent.node for agent in world.agents() if agent.living())
        world.cut_off(node)
        await world.passes(LEASE_S / 2)
        wall.step(step)
        # A run starts elsewhere only when the ranks that are cut off are gone: `begins` looks at that.
        await world.passes(LEASE_S)
        # The next controller reads the clock as it is now, and what is on record by the one before.
        world.fuse.blow()
        world.clock = SteadyClock(wall, world.loop.time)  # type: ignore[assignment]
        await world.again()
        world.bring_back(node)
        await world.settle()
        for run in world.runs():
            for attempt in run.attempts:
                assert attempt.ended_at is not None
                assert attempt.ended_at >= attempt.started_at
        await world.close()
        return world

    assert simulate(story()).found == []
