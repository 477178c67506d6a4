"""Asks a stream for its token usage, and keeps the caller who did not ask from seeing it (`force_usage`).

Owns the change to the request and the cut in the answer; the judge carries both out. Invariants: bytes of events that
stay leave as they came and in order; an event is cut only when it is whole, has no choices and has usage; at most
`HOLD_LIMIT_BYTES` of an unfinished event are held, a longer one passes.

https://platform.openai.com/docs/api-reference/chat/create#chat-create-stream_options
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from extproc.core.body import find_value

ENDPOINTS_WITH_OPTION = frozenset({"/v1/chat/completions", "/v1/completions"})
HOLD_LIMIT_BYTES = 64 * 1024
_OPTION = "stream_options"
_BORDER = re.compile(rb"\n\r?\n|\r\r")
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')
_DATA = re.compile(rb"^data:[ ]?(.*?)\r?$", re.MULTILINE)


def must_ask(endpoint: str, fields: Mapping[str, Any]) -> bool:
    """Tell whether a request streams and did not itself ask for usage."""
    if endpoint not in ENDPOINTS_WITH_OPTION or fields.get("stream") is not True:
        return False
    options = fields.get(_OPTION)
    return options is None or (isinstance(options, dict) and options.get("include_usage") is not True)


def ask_for_usage(raw: bytes, fields: Mapping[str, Any]) -> bytes | None:
    """Return the body that asks for usage, every other byte as it was; None when its option cannot be found."""
    options = orjson.dumps({**(fields.get(_OPTION) or {}), "include_usage": True})
    if _OPTION not in fields:
        start = raw.index(b"{") + 1
        return raw[:start] + b'"stream_options":' + options + b"," + raw[start:]
    span = find_value(raw, _OPTION)
    return None if span is None else raw[: span[0]] + options + raw[span[1] :]


class UsageCut:
    """Takes the usage event out of one stream."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, chunk: bytes, *, end: bool) -> bytes:
        """Take the next bytes and return those that may go on; `end` says that no more come."""
        data = self._held + chunk if self._held else chunk
        whole = len(data) if end else _last_border(data)
        if len(data) - whole > HOLD_LIMIT_BYTES:
            whole = len(data)
        self._held = data[whole:]
        ready = data[:whole]
        return self._without_usage(ready) if _NO_CHOICES.search(ready) else ready

    def _without_usage(self, data: bytes) -> bytes:
        kept, start = [], 0
        while start < len(data):
            border = _BORDER.search(data, start)
            end = border.end() if border else len(data)
            if not _is_usage(data[start:end]):
                kept.append(data[start:end])
            start = end
        return b"".join(kept)


def _is_usage(event: bytes) -> bool:
    try:
        parsed = orjson.loads(b"\n".join(_DATA.findall(event)))
    except orjson.JSONDecodeError:
        return False
    return isinstance(parsed, dict) and parsed.get("choices") == [] and isinstance(parsed.get("usage"), dict)


def _last_border(data: bytes) -> int:
    """Return where the last whole event ends, 0 when there is none."""
    found = max(data.rfind(b"\n\n"), data.rfind(b"\n\r\n") + 1 if b"\n\r\n" in data else -1, data.rfind(b"\r\r"))
    return found + 2 if found >= 0 else 0
