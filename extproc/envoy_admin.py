"""A small HTTP/1.1 client for Envoy's admin interface on its Unix socket.

Owns one request and one answer per connection, bounded in time and size. What the answers mean to the gateway
is the callers'. Every fault of the other side is an AdminError with a sentence.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import quote

import orjson

TIMEOUT_S = 5.0
MAX_ANSWER_BYTES = 64 * 1024 * 1024
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class AdminError(Exception):
    """Envoy's admin interface did not answer, or not in a way we understand."""


class AdminUnreachableError(AdminError):
    """Nobody listens on the socket."""


class AdminAnswer(NamedTuple):
    """One answer, body decoded from its transfer coding."""

    status: int
    body: bytes


async def get(
    socket: Path, path: str, timeout_s: float = TIMEOUT_S, headers: Mapping[str, str] = NO_HEADERS
) -> AdminAnswer:
    """Read `path`; raises AdminError."""
    return await _call(socket, "GET", path, timeout_s, headers)


async def post(socket: Path, path: str, timeout_s: float = TIMEOUT_S) -> AdminAnswer:
    """Act on `path`; raises AdminError, also when Envoy refuses the act."""
    answer = await _call(socket, "POST", path, timeout_s)
    if answer.status != 200:
        raise AdminError(f"Envoy's admin interface answered {answer.status} to POST {path}.")
    return answer


async def ready(socket: Path) -> bool:
    """Tell whether Envoy says LIVE; an Envoy that cannot be asked is not ready."""
    try:
        answer = await get(socket, "/ready")
    except AdminError:
        return False
    return answer.status == 200 and answer.body.strip() == b"LIVE"


async def uptime_s(socket: Path) -> int:
    """Return for how many whole seconds the process has run; raises AdminError."""
    answer = await get(socket, "/server_info")
    try:
        return int(str(orjson.loads(answer.body)["uptime_current_epoch"]).removesuffix("s"))
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        raise AdminError("Envoy's admin interface did not say since when it runs.") from None


async def stats(socket: Path, pattern: str) -> dict[str, int | str]:
    """Return the counters, gauges and text readouts whose name fits the regular expression `pattern`."""
    answer = await get(socket, f"/stats?format=json&filter={quote(pattern, safe='')}")
    if answer.status != 200:
        raise AdminError(f"Envoy's admin interface answered {answer.status} to a question for statistics.")
    try:
        rows = orjson.loads(answer.body)["stats"]
        return {row["name"]: row["value"] for row in rows if "name" in row}
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise AdminError("Envoy's admin interface sent statistics that cannot be read.") from None


async def _call(
    socket: Path, method: str, path: str, timeout_s: float, headers: Mapping[str, str] = NO_HEADERS
) -> AdminAnswer:
    try:
        async with asyncio.timeout(timeout_s):
            raw = await _exchange(socket, method, path, headers)
    except TimeoutError:
        raise AdminError(f"Envoy's admin interface did not answer {method} {path} in {timeout_s:g} s.") from None
    except OSError as error:
        raise AdminUnreachableError(f"Envoy's admin interface cannot be reached: {error.strerror or error}.") from None
    return parse_answer(raw)


async def _exchange(socket: Path, method: str, path: str, headers: Mapping[str, str]) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(socket))
    try:
        fields = {"host": "envoy-admin", "connection": "close", "content-length": "0", **headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        head = f"{method} {path} HTTP/1.1\r\n{lines}\r\n"
        writer.write(head.encode("ascii"))
        await writer.drain()
        raw = bytearray()
        while piece := await reader.read(65536):
            raw += piece
            if len(raw) > MAX_ANSWER_BYTES:
                raise AdminError(f"Envoy's admin interface sent more than {MAX_ANSWER_BYTES} bytes.")
        return bytes(raw)
    finally:
        writer.close()


def parse_answer(raw: bytes) -> AdminAnswer:
    """Read one whole HTTP/1.1 answer that ended with its connection; raises AdminError."""
    head, gap, body = raw.partition(b"\r\n\r\n")
    status_line, *header_lines = head.split(b"\r\n")
    words = status_line.split()
    if not gap or len(words) < 2 or not words[1].isdigit():
        raise AdminError("Envoy's admin interface closed the connection without a whole answer.")
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in header_lines)
    }
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        return AdminAnswer(int(words[1]), _dechunk(body))
    length = headers.get(b"content-length", b"")
    if length.isdigit() and len(body) < int(length):
        raise AdminError("Envoy's admin interface closed the connection in the middle of an answer.")
    return AdminAnswer(int(words[1]), body)


def _dechunk(body: bytes) -> bytes:
    pieces: list[bytes] = []
    at = 0
    while True:
        end_of_size = body.find(b"\r\n", at)
        try:
            size = int(body[at:end_of_size].split(b";")[0], 16) if end_of_size >= 0 else -1
        except ValueError:
            size = -1
        start = end_of_size + 2
        if size < 0 or len(body) < start + size:
            raise AdminError("Envoy's admin interface closed the connection in the middle of an answer.")
        if size == 0:
            return b"".join(pieces)
        pieces.append(body[start : start + size])
        at = start + size + 2
