"""Reads the token usage out of an event stream as it passes, without parsing its events.

A raw `"usage": {` is always a key: inside a text its quotes would be escaped. So the object behind it is all that is
parsed, whichever event it stands in; of several the later value wins. Invariants: counts are all that leaves; at most
`OBJECT_LIMIT_BYTES` of a stream are remembered; each byte is looked at a bounded number of times.

https://platform.openai.com/docs/api-reference/chat-streaming and
https://docs.anthropic.com/en/docs/build-with-claude/streaming
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

OBJECT_LIMIT_BYTES = 4096
"""A longer usage object is not read."""
_MARK = b'"usage"'
_OBJECT = re.compile(rb'"usage"\s*:\s*\{')
_BEGUN_BYTES = 32
"""Enough for a mark whose rest comes with the next piece."""
_BRACE = re.compile(rb"[{}]")
_LINE = re.compile(rb"(?:\r\n|\r|\n)data:")
"""Where an event goes on in its next line."""
_PLACES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("input", ("prompt_tokens",)),
    ("output", ("completion_tokens",)),
    ("input", ("input_tokens",)),
    ("output", ("output_tokens",)),
    ("cached", ("prompt_tokens_details", "cached_tokens")),
    ("cached", ("input_tokens_details", "cached_tokens")),
    ("cached", ("cache_read_input_tokens",)),
    ("cache_write", ("cache_creation_input_tokens",)),
    ("reasoning", ("completion_tokens_details", "reasoning_tokens")),
    ("reasoning", ("output_tokens_details", "reasoning_tokens")),
)


class UsageWatch:
    """Watches one stream; what it said last is what counts."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> dict[str, int]:
        """Take the next piece and return the counts that it brought, under the names of `gateway.usage`."""
        data = self._rest + chunk
        if _MARK not in data:
            self._rest = data[-_BEGUN_BYTES:]
            return {}
        found: dict[str, int] = {}
        at = 0
        while match := _OBJECT.search(data, at):
            start = match.end() - 1
            end = _end_of_object(data, start)
            if end is None and len(data) - start < OBJECT_LIMIT_BYTES:
                self._rest = data[match.start() :]
                return found
            at = end or start + OBJECT_LIMIT_BYTES
            if end is not None:
                found |= _counts(data[start:end])
        self._rest = data[max(at, len(data) - _BEGUN_BYTES) :]
        return found


def _end_of_object(data: bytes, start: int) -> int | None:
    depth = 0
    for brace in _BRACE.finditer(data, start, start + OBJECT_LIMIT_BYTES):
        depth += 1 if brace.group() == b"{" else -1
        if depth == 0:
            return brace.end()
    return None


def _counts(raw: bytes) -> dict[str, int]:
    try:
        usage = orjson.loads(_LINE.sub(b"\n", raw))
    except orjson.JSONDecodeError:
        return {}
    values = ((name, _at(usage, path)) for name, path in _PLACES)
    return {name: value for name, value in values if type(value) is int and 0 <= value < 1 << 53}


def _at(usage: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = usage
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value
