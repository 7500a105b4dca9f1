"""A few of the cluster's totals through Ray's own export, beside Ray's figures. Adapts to Ray 2.60's ray.util.metrics.

Ray's exporter of the head's node shows them as `ray_orch_gpus` and `ray_orch_runs`; everything else is at orch's own /metrics.
"""

from __future__ import annotations

import logging
from collections import Counter

from orchestrator.control.controller import Controller

log = logging.getLogger("orch.metrics")
EVERY_S = 10.0


class RayTotals:
    """Gauges that are set again and again: Ray forgets a value that nobody repeats."""

    def __init__(self, controller: Controller) -> None:
        from ray.util.metrics import Gauge

        self._controller = controller
        self._gpus = Gauge("orch_gpus", "GPUs of nodes that are up, by use.", ("use",))
        self._runs = Gauge("orch_runs", "Runs that wait or hold a place, by state.", ("state",))

    async def tell(self) -> None:
        controller = self._controller
        busy = await controller.busy()
        use = {"busy": 0, "free": 0, "unfit": 0}
        for name, node in controller.roster.nodes.items():
            if node.up and node.facts.device == "cuda":
                held, unfit = len(busy.get(name, {})), len(node.info.get("unfit", {}))
                use["busy"] += held
                use["unfit"] += unfit
                use["free"] += max(0, node.facts.total - held - unfit)
        for word, count in use.items():
            self._gpus.set(count, {"use": word})
        states = Counter(run.state.value for run in await controller.live())
        states["queued"] = len(await controller.waiting())
        for state in ("queued", "starting", "running", "stopping"):
            self._runs.set(states[state], {"state": state})


def tell_ray(controller: Controller) -> None:
    """From now on; where this Ray's metrics are other than 2.60's, nothing, said in the log."""
    try:
        totals = RayTotals(controller)
    except Exception as error:  # the export is an extra; whatever has moved inside Ray, the controller must start
        log.warning("Ray's own metrics will not show orch's totals: %r", error)
        return
    controller.runtime.forever("ray metrics", totals.tell, EVERY_S)
