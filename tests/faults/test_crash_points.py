"""Row 17: the controller is killed at each of its crash points, and the next one loses nothing and doubles nothing.

Each story is a workload of submissions, cancels, retries, ends, failures and lost nodes, in simulated time; a seed makes it again.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
from crash_world import SIZES, World
from measuring import Measured
from rows import fault

from orchestrator.testing.crashes import Crash, Fuse
from orchestrator.testing.simulated import simulate

pytestmark = pytest.mark.timeout(1800)  # a hundred stories are minutes of work, and the machine may have other

Template = Callable[[Path], str]
SEEDS = 100
FEW = 2
ON_POSTGRES = 5
FOUND = {"a commit that is not answered": (22, 23, 44), "after a commit": (100,), "after sync": (39,)}
"""Seeds that once were wrong: a trial got GPUs of a run whose start was recorded without an answer, or of a trial before it."""


@dataclass(frozen=True)
class Point:
    """Where a controller dies: at one of the first `most` crossings of these points, from the moment of `during` on."""

    most: int
    at: tuple[str, ...] = ()
    during: str | None = None
    answers_lost: float = 0.0
    """The share of the commits whose answers are lost all along."""

    def fuse(self, world: World) -> Fuse:
        nth = world.chance.randint(1, self.most)
        return Fuse(nth, lambda point: not self.at or point in self.at, armed=self.during is None)


POINTS = {
    **{f"{when} a commit": Point(30, (f"{when} commit",)) for when in ("before", "after")},
    **{
        f"{when} {call}": Point(5, (f"{when} {call}",))
        for when in ("before", "after")
        for call in ("start", "stop", "forget")
    },
    **{f"{when} {call}": Point(4, (f"{when} {call}",)) for when in ("before", "after") for call in ("hold", "release")},
    **{f"{when} sync": Point(60, (f"{when} sync",)) for when in ("before", "after")},
    "half the gang spawned": Point(2, ("half the gang",)),
    **{
        f"during {what}": Point(12, (), what)
        for what in ("cancel", "finish", "preemption", "an array's submission", "a retry")
    },
    "recovery": Point(40),
    "a commit that is not answered": Point(30, ("after commit",), answers_lost=0.1),
}


async def tell(point: Point, again: bool, seed: str, url: str, home: Path) -> World:
    world = World(seed, url, home)
    chance, world.answers_lost = world.chance, point.answers_lost
    await world.control(Fuse() if again else point.fuse(world))
    if again:
        world.fuse.blow()
        await world.again(point.fuse(world))

    async def during(what: str, work: Callable[[], object]) -> None:
        if point.during == what and chance.random() < 0.7:
            world.fuse.armed = True
        found = work()
        if asyncio.iscoroutine(found):
            await found

    acts = [
        lambda: during("", lambda: world.submit(chance.choice(SIZES))),
        lambda: during("", lambda: world.submit(chance.choice(SIZES))),
        lambda: during("", lambda: world.submit("1", time_limit="30s")),
        lambda: during("preemption", lambda: world.submit(chance.choice(SIZES), priority=50)),
        lambda: during(
            "an array's submission", lambda: world.submit("1", run="train.py --i {i}", array={"i": [1, 2, 3]})
        ),
        lambda: during("cancel", world.cancel_some),
        lambda: during("a retry", world.retry_some),
        lambda: during("", world.set_some),
        lambda: during("finish", world.some_run_ends),
        lambda: during("finish", world.some_rank_fails),
        lambda: during("", world.some_node_changes),
    ]
    try:
        for act in [*acts[:5], *(chance.choice(acts) for _ in range(14))]:
            await act()
            await asyncio.sleep(chance.choice((0.0, 0.02, 0.2, 3.0)))
            if world.fuse.dead:
                await world.again()
        if not world.crashes:
            world.fuse.blow()
            await world.again()
        await world.settle()
    except Crash:
        world.wrong("a controller was dead, and nobody had noticed")
    finally:
        await world.close()
    return world


def seeds() -> list[object]:
    few, rest = range(FEW), range(FEW, SEEDS)
    return [pytest.param(few, id="few", marks=pytest.mark.representative), pytest.param(rest, id="rest")]


@fault(17)
@pytest.mark.parametrize("numbers", seeds())
@pytest.mark.parametrize("name", POINTS)
def test_no_run_is_lost_or_doubled_and_nothing_is_orphaned(
    name: str, numbers: range, template: Template, tmp_path: Path, measured: Measured
) -> None:
    measured.note(f"{SEEDS} seeds at each of {len(POINTS)} points, in simulated time")
    stories(name, numbers, tmp_path, template)


@fault(17)
@pytest.mark.representative
@pytest.mark.parametrize("name", FOUND)
def test_stories_that_went_wrong_once_go_well(name: str, template: Template, tmp_path: Path) -> None:
    stories(name, FOUND[name], tmp_path, template)


@fault(17)
@pytest.mark.postgres
@pytest.mark.parametrize("name", POINTS)
def test_it_is_so_with_postgresql_too(
    name: str, new_postgres: Callable[[], str], tmp_path: Path, measured: Measured
) -> None:
    measured.note(f"{ON_POSTGRES} seeds at each with PostgreSQL")
    # Other seeds than those that SQLite has.
    stories(name, range(SEEDS, SEEDS + ON_POSTGRES), tmp_path, lambda home: new_postgres())


def stories(name: str, numbers: Iterable[int], folder: Path, new: Template) -> None:
    """Tells the story of each of these seeds in a new database, and fails with what was wrong in any of them."""
    wrong = {}
    for number in numbers:
        home = folder / str(number)
        home.mkdir()
        seed = f"{name} {number}"
        world = simulate(tell(POINTS[name], name == "recovery", seed, new(home), home))
        if world.found:
            wrong[seed] = [f"crashed {world.crashes}", *world.found]
        shutil.rmtree(home)
    assert not wrong, "\n".join(f"{seed}:\n  " + "\n  ".join(said) for seed, said in wrong.items())
