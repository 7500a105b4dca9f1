"""An array stands for its runs, and what cannot be said of it, of dependencies and of time limits is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.array import run_id, written
from orchestrator.spec import JobSpec
from orchestrator.spec_problems import problems


def an_array(run: str = "t.py {lr} {seed}", **values: Any) -> JobSpec:
    return JobSpec.model_validate({"run": run, "array": {"lr": [0.1, "1e-3"], "seed": "0..2"}} | values)


def test_an_array_has_a_run_for_each_combination_the_last_key_counting_fastest() -> None:
    spec = an_array(env={"SEED": "s{seed}"})
    assert [spec.element(index).argv for index in range(6)] == [
        ["t.py", lr, seed] for lr in ("0.1", "1e-3") for seed in "012"
    ]
    assert spec.element(4).env == {"SEED": "s1"}
    assert (spec.element(4).array, spec.element(4).name) == (None, spec.name)
    with pytest.raises(IndexError):
        spec.element(6)


def test_a_value_is_part_of_one_argument_and_double_braces_are_plain_text() -> None:
    spec = JobSpec(run="t.py --note={x} '{{x}}' '{\"a\": 1}'", array={"x": ["two words", "a'b"]})
    assert spec.element(0).argv == ["t.py", "--note=two words", "{x}", '{"a": 1}']
    assert spec.element(1).argv[1] == "--note=a'b"


@given(st.lists(st.from_regex(r"[ -~]{1,8}", fullmatch=True), min_size=1, max_size=5, unique=True))
def test_whatever_the_values_are_they_reach_the_script_as_they_are(values: list[str]) -> None:
    spec = JobSpec(run="t.py {v}", array={"v": values})
    assert [spec.element(index).argv[1] for index in range(len(values))] == values


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (
            {"run": "t.py {lr} {seed} {sed}"},
            "array: {sed} in run or env is none of its keys (lr, seed); plain text is {{sed}}",
        ),
        ({"run": "t.py {lr}"}, "array: seed is used nowhere: write {seed} into run or env"),
        ({"run": "t.py"}, "array: lr, seed are used nowhere: write {lr}, {seed} into run or env"),
        ({"run": "t.py", "array": {}}, "array: is empty: it needs one key at least, such as {seed: 0..9}"),
        (
            {"array": {"lr": 5, "seed": [1]}},
            "array.lr: must be a list, such as [0.1, 0.01], or a range, such as 0..9, not '5'",
        ),
        ({"array": {"lr": [], "seed": [1]}}, "array.lr: is empty: it needs one value at least"),
        ({"array": {"lr": [1, 1], "seed": [1]}}, "array.lr: has '1' twice"),
        ({"array": {"lr": "9..0", "seed": [1]}}, "array.lr: '9..0' must go from the smaller to the larger number"),
        (
            {"array": {"lr": "0..10000", "seed": [1]}},
            "array.lr: '0..10000' has 10,001 values; an array may have 10,000 runs",
        ),
        (
            {"array": {"lr": "0..99", "seed": "0..100"}},
            "array: has 10,100 runs (100 x 101); an array may have 10,000",
        ),
        ({"array": {"lr": [[1]], "seed": [1]}}, "array.lr: must hold plain values, not a list"),
        (
            {"run": "{lr}.py {seed}"},
            "array: cannot choose the script: '{lr}.py' has a placeholder in it",
        ),
        (
            {"checkpoint": "/shared/ckpt"},
            "array: its runs would all write the same absolute checkpoint folder: name one without a leading /",
        ),
        ({"array_limit": 0}, "array_limit: must be 1 or more, not 0"),
        (
            {"run": "t.py", "array": None, "array_limit": 2},
            "array_limit: limits the runs of an array, and there is no array",
        ),
        (
            {"after": ["A b"]},
            "after.0: 'A b' must be a run's id or name, such as 41 or pretrain, or of an array sweep[] or sweep[3]",
        ),
        ({"time_limit": "0s"}, "time_limit: must be more than 0s and at most 366d"),
        ({"time_limit": "12"}, "time_limit: has no unit. Did you mean '12s' (seconds) or '12m' (minutes)?"),
    ],
)
def test_an_array_a_dependency_or_a_limit_that_cannot_be_is_refused(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError) as caught:
        an_array(**values)
    assert [str(problem) for problem in problems(caught.value)] == [complaint]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (["0", "1", "2"], "0..2"),
        (["-1", "0", "1"], "-1..1"),
        (["0", "1"], "[0, 1]"),
        (["1", "01", "2"], "[1, 01, 2]"),
        (["0.1", "1e-3"], "[0.1, 1e-3]"),
    ],
)
def test_values_are_written_as_people_write_them(values: list[str], text: str) -> None:
    assert written(values) == text


def test_what_a_job_is_to_follow_is_ids_and_names() -> None:
    assert JobSpec(run="t.py", after="41").after == (41,)
    assert JobSpec(run="t.py", after=[41, "pretrain", "sweep[3]", "sweep[]", "41[]"]).after == (
        41,
        "pretrain",
        "sweep[3]",
        "sweep[]",
        "41[]",
    )


def test_an_array_is_the_same_after_a_trip_through_json() -> None:
    spec = an_array(array_limit=4, time_limit="2h")
    assert JobSpec.model_validate(spec.model_dump(mode="json")) == spec
    assert JobSpec.model_validate(spec.element(3).model_dump(mode="json")) == spec.element(3)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("41", 41),
        ("0", 0),
        ("9" * 18, int("9" * 18)),
        ("9" * 19, "9" * 19),
        ("9" * 5000, "9" * 5000),
        ("²", "²"),
        ("٣", "٣"),
        ("-1", "-1"),
    ],
    ids=lambda value: str(value)[:8],
)
def test_what_no_database_has_as_an_id_is_taken_for_a_name(text: str, meant: int | str) -> None:
    assert run_id(text) == meant
