"""What hostile callers can say in HTTP/2 to real Envoy: each is refused, no provider sees it, nobody else notices."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from typing import NamedTuple

import pytest
from hpack import Decoder, Encoder, NeverIndexedHeaderTuple

from extproc.transport import frames as f
from tests.e2e.conftest import Shared
from tests.support.gateway import Gateway
from tests.support.h2_client import GREETING, Frame

PATH = "/v1/chat/completions"
BODY = b'{"model":"demo-primary","messages":[]}'
PSEUDO = ((":method", "POST"), (":scheme", "http"), (":authority", "gateway"), (":path", PATH))
PLAIN = (*PSEUDO, ("content-type", "application/json"), ("content-length", str(len(BODY))))
ANSWER_WITHIN_S = 10.0


class Heard(NamedTuple):
    """How Envoy answered the first stream: a status, a reset, or the end of the whole connection."""

    status: int | None
    reset: bool
    ended: bool

    @property
    def refused(self) -> bool:
        """Whether the request got nowhere: no answer but 400, and no silence."""
        return self.status == 400 or (self.status is None and (self.reset or self.ended))


def say(gateway: Gateway, *frames: bytes, stream_id: int = 1) -> Heard:
    """Open a connection, say all this, and listen until the stream or the connection is over."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=ANSWER_WITHIN_S) as connection:
        with suppress(ConnectionError):  # Envoy may have heard enough before the end
            connection.sendall(GREETING + b"".join(frames))
        return listen(connection, stream_id)


def listen(connection: socket.socket, stream_id: int) -> Heard:
    """Read frames until the stream is over; TimeoutError when Envoy says nothing."""
    decoder, data, status = Decoder(), bytearray(), None
    while True:
        try:
            piece = connection.recv(65536)
        except ConnectionError:
            piece = b""
        data += piece
        for frame in whole_frames(data):
            if frame.kind == f.HEADERS:
                # Each block must be read, whosever it is: the table of names is the connection's.
                told = {str(name): str(value) for name, value in decoder.decode(frame.payload)}
                status = int(told.get(":status", "0")) if frame.stream_id == stream_id else status
            ours = frame.stream_id == stream_id
            if ours and frame.kind == f.RST_STREAM:
                return Heard(status, True, False)
            if frame.kind == f.GOAWAY:
                return Heard(status, False, True)
            if ours and frame.kind in (f.HEADERS, f.DATA) and frame.flags & f.END_STREAM:
                return Heard(status, False, False)
        if not piece:
            return Heard(status, False, True)


def whole_frames(data: bytearray) -> Iterable[Frame]:
    """Take whole frames out of what was read."""
    while len(data) >= f.HEAD_BYTES:
        high, low, kind, flags, stream_id = f.HEAD.unpack_from(data, 0)
        end = f.HEAD_BYTES + (high << 8 | low)
        if len(data) < end:
            return
        payload = bytes(data[f.HEAD_BYTES : end])
        del data[:end]
        yield Frame(kind, flags, stream_id, payload)


def headers(fields: Iterable[tuple[str, str]], *, end: bool = False, stream_id: int = 1) -> bytes:
    """Write a HEADERS frame with exactly these fields, whatever HTTP thinks of them."""
    return f.frame(f.HEADERS, f.END_HEADERS | (f.END_STREAM if end else 0), stream_id, _block(tuple(fields)))


@cache
def _block(fields: tuple[tuple[str, str], ...]) -> bytes:
    return Encoder().encode(
        [NeverIndexedHeaderTuple(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields]
    )


def body(data: bytes = BODY, stream_id: int = 1) -> bytes:
    """Write a DATA frame that ends the request."""
    return f.frame(f.DATA, f.END_STREAM, stream_id, data)


def with_field(name: str, value: str) -> tuple[tuple[str, str], ...]:
    return (*PLAIN, (name, value))


def without(name: str) -> tuple[tuple[str, str], ...]:
    return tuple(field for field in PLAIN if field[0] != name)


REQUESTS = {
    "an upper-case name": with_field("X-Upper", "1"),
    "an empty name": with_field("", "1"),
    "a space in a name": with_field("x a", "1"),
    "a colon in a name": with_field("x:a", "1"),
    "a line in a name": with_field("x\r\nevil", "1"),
    "NUL in a name": with_field("x\x00", "1"),
    "an underscore in a name": with_field("x_y", "1"),
    "CR LF in a value": with_field("x-a", "b\r\nx-evil: 1"),
    "LF in a value": with_field("x-a", "b\nc"),
    "CR in a value": with_field("x-a", "b\rc"),
    "NUL in a value": with_field("x-a", "b\x00c"),
    "connection": with_field("connection", "close"),
    "transfer-encoding": with_field("transfer-encoding", "chunked"),
    "keep-alive": with_field("keep-alive", "1"),
    "upgrade": with_field("upgrade", "websocket"),
    "another te": with_field("te", "gzip"),
    "no method": without(":method"),
    "no path": without(":path"),
    "no scheme": without(":scheme"),
    "no pseudo header at all": PLAIN[4:],
    "two methods": ((":method", "GET"), *PLAIN),
    "two paths": ((":path", "/healthz"), *PLAIN),
    "an empty path": (*without(":path")[:3], (":path", ""), *PLAIN[4:]),
    "a status in a request": ((":status", "200"), *PLAIN),
    "a pseudo header nobody knows": ((":evil", "1"), *PLAIN),
    "a pseudo header after the others": (*without(":path"), (":path", PATH)),
    "a line in the path": (*without(":path")[:3], (":path", f"{PATH}\r\nx-evil: 1"), *PLAIN[4:]),
    "two lengths": with_field("content-length", "5"),
    "a negative length": (*without("content-length"), ("content-length", "-1")),
    "a hexadecimal length": (*without("content-length"), ("content-length", "0x26")),
    "a length beyond 64 bits": (*without("content-length"), ("content-length", "9" * 30)),
    "more body than its length": (*without("content-length"), ("content-length", "2")),
    "less body than its length": (*without("content-length"), ("content-length", "9999")),
}


@pytest.mark.parametrize("fields", REQUESTS.values(), ids=REQUESTS)
def test_a_malformed_request_is_refused(shared: Shared, fields: tuple[tuple[str, str], ...]) -> None:
    """With 400, or by ending the stream or the connection (RFC 9113, 8.1.1); the next caller is served."""
    heard = say(shared.gateway, headers(fields), body())

    assert heard.refused, heard
    assert 0 == shared.primary.count() + shared.fallback.count()
    assert 200 == shared.gateway.chat().status


FRAMES = {
    "data on stream 0": f.frame(f.DATA, 0, 0, b"x"),
    "headers on stream 0": headers(PLAIN, stream_id=0),
    "headers on a stream of the server's": headers(PLAIN, stream_id=2),
    "data before headers": body(),
    "a continuation of nothing": f.frame(f.CONTINUATION, f.END_HEADERS, 1, b""),
    "a frame between headers and their continuation": f.frame(f.HEADERS, 0, 1, b"") + f.frame(f.PING, 0, 0, bytes(8)),
    "settings of half an entry": f.frame(f.SETTINGS, 0, 0, b"abc"),
    "a window that opens by nothing": f.frame(f.WINDOW_UPDATE, 0, 0, bytes(4)),
    "a block that is no HPACK": f.frame(f.HEADERS, f.END_HEADERS, 1, b"\xff" * 32),
    "a frame larger than was agreed": f.HEAD.pack(0x01, 0x0001, f.DATA, 0, 1) + bytes(0x10001),
    "padding longer than its frame": f.frame(f.DATA, 0x8, 1, b"\xff"),
    "continuations without an end": f.frame(f.HEADERS, 0, 1, b"") + f.frame(f.CONTINUATION, 0, 1, b"x" * 1000) * 500,
    "thousands of resets": b"".join(
        headers(PLAIN, stream_id=number) + f.rst_stream(number, f.ErrorCode.CANCEL) for number in range(1, 20_001, 2)
    ),
    "thousands of empty data frames": headers(PLAIN) + f.frame(f.DATA, 0, 1, b"") * 20_000,
    "thousands of pings": f.frame(f.PING, 0, 0, bytes(8)) * 50_000,
    "thousands of settings": f.frame(f.SETTINGS, 0, 0, b"") * 50_000,
}


@pytest.mark.parametrize("frames", FRAMES.values(), ids=FRAMES)
def test_frames_that_break_the_protocol_harm_their_own_connection_only(shared: Shared, frames: bytes) -> None:
    with socket.create_connection(("127.0.0.1", shared.gateway.port), timeout=ANSWER_WITHIN_S) as bystander:
        bystander.sendall(GREETING + headers(PLAIN))

        heard = say(shared.gateway, frames)

        assert heard.refused, heard
        bystander.sendall(body())
        assert 200 == listen(bystander, 1).status
    assert 200 == shared.gateway.chat().status
