"""Whom the API lets in, what it takes of them, and what is written down of it."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from served import METRICS_TOKEN, TOKEN, Served, serving
from test_api_fuzz import SPEC, SUBMISSION, routes

from orchestrator.control import api, api_body
from orchestrator.control.audit import records
from orchestrator.testing.cluster import FakeCluster


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("home"), FakeCluster(a=2)) as served:
        served.controller.start_no_more()
        yield served


def path_of(route: str) -> tuple[str, str]:
    method, path = route.split(" ", 1)
    return method, path.replace("{ref}", "1").replace("{sha}", "0" * 64)


@pytest.mark.parametrize("route", [route for route in routes() if route != "GET /healthz"])
def test_no_call_is_answered_without_the_token(served: Served, route: str) -> None:
    wrong = [
        None,
        "",
        "wrong",
        TOKEN[:-1],
        f"{TOKEN}x",
        TOKEN.upper(),
        *([] if route == "GET /metrics" else [METRICS_TOKEN]),
    ]
    before = served.digest()
    for token in wrong:
        answer = served(*path_of(route), b"{}" if route.startswith("POST") else None, token=token)
        assert answer.status == 401, token
        assert not answer.text or answer.json["code"] == 4
    assert served.digest() == before


def test_the_metrics_token_opens_the_metrics_and_a_cookie_or_a_parameter_opens_nothing(served: Served) -> None:
    assert served("GET", "/metrics", token=METRICS_TOKEN).status == 200
    assert served("GET", f"/api/v1/status?token={TOKEN}", token=None).status == 401
    assert served("GET", "/api/v1/status", token=None, headers={"Cookie": f"token={TOKEN}"}).status == 401
    assert served("GET", "/api/v1/status", token=None, headers={"Authorization": TOKEN}).status == 401


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "10.0.0.1", "", "[::2]"])
def test_a_name_that_is_not_the_loopbacks_is_refused(served: Served, host: str) -> None:
    answer = served("GET", "/healthz", headers={"Host": host})
    assert (answer.status, answer.json["code"]) == (403, 4)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "localhost:1234", "[::1]:80", "[::1]"])
def test_the_loopback_has_three_names(served: Served, host: str) -> None:
    assert served("GET", "/api/v1/status", headers={"Host": host}).status == 200


PAGE = [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"}]
PAGE += [{"Sec-Fetch-Site": site} for site in ("cross-site", "same-site", "same-origin")]


@pytest.mark.parametrize("headers", PAGE, ids=str)
def test_what_a_page_in_a_browser_sends_is_refused_token_or_not(served: Served, headers: dict[str, str]) -> None:
    for method, path in (("GET", "/api/v1/status"), ("POST", "/api/v1/runs"), ("OPTIONS", "/api/v1/runs")):
        assert served(method, path, headers=headers).status == 403


def test_no_answer_invites_a_page_and_none_is_taken_for_one(served: Served) -> None:
    for method, path in (("GET", "/healthz"), ("OPTIONS", "/api/v1/runs"), ("GET", "/api/v1/runs/<script>")):
        answer = served(method, path)
        assert not [name for name in answer.headers if name.lower().startswith("access-control-")]
        assert answer.headers["Content-Type"].startswith("application/json")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_a_body_over_its_limit_is_refused(served: Served) -> None:
    assert served("POST", "/api/v1/runs", b"[" * (api.BODY + 1)).status == 413
    assert served("PUT", f"/api/v1/code/{'0' * 64}", b"0" * ((1 << 20) + 1)).status == 413
    assert [file.name for file in (served.home / "code").iterdir()] == []
    assert served("POST", "/api/v1/runs", b"[" * 100_000).status == 400


def test_lines_and_headers_have_an_end(served: Served) -> None:
    positions = ",".join(f"1:{rank}:{rank * 1000}" for rank in range(3000))
    with served_run(served) as run:
        assert served("GET", f"/api/v1/runs/{run}/logs?from={positions}").status == 200, "a gang of thousands"
    assert served("GET", "/api/v1/runs?name=" + "a" * api.LONGEST_LINE).status == 400
    assert served("GET", "/healthz", headers={"X": "a" * 20_000}).status == 400
    assert served("GET", "/healthz", headers={f"X-{n}": "a" for n in range(1000)}).status == 400


class served_run:  # noqa: N801 - reads as a sentence
    """A run that waits, until the end of the block."""

    def __init__(self, served: Served) -> None:
        self._served = served

    def __enter__(self) -> int:
        self._run: int = self._served("POST", "/api/v1/runs", SUBMISSION).json["id"]
        return self._run

    def __exit__(self, *_: object) -> None:
        self._served("POST", f"/api/v1/runs/{self._run}/cancel")


def test_a_connection_without_a_whole_request_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "IDLE_S", 0.2)
    monkeypatch.setattr(api_body, "BODY_S", 0.2)
    with serving(tmp_path, FakeCluster(a=1)) as served:
        for said in (b"", b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: a"):
            with closing(socket.create_connection(("127.0.0.1", served.port), timeout=20)) as idle:
                idle.sendall(said)
                assert idle.recv(100) == b""
        for method, path in (("POST", "/api/v1/check"), ("PUT", f"/api/v1/code/{'0' * 64}")):
            with closing(http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)) as slow:
                slow.putrequest(method, path)
                slow.putheader("Authorization", f"Bearer {TOKEN}")
                slow.putheader("Content-Length", "100")
                slow.endheaders(b"{")
                assert slow.getresponse().status == 408


# -- the audit log ---------------------------------------------------------------------------------------------------


def log_of(served: Served) -> list[dict[str, object]]:
    return list(records(served.home / "audit.log"))


def test_what_is_changed_is_written_down_with_who_asked_and_what_came_of_it(served: Served) -> None:
    before = len(log_of(served))
    run = served("POST", "/api/v1/runs", SUBMISSION | {"spec": SPEC | {"name": "audited", "workers": "2"}}).json["id"]
    served("POST", f"/api/v1/runs/{run}/set?by=bob", {"changes": {"priority": "7"}})
    served("POST", f"/api/v1/runs/{run}/cancel?by=bob")
    served("POST", "/api/v1/runs/none/cancel?by=bob")
    served("POST", "/api/v1/runs", SUBMISSION | {"dry_run": True})
    served("POST", "/api/v1/check", {"text": "run: a.py", "filename": "a"})
    served("GET", "/api/v1/runs")
    told = [
        {name: one.get(name) for name in ("user", "call", "run", "status", "error")} for one in log_of(served)[before:]
    ]
    submitted = {"user": "ana", "call": "POST /api/v1/runs", "run": run, "status": 201, "error": None}
    cancelled = {"user": "bob", "call": f"POST /api/v1/runs/{run}/cancel", "run": run, "status": 200, "error": None}
    refused = {"call": "POST /api/v1/runs/none/cancel", "run": None, "status": 404, "error": "no such run: 'none'"}
    assert [told[0], told[2], told[3]] == [submitted, cancelled, {"user": "bob"} | refused]
    assert told[1]["call"] == f"POST /api/v1/runs/{run}/set"
    assert len(told) == 4
    assert all(one["uid"] == os.getuid() for one in log_of(served)[before:]), "as the kernel knows the caller"
    assert (served.home / "audit.log").stat().st_mode & 0o777 == 0o600


def test_the_history_of_a_run_says_who_moved_it(served: Served) -> None:
    run = served("POST", "/api/v1/runs", SUBMISSION | {"spec": SPEC | {"workers": "2"}}).json["id"]
    served("POST", f"/api/v1/runs/{run}/cancel?by=bob")
    events = served("GET", f"/api/v1/runs/{run}").json["events"]
    assert [event["by"] for event in events if event["event"] == "cancel_asked"] == ["bob"]


def test_a_secret_is_in_no_record(served: Served) -> None:
    spec = SPEC | {"secrets": ["API_KEY"], "name": "secretive"}
    assert (
        served("POST", "/api/v1/runs", SUBMISSION | {"spec": spec, "secrets": {"API_KEY": "canary-91"}}).status == 201
    )
    assert (
        served("POST", "/api/v1/runs", SUBMISSION | {"spec": spec, "secrets": {"API_KEY": ["canary-92"]}}).status == 400
    )
    assert served("POST", "/api/v1/runs", SUBMISSION | {"spec": spec, "x": "canary-93"}).status == 400
    assert "canary-9" not in (served.home / "audit.log").read_text()


def test_callers_that_are_not_let_in_are_counted_and_do_not_fill_the_disk(tmp_path: Path) -> None:
    with serving(tmp_path, FakeCluster(a=1)) as served:
        for _ in range(200):
            served("GET", "/api/v1/status", token="wrong")
    told = [one for one in records(tmp_path / "audit.log") if one["status"] == 401]
    assert 1 <= len(told) < 100
    assert told[0] == {
        "at": told[0]["at"],
        "uid": os.getuid(),
        "call": "GET /api/v1/status",
        "status": 401,
        "times": 1,
    } | {"error": told[0]["error"]}


@pytest.mark.parametrize("by", ["\x1b[2J", "a" * 129, "", "\u202eana", "a\nb"])
def test_who_asks_has_a_name_that_can_be_printed(served: Served, by: str) -> None:
    from urllib.parse import quote

    assert served("POST", f"/api/v1/runs/1/cancel?by={quote(by)}").status == 400
    assert served("POST", "/api/v1/runs", SUBMISSION | {"user": by}).status == 400
    assert json.dumps(by) not in (served.home / "audit.log").read_text()


@pytest.mark.parametrize(
    ("value", "said"),
    [("a\0canary-94", "NUL"), ("canary-95" * 20_000, "100,000 bytes"), (["canary-96"], "valid string")],
)
def test_a_secret_that_no_process_could_be_given_is_refused_and_not_repeated(
    served: Served, value: object, said: str
) -> None:
    spec = SPEC | {"secrets": ["API_KEY"]}
    answer = served("POST", "/api/v1/runs", SUBMISSION | {"spec": spec, "secrets": {"API_KEY": value}})
    assert (answer.status, said in answer.text, "canary" in answer.text) == (400, True, False)


@pytest.mark.parametrize(
    "body", [{"workdir": "/a\0b"}, {"code": {"sha256": "0" * 64, "git": "\x1b[2J"}}, {"key": "a\0b"}], ids=str
)
def test_what_no_database_takes_or_no_terminal_should_get_is_refused(served: Served, body: dict[str, object]) -> None:
    assert served("POST", "/api/v1/runs", SUBMISSION | body).status == 400
    assert served("GET", "/api/v1/runs?name=a%00b").status == 400
    assert served("GET", "/api/v1/runs/a%00b").status == 400


def test_a_lone_surrogate_is_refused_by_its_key_and_what_is_no_json_as_such(served: Served) -> None:
    raw = json.dumps(SUBMISSION | {"workdir": "/w/\udcff"}).encode()
    answer = served("POST", "/api/v1/runs", raw)
    assert answer.status == 400
    assert answer.json["error"].startswith("workdir: ")
    for raw in (b"{", b"\xff", b"[" * 100_000):
        assert served("POST", "/api/v1/runs", raw).json == {"error": "the body is not JSON", "code": 2}
    assert served("POST", "/api/v1/runs", b"[]").json["error"].startswith("the body: ")
