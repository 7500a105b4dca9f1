"""The pages on the job file and the configuration name every key, and their examples are valid."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestrator.config import load_config
from orchestrator.config_keys import KEYS
from orchestrator.jobfile import parse_job
from orchestrator.spec import JobSpec

DOCS = Path(__file__).resolve().parents[2] / "docs"
JOB_FILE = (DOCS / "job-file.md").read_text()
CONFIGURATION = (DOCS / "configuration.md").read_text()


def rows(page: str) -> list[str]:
    return re.findall(r"(?m)^\| `([a-z_.]+)` \|", page)


def examples(page: str) -> list[str]:
    return re.findall(r"(?s)```yaml\n(.*?)```", page)


def test_every_key_of_a_job_file_has_its_row() -> None:
    assert sorted(rows(JOB_FILE)) == sorted(JobSpec.model_fields)


def test_every_key_of_the_configuration_has_its_row() -> None:
    assert rows(CONFIGURATION) == list(KEYS)


@pytest.mark.parametrize("text", examples(JOB_FILE))
def test_the_jobs_shown_are_valid(text: str) -> None:
    assert parse_job(text, "job.yaml").name


def test_the_configurations_shown_are_valid(tmp_path: Path) -> None:
    cluster, user = examples(CONFIGURATION)
    (tmp_path / "cluster.yaml").write_text(cluster)
    (tmp_path / "orch").mkdir()
    (tmp_path / "orch" / "config.yaml").write_text(user)
    config = load_config({"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}, tmp_path, {})
    assert (config.address, config.lease, config.local_slots) == ("10.0.0.1:6379", 60, 4)
