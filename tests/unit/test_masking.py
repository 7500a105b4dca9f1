"""Secrets in what ranks print: masked on the node and in what is shipped, wherever a look cuts the log in two."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.control import node_files
from orchestrator.control.masking import SHORTEST, masked, unfinished, values_in_process, values_of
from orchestrator.control.node_files import LogFile

SECRETS = values_of(["abcabcabd", "hunter2hunter2", "aaaaaaaa"])
PIECES = st.lists(
    st.sampled_from(
        [
            b"abc",
            b"abcabc",
            b"abd",
            b"hunter2",
            b"a",
            b"aaaaaaa",
            b"\n",
            b"step 1\n",
            *SECRETS,
            *(s[:5] for s in SECRETS),
        ]
    ),
    max_size=12,
)


def shipped(file: LogFile, limit: int) -> bytes:
    found = b""
    while (taken := file.take(limit)) is not None:
        assert taken[0] == len(found) + shipped_before(file, found, taken)
        found += taken[1]
    return found


def shipped_before(file: LogFile, found: bytes, taken: tuple[int, bytes]) -> int:
    return file.taken - len(taken[1]) - len(found)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(pieces=PIECES, chunk=st.integers(1, 40), limit=st.sampled_from([1 << 20, 25]))
def test_however_a_log_grows_and_is_cut_no_secret_is_shipped_or_stays(
    pieces: list[bytes], chunk: int, limit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(node_files, "CHUNK", chunk)
        path = tmp_path_factory.mktemp("log") / "rank-0.log"
        file, told = LogFile(path, secrets=SECRETS), b""
        with path.open("ab", buffering=0) as rank:
            for piece in pieces:
                rank.write(piece)
                told += shipped(file, limit)
                assert not file.pending(limit), "what is kept back is no news until more has come"
        file.closed = True
        told += shipped(file, limit)
    whole = b"".join(pieces)
    assert len(told) == min(len(whole), limit), "every byte keeps its place"
    assert not [secret for secret in SECRETS if secret in told]
    assert all(was == now or now == ord("*") for was, now in zip(whole, told, strict=False))
    if not [secret for secret in SECRETS if secret in whole]:
        assert told == whole[:limit]
    if limit > len(whole):
        assert path.read_bytes() == told, "on the node too"


def test_the_tail_of_a_log_that_outgrew_its_limit_is_masked_where_it_begins_too(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.log"
    for shift in range(len(SECRETS[0])):
        path.write_bytes(b"x" * 200 + SECRETS[0] + b"y" * (node_files.TAIL - shift))
        file = LogFile(path, taken=100, closed=True, secrets=SECRETS)
        _, tail = file.take_tail()
        assert tail == b"*" * shift + b"y" * (node_files.TAIL - shift)
        assert SECRETS[0] not in path.read_bytes()


def test_a_log_without_secrets_is_shipped_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.log"
    path.write_bytes(b"step 1\nstep")
    assert LogFile(path).take(1 << 20) == (0, b"step 1\nstep")


def test_short_words_stay_and_a_key_of_several_lines_goes_line_by_line() -> None:
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\nshort\n-----END KEY-----\n"
    values = values_of(["12", "on", "x" * (SHORTEST - 1), key])
    assert masked(b"12 on " + b"x" * 7, values) == b"12 on " + b"x" * 7
    assert masked(b"[0] MIIEvQIBADANBgkq\n[0] short", values) == b"[0] " + b"*" * 16 + b"\n[0] short"
    assert masked(key.encode(), values) == b"*" * len(key)


@given(st.binary(max_size=30), st.sampled_from(SECRETS), st.integers(0, 8))
def test_the_beginning_of_a_secret_at_the_end_is_seen(data: bytes, secret: bytes, length: int) -> None:
    length = min(length, len(secret) - 1)
    assert unfinished(data + secret[:length], SECRETS) >= length
    assert unfinished(b"step 1\n", SECRETS) == 0


def test_the_values_are_found_in_a_process_by_their_names() -> None:
    environ = {"PATH": os.environ["PATH"], "API_KEY": "canary-1234", "API_KEY_2": "canary-5678", "PIN": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"], env=environ, **pipes) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()  # until exec it has its parent's environment
            assert values_in_process(process.pid, ("API_KEY", "PIN")) == (b"canary-1234",)
            assert values_in_process(process.pid, ()) == ()
        finally:
            process.communicate(b"\n")
    assert values_in_process(process.pid, ("API_KEY",)) == ()
