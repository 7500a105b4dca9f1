"""How a rank ended is told with its code, its time and its last word, to an agent that was away too."""

import contextlib
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from launched import MARK, STUBBORN, Node, marked, until


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", 0),
        ("raise SystemExit(3)", 3),
        ("import sys; sys.exit('a message')", 1),
        ("1 / 0", 1),
        ("import os; os._exit(7)", 7),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV),
        ("raise KeyboardInterrupt", -signal.SIGINT),
        ("syntax error", 1),
    ],
)
def test_an_exit_is_told_with_its_code_or_signal(node: Node, way: bool, text: str, code: int) -> None:
    assert node.start("1.1", text, cold=way)["0"]["warm"] is not way
    assert node.event("exit", attempt="1.1", rank=0)["code"] == code
    assert node.event("ended", attempt="1.1")["swept"] == 0


def test_an_agent_that_comes_back_is_told_every_exit_it_missed(node: Node, way: bool) -> None:
    node.start("1.1", "raise SystemExit(4)", STUBBORN, cold=way)
    node.said("1.1", "ready", 1)
    before = node.pid
    node.disconnect()
    until(lambda: not alive_ranks(node.folder, "1.1", 0))
    node.connect()
    assert node.pid == before
    ranks = node.call("hello")["attempts"]["1.1"]["ranks"]
    assert (ranks["0"]["exit"], ranks["1"]["exit"]) == (4, None)
    assert ranks["0"]["at"] <= time.clock_gettime(time.CLOCK_BOOTTIME)
    assert ranks["0"]["told_at"] is None


def test_an_end_that_was_asked_for_is_told_apart_from_one_that_came_before(node: Node, way: bool) -> None:
    node.start("1.1", "raise SystemExit(4)", STUBBORN, cold=way)
    node.said("1.1", "ready", 1)
    early = node.event("exit", attempt="1.1", rank=0)
    node.call("stop", attempt="1.1", grace_s=0)
    late = node.event("exit", attempt="1.1", rank=1)
    assert early["told_at"] is None
    assert early["at"] <= late["told_at"] <= late["at"]


@pytest.mark.parametrize(
    ("text", "code", "errors"),
    [
        ("pass", 0, []),
        ("raise SystemExit(75)", 75, []),
        ("raise SystemExit('no data')", 1, []),
        ("raise ValueError('0 samples')", None, [["ValueError", "0 samples"]]),
        (
            "import json\ntry:\n    {}['loss']\nexcept KeyError as error:\n    raise json.JSONDecodeError('bad', '', 0) from error",
            None,
            [["json.decoder.JSONDecodeError", "bad: line 1 column 1 (char 0)"], ["KeyError", "'loss'"]],
        ),
        (
            "try:\n    1 / 0\nexcept ZeroDivisionError:\n    raise SystemExit(1)",
            1,
            [["ZeroDivisionError", "division by zero"]],
        ),
        ("import os\nif os.fork() == 0:\n    raise ValueError('a child')\nos.wait()\nraise SystemExit(3)", 3, []),
    ],
    ids=["the end", "75", "a sentence", "an exception", "one from another", "an exit after an exception", "a child"],
)
def test_the_last_word_of_a_rank_says_how_its_script_ended(
    node: Node, way: bool, text: str, code: int | None, errors: Any
) -> None:
    progress = node.folder / "progress-0"
    env = node.rank("1.1", text)["env"] | {"ORCH_PROGRESS": str(progress)}
    node.start("1.1", text, cold=way, env=env)
    node.event("ended", attempt="1.1")
    word = json.loads(Path(f"{progress}.end").read_text())
    assert (word["exit"], word["errors"]) == (code, errors)
    assert 0 < word["at"] <= time.clock_gettime(time.CLOCK_BOOTTIME)


def alive_ranks(folder: Path, attempt: str, rank: int) -> bool:
    for pid in marked(f"{MARK}.{attempt}"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                return True
    return False
