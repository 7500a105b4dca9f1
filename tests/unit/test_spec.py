"""A JobSpec is checked when made, is the same after a trip through JSON, and the schema says what it takes."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator import array
from orchestrator.array import run_id, written
from orchestrator.checks import NAME, SET_BY_ORCH, default_name
from orchestrator.jobfile import JobFileError, parse_job
from orchestrator.schema import job_schema, starter_job
from orchestrator.spec import JobSpec, Workers, problems
from orchestrator.units import format_bandwidth, format_duration, format_size, parse_duration, parse_size

CONTRACT_KEYS = [
    "name",
    "run",
    "workers",
    "device",
    "backend",
    "near",
    "gpu",
    "only",
    "workdir",
    "python",
    "env",
    "secrets",
    "cudnn",
    "requires",
    "checkpoint",
    "time_limit",
    "priority",
    "team",
    "retry",
    "grace",
    "hang",
    "after",
    "array",
    "array_limit",
    "on_degraded",
    "throughput",
    "tags",
]
"""Every key that a job file is promised to have."""

BESIDE = {"array": {"run": "t.py {lr} {seed}"}, "array_limit": {"run": "t.py {lr}", "array": {"lr": [1, 2]}}}
"""What a job needs beside the example of a key."""


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


# Arrays, dependencies, time limits


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


def test_keys_that_no_placeholder_stands_for_are_taken_and_named() -> None:
    assert JobSpec(run="t.py", array={"lr": [0.1]}).array == {"lr": ("0.1",)}
    axes = {"lr": ("0.1",), "seed": ("0", "1")}
    assert array.unused(axes, "t.py {lr}", {"SEED": "{seed}"}) is None
    assert array.unused(axes, "t.py {lr}", {}) == (
        "seed is used nowhere, so runs are alike: write {seed} into run or env"
    )
    assert array.unused(axes, "t.py", {}).startswith("lr, seed are used nowhere")


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (
            {"run": "t.py {lr} {seed} {sed}"},
            "array: {sed} in run or env is none of its keys (lr, seed); plain text is {{sed}}",
        ),
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


def test_an_array_is_the_same_after_a_trip_through_json() -> None:
    spec = an_array(array_limit=4, time_limit="2h")
    assert JobSpec.model_validate(spec.model_dump(mode="json")) == spec
    assert JobSpec.model_validate(spec.element(3).model_dump(mode="json")) == spec.element(3)


def test_a_shape_in_json_is_what_people_write() -> None:
    assert JobSpec(run="t.py", workers="2x8").model_dump(mode="json")["workers"] == "2x8"
    assert JobSpec(run="t.py", workers="16").model_dump(mode="json")["workers"] == 16


# The schema


def test_schema_and_parser_know_the_promised_keys_and_no_other() -> None:
    assert set(job_schema()["properties"]) == set(CONTRACT_KEYS) == set(JobSpec.model_fields)


@pytest.mark.parametrize("key", CONTRACT_KEYS)
def test_every_key_has_a_description_and_examples_that_the_schema_takes(key: str) -> None:
    schema = job_schema()["properties"][key]
    assert schema["description"].endswith(".")
    for example in schema["examples"]:
        jsonschema.Draft7Validator(job_schema()).validate({"run": "t.py", key: example})


@pytest.mark.parametrize("key", JobSpec.model_fields)
def test_the_parser_takes_the_schemas_examples(key: str) -> None:
    for example in job_schema()["properties"][key]["examples"]:
        parse_job(json.dumps({"run": "t.py"} | BESIDE.get(key, {}) | {key: example}), "job.json")


def test_the_schema_fits_both_drafts_that_editors_know() -> None:
    jsonschema.Draft7Validator.check_schema(job_schema())
    jsonschema.Draft202012Validator.check_schema(job_schema())


@pytest.mark.parametrize(
    "text",
    [
        "workers: 2x8",
        "workers: 16",
        "workers: 2y8",
        "workers: 0",
        "workers: [2]",
        "device: gpu",
        "device: cpu",
        "env: {A: 1}",
        "env: {A: b}",
        "env: {A: true}",
        "env: {RANK: 1}",
        "env: {RANKS: 1}",
        "env: {ORCH_A: 1}",
        "env: {1A: b}",
        "env: {A: [b]}",
        "env: A",
        "secrets: [A]",
        "secrets: A",
        "secrets: [RANK]",
        "python: /bin/python",
        "python: python",
        "grace: 30s",
        "grace: 30",
        "grace: '30'",
        "priority: 10",
        "priority: 1001",
        "priority: x",
        "team: a",
        "team: 'a b'",
        "tags: {a: 1}",
        "tags: {'a b': 1}",
        "name: a",
        "name: A",
        "name: 7",
        "workrs: 2",
    ],
)
def test_schema_and_parser_agree(text: str) -> None:
    text = f"run: t.py\n{text}\n"
    valid = jsonschema.Draft7Validator(job_schema()).is_valid(yaml.safe_load(text))
    try:
        parse_job(text, "job.yaml")
        parsed = True
    except JobFileError:
        parsed = False
    assert valid == parsed


def test_the_starter_is_a_job_whose_every_line_can_be_uncommented() -> None:
    text = starter_job("src/my_train.py --note 'a: #b'")
    spec = parse_job(text, "job.yaml")
    assert (spec.name, spec.argv) == ("my-train", ["src/my_train.py", "--note", "a: #b"])
    uncommented = re.sub(r"(?m)^# (?=[a-z_]+:)", "", starter_job("train.py --lr {lr} --seed {seed}"))
    assert parse_job(uncommented, "job.yaml").secrets == ("WANDB_API_KEY",)
    assert all(re.search(rf"(?m)^(# )?{key}:", text) for key in JobSpec.model_fields)


# Units


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("12h", 43200), ("2d", 172800), ("0.5h", 1800)]
)
def test_durations_have_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["30", "1h30m", "30 s", "30S", "-1s", "1e3s", "s", "", "٣s", "30s\n"])
def test_what_is_no_duration_is_refused_with_the_units(text: str) -> None:
    with pytest.raises(ValueError, match=r"unit.*'30m'|\(s, m, h or d\)"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["64", "64M", "64 MiB", "1.5MiB", "mib", "", "64mib"])
def test_what_is_no_size_is_refused_with_the_units(text: str) -> None:
    with pytest.raises(ValueError, match="MiB"):
        parse_size(text)


@given(st.integers(0, 10**7))
def test_a_duration_and_a_size_read_back_as_they_are_shown(number: int) -> None:
    assert parse_duration(format_duration(number)) == number
    assert parse_size(format_size(number)) == number


@pytest.mark.parametrize(("gbps", "text"), [(231.04, "231 GB/s"), (9.96, "10 GB/s"), (0.487, "0.49 GB/s")])
def test_a_small_bandwidth_is_not_rounded_to_nothing(gbps: float, text: str) -> None:
    assert format_bandwidth(gbps) == text


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
