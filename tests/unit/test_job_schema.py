"""The schema says what a job file takes: every key with examples, and nothing that the parser refuses."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest
import yaml

from orchestrator.jobfile import JobFileError, parse_job
from orchestrator.schema import job_schema, starter_job
from orchestrator.spec import JobSpec

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
