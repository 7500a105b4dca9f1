"""`orch doctor --nccl-log`: what it prints, and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.main import orch as group

OWN = Path(__file__).resolve().parents[2] / "fixtures/nccl"
SOCKETS = str(OWN / "rccl_xgmi_socket.log")


def doctor(*arguments: str, **kwargs: str):
    return CliRunner().invoke(group, ["doctor", *arguments], **kwargs)


def test_the_json_is_that_of_the_contract():
    done = doctor("--nccl-log", SOCKETS, "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout) == {
        "version": "2.18.3",
        "ranks": 3,
        "nodes": 2,
        "links": {"P2P/xGMI": 1, "NET/Socket": 1},
        "transports": ["P2P", "NET/Socket"],
        "gdr": False,
        "worst": "NET/Socket",
    }
    assert doctor("--nccl-log", SOCKETS, "-o", "jsonl").stdout.count("\n") == 1


def test_what_is_printed_says_what_is_wrong_and_how_to_mend_it():
    shown = doctor("--nccl-log", SOCKETS).stdout
    assert "worst\tNET/Socket" in shown
    assert "1 of 2 links go over TCP sockets, the slowest that there is.\n  perhaps " in shown


def test_a_file_for_each_rank_is_one_job(tmp_path):
    lines = (OWN / "mpirun_nvls_collnet_gdr.log").read_text().splitlines(keepends=True)
    files = []
    for host in ("node-a", "node-b"):
        files.append(tmp_path / host)
        files[-1].write_text("".join(line for line in lines if host in line))
    whole = doctor("--nccl-log", str(OWN / "mpirun_nvls_collnet_gdr.log"), "--json").stdout
    apart = doctor("--nccl-log", *map(str, files), "--json").stdout
    again = doctor("--nccl-log", str(files[1]), "--nccl-log", str(files[0]), "--json").stdout
    assert apart == again
    assert json.loads(apart) == json.loads(whole) | {"version": None}  # that line has no host


def test_standard_input_is_read():
    done = doctor("--nccl-log", "-", "--json", input=Path(SOCKETS).read_text())
    assert json.loads(done.stdout)["ranks"] == 3


def test_control_characters_of_a_log_reach_no_terminal():
    line = "h:1:1 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/IPC\nh:1:1 [0] x NCCL WARN a\x07\x9bb\x1b[2Jc\n"
    shown = doctor("--nccl-log", "-", input=line).stdout
    assert "NCCL warns: a c" in shown


def test_bytes_that_are_no_text_do_not_matter(tmp_path):
    file = tmp_path / "log"
    file.write_bytes(b"\xff\xfe\x00 NCCL INFO \xff\n" + Path(SOCKETS).read_bytes())
    assert json.loads(doctor("--nccl-log", str(file), "--json").stdout)["ranks"] == 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([SOCKETS], "are named with --nccl-log"),
        (["--nccl-log", "/nowhere"], "does not exist"),
        (["--nccl-log", __file__.replace("test_cli_doctor", "conftest")], "NCCL_DEBUG=INFO"),
        (["--nccl-log", SOCKETS, "-o", "csv"], "-o csv has no form for it"),
    ],
)
def test_what_cannot_be_done_is_a_sentence_and_exit_code_2(arguments, sentence):
    done = doctor(*arguments)
    assert done.exit_code == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.output
