"""The controller over a real database and a fake cluster."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.control import follow as following
from orchestrator.control.backend import Agent, AgentGone, NodeFacts, RankStart, StartPart
from orchestrator.control.controller import Controller
from orchestrator.control.rank_progress import RankProgress
from orchestrator.control.refused import Refused
from orchestrator.control.runtime import Settings
from orchestrator.control.shared_folder import FolderLook, Tokens
from orchestrator.history.filters import RunFilter
from orchestrator.placement.values import NodePlacement, Placement
from orchestrator.scheduling.lifecycle import Event, Outcome, State
from orchestrator.scheduling.run import Run
from orchestrator.testing.cluster import FakeAgent, FakeCluster
from orchestrator.testing.controlling import controlling, job, reaches, started, until


def test_a_run_goes_from_submission_to_success(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=2, b=2)
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job("2x2"), {})
            run = await reaches(controller, run, State.RUNNING)
            assert cluster.holds == {"a", "b"}
            cluster.agents["a"].end(run.id, 1)
            cluster.agents["b"].end(run.id, 1)
            run = await reaches(controller, run, State.SUCCEEDED)
            assert [e.event for e in run.events] == [Event.SUBMITTED, Event.PLACED, Event.STARTED, Event.SUCCEEDED]
            assert run.attempts[0].exit_codes == {0: 0, 1: 0, 2: 0, 3: 0}
            assert await controller.busy() == {}
            await until(lambda: _is(lambda: not cluster.holds))
            await until(lambda: _is(lambda: not cluster.agents["a"].parts))

    asyncio.run(story())


async def _is(condition: Callable[[], bool]) -> bool:
    return condition()


def test_what_ranks_show_is_recorded_with_the_end_and_a_broken_look_ends_nothing(tmp_path: Path) -> None:
    second = 10**9

    def look(run: int, rank: int, at: int, steps: int) -> RankProgress:
        return RankProgress(
            run,
            1,
            rank,
            at * second,
            1,
            steps,
            at * second,
            second,
            steps * 8,
            step_times={262: steps - 1} if steps else {},
        )

    async def counted(controller: Controller, run: Run) -> bool:
        (attempt,) = (await controller.find(str(run.id))).attempts
        return bool(attempt.used) and all(node.until == attempt.ended_at for node in attempt.used)

    async def story() -> None:
        cluster = FakeCluster(a=2, b=2)
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job("2x2"), {})
            await reaches(controller, run, State.RUNNING)
            gang = controller.gangs.measuring.of(run.id, 1)
            assert gang is not None
            for steps in (1, 101):
                cluster.agents["a"].show(*(look(run.id, rank, 1 + steps // 10, steps) for rank in (0, 1)))
                cluster.agents["b"].show(*(look(run.id, rank, 1 + steps // 10, steps) for rank in (2, 3)))
                await until(lambda steps=steps: _is(lambda: [x.steps for x in gang.looks.values()] == [steps] * 4))
            # Of a run that nobody knows.
            cluster.agents["b"].show(look(77, 0, 1, 1))
            for agent in cluster.agents.values():
                agent.end(run.id, 1)
            run = await reaches(controller, run, State.SUCCEEDED)
            (attempt,) = run.attempts
            assert attempt.progress is not None
            assert (attempt.progress.steps, attempt.progress.samples) == (101, 4 * 808)
            await until(lambda: counted(controller, run))
            (attempt,) = (await controller.find(str(run.id))).attempts
            assert {node.node: node.gpus for node in attempt.used} == {"a": 2, "b": 2}
            assert controller.gangs.measuring.of(run.id, 1) is None
            other, _ = await controller.submit(job("1"), {})
            await reaches(controller, other, State.RUNNING)
            agent = next(agent for agent in cluster.agents.values() if (other.id, 1) in agent.parts)
            broken = replace(look(other.id, 0, 9, 9), step_times={"no": "bucket"})  # type: ignore[dict-item]
            agent.show(look(other.id, 0, 1, 1), broken)
            await until(lambda: _is(lambda: not agent.looks))
            agent.end(other.id, 1)
            await reaches(controller, other, State.SUCCEEDED)

    asyncio.run(story())


@pytest.mark.parametrize("stream", ["logs", "follow"])
def test_a_follower_of_a_quiet_run_hears_that_it_is_still_connected(
    tmp_path: Path, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its agents report all the time, and nothing of that is for the follower."""
    monkeypatch.setattr(following, "HEARTBEAT_S", 0.4)

    async def story() -> None:
        async with controlling(tmp_path, FakeCluster(a=1)) as controller:
            run, _ = await controller.submit(job("1"), {})
            run = await reaches(controller, run, State.RUNNING)
            positions = following.Positions()
            if stream == "logs":
                asked = {"rank": None, "attempt": None, "since_s": None, "positions": positions, "keep_on": True}
                heard = following.log_lines(controller, run, **asked)
            else:
                heard = following.follow(controller, run.id, positions)
            async with asyncio.timeout(5):
                async for one in heard:
                    if one is None:
                        break
            await heard.aclose()

    asyncio.run(story())


def test_ranks_get_coordinates_that_agree_over_the_gang(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=2, b=2)
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job("2x2", checkpoint="ckpt"), {})
            await reaches(controller, run, State.RUNNING)
            a, b = (cluster.agents[n].parts[run.id, 1].order for n in "ab")
            assert [(r.rank, r.local_rank, r.gpu) for r in a.ranks + b.ranks] == [
                (0, 0, 0),
                (1, 1, 1),
                (2, 0, 0),
                (3, 1, 1),
            ]
            assert (a.world_size, a.node_rank, b.node_rank) == (4, 0, 1)
            assert (a.master_addr, a.master_port) == (b.master_addr, b.master_port)
            assert a.env["ORCH_CHECKPOINT_DIR"] == f"{tmp_path}/storage/checkpoints/{run.id}/ckpt"

    asyncio.run(story())


def test_a_failing_rank_stops_the_others_and_is_named(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1)
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job("2x1", grace=7.0), {})
            await reaches(controller, run, State.RUNNING)
            order = cluster.agents["a"].parts[run.id, 1]
            cluster.agents["b"].end(run.id, 1, 3)
            run = await reaches(controller, run, State.FAILED)
            assert order.stopped_with == 7.0
            attempt = run.attempts[0]
            assert attempt.outcome is Outcome.USER_ERROR
            assert attempt.failure is not None
            assert (attempt.failure.rank, attempt.failure.node) == (1, "b")
            assert run.reason == "rank 1 on b ended with exit code 3"

    asyncio.run(story())


def test_runs_wait_in_order_and_say_why(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=2)
        async with controlling(tmp_path, cluster) as controller:
            first, _ = await controller.submit(job("2"), {})
            await reaches(controller, first, State.RUNNING)
            second, _ = await controller.submit(job("2"), {})
            third, _ = await controller.submit(job("1"), {})
            urgent, _ = await controller.submit(job("1", priority=5), {})

            async def reason(run: Run) -> str | None:
                return (await controller.find(str(run.id))).reason

            async def in_order() -> bool:
                return [run.id for run in await controller.waiting()] == [urgent.id, second.id, third.id]

            await until(in_order)
            for run in (urgent, second, third):
                await until(lambda run=run: reason(run))
            assert await reason(urgent) == "the cluster has room for 0 of 1 workers"
            cluster.agents["a"].end(first.id, 1)
            await reaches(controller, urgent, State.RUNNING)
            assert (await controller.find(str(second.id))).state is State.QUEUED

    asyncio.run(story())


def test_a_run_that_never_fits_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    async def story() -> None:
        async with controlling(tmp_path, FakeCluster(a=2)) as controller:
            with pytest.raises(Refused, match="has room for 2 of 3 workers") as refusal:
                await controller.submit(job("3"), {})
            assert refusal.value.code == 5
            assert await controller.runs(RunFilter()) == []

    asyncio.run(story())


def test_a_waiting_run_is_cancelled_at_once_and_a_running_one_is_stopped_with_its_grace(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1)
        async with controlling(tmp_path, cluster) as controller:
            running, _ = await controller.submit(job(grace=3.0), {})
            waiting, _ = await controller.submit(job(), {})
            await reaches(controller, running, State.RUNNING)
            cluster.agents["a"].obeys_stop = False
            assert (await controller.cancel(str(waiting.id)))[0].state is State.CANCELLED
            assert (await controller.cancel(str(running.id)))[0].state is State.STOPPING
            part = cluster.agents["a"].parts[running.id, 1]
            await until(lambda: _is(lambda: part.stopped_with == 3.0))
            assert (await controller.cancel(str(running.id)))[0].state is State.STOPPING
            cluster.agents["a"].end(running.id, 1, -9)
            run = await reaches(controller, running, State.CANCELLED)
            assert run.attempts[0].outcome is Outcome.CANCELLED
            again, had_ended = await controller.cancel(str(running.id))
            assert (again.state, again.events, had_ended) == (run.state, run.events, True)

    asyncio.run(story())


def test_a_lost_node_fails_the_run_with_its_name_and_keeps_its_gpus_until_the_lease_is_over(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1)
        async with controlling(tmp_path, cluster, lease_s=1.0) as controller:
            run, _ = await controller.submit(job("2x1", retry={"infra": 0}), {})
            await reaches(controller, run, State.RUNNING)
            cluster.lose("b")
            run = await reaches(controller, run, State.FAILED)
            assert run.attempts[0].failure is not None
            assert (run.attempts[0].failure.kind, run.attempts[0].failure.node) == ("node_lost", "b")
            assert await controller.busy() == {"b": {0: run.id}}
            cluster.add("b", 1)
            again = await controller.retry(str(run.id), {})
            await until(lambda: _says(controller, again, "lease"))
            await reaches(controller, again, State.RUNNING)

    asyncio.run(story())


def test_a_node_that_the_cluster_says_is_dead_is_not_waited_for(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1)
        settings = Settings(
            tmp_path, tmp_path / "storage", preflight="off", sync_wait_s=0.05, watch_s=0.02, lost_after_s=600
        )
        async with started(cluster, settings) as controller:
            run, _ = await controller.submit(job("2x1"), {})
            await reaches(controller, run, State.RUNNING)
            dead = cluster.facts["b"].id
            cluster.lose("b")
            cluster.dead.add(dead)
            await until(lambda: _has_ended(controller, run))

    asyncio.run(story())


async def _has_ended(controller: Controller, run: Run) -> bool:
    return (await controller.find(str(run.id))).attempts[0].ended_at is not None


def test_a_node_that_is_listed_but_answers_no_more_is_given_up_when_its_lease_has_run_out(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1, c=1)
        async with controlling(tmp_path, cluster, lease_s=3.0) as controller:
            run, _ = await controller.submit(job("2x1"), {})
            run = await reaches(controller, run, State.RUNNING)
            assert run.attempt is not None
            silent = run.attempt.placement.nodes[1].node
            # It is asked again and again, which must not move the bound of its lease.
            cluster.agents[silent].gone = True
            await until(lambda: _has_ended(controller, run))
            failure = (await controller.find(str(run.id))).attempts[0].failure
            assert failure is not None
            assert (failure.kind, failure.node) == ("node_lost", silent)
            assert "has not answered" in failure.message
            cluster.agents[silent].gone = False
            run = await reaches(controller, run, State.RUNNING)
            again, _ = await controller.submit(job("1"), {})
            await reaches(controller, again, State.RUNNING)

    asyncio.run(story())


async def _says(controller: Controller, run: Run, word: str) -> bool:
    return word in ((await controller.find(str(run.id))).reason or "")


def test_a_part_that_cannot_start_ends_the_gang_and_names_the_node(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1)
        cluster.agents["b"].refuses = "no interpreter at /venv/bin/python"
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job("2x1", retry={"infra": 0}), {})
            run = await reaches(controller, run, State.FAILED)
            assert run.reason == "b: no interpreter at /venv/bin/python"
            assert run.attempts[0].outcome is Outcome.INFRA_ERROR
            assert await controller.busy() == {}

    asyncio.run(story())


def test_a_node_that_other_work_holds_sends_the_run_back_to_wait(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1)
        cluster.foreign.add("a")
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job(), {})

            async def went_back() -> bool:
                return any(e.event is Event.REQUEUED for e in (await controller.find(str(run.id))).events)

            await until(went_back)
            cluster.foreign.clear()
            await reaches(controller, run, State.RUNNING)

    asyncio.run(story())


def test_the_next_controller_takes_up_running_ranks_without_touching_them(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1)
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job(), {})
            await reaches(controller, run, State.RUNNING)
        async with controlling(tmp_path, cluster) as controller:
            part = cluster.agents["a"].parts[run.id, 1]
            await until(lambda: _is(lambda: cluster.agents["a"].epoch == 2))
            assert part.stopped_with is None
            cluster.agents["a"].end(run.id, 1)
            run = await reaches(controller, run, State.SUCCEEDED)
            assert len(run.attempts) == 1

    asyncio.run(story())


def test_ranks_that_ended_while_no_controller_ran_are_accounted_for(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1)
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job(), {})
            await reaches(controller, run, State.RUNNING)
        cluster.agents["a"].end(run.id, 1, 4)
        async with controlling(tmp_path, cluster) as controller:
            run = await reaches(controller, run, State.FAILED)
            assert run.attempts[0].exit_codes == {0: 4}

    asyncio.run(story())


def test_an_agent_with_no_trace_of_a_running_part_ends_the_attempt(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1)
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job(retry={"infra": 0}), {})
            await reaches(controller, run, State.RUNNING)
        cluster.agents["a"].parts.clear()
        async with controlling(tmp_path, cluster) as controller:
            run = await reaches(controller, run, State.FAILED)
            assert run.attempts[0].failure is not None
            assert run.attempts[0].failure.kind == "ranks_gone"

    asyncio.run(story())


def test_the_older_of_two_controllers_is_told_to_end(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1)
        ended: list[bool] = []
        async with controlling(tmp_path, cluster) as old:
            old.runtime.superseded = lambda: ended.append(True)
            async with controlling(tmp_path, cluster):
                await until(lambda: _is(lambda: bool(ended)))

    asyncio.run(story())


def test_secrets_reach_the_ranks_and_no_row_of_the_database(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1)
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job(secrets=("WANDB_API_KEY",)), {"WANDB_API_KEY": "canary-7f3a"})
            await reaches(controller, run, State.RUNNING)
            assert cluster.agents["a"].parts[run.id, 1].order.secrets == {"WANDB_API_KEY": "canary-7f3a"}
        for file in tmp_path.rglob("orch.db*"):
            assert b"canary-7f3a" not in file.read_bytes()

    asyncio.run(story())


def test_a_waiting_run_whose_secrets_went_with_the_controller_fails_and_says_what_to_do(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1)
        async with controlling(tmp_path, cluster) as controller:
            first, _ = await controller.submit(job(), {})
            await reaches(controller, first, State.RUNNING)
            run, _ = await controller.submit(job(secrets=("KEY",)), {"KEY": "x"})
        async with controlling(tmp_path, cluster) as controller:
            run = await reaches(controller, run, State.FAILED)
            assert f"orch retry {run.id}" in (run.reason or "")

    asyncio.run(story())


def test_a_cancel_between_an_attempts_record_and_its_beginning_stands(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1)
        async with controlling(tmp_path, cluster) as controller:
            controller.start_no_more()  # so that the test does what the scheduler would
            run, _ = await controller.submit(job(), {})
            placement = Placement("cuda", "node", (NodePlacement("a", (0,), (0,)),))
            placed = await controller.runtime.db(
                controller.runtime.store.place, run.id, placement, controller.runtime.now()
            )
            assert (await controller.cancel(str(run.id)))[0].state is State.STOPPING
            controller.gangs.begin(placed)
            await reaches(controller, run, State.CANCELLED)
            assert cluster.agents["a"].parts == {}
            assert await controller.busy() == {}

    asyncio.run(story())


def test_a_node_that_is_not_fit_is_swapped_before_the_start_and_no_attempt_is_charged(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=2, b=2)
        cluster.agents["a"].obstacles = ["70000 MiB of GPU 0 are held by process 7"]
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job("2"), {})
            run = await reaches(controller, run, State.RUNNING)
            (attempt,) = run.attempts
            assert [part.node for part in attempt.placement.nodes] == ["b"]
            events = [(event.event, event.state) for event in run.events]
            assert events[:3] == [
                (Event.SUBMITTED, State.QUEUED),
                (Event.NOTED, State.QUEUED),
                (Event.PLACED, State.STARTING),
            ]
            assert run.events[1].reason == "placed again without a: 70000 MiB of GPU 0 are held by process 7"
            assert run.queued_at == run.submitted_at
            assert cluster.agents["a"].parts == {}

    asyncio.run(story())


def test_a_run_whose_only_node_is_not_fit_waits_and_says_why_and_holds_nobody_back(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=2)
        cluster.agents["a"].obstacles = ["no memory"]
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job("1"), {})
            await until(lambda: _says(controller, run, "no memory on a"))
            cluster.agents["a"].obstacles = []
            other, _ = await controller.submit(job("1"), {})
            await reaches(controller, other, State.RUNNING)
            assert (await controller.find(str(run.id))).attempts == ()

    asyncio.run(story())


def test_an_agent_that_does_not_answer_is_left_to_the_start(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1)
        cluster.agents["b"].refuses = "no interpreter"
        async with controlling(tmp_path, cluster) as controller:
            cluster.agents["b"].mute = True
            run, _ = await controller.submit(job("2x1", retry={"infra": 0}), {})
            run = await reaches(controller, run, State.FAILED)
            assert run.reason == "b: no interpreter"

    asyncio.run(story())


async def _tried(cluster: FakeCluster, node: str) -> tuple[int, int]:
    """The trial on that node, once it runs."""
    parts = cluster.agents[node].parts
    await until(lambda: _is(lambda: any(attempt < 0 for _, attempt in parts)))
    return next(key for key in parts if key[1] < 0)


def test_while_links_are_tried_the_gpus_are_nobody_elses_and_the_run_says_so(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=2, b=2)
        async with controlling(tmp_path, cluster, preflight="on") as controller:
            run, _ = await controller.submit(job("2x2"), {})
            trial = await _tried(cluster, "b")
            other, _ = await controller.submit(job("1"), {})
            await until(lambda: _is(lambda: controller.queue.waits.reason(other.id) is not None))
            await until(lambda: _says(controller, run, "1 pair of its nodes was never measured"))
            assert await controller.busy() == {"a": {0: run.id, 1: run.id}, "b": {0: run.id, 1: run.id}}
            assert (await controller.find(str(run.id))).attempts == ()
            assert cluster.holds == {"a", "b"}
            order = cluster.agents["b"].parts[trial].order
            assert (order.node_rank, order.world_size, [rank.rank for rank in order.ranks]) == (1, 4, [2, 3])
            for agent in cluster.agents.values():
                agent.end(*trial, 1)
            # Wherever they are, they end before they meet: the run is to say so itself.
            run = await reaches(controller, run, State.RUNNING)
            assert [attempt.number for attempt in run.attempts] == [1]

    asyncio.run(story())


def test_a_run_that_is_cancelled_while_its_links_are_tried_gives_its_gpus_back(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1)
        async with controlling(tmp_path, cluster, preflight="on") as controller:
            run, _ = await controller.submit(job("2x1"), {})
            await _tried(cluster, "a")
            await controller.cancel(str(run.id))
            await until(lambda: _is(lambda: not cluster.agents["a"].parts and not cluster.agents["b"].parts))
            await until(lambda: _is(lambda: not controller.trials.waits() and not cluster.holds))
            assert (await controller.find(str(run.id))).attempts == ()

    asyncio.run(story())


def test_a_controller_that_follows_ends_the_trial_and_tries_anew(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1)
        async with controlling(tmp_path, cluster, preflight="on") as controller:
            await controller.submit(job("2x1"), {})
            first = await _tried(cluster, "a")
        async with controlling(tmp_path, cluster, preflight="on"):
            parts = cluster.agents["a"].parts
            await until(lambda: _is(lambda: first not in parts and len(parts) == 1))
            assert next(iter(parts))[1] < 0

    asyncio.run(story())


@pytest.mark.parametrize(
    ("workers", "more"), [("2", {}), ("2x1", {"backend": "gloo"}), ("2x1", {"tags": {"orch": "bench"}})]
)
def test_gangs_of_one_node_of_gloo_and_of_orch_bench_are_not_tried(
    tmp_path: Path, workers: str, more: dict[str, Any]
) -> None:
    async def story() -> None:
        async with controlling(tmp_path, FakeCluster(a=2, b=2), preflight="on") as controller:
            run, _ = await controller.submit(job(workers, **more), {})
            run = await reaches(controller, run, State.RUNNING)
            assert [event.event for event in run.events] == [Event.SUBMITTED, Event.PLACED, Event.STARTED]

    asyncio.run(story())


# --- what the story of a crash at every point (tests/faults) has shown, one by one ---


def test_a_node_that_was_still_starting_when_its_gang_was_told_to_stop_is_told_once_it_has_started(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1)
        slow = cluster.agents["b"].slow_start = asyncio.Event()
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job("2x1"), {})
            a, b = cluster.agents["a"].parts, cluster.agents["b"].parts
            await until(lambda: _is(lambda: (run.id, 1) in a))
            await controller.cancel(str(run.id))
            await until(lambda: _is(lambda: a[run.id, 1].stopped_with is not None))
            slow.set()
            await reaches(controller, run, State.CANCELLED)
            await until(lambda: _is(lambda: not b))

    asyncio.run(story())


def test_a_gang_that_was_whole_when_the_controller_died_goes_on_though_its_start_was_not_recorded(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1)
        slow = cluster.agents["a"].slow_start = asyncio.Event()
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job(), {})
            await reaches(controller, run, State.STARTING)
            await until(lambda: _is(lambda: bool(cluster.holds)))
            controller.start_no_more()
        slow.set()
        # The order had been carried out when the next one came.
        order = StartPart(
            run.id, 1, ("train.py",), None, None, {}, {}, "cuda", (RankStart(0, 0, 0),), 1, 0, "10.0.0.1", 0, 30.0, 1
        )
        await cluster.agents["a"].start(1, order)
        async with controlling(tmp_path, cluster) as controller:
            run = await reaches(controller, run, State.RUNNING)
            assert [one.number for one in run.attempts] == [1]

    asyncio.run(story())


def test_a_node_that_nothing_runs_on_is_given_back_by_the_next_controller_and_when_it_is_lost(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1)
        cluster.holds = {"a", "b"}  # by a controller that died between the end of a run and giving its node back
        async with controlling(tmp_path, cluster) as controller:
            await until(lambda: _is(lambda: not cluster.holds))
            run, _ = await controller.submit(job("2x1"), {})
            await reaches(controller, run, State.RUNNING)
            cluster.lose("b")
            await until(lambda: _is(lambda: "b" not in cluster.holds))

    asyncio.run(story())


def test_the_lease_of_a_node_that_this_controller_never_reached_counts_from_its_own_beginning(tmp_path: Path) -> None:
    class Unreached(FakeCluster):
        async def agent(self, node: NodeFacts) -> Agent:
            raise AgentGone("it does not answer")

    async def story() -> None:
        cluster = Unreached(a=1)
        async with controlling(tmp_path, cluster, lease_s=30.0) as controller:
            await until(lambda: _is(lambda: "a" in controller.roster.nodes))
            left = (controller.roster.lease_end("a") - controller.runtime.now()).total_seconds()
            assert left > 20  # the controller before it may have renewed the lease until now

    asyncio.run(story())


def test_a_submission_that_was_acknowledged_is_so_again_though_it_could_not_be_made_now(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=2)
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job("2", key="k"), {})
        cluster.lose("a")
        cluster.add("b", 1)
        async with controlling(tmp_path, cluster) as controller:
            again, created = await controller.submit(job("2", key="k"), {})
            assert (again.id, created) == (run.id, False)
            with pytest.raises(Refused, match="can never fit"):
                await controller.submit(job("2", key="other"), {})

    asyncio.run(story())


def test_a_checkpoint_folder_that_is_not_one_on_all_nodes_is_told_once_and_holds_nothing_up(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1)
        cluster.agents["b"].disk = set()
        async with controlling(tmp_path, cluster, preflight="off") as controller:
            run, _ = await controller.submit(job("2x1", checkpoint="ckpt"), {})
            await reaches(controller, run, State.RUNNING)

            async def told() -> list[str]:
                found = await controller.find(str(run.id))
                return [event.reason for event in found.events if event.event is Event.NOTED]

            await until(told)
            (text,) = await told()
            assert text.startswith("checkpoint: b does not see what a writes in")
            assert f"storage/checkpoints/{run.id}/ckpt" in text
            assert cluster.disk == set(), "the token is taken away again"

    asyncio.run(story())


def test_a_run_of_which_all_nodes_see_the_folder_hears_nothing_of_it(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1)
        looked: list[Tokens] = []

        class Watched(FakeAgent):
            async def checkpoint_folder(self, epoch: int, folder: str, tokens: Tokens) -> FolderLook:
                looked.append(tokens)
                return await super().checkpoint_folder(epoch, folder, tokens)

        cluster.agents = {name: Watched() for name in cluster.agents}
        for agent in cluster.agents.values():
            agent.disk = cluster.disk
        async with controlling(tmp_path, cluster, preflight="off") as controller:
            run, _ = await controller.submit(job("2x1", checkpoint="ckpt"), {})

            async def cleared() -> bool:
                return any(tokens.remove for tokens in looked)

            await until(cleared)
            await reaches(controller, run, State.RUNNING)
            found = await controller.find(str(run.id))
            assert [event.reason for event in found.events if event.event is Event.NOTED] == []

    asyncio.run(story())


def test_whoever_follows_a_run_hears_of_its_end_as_soon_as_it_is_on_record(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1)
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job(), {})
            await reaches(controller, run, State.RUNNING)
            cluster.agents["a"].end(run.id, 1)
            while True:
                news = controller.runtime.watch(run.id)
                if (await controller.find(str(run.id))).state is State.SUCCEEDED:
                    break
                await asyncio.wait_for(news.wait(), 3)

    asyncio.run(story())
