"""The checker of the rules that hold after every fault finds each of them broken where it is."""

from __future__ import annotations

import asyncio
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from invariants import Looked, Marked, check, one_writer
from sqlalchemy import text

from orchestrator.scheduling.lifecycle import State
from orchestrator.testing.cluster import FakeCluster
from orchestrator.testing.controlling import controlling, job, reaches, until


def answers(*argv: object, timeout: float) -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess([str(one) for one in argv], 0, "", "")


@pytest.fixture
def looked(tmp_path: Path) -> Looked:
    """A database with one run of two nodes that has succeeded a minute ago, and nothing wrong with it."""

    async def story() -> None:
        cluster = FakeCluster(a=1, b=1)
        async with controlling(tmp_path, cluster, now=lambda: datetime.now(UTC) - timedelta(minutes=1)) as controller:
            run, _ = await controller.submit(job("2x1"), {})
            await reaches(controller, run, State.RUNNING)
            for agent in cluster.agents.values():
                agent.end(run.id, 1)
            await reaches(controller, run, State.SUCCEEDED)

            async def counted() -> bool:
                return bool((await controller.find(str(run.id))).attempts[0].used)

            await until(counted)

    asyncio.run(story())
    return Looked(f"sqlite:///{tmp_path / 'orch.db'}", answers, marked=lambda: [], acknowledged=[1], idle=True)


def test_nothing_is_found_where_every_rule_holds(looked: Looked) -> None:
    check(looked)


def test_a_run_that_was_acknowledged_and_is_not_there(looked: Looked) -> None:
    with pytest.raises(AssertionError, match="run 2 was acknowledged and is not there"):
        check(replace(looked, acknowledged=[1, 2]))


@pytest.mark.parametrize(
    ("attempts", "said"),
    [
        ([1], r"attempt 1.1 ended .* ago and left process 100 on a"),
        ([1, 2], "run 1: attempts .1, 2. live at once"),
        ([2], "of attempt 1.2, of which nobody knows"),
    ],
)
def test_a_process_that_should_not_live(looked: Looked, attempts: list[int], said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check(replace(looked, marked=lambda: [Marked("a", 1, number, 100) for number in attempts]))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("UPDATE allocations SET released_at = NULL WHERE node = 'a'", "attempt 1.1 ended .* left a's GPU 0 held"),
        ("UPDATE allocations SET since = '2020-01-01 00:00:00.000000'", "ms of GPUs are counted, .* were held"),
        ("UPDATE runs SET state = 'failed'", "its events, replayed, do not lead to its state"),
        ("UPDATE runs SET state = 'queued'", "run 1 has not ended: queued"),
        (
            "UPDATE attempts SET outcome = 'infra_error', failure = NULL",
            "attempt 1.1 is of outcome infra_error and has no cause",
        ),
    ],
    ids=lambda text: text[:40],
)
def test_a_record_that_does_not_hold(looked: Looked, raw, damage: str, said: str) -> None:
    with raw(looked.database) as connection:
        connection.execute(text(damage))
    with pytest.raises(AssertionError, match=said):
        check(looked)


def test_a_command_that_prints_a_traceback_or_ends_as_no_document_says(looked: Looked) -> None:
    def breaks(*argv: object, timeout: float) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 99, "", "Traceback (most recent call last):")

    with pytest.raises(AssertionError, match=r"(?s)orch ps --all prints a traceback.*orch ps --all ended with 99"):
        check(replace(looked, orch=breaks))


def test_an_attempt_that_writes_after_the_next_one_has_begun_or_skips_a_step() -> None:
    one_writer({1: {0: [(1, 1.0), (2, 2.0)]}, 2: {0: [(2, 3.0)]}})
    with pytest.raises(AssertionError, match="after 2 had begun"):
        one_writer({1: {0: [(1, 1.0), (2, 4.0)]}, 2: {0: [(2, 3.0)]}})
    with pytest.raises(AssertionError, match="began with step 9 after step 2"):
        one_writer({1: {0: [(1, 1.0), (2, 2.0)]}, 2: {0: [(9, 3.0)]}})
