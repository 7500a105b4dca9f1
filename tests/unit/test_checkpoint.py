"""What orchestrator.checkpoint saves, finds and passes over, by one process."""

from __future__ import annotations

import collections
import errno
import json
import logging
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows import fault, representative

from orchestrator import checkpoint
from orchestrator.checkpoint import folder as folders

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def outside_orch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ORCH_RUN", "ORCH_ATTEMPT", "ORCH_CHECKPOINT_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def as_attempt(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """From now on this process is that attempt of that run."""

    def become(attempt: int, run: int = 42) -> None:
        monkeypatch.setenv("ORCH_RUN", str(run))
        monkeypatch.setenv("ORCH_ATTEMPT", str(attempt))
        monkeypatch.setattr(folders, "_claimed", {})

    return become


def a_model(fill: float) -> Any:
    model = torch.nn.Linear(3, 2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(fill)
    return model


def value_of(model: Any) -> float:
    values = {value for parameter in model.parameters() for value in parameter.flatten().tolist()}
    assert len(values) == 1, f"garbage: {values}"
    return float(values.pop())


def save(folder: Path, step: int, **more: Any) -> checkpoint.Checkpoint:
    saved = checkpoint.save({"model": a_model(step), "step_was": step}, step=step, dir=folder, **more)
    assert saved is not None
    return saved


def read(folder: Path) -> tuple[int, float] | None:
    """The step that is loaded, and what the model then holds."""
    model = a_model(-1)
    loaded = checkpoint.load({"model": model}, dir=folder)
    if loaded is None:
        assert value_of(model) == -1
        return None
    assert loaded.state["step_was"] == loaded.step
    return loaded.step, value_of(model)


# -- saved and found ---------------------------------------------------------------------------------------------------


def test_the_newest_is_found_and_the_last_k_are_kept(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        save(tmp_path, step, keep=2)
    assert read(tmp_path) == (40, 40.0)
    assert folders.names(tmp_path) == ["step-40-attempt-1", "step-30-attempt-1"]
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    assert (newest.step, newest.kind, newest.world_size) == (40, "whole", 1)


def test_there_is_nothing_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert checkpoint.load(dir=tmp_path / "none") is None
    assert checkpoint.latest(tmp_path / "none") is None
    assert checkpoint.load() is None


def test_a_save_without_a_folder_says_where_one_comes_from() -> None:
    with pytest.raises(ValueError, match="ORCH_CHECKPOINT_DIR"):
        checkpoint.save({}, step=1)


def test_the_jobs_folder_is_used_where_none_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCH_CHECKPOINT_DIR", str(tmp_path / "made" / "on the way"))
    checkpoint.save({"x": torch.ones(2)}, step=1)
    loaded = checkpoint.load()
    assert loaded is not None
    assert loaded.state["x"].tolist() == [1, 1]


def test_a_model_and_its_optimizer_go_on_as_if_they_had_not_been_interrupted(tmp_path: Path) -> None:
    def trained(model: Any, optimizer: Any, steps: int) -> list[float]:
        for step in range(steps):
            loss = model(torch.full((4, 3), float(step))).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return [value for parameter in model.parameters() for value in parameter.flatten().tolist()]

    def fresh() -> tuple[Any, Any]:
        model = a_model(0.5)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    model, optimizer = fresh()
    trained(model, optimizer, 3)
    checkpoint.save({"model": torch.compile(model, backend="eager"), "optimizer": optimizer}, step=3, dir=tmp_path)
    expected = trained(model, optimizer, 2)
    model, optimizer = fresh()
    assert checkpoint.load({"model": model, "optimizer": optimizer}, dir=tmp_path) is not None
    assert trained(model, optimizer, 2) == expected


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    def drawn() -> list[float]:
        return [random.random(), torch.rand(1).item()]

    checkpoint.save({}, step=1, dir=tmp_path, rng=True)
    expected = drawn()
    drawn()
    checkpoint.load(dir=tmp_path, rng=True)
    assert drawn() == expected


class Custom:
    pass


Pair = collections.namedtuple("Pair", "a b")


def test_what_could_not_be_read_again_is_refused_when_it_is_saved(tmp_path: Path) -> None:
    with pytest.raises(checkpoint.CheckpointError, match=r"config\['model'\]\[1\] is a .*Custom"):
        checkpoint.save({"config": {"model": [1, Custom()]}}, step=1, dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["attempt-1.json"]


@pytest.mark.parametrize(
    "value",
    [
        *(
            1,
            2**200,
            1.5,
            1j,
            True,
            None,
            "text",
            b"bytes",
            bytearray(b"bytes"),
            {1, 2},
            frozenset({1}),
            (1, [{"a": (2,)}]),
        ),
        *(
            collections.OrderedDict(a=1),
            collections.Counter("aab"),
            collections.defaultdict(int),
            collections.deque([1]),
        ),
        *(
            torch.float32,
            torch.device("cpu"),
            torch.strided,
            torch.Size([1]),
            torch.ones(1),
            torch.nn.Parameter(torch.ones(1)),
        ),
        *(signal.SIGTERM, Path("x"), Pair(1, 2), Custom()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_exactly_what_torch_reads_as_data_is_saved(tmp_path: Path, value: Any) -> None:
    torch.save({"x": value}, tmp_path / "plain.pt")
    try:
        torch.load(tmp_path / "plain.pt", weights_only=True)
    except Exception:
        with pytest.raises(checkpoint.CheckpointError, match="x is a "):
            checkpoint.save({"x": value}, step=1, dir=tmp_path / "ckpt")
    else:
        checkpoint.save({"x": value}, step=1, dir=tmp_path / "ckpt")
        assert checkpoint.load(dir=tmp_path / "ckpt") is not None


def test_a_part_that_the_checkpoint_lacks_is_named(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(checkpoint.CheckpointError, match="holds no 'schedule', but 'model', 'step_was'"):
        checkpoint.load({"schedule": a_model(0)}, dir=tmp_path)


def test_a_sharded_one_is_written_by_one_rank_too(tmp_path: Path) -> None:
    model = a_model(7)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    expected = model.weight.tolist()
    saved = checkpoint.save({"model": model, "optimizer": optimizer, "lr": 0.5}, step=7, dir=tmp_path, sharded=True)
    assert saved is not None
    assert saved.kind == "sharded"
    other = a_model(-1)
    loaded = checkpoint.load({"model": other, "optimizer": torch.optim.AdamW(other.parameters())}, dir=tmp_path)
    assert loaded is not None
    assert (loaded.state, other.weight.tolist()) == ({"lr": 0.5}, expected)
    with pytest.raises(checkpoint.CheckpointError, match="dcp_to_torch_save"):
        checkpoint.load(dir=tmp_path)


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 1 (whole), 2 (sharded) and 3 (whole), with 1.0, 2.0 and 3.0 in the model."""
    folder = tmp_path_factory.mktemp("checkpoints") / "ckpt"
    for step in (1, 2, 3):
        save(folder, step, sharded=step == 2)
    return folder


@representative
@fault(36)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_leaves_an_older_one_or_nothing_and_never_garbage(pristine: Path, data: st.DataObject) -> None:
    folder = pristine.with_name("damaged")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(pristine, folder)
    whole = {1, 2, 3}
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.parent != folder)
    for _ in range(data.draw(st.integers(1, 3), label="how often")):
        path = data.draw(st.sampled_from(files), label="file")
        step = int(path.relative_to(folder).parts[0].split("-")[1])
        if not path.exists():
            continue
        content = path.read_bytes()
        match data.draw(st.sampled_from(["truncate", "flip", "delete", "append", "empty folder"]), label="how"):
            case "truncate" if content:
                path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
            case "flip" if content:
                at = data.draw(st.integers(0, len(content) - 1))
                path.write_bytes(
                    content[:at] + bytes([content[at] ^ (1 << data.draw(st.integers(0, 7)))]) + content[at + 1 :]
                )
            case "delete":
                path.unlink()
            case "append":
                path.write_bytes(content + b"\0")
            case _:
                shutil.rmtree(folder / f"step-{step}-attempt-1")
                (folder / f"step-{step}-attempt-1").mkdir()
        whole.discard(step)
    expected = (max(whole), float(max(whole))) if whole else None
    assert read(folder) == expected
    newest = checkpoint.latest(folder)
    assert (newest.step if newest else None) == (max(whole) if whole else None)


def test_the_warning_names_what_was_passed_over_and_what_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (10, 20):
        save(tmp_path, step)
    state = tmp_path / "step-20-attempt-1" / "state.pt"
    state.write_bytes(state.read_bytes()[:100])
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path) == (10, 10.0)
    (said,) = caplog.messages
    assert "step-20-attempt-1: state.pt has 100 of" in said
    assert said.endswith("step-10-attempt-1 is used instead")


def test_a_checkpoint_is_data_and_runs_nobodys_code(tmp_path: Path) -> None:
    save(tmp_path, 1)
    bomb = {"step": 1, "state": {"model": Custom()}, "random": None}
    state = tmp_path / "step-1-attempt-1" / "state.pt"
    torch.save(bomb, state)
    told = json.loads((tmp_path / "step-1-attempt-1" / "COMMIT").read_bytes().partition(b"\n")[0])
    draft = tmp_path / "step-2.tmp-1"
    draft.mkdir()
    shutil.copy(state, draft)
    files = {"state.pt": (state.stat().st_size, folders.digest_of(state))}
    folders.commit(draft, 2, told["attempt"], "whole", 1, files)
    with pytest.raises(Exception, match="weights_only"):
        checkpoint.load(dir=tmp_path)


# -- attempts ----------------------------------------------------------------------------------------------------------


def test_an_attempt_that_was_followed_by_another_saves_nothing_more(
    tmp_path: Path, as_attempt: Callable[..., None]
) -> None:
    as_attempt(1)
    save(tmp_path, 10)
    first = dict(folders._claimed)
    as_attempt(2)
    save(tmp_path, 11)
    as_attempt(1)
    folders._claimed.update(first)
    with pytest.raises(checkpoint.SupersededError, match=r"attempt 2 of run 42 on .* has taken over"):
        save(tmp_path, 20)
    as_attempt(1)
    with pytest.raises(checkpoint.SupersededError, match="attempt 2 of run 42 writes in"):
        save(tmp_path, 20)
    assert read(tmp_path) == (11, 11.0)
    assert not list(tmp_path.glob("*.tmp-*"))


def test_a_save_during_which_the_next_attempt_saves_is_not_committed_after_it(
    tmp_path: Path, as_attempt: Callable[..., None]
) -> None:
    class Slow:
        def state_dict(self) -> dict[str, int]:
            mine = dict(folders._claimed)
            as_attempt(2)
            save(tmp_path, 5)
            as_attempt(1)
            folders._claimed.update(mine)
            return {}

        def load_state_dict(self, state: dict[str, int]) -> None: ...

    as_attempt(1)
    with pytest.raises(checkpoint.SupersededError, match="has taken over"):
        checkpoint.save({"slow": Slow()}, step=10, dir=tmp_path)
    assert read(tmp_path) == (5, 5.0)


def test_a_later_attempts_checkpoint_is_newer_whatever_its_step(
    tmp_path: Path, as_attempt: Callable[..., None]
) -> None:
    """It was told to go back, say: the attempt after it must not find itself where that was to be left."""
    as_attempt(1)
    save(tmp_path, 100)
    as_attempt(2)
    save(tmp_path, 50)
    assert read(tmp_path) == (50, 50.0)


def test_another_run_may_go_on_in_the_same_folder_and_so_may_the_first_after_it(
    tmp_path: Path, as_attempt: Callable[..., None]
) -> None:
    for step, (attempt, run) in enumerate([(3, 41), (1, 42), (4, 41)], 1):
        as_attempt(attempt, run)
        save(tmp_path, step)
    assert read(tmp_path) == (3, 3.0)


def test_the_same_step_saved_again_leaves_the_first_until_the_second_is_whole(tmp_path: Path) -> None:
    for fill in (1.0, 2.0):
        checkpoint.save({"model": a_model(fill), "step_was": 10}, step=10, dir=tmp_path)
    assert read(tmp_path) == (10, 2.0)
    assert folders.names(tmp_path) == ["step-10-attempt-1.1", "step-10-attempt-1"]


def test_drafts_of_attempts_that_are_over_go_and_those_of_a_later_one_stay(
    tmp_path: Path, as_attempt: Callable[..., None]
) -> None:
    as_attempt(1)
    save(tmp_path, 1)
    (tmp_path / "step-7.tmp-1").mkdir()
    (tmp_path / "step-9.tmp-3").mkdir()
    as_attempt(2)
    save(tmp_path, 2)
    assert [path.name for path in tmp_path.glob("*.tmp-*")] == ["step-9.tmp-3"]


@pytest.mark.parametrize("sharded", [False, True])
def test_a_write_that_fails_is_a_clear_error_and_older_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharded: bool
) -> None:
    save(tmp_path, 1)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        checkpoint.CheckpointError, match=r"step 2 could not be saved|could not write its part"
    ) as raised:
        save(tmp_path, 2, sharded=sharded)
    assert "No space left" in str(raised.value)
    assert read(tmp_path) == (1, 1.0)
    assert not list(tmp_path.glob("*.tmp-*"))


# -- the loop ----------------------------------------------------------------------------------------------------------


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
