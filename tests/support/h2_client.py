"""The client's side of an HTTP/2 conversation, byte by byte, for tests of the server's.

Owns: frames with every oddity a test wants, and a reading of what the server wrote. Knows no state machine: what is
legal is the test's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from hpack import Decoder, Encoder

from extproc.transport import frames as f
from extproc.transport.frames import ErrorCode
from extproc.transport.h2 import Connection, Event
from extproc.transport.header_blocks import KnownBlocks

REQUEST = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/some.Service/Method"),
    ("content-type", "application/grpc"),
)
GREETING = f.PREFACE + f.settings_frame({})
SETTINGS_ACK = f.frame(f.SETTINGS, f.ACK, 0)


class Frame(NamedTuple):
    """A frame that the server wrote."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes

    @property
    def code(self) -> ErrorCode:
        """The error code of a RST_STREAM or GOAWAY."""
        at = 4 if self.kind == f.GOAWAY else 0
        return ErrorCode(int.from_bytes(self.payload[at : at + 4], "big"))


def frames_of(data: bytes) -> Iterator[Frame]:
    """Cut what the server wrote into frames; AssertionError when something is left over."""
    position = 0
    while position < len(data):
        high, low, kind, flags, stream_id = f.HEAD.unpack_from(data, position)
        start = position + f.HEAD_BYTES
        position = start + (high << 8 | low)
        assert position <= len(data), "the server wrote half a frame"
        yield Frame(kind, flags, stream_id, data[start:position])


class Client:
    """A conversation with one Connection; `heard` is everything the server wrote so far."""

    def __init__(self, *, known: KnownBlocks | None = None, stream_limit: int = 100, greet: bool = True) -> None:
        self.server = Connection(KnownBlocks() if known is None else known, stream_limit)
        self.heard: list[Frame] = []
        self.encoder = Encoder()
        self.decoder = Decoder()
        if greet:
            self.say(GREETING)

    def say(self, data: bytes) -> list[Event]:
        """Send bytes; returns the server's events and keeps its frames."""
        events = self.server.receive(data)
        self.listen()
        return events

    def listen(self) -> list[Frame]:
        """Return what the server writes now."""
        new: list[Frame] = []
        while out := self.server.outbox.take():
            new += frames_of(out)
        self.heard += new
        return new

    def request(
        self,
        stream_id: int,
        fields: tuple[tuple[str, str], ...] = REQUEST,
        *,
        end: bool = False,
    ) -> list[Event]:
        """Open a stream."""
        flags = f.END_HEADERS | (f.END_STREAM if end else 0)
        return self.say(f.frame(f.HEADERS, flags, stream_id, self.encoder.encode(list(fields))))

    def last(self, kind: int) -> Frame:
        """Return the newest frame of a type."""
        return next(frame for frame in reversed(self.heard) if frame.kind == kind)

    def kinds(self) -> list[int]:
        """Return the types of all frames heard."""
        return [frame.kind for frame in self.heard]
