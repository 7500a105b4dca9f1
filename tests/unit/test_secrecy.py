"""What looks like a secret in a job, and what only sounds like one."""

from __future__ import annotations

import pytest

from orchestrator.secrecy import exposed

GITHUB = "ghp_" + "a1" * 18


@pytest.mark.parametrize(
    ("env", "argv"),
    [
        ({"WANDB_API_KEY": "0123456789abcdef"}, []),
        ({"HF_TOKEN": "hf_abcdef"}, []),
        ({"AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG"}, []),
        ({"DB_PASSWORD": "hunter2"}, []),
        ({"X": GITHUB}, []),
        ({"URL": "postgresql://ana:hunter2@db/x"}, []),
        ({"KEY": "-----BEGIN RSA PRIVATE KEY-----\nMIIE"}, []),
        ({}, ["train.py", "--api-key", "0123456789abcdef"]),
        ({}, ["train.py", "--wandb-api-key=0123456789abcdef"]),
        ({}, ["train.py", GITHUB]),
    ],
    ids=str,
)
def test_a_secret_in_the_open_is_named_and_not_repeated(env: dict[str, str], argv: list[str]) -> None:
    (said,) = exposed(env, argv)
    assert "looks like a secret" in said
    assert not [value for value in (*env.values(), *argv) if value in said and not value.startswith("--")]


@pytest.mark.parametrize(
    ("env", "argv"),
    [
        ({"TOKENIZERS_PARALLELISM": "false", "MAX_TOKEN": "2048", "PAD_TOKEN": "<pad>"}, []),
        ({"GOOGLE_APPLICATION_CREDENTIALS": "/etc/gcp.json", "HF_TOKEN": ""}, []),
        ({"KEY": "value", "SEED": "1234567", "PASSES": "1234567"}, []),
        ({}, ["train.py", "--tokens", "100000", "--bos-token", "<s>", "--token", "--lr", "0.1"]),
        ({}, ["train.py", "--data", "https://example.org/a:b", "--password-file", "secret.txt"]),
    ],
    ids=str,
)
def test_what_only_sounds_like_one_is_left_in_peace(env: dict[str, str], argv: list[str]) -> None:
    assert list(exposed(env, argv)) == []
