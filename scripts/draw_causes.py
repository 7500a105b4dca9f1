"""The causes of failures as tables: orchestrator/health's rules and kinds drawn into docs/failures.md.

python scripts/draw_causes.py            # writes the tables between their markers
"""

from __future__ import annotations

from pathlib import Path

from orchestrator.health.failure import KINDS
from orchestrator.health.failure_table import RULES, Weight

DOCUMENT = Path(__file__).parents[1] / "docs" / "failures.md"
WEIGHTS = {
    Weight.OWN: "its own",
    Weight.WEAK: "its own, unless another has a better",
    Weight.SYMPTOM: "of another's end",
}


def rules() -> str:
    """The rules in their order."""
    rows = ["| # | a rank's end | kind | cause | the reason is |", "|---|---|---|---|---|"]
    for number, rule in enumerate(RULES, 1):
        kind = f"`{rule.kind}`" if rule.kind in KINDS else ""
        cause = rule.cause or KINDS[rule.kind][0]
        rows.append(f"| {number} | {rule.name} | {kind} | {cause} | {WEIGHTS[rule.weight]} |")
    return "\n".join(rows)


def kinds() -> str:
    """The kinds, with whose fault they are."""
    rows = ["| kind | cause | means |", "|---|---|---|"]
    rows += [f"| `{kind}` | {cause} | {meaning} |" for kind, (cause, meaning) in KINDS.items()]
    return "\n".join(rows)


TABLES = {"kinds": kinds, "rules": rules}


def redrawn(text: str) -> str:
    """The document with the tables of now. Raises ValueError where a marker is missing."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}: made by scripts/draw_causes.py -->", f"<!-- end of {name} -->"
        before, found, rest = text.partition(begin)
        _, ended, after = rest.partition(end)
        if not found or not ended:
            raise ValueError(f"{DOCUMENT.name} has no place for the table: {begin} ... {end}")
        text = f"{before}{begin}\n{table()}\n{end}{after}"
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(redrawn(DOCUMENT.read_text()))
