"""The API of nodes."""

import asyncio
from pathlib import Path
from typing import Any

from aiohttp.test_utils import TestClient, TestServer

from orchestrator.control.api import Api
from orchestrator.control.code_store import CodeStore
from orchestrator.health.vitals import Vitals
from orchestrator.testing.cluster import FakeCluster
from orchestrator.testing.controlling import controlling, until


def test_the_api_of_nodes_refuses_what_cannot_be_meant_and_says_what_it_did(tmp_path: Path) -> None:
    headers = {"Authorization": "Bearer token"}

    async def nothing() -> None:
        """The cluster stays up."""

    async def story() -> None:
        cluster = FakeCluster(a=2, b=2)
        async with controlling(tmp_path, cluster) as controller:
            app = Api(controller, CodeStore(tmp_path / "code", 1 << 20), lambda: "token", dict, nothing).app()
            async with TestClient(TestServer(app, host="127.0.0.1"), headers=headers) as client:

                async def asked(method: str, path: str, body: object = None) -> tuple[int, Any]:
                    async with client.request(method, f"/api/v1/{path}", json=body) as answer:
                        return answer.status, await answer.json()

                for body in ({}, {"nodes": []}, {"nodes": ["a"], "by": "x"}, {"nodes": ["a"], "reason": "a\nb"}, []):
                    assert (await asked("POST", "nodes/drain", body))[0] == 400, body
                status, answer = await asked("POST", "nodes/drain?by=ana", {"nodes": ["a", "x"]})
                assert (status, answer) == (404, {"error": "no such node: x", "code": 3})
                assert await controller.care.history([], 9) == []

                status, (row,) = await asked("POST", "nodes/drain?by=ana", {"nodes": ["a"], "reason": " new cables "})
                assert (status, row["node"], row["already"], row["runs"]) == (200, "a", False, [])
                drained = {"by": "ana", "reason": "new cables", "when_idle": False}
                assert {key: row["drained"][key] for key in drained} == drained
                status, rows = await asked("GET", "nodes")
                assert [(one["node"], one["note"], one["health"]) for one in rows] == [
                    ("a", "drained by ana: new cables", None),
                    ("b", None, None),
                ]
                cluster.agents["b"].see(Vitals(shm_free=1 << 20))
                await until(lambda: controller.care.findings("b"))
                status, (row,) = await asked("GET", "nodes?node=b")
                assert (row["health"], row["findings"][0]["what"]) == ("degraded", "shm")
                assert (await asked("GET", "nodes?node=x"))[0] == 404
                status, doctor = await asked("GET", "doctor?node=b")
                assert [(one["severity"], one["nodes"]) for one in doctor["findings"]] == [("warning", ["b"])]

                status, (event,) = await asked("GET", "node_events?node=a")
                assert (event["what"], event["by"], event["reason"]) == ("drained", "ana", "new cables")
                for wrong in ("limit=0", "limit=x", "limit=10001", "limit=99999999999"):
                    assert (await asked("GET", f"node_events?{wrong}"))[0] == 400
                async with client.get("/metrics") as answer:
                    metrics = await answer.text()
                assert 'orch_node_out{node="a",why="drained"} 1.0' in metrics
                assert 'orch_node_health{node="b"} 2.0' in metrics
                assert (await asked("POST", "nodes/undrain?by=bo", {"nodes": ["a"]}))[1][0]["drained"] is None

    asyncio.run(story())
