"""What in a job looks like a secret that is kept where all can read it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest

_NAMES = re.compile(
    r"(^|[_-])(API_?KEY|(SECRET|ACCESS|PRIVATE|AUTH)_?KEY|(AUTH|ACCESS|BEARER|HUB|HF)?_?TOKEN|SECRET|PASS(WORD|WD|PHRASE)|CREDENTIALS?)$"
)
_VALUES = re.compile(
    r"\b(gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|hf_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16}|sk-[A-Za-z0-9_-]{20,}|xox[abprs]-[\w-]{10,}"
    r"|glpat-[\w-]{20,})|-----BEGIN [A-Z ]*PRIVATE KEY-----|\w+://[^/\s:@]+:[^/\s@]+@"
)
"""What GitHub, Hugging Face, AWS, OpenAI, Slack and GitLab issue, keys in PEM, and passwords in URLs."""


def exposed(env: Mapping[str, str], argv: Iterable[str]) -> Iterator[str]:
    """Where a secret seems to stand in a job's `env` and `run`, in words that do not repeat it."""
    for name, value in env.items():
        if _VALUES.search(value) or (_NAMES.search(name.upper()) and _could_be(value)):
            yield f"env: {name} looks like a secret"
    words = list(argv)
    for word, after in zip_longest(words, words[1:], fillvalue=""):
        option, equals, value = word.partition("=")
        named = option.startswith("--") and _NAMES.search(option[2:].upper().replace("-", "_")) is not None
        given = value if equals else "" if after.startswith("-") else after
        if _VALUES.search(word) or (named and _could_be(given)):
            yield f"run: {option if option.startswith('--') else 'an argument'} looks like a secret"


def _could_be(value: str) -> bool:
    """Not a number, a switch, a path, a placeholder of an array."""
    return len(value) >= 6 and not re.fullmatch(r"[0-9.e+-]+|(?i:true|false|none|null)|[~.]?/.*|\{\w+\}", value)
