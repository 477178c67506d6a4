"""A tiny raw HTTP/1.1 caller that shows what a library hides: how an answer ended, and when its bytes came.

Owns: one request a connection, unary or streamed, read as slowly as a test wants, left whenever it wants.
Leaves to others: load (load.py), the meaning of bodies. A broken answer is a value (`Reply.ended`), never an
exception.
"""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import orjson

Ended = Literal["clean", "cut", "reset", "timeout", "left"]
"""Body complete; FIN before its end; RST (under TLS: no close_notify); no byte in time; we left."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as it arrived; status 0 when no head came; `pieces` are (seconds since the call, bytes)."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    ended: Ended
    seconds: float
    pieces: tuple[tuple[float, bytes], ...] = field(repr=False, default=())

    def header(self, name: str) -> str | None:
        """Return the first value of a header, None when it is absent."""
        return next((value for key, value in self.headers if key == name.lower()), None)

    @property
    def json(self) -> Any:
        encoded = self.header("content-encoding") == "gzip"
        return orjson.loads(gzip.decompress(self.body) if encoded else self.body)

    @property
    def events(self) -> list[str]:
        """The `data:` payloads of a complete or broken event stream, in order."""
        lines = self.body.decode("utf-8", "replace").replace("\r\n", "\n").split("\n")
        return [line[5:].removeprefix(" ") for line in lines if line.startswith("data:")]

    @property
    def text(self) -> str:
        """The words of a chat completion, streamed or not."""
        if "event-stream" not in (self.header("content-type") or ""):
            return str(self.json["choices"][0]["message"]["content"])
        chunks = [json.loads(data) for data in self.events if data != "[DONE]"]
        deltas = [choice["delta"] for chunk in chunks if isinstance(chunk, dict) for choice in chunk.get("choices", ())]
        return "".join(delta.get("content") or "" for delta in deltas)


class Call:
    """One request under way: the connection, and what has been read of the answer.

    `timeout_s` bounds each wait for bytes; `receive_bytes` shrinks the socket's buffer, so that a slow reader
    holds its sender up at once.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 30.0,
        receive_bytes: int | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._host = parts.netloc
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._began = time.monotonic()
        self._socket = _connect(parts.hostname, parts.port or 80, receive_bytes)
        if tls is not None:
            self._socket = tls.wrap_socket(self._socket, server_hostname=parts.hostname, suppress_ragged_eofs=False)
        self._socket.settimeout(timeout_s)
        self._raw = bytearray()
        self._ended: Ended | None = None
        self._pieces: list[tuple[float, bytes]] = []
        self.status = 0
        self.headers: tuple[tuple[str, str], ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, method: str, headers: Mapping[str, str], body: bytes) -> None:
        """Write the whole request; an answer that comes before its end does not disturb it."""
        lines = [f"{method} {self._path} HTTP/1.1", f"host: {self._host}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body or method not in ("GET", "HEAD"):
            lines.append(f"content-length: {len(body)}")
        with suppress(ConnectionError):
            self._socket.sendall("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)

    def send_raw(self, data: bytes) -> None:
        """Write bytes as they are."""
        self._socket.sendall(data)

    def read_head(self) -> int:
        """Read up to the end of the head and return the status, 0 when the connection ended first."""
        while b"\r\n\r\n" not in self._raw:
            if not self._fill(65536):
                return 0
        head, _, rest = bytes(self._raw).partition(b"\r\n\r\n")
        self._raw[:] = rest
        first, *lines = head.decode("latin-1").split("\r\n")
        fields = (line.partition(":") for line in lines)
        self.headers = tuple((name.lower(), value.strip()) for name, _, value in fields)
        self.status = int(first.split(" ")[1])
        return self.status

    def pieces(self, *, read_bytes: int = 65536, pause_s: float = 0.0) -> Iterator[bytes]:
        """Yield the body's bytes as they come; a pause before each read makes a slow reader."""
        decode = self._chunks() if self._header("transfer-encoding") == "chunked" else self._plain()
        for data in decode:
            if data:
                self._pieces.append((time.monotonic() - self._began, data))
                yield data
            elif self._ended is None:
                time.sleep(pause_s)
                self._fill(read_bytes)
            else:
                return
        self._ended = self._ended or "clean"

    def leave(self) -> None:
        """Close at once, as a caller that lost interest."""
        self._ended = self._ended or "left"
        self._socket.close()

    def reply(self) -> Reply:
        """Return what was read so far."""
        body = b"".join(data for _, data in self._pieces)
        seconds = time.monotonic() - self._began
        return Reply(self.status, self.headers, body, self._ended or "left", seconds, tuple(self._pieces))

    def _header(self, name: str) -> str | None:
        return next((value.lower() for key, value in self.headers if key == name), None)

    def _plain(self) -> Iterator[bytes]:
        """Yield body bytes, b"" when more must be read; without a length the body lasts until FIN."""
        length = self._header("content-length")
        bodiless = self.status in (204, 304)
        missing = 0 if bodiless else None if length is None else int(length)
        while missing != 0:
            data = bytes(self._raw[:missing])
            del self._raw[: len(data)]
            missing = None if missing is None else missing - len(data)
            if missing is None and not data and self._ended == "cut":
                self._ended = "clean"
                return
            if data or missing != 0:
                yield data

    def _chunks(self) -> Iterator[bytes]:
        """Yield the data of whole chunks, b"" when more must be read."""
        while True:
            line = self._raw.find(b"\r\n")
            size = int(self._raw[:line], 16) if line >= 0 else 0
            if line < 0 or len(self._raw) < line + 2 + size + 2:
                yield b""
                continue
            data = bytes(self._raw[line + 2 : line + 2 + size])
            del self._raw[: line + 2 + size + 2]
            if size == 0:
                return
            yield data

    def _fill(self, limit: int) -> bool:
        try:
            data = self._socket.recv(limit)
        except TimeoutError:
            self._ended = "timeout"
        except (ConnectionError, ssl.SSLError):
            self._ended = "reset"
        else:
            self._raw += data
            self._ended = None if data else "cut"
        return self._ended is None


def _connect(host: str, port: int, receive_bytes: int | None) -> socket.socket:
    connection = socket.socket()
    try:
        if receive_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connection.settimeout(10)
        connection.connect((host, port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        connection.close()
        raise
    return connection


def request(
    url: str,
    method: str | None = None,
    *,
    json: Any = None,  # noqa: A002, RUF100  the word of every HTTP client
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 30.0,
    tls: ssl.SSLContext | None = None,
) -> Reply:
    """Ask once and read to the end, whatever that end is; ConnectionRefusedError when nobody listens."""
    data = orjson.dumps(json) if json is not None else body
    sent = ({"content-type": "application/json"} if data else {}) | dict(headers or {})
    with Call(url, timeout_s=timeout_s, tls=tls) as call:
        call.send(method or ("POST" if data else "GET"), sent, data)
        if call.read_head():
            for _ in call.pieces():
                pass
        return call.reply()
