"""A collector of traces: takes OTLP over gRPC, keeps what came and reads the few fields that tests ask for.

Owns a reader of protobuf's wire format for those fields, so that no OpenTelemetry package is needed.
https://github.com/open-telemetry/opentelemetry-proto/blob/v1.3.2/opentelemetry/proto/trace/v1/trace.proto
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import grpc

SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class Span:
    """One span; ids are hex, attributes plain values."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    attributes: dict[str, Any]


class Collector:
    """Listens on a free port of 127.0.0.1 while its context lasts."""

    def __init__(self) -> None:
        self._raw: list[bytes] = []
        self._lock = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(2))
        export = grpc.unary_unary_rpc_method_handler(self._export, None, None)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Export": export}),))
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()

    def _export(self, request: bytes, _context: object) -> bytes:
        with self._lock:
            self._raw.append(request)
        return b""

    @property
    def raw(self) -> bytes:
        """Every byte that came."""
        with self._lock:
            return b"".join(self._raw)

    def spans(self) -> list[Span]:
        """Return the spans that came, in their order."""
        with self._lock:
            requests = list(self._raw)
        return [
            _span(span)
            for request in requests
            for resource in _all(request, 1)
            for scope in _all(resource, 2)
            for span in _all(scope, 2)
        ]

    def wait_for(self, trace_id: str, parent_id: str, timeout_s: float = 15.0) -> list[Span]:
        """Return the spans of a trace once the child of `parent_id`, the last to end, is among them."""
        give_up_at = time.monotonic() + timeout_s
        while True:
            found = [span for span in self.spans() if span.trace_id == trace_id]
            if any(span.parent_id == parent_id for span in found):
                return found
            assert time.monotonic() < give_up_at, f"no child of {parent_id} among {found}"
            threading.Event().wait(0.05)


def _span(data: bytes) -> Span:
    ids = [next(iter(_all(data, number)), b"").hex() for number in (1, 2, 4)]
    pairs = (dict(_fields(pair)) for pair in _all(data, 9))
    attributes = {pair[1].decode(): _value(pair[2]) for pair in pairs}
    return Span(ids[0], ids[1], ids[2], next(iter(_all(data, 5)), b"").decode(), attributes)


def _value(data: bytes) -> Any:
    """Return an AnyValue's string, bool, int or double; other kinds as their bytes."""
    for number, value in _fields(data):
        if number == 1:
            return value.decode()
        if number == 4:
            return struct.unpack("<d", value)[0]
        return bool(value) if number == 2 else value
    return None


def _all(data: bytes, number: int) -> list[bytes]:
    return [value for found, value in _fields(data) if found == number]


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield a message's fields: varints as int, all others as bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value: Any
            value, at = _varint(data, at)
        else:
            size = {_FIXED64: 8, _FIXED32: 4}.get(kind)
            if size is None:
                assert kind == _BYTES
                size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
        yield number, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
