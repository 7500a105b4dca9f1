"""How fast a run was and what its GPUs were used for, in words for a terminal and fields for a pipe."""

from __future__ import annotations

from typing import Any

from cli import output as out
from cli.output import Column
from cli.times import span

Run = dict[str, Any]
PARTS = ("productive", "starting", "checkpoint", "lost", "idle")


def _of(run: Run, name: str) -> Any:
    return (run.get("throughput") or {}).get(name)


SAMPLES_PER_S = Column(
    "samples_per_s",
    lambda run: _of(run, "samples_per_s"),
    lambda run: number(_of(run, "samples_per_s")),
    right=True,
    spare=3,
)
STEPS = Column("steps", lambda run: _of(run, "steps"), lambda run: number(_of(run, "steps")), right=True)


def number(value: float | None) -> str:
    """A count or rate to read: `8,123`, `41.2`, `0.032`."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.3g}"


def short(seconds: float | None) -> str:
    """A step time to read: `31.2 ms`, `4.81 s`."""
    if seconds is None:
        return ""
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def fields(run: Run) -> list[tuple[str, Any]]:
    """The lines of `orch show`."""
    return _lines(run) if out.on_terminal() else _fields(run)


def _fields(run: Run) -> list[tuple[str, Any]]:
    found = [
        (f"throughput.{name}", value) for name, value in (run.get("throughput") or {}).items() if name != "metrics"
    ]
    found += [(f"metric.{name}", value) for name, value in (_of(run, "metrics") or {}).items()]
    found += [(f"gpu_seconds.{name}", value) for name, value in (run.get("gpu_seconds") or {}).items()]
    found += [(f"scaling.{one['workers']}", one["efficiency"]) for one in run.get("scaling") or []]
    names = ("goodput", "effective_training_time_ratio", "queue_seconds", "cost")
    return found + [(name, run.get(name)) for name in names]


def _lines(run: Run) -> list[tuple[str, Any]]:
    lines: list[tuple[str, Any]] = []
    if run.get("throughput"):
        rate, step = _of(run, "samples_per_s"), _of(run, "step_time")
        spread = f" (half within {short(_of(run, 'step_time_p50'))}, 99 % within {short(_of(run, 'step_time_p99'))})"
        again = _of(run, "repeated_steps")
        steps = f"{number(_of(run, 'steps'))} steps" + (f", {number(again)} done twice" if again else "")
        parts = [f"{number(rate)} samples/s" if rate else "", f"{short(step)} a step" if step else "", steps]
        lines.append(("throughput", ", ".join(part for part in parts if part)))
        if _of(run, "step_time_p50"):
            lines[-1] = (lines[-1][0], lines[-1][1] + spread)
        told = {"log": "read from its log", "report": "as the script reports"}.get(_of(run, "source"))
        if told:
            lines[-1] = (lines[-1][0], f"{lines[-1][1]}; {told}")
        metrics = ", ".join(f"{name} {value:.5g}" for name, value in (_of(run, "metrics") or {}).items())
        lines.append(("metrics", metrics))
    used = run.get("gpu_seconds") or {}
    if used.get("allocated"):
        parts = [f"{used[part] / used['allocated']:.0%} {part}" for part in PARTS if used.get(part)]
        device = ((run.get("attempts") or [{}])[-1].get("placement") or {}).get("device")
        held = f"{span(used['allocated'])} of {'slots' if device == 'cpu' else 'GPUs'}"
        lines.append(("gpu time", f"{held}: {', '.join(parts)}"))
    if len(sizes := run.get("scaling") or []) > 1:
        told = ", ".join(f"{one['workers']} workers {one['efficiency']:.0%}" for one in sizes)
        lines.append(("scaling", f"{told} (samples/s a worker, over runs of this name)"))
    if run.get("queue_seconds"):
        lines.append(("queued", span(run["queue_seconds"])))
    if run.get("cost") is not None:
        lines.append(("cost", f"{run['cost']:,.2f}"))
    return lines
