"""A job file gives a JobSpec, or all its mistakes with their places; soon, and whatever it holds."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.document import MAX_BYTES
from orchestrator.jobfile import JobFileError, load_job, parse_job
from orchestrator.spec import JobSpec

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


# What is right


def test_the_smallest_job() -> None:
    spec = parse_job("run: train.py\nworkers: 2x8\n", "job.yaml")
    assert (spec.name, spec.argv, spec.workers.nodes, spec.workers.total) == ("train", ["train.py"], 2, 16)


EVERY_KEY = """\
name: resnet50
run: train.py --epochs 90
workers: 2x8
device: auto
backend: auto
near: leaf
gpu: H100
workdir: .
python: /venv/bin/python
env: {OMP_NUM_THREADS: "4"}
secrets: [WANDB_API_KEY]
cudnn: {benchmark: true, deterministic: false}
requires: {torch: ">=2.8", cuda: "12.8", cudnn: ">=9", nccl: ">=2.27", driver: ">=570"}
checkpoint: ckpt
time_limit: 12h
priority: 10
team: vision
retry: {infra: 20, user: 0}
grace: 30s
after: [41, pretrain]
array: {lr: [0.1, 0.01], seed: 0..9}
on_degraded: warn
throughput: {samples: "samples/s: ([0-9.]+)"}
tags: {sweep: a}
"""


def test_a_job_with_every_key_is_taken_as_it_is_written() -> None:
    spec = parse_job(EVERY_KEY, "job.yaml")
    assert (spec.name, spec.argv) == ("resnet50", ["train.py", "--epochs", "90"])
    assert (spec.workers.nodes, spec.workers.total, spec.gpu) == (2, 16, ("H100",))
    assert (spec.near and spec.near.level, spec.device, spec.backend) == ("leaf", "auto", "auto")
    assert (spec.workdir, spec.python, spec.checkpoint, spec.team) == (".", "/venv/bin/python", "ckpt", "vision")
    assert (spec.env, spec.secrets, spec.tags) == ({"OMP_NUM_THREADS": "4"}, ("WANDB_API_KEY",), {"sweep": "a"})
    assert (spec.cudnn.benchmark, spec.cudnn.deterministic) == (True, False)
    assert set(spec.requires) == {"torch", "cuda", "cudnn", "nccl", "driver"}
    assert (spec.time_limit, spec.grace, spec.priority) == (12 * 3600, 30, 10)
    assert (spec.retry.infra, spec.retry.user, spec.on_degraded) == (20, 0, "warn")
    assert spec.after == (41, "pretrain")
    assert {key: len(values) for key, values in (spec.array or {}).items()} == {"lr": 2, "seed": 10}
    assert set(spec.throughput) == {"samples"}


@pytest.mark.parametrize(
    "written", ["1e-3", "no", "012", "0x1F", "12:30:00", "2026-11-23", "1_000", "true", "Off", ".5", "=", "NaN"]
)
def test_an_environment_value_is_the_text_as_written(written: str) -> None:
    assert parse_job(f"run: t.py\nenv: {{A: {written}}}", "job.yaml").env == {"A": written}


@pytest.mark.parametrize("prefix", ["", "\ufeff", "%YAML 1.2\n---\n", "# comment\n\n", "---\n"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_marks_directives_and_line_ends_of_other_systems_are_read(tmp_path: Path, prefix: str, end: str) -> None:
    (tmp_path / "t.py").touch()
    path = tmp_path / "job.yaml"
    path.write_bytes((prefix + "run: t.py\nenv: {A: naïve}\n").replace("\n", end).encode())
    assert load_job(path).env == {"A": "naïve"}


def test_a_run_over_several_lines_is_one_command() -> None:
    text = "run: |\n  train.py\n    --note 'two words'\n    --epochs 90\n"
    assert parse_job(text, "job.yaml").run == "train.py --note 'two words' --epochs 90"


def test_a_job_from_standard_input_runs_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"run: t.py\n")))
    assert load_job("-").run == "t.py"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"run: t.py\nnam: x\n")))
    with pytest.raises(JobFileError, match=r"^<stdin>:2:1: nam: unknown key\. Did you mean 'name'\?$"):
        load_job("-")


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
        "job.yaml:4:8: array: {lr} in run or env is none of its keys (seed); plain text is {{lr}}",
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


def test_overrides_win_over_the_file() -> None:
    overrides = ["workers=2x8", "env.LR=0.1", "env.NEW=a b", "tags={a: b}", "secrets=[A, B]", "tags.x.y=1", "name='n'"]
    spec = parse_job("run: t.py\nworkers: nonsense\nenv: {LR: 1, OLD: 1}\n", "job.yaml", overrides)
    assert str(spec.workers) == "2x8"
    assert spec.env == {"LR": "0.1", "OLD": "1", "NEW": "a b"}
    assert spec.tags == {"a": "b", "x.y": "1"}
    assert (spec.secrets, spec.name) == (("A", "B"), "n")


def test_an_override_may_set_an_empty_text_and_hold_an_equals_sign() -> None:
    assert parse_job("run: t.py", "job.yaml", ["env.A=", "env.B=c=d"]).env == {"A": "", "B": "c=d"}


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


# Anything

SCRAPS = [
    "run",
    "env",
    "tags",
    "workers",
    "t.py",
    "2x8",
    ":",
    "-",
    "&",
    "&a",
    "*a",
    "!",
    "!!str",
    "[",
    "]",
    "{",
    "}",
    ",",
    "'",
    '"',
    "?",
    "|",
    ">",
    "#",
    "~",
    "---",
    "...",
    "%",
    "@",
    "`",
    "<<",
    "\\",
]


def is_an_answer(read: Callable[[], object]) -> bool:
    """A JobSpec, or complaints that can be printed; anything else that `read` raises fails the test."""
    try:
        return isinstance(read(), JobSpec)
    except JobFileError as error:
        return bool(error.complaints) and all(line.isprintable() for line in str(error).split("\n"))


@settings(max_examples=150)
@given(st.text(max_size=300))
def test_any_text_gives_a_job_or_complaints(text: str) -> None:
    assert is_an_answer(lambda: parse_job(text, "job.yaml"))


@settings(max_examples=150)
@given(st.lists(st.sampled_from([*SCRAPS, ": ", "- ", "\n", "  ", "\t"]), max_size=40))
def test_any_scraps_of_yaml_give_a_job_or_complaints(scraps: list[str]) -> None:
    assert is_an_answer(lambda: parse_job("".join(scraps), "job.yaml"))


@settings(max_examples=150)
@given(st.sampled_from([*JobSpec.model_fields, "near", "env.A", "x", ""]), st.text(max_size=20))
def test_any_override_gives_a_job_or_complaints(key: str, value: str) -> None:
    assert is_an_answer(lambda: parse_job("run: t.py", "job.yaml", [f"{key}={value}"]))


@settings(max_examples=150)
@given(st.sampled_from([*JobSpec.model_fields]), st.text(max_size=20))
def test_any_value_of_a_known_key_gives_a_job_or_complaints(key: str, value: str) -> None:
    assert is_an_answer(lambda: parse_job(f"{key}: {json.dumps(value)}", "job.yaml"))


@settings(max_examples=100)
@given(data=st.binary(max_size=200))
def test_any_bytes_give_a_job_or_complaints(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(data)
    assert is_an_answer(lambda: load_job(path))


def test_importing_it_loads_nothing_heavy() -> None:
    code = (
        "import sys, orchestrator.jobfile, orchestrator.config;"
        "print([m for m in ('ray', 'torch', 'sqlalchemy', 'yaml', 'click') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_requires_is_checked_when_the_file_is_read_at_its_line_and_column() -> None:
    lines = refusal("run: t.py\nrequires:\n  torch: '>=2.8'\n  cuda: new\n  pyhton: '3'\n  driver: 570\n")
    assert lines == [
        "job.yaml:4:9: requires.cuda: 'new' is no version condition; write 12.8, >=2.8 or >=2.8,<3",
        "job.yaml:5:3: requires.pyhton: pyhton is nothing that can be required; possible are torch, cuda, cudnn, nccl, driver",
    ]
    assert refusal("run: t.py\nrequires: '>=2'\n")[0].startswith("job.yaml:2:11: requires: must be a mapping")
    assert parse_job("run: t.py\nrequires: {cuda: 12.10}\n", "job.yaml").requires == {"cuda": "12.10"}
    assert parse_job("run: t.py", "job.yaml", ["requires.driver=>=570"]).requires == {"driver": ">=570"}
