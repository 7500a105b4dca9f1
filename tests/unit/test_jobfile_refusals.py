"""All mistakes of a job file are told at once, each with its place; soon, and whatever it holds."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.document import MAX_BYTES
from orchestrator.jobfile import JobFileError, load_job, parse_job

SOON = 2.0


def refusal(text: str, *overrides: str) -> list[str]:
    with pytest.raises(JobFileError) as caught:
        parse_job(text, "job.yaml", overrides)
    return str(caught.value).split("\n")


def file_refusal(path: Path | str) -> str:
    started = time.monotonic()
    with pytest.raises(JobFileError) as caught:
        load_job(path)
    assert time.monotonic() - started < SOON
    return str(caught.value)


# All mistakes at once, each with its place


def test_all_mistakes_are_told_at_once_with_line_column_and_nearest_key() -> None:
    text = """\
run: train.py
workrs: 2x8
workers: 2y8
device: gpu
env:
  LR: 1e-3
  RANK: 3
  LR: 2
  "BAD NAME": 1
secrets: [A, 1B]
retry: {infra: -3}
grace: 30
priority: high
tags: {sweep: [a]}
"""
    assert refusal(text) == [
        "job.yaml:2:1: workrs: unknown key. Did you mean 'workers'?",
        "job.yaml:3:10: workers: must be NODESxPER_NODE, such as 2x8, or a total, such as 16, not '2y8'",
        "job.yaml:4:9: device: must be 'auto', 'cuda' or 'cpu', not 'gpu'",
        "job.yaml:7:3: env.RANK: 'RANK' is set by orch for every rank and cannot be chosen",
        "job.yaml:8:3: env.LR: is given twice, first in line 6",
        "job.yaml:9:3: env.BAD NAME: 'BAD NAME' is no name of a variable: "
        "letters, digits and '_', not beginning with a digit",
        "job.yaml:10:14: secrets.1: '1B' is no name of a variable: letters, digits and '_', not beginning with a digit",
        "job.yaml:11:16: retry.infra: must be 0 to 10,000, not -3",
        "job.yaml:12:8: grace: has no unit. Did you mean '30s' (seconds) or '30m' (minutes)?",
        "job.yaml:13:11: priority: must be a whole number, not 'high'",
        "job.yaml:14:15: tags.sweep: must be text, not a list",
    ]


def test_one_mistake_hides_no_other_that_is_about_two_keys() -> None:
    text = "run: t.py {lr}\npriority: lots\nretry: {infra: x}\narray: {seed: 0..3}\nbackend: nccl\ndevice: cpu\ngpu: H100\n"
    assert refusal(text) == [
        "job.yaml:2:11: priority: must be a whole number, not 'lots'",
        "job.yaml:3:16: retry.infra: must be a whole number, not 'x'",
        "job.yaml:4:8: array: {lr} in run or env is none of its keys (seed); plain text is {{lr}}; "
        "seed is used nowhere: write {seed} into run or env",
        "job.yaml:5:10: backend: nccl needs GPUs, and device is cpu: choose gloo",
        "job.yaml:7:6: gpu: names GPUs, and device is cpu: leave one of them out",
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "job.yaml: is empty. The smallest job is `run: train.py`"),
        ("# nothing\n", "job.yaml: is empty. The smallest job is `run: train.py`"),
        ("~", "job.yaml: is empty. The smallest job is `run: train.py`"),
        ("[run]", "job.yaml:1:1: must be keys and values, such as `run: train.py`, not a list"),
        ("train.py", "job.yaml:1:1: must be keys and values, such as `run: train.py`, not 'train.py'"),
        ("name: x", "job.yaml:1:1: run: is missing: the script and its arguments, such as `run: train.py`"),
        ("run:", "job.yaml:1:5: run: has no value. Give it one, or leave the key out ('' is an empty text)"),
        ("run: t.py\nrun: u.py", "job.yaml:2:1: run: is given twice, first in line 1"),
        ("run: t.py\n---\nrun: u.py", "job.yaml:2:1: a second document begins here ('---'). A file holds one"),
        ("run: t.py\n\tname: x", "job.yaml:2:1: a tab. YAML is indented with spaces"),
        ("run: t.py\nname: @x", "job.yaml:2:7: a value cannot begin with '@'. Put it in quotes"),
        (
            "run: t.py: x",
            "job.yaml:1:10: a ': ' where no key can be. "
            "Quote the value if ': ' belongs to it, and indent all keys of a level alike",
        ),
        ("run: t.py\ntags: &x {a: b}", "job.yaml:2:7: tags: an anchor ('&x'): write the value out where it is needed"),
        ("run: t.py\ntags: *x", "job.yaml:2:7: tags: an alias ('*x'): write the value out instead"),
        ("run: !!python/object/apply:os.system [id]", "job.yaml:1:6: run: a tag ('tag:yaml.org,2002:python/object/app"),
        ("run: !!str t.py", "job.yaml:1:6: run: a tag ('tag:yaml.org,2002:str'): tags are not used here"),
        ("run: !mine t.py", "job.yaml:1:6: run: a tag ('!mine'): tags are not used here"),
        ("run: t.py\n? [a]\n: b", "job.yaml:2:3: a key: must be a plain word"),
        ("run: t.py\n<<: {name: x}", "job.yaml:2:1: <<: unknown key"),
        ("run: t.py\nname: \x1b[31m", "job.yaml:2:7: the control character U+001B. Remove it"),
        ("run: t.py\nname: a\u202eb", "job.yaml:2:8: the control character U+202E. Remove it"),
        ("run: [t.py]", "job.yaml:1:6: run: must be text, not a list"),
        ("run: t.py\nenv: [A]", "job.yaml:2:6: env: must be a mapping, such as {NAME: value}, not a list"),
        ("run: t.py\nsecrets: A", "job.yaml:2:10: secrets: must be a list, such as [A, B], not 'A'"),
        ("run: t.py\nsecrets: [~, 1]", "job.yaml:2:11: secrets.0: has no value"),
        ("run: t.py\ncommand: x", "job.yaml:2:1: command: unknown key. Did you mean 'run'?"),
        ("run: t.py\nqwertz: x", "job.yaml:2:1: qwertz: unknown key. There are: run, name, workers"),
    ],
)
def test_a_mistake_is_told_in_a_sentence_with_its_place(text: str, complaint: str) -> None:
    assert refusal(text)[0].startswith(complaint)


def test_what_yaml_cannot_read_is_told_with_where_it_began() -> None:
    (line,) = refusal("run: t.py\nenv: {A: b\nname: x\n")
    assert line.startswith("job.yaml:3:")
    assert "that begins in line 2" in line


def test_many_mistakes_are_told_up_to_a_number() -> None:
    lines = refusal("run: t.py\n" + "".join(f"x{i}: 1\n" for i in range(1000)))
    assert len(lines) == 51
    assert lines[-1] == "... and 950 more"


@pytest.mark.parametrize("name", ["../../etc", "a/b", "\\x1b[31mred", "\\0", "a\\nb", "A", "-a", "a" * 64, "\\u202e"])
def test_a_name_that_is_no_name_is_refused_and_printed_harmlessly(name: str) -> None:
    (line,) = refusal(f'run: t.py\nname: "{name}"\n')
    assert line.startswith("job.yaml:2:7: name: ")
    assert line.isprintable()


def test_keys_and_file_names_are_printed_harmlessly() -> None:
    with pytest.raises(JobFileError) as caught:
        parse_job('run: t.py\n"\\x1b[2J": x\n', "job\x1b[2J.yaml")
    assert str(caught.value).isprintable()
    assert "\\x1b[2J: unknown key" in str(caught.value)


# --set


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("workers=2y8", "--set workers=2y8: workers: must be NODESxPER_NODE"),
        ("workrs=2", "--set workrs=2: workrs: unknown key. Did you mean 'workers'?"),
        ("retry=3", "--set retry=3: retry: must say for which cause, such as {infra: 10, user: 0}, not '3'"),
        ("retry={infra: -3}", "--set retry={infra: -3}: retry.infra: must be 0 to 10,000, not -3"),
        ("workers", "--set workers: must be KEY=VALUE"),
        ("=x", "--set =x: must be KEY=VALUE"),
        (
            "workers.x=1",
            "--set workers.x=1: workers.x: only env, requires, tags and throughput have entries that can be set one by one",
        ),
        ("env.RANK=1", "--set env.RANK=1: env.RANK: 'RANK' is set by orch"),
        ("tags=[", "--set tags=[: tags: is not YAML"),
        ("tags={a: b, a: c}", "--set tags={a: b, a: c}: tags.a: is given twice"),
        ("env.A=[b]", "--set env.A=[b]: env.A: must be text, not a list"),
        ("name=\x1b", "--set name=\\x1b: name: '\\x1b' must be"),
    ],
)
def test_a_bad_override_is_named(override: str, complaint: str) -> None:
    (line,) = refusal("run: t.py", override)
    assert line.startswith(complaint)


def test_mistakes_of_the_file_and_of_overrides_are_told_together() -> None:
    assert len(refusal("run: t.py\nworkrs: 2\ndevice: x\n", "priority=x", "foo=1")) == 4


# Files


def test_the_script_is_looked_for_in_workdir_which_is_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "train.py").touch()
    path = tmp_path / "jobs" / "job.yaml"
    path.write_text("run: src/train.py\nworkdir: ..\n")
    assert load_job(path).argv == ["src/train.py"]
    path.write_text("run: src/train.py\nworkdr: ..\n")
    lines = file_refusal(path).split("\n")
    assert lines[0].endswith(f":1:6: run: there is no file 'src/train.py' in '{tmp_path}/jobs'")
    assert lines[1].endswith(":2:1: workdr: unknown key. Did you mean 'workdir'?")
    path.write_text("run: src/train.py\nworkdir: ../gone\n")
    assert ":2:10: workdir: there is no folder " in file_refusal(path)


@pytest.mark.parametrize("run", ["../t.py", "/bin/true", "'unclosed", "python t.py", "-m x", "''", "' '", "."])
def test_a_command_without_a_script_gets_one_complaint(tmp_path: Path, run: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(f'run: "{run}"\n')
    assert len(file_refusal(path).split("\n")) == 1


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ("run: t.py".encode("utf-16"), "is UTF-16 or UTF-32. Save it as UTF-8"),
        ("run: t.py".encode("utf-16-le"), ":1:2: a NUL byte"),
        ("run: t.py".encode("utf-32"), "is UTF-16 or UTF-32. Save it as UTF-8"),
        ("run: t.py\nteam: é".encode("latin-1"), ":2:7: the byte 0xe9 is not UTF-8"),
        (b"run: t.py\nteam: \0", ":2:7: a NUL byte"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "NUL byte"),
        (b"run: t.py\nteam: \xed\xa0\x80", ":2:7: the byte 0xed is not UTF-8"),
        (b"\x1f\x8b\x08", "is not UTF-8"),
    ],
)
def test_odd_encodings_are_refused_with_a_sentence(tmp_path: Path, data: bytes, complaint: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(data)
    assert complaint in file_refusal(path)


def test_a_file_of_100_mb_is_refused_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    with path.open("wb") as file:
        file.truncate(100 * 2**20)
    assert "has 104,857,600 bytes, more than 64 KiB" in file_refusal(path)


def test_what_is_not_a_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is a pipe or a device" in file_refusal(tmp_path / "pipe")
    assert "is a pipe or a device" in file_refusal("/dev/zero")
    assert "is a folder" in file_refusal(tmp_path)
    assert "No such file or directory" in file_refusal(tmp_path / "gone.yaml")
    assert "not a usable file name" in file_refusal("a\0b")
    assert "File name too long" in file_refusal("a" * 5000)


def test_endless_standard_input_is_read_up_to_the_cap(tmp_path: Path) -> None:
    code = "from orchestrator.jobfile import *\ntry: load_job('-')\nexcept JobFileError as e: print(e)"
    with open("/dev/zero", "rb") as zero:
        done = subprocess.run([sys.executable, "-c", code], stdin=zero, capture_output=True, text=True, timeout=60)
    assert "has more than 64 KiB" in done.stdout, done.stderr


# Bombs


def alias_bomb() -> str:
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    return "a0: &a0 lol\n" + "\n".join(levels) + "\nrun: t.py\n"


BOMBS = {
    "aliases": alias_bomb(),
    "flow": "run: " + "[" * 60_000,
    "flow maps": "run: " + "{a: " * 15_000,
    "sequences": "- " * 32_000,
    "key marks": "? " * 32_000,
    "block maps": "\n".join(" " * i + "a:" for i in range(340)),
    "many values": "run: [" + "a," * 32_000 + "]",
    "many keys": "".join(f"k{i}: {i}\n" for i in range(6_000))[:MAX_BYTES],
    "one key again and again": "k: 1\n" * 13_000,
    "many documents": "---\n" * 16_000,
    "many anchors": "run: [" + "&a a," * 13_000 + "]",
    "one long key": "k" * 65_000 + ": 1",
    "long unclosed quote": 'run: "' + "a\n" * 32_000,
    "escapes": 'x: "' + "\\x41" * 16_000 + '"',
    "long tag": "run: !" + "a" * 65_000 + " b",
    "control characters": "\x01" * 65_000,
    "control characters in lines": "\x01\n" * 32_000,
    "tabs": "\t" * 65_000,
    "colons": ":" * 65_000,
    "long number": "run: t.py\nworkers: " + "9" * 65_000,
    "long priority": "run: t.py\npriority: " + "9" * 65_000,
    "long grace": "run: t.py\ngrace: " + "9" * 65_000 + "s",
    "quotes for the shell": "run: " + "'\"" * 32_000,
    "keys in env": "run: t.py\nenv:\n" + "".join(f"  {i}: x\n" for i in range(4_900)),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_soon(bomb: str) -> None:
    assert len(BOMBS[bomb].encode()) <= MAX_BYTES + 1, "the cap would refuse it, not the parser"
    started = time.monotonic()
    lines = refusal(BOMBS[bomb])
    assert time.monotonic() - started < SOON
    assert len("\n".join(lines)) < 20_000


def test_deep_nesting_is_refused_at_its_depth() -> None:
    assert refusal("run: " + "[" * 65)[0] == "job.yaml:1:69: nested more than 64 deep"


def test_the_largest_file_is_64_kib() -> None:
    text = "run: t.py\n#" + "x" * (MAX_BYTES - 11)
    assert parse_job(text, "job.yaml").run == "t.py"
    assert "more than 64 KiB" in refusal(text + "x")[0]


def test_requires_is_checked_when_the_file_is_read_at_its_line_and_column() -> None:
    lines = refusal("run: t.py\nrequires:\n  torch: '>=2.8'\n  cuda: new\n  pyhton: '3'\n  driver: 570\n")
    assert lines == [
        "job.yaml:4:9: requires.cuda: 'new' is no version condition; write 12.8, >=2.8 or >=2.8,<3",
        "job.yaml:5:3: requires.pyhton: pyhton is nothing that can be required; possible are torch, cuda, cudnn, nccl, driver",
    ]
    assert refusal("run: t.py\nrequires: '>=2'\n")[0].startswith("job.yaml:2:11: requires: must be a mapping")
    assert parse_job("run: t.py\nrequires: {cuda: 12.10}\n", "job.yaml").requires == {"cuda": "12.10"}
    assert parse_job("run: t.py", "job.yaml", ["requires.driver=>=570"]).requires == {"driver": ">=570"}
