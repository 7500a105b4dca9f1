"""What is said of a checkpoint folder, and how a node looks at one."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from orchestrator.control import shared_folder
from orchestrator.control.checkpoint_folders import LOW, troubles
from orchestrator.control.shared_folder import FolderLook, Tokens

SEES, BLIND = FolderLook(seen=True, free=LOW), FolderLook(seen=False, free=LOW)


def test_of_one_folder_with_room_nothing_is_said() -> None:
    assert troubles("/ckpt", "a", {"a": BLIND, "b": SEES, "c": SEES}) == []
    assert troubles("/ckpt", "a", {"a": BLIND}) == []


def test_nodes_that_do_not_see_it_are_named_with_what_would_happen_and_the_way_out() -> None:
    (said,) = troubles("/ckpt", "gpu-01", {"gpu-01": BLIND, "gpu-02": BLIND, "gpu-03": SEES})
    assert said == (
        "checkpoint: gpu-02 does not see what gpu-01 writes in /ckpt: a retry on other nodes would start from zero; "
        "put it on storage that all nodes share (storage: in cluster.yaml)"
    )
    (said,) = troubles("/ckpt", "n0", {f"n{i}": BLIND for i in range(9)})
    assert said.startswith("checkpoint: n1, n2, n3, n4 and 4 more do not see what n0 writes")


def test_nodes_that_cannot_write_are_named_once_for_each_reason() -> None:
    refuses = FolderLook(error="Permission denied")
    assert troubles("/ckpt", "a", {"a": refuses, "b": refuses, "c": FolderLook(error="Read-only file system")}) == [
        "checkpoint: a and b cannot write in /ckpt: Permission denied",
        "checkpoint: c cannot write in /ckpt: Read-only file system",
    ]


def test_a_disk_with_less_room_than_the_newest_checkpoint_takes_is_pointed_out() -> None:
    assert troubles("/ckpt", "a", {"a": FolderLook(free=5 * 10**9, newest=7 * 10**9)}) == [
        "checkpoint: 5.0 GB are free in /ckpt on a, and the newest in it takes 7.0 GB"
    ]
    assert troubles("/ckpt", "a", {"a": FolderLook(free=10**8)}) == ["checkpoint: 0.1 GB are free in /ckpt on a"]


def test_a_token_is_seen_in_one_folder_and_not_in_another_and_nothing_stays(tmp_path: Path) -> None:
    shared, other = tmp_path / "deep" / "shared", tmp_path / "other"
    assert shared_folder.look(shared, Tokens(leave=".t")).error is None
    assert shared_folder.look(shared, Tokens(expect=".t", wait_s=5)).seen
    assert not shared_folder.look(other, Tokens(expect=".t", wait_s=0)).seen
    shared_folder.look(shared, Tokens(remove=".t"))
    assert [*shared.iterdir(), *other.iterdir()] == []


def test_the_newest_entry_is_measured_with_all_that_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "step-1" / "shards").mkdir(parents=True)
    (tmp_path / "step-1" / "shards" / "0").write_bytes(b"x" * 1000)
    (tmp_path / "step-1" / "COMMIT").write_bytes(b"x" * 10)
    found = shared_folder.look(tmp_path, Tokens())
    assert (found.newest, found.error) == (1010, None)
    assert found.free is not None


def test_a_folder_that_cannot_be_made_is_an_answer(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert shared_folder.look(tmp_path / "file" / "ckpt", Tokens()).error == "Not a directory"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_folder_in_which_nothing_can_be_written_is_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(number, "refused")

    monkeypatch.setattr(Path, "touch", refuse)
    assert shared_folder.look(tmp_path, Tokens()).error == "refused"
