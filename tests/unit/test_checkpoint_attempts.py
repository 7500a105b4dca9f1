"""Of several attempts that save in one folder the later one's checkpoints count, and an older one's never replace them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from saved import read, save

from orchestrator import checkpoint
from orchestrator.checkpoint import folder as folders

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("outside_orch")]


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
