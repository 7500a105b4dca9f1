"""Whatever is sent to the API is answered with a sentence and a code of the contract, and what is refused changes nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows import fault
from served import Served, serving

from orchestrator.control.api import HTTP_OF_CODE, Api
from orchestrator.health.facts import Interpreter, NodeFacts
from orchestrator.testing.cluster import FakeCluster

EXAMPLES = int(os.environ.get("ORCH_FUZZ_EXAMPLES", "40"))
"""For each call; `make faults` asks for more."""

SPEC = {"run": "train.py", "workers": "1", "name": "job"}
SUBMISSION = {"spec": SPEC, "workdir": "/w", "user": "ana", "secrets": {}, "key": None, "dry_run": False}

NUMBERS = ["", "0", "-1", "1", "2", "²", "٣", "9" * 19, "9" * 5000, "1e999", "nan"]
REFS = ["job", "job[0]", "job[]", "1[]", "[", "..", "../token"]
HOSTILE = [
    "\x00",
    "a\x00b",
    "\x1b[2J",
    "\u202e",
    "%00",
    "; rm -rf /",
    "$(id)",
    "' OR 1=1 --",
    "*",
    "?",
    "a" * 3000,
    "\ud800",
]
ODD = [*NUMBERS, *REFS, *HOSTILE]
WORD = st.sampled_from(ODD) | st.text(max_size=12)
REF = st.sampled_from(["1", "2", "job", "job[0]", "array[]", "4[]"]) | WORD
TIME = (
    st.sampled_from(["2026-01-01T00:00:00Z", "2026-01-01", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"])
    | WORD
)

LEAF = st.none() | st.booleans() | st.integers() | st.floats() | WORD
JSON = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORD, inner, max_size=3), max_leaves=6
)

FILTERS = (
    "name user team state since until tag node gpu code outcome failure min_throughput max_throughput sort limit live"
)
QUERIES: dict[str, str] = {
    "/api/v1/runs": f"{FILTERS} arrays columns by array best x",
    "/api/v1/compare": "run",
    "/api/v1/runs/{ref}": "like",
    "/api/v1/runs/{ref}/cancel": "by",
    "/api/v1/runs/{ref}/retry": "by",
    "/api/v1/runs/{ref}/set": "by",
    "/api/v1/down": "by",
    "/api/v1/runs/{ref}/logs": "rank attempt since from nccl",
    "/api/v1/report": "since",
    "/api/v1/benches": "run since node collective backend",
    "/api/v1/topo": "node",
    "/api/v1/nodes": "node",
    "/api/v1/node_events": "node limit",
    "/api/v1/nodes/drain": "by",
    "/api/v1/nodes/undrain": "by",
    "/api/v1/doctor": "node python",
}
"""What a call's query may have."""
BODIES: dict[str, Any] = {
    "POST /api/v1/runs": SUBMISSION,
    "POST /api/v1/check": {"text": "run: train.py", "filename": "job.yaml", "overrides": ["workers=2"]},
    "POST /api/v1/runs/{ref}/retry": {"secrets": {}},
    "POST /api/v1/runs/{ref}/set": {"changes": {"priority": "5"}},
    "POST /api/v1/nodes/drain": {"nodes": ["a"], "reason": "a fan", "when_idle": True},
    "POST /api/v1/nodes/undrain": {"nodes": ["a"]},
    "POST /api/v1/down": {"force": False},
}
NOT_ENDING = {"GET /api/v1/runs/{ref}/follow"}
"""A stream that lasts as long as its run: asked only of runs that there are not."""


def routes() -> list[str]:
    nothing: Any = None
    router = Api(nothing, nothing, str, dict, nothing).app().router
    found = {f"{route.method} {route.resource.canonical}" for route in router.routes() if route.resource is not None}
    # aiohttp answers HEAD wherever GET is.
    return sorted(found - {f"HEAD {one[4:]}" for one in found if one.startswith("GET ")})


@st.composite
def mutated(draw: st.DrawFn, value: Any, depth: int = 0) -> Any:
    """The value with one of its parts replaced, left out or added to."""
    if not isinstance(value, dict) or not value or draw(st.integers(0, 3)) == 0:
        return draw(JSON)
    key = draw(st.sampled_from(sorted(value)))
    match draw(st.integers(0, 3)):
        case 0:
            return {name: part for name, part in value.items() if name != key}
        case 1:
            return value | {draw(WORD): draw(JSON)}
        case _:
            return value | {key: draw(mutated(value[key], depth + 1))}


@st.composite
def spec_keys(draw: st.DrawFn) -> dict[str, Any]:
    """A submission whose spec has keys of a job file with values that nobody expects."""
    from orchestrator.spec import JobSpec

    keys = draw(st.dictionaries(st.sampled_from(sorted(JobSpec.model_fields)), JSON, max_size=3))
    return SUBMISSION | {"spec": SPEC | keys, "dry_run": draw(st.booleans())}


@st.composite
def requests(draw: st.DrawFn, route: str) -> tuple[str, str, bytes | None]:
    method, path = route.split(" ", 1)
    ref = draw(st.sampled_from(["0", "none", "²", "9" * 30]) if route in NOT_ENDING else REF)
    target = path.replace("{ref}", _quoted(ref)).replace("{sha}", _quoted(draw(WORD | st.just("0" * 64))))
    names = QUERIES.get(path, "").split()
    if names:
        value = {"since": TIME, "until": TIME}
        pairs = draw(st.lists(st.sampled_from(names), max_size=3))
        query = [(name, draw(value.get(name, REF)).encode("utf-8", "surrogatepass")) for name in pairs]
        target += "?" + urlencode(query)[:60_000]
    body: bytes | None = None
    if route in BODIES:
        body = draw(
            st.binary(max_size=30)
            | mutated(BODIES[route]).map(_encoded)
            | (spec_keys().map(_encoded) if route == "POST /api/v1/runs" else st.nothing())
            | st.sampled_from([b"[" * 1_000, b"{}", b"null", b'{"force": 1e999}', b"\xff\xfe", b'"\\ud800"'])
        )
    elif method == "PUT":
        body = draw(st.binary(max_size=100))
    return method, target, body


def _quoted(text: str) -> str:
    return quote(text.encode("utf-8", "surrogatepass"), safe="") or "%20"


def _encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=[pytest.mark.postgres, fault(34)])])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A controller that starts nothing, so that nothing of what is submitted moves by itself."""
    cluster = FakeCluster(a=4)
    python = Interpreter("/opt/python", "3.12.3", "2.11.0+cu130", "13.0", "9.19.0", "2.28.9", "2.28.9")
    cluster.agents["a"].tell(
        NodeFacts("a", driver="580.1", gpus=("NVIDIA H100",) * 4, hostname="a", boot_id="a"), own=python
    )
    database = None if request.param == "sqlite" else request.getfixturevalue("new_postgres")()
    with serving(tmp_path_factory.mktemp("home"), cluster, database) as served:
        served.controller.start_no_more()
        assert served("POST", "/api/v1/runs", SUBMISSION).status == 201
        assert served("POST", "/api/v1/runs", SUBMISSION).status == 201
        assert served("POST", "/api/v1/runs/2/cancel").status == 200
        sweep = SPEC | {"name": "array", "run": "train.py {x}", "array": {"x": [1, 2]}}
        assert served("POST", "/api/v1/runs", SUBMISSION | {"spec": sweep}).status == 201
        yield served


@pytest.mark.parametrize("route", routes())
def test_whatever_is_asked_is_answered_in_words_and_a_refusal_changes_nothing(served: Served, route: str) -> None:
    @settings(
        max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
    )
    @given(requests(route))
    def asked(request: tuple[str, str, bytes | None]) -> None:
        method, target, body = request
        before = served.digest() if method != "GET" else None
        answer = served(method, target, body)
        assert answer.status < 500, (answer, request)
        assert "Traceback" not in answer.text
        if answer.status >= 400 and method != "HEAD":
            said = answer.json
            assert said["error"].strip()
            assert answer.status in (*HTTP_OF_CODE.values(), 403, 405, 413)
            assert said["code"] in range(2, 9)
            assert before in (None, served.digest()), request

    asked()


def test_every_call_that_takes_a_body_is_sent_bodies() -> None:
    posts = {route for route in routes() if route.startswith("POST ")}
    assert posts - BODIES.keys() == {"POST /api/v1/runs/{ref}/cancel"}
