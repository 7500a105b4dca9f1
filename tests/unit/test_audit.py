"""The audit log: a line for each record, files of bounded size, and callers as the kernel knows them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.control.audit import KEPT, AuditLog, peer_uid, records


def test_records_come_back_in_their_order_over_the_files_that_are_kept(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.log", limit=200)
    for number in range(100):
        log.write({"call": f"POST /{number}", "run": number})
    files = sorted(tmp_path.iterdir())
    assert len(files) <= KEPT + 1
    assert sum(file.stat().st_size for file in files) < (KEPT + 2) * 300
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    numbers = [record["run"] for record in records(tmp_path / "audit.log")]
    assert numbers == list(range(numbers[0], 100))


def test_a_record_is_one_line_whatever_is_in_it(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.log")
    log.write({"user": "a\n{}", "said": "x" * 10_000, "error": "\ud800\x1b[2J"})
    (line,) = (tmp_path / "audit.log").read_text().splitlines()
    assert len(line) < 700
    assert line.isprintable()


def test_a_line_that_is_no_record_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    path.write_bytes(b'\xff\n[]\n{"at": 1}\n{"at": "2026-11-26T10:00:00.000Z"}\n{"at": "2026')
    assert list(records(path)) == [{"at": "2026-11-26T10:00:00.000Z"}]


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "audit.log").symlink_to(tmp_path / "elsewhere")
    AuditLog(tmp_path / "audit.log").write({"call": "POST /"})
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_the_kernel_says_whose_the_other_end_is(family: socket.AddressFamily, host: str) -> None:
    with socket.socket(family) as listener:
        try:
            listener.bind((host, 0))
        except OSError:
            pytest.skip(f"this machine has no {host}")
        listener.listen()
        with socket.create_connection(listener.getsockname()[:2]) as caller, listener.accept()[0] as served:
            assert peer_uid(served.getpeername(), served.getsockname()) == os.getuid()
            caller.close()
            assert peer_uid(served.getpeername(), served.getsockname()) is None


CONNECTS = """
import os, socket, sys
os.setuid(65534)
line = socket.socket()
line.connect(("127.0.0.1", int(sys.argv[1])))
line.recv(1)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be another user")
def test_a_caller_of_another_user_is_known_by_its_uid_whatever_it_says() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        command = [sys.executable, "-c", CONNECTS, str(listener.getsockname()[1])]
        with subprocess.Popen(command), listener.accept()[0] as served:
            assert peer_uid(served.getpeername(), served.getsockname()) == 65534
