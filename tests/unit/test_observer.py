"""What the observer counts, called as torch calls it, without training anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.control.rank_progress import look
from orchestrator.progress import file
from orchestrator.progress.observer import Observer, most_of, size_of, watch_training

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


class Watched:
    """A rank whose clock the test moves."""

    def __init__(self) -> None:
        self.now = 1
        data = memoryview(bytearray(file.SIZE))
        self.slots = data.cast("q")
        self.counts = data[file.HISTOGRAM :].cast("q")
        self.stepped, self.drawn, self.leave_child = watch_training(file, data, [], lambda: self.now)

    def step(self, optimizer: Any, after: int = 10) -> None:
        self.now += after
        self.stepped(optimizer, (), {})

    def draw(self, iterator: Any, size: int = 4) -> None:
        iterator._num_yielded += 1
        self.drawn(iterator, torch.zeros(size, 2), self.now)

    def __getitem__(self, slot: int) -> int:
        return self.slots[slot]


def an_iterator(batch_size: int | None = 4) -> Any:
    return SimpleNamespace(_num_yielded=0, _index_sampler=SimpleNamespace(batch_size=batch_size))


@given(st.lists(st.integers(1, 2**45), min_size=1, max_size=30))
def test_every_step_is_in_the_bucket_of_its_time(times: list[int]) -> None:
    rank, optimizer = Watched(), object()
    rank.step(optimizer)
    for time in times:
        rank.step(optimizer, time)
    expected = [0] * file.BUCKETS
    for time in times:
        expected[file.bucket_of(time)] += 1
    assert list(rank.counts[: file.BUCKETS]) == expected
    assert (rank[file.S_STEPS], rank[file.S_FIRST_STEP_AT], rank[file.S_STEP_AT]) == (len(times) + 1, 11, rank.now)


@pytest.mark.parametrize(
    ("order", "steps"),
    [
        ("AAAA", 4),
        ("ABABAB", 3),
        ("BCABCABCA", 3),
        ("DDDGDDDGDDDG", 9),
        ("GDDDGDDDGDDD", 9),
        ("AAABBB", 5),
    ],
    ids=["one", "one after the other", "three", "critic first", "generator first", "a fold after another"],
)
def test_of_several_optimizers_the_one_that_steps_most_often_counts(order: str, steps: int) -> None:
    rank, optimizers = Watched(), {name: object() for name in order}
    for name in order:
        rank.step(optimizers[name])
    assert abs(rank[file.S_STEPS] - steps) <= 1


def test_batches_count_with_the_step_after_them_and_those_of_a_validation_do_not() -> None:
    rank, optimizer, train = Watched(), object(), an_iterator()
    for number in range(3):
        rank.draw(train)
        rank.draw(train, 3)
        rank.step(optimizer)
        if number == 1:
            with torch.no_grad():
                rank.draw(an_iterator())
            rank.draw(an_iterator())
    assert rank[file.S_SAMPLES] == 3 * 7
    assert (rank[file.S_BATCHES], rank[file.S_BATCH_SAMPLES]) == (8, 3 * 7 + 8)


def test_an_iterator_that_takes_the_place_of_another_in_memory_is_a_new_one() -> None:
    rank, optimizer, place = Watched(), object(), an_iterator()
    with torch.no_grad():
        rank.draw(place)
    place._num_yielded = 0
    rank.draw(place)
    rank.step(optimizer)
    assert rank[file.S_SAMPLES] == 4


def test_a_loaders_batches_are_counted_to_the_last_smaller_one() -> None:
    for count, batch_size, drop_last in ((10, 4, False), (10, 4, True), (8, 4, False), (3, 4, False)):
        rank, optimizer, given_out = Watched(), object(), 0
        loader = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(torch.zeros(count, 2), torch.zeros(count)), batch_size, drop_last=drop_last
        )
        iterator = iter(loader)
        for batch in iterator:
            given_out += len(batch[0])
            rank.drawn(iterator, batch, 0)
            rank.step(optimizer)
        assert rank[file.S_SAMPLES] == given_out


def test_a_child_writes_nowhere() -> None:
    rank, optimizer = Watched(), object()
    rank.step(optimizer)
    rank.leave_child()
    rank.step(optimizer)
    rank.draw(an_iterator())
    assert (rank[file.S_STEPS], rank[file.S_BATCHES]) == (1, 0)


@pytest.mark.parametrize("batch", [None, 3, "text", {}, (), torch.tensor(1.0), object()])
def test_a_batch_of_any_form_is_one(batch: Any) -> None:
    rank, iterator = Watched(), an_iterator(None)
    iterator._num_yielded = 1
    rank.drawn(iterator, batch, 0)
    assert rank[file.S_BATCH_SAMPLES] == 1


IMAGES = [torch.zeros(3, 8, 8), torch.zeros(3, 9, 9)]


@pytest.mark.parametrize(
    ("batch", "most", "size"),
    [
        (torch.zeros(5, 2), 8, 5),
        ((torch.zeros(5, 2), torch.zeros(5)), 8, 5),
        ({"ids": torch.zeros(7, 3)}, None, 7),
        ([{"ids": torch.zeros(7, 3)}], None, 7),
        ((tuple(IMAGES), ({}, {})), 2, 2),
        ((torch.zeros(1, 2), torch.zeros(1)), 2, 1),
        (["a", "b", "c"], 4, 3),
        (torch.zeros(100, 2), 8, 8),
    ],
)
def test_a_batchs_size_is_its_tensors_first_dimension_or_its_lists_length(
    batch: Any, most: int | None, size: int
) -> None:
    assert size_of(batch, most) == size


def test_a_loaders_own_batch_size_is_known() -> None:
    data = torch.utils.data.TensorDataset(torch.zeros(9, 1))
    assert most_of(iter(torch.utils.data.DataLoader(data, batch_size=4))) == 4
    assert most_of(iter(torch.utils.data.DataLoader(data, batch_size=None))) is None


def test_torch_compile_is_kept_out_of_everything_that_is_put_into_torch(tmp_path: Path) -> None:
    """torch 2.11 inlined the hook of a compiled optimizer, could not import its module, and ended the script."""
    put: list[Any] = []
    iterators, ddp = type("Iterator", (), {"__next__": lambda _: None}), type("Ddp", (), {})
    functions = {name: lambda: None for name in ("save", "load", "save_state_dict", "async_save", "load_state_dict")}
    functions |= {name: lambda: None for name in ("save_file", "save_model", "load_file", "load_model")}
    functions |= {name: lambda: None for name in ("save_whole", "save_sharded", "_init_optim_state")}
    module = SimpleNamespace(
        register_optimizer_step_post_hook=put.append,
        _BaseDataLoaderIter=iterators,
        DistributedDataParallel=ddp,
        **functions,
    )
    for patch in Observer(file, str(tmp_path / "progress")).patches().values():
        patch(module)
    put += [iterators.__next__, ddp.__init__, *(getattr(module, name) for name in functions)]
    assert len(put) == 15
    assert all(one._torchdynamo_disable for one in put)


OBSERVED = """
import errno, os, sys
from orchestrator.progress import file, observer, on_import
on_import.patch(observer.observe(file, sys.argv[1]))
import torch
from orchestrator import checkpoint
def step(model, optimizer):
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
model = torch.nn.Linear(2, 2)
optimizer = torch.optim.AdamW(model.parameters())
for sharded in (False, True):
    step(model, optimizer)
    checkpoint.save({"model": model, "optimizer": optimizer}, step=1, dir=sys.argv[2], sharded=sharded)
step(model, optimizer)
def full(descriptor):
    raise OSError(errno.ENOSPC, "full")
os.fsync = full
try:
    checkpoint.save({"model": model}, step=2, dir=sys.argv[2])
except checkpoint.CheckpointError:
    pass
fresh = torch.nn.Linear(2, 2)
assert checkpoint.load({"model": fresh, "optimizer": torch.optim.AdamW(fresh.parameters())}, dir=sys.argv[2])
"""


def test_a_save_by_orchestrator_checkpoint_counts_once_it_is_committed_and_a_load_makes_no_step(tmp_path: Path) -> None:
    """torch.distributed.checkpoint has a new optimizer make a step, to have a state that it can fill."""
    subprocess.run([sys.executable, "-c", OBSERVED, str(tmp_path / "progress"), str(tmp_path / "ckpt")], check=True)
    found = look(tmp_path / "progress", 1, 1, 0)
    assert found is not None
    assert (found.steps, found.saved, found.saved_steps) == (3, 2, 2)
    assert (found.saves_begun, found.saves_ended) == (3, 3)
    assert found.loads > 0
