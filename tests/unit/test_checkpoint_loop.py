"""A training loop with a Saver and a Sampler saves, stops when told to, and goes on with the samples that are left."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from saved import a_model

from orchestrator import checkpoint
from orchestrator.checkpoint import folder as folders

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("outside_orch")]


def done_by(saver: checkpoint.Saver, total: int) -> list[int]:
    with saver as ckpt:
        return list(ckpt.steps(total))


def test_a_loop_saves_every_few_steps_and_at_its_end_and_goes_on(tmp_path: Path) -> None:
    model = a_model(0)
    assert done_by(checkpoint.Saver(model=model, every=4, dir=tmp_path), 10) == list(range(10))
    assert [folders.read_commit(tmp_path / name).step for name in folders.names(tmp_path)] == [10, 8, 4]
    assert done_by(checkpoint.Saver(model=model, every=4, dir=tmp_path), 12) == [10, 11]
    assert done_by(checkpoint.Saver(model=model, dir=tmp_path), 5) == []
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    assert newest.step == 12


def test_a_loop_that_is_told_to_stop_ends_its_step_saves_and_leaves_with_143(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    done = []

    def train() -> None:
        with checkpoint.Saver(model=a_model(0), dir=tmp_path) as ckpt:
            for step in ckpt.steps(100):
                if step == 5:
                    os.kill(os.getpid(), signal.SIGTERM)
                done.append(step)

    with pytest.raises(checkpoint.Stopped) as stopped:
        train()
    assert (stopped.value.code, stopped.value.step, len(done)) == (143, len(done), len(done))
    assert done[-1] in (5, 6)
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    assert newest.step == len(done)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_loader_that_is_iterated_beside_the_steps_begins_where_the_sampler_was(tmp_path: Path) -> None:
    def seen(total: int) -> list[int]:
        sampler = checkpoint.Sampler(12, 2, seed=1)
        with checkpoint.Saver(sampler=sampler, dir=tmp_path) as ckpt:
            steps = ckpt.steps(total)
            assert ckpt.loaded is not None or sampler.state_dict() == {"epoch": 0, "drawn": 0}
            fetched_ahead = [batch for batch, _ in zip(sampler, range(4), strict=False)]
            return [sample for _, batch in zip(steps, fetched_ahead, strict=False) for sample in batch]

    assert sorted(seen(4) + seen(6)) == list(range(12))


def test_a_loop_that_is_told_to_stop_before_its_first_step_stops_after_it(tmp_path: Path) -> None:
    with checkpoint.Saver(model=a_model(0), dir=tmp_path) as ckpt:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(checkpoint.Stopped) as stopped:
            list(ckpt.steps(100))
    assert stopped.value.step == 1


def test_a_child_of_the_script_is_ended_by_sigterm_as_ever_and_tells_the_script_nothing(tmp_path: Path) -> None:
    """A DataLoader ends its workers so."""
    with checkpoint.Saver(dir=tmp_path) as ckpt:
        steps = ckpt.steps(3)
        next(steps)
        hear, say = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(say, b"!")
            while True:
                signal.pause()
        os.read(hear, 1)  # Python drops what comes while it forks
        os.kill(child, signal.SIGTERM)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM
        os.close(hear)
        os.close(say)
        assert list(steps) == [1, 2]


def test_without_a_folder_a_loop_saves_nothing_and_runs_all_the_same() -> None:
    assert done_by(checkpoint.Saver(model=a_model(0), every=1), 3) == [0, 1, 2]


def test_a_part_without_state_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="epoch: a int has no state_dict"):
        checkpoint.Saver(epoch=3)


@given(
    st.integers(1, 4),
    st.integers(1, 5),
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 12)), min_size=1, max_size=4),
)
def test_a_sampler_gives_each_sample_once_an_epoch_over_any_interruptions(
    batch_size: int, steps_an_epoch: int, lives: list[tuple[int, int]]
) -> None:
    """`lives`: with how many ranks it goes on each time, and for how many steps."""
    samples = 4 * batch_size * steps_an_epoch
    state: dict[str, Any] = {"epoch": 0, "drawn": 0}
    drawn: dict[int, list[int]] = {}
    for world_size, steps in lives:
        ranks = [
            checkpoint.Sampler(samples, batch_size, rank=rank, world_size=world_size) for rank in range(world_size)
        ]
        for rank in ranks:
            rank.load_state_dict(state)
        batches = [iter(rank) for rank in ranks]
        for _ in range(steps):
            # What a loader fetches ahead must not count.
            of_epoch = drawn.setdefault(ranks[0].state_dict()["epoch"], [])
            for rank, rank_batches in zip(ranks, batches, strict=True):
                of_epoch += next(rank_batches)
                rank.advance()
        state = ranks[0].state_dict()
    for epoch, seen in drawn.items():
        assert len(seen) == len(set(seen)) <= samples, f"epoch {epoch}"
    assert sum(map(len, drawn.values())) == sum(world_size * batch_size * steps for world_size, steps in lives)
