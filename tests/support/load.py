"""Bounded HTTP/1.1 load over keep-alive connections, with no more parsing than counting needs.

Owns: a fixed number of connections that together send exactly n requests, each answered, failed or timed out.
Leaves to others: what the answers mean, but for a count of the headers a test names. Nothing is retried:
every request is one status or one error, so `sum(statuses) + sum(errors) == n`.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

SWEEP_S = 0.1
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection:[ \t]*close", re.IGNORECASE)
Body = bytes | Callable[[int], bytes]
Notice = Callable[[float, bytes], None]
"""Is given each whole answer, with the monotonic time its request was sent."""


@dataclass(slots=True)
class LoadResult:
    """What n requests came to; `latencies_s` of the answered ones, in the order they ended."""

    statuses: Counter[int] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    headers: Counter[tuple[str, str]] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list, repr=False)
    short: int = 0
    """Answers that came to a clean end and were not whole all the same, when a test told what is whole."""
    seconds: float = 0.0

    @property
    def rps(self) -> float:
        return len(self.latencies_s) / self.seconds if self.seconds else 0.0

    def percentile(self, share: float) -> float:
        """Return the latency in seconds that this share (0..1) of the answers did not exceed."""
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def run_load(
    url: str,
    n: int,
    connections: int = 32,
    body: Body = b"",
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 30.0,
    *,
    method: str = "POST",
    count_headers: Sequence[str] = (),
    rate: float | None = None,
    enough: threading.Event | None = None,
    notice: Notice | None = None,
    is_whole: Callable[[bytes], bool] | None = None,
) -> LoadResult:
    """Send n requests and return when each has an end; `body` may be a function of the request's number.

    `rate` bounds the requests sent each second; once `enough` is set no more are sent. `is_whole` is asked of each
    answer, head and framing included.
    """
    load = _Load(url, n, body, headers or {}, timeout_s, method, count_headers, is_whole)
    load.gap_s = 1 / rate if rate else 0.0
    load.enough = enough or threading.Event()
    load.notice = notice
    return asyncio.run(load.run(min(connections, n)))


class _Load:
    """The work that the connections share."""

    def __init__(
        self,
        url: str,
        n: int,
        body: Body,
        headers: Mapping[str, str],
        timeout_s: float,
        method: str,
        count_headers: Sequence[str],
        is_whole: Callable[[bytes], bool] | None,
    ) -> None:
        self.is_whole = is_whole
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.scheme == "http"
        self.address = (parts.hostname, parts.port or 80)
        self.timeout_s = timeout_s
        self.result = LoadResult()
        self.watched = [
            (
                name.lower(),
                re.compile(rb"\r\n" + re.escape(name).encode() + rb":[ \t]*([^\r]*)", re.IGNORECASE),
            )
            for name in count_headers
        ]
        self.gap_s = 0.0
        self.enough = threading.Event()
        self.notice: Notice | None = None
        self._free_at = 0.0
        self._n, self._sent = n, 0
        self._body = body
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = [f"{method} {target} HTTP/1.1", f"host: {parts.netloc}", "content-type: application/json"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._head = "\r\n".join(lines).encode("latin-1") + b"\r\ncontent-length: "
        self._fixed = self._framed(body) if isinstance(body, bytes) else None

    async def run(self, connections: int) -> LoadResult:
        began = time.monotonic()
        self._open: set[_Caller] = set()
        async with asyncio.TaskGroup() as group:
            sweeper = group.create_task(self._sweep())
            callers = [group.create_task(self._keep_calling()) for _ in range(connections)]
            await asyncio.wait(callers) if callers else None
            sweeper.cancel()
        self.result.seconds = time.monotonic() - began
        return self.result

    @property
    def is_over(self) -> bool:
        return self._sent == self._n or self.enough.is_set()

    def wait_s(self) -> float:
        """Return how long the next request must wait for its turn, which is taken by asking."""
        now = time.monotonic()
        self._free_at = max(now, self._free_at + self.gap_s)
        return self._free_at - now

    def next_request(self) -> bytes | None:
        """Return the bytes of the next request, None when all n were handed out or they were enough."""
        if self.is_over:
            return None
        self._sent += 1
        if self._fixed is not None:
            return self._fixed
        assert not isinstance(self._body, bytes)
        return self._framed(self._body(self._sent - 1))

    def _framed(self, body: bytes) -> bytes:
        return self._head + b"%d\r\n\r\n" % len(body) + body

    async def _keep_calling(self) -> None:
        """Hold one connection open until nothing is left to send, and open another when it breaks."""
        loop = asyncio.get_running_loop()
        while not self.is_over:
            try:
                async with asyncio.timeout(self.timeout_s):
                    _, caller = await loop.create_connection(lambda: _Caller(self), *self.address)
            except OSError as error:
                if self.next_request() is not None:
                    self.result.errors[type(error).__name__] += 1
                continue
            self._open.add(caller)
            await caller.gone
            self._open.discard(caller)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            late = time.monotonic() - self.timeout_s
            for caller in tuple(self._open):
                caller.give_up_if_older_than(late)


class _Caller(asyncio.Protocol):
    """One connection: a request, its answer, the next request."""

    def __init__(self, load: _Load) -> None:
        self._load = load
        self._buffer = bytearray()
        self._busy = False
        self._reason = "cut"
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._take_turn()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._busy:
            reason = type(exc).__name__ if exc is not None else self._reason
            self._load.result.errors[reason] += 1
        self.gone.set_result(None)

    def give_up_if_older_than(self, began: float) -> None:
        if self._busy and self._began < began:
            self._reason = "timeout"
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if not self._busy or end < 0:
            return
        head = bytes(self._buffer[:end])
        if not self._whole(head, end + 4):
            return
        self._note(head)
        if self._load.notice is not None:
            self._load.notice(self._began, bytes(self._buffer))
        if self._load.is_whole is not None and not self._load.is_whole(bytes(self._buffer)):
            self._load.result.short += 1
        self._buffer.clear()
        self._busy = False
        if _CLOSE.search(head):
            self._transport.close()
        else:
            self._take_turn()

    def _whole(self, head: bytes, start: int) -> bool:
        length = _LENGTH.search(head)
        if length is not None:
            return len(self._buffer) >= start + int(length[1])
        if _CHUNKED.search(head):
            return self._buffer.endswith(b"0\r\n\r\n") and (
                len(self._buffer) == start + 5 or self._buffer.endswith(b"\r\n0\r\n\r\n")
            )
        return True

    def _note(self, head: bytes) -> None:
        result = self._load.result
        result.statuses[int(head[9:12])] += 1
        result.latencies_s.append(time.monotonic() - self._began)
        for name, pattern in self._load.watched:
            found = pattern.search(head)
            result.headers[name, found[1].decode("latin-1").strip() if found else ""] += 1

    def _take_turn(self) -> None:
        wait_s = self._load.wait_s() if self._load.gap_s else 0.0
        if wait_s > 0:
            asyncio.get_running_loop().call_later(wait_s, self._send)
        else:
            self._send()

    def _send(self) -> None:
        if self._transport.is_closing():
            return
        request = self._load.next_request()
        if request is None:
            self._transport.close()
            return
        self._busy = True
        self._began = time.monotonic()
        self._transport.write(request)
