"""The wire: one JSON object a line, over a Unix socket, with peers that nobody waits for."""

from __future__ import annotations

import json
import os
import selectors
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

Message = dict[str, Any]
Reply = Callable[[Message], None]


class RefusedError(Exception):
    """What was asked cannot be done; the text is the answer."""


class Connection:
    """One peer on the socket: lines in, lines out, never waiting for it."""

    LIMIT = 64 << 20

    def __init__(self, sock: socket.socket, selector: selectors.BaseSelector) -> None:
        self.sock, self.selector = sock, selector
        self.received, self.unsent = b"", b""
        self.open = True
        sock.setblocking(False)

    def lines(self) -> Iterator[bytes]:
        try:
            chunk = self.sock.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        self.received += chunk
        if not chunk or len(self.received) > self.LIMIT:
            self.open = False
        *whole, self.received = self.received.split(b"\n")
        yield from whole

    def send(self, message: Message) -> None:
        self.unsent += json.dumps(message).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        try:
            self.unsent = self.unsent[self.sock.send(self.unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self.open = False
        if len(self.unsent) > self.LIMIT:
            self.open = False
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self.unsent and self.open else 0)
        if self.selector.get_key(self.sock).events != wanted:
            self.selector.modify(self.sock, wanted, self.selector.get_key(self.sock).data)


class Peers:
    """Everyone who is connected."""

    def __init__(self, selector: selectors.BaseSelector, answer: Callable[[Connection, bytes], None]) -> None:
        """`answer` is called with every line that comes."""
        self.selector, self.answer = selector, answer
        self.connections: list[Connection] = []

    def accept(self, listener: socket.socket) -> None:
        sock, _ = listener.accept()
        _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid != os.getuid():
            sock.close()
            return
        connection = Connection(sock, self.selector)
        self.connections.append(connection)
        self.selector.register(sock, selectors.EVENT_READ, lambda events: self.serve(connection, events))

    def serve(self, connection: Connection, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            connection.flush()
        if events & selectors.EVENT_READ:
            for line in connection.lines():
                self.answer(connection, line)
        if not connection.open:
            self.selector.unregister(connection.sock)
            connection.sock.close()
            self.connections.remove(connection)

    def tell(self, event: Message) -> None:
        for connection in self.connections:
            connection.send(event)
