"""The folders and files of one ORCH_HOME."""

import os
import tempfile

import pytest

from orchestrator.control.home import Home, InsecureHome, node_folder


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
