"""The folders and files of one ORCH_HOME."""

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.control.home import Home, InsecureHome, node_folder
from orchestrator.control.private_file import TokenFile, private_token


@pytest.mark.parametrize("length", [4, 10, 40, 90, 200])
def test_a_socket_fits_into_the_folder_on_a_node_however_long_the_temporary_folders_name(length, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/" + "t" * (length - 1))
    folder = node_folder("orch-12345678")
    assert len(f"{folder}/ray/session_2026-11-23_15-11-25_755803_1234567/sockets/plasma_store") <= 107
    assert (folder.parts[1] == "tmp") == (length > 10)
    assert folder.parts[-2:] == (f"orch-{os.getuid()}", "orch-12345678")


def test_two_homes_have_names_of_their_own(tmp_path):
    assert Home(tmp_path / "a").namespace != Home(tmp_path / "b").namespace
    assert Home(tmp_path / "a").namespace == Home(tmp_path / "b" / ".." / "a").namespace


def test_the_token_is_made_once_for_this_user_alone_and_refused_where_others_can_read_it(tmp_path):
    home = Home(tmp_path / "o")
    home.make()
    assert (home.root.stat().st_mode & 0o777, home.token()) == (0o700, home.token())
    (home.root / "token").chmod(0o640)
    with pytest.raises(InsecureHome, match=f"chmod 600 {home.root}/token"):
        home.token()


@pytest.mark.parametrize("name", ["token", "metrics_token", "ray_token"])
def test_every_token_is_0600_in_a_folder_that_is_0700_whatever_the_umask(tmp_path, name):
    mask = os.umask(0)
    try:
        home = Home(tmp_path / "o")
        home.make()
        _ = {"token": home.token, "metrics_token": home.metrics_token_file, "ray_token": home.ray_token_file}[name]()
    finally:
        os.umask(mask)
    assert (home.root.stat().st_mode & 0o777, (home.root / name).stat().st_mode & 0o777) == (0o700, 0o600)
    assert [file.name for file in home.root.iterdir()] == [name], "nothing of how it was made is left"


def test_of_many_who_want_a_token_at_once_all_get_the_same(tmp_path):
    path = tmp_path / "token"
    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(lambda _: private_token(path), range(64)))) == 1


def test_what_is_no_private_file_of_this_user_is_no_token(tmp_path):
    def refusal(make):
        path = tmp_path / "token"
        make(path)
        with pytest.raises(InsecureHome) as caught:
            private_token(path)
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        return str(caught.value)

    def link(path):
        (tmp_path / "secret").write_text("of somebody else")
        path.symlink_to(tmp_path / "secret")

    def lax(mode):
        return lambda path: (path.write_text("a-token"), path.chmod(mode))

    assert "is a link" in refusal(link)
    assert "is no file" in refusal(Path.mkdir)
    assert "is no file" in refusal(os.mkfifo)
    assert "holds no token" in refusal(lambda path: path.touch(0o600))
    for mode in (0o604, 0o620, 0o602, 0o777):
        assert f"mode {mode:04o}" in refusal(lax(mode))
        assert "chmod 600" in refusal(lax(mode))


def test_a_new_token_file_is_a_new_token_and_one_that_is_gone_or_open_opens_nothing(tmp_path):
    path = tmp_path / "token"
    token = TokenFile(path)
    first = token.current()
    assert first == path.read_text() == token.current()
    path.chmod(0o644)
    with pytest.raises(InsecureHome, match="chmod 600"):
        token.current()
    path.chmod(0o600)
    assert token.current() == first
    path.unlink()
    with pytest.raises(InsecureHome, match="is gone: `orch up` makes a new one"):
        token.current()
    second = private_token(path)
    assert (token.current(), second != first) == (second, True)
