"""SECURITY.md names tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROWS = [line for line in (ROOT / "SECURITY.md").read_text().splitlines() if line.startswith("| ")]


def test_every_test_and_file_that_a_measure_is_shown_by_exists() -> None:
    named = [word for row in ROWS for word in re.findall(r"`((?:tests/|test_)[^`]+)`", row)]
    defined = {
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    files = {path.name for path in (ROOT / "tests").rglob("test_*.py")}

    def exists(word: str) -> bool:
        if word.startswith("tests/"):
            return (ROOT / word).exists()
        return word in files or any(
            name == word or (word.endswith("...") and name.startswith(word[:-3])) for name in defined
        )

    assert len(named) > 30
    assert [word for word in named if not exists(word)] == []
