"""What the events of a streamed answer mean, per protocol, and how a stream ended.

Owns the tables that say what is output, what ends an answer and what is an error. Leaves the bytes-to-events
step to `sse.py`, the meaning of an error object to `classify.py` and every reaction to the judge.

Invariants: nothing here raises on any bytes; a malformed or unknown event is neither output nor an end nor an
error; only parsed events count, so a model that writes `[DONE]` into its text changes nothing.

An answer that ends properly without any output is empty, which the guard treats as a failed attempt. A finish
reason that is itself a verdict (length, filter, a tool call) counts as output: it is the real answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple

import orjson

from extproc.core.sse import Event, SseParser

_TAIL_BYTES = 4096
_WINDOW_BYTES = 2 * _TAIL_BYTES
_HEAD_BYTES = 512

_Json = dict[str, Any]


class StreamKind(StrEnum):
    """The protocol that a streamed answer speaks."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"


STREAM_KIND_BY_PATH: Mapping[str, StreamKind] = MappingProxyType(
    {
        "/v1/chat/completions": StreamKind.CHAT,
        "/v1/completions": StreamKind.COMPLETIONS,
        "/v1/responses": StreamKind.RESPONSES,
        "/v1/messages": StreamKind.MESSAGES,
    }
)


class EventMeaning(NamedTuple):
    """What one event says; no flag set means nothing that matters (role, usage, ping, unknown).

    `output`: something the caller waits for. `finished`: the answer is whole even if the stream ends here.
    `terminal`: nothing follows (implies `finished`). `error`: the provider's inner error object, `{}` when it
    could not be read.
    """

    output: bool = False
    finished: bool = False
    terminal: bool = False
    malformed: bool = False
    error: Mapping[str, Any] | None = None


class Ending(StrEnum):
    """How a stream ended."""

    WHOLE = "whole"
    CUT = "cut"
    ERROR_EVENT = "error_event"


_NOTHING = EventMeaning()
_OUTPUT = EventMeaning(output=True)
_TERMINAL = EventMeaning(finished=True, terminal=True)
_MALFORMED = EventMeaning(malformed=True)

_Reader = Callable[[_Json], EventMeaning]

# Chat and completions chunks have no type; these keys of a choice, its delta or its message hold output.
_CHOICE_OUTPUT = (
    "content",
    "text",
    "reasoning_content",
    "reasoning",
    "reasoning_details",
    "thinking",
    "thinking_blocks",
    "tool_calls",
    "function_call",
    "refusal",
    "audio",
    "images",
)
_VERDICTS = frozenset({"length", "max_tokens", "content_filter", "sensitive", "tool_calls", "function_call"})
_FAILED_REASONS = frozenset({"error", "abort", "insufficient_system_resource", "network_error"})
_NO_REASON = frozenset({"", "null"})

_MESSAGE_VERDICTS = frozenset(
    {"max_tokens", "tool_use", "refusal", "pause_turn", "compaction", "model_context_window_exceeded"}
)

# Items, parts and blocks that are announced before they hold anything; others count by themselves.
_ANNOUNCED_EMPTY = frozenset({"message", "reasoning", "mcp_list_tools", "text", "thinking", "refusal", "output_audio"})
_PART_OUTPUT = (
    "text",
    "thinking",
    "refusal",
    "transcript",
    "data",
    "content",
    "summary",
    "encrypted_content",
    "tools",
)
_PART_DEPTH = 4


def judge_event(kind: StreamKind, event: Event) -> EventMeaning:
    """Say what `event` means in a stream of `kind`."""
    if event.oversized:
        return _judge_by_type(kind, event)
    if event.data.strip() == b"[DONE]":
        return _TERMINAL
    try:
        parsed = orjson.loads(event.data) if event.data else {}
    except orjson.JSONDecodeError:
        parsed = None
    if not isinstance(parsed, dict):
        return EventMeaning(malformed=True, error={}) if event.name == "error" else _MALFORMED
    error = _error_in(parsed, event.name)
    if error is not None:
        return EventMeaning(error=error)
    return _read(kind, _str(parsed.get("type")) or event.name, parsed)


def error_in(kind: StreamKind, body: bytes) -> Mapping[str, Any] | None:
    """Return the error that a whole JSON body holds where a stream of `kind` was asked for, None when it holds none."""
    return judge_event(kind, Event("", body)).error


def _error_in(parsed: _Json, name: str) -> _Json | None:
    error = parsed.get("error")
    if isinstance(error, dict) and error:
        return error
    if isinstance(error, str) and error:
        return {"message": error}
    named = name == "error" or parsed.get("type") == "error" or parsed.get("object") == "error"
    return parsed if error or named else None


def _read(kind: StreamKind, type_: str, parsed: _Json) -> EventMeaning:
    table = _TABLES.get(kind)
    if table is None:
        return _read_choices(parsed)
    entry = table.get(type_) or (_read_value if type_.endswith((".delta", ".done")) else _NOTHING)
    return entry if isinstance(entry, EventMeaning) else entry(parsed)


def _read_choices(parsed: _Json) -> EventMeaning:
    output = finished = False
    for choice in _list(parsed.get("choices")):
        if not isinstance(choice, dict):
            continue
        reason = _str(choice.get("finish_reason"))
        if choice.get("error") or reason in _FAILED_REASONS:
            return EventMeaning(error=_dict(choice.get("error")) or {"code": reason})
        finished = finished or reason not in _NO_REASON
        output = output or reason in _VERDICTS or _has_output(choice)
    return EventMeaning(output=output, finished=finished)


def _has_output(choice: _Json) -> bool:
    body = choice.get("delta") or choice.get("message")
    body = body if isinstance(body, dict) else choice
    return any(body.get(key) for key in _CHOICE_OUTPUT)


def _read_value(parsed: _Json) -> EventMeaning:
    """Read an event that brings a piece (`.delta`) or the sum (`.done`) of one value."""
    for key in ("delta", "text", "arguments", "refusal", "transcript", "input", "code"):
        if parsed.get(key):
            return _OUTPUT
    return _NOTHING


def _read_part(key: str) -> _Reader:
    def read(parsed: _Json) -> EventMeaning:
        return EventMeaning(output=_is_filled(parsed.get(key), _PART_DEPTH))

    return read


def _is_filled(part: object, depth: int) -> bool:
    """Tell whether an item, part or block, or a list of them, holds output; below `depth` anything counts."""
    if not part or depth == 0:
        return bool(part)
    if isinstance(part, list):
        return any(_is_filled(each, depth - 1) for each in part)
    if not isinstance(part, dict):
        return True
    type_ = _str(part.get("type"))
    if type_ not in _ANNOUNCED_EMPTY and not type_.endswith("_text"):
        return True
    return any(_is_filled(part.get(key), depth - 1) for key in _PART_OUTPUT)


def _read_response_end(parsed: _Json) -> EventMeaning:
    response = _dict(parsed.get("response"))
    if response.get("status") == "failed":
        return _read_response_failed(parsed)
    output = response.get("status") == "incomplete" or _is_filled(response.get("output"), _PART_DEPTH + 1)
    return EventMeaning(output=output, finished=True, terminal=True)


def _read_response_failed(parsed: _Json) -> EventMeaning:
    return EventMeaning(error=_dict(_dict(parsed.get("response")).get("error")))


def _read_block_delta(parsed: _Json) -> EventMeaning:
    delta = _dict(parsed.get("delta"))
    return EventMeaning(output=any(value for key, value in delta.items() if key != "type"))


def _read_message_delta(parsed: _Json) -> EventMeaning:
    return EventMeaning(output=_str(_dict(parsed.get("delta")).get("stop_reason")) in _MESSAGE_VERDICTS)


# https://platform.openai.com/docs/api-reference/responses-streaming; every other `.delta` and `.done` goes to
# `_read_value`, so that a new kind of output needs no new line here.
_RESPONSES: dict[str, EventMeaning | _Reader] = {
    "response.created": _NOTHING,
    "response.queued": _NOTHING,
    "response.in_progress": _NOTHING,
    "response.output_item.added": _read_part("item"),
    "response.output_item.done": _read_part("item"),
    "response.content_part.added": _read_part("part"),
    "response.content_part.done": _read_part("part"),
    "response.reasoning_summary_part.added": _read_part("part"),
    "response.reasoning_summary_part.done": _read_part("part"),
    "response.output_text.annotation.added": _OUTPUT,
    "response.image_generation_call.partial_image": _OUTPUT,
    "response.completed": _read_response_end,
    "response.done": _read_response_end,
    "response.cancelled": _TERMINAL,
    "response.incomplete": _TERMINAL._replace(output=True),
    "response.failed": _read_response_failed,
}

# https://docs.anthropic.com/en/api/messages-streaming
_MESSAGES: dict[str, EventMeaning | _Reader] = {
    "ping": _NOTHING,
    "message_start": _NOTHING,
    "content_block_start": _read_part("content_block"),
    "content_block_delta": _read_block_delta,
    "message_delta": _read_message_delta,
    "message_stop": _TERMINAL,
}

_TABLES: dict[StreamKind, dict[str, EventMeaning | _Reader]] = {
    StreamKind.RESPONSES: _RESPONSES,
    StreamKind.MESSAGES: _MESSAGES,
}

# The top-level `type` of an object that is not there whole: after nothing but scalars, or last.
_SCALAR = rb'(?:"(?:[^"\\]|\\.)*"|[-+.\w]+)'
_TYPE_AT_START = re.compile(rb'\s*\{\s*(?:"[^"\\]*"\s*:\s*' + _SCALAR + rb'\s*,\s*)*?"type"\s*:\s*"([^"\\]+)"')
_TYPE_AT_END = re.compile(rb',\s*"type"\s*:\s*"([^"\\]+)"\s*\}\s*\Z')
_ERROR_AT_START = re.compile(rb'\s*\{\s*"error"\s*:\s*["{]')


def _judge_by_type(kind: StreamKind, event: Event) -> EventMeaning:
    """Judge an event of which only a part is there; whatever is not known to be quiet counts as output."""
    type_ = _type_of(event.data) or event.name
    if type_ == "error" or _ERROR_AT_START.match(event.data):
        return EventMeaning(error={})
    if not event.data:
        return _NOTHING
    entry = _TABLES.get(kind, {}).get(type_, _OUTPUT)
    meaning = entry if isinstance(entry, EventMeaning) else entry({})
    if meaning.error is not None or entry == _NOTHING:
        return meaning
    return meaning._replace(output=True)


def _type_of(data: bytes) -> str:
    found = _TYPE_AT_START.match(data[:_HEAD_BYTES]) or _TYPE_AT_END.search(data[-_HEAD_BYTES:])
    return found[1].decode("utf-8", "replace") if found else ""


def _dict(value: object) -> _Json:
    return value if isinstance(value, dict) else {}


def _str(value: object) -> str:
    return value if isinstance(value, str) else ""


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


class TailWatch:
    """Remembers the end of a released stream and says at its close whether the answer was whole.

    Holds at most about 8 KiB, always from the start of an event on. Of an event larger than that the middle
    is left out, since its beginning and its end tell what it was.
    """

    __slots__ = ("_has_gap", "_parts", "_size_bytes")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size_bytes = 0
        self._has_gap = False

    @property
    def held_bytes(self) -> int:
        """How much of the stream is held."""
        return self._size_bytes

    def add(self, chunk: bytes) -> None:
        """Take the next bytes of the stream, held ones included, as they are released."""
        if not chunk:
            return
        self._parts.append(chunk)
        self._size_bytes += len(chunk)
        if self._size_bytes > _WINDOW_BYTES:
            self._forget()

    def ending(self, kind: StreamKind) -> Ending:
        """Say how the stream ended, given that no more bytes come."""
        parser = SseParser()
        closed = parser.feed(b"".join(self._parts))
        meanings = [self._judge_closed(kind, event) for event in closed]
        meanings += [judge_event(kind, event) for event in parser.finish()]
        finished = False
        for meaning in meanings:
            if meaning.error is not None:
                return Ending.ERROR_EVENT
            if meaning.terminal:
                return Ending.WHOLE
            if meaning.finished or meaning.output:
                finished = meaning.finished  # output after an end: another choice is still talking
        return Ending.WHOLE if finished else Ending.CUT

    def _judge_closed(self, kind: StreamKind, event: Event) -> EventMeaning:
        meaning = judge_event(kind, event)
        if meaning.malformed and self._has_gap:
            return _judge_by_type(kind, event)
        return meaning

    def _forget(self) -> None:
        last = self._parts[-1]
        start = _last_border(last, len(last) - _TAIL_BYTES) if len(last) > _TAIL_BYTES else 0
        window = last if start else b"".join(self._parts)
        start = start or _last_border(window, len(window) - _TAIL_BYTES)
        self._has_gap = self._has_gap and not start
        if len(window) - start > _WINDOW_BYTES:
            tail = len(window) - _TAIL_BYTES
            while window[tail - 1] in b"\r\n":  # never part the two line ends of a blank line
                tail -= 1
            window = window[start : start + _HEAD_BYTES].rstrip(b"\r\n") + window[tail:]
            self._has_gap = True
        else:
            window = window[start:]
        self._parts = [window]
        self._size_bytes = len(window)


def _last_border(window: bytes, end: int) -> int:
    """Return where the last event that starts before `end` starts, 0 when no blank line is there."""
    found = window.rfind(b"\n\n", 0, end)
    if window.find(b"\r", 0, end) >= 0:
        found = max(found, window.rfind(b"\n\r", 0, end), window.rfind(b"\r\r", 0, end))
    return found + 2 if found >= 0 else 0
