"""The part of the HTTP API about the cluster as a whole: whether it is up, what it is made of, what is wrong with it, its end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiohttp import web

from orchestrator.checks import interpreter
from orchestrator.control.api_body import Body, body_of
from orchestrator.control.api_call import by_of
from orchestrator.control.api_nodes import with_health
from orchestrator.control.api_query import number, since
from orchestrator.control.controller import Controller
from orchestrator.control.metrics import CONTENT_TYPE, exposition
from orchestrator.control.refused import Refused
from orchestrator.control.top import top
from orchestrator.hardware.as_json import to_json
from orchestrator.hardware.draw import draw_node
from orchestrator.history import render
from orchestrator.history.benches import BenchFilter
from orchestrator.placement.draw import draw_free


class DownBody(Body):
    force: bool = False


class ClusterApi:
    """The routes over one controller."""

    def __init__(
        self,
        controller: Controller,
        status: Callable[[], dict[str, Any]],
        down: Callable[[], Awaitable[None]],
        doors: Sequence[dict[str, Any]],
    ) -> None:
        """`doors` are findings of the doctor about the cluster itself."""
        self._controller, self._status, self._down, self._doors = controller, status, down, doors

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/healthz", self._healthz),
            web.get("/metrics", self._metrics),
            web.get("/api/v1/status", self._get_status),
            web.get("/api/v1/report", self._report),
            web.get("/api/v1/benches", self._benches),
            web.get("/api/v1/topo", self._topo),
            web.get("/api/v1/top", self._top),
            web.get("/api/v1/doctor", self._doctor),
            web.post("/api/v1/down", self._go_down),
        ]

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.json_response({"ok": True, "cluster": self._cluster()})

    async def _metrics(self, request: web.Request) -> web.Response:
        controller = self._controller
        busy, live, waiting = await controller.busy(), await controller.live(), await controller.waiting()
        nodes = controller.roster.nodes.values()
        pace = controller.gangs.measuring.live
        counts, now, care = controller.runtime.counts, controller.runtime.now(), controller.care
        text = exposition(nodes, busy, live, waiting, counts, now, pace, care)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})

    async def _get_status(self, request: web.Request) -> web.Response:
        nodes = [node for node in self._controller.roster.nodes.values() if node.up]
        busy = await self._controller.busy()
        gpus = [node for node in nodes if node.facts.device == "cuda"]
        counts = {
            "nodes": len(nodes),
            "gpus": {
                "total": sum(node.facts.total for node in gpus),
                "busy": sum(len(busy.get(node.facts.name, {})) for node in gpus),
            },
            "cpu_slots": {
                "total": sum(n.facts.total for n in nodes if n.facts.device == "cpu"),
                "busy": sum(len(busy.get(n.facts.name, {})) for n in nodes if n.facts.device == "cpu"),
            },
        }
        alarms = [
            {"kind": alarm.kind, "since": render.time_json(alarm.since), "text": alarm.text}
            for alarm in self._controller.runtime.alarms
        ]
        own = {"cluster": self._cluster(), "storage": self._storage(), "alarms": alarms}
        return web.json_response(self._status() | own | counts)

    def _storage(self) -> dict[str, Any]:
        stalled_s = self._controller.storage.stalled_s
        if stalled_s is None:
            return {"state": "up"}
        return {
            "state": "stalled",
            "for_s": round(stalled_s, 1),
            "folder": str(self._controller.runtime.settings.storage),
        }

    def _cluster(self) -> dict[str, Any]:
        away = self._controller.roster.away
        if away is None:
            return {"state": "up"}
        for_s = self._controller.runtime.monotonic() - away.since
        return {"state": "lost", "for_s": round(for_s, 1), "why": away.why}

    async def _top(self, request: web.Request) -> web.Response:
        return web.json_response(await top(self._controller))

    async def _topo(self, request: web.Request) -> web.Response:
        """The tree that placement sees, and who holds what of it."""
        inventory, busy = self._controller.roster.inventory, await self._controller.busy()
        cluster = inventory.topology.cluster
        answer = to_json(cluster) | {
            "busy": {name: {str(gpu): run for gpu, run in held.items()} for name, held in busy.items()},
            "notes": [*cluster.notes, *map(str, inventory.disagreements)],
            "absent": list(inventory.absent),
            "drawing": draw_free(self._controller.roster.free(busy), busy),
        }
        if (name := request.query.get("node")) is not None:
            known = next((node for node in cluster.nodes if node.name == name), None)
            if known is None:
                raise Refused(3, f"no such node: {name!r}")
            answer["drawing"] = draw_node(cluster, known)
        return web.json_response(answer)

    async def _doctor(self, request: web.Request) -> web.Response:
        """The version matrix over the nodes, and what will go wrong."""
        python, node = request.query.get("python"), request.query.get("node")
        try:
            answer = await self._controller.surveys.doctor(node, None if python is None else interpreter(python))
        except ValueError as error:
            raise Refused(2, f"python: {error}") from None
        except KeyError:
            raise Refused(3, f"no such node: {node!r}") from None
        answer["findings"] = [*self._doors, *answer["findings"]]
        return web.json_response(with_health(answer, self._controller.care.for_doctor(node)))

    async def _go_down(self, request: web.Request) -> web.Response:
        body, _ = await body_of(request, DownBody), by_of(request)
        live = await self._controller.live()
        if live and not body.force:
            names = ", ".join(f"{run.id} ({run.name})" for run in live[:5])
            more = f" and {len(live) - 5} more" if len(live) > 5 else ""
            count = "1 run lives" if len(live) == 1 else f"{len(live)} runs live"
            raise Refused(7, f"{count}: {names}{more}; cancel them, or use --force")
        # What waits would take the places that become free, on nodes whose launchers are told to end.
        self._controller.start_no_more()
        for run in await self._controller.live():
            await self._controller.cancel(str(run.id), by="down")
        await self._down()
        return web.json_response({"ok": True})

    async def _report(self, request: web.Request) -> web.Response:
        """What the cluster's page is drawn from: of the time since then."""
        return web.json_response(await self._controller.past.cluster_pictured(since(request.query.get("since"))))

    async def _benches(self, request: web.Request) -> web.Response:
        """Results of `orch bench`, oldest first."""
        query = request.query
        wanted = BenchFilter(
            runs=tuple(run for text in query.getall("run", []) if (run := number(text, "run")) is not None),
            since=since(query.get("since")),
            nodes=frozenset(query.getall("node", [])),
            collectives=tuple(query.getall("collective", [])),
            backends=tuple(query.getall("backend", [])),
        )
        return web.json_response(await self._controller.benches.shown(wanted))
