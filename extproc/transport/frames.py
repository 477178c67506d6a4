"""HTTP/2 frames as bytes (RFC 9113 section 6): the numbers, and the frames and header blocks that a server sends.

Owns spelling only; what may be sent when is h2.py's. Header blocks here are literals without indexing, so they need
no compression state and can be built once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Final
from urllib.parse import quote

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD: Final = struct.Struct(">HBBBI")
"""Length (as 16 and 8 bits), type, flags, stream: 9 bytes."""
HEAD_BYTES: Final = 9
_pack_head: Final = HEAD.pack
STREAM_MASK: Final = 0x7FFFFFFF
LARGEST_WINDOW: Final = 0x7FFFFFFF

# Types and flags are plain numbers: they are compared for every frame.
DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

ACK: Final = 0x1
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITIZED: Final = 0x20


class Setting(IntEnum):
    """SETTINGS parameters that we read or write."""

    HEADER_TABLE_SIZE = 0x1
    ENABLE_PUSH = 0x2
    MAX_CONCURRENT_STREAMS = 0x3
    INITIAL_WINDOW_SIZE = 0x4
    MAX_FRAME_SIZE = 0x5
    MAX_HEADER_LIST_SIZE = 0x6


class ErrorCode(IntEnum):
    """RFC 9113 section 7."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    ENHANCE_YOUR_CALM = 0xB


class GrpcStatus(IntEnum):
    """The gRPC statuses that we answer with."""

    OK = 0
    INVALID_ARGUMENT = 3
    RESOURCE_EXHAUSTED = 8
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Return a whole frame."""
    return frame_head(len(payload), kind, flags, stream_id) + payload


def frame_head(length: int, kind: int, flags: int, stream_id: int) -> bytes:
    """Return the 9 bytes before a payload of `length` bytes."""
    return _pack_head(length >> 8, length & 0xFF, kind, flags, stream_id)


def settings_frame(values: Mapping[Setting, int]) -> bytes:
    """Return a SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", name, value) for name, value in values.items()))


def window_update(stream_id: int, increment: int) -> bytes:
    """Return a WINDOW_UPDATE frame; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream_id, increment.to_bytes(4, "big"))


def rst_stream(stream_id: int, code: ErrorCode) -> bytes:
    """Return a RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream_id, code.to_bytes(4, "big"))


def goaway(last_stream_id: int, code: ErrorCode, reason: str = "") -> bytes:
    """Return a GOAWAY frame; `reason` is for people who read captures."""
    return frame(GOAWAY, 0, 0, struct.pack(">II", last_stream_id, code) + reason.encode())


def header_block(fields: Iterable[tuple[str, str]]) -> bytes:
    """Return fields as literals without indexing and without Huffman coding (RFC 7541 section 6.2.2)."""
    return b"".join(b"\x00" + _string(name) + _string(value) for name, value in fields)


TABLE_EMPTIED: Final = b"\x20"
"""A dynamic table size update to 0: what a peer that changed its table size must see before the next block."""

GRPC_HEADERS: Final = ((":status", "200"), ("content-type", "application/grpc"))


def status_fields(status: GrpcStatus, message: str = "") -> tuple[tuple[str, str], ...]:
    """Return gRPC trailers; the message is percent-encoded as gRPC asks."""
    fields = (("grpc-status", str(status.value)),)
    if not message:
        return fields
    return (*fields, ("grpc-message", quote(message, safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}")))


def _string(text: str) -> bytes:
    raw = text.encode()
    if len(raw) < 0x7F:
        return bytes((len(raw),)) + raw
    rest, length = len(raw) - 0x7F, bytearray((0x7F,))
    while rest >= 0x80:
        length.append(rest & 0x7F | 0x80)
        rest >>= 7
    length.append(rest)
    return bytes(length) + raw
