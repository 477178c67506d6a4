"""The processes that call us, told apart by their sockets, and when one of them is gone.

Envoy keeps connections open for as long as it lives and reports a request only when that ends, so the requests of an
Envoy that was killed end with its last connection. What it wrote before is read by then: a socket gives its data
before its end. Where a process cannot be told (TCP, another PID namespace, other systems), all count as one.
"""

from __future__ import annotations

import asyncio
import math
import socket
import struct
from collections.abc import Callable

UNKNOWN = 0
_CREDENTIALS = struct.Struct("3i")
"""Linux's `struct ucred`: https://man7.org/linux/man-pages/man7/unix.7.html."""


class Callers:
    """Counts each process's connections; `on_gone` is told of one that has none left, and since when others call."""

    def __init__(self, clock: Callable[[], float], on_gone: Callable[[float], None]) -> None:
        self._clock = clock
        self._on_gone = on_gone
        self._connections: dict[int, int] = {}
        self._since: dict[int, float] = {}

    def came(self, process: int) -> None:
        """Count a connection on which the first call came."""
        self._since.setdefault(process, self._clock())
        self._connections[process] = self._connections.get(process, 0) + 1

    def left(self, process: int, *, ended_by_us: bool) -> None:
        """Count a connection no longer; one that we ended says nothing about the process."""
        self._connections[process] -= 1
        if self._connections[process]:
            return
        del self._connections[process], self._since[process]
        if not ended_by_us:
            self._on_gone(min(self._since.values(), default=math.inf))


def process_of(transport: asyncio.Transport) -> int:
    """Return the pid at the other end of a connection, `UNKNOWN` where that cannot be told."""
    found = transport.get_extra_info("socket")
    option = getattr(socket, "SO_PEERCRED", None)
    if found is None or found.family != socket.AF_UNIX or option is None:
        return UNKNOWN
    pid: int = _CREDENTIALS.unpack(found.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size))[0]
    return pid
