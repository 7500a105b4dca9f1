"""Writes the table of faults in docs/reliability.md from the results that `make faults` keeps.

python scripts/reliability_table.py RESULTS...   files of JSON lines (pytest --fault-results); of each test the last line counts
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: made by scripts/reliability_table.py -->", "<!-- end of faults -->"
TITLES = ("#", "fault", "how it is made", "what may happen", "noticed after", "recovered after", "work lost", "tests")

sys.path.insert(0, str(ROOT / "tests" / "faults"))
from rows import ROWS, Row  # noqa: E402

Result = dict[str, Any]


def read(files: Iterable[Path]) -> list[Result]:
    """The last result of each test."""
    lines = [json.loads(line) for file in files if file.exists() for line in file.read_text().splitlines()]
    return list({line["test"]: line for line in lines}.values())


def table(results: Sequence[Result]) -> str:
    rows = [_line(row, [result for result in results if row.number in result["rows"]]) for row in ROWS.values()]
    lines = [TITLES, ["---"] * len(TITLES), *rows]
    drawn = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    places = sorted({(result["date"], result["machine"]) for result in results if result["outcome"] == "passed"})
    measured = "\n".join(f"- {date}: {machine}" for date, machine in places)
    return f"{drawn}\n\nMeasured:\n\n{measured or '- nothing yet'}"


def _line(row: Row, results: Sequence[Result]) -> list[str]:
    passed = [result for result in results if result["outcome"] == "passed"]
    lost = [_span(passed, "lost_steps", "steps"), _span(passed, "lost_gpu_s", "GPU-s")]
    return [
        str(row.number),
        row.fault,
        row.injection,
        row.outcome,
        _span(passed, "detected_s", "s"),
        _span(passed, "recovered_s", "s"),
        ", ".join(part for part in lost if part),
        _state(row, results),
    ]


def _state(row: Row, results: Sequence[Result]) -> str:
    """How the row's tests went, the worst first."""
    of = {word: [r for r in results if r["outcome"] == word] for word in ("failed", "skipped", "passed")}
    said = [f"**failed**: {_name(result)}" for result in of["failed"]]
    if of["passed"]:
        said.append(f"passed ({len(of['passed'])})" if len(of["passed"]) > 1 else "passed")
    said += sorted({f"not injectable here: {result['why']}" for result in of["skipped"]})
    if row.not_here:
        said.append(row.not_here)
    said += sorted({note for result in of["passed"] if (note := result.get("note"))})
    return "; ".join(said) if results else "; ".join(["not run", *said])


def _name(result: Result) -> str:
    return f"`{result['test'].rpartition('::')[2]}`"


def _span(results: Sequence[Result], key: str, unit: str) -> str:
    """The least and the greatest of what the tests measured."""
    values = sorted(result[key] for result in results if key in result)
    if not values:
        return ""
    low, high = (f"{value:.1f}".removesuffix(".0") for value in (values[0], values[-1]))
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"


def write(results: Sequence[Result]) -> None:
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{after}")


if __name__ == "__main__":
    write(read(map(Path, sys.argv[1:])))
