"""What `orch top` is drawn from: nodes, what runs with its pace, and the queue with its reasons, in one answer from memory."""

from __future__ import annotations

from typing import Any

from orchestrator.control.controller import Controller
from orchestrator.control.gpu_usage import GpuUse
from orchestrator.control.live import mean
from orchestrator.control.roster import Node
from orchestrator.history import render
from orchestrator.scheduling.run import Run

MOST_RUNS = 1000
MOST_WAITING = 500


async def top(controller: Controller) -> dict[str, Any]:
    busy, live, waiting = await controller.busy(), await controller.live(), await controller.waiting()
    looks = controller.gangs.measuring.live.gpus()
    by_node: dict[str, list[GpuUse]] = {}
    by_run: dict[int, list[GpuUse]] = {}
    for node, _, run, use in looks:
        by_node.setdefault(node, []).append(use)
        by_run.setdefault(run, []).append(use)
    plan = controller.queue.last
    starts = {one.run.id: one.start for one in plan.reservations} if plan is not None else {}
    return {
        "at": render.time_json(controller.runtime.now()),
        "nodes": [
            _node(
                name, node, busy.get(name, {}), by_node.get(name, []), controller.roster.note(node, busy.get(name, {}))
            )
            for name, node in sorted(controller.roster.nodes.items())
        ],
        "runs": [_run(controller, run, by_run.get(run.id, [])) for run in live[-MOST_RUNS:]],
        "waiting": [
            render.list_json(run) | {"position": i, "expected_start": render.time_json(starts.get(run.id))}
            for i, run in enumerate(waiting[:MOST_WAITING], 1)
        ],
        "counts": {"runs": len(live), "waiting": len(waiting)},
    }


def _run(controller: Controller, run: Run, uses: list[GpuUse]) -> dict[str, Any]:
    pace = None if run.attempt is None else controller.gangs.measuring.live.pace(run.id, run.attempt.number)
    return render.list_json(run) | {
        "time_limit": run.spec.time_limit,
        "note": "; ".join(controller.gangs.watch.notes(run)) or None,
        "live": {
            "samples_per_s": None if pace is None else pace.samples_per_s,
            "step_time": None if pace is None else pace.step_time,
            "utilization": mean(use.utilization for use in uses),
        },
    }


def _node(name: str, node: Node, taken: dict[int, int], uses: list[GpuUse], note: str | None) -> dict[str, Any]:
    memory = [use.memory_mib for use in uses if use.memory_mib is not None]
    power = [use.power_w for use in uses if use.power_w is not None]
    return {
        "node": name,
        "state": "up" if node.up else "down",
        "device": node.facts.device,
        "total": node.facts.total,
        "busy": len(taken),
        "unfit": len(node.info.get("unfit", {})),
        "runs": sorted(set(taken.values())),
        "utilization": mean(use.utilization for use in uses),
        "memory_gib": sum(memory) / 1024 if memory else None,
        "power_w": sum(power) if power else None,
        "note": note,
    }
