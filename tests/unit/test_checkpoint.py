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
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows import fault, representative
from saved import a_model, read, save

from orchestrator import checkpoint
from orchestrator.checkpoint import folder as folders

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("outside_orch")]


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


def test_the_same_step_saved_again_leaves_the_first_until_the_second_is_whole(tmp_path: Path) -> None:
    for fill in (1.0, 2.0):
        checkpoint.save({"model": a_model(fill), "step_was": 10}, step=10, dir=tmp_path)
    assert read(tmp_path) == (10, 2.0)
    assert folders.names(tmp_path) == ["step-10-attempt-1.1", "step-10-attempt-1"]


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


def test_a_rank_that_has_no_process_group_is_not_taken_for_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "ORCH_CHECKPOINT_DIR": str(tmp_path / "ckpt")}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(checkpoint.CheckpointError, match="there are 2 ranks and no process group"):
        checkpoint.save({}, step=1)
    with pytest.raises(checkpoint.CheckpointError, match="init_process_group"):
        checkpoint.Saver()
    # Each for itself: then each has a folder of its own.
    assert checkpoint.save({}, step=1, dir=tmp_path / "mine") is not None
