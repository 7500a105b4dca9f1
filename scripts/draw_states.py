"""The states of a run as a diagram: orchestrator/scheduling/lifecycle.py drawn into docs/architecture.md.

python scripts/draw_states.py            # writes the diagram between its two markers
"""

from __future__ import annotations

from pathlib import Path

from orchestrator.scheduling.lifecycle import TERMINAL, TRANSITIONS, Event, State

DOCUMENT = Path(__file__).parents[1] / "docs" / "architecture.md"
BEGIN, END = "<!-- states: made by scripts/draw_states.py -->", "<!-- end of states -->"


def diagram() -> str:
    """A Mermaid state diagram with one arrow for each pair of states, all events that take it written on it."""
    arrows: dict[tuple[State, State], list[Event]] = {}
    for state, moves in TRANSITIONS.items():
        for event, target in moves.items():
            arrows.setdefault((state, target), []).append(event)
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {State.QUEUED.value}: {Event.SUBMITTED.value}"]
    lines += [
        f"    {state.value} --> {target.value}: {', '.join(event.value for event in events)}"
        for (state, target), events in arrows.items()
    ]
    lines += [f"    {state.value} --> [*]" for state in State if state in TERMINAL]
    return "\n".join([*lines, "```"])


def redrawn(text: str) -> str:
    """The document with the diagram of now. Raises ValueError where the markers are missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{DOCUMENT.name} has no place for the diagram: {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{diagram()}\n{END}{after}"


if __name__ == "__main__":
    DOCUMENT.write_text(redrawn(DOCUMENT.read_text()))
