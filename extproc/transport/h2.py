"""One HTTP/2 connection of a server, sans-IO: bytes in and events out, calls in and bytes out (RFC 9113).

Speaks the subset that a gRPC client on the same machine uses: no push, no priorities, no upgrade. Owns framing,
stream states and the windows we give; leaves what is written and the peer's windows to outbox.py, header blocks to
header_blocks.py, messages to fast.py. It is meant for a local, trusted Envoy: it bounds what one connection can hold,
and makes no attempt to outlast an attacker.

Invariants: an error of the connection ends it with GOAWAY and `failed`, an error of one stream with RST_STREAM;
`receive` never raises; at most one frame and one header block are held between calls.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import iter_unpack
from typing import Final, NamedTuple

from extproc.transport import frames as f
from extproc.transport.frames import ErrorCode, Setting
from extproc.transport.header_blocks import BadBlockError, BlockReader, Fields, KnownBlocks
from extproc.transport.outbox import (
    CONNECTION_WINDOW_BYTES,
    DEFAULT_WINDOW_BYTES,
    STREAM_WINDOW_BYTES,
    Outbox,
    Stream,
)

FRAME_LIMIT_BYTES: Final = 16384
"""The largest frame we take: the size every peer may send without asking."""
BLOCK_LIMIT_BYTES: Final = 32 * 1024
BLOCK_LIMIT_FRAMES: Final = 16
_LAST_CALL: Final = b"lastcall"


class Opened(NamedTuple):
    """A request began."""

    stream: Stream
    fields: Fields
    end: bool


class Data(NamedTuple):
    """A piece of a request's body; `end` says that it is the last."""

    stream: Stream
    chunk: bytes
    end: bool


class Gone(NamedTuple):
    """The stream ended without our doing: the peer reset it, or broke the protocol on it."""

    stream: Stream


Event = Opened | Data | Gone


class _ConnectionFault(Exception):  # noqa: N818 - the peer's, not ours
    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class _StreamFault(Exception):  # noqa: N818 - the peer's, not ours
    def __init__(self, stream_id: int, code: ErrorCode) -> None:
        super().__init__(code.name)
        self.stream_id = stream_id
        self.code = code


class _Block(NamedTuple):
    """A header block under way."""

    stream_id: int
    end: bool
    parts: list[bytes]


class Connection:
    """The server's side of one connection; see the module."""

    def __init__(self, known: KnownBlocks, stream_limit: int) -> None:
        self.outbox = Outbox()
        self.failed = False
        """Whether the connection is over; close it once `take` has been written."""
        self._stream_limit = stream_limit
        self._blocks = BlockReader(known)
        self._rest = b""
        self._greeted = self._settled = False
        self._block: _Block | None = None
        self._last_id = 0
        self._refused_above = f.STREAM_MASK
        self._receive_window = CONNECTION_WINDOW_BYTES
        self._handlers: dict[int, Callable[[int, int, bytes, list[Event]], None]] = {
            f.DATA: self._on_data,
            f.HEADERS: self._on_headers,
            f.PRIORITY: self._on_priority,
            f.RST_STREAM: self._on_rst_stream,
            f.SETTINGS: self._on_settings,
            f.PUSH_PROMISE: self._on_push_promise,
            f.PING: self._on_ping,
            f.GOAWAY: self._on_goaway,
            f.WINDOW_UPDATE: self._on_window_update,
            f.CONTINUATION: self._on_continuation,
        }
        values = {
            Setting.HEADER_TABLE_SIZE: 0,
            Setting.MAX_CONCURRENT_STREAMS: stream_limit,
            Setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES,
            Setting.MAX_HEADER_LIST_SIZE: BLOCK_LIMIT_BYTES,
        }
        self.outbox.put(f.settings_frame(values))
        self.outbox.put(f.window_update(0, CONNECTION_WINDOW_BYTES - DEFAULT_WINDOW_BYTES))

    # -- what a caller does -------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> list[Event]:
        """Take bytes from the peer; returns what they mean, and leaves answers for `take`."""
        events: list[Event] = []
        if self.failed:
            return events
        if self._rest:
            data = self._rest + data
        try:
            self._rest = data[self._read(data, events) :]
        except _ConnectionFault as fault:
            self._fail(fault)
        return events

    def go_away(self) -> None:
        """Ask the peer to open no new streams; those under way go on, late ones until our PING is answered."""
        if not self.failed:
            self.outbox.put(f.goaway(f.STREAM_MASK, ErrorCode.NO_ERROR))
            self.outbox.put(f.frame(f.PING, 0, 0, _LAST_CALL))

    # -- reading -------------------------------------------------------------------------------------------------

    def _read(self, data: bytes, events: list[Event]) -> int:
        """Handle every whole frame; returns how many bytes that took."""
        size, position = len(data), 0
        if not self._greeted:
            if not data.startswith(f.PREFACE[:size]):
                raise _ConnectionFault(ErrorCode.PROTOCOL_ERROR, "not an HTTP/2 client")
            if size < len(f.PREFACE):
                return 0
            self._greeted, position = True, len(f.PREFACE)
        unpack, handlers = f.HEAD.unpack_from, self._handlers
        while size - position >= f.HEAD_BYTES:
            high, low, kind, flags, stream_id = unpack(data, position)
            length = high << 8 | low
            if length > FRAME_LIMIT_BYTES:
                raise _ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "frame too large")
            start = position + f.HEAD_BYTES
            if size - start < length:
                break
            position = start + length
            if (self._block is not None and kind != f.CONTINUATION) or not self._settled:
                self._check_order(kind, flags)
            handler = handlers.get(kind)
            if handler is not None:
                try:
                    handler(flags, stream_id & f.STREAM_MASK, data[start:position], events)
                except _StreamFault as fault:
                    self._break(fault, events)
        return position

    def _check_order(self, kind: int, flags: int) -> None:
        if self._block is not None and kind != f.CONTINUATION:
            raise _ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a header block was interrupted")
        if not self._settled and (kind != f.SETTINGS or flags & f.ACK):
            raise _ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS must come first")
        self._settled = True

    def _on_data(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        size = len(payload)
        self._receive_window -= size
        if self._receive_window < CONNECTION_WINDOW_BYTES // 2:
            self._widen()
        stream = self.outbox.streams.get(stream_id)
        if stream is None:
            # What was under way when we ended the stream is dropped.
            self._check_was_open(stream_id)
            return
        if stream.remote_ended:
            raise _StreamFault(stream_id, ErrorCode.STREAM_CLOSED)
        stream.receive_window -= size
        if stream.receive_window < 0:
            raise _StreamFault(stream_id, ErrorCode.FLOW_CONTROL_ERROR)
        if flags & f.PADDED:
            payload = _unpadded(payload)
        end = bool(flags & f.END_STREAM)
        stream.remote_ended = end
        if not end and stream.receive_window < STREAM_WINDOW_BYTES // 2:
            self.outbox.widen(stream)
        events.append(Data(stream, payload, end))

    def _widen(self) -> None:
        if self._receive_window < 0:
            raise _ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "more DATA than the connection's window")
        self.outbox.put(f.window_update(0, CONNECTION_WINDOW_BYTES - self._receive_window))
        self._receive_window = CONNECTION_WINDOW_BYTES

    def _on_headers(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if not stream_id & 1:
            raise _ConnectionFault(ErrorCode.PROTOCOL_ERROR, "HEADERS on a stream that a client cannot open")
        if flags & f.PADDED:
            payload = _unpadded(payload)
        if flags & f.PRIORITIZED:
            if len(payload) < 5:
                raise _ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS too short")
            payload = payload[5:]
        end = bool(flags & f.END_STREAM)
        if flags & f.END_HEADERS:
            self._on_block(stream_id, payload, end, events)
        else:
            self._block = _Block(stream_id, end, [payload])

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        block = self._block
        if block is None or block.stream_id != stream_id:
            raise _ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION of nothing")
        block.parts.append(payload)
        if len(block.parts) > BLOCK_LIMIT_FRAMES or sum(map(len, block.parts)) > BLOCK_LIMIT_BYTES:
            raise _ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header block too large")
        if flags & f.END_HEADERS:
            self._block = None
            self._on_block(stream_id, b"".join(block.parts), block.end, events)

    def _on_block(self, stream_id: int, block: bytes, end: bool, events: list[Event]) -> None:
        stream = self.outbox.streams.get(stream_id)
        try:
            # Trailers are decoded like a request, to keep the compression state, and not looked at.
            fields = self._blocks.read(block)
        except BadBlockError as error:
            raise _ConnectionFault(ErrorCode.COMPRESSION_ERROR, str(error)) from None
        if stream is not None:
            self._on_trailers(stream, end, events)
        elif stream_id <= self._last_id:
            # Trailers may have been under way when we ended the stream; a request cannot have been.
            if not end:
                raise _ConnectionFault(ErrorCode.PROTOCOL_ERROR, "HEADERS on a stream that is over")
        else:
            self._last_id = stream_id
            if stream_id <= self._refused_above:
                self._open(stream_id, fields, end, events)

    def _open(self, stream_id: int, fields: Fields | None, end: bool, events: list[Event]) -> None:
        if fields is None:
            raise _StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR)
        if len(self.outbox.streams) >= self._stream_limit:
            raise _StreamFault(stream_id, ErrorCode.REFUSED_STREAM)
        stream = self.outbox.open(stream_id)
        stream.remote_ended = end
        events.append(Opened(stream, fields, end))

    def _on_trailers(self, stream: Stream, end: bool, events: list[Event]) -> None:
        if stream.remote_ended:
            raise _StreamFault(stream.id, ErrorCode.STREAM_CLOSED)
        if not end:
            raise _StreamFault(stream.id, ErrorCode.PROTOCOL_ERROR)
        stream.remote_ended = True
        events.append(Data(stream, b"", True))

    def _on_priority(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if stream_id == 0:
            raise _ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY without a stream")
        if len(payload) != 5:
            raise _StreamFault(stream_id, ErrorCode.FRAME_SIZE_ERROR)

    def _on_rst_stream(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if len(payload) != 4:
            raise _ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM of a wrong size")
        stream = self.outbox.streams.get(stream_id)
        if stream is None:
            self._check_was_open(stream_id)
        else:
            self.outbox.forget(stream)
            events.append(Gone(stream))

    def _on_settings(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if stream_id:
            raise _ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        if len(payload) % 6 or (flags & f.ACK and payload):
            raise _ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS of a wrong size")
        if flags & f.ACK:
            self._blocks.table_is_off()
            return
        for name, value in iter_unpack(">HI", payload):
            self._set(name, value)
        self.outbox.put(f.frame(f.SETTINGS, f.ACK, 0))

    def _set(self, name: int, value: int) -> None:
        if name == Setting.HEADER_TABLE_SIZE:
            self.outbox.announce_table = True
        elif name == Setting.ENABLE_PUSH and value > 1:
            raise _ConnectionFault(ErrorCode.PROTOCOL_ERROR, "ENABLE_PUSH out of range")
        elif name == Setting.MAX_FRAME_SIZE:
            if not FRAME_LIMIT_BYTES <= value < 1 << 24:
                raise _ConnectionFault(ErrorCode.PROTOCOL_ERROR, "MAX_FRAME_SIZE out of range")
            self.outbox.frame_limit = value
        elif name == Setting.INITIAL_WINDOW_SIZE:
            if value > f.LARGEST_WINDOW:
                raise _ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE out of range")
            change, self.outbox.first_window = value - self.outbox.first_window, value
            for stream in self.outbox.streams.values():
                stream.send_window += change
                if stream.send_window > f.LARGEST_WINDOW:
                    raise _ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "a window grew too large")

    def _on_push_promise(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        raise _ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE from a client")

    def _on_ping(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if stream_id:
            raise _ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise _ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PING of a wrong size")
        if not flags & f.ACK:
            self.outbox.put(f.frame(f.PING, f.ACK, 0, payload))
        elif payload == _LAST_CALL and self._refused_above == f.STREAM_MASK:
            self._refused_above = self._last_id
            self.outbox.put(f.goaway(self._last_id, ErrorCode.NO_ERROR))

    def _on_goaway(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        # The peer opens no more streams; those under way end as they would.
        if stream_id:
            raise _ConnectionFault(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < 8:
            raise _ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY of a wrong size")

    def _on_window_update(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if len(payload) != 4:
            raise _ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE of a wrong size")
        increment = int.from_bytes(payload, "big") & f.STREAM_MASK
        if stream_id == 0:
            self.outbox.send_window += increment
            if not increment or self.outbox.send_window > f.LARGEST_WINDOW:
                code = ErrorCode.FLOW_CONTROL_ERROR if increment else ErrorCode.PROTOCOL_ERROR
                raise _ConnectionFault(code, "WINDOW_UPDATE out of range")
            return
        stream = self.outbox.streams.get(stream_id)
        if stream is None:
            self._check_was_open(stream_id)
            return
        stream.send_window += increment
        if not increment or stream.send_window > f.LARGEST_WINDOW:
            raise _StreamFault(stream_id, ErrorCode.FLOW_CONTROL_ERROR if increment else ErrorCode.PROTOCOL_ERROR)

    def _check_was_open(self, stream_id: int) -> None:
        """Frames may be late for a stream that is over, never early."""
        if not stream_id & 1 or stream_id > self._last_id:
            raise _ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame on a stream that was not opened")

    # -- ends ----------------------------------------------------------------------------------------------------

    def _break(self, fault: _StreamFault, events: list[Event]) -> None:
        self.outbox.put(f.rst_stream(fault.stream_id, fault.code))
        stream = self.outbox.streams.get(fault.stream_id)
        if stream is not None:
            self.outbox.forget(stream)
            events.append(Gone(stream))

    def _fail(self, fault: _ConnectionFault) -> None:
        self.failed = True
        self._rest = b""
        self._block = None
        self.outbox.put(f.goaway(self._last_id, fault.code, fault.reason))


def _unpadded(payload: bytes) -> bytes:
    if not payload:
        raise _ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "padding without its length")
    padding = payload[0]
    if padding >= len(payload):
        raise _ConnectionFault(ErrorCode.PROTOCOL_ERROR, "more padding than frame")
    return payload[1 : len(payload) - padding]
