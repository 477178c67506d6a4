"""What one HTTP/2 connection has to write: frames in order, DATA within the peer's windows (RFC 9113 section 5.2).

Invariants: DATA never exceeds a window or the peer's frame size; a stream's trailers follow all its DATA; at most
about `TURN_BYTES` of DATA leave at once, so that a large message waits here and not in the socket's buffer.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from extproc.transport import frames as f
from extproc.transport.frames import ErrorCode

STREAM_WINDOW_BYTES: Final = 4 * 1024 * 1024
CONNECTION_WINDOW_BYTES: Final = 64 * 1024 * 1024
DEFAULT_WINDOW_BYTES: Final = 65535
DEFAULT_FRAME_BYTES: Final = 16384
HELD_LIMIT_BYTES: Final = 1024 * 1024
"""A stream with more than this waiting for the peer's window gets no new window from us."""
TURN_BYTES: Final = 1024 * 1024
_NO_ERROR: Final = ErrorCode.NO_ERROR.to_bytes(4, "big")


class Stream:
    """One stream; `owner` is for whoever handles its events."""

    __slots__ = ("end_block", "held", "held_bytes", "id", "owner", "receive_window", "remote_ended", "send_window")

    def __init__(self, stream_id: int, send_window: int) -> None:
        self.id = stream_id
        self.owner: object = None
        self.send_window = send_window
        self.receive_window = STREAM_WINDOW_BYTES
        self.remote_ended = False
        self.held: deque[bytes | memoryview] = deque()
        """DATA that waits for a window."""
        self.held_bytes = 0
        self.end_block: bytes | None = None
        """Trailers that wait behind `held`."""


class Outbox:
    """The writing half of a connection; `streams` are those that are not over."""

    def __init__(self) -> None:
        self.streams: dict[int, Stream] = {}
        self.paused = False
        """Whether the socket takes no more: DATA waits."""
        self.frame_limit = DEFAULT_FRAME_BYTES
        self.send_window = self.first_window = DEFAULT_WINDOW_BYTES
        self.announce_table = False
        """Whether the peer changed its table size and has to see an update in the next block."""
        self._held: dict[int, Stream] = {}
        self._out: list[bytes | memoryview] = []
        self._data_bytes = 0

    def put(self, frame: bytes) -> None:
        """Write a frame that no window holds back."""
        self._out.append(frame)

    def take(self) -> bytes:
        """Return what can be written now; ask again until there is nothing."""
        if self._held and not self.paused:
            self._release_held()
        if not self._out:
            return b""
        out = b"".join(self._out)
        self._out.clear()
        self._data_bytes = 0
        return out

    @property
    def waiting(self) -> bool:
        """Whether DATA is held back."""
        return bool(self._held)

    def open(self, stream_id: int) -> Stream:
        """Begin a stream."""
        stream = self.streams[stream_id] = Stream(stream_id, self.first_window)
        return stream

    def forget(self, stream: Stream) -> None:
        """End a stream and drop what it still had to say."""
        del self.streams[stream.id]
        self._held.pop(stream.id, None)
        stream.held.clear()
        stream.held_bytes = 0

    def send_headers(self, stream: Stream, block: bytes) -> None:
        """Send response headers."""
        if stream.id in self.streams:
            self._put_block(stream.id, block, f.END_HEADERS)

    def send_data(self, stream: Stream, data: bytes) -> None:
        """Send a piece of the answer's body as soon as the peer has room for it."""
        size = len(data)
        if stream.id not in self.streams or not size:
            return
        if not self._held and not self.paused and size <= self._room(stream):
            self._put_data(stream, data)
            return
        stream.held.append(data)
        stream.held_bytes += size
        self._held[stream.id] = stream

    def end(self, stream: Stream, block: bytes) -> None:
        """Send trailers after everything else; the stream is over then, even if the peer had more to say."""
        if stream.id not in self.streams:
            return
        if stream.held:
            stream.end_block = block
            return
        self._put_block(stream.id, block, f.END_HEADERS | f.END_STREAM)
        if not stream.remote_ended:
            # Asks the peer to stop, without blame (RFC 9113, 8.1).
            self._out.append(f.frame_head(4, f.RST_STREAM, 0, stream.id))
            self._out.append(_NO_ERROR)
        self.forget(stream)

    def widen(self, stream: Stream) -> None:
        """Give a stream its whole window back, unless it takes no more of our answers."""
        if not stream.remote_ended and stream.held_bytes <= HELD_LIMIT_BYTES:
            self.put(f.window_update(stream.id, STREAM_WINDOW_BYTES - stream.receive_window))
            stream.receive_window = STREAM_WINDOW_BYTES

    def _put_block(self, stream_id: int, block: bytes, flags: int) -> None:
        if self.announce_table:
            self.announce_table = False
            block = f.TABLE_EMPTIED + block
        self._out.append(f.frame_head(len(block), f.HEADERS, flags, stream_id))
        self._out.append(block)

    def _put_data(self, stream: Stream, data: bytes | memoryview) -> None:
        size = len(data)
        stream.send_window -= size
        self.send_window -= size
        self._data_bytes += size
        self._out.append(f.frame_head(size, f.DATA, 0, stream.id))
        self._out.append(data)

    def _room(self, stream: Stream) -> int:
        return min(stream.send_window, self.send_window, self.frame_limit, TURN_BYTES - self._data_bytes)

    def _release_held(self) -> None:
        """Send what the windows allow, the streams in turn."""
        for stream in list(self._held.values()):
            if self.send_window <= 0 or self._data_bytes >= TURN_BYTES:
                return
            # Out and in again: a stream that could not send all is the last of the next turn.
            del self._held[stream.id]
            self._release(stream)
            if stream.held:
                self._held[stream.id] = stream
            elif stream.end_block is not None:
                self.end(stream, stream.end_block)
            elif stream.receive_window < STREAM_WINDOW_BYTES // 2:
                self.widen(stream)

    def _release(self, stream: Stream) -> None:
        while stream.held and (room := self._room(stream)) > 0:
            first = stream.held[0]
            if room >= len(first):
                piece = stream.held.popleft()
            else:
                view = memoryview(first)
                piece, stream.held[0] = view[:room], view[room:]
            stream.held_bytes -= len(piece)
            self._put_data(stream, piece)
