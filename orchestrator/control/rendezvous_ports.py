"""Which port the ranks of an attempt meet at, and how it is kept for them: on the node of rank 0."""

from __future__ import annotations

import socket


class RendezvousPorts:
    """Ports that nobody else is given while their attempts live."""

    def __init__(self, address: str) -> None:
        self._family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._held: dict[str, socket.socket] = {}

    def reserve(self, key: str) -> int:
        """The attempt's port, the same however often it is asked for.

        The socket stays bound and never listens: with SO_REUSEADDR on both, rank 0's store may bind and listen on the port,
        while the kernel gives it to no bind(0) and no outgoing connection.
        """
        if key not in self._held:
            held = socket.socket(self._family)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(("", 0))
            self._held[key] = held
        port: int = self._held[key].getsockname()[1]
        return port

    def free(self, key: str) -> None:
        """The attempt has ended, or could not be started."""
        if held := self._held.pop(key, None):
            held.close()
