"""A controller made of canned answers, for commands that are run as their users run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from orchestrator.jobfile import JobFileError, parse_job

ROOT = Path(__file__).resolve().parents[3]
TOKEN = "a-token"


def a_run(**changes: Any) -> dict[str, Any]:
    """A run as `GET /runs/REF` gives it."""
    part = {"node": "gpu-01", "gpus": [0, 1], "ranks": [0, 1]}
    attempt = {
        "number": 1,
        "outcome": "succeeded",
        "failure": None,
        "placement": {"level": "node", "device": "cuda", "nodes": [part]},
        "started_at": "2026-11-23T10:00:05Z",
        "ended_at": "2026-11-23T10:03:05Z",
        "exit_codes": {"0": 0, "1": 0},
    }
    run = {
        "id": 42,
        "name": "resnet50",
        "user": "ana",
        "team": "vision",
        "state": "succeeded",
        "reason": None,
        "submitted_at": "2026-11-23T10:00:00Z",
        "started_at": "2026-11-23T10:00:05Z",
        "finished_at": "2026-11-23T10:03:05Z",
        "priority": 0,
        "spec": {"name": "resnet50", "run": "train.py", "workers": "1x2", "secrets": []},
        "code": {"sha256": "ab" * 32, "git": "cd" * 20, "dirty": True},
        "attempts": [attempt],
        "events": [{"at": "2026-11-23T10:00:00Z", "event": "submitted", "state": "queued", "reason": None}],
    }
    return run | changes


class Stub:
    """The controller's end: `answers` maps "METHOD /path" to (status, JSON), or to a function that gets the handler."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.answers: dict[str, Any] = {
            "GET /status": (
                200,
                {
                    "controller": "up",
                    "address": "x:1",
                    "api_url": "u",
                    "dashboard_url": None,
                    "nodes": 2,
                    "gpus": {"total": 16, "busy": 4},
                },
            ),
            "POST /runs": (201, {"id": 42, "name": "train", "state": "queued", "notices": []}),
        }
        self.checked = 0
        self.asked: list[tuple[str, dict[str, list[str]], Any]] = []
        self.code: dict[str, bytes] = {}
        home.mkdir(mode=0o700, exist_ok=True)
        (home / "token").touch(mode=0o600)
        (home / "token").write_text(TOKEN)
        self.start()

    def start(self, port: int = 0) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        (self.home / "controller.json").write_text(json.dumps({"url": self.url, "pid": os.getpid(), "version": "0"}))
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def calls(self) -> list[str]:
        return [call for call, _, _ in self.asked]

    def check(self, body: dict[str, Any]) -> tuple[int, Any]:
        """As the controller does."""
        try:
            spec = parse_job(body["text"], body["filename"], body["overrides"])
        except JobFileError as error:
            return 400, {"error": str(error), "code": 2}
        self.checked += 1
        return 200, {"spec": spec.model_dump(mode="json")}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None: ...

            def respond(self) -> None:
                parts = urlsplit(self.path)
                path = parts.path.removeprefix("/api/v1")
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    return self.answer(401, {"error": "the token is wrong", "code": 4})
                call = f"{self.command} {path}"
                if path.startswith("/code/"):
                    sha = path.removeprefix("/code/")
                    stub.asked.append((f"{self.command} /code", {}, None))
                    if self.command == "PUT":
                        stub.code[sha] = body
                    return self.answer(200 if sha in stub.code else 404, None)
                if call == "POST /check":  # asks and changes nothing, so it is not among what was asked
                    return self.answer(*stub.check(json.loads(body)))
                stub.asked.append((call, parse_qs(parts.query), json.loads(body) if body else None))
                given = stub.answers.get(call, (404, {"error": f"no such run: {path!r}", "code": 3}))
                return given(self) if callable(given) else self.answer(*given)

            do_GET = do_POST = do_PUT = do_HEAD = respond  # noqa: N815

            def answer(self, status: int, value: Any) -> None:
                data = b"" if value is None else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def begin(self) -> None:
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()

            def tell(self, *values: Any) -> None:
                """Objects of a stream in one chunk; None is a heartbeat."""
                data = b"".join(b"\n" if value is None else json.dumps(value).encode() + b"\n" for value in values)
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                self.wfile.flush()

            def finish_stream(self) -> None:
                self.wfile.write(b"0\r\n\r\n")

            def break_off(self) -> None:
                self.close_connection = True

        return Handler


def stream(*values: Any, broken: bool = False) -> Callable[[Any], None]:
    """An answer that is a stream of these objects, whole or breaking off after them."""

    def respond(handler: Any) -> None:
        handler.begin()
        if values:
            handler.tell(*values)
        handler.break_off() if broken else handler.finish_stream()

    return respond


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[Stub]:
    stub = Stub(tmp_path / "home")
    yield stub
    stub.stop()


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job of two ranks in a folder of its own."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "train.py").write_text("print('hello')\n")
    path = folder / "job.yaml"
    path.write_text("run: train.py\nworkers: 2\n")
    return path


class Orch:
    """Runs `orch` as a process of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        # Neither the variables nor the configuration of whoever runs the tests.
        keep = {name: value for name, value in os.environ.items() if not name.startswith(("ORCH_", "RAY_"))}
        self.env = keep | {
            "ORCH_HOME": str(home),
            "HOME": str(home.parent),
            "XDG_CONFIG_HOME": str(home.parent / "none"),
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "",
            "TZ": "UTC",
        }
        self.command = [sys.executable, "-m", "cli"]

    def __call__(self, *args: Any, timeout: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*self.command, *map(str, args)],
            env=self.env | env,
            cwd=self.home.parent,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def complete(self, words: str) -> list[str]:
        """what bash offers after these words."""
        number = str(len(words.split(" ")) - 1)
        done = self(_ORCH_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=number)
        assert done.stderr == ""
        return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


@pytest.fixture
def orch(tmp_path: Path) -> Orch:
    return Orch(tmp_path / "home")


@pytest.fixture(name="a_run")
def _a_run() -> Callable[..., dict[str, Any]]:
    return a_run


@pytest.fixture(name="stream")
def _stream() -> Callable[..., Callable[[Any], None]]:
    return stream
