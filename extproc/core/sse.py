"""An incremental parser of server-sent events.

Owns the bytes-to-events step only; what an event means is `stream_events.py`'s business, and the bytes
themselves are passed on by the caller untouched. Follows
https://html.spec.whatwg.org/multipage/server-sent-events.html with three liberties: `id` and `retry` are
ignored, `finish()` hands out a last event whose blank line never came, and an event beyond the limit is
reported by its beginning instead of being kept.

Invariants: the events do not depend on how the bytes were cut into chunks; nothing here raises on any bytes;
between two calls at most `limit_bytes` + 1 bytes are held.
"""

from __future__ import annotations

from typing import NamedTuple

DEFAULT_LIMIT_BYTES = 1024 * 1024
HEAD_BYTES = 1024

_BOM = b"\xef\xbb\xbf"
_BLANK = b"\n\n"


class Event(NamedTuple):
    """One dispatched event; comments and blocks without a `data` line never become one.

    `data` holds the joined data lines. With `oversized` the event was larger than the limit and `data` is
    only what its first `HEAD_BYTES` held, possibly nothing.
    """

    name: str
    data: bytes
    oversized: bool = False


class SseParser:
    """Turns chunks of a stream into events; `limit_bytes` bounds one event, its field names included."""

    __slots__ = ("_after_cr", "_at_start", "_buffer", "_limit_bytes", "_skipping")

    def __init__(self, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._buffer = bytearray()
        self._after_cr = False
        self._at_start = True
        self._skipping = False

    @property
    def buffered_bytes(self) -> int:
        """How much of an unfinished event is held."""
        return len(self._buffer)

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events that `chunk` completes, in order."""
        buffer = self._buffer
        searched = max(0, len(buffer) - 1)
        buffer += self._with_lf_only(chunk)
        events: list[Event] = []
        begin = 0
        while (end := buffer.find(_BLANK, max(begin, searched))) >= 0:
            self._close_block(bytes(buffer[begin:end]), events)
            begin = end + len(_BLANK)
        if begin:
            del buffer[:begin]
        self._enforce_limit(events)
        return events

    def finish(self) -> list[Event]:
        """Return the event that the end of the stream left without its blank line, if it has data."""
        events: list[Event] = []
        self._close_block(bytes(self._buffer).removesuffix(b"\n"), events)
        self._buffer.clear()
        return events

    def _with_lf_only(self, chunk: bytes) -> bytes:
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
            self._after_cr = False
        if chunk:
            self._after_cr = chunk.endswith(b"\r")
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in chunk else chunk

    def _close_block(self, block: bytes, events: list[Event]) -> None:
        if self._skipping:
            self._skipping = False
            return
        if len(block) > self._limit_bytes:
            events.append(self._marker(block))
        elif event := _parse_block(self._without_bom(block)):
            events.append(event)

    def _enforce_limit(self, events: list[Event]) -> None:
        buffer = self._buffer
        size = len(buffer) - buffer.endswith(b"\n")  # a last LF may turn out to be half of the blank line
        if size <= self._limit_bytes:
            return
        if not self._skipping:
            events.append(self._marker(bytes(buffer[:HEAD_BYTES])))
            self._skipping = True
        del buffer[:-1]

    def _marker(self, block: bytes) -> Event:
        head = self._without_bom(block[: min(HEAD_BYTES, self._limit_bytes)])
        event = _parse_block(head) or Event("", b"")
        return event._replace(oversized=True)

    def _without_bom(self, block: bytes) -> bytes:
        if not self._at_start:
            return block
        self._at_start = False
        return block.removeprefix(_BOM)


def _parse_block(block: bytes) -> Event | None:
    if block.startswith(b"data: ") and b"\n" not in block:
        return Event("", block[6:])
    name = b""
    data: list[bytes] = []
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" "))
        elif field == b"event":
            name = value.removeprefix(b" ")
    return Event(name.decode("utf-8", "replace"), b"\n".join(data)) if data else None
