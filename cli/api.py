"""The conversation with the controller: HTTP on the loopback, every call with a limit on its time."""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from cli.errors import NOT_ALLOWED, UNREACHABLE, Fail, Unreachable
from orchestrator.control.private_file import InsecureHome, read_private

TIMEOUT = 10.0
"""Seconds for any answer; a user never waits longer for a controller that hangs."""
SILENCE = 20.0
"""Seconds without a byte after which a stream is taken for dead; its heartbeat is every 5 s."""


class Lost(Unreachable):
    """The connection broke before the answer was whole: the controller may have done what was asked, or not."""


class Controller:
    """Where the controller is, and the calls that it answers."""

    def __init__(self, home: Path, timeout: float = TIMEOUT) -> None:
        """Reads where the controller says it is. Raises Unreachable where it says nothing."""
        self._home, self._timeout = home, timeout
        self._find()

    def _find(self) -> None:
        path = self._home / "controller.json"
        try:
            found = json.loads(path.read_text())
            url, pid = urlsplit(str(found["url"])), found.get("pid")
            host, port = url.hostname, url.port
        except FileNotFoundError:
            raise Unreachable(f"no controller is running ({path} does not exist): `orch up` starts one") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Unreachable(
                f"{path} does not say where the controller is ({error}): `orch up` writes it again"
            ) from None
        if not host or not port:
            raise Unreachable(f"{path} does not say where the controller is: `orch up` writes it again")
        if isinstance(pid, int) and _gone(pid):
            # Somebody else may have its port by now, and must not be shown the token.
            raise Unreachable(f"the controller has ended (process {pid} is gone): `orch up` starts it again")
        self.url = found["url"]
        self._host, self._port = host, port
        try:
            self._token = read_private(self._home / "token")
        except FileNotFoundError:
            raise Fail(f"{self._home / 'token'} is gone: `orch up` makes a new one", NOT_ALLOWED) from None
        except InsecureHome as error:
            raise Fail(str(error), NOT_ALLOWED) from None

    def call(self, method: str, *path: str | int, query: dict[str, Any] | None = None, body: Any = None) -> Any:
        """One request; gives the JSON that answers it. Raises Fail with the controller's code, Unreachable, Lost."""
        content = None if body is None else json.dumps(body).encode()
        status, data = self._exchange(method, path, query, content, "application/json")
        if status >= 400:
            raise _refusal(status, data, self.url)
        try:
            return json.loads(data) if data else None
        except ValueError:
            raise Unreachable(f"what answers at {self.url} is not orch's controller: `orch up` starts it") from None

    def has_code(self, sha256: str) -> bool:
        return self._exchange("HEAD", ("code", sha256), None, None, "")[0] == 200

    def put_code(self, sha256: str, archive: bytes) -> None:
        status, data = self._exchange("PUT", ("code", sha256), None, archive, "application/gzip")
        if status >= 400:
            raise _refusal(status, data, self.url)

    def stream(
        self, *path: str | int, query: dict[str, Any] | None = None, deadline: float | None = None
    ) -> Iterator[dict[str, Any] | None]:
        """The objects of a stream as they come; None when that is all so far, and with each heartbeat.

        Raises Lost where it breaks off.

        `deadline` is a value of time.monotonic() at which it raises TimeoutError.
        """
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
        try:
            try:
                connection.connect()
                socket = connection.sock
                connection.request("GET", _target(path, query), headers=self._headers())
                answer = connection.getresponse()
                if answer.status >= 400:
                    raise _refusal(answer.status, answer.read(65536), self.url)
                rest = b""
                while True:
                    wait = SILENCE if deadline is None else min(SILENCE, deadline - time.monotonic())
                    if wait <= 0:
                        raise _Late
                    socket.settimeout(wait)
                    block = answer.read1(1 << 16)
                    if not block:
                        break
                    *lines, rest = (rest + block).split(b"\n")
                    for line in lines:
                        if line.strip():
                            yield json.loads(line)
                    yield None
                if rest.strip():
                    raise Lost("the controller's answer broke off")
            except _Late:
                raise TimeoutError from None
            except (OSError, http.client.HTTPException, ValueError) as error:
                if deadline is not None and time.monotonic() >= deadline:
                    raise TimeoutError from None
                raise Lost(f"the controller at {self.url} went away ({_words(error)})") from None
        finally:
            connection.close()

    def _exchange(
        self, method: str, path: tuple[str | int, ...], query: dict[str, Any] | None, body: bytes | None, kind: str
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
        headers = self._headers() | ({"Content-Type": kind} if body is not None else {})
        try:
            connection.connect()
        except OSError as error:
            reason = (
                f"within {self._timeout:g} s" if isinstance(error, TimeoutError) else f"({error.strerror or error})"
            )
            raise Unreachable(f"the controller at {self.url} does not answer {reason}: `orch up` starts it") from None
        try:
            # It may have refused the body before it read all of it, and said why.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, _target(path, query), body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except TimeoutError:
            raise Lost(f"the controller at {self.url} did not answer within {self._timeout:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise Lost(f"the controller at {self.url} went away ({_words(error)})") from None
        finally:
            connection.close()

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token}"}


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing was heard of it for {SILENCE:.0f} s"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return "the connection broke off"


class _Late(Exception):
    """The deadline has come between two reads."""


def _target(path: tuple[str | int, ...], query: dict[str, Any] | None) -> str:
    parts = "/".join(quote(str(part), safe="") for part in path)
    given = {name: value for name, value in (query or {}).items() if value is not None}
    return f"/api/v1/{parts}" + (f"?{urlencode(given, doseq=True)}" if given else "")


def _gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False  # it lives, and is another user's
    return False


_CODES = {400: 2, 401: 4, 403: 4, 404: 3, 409: 7, 413: 2, 422: 5, 503: 6}


def _refusal(status: int, data: bytes, url: str) -> Fail:
    code = _CODES.get(status, UNREACHABLE)
    try:
        answer = json.loads(data)
        sentence, code = str(answer["error"]), int(answer.get("code", code))
    except (ValueError, KeyError, TypeError, AttributeError):
        sentence = f"the controller at {url} answered with HTTP status {status} and no reason"
    return Unreachable(sentence) if code == UNREACHABLE else Fail(sentence, code)
