"""A job file gives a JobSpec, and anything at all gives one or complaints."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.jobfile import JobFileError, load_job, parse_job
from orchestrator.spec import JobSpec

# What is right


def test_the_smallest_job() -> None:
    spec = parse_job("run: train.py\nworkers: 2x8\n", "job.yaml")
    assert (spec.name, spec.argv, spec.workers.nodes, spec.workers.total) == ("train", ["train.py"], 2, 16)


def test_every_key_that_works_now() -> None:
    text = """
name: resnet50
run: train.py --epochs 90 --note 'a b'
workers: 16
device: cuda
backend: nccl
workdir: ..
python: /venv/bin/python
env: {OMP_NUM_THREADS: "4"}
secrets: [WANDB_API_KEY]
checkpoint: ckpt
priority: -10
team: vision
grace: 1.5m
tags: {sweep: a}
"""
    assert parse_job(text, "job.yaml") == JobSpec(
        name="resnet50",
        run="train.py --epochs 90 --note 'a b'",
        workers=16,
        device="cuda",
        backend="nccl",
        workdir="..",
        python="/venv/bin/python",
        env={"OMP_NUM_THREADS": "4"},
        secrets=("WANDB_API_KEY",),
        checkpoint="ckpt",
        priority=-10,
        team="vision",
        grace=90.0,
        tags={"sweep": "a"},
    )


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


def test_overrides_win_over_the_file() -> None:
    overrides = ["workers=2x8", "env.LR=0.1", "env.NEW=a b", "tags={a: b}", "secrets=[A, B]", "tags.x.y=1", "name='n'"]
    spec = parse_job("run: t.py\nworkers: nonsense\nenv: {LR: 1, OLD: 1}\n", "job.yaml", overrides)
    assert str(spec.workers) == "2x8"
    assert spec.env == {"LR": "0.1", "OLD": "1", "NEW": "a b"}
    assert spec.tags == {"a": "b", "x.y": "1"}
    assert (spec.secrets, spec.name) == (("A", "B"), "n")


def test_an_override_may_set_an_empty_text_and_hold_an_equals_sign() -> None:
    assert parse_job("run: t.py", "job.yaml", ["env.A=", "env.B=c=d"]).env == {"A": "", "B": "c=d"}


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
