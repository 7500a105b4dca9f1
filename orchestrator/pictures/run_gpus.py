"""What a run's GPUs were used for, and how busy, full and hot they were."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.pictures import bars
from orchestrator.pictures.markup import Content, join, tag
from orchestrator.pictures.page import Card, empty, plot
from orchestrator.pictures.plot import Axes, Line
from orchestrator.pictures.scale import figure, percent, span

Data = Mapping[str, Any]


def device_of(run: Data) -> str:
    attempts = run.get("attempts") or [{}]
    return str((attempts[-1].get("placement") or {}).get("device", "cuda"))


def ledger_card(data: Data) -> Card:
    run, used = data["run"], data["run"].get("gpu_seconds") or {}
    device = device_of(run)
    title = "What the CPU slots were used for" if device == "cpu" else "What the GPUs were used for"
    if not used.get("allocated"):
        return Card(title, empty("Nothing was allocated to the run yet."))
    words = {part: f"{span(used[part])} ({percent(used[part] / used['allocated'])})" for part in bars.PARTS}
    parts = {part: used[part] for part in bars.PARTS}
    finding = f"{span(used['allocated'])} of {'slot' if device == 'cpu' else 'GPU'} time in all"
    finding += f"; goodput {percent(run.get('goodput'))}" if run.get("goodput") is not None else ""
    ratio = run.get("effective_training_time_ratio")
    finding += f", with the queue {percent(ratio)} of it was training." if ratio is not None else "."
    if used.get("lost"):
        finding += f" {span(used['lost'])} of work was lost and done again, or for nothing."
    return Card(title, plot(bars.whole(parts, "the allocated time by use", words)), finding)


_GAUGES = (
    ("utilization", "utilisation", "%", 100.0),
    ("memory_gib", "memory", "GiB", 1.0),
    ("power_w", "power", "W", 1.0),
    ("temperature_c", "temperature", "°C", 1.0),
)


def gpus_card(data: Data) -> Card | None:
    """None where the run had no GPU but CPU slots."""
    title = "GPUs"
    found = data["gpus"]
    if found is None:
        if device_of(data["run"]) == "cpu":
            return None
        return Card(title, empty("No GPU was looked at for as long as a minute, or its driver tells nothing."))
    drawn = []
    for name, word, unit, least in _GAUGES:
        values = [row[name] for gpu in found["shown"] for row in gpu["rows"] if row[name] is not None]
        if not values:
            continue
        axes = Axes(data["from"], data["to"], max(least, *values), unit, 170, width=400, wanted_y=3, x_unit="")
        axes.parts = [part for part in axes.parts if 'class="tick"' not in part]
        for gpu in found["shown"]:
            axes.line(
                Line(
                    f"{gpu['node']} GPU {gpu['gpu']}",
                    tuple((row["at"], row[name]) for row in gpu["rows"]),
                    0,
                    broken=2.5 * found["seconds"],
                )
            )
        axes.words(axes.left + 4, 12, f"{word}, mean {figure(sum(values) / len(values))} {unit}", class_="name")
        drawn.append(axes.svg(f"{word} of the GPUs over time"))
    means = {f"{gpu['node']} GPU {gpu['gpu']}": _mean(gpu["rows"], "utilization") for gpu in found["shown"]}
    known = {name: value for name, value in means.items() if value is not None}
    finding: Content = None
    if known:
        quiet = min(known, key=lambda name: known[name])
        finding = f"Least used: {quiet}, {figure(known[quiet])} % of the time."
    slowed = [f"{gpu}: {', '.join(why)}" for gpu, why in found["throttled"].items()]
    parts: list[Content] = [tag("div", *drawn, class_="multiples")]
    if slowed:
        parts.append(tag("p", f"▲ slowed down by heat, power or hardware: {'; '.join(slowed[:8])}", class_="warn"))
    if found["count"] > len(found["shown"]):
        parts.append(
            tag("p", f"The {len(found['shown'])} least used of {found['count']} GPUs are drawn.", class_="note")
        )
    return Card(title, join(*parts), finding, wide=True)


def _mean(rows: Iterable[Data], name: str) -> float | None:
    values = [row[name] for row in rows if row[name] is not None]
    return sum(values) / len(values) if values else None
