"""The part of the HTTP API about nodes: which there are and how well they are, drain and undrain, their history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

from aiohttp import web
from pydantic import Field

from orchestrator.control.api_body import Body, body_of
from orchestrator.control.api_call import CALL, by_of
from orchestrator.control.controller import Controller
from orchestrator.control.refused import Refused
from orchestrator.document import shown
from orchestrator.health.finding import SEVERITIES, Finding
from orchestrator.history.render import time_json

EVENTS_SHOWN = 100
MOST_EVENTS = 10_000
Name = Annotated[str, Field(min_length=1, max_length=255)]


class UndrainBody(Body):
    nodes: Annotated[list[Name], Field(min_length=1, max_length=10_000)]


class DrainBody(UndrainBody):
    reason: Annotated[str, Field(max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")] | None = None
    when_idle: bool = False


class NodesApi:
    """The routes over one controller."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/api/v1/nodes", self._nodes),
            web.post("/api/v1/nodes/drain", self._drain),
            web.post("/api/v1/nodes/undrain", self._undrain),
            web.get("/api/v1/node_events", self._events),
        ]

    async def _nodes(self, request: web.Request) -> web.Response:
        wanted = request.query.getall("node", [])
        known = self._controller.roster.nodes
        if unknown := [name for name in wanted if name not in known]:
            raise Refused(3, f"no such node: {', '.join(unknown)}")
        busy = await self._controller.busy()
        return web.json_response([self._node(name, busy.get(name, {})) for name in sorted(wanted or known)])

    def _node(self, name: str, taken: dict[int, int]) -> dict[str, Any]:
        node, care = self._controller.roster.nodes[name], self._controller.care
        return {
            "node": name,
            "address": node.facts.address,
            "state": "up" if node.up else "down",
            "device": node.facts.device,
            "total": node.facts.total,
            "busy": len(taken),
            "runs": sorted(set(taken.values())),
            "gpus": [asdict(gpu) for gpu in node.info["node"].gpus] if "node" in node.info else [],
            "versions": node.info.get("versions", {}),
            "note": self._controller.roster.note(node, taken) or care.marks.of(name).shunned,
        } | care.json(name)

    async def _drain(self, request: web.Request) -> web.Response:
        body = await body_of(request, DrainBody)
        reason = (body.reason or "").strip() or None
        CALL.get().said = ", ".join(body.nodes)
        found = await self._controller.care.drain(body.nodes, by_of(request), reason, body.when_idle)
        return web.json_response([asdict(one) | self._controller.care.json(one.node) for one in found])

    async def _undrain(self, request: web.Request) -> web.Response:
        body = await body_of(request, UndrainBody)
        CALL.get().said = ", ".join(body.nodes)
        found = await self._controller.care.undrain(body.nodes, by_of(request))
        return web.json_response([asdict(one) | self._controller.care.json(one.node) for one in found])

    async def _events(self, request: web.Request) -> web.Response:
        """What happened to nodes, oldest first."""
        limit = request.query.get("limit", str(EVENTS_SHOWN))
        if not limit.isdecimal() or len(limit) > 9 or not 1 <= int(limit) <= MOST_EVENTS:
            raise Refused(2, f"limit: must be a number from 1 to {MOST_EVENTS:,}, not {shown(limit)}")
        events = await self._controller.care.history(request.query.getall("node", []), int(limit))
        return web.json_response([asdict(one) | {"at": time_json(one.at)} for one in events])


def with_health(answer: dict[str, Any], found: Sequence[Finding]) -> dict[str, Any]:
    """The JSON of `orch doctor` with what the nodes' health adds, the worst first."""
    more = [{"severity": one.severity, "nodes": [one.node], "problem": one.problem, "mend": one.mend} for one in found]
    every = [*answer["findings"], *more]
    return answer | {"findings": sorted(every, key=lambda one: SEVERITIES.index(one["severity"]))}
