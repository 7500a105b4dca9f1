"""Sentences on a terminal end their lines between words; a mistyped command is told what was meant."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios


def _on_a_terminal(width: int, *arguments: str, **environment: str) -> list[str]:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")} | environment
    done = subprocess.Popen([sys.executable, "-m", "cli", *arguments], stderr=follower, stdout=follower, env=env)
    os.close(follower)
    said = b""
    try:
        while block := os.read(leader, 4096):
            said += block
    except OSError:
        pass  # the far end is closed
    done.wait()
    os.close(leader)
    return said.decode().splitlines()


def test_no_word_is_cut_where_the_terminal_ends(tmp_path):
    home = str(tmp_path / "home")
    lines = _on_a_terminal(60, "ps", ORCH_HOME=home, NO_COLOR="1")
    assert len(lines) > 1
    assert " ".join(map(str.strip, lines)).endswith("`orch up` starts one")
    assert all(len(line) < 60 or " " not in line.strip() for line in lines)
    assert _on_a_terminal(300, "ps", ORCH_HOME=home, NO_COLOR="1") == [" ".join(map(str.strip, lines))]


def test_a_command_that_there_is_not_is_told_what_was_meant(orch):
    assert "there is no command 'sumbit'. Did you mean 'submit'?" in orch("sumbit", "job.yaml").stderr
    done = orch("--hom", "x")
    assert (done.returncode, "No such option" in done.stderr) == (2, True)
