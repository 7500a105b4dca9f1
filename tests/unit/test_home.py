"""The folders and files of one ORCH_HOME."""

import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.control.home import ClusterNote, Home, node_folder, own_node_folder
from orchestrator.control.open_doors import open_doors
from orchestrator.control.private_file import InsecureHome, TokenFile, private_token


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


@pytest.fixture
def tmp(monkeypatch):
    """A temporary folder whose name is so short that sockets fit into it."""
    short = Path(tempfile.mkdtemp(prefix="o", dir="/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    yield short
    shutil.rmtree(short)


def test_what_a_node_keeps_is_this_users_alone_from_tmp_down(tmp):
    (tmp / f"orch-{os.getuid()}").mkdir(mode=0o755)
    folder = own_node_folder("orch-1")
    assert folder == node_folder("orch-1") == own_node_folder("orch-1")
    assert {one.stat().st_mode & 0o777 for one in (folder.parent, folder)} == {0o700}


@pytest.mark.parametrize("level", [0, 1])
def test_a_folder_that_somebody_has_put_there_before_is_not_used(tmp, level):
    place = [tmp / f"orch-{os.getuid()}", tmp / f"orch-{os.getuid()}" / "orch-1"][level]
    place.parent.mkdir(exist_ok=True)
    (tmp / "elsewhere").mkdir()
    place.symlink_to(tmp / "elsewhere")
    with pytest.raises(InsecureHome, match=f"{place} is not this user's own folder"):
        own_node_folder("orch-1")
    if os.getuid() == 0:
        place.unlink()
        place.mkdir()
        os.chown(place, 12345, 12345)
        with pytest.raises(InsecureHome, match="uid 12345"):
            own_node_folder("orch-1")


@pytest.mark.parametrize(
    ("note", "told"),
    [
        ({"ray_auth": "none"}, ["asks nobody for a token"]),
        ({"ray_auth": "token"}, []),
        ({"ray_auth": "unknown"}, []),
        ({"database": "postgresql://ana:canary@db.example/orch"}, ["db.example may be in clear text"]),
        ({"database": "postgresql+psycopg://db.example/orch?sslmode=prefer"}, ["may be in clear text"]),
        ({"database": "postgresql://db.example/orch?sslmode=verify-full"}, []),
        ({"database": "postgresql://localhost/orch"}, []),
        ({"database": "postgresql:///orch?host=/run/postgresql"}, []),
    ],
    ids=str,
)
def test_the_doctor_tells_of_doors_that_are_open(note, told):
    given = {"namespace": "n", "address": "10.0.0.1:6379", "database": "sqlite:////x", "storage": "/s", "lease_s": 30}
    found = open_doors(ClusterNote(**given | {"log_limit": 1, "code_limit": 1} | note))
    assert [what in one["problem"] for what, one in zip(told, found, strict=True)] == [True] * len(told)
    assert "canary" not in str(found)
