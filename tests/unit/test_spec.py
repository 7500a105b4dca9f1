"""A JobSpec is checked when made, and is the same after a trip through JSON."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.checks import NAME, SET_BY_ORCH, default_name
from orchestrator.spec import JobSpec
from orchestrator.spec_problems import problems
from orchestrator.spec_values import Workers


def wrong(**values: Any) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate({"run": "t.py"} | values)
    return [str(problem) for problem in problems(caught.value)]


@pytest.mark.parametrize(
    ("workers", "total", "nodes", "text"),
    [
        ("2x8", 16, 2, "2x8"),
        ("16", 16, None, "16"),
        (16, 16, None, "16"),
        ("1x1", 1, 1, "1x1"),
        ("100000", 100_000, None, "100000"),
    ],
)
def test_workers_are_a_shape_or_a_total(workers: Any, total: int, nodes: int | None, text: str) -> None:
    made = JobSpec(run="t.py", workers=workers).workers
    assert (made.total, made.nodes, str(made)) == (total, nodes, text)


@pytest.mark.parametrize(
    "workers",
    [
        "0",
        "0x8",
        "2x0",
        "-1",
        "2 x 8",
        "2X8",
        "x8",
        "2x",
        "1e3",
        "1.0",
        "１",
        "100001",
        "1000x1000",
        "",
        True,
        None,
        [2, 8],
    ],
)
def test_other_workers_are_refused_with_what_was_given(workers: Any) -> None:
    (message,) = wrong(workers=workers)
    assert re.match("workers: (must be|0 workers|[0-9]+ workers cannot)", message)


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        ("", "is empty"),
        ("'unclosed", "no closing quotation"),
        ("/abs/t.py", "is an absolute path"),
        ("../t.py", "leads out of workdir"),
        ("a/../../t.py", "leads out of workdir"),
        (".", "leads out of workdir"),
        ("python t.py", "name the script itself"),
        ("/usr/bin/python3.11 t.py", "name the script itself"),
        ("torchrun t.py", "name the script itself"),
        ("-m package", "must be the script's file"),
        ("t.py \0", "U+0000"),
        ("t.py '\x1b[2J'", "U+001B"),
        ("t.py 'a\nb'", "U+000A"),
        ("t\u202e.py", "U+202E"),
    ],
)
def test_run_must_be_a_script_of_workdir_and_clean_arguments(run: str, reason: str) -> None:
    (message,) = wrong(run=run)
    assert message.startswith("run: ")
    assert reason in message


def test_run_is_never_given_to_a_shell() -> None:
    assert JobSpec(run="./t.py '$HOME' a&&b \"c d\" # e").argv == ["./t.py", "$HOME", "a&&b", "c d", "#", "e"]


@pytest.mark.parametrize(
    ("run", "name"),
    [
        ("train.py", "train"),
        ("src/Train_GPT.v2.py --x", "train-gpt-v2"),
        ("обучение.py", "job"),
        ("_.py", "job"),
        ("'unclosed", "job"),
        ("", "job"),
        ("a" * 100 + ".py", "a" * 63),
    ],
)
def test_a_run_without_a_name_gets_its_scripts(run: str, name: str) -> None:
    assert default_name(run) == name


@given(st.text(max_size=80))
def test_a_default_name_is_a_valid_name(run: str) -> None:
    assert NAME.fullmatch(default_name(run))


@pytest.mark.parametrize("name", ["a\n", "a/b", "../a", "", "A", "ä", "-a", "a" * 64])
def test_names_that_do_not_fit_are_refused(name: str) -> None:
    assert len(wrong(name=name)) == 1


@pytest.mark.parametrize(
    "name", [*sorted(SET_BY_ORCH), "ORCH_RUN", "ORCH_X", "RAY_ADDRESS", "1A", "A-B", "A=B", "", "Ä", "A\n"]
)
def test_variables_that_orch_sets_or_no_kernel_takes_are_refused_in_env_and_secrets(name: str) -> None:
    assert len(wrong(env={name: "x"})) == 1
    assert len(wrong(secrets=[name])) == 1


def test_a_secret_is_named_once_and_is_not_in_env() -> None:
    assert wrong(secrets=["A", "B"], env={"A": "x"})[0].startswith("secrets: A is in env too")
    assert wrong(secrets=["A", "A"]) == ["secrets: A is named twice"]


@pytest.mark.parametrize(
    "values",
    [
        {"backend": "nccl", "device": "cpu"},
        {"python": "bin/python"},
        {"checkpoint": "../x"},
        {"checkpoint": "/a/../b"},
        {"checkpoint": "/"},
        {"checkpoint": "."},
        {"workdir": ""},
        {"workdir": "a\0b"},
        {"team": "a b"},
        {"team": "\x1b"},
        {"tags": {"a=b": "c"}},
        {"tags": {"a": "\x1b"}},
        {"tags": {"a": "x" * 257}},
        {"tags": {f"t{i}": "x" for i in range(65)}},
        {"env": {"A": "\x00"}},
        {"priority": 1001},
        {"priority": "-1001"},
        {"priority": 1.5},
        {"priority": True},
        {"grace": "2h"},
        {"grace": "-1s"},
        {"grace": -1.0},
        {"grace": float("nan")},
        {"grace": float("inf")},
        {"grace": True},
        {"near": "leaf!~30m"},
        {"near": "leaf~30"},
        {"near": "../leaf"},
        {"gpu": ["H100", ""]},
        {"unknown": 1},
    ],
    ids=str,
)
def test_values_that_could_only_fail_later_are_refused_now(values: dict[str, Any]) -> None:
    (message,) = wrong(**values)
    assert message.isprintable()


def test_an_environment_value_may_have_lines() -> None:
    assert JobSpec(run="t.py", env={"A": "x\n\ty"}).env == {"A": "x\n\ty"}


@settings(max_examples=60)
@given(
    st.builds(
        JobSpec,
        run=st.sampled_from(["t.py", "a/b.py --x 'y z'"]),
        workers=st.one_of(st.integers(1, 100), st.sampled_from(["2x8", "4x1"])).map(Workers.model_validate),
        grace=st.floats(0, 3600),
        priority=st.integers(-1000, 1000),
        env=st.dictionaries(
            st.from_regex(r"X[A-Za-z0-9_]{0,8}", fullmatch=True), st.from_regex(r"[ -~]{0,20}", fullmatch=True)
        ),
        secrets=st.sampled_from([(), ("A",), ("A", "B")]),
        tags=st.sampled_from([{}, {"sweep": "a"}]),
        time_limit=st.sampled_from([None, 0.5, 7200.0]),
        after=st.sampled_from([(), (41,), (41, "pretrain", "sweep[3]")]),
    )
)
def test_a_spec_is_the_same_after_a_trip_through_json(spec: JobSpec) -> None:
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec
    assert JobSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_a_shape_in_json_is_what_people_write() -> None:
    assert JobSpec(run="t.py", workers="2x8").model_dump(mode="json")["workers"] == "2x8"
    assert JobSpec(run="t.py", workers="16").model_dump(mode="json")["workers"] == 16
