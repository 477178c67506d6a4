"""The wall: a fake provider that answers, fails, stalls and breaks off exactly as a test says.

Owns: an HTTP/1.1 server on bare asyncio (in its own thread, so that plain tests can drive it), the record
of what it was sent, and the behaviours. A behaviour is pure: it turns the request it has seen into bytes, or
into steps (bytes, pauses, an abrupt end); only `_Connection` touches sockets.
Invariants: a request is recorded before any byte of its answer is written; `Wall.release` ends every wait of
the requests recorded so far and of no later one; a fault of a test's script is answered 500, raised on exit.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import json
import random
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from http import HTTPStatus
from types import TracebackType
from typing import IO, Any, Literal, Self, TypeVar

import orjson

from tests.support.ports import free_port, release_port

CREATED = 1_700_000_000
RESET_GAP_S = 0.02  # what was written before a reset reaches the peer as data first, not together with the error
HEAD_END = b"\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
DONE = b"data: [DONE]\n\n"
_T = TypeVar("_T")

# ----------------------------------------------------------------------------------------------------
# What the wall sees and what it can do about it


@dataclass(eq=False)
class Seen:
    """One request as it arrived; `at` is monotonic, `disconnected` is set when the caller left too early."""

    method: str
    path: str
    head: bytes = field(repr=False)
    body: bytes = field(repr=False)
    at: float = field(default_factory=time.monotonic)
    disconnected: threading.Event = field(default_factory=threading.Event, repr=False)

    @cached_property
    def headers(self) -> list[tuple[str, str]]:
        """Names in lower case, in the order of the wire."""
        fields = (line.partition(":") for line in self.head.decode("latin-1").split("\r\n")[1:])
        return [(name.lower(), value.strip()) for name, _, value in fields]

    def header(self, name: str) -> str | None:
        """Return the first value of a header, None when it is absent."""
        return next((value for key, value in self.headers if key == name.lower()), None)

    @cached_property
    def json(self) -> Any:
        """The decoded body, None when it is not JSON."""
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError:
            return None

    @property
    def endpoint(self) -> str:
        """The path without its query."""
        return self.path.partition("?")[0]

    def wish(self, key: str) -> Any:
        """Return a top-level member of a JSON body, None when there is none."""
        return self.json.get(key) if isinstance(self.json, dict) else None


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait so long, or with None until `Wall.release`, which ends timed pauses too."""

    seconds: float | None


class Break(Enum):
    """An abrupt end of the connection."""

    RST = "rst"
    FIN = "fin"


Step = bytes | Pause | Break
Played = bytes | Iterable[Step]
Headers = Mapping[str, str]
Event = bytes | str | Mapping[str, Any] | Pause
Ending = Literal["clean", "rst", "fin", "hang"]
ENDINGS: tuple[Ending, ...] = ("clean", "rst", "fin", "hang")
Shape = Literal["auto", "openai", "anthropic", "gemini", "detail", "string", "text"]


@dataclass(frozen=True, slots=True)
class Behaviour:
    """A named way to answer: `play` makes whole bytes (the fast path) or steps from the request."""

    name: str
    play: Callable[[Seen], Played] = field(repr=False)


Script = Behaviour | Sequence[Behaviour] | Callable[[Seen], Behaviour]


def pause(seconds: float | None = None) -> Pause:
    """Make a wait for the middle of `sse`; without seconds it lasts until `Wall.release`."""
    return Pause(seconds)


# ----------------------------------------------------------------------------------------------------
# Bytes


def _head(status: int, content_type: str | None, headers: Headers | None, length: int | None) -> bytes:
    """Build a response head; without a length the body is chunked."""
    reason = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Unknown"
    lines = [f"HTTP/1.1 {status} {reason}"]
    if content_type is not None:
        lines.append(f"content-type: {content_type}")
    lines.append("transfer-encoding: chunked" if length is None else f"content-length: {length}")
    lines.extend(f"{name}: {value}" for name, value in (headers or {}).items())
    return "\r\n".join(lines).encode("latin-1") + HEAD_END


def _whole(
    status: int, body: bytes, content_type: str | None = "application/json", headers: Headers | None = None
) -> bytes:
    return _head(status, content_type, headers, len(body)) + body


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(data: Mapping[str, Any], name: str | None = None) -> bytes:
    prefix = f"event: {name}\n".encode() if name else b""
    return prefix + b"data: " + orjson.dumps(data) + b"\n\n"


def _paced(steps: Iterable[bytes], delay_s: float) -> Iterator[Step]:
    for index, step in enumerate(steps):
        if index and delay_s:
            yield Pause(delay_s)
        yield step


def _packed(steps: Iterable[Step]) -> Played:
    """Join steps that hold no wait and no break into one write."""
    listed = list(steps)
    parts = [step for step in listed if isinstance(step, bytes)]
    return b"".join(parts) if len(parts) == len(listed) else listed


# ----------------------------------------------------------------------------------------------------
# What a model says, and the wire protocols it may say it in


@dataclass(frozen=True, slots=True)
class Talk:
    """An answer's content: `text` in `chunks` pieces, each padded to `chunk_bytes` when that is given.

    `usage` is (prompt, completion) tokens; `first_delay_s` is the silence before the head, `delay_s` the one
    between stream events; `model` replaces the request's own.
    """

    text: str = "hello"
    chunks: int = 1
    chunk_bytes: int | None = None
    delay_s: float = 0.0
    first_delay_s: float = 0.0
    usage: tuple[int, int] = (7, 3)
    finish: str = "stop"
    model: str | None = None
    headers: Headers | None = None

    def pieces(self) -> list[str]:
        """Split the text evenly, the last piece taking the rest."""
        if self.chunk_bytes is not None:
            return [(self.text * (self.chunk_bytes // len(self.text) + 1))[: self.chunk_bytes]] * self.chunks
        size = max(1, len(self.text) // self.chunks)
        cuts = [self.text[i * size : (i + 1) * size] for i in range(self.chunks - 1)]
        return [*cuts, self.text[(self.chunks - 1) * size :]]

    def model_for(self, seen: Seen) -> str:
        return self.model or str(seen.wish("model"))


def _chat_unary(talk: Talk, seen: Seen) -> dict[str, Any]:
    message = {"role": "assistant", "content": "".join(talk.pieces())}
    choice = {"index": 0, "message": message, "finish_reason": talk.finish}
    return _openai_object("chat.completion", talk, seen) | {"choices": [choice], "usage": _openai_usage(talk)}


def _chat_events(talk: Talk, seen: Seen) -> Iterator[bytes]:
    base = _openai_object("chat.completion.chunk", talk, seen)
    deltas: list[dict[str, str]] = [{"role": "assistant", "content": ""}]
    for delta in deltas + [{"content": piece} for piece in talk.pieces()]:
        yield _event(base | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
    yield _event(base | {"choices": [{"index": 0, "delta": {}, "finish_reason": talk.finish}]})
    if (seen.wish("stream_options") or {}).get("include_usage"):
        yield _event(base | {"choices": [], "usage": _openai_usage(talk)})
    yield DONE


def _completion_unary(talk: Talk, seen: Seen) -> dict[str, Any]:
    choice = {"index": 0, "text": "".join(talk.pieces()), "finish_reason": talk.finish}
    return _openai_object("text_completion", talk, seen) | {"choices": [choice], "usage": _openai_usage(talk)}


def _completion_events(talk: Talk, seen: Seen) -> Iterator[bytes]:
    base = _openai_object("text_completion", talk, seen)
    for piece in talk.pieces():
        yield _event(base | {"choices": [{"index": 0, "text": piece, "finish_reason": None}]})
    yield _event(base | {"choices": [{"index": 0, "text": "", "finish_reason": talk.finish}]})
    yield DONE


def _openai_object(kind: str, talk: Talk, seen: Seen) -> dict[str, Any]:
    return {"id": "chatcmpl-wall", "object": kind, "created": CREATED, "model": talk.model_for(seen)}


def _openai_usage(talk: Talk) -> dict[str, int]:
    prompt, completion = talk.usage
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _response_unary(talk: Talk, seen: Seen) -> dict[str, Any]:
    part = {"type": "output_text", "text": "".join(talk.pieces()), "annotations": []}
    item = {
        "id": "msg_wall",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [part],
    }
    prompt, completion = talk.usage
    usage = {"input_tokens": prompt, "output_tokens": completion, "total_tokens": prompt + completion}
    return _response_object(talk, seen) | {"status": "completed", "output": [item], "usage": usage}


def _response_object(talk: Talk, seen: Seen) -> dict[str, Any]:
    model = talk.model_for(seen)
    return {
        "id": "resp_wall",
        "object": "response",
        "created_at": CREATED,
        "model": model,
        "status": "in_progress",
        "output": [],
    }


def _response_events(talk: Talk, seen: Seen) -> Iterator[bytes]:
    whole = _response_unary(talk, seen)
    item, where = whole["output"][0], {"item_id": "msg_wall", "output_index": 0}
    part, place = item["content"][0], where | {"content_index": 0}
    empty_item, empty_part = item | {"status": "in_progress", "content": []}, part | {"text": ""}
    story: list[tuple[str, dict[str, Any]]] = [
        ("response.created", {"response": _response_object(talk, seen)}),
        ("response.output_item.added", {"output_index": 0, "item": empty_item}),
        ("response.content_part.added", place | {"part": empty_part}),
        *(("response.output_text.delta", place | {"delta": piece}) for piece in talk.pieces()),
        ("response.output_text.done", place | {"text": part["text"]}),
        ("response.content_part.done", place | {"part": part}),
        ("response.output_item.done", {"output_index": 0, "item": item}),
        ("response.completed", {"response": whole}),
    ]
    for number, (name, data) in enumerate(story):
        yield _event({"type": name, "sequence_number": number} | data, name)


def _message_unary(talk: Talk, seen: Seen) -> dict[str, Any]:
    content = [{"type": "text", "text": "".join(talk.pieces())}]
    usage = {"input_tokens": talk.usage[0], "output_tokens": talk.usage[1]}
    end = {"stop_reason": _anthropic_finish(talk), "stop_sequence": None}
    return _message_object(talk, seen) | {"content": content, "usage": usage} | end


def _message_object(talk: Talk, seen: Seen) -> dict[str, Any]:
    return {"id": "msg_wall", "type": "message", "role": "assistant", "model": talk.model_for(seen)}


def _anthropic_finish(talk: Talk) -> str:
    return {"stop": "end_turn", "length": "max_tokens"}.get(talk.finish, talk.finish)


def _message_events(talk: Talk, seen: Seen) -> Iterator[bytes]:
    blank: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None}
    start = _message_object(talk, seen) | blank | {"usage": {"input_tokens": talk.usage[0], "output_tokens": 1}}
    stop = {"stop_reason": _anthropic_finish(talk), "stop_sequence": None}
    story: list[dict[str, Any]] = [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        *(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": p}}
            for p in talk.pieces()
        ),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": stop, "usage": {"output_tokens": talk.usage[1]}},
        {"type": "message_stop"},
    ]
    for data in story:
        yield _event(data, data["type"])


@dataclass(frozen=True, slots=True)
class _Dialect:
    unary: Callable[[Talk, Seen], dict[str, Any]]
    events: Callable[[Talk, Seen], Iterator[bytes]]


CHAT = _Dialect(_chat_unary, _chat_events)
COMPLETION = _Dialect(_completion_unary, _completion_events)
RESPONSE = _Dialect(_response_unary, _response_events)
MESSAGE = _Dialect(_message_unary, _message_events)


def _dialect_of(seen: Seen) -> _Dialect:
    last = seen.endpoint.rpartition("/")[2]
    if last == "completions" and not seen.endpoint.endswith("chat/completions"):
        return COMPLETION
    return {"responses": RESPONSE, "messages": MESSAGE}.get(last, CHAT)


def _say(dialect: _Dialect, talk: Talk, seen: Seen) -> Played:
    if seen.wish("stream"):
        head = _head(200, "text/event-stream", talk.headers, None)
        events = [_chunk(event) for event in dialect.events(talk, seen)]
        steps: Iterable[Step] = _paced([head + events[0], *events[1:-1], events[-1] + LAST_CHUNK], talk.delay_s)
    else:
        steps = [_whole(200, orjson.dumps(dialect.unary(talk, seen)), headers=talk.headers)]
    return _packed([Pause(talk.first_delay_s), *steps] if talk.first_delay_s else steps)


# ----------------------------------------------------------------------------------------------------
# Behaviours: good answers


def chat(text: str = "hello", **options: Any) -> Behaviour:
    """OpenAI chat completion, streamed when the request says so; options are the fields of `Talk`."""
    talk = Talk(text, **options)
    return Behaviour("chat", lambda seen: _say(CHAT, talk, seen))


def responses_api(text: str = "hello", **options: Any) -> Behaviour:
    """OpenAI response object or event stream."""
    talk = Talk(text, **options)
    return Behaviour("responses_api", lambda seen: _say(RESPONSE, talk, seen))


def messages(text: str = "hello", **options: Any) -> Behaviour:
    """Anthropic message or event stream."""
    talk = Talk(text, **options)
    return Behaviour("messages", lambda seen: _say(MESSAGE, talk, seen))


def embeddings(dimensions: int = 3) -> Behaviour:
    """OpenAI embedding list of one vector."""
    vector = {"object": "embedding", "index": 0, "embedding": [0.5] * dimensions}
    usage = {"prompt_tokens": 7, "total_tokens": 7}
    return _json_play(
        "embeddings", lambda s: {"object": "list", "model": s.wish("model"), "data": [vector], "usage": usage}
    )


def models(*names: str) -> Behaviour:
    """OpenAI model list."""
    listed = [{"id": name, "object": "model", "created": CREATED, "owned_by": "wall"} for name in names]
    return _json_play("models", lambda _: {"object": "list", "data": listed})


def ok(text: str = "hello", **options: Any) -> Behaviour:
    """Answer well in the shape that the request's path asks for; any other path gets `{"status": "ok"}`."""
    talk = Talk(text, **options)

    def play(seen: Seen) -> Played:
        if seen.endpoint.endswith(("/completions", "/responses", "/messages")):
            return _say(_dialect_of(seen), talk, seen)
        return next((other.play(seen) for end, other in others.items() if seen.endpoint.endswith(end)), fine)

    others = _other_endpoints()
    fine = _whole(200, b'{"status":"ok"}')
    return Behaviour("ok", play)


def _other_endpoints() -> dict[str, Behaviour]:
    verdict = {"flagged": False, "categories": {}, "category_scores": {}}
    ranked = {"index": 0, "relevance_score": 0.9}
    return {
        "/embeddings": embeddings(),
        "/models": models("demo-primary-upstream", "demo-fallback-upstream"),
        "/moderations": _json_play(
            "moderations", lambda s: {"id": "modr", "model": s.wish("model"), "results": [verdict]}
        ),
        "/images/generations": answer(body={"created": CREATED, "data": [{"b64_json": "aGVsbG8="}]}),
        "/audio/speech": answer(body=b"ID3\x04wall", content_type="audio/mpeg"),
        "/rerank": _json_play("rerank", lambda s: {"id": "rank", "model": s.wish("model"), "results": [ranked]}),
    }


def _json_play(name: str, make: Callable[[Seen], dict[str, Any]]) -> Behaviour:
    return Behaviour(name, lambda seen: _whole(200, orjson.dumps(make(seen))))


def answer(
    status: int = 200,
    body: bytes | str | Mapping[str, Any] | Sequence[Any] = b"{}",
    headers: Headers | None = None,
    content_type: str | None = "application/json",
) -> Behaviour:
    """Send any whole answer; a body that is neither bytes nor text is sent as JSON."""
    data = body.encode() if isinstance(body, str) else body if isinstance(body, bytes) else orjson.dumps(body)
    return _fixed("answer", _whole(status, data, content_type, headers))


def html_200(content_type: str = "text/html; charset=utf-8") -> Behaviour:
    """Send a web page where JSON belongs, as a captive portal or a wrong base_url gives."""
    return answer(200, "<!doctype html><html><body>Welcome</body></html>", content_type=content_type)


def empty_200(content_type: str | None = "application/json", *, chunked: bool = False) -> Behaviour:
    """200 with no body at all; chunked, it does not say so in its head."""
    if chunked:
        return _fixed("empty_200", _head(200, content_type, None, None) + LAST_CHUNK)
    return answer(200, b"", content_type=content_type)


def gzipped(behaviour: Behaviour) -> Behaviour:
    """Compress the body of a whole answer although nobody asked for it."""

    def play(seen: Seen) -> Played:
        played = behaviour.play(seen)
        if not isinstance(played, bytes):
            raise TypeError("only a whole answer can be compressed")
        head, _, body = played.partition(HEAD_END)
        packed = gzip.compress(body)
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-length:")]
        lines += [b"content-encoding: gzip", b"content-length: %d" % len(packed)]
        return b"\r\n".join(lines) + HEAD_END + packed

    return Behaviour(f"{behaviour.name} gzipped", play)


def gzip_answer(text: str = "hello", **options: Any) -> Behaviour:
    """Send the ordinary unary answer, gzipped although nobody asked for it."""
    talk = Talk(text, **options)

    def play(seen: Seen) -> Played:
        body = gzip.compress(orjson.dumps(_dialect_of(seen).unary(talk, seen)))
        return _whole(200, body, headers={"content-encoding": "gzip"})

    return Behaviour("gzip_answer", play)


def _fixed(name: str, data: bytes) -> Behaviour:
    return Behaviour(name, lambda _: data)


# ----------------------------------------------------------------------------------------------------
# Behaviours: errors


def error(
    status: int,
    code: str | None = None,
    type: str | None = None,  # noqa: A002  the wire's own word
    message: str = "the wall says no",
    retry_after: float | str | None = None,
    headers: Headers | None = None,
    shape: Shape = "auto",
) -> Behaviour:
    """Answer with a provider's error; shape `auto` is Anthropic's on `/messages` and OpenAI's elsewhere."""
    extra = dict(headers or {}) | ({} if retry_after is None else {"retry-after": str(retry_after)})

    def made(wanted: Shape) -> bytes:
        body, content_type = _error_body(wanted, status, code, type, message)
        return _whole(status, body, content_type, extra)

    if shape != "auto":
        return _fixed(f"error {status}", made(shape))
    plain, anthropic = made("openai"), made("anthropic")
    return Behaviour(f"error {status}", lambda s: anthropic if s.endpoint.endswith("/messages") else plain)


def _error_body(shape: Shape, status: int, code: str | None, kind: str | None, message: str) -> tuple[bytes, str]:
    if shape == "text":
        return message.encode(), "text/plain; charset=utf-8"
    bodies: dict[str, dict[str, Any]] = {
        "openai": {"error": {"message": message, "type": kind or _openai_type(status), "param": None, "code": code}},
        "anthropic": {
            "type": "error",
            "error": {"type": kind or _anthropic_type(status), "message": message},
        },
        "gemini": {"error": {"code": status, "message": message, "status": code or "UNKNOWN"}},
        "detail": {"detail": message},
        "string": {"error": message},
    }
    return orjson.dumps(bodies[shape]), "application/json"


def _openai_type(status: int) -> str:
    return {429: "requests"}.get(status, "server_error" if status >= 500 else "invalid_request_error")


def _anthropic_type(status: int) -> str:
    known = {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
    }
    known |= {429: "rate_limit_error", 529: "overloaded_error"}
    return known.get(status, "api_error" if status >= 500 else "invalid_request_error")


def rate_limited(retry_after: float | str | None = None, headers: Headers | None = None) -> Behaviour:
    """429, with or without a Retry-After."""
    return error(429, "rate_limit_exceeded", message="Rate limit reached", retry_after=retry_after, headers=headers)


def big_error(status: int = 500, size_bytes: int = 3 << 20) -> Behaviour:
    """Send an error whose JSON body has exactly so many bytes."""
    bare = len(_error_body("openai", status, None, None, "")[0])
    return error(status, message="x" * max(0, size_bytes - bare), shape="openai")


# ----------------------------------------------------------------------------------------------------
# Behaviours: silence, slowness and broken endings


def silence(seconds: float | None = None, then: Behaviour | None = None) -> Behaviour:
    """Read the request and say nothing until time, release or disconnect; then answer (well, by default)."""
    after = then or ok()

    def play(seen: Seen) -> Iterator[Step]:
        yield Pause(seconds)
        played = after.play(seen)
        yield from [played] if isinstance(played, bytes) else played

    return Behaviour("silence", play)


def headers_then_silence(content_type: str = "text/event-stream", seconds: float | None = None) -> Behaviour:
    """Send a 200 head at once and never a byte of the body; after a release the body ends empty."""
    steps = (_head(200, content_type, None, None), Pause(seconds), LAST_CHUNK)
    return Behaviour("headers_then_silence", lambda _: steps)


def reset(after_s: float = 0.0) -> Behaviour:
    """RST before any byte of an answer, at once or after a silence."""
    return Behaviour("reset", lambda _: (Pause(after_s), Break.RST) if after_s else (Break.RST,))


def hang_up() -> Behaviour:
    """FIN before any byte of an answer."""
    return Behaviour("hang_up", lambda _: (Break.FIN,))


def garbage(data: bytes = b"SSH-2.0-wall\r\n\r\n") -> Behaviour:
    """Bytes that are not HTTP, then FIN."""
    return Behaviour("garbage", lambda _: (data, Break.FIN))


def reset_after(n_bytes: int | None = None, n_events: int | None = None) -> Behaviour:
    """RST after so many bytes of the ordinary answer's wire, or after so many of its stream events."""
    if n_bytes is None:
        return _cut_stream("reset_after", n_events or 0, "rst")
    good = ok()

    def play(seen: Seen) -> Played:
        played = good.play(seen)
        wire = played if isinstance(played, bytes) else b"".join(step for step in played if isinstance(step, bytes))
        return (wire[:n_bytes], Pause(RESET_GAP_S), Break.RST)

    return Behaviour("reset_after", play)


def fin_after(n_events: int) -> Behaviour:
    """FIN inside a chunked stream, after so many events (the first of a chat stream has only a role)."""
    return _cut_stream("fin_after", n_events, "fin")


def _cut_stream(name: str, n_events: int, end: Ending) -> Behaviour:
    def play(seen: Seen) -> Played:
        events = list(_dialect_of(seen).events(Talk(chunks=max(1, n_events)), seen))
        return sse(events[:n_events], done=False, end=end).play(seen)

    return Behaviour(name, play)


def cut_short(
    n_events: int, end: Ending, text: str, chunks: int, *, gap_s: float = 0.1, last: bytes = b""
) -> Behaviour:
    """Stream the first events of a good answer in the protocol of the path, then, after a gap, `last`, and end so.

    The gap lets a gateway pass on what it has before it learns of the end.
    """

    def play(seen: Seen) -> Played:
        events = list(_dialect_of(seen).events(Talk(text, chunks), seen))[:n_events]
        return sse([*events, Pause(gap_s), *([last] if last else [])], done=False, end=end).play(seen)

    return Behaviour("cut_short", play)


def sse(
    events: Iterable[Event],
    done: bool = True,
    content_type: str = "text/event-stream",
    end: Ending = "clean",
    headers: Headers | None = None,
) -> Behaviour:
    """Stream any events: bytes go out as they are, text and mappings as `data:` lines, pauses wait.

    An iterable that makes its events as it goes may be endless, and then serves one request only.
    """
    kept = events if isinstance(events, Iterator) else tuple(events)
    endings: dict[str, tuple[Step, ...]] = {
        "clean": (LAST_CHUNK,),
        "rst": (Pause(RESET_GAP_S), Break.RST),
        "fin": (Break.FIN,),
        "hang": (Pause(None), LAST_CHUNK),
    }

    def play(_: Seen) -> Iterator[Step]:
        yield _head(200, content_type, headers, None)
        for event in kept:
            yield event if isinstance(event, Pause) else _chunk(_framed(event))
        if done:
            yield _chunk(DONE)
        yield from endings[end]

    return Behaviour("sse", play)


def _framed(event: bytes | str | Mapping[str, Any]) -> bytes:
    if isinstance(event, bytes):
        return event
    return f"data: {event}\n\n".encode() if isinstance(event, str) else _event(event)


def comments_forever(interval_s: float = 0.05, event: bytes = b": ping\n\n") -> Behaviour:
    """Repeat one empty event for as long as the caller stays; a release removes the pauses only."""

    def play(_: Seen) -> Iterator[Step]:
        yield _head(200, "text/event-stream", None, None)
        while True:
            yield _chunk(event)
            yield Pause(interval_s)

    return Behaviour("comments_forever", play)


def slow_body(total_bytes: int, chunk_bytes: int, delay_s: float) -> Behaviour:
    """Send a unary chat completion of so many body bytes (at least its bare size) in slow pieces."""

    def play(seen: Seen) -> Iterator[Step]:
        bare = len(orjson.dumps(_chat_unary(Talk(""), seen)))
        body = orjson.dumps(_chat_unary(Talk("x" * max(0, total_bytes - bare)), seen))
        yield _head(200, "application/json", None, len(body))
        yield from _paced((body[i : i + chunk_bytes] for i in range(0, len(body), chunk_bytes)), delay_s)

    return Behaviour("slow_body", play)


def trickle(delay_s: float = 0.01, chunk_bytes: int = 1, then: Behaviour | None = None) -> Behaviour:
    """Send the ordinary answer, its head included, a few bytes at a time."""
    good = then or ok()

    def play(seen: Seen) -> Iterator[Step]:
        played = good.play(seen)
        wire = played if isinstance(played, bytes) else b"".join(step for step in played if isinstance(step, bytes))
        yield from _paced((wire[i : i + chunk_bytes] for i in range(0, len(wire), chunk_bytes)), delay_s)

    return Behaviour("trickle", play)


def big_burst(size_bytes: int = 3 << 20, event_bytes: int = 4096) -> Behaviour:
    """Stream at least so many bytes of chat content, written as fast as the caller takes it."""

    def play(seen: Seen) -> Iterator[Step]:
        talk = Talk("x", chunks=-(-size_bytes // event_bytes), chunk_bytes=event_bytes)
        yield _head(200, "text/event-stream", None, None)
        for event in _chat_events(talk, seen):
            yield _chunk(event)
        yield LAST_CHUNK

    return Behaviour("big_burst", play)


# ----------------------------------------------------------------------------------------------------
# Behaviours: all of them


class Fault(Enum):
    """The kinds of faults in `mixed`."""

    EARLY = "early"
    """What a gateway can know before the caller has seen a byte."""
    CUT = "cut"
    """A stream that breaks, stalls or never begins, maybe after its first words were passed on."""
    REFUSED = "refused"
    """What ends a request by design, whatever happened before: the caller gets this provider's 400."""
    SILENT = "silent"
    """Nothing at all, not even a head."""
    OUT = "out"
    """What takes a target or an account out of service at once."""


FAULT_WEIGHTS = {Fault.EARLY: 79, Fault.CUT: 12, Fault.REFUSED: 5, Fault.SILENT: 2, Fault.OUT: 2}


def mixed(share: float = 0.3, seed: int = 0, text: str = "hello", chunks: int = 8) -> Behaviour:
    """Answer well, but for a share of the requests, which meet a random fault.

    Only streams are cut, and only a model whose name does not end in `-held` meets utter silence.
    """
    draw, good, faults = random.Random(seed), ok(text, chunks=chunks), _faults(text, chunks)  # noqa: S311 - the same seed, the same faults
    kinds, weights = list(FAULT_WEIGHTS), list(FAULT_WEIGHTS.values())

    def play(seen: Seen) -> Played:
        if draw.random() >= share:
            return good.play(seen)
        (kind,) = draw.choices(kinds, weights)
        shown = not str(seen.wish("model")).endswith("-held")
        possible = {Fault.CUT: bool(seen.wish("stream")), Fault.SILENT: shown}.get(kind, True)
        return draw.choice(faults[kind if possible else Fault.EARLY]).play(seen)

    return Behaviour("mixed", play)


def _faults(text: str, chunks: int) -> dict[Fault, list[Behaviour]]:
    role = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
    said = {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}]}
    overloaded = {"error": {"message": "too much", "type": "server_error", "code": "overloaded_error"}}
    errors = [error(status) for status in (500, 502, 503, 529)]
    errors += [error(503, shape="text"), error(500, shape="detail"), big_error(500, 200_000)]
    nothing = [sse([overloaded]), sse([role]), sse([]), empty_200("text/event-stream")]
    begun = [
        sse([said, b"data: {half\n\n"], done=False),
        sse([role], end="hang", done=False),
        headers_then_silence(),
        comments_forever(),
    ]
    ends = [cut_short(5, end, text, chunks, gap_s=0.02) for end in ENDINGS]
    return {
        Fault.EARLY: [*errors, html_200(), empty_200(), reset(), hang_up(), garbage()],
        Fault.CUT: [*nothing, *begun, *ends],
        Fault.REFUSED: [error(400, "content_filter")],
        Fault.SILENT: [silence()],
        Fault.OUT: [
            *(rate_limited(), rate_limited(headers={"retry-after-ms": "50"}), error(404, "model_not_found")),
            *(error(401), error(403), error(402), error(429, "insufficient_quota")),
        ],
    }


# ----------------------------------------------------------------------------------------------------
# The server

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection:[ \t]*close", re.IGNORECASE)


class _Connection(asyncio.Protocol):
    """One caller: takes requests off the wire one by one and plays their behaviours."""

    def __init__(self, wall: Wall) -> None:
        self._wall = wall
        self._buffer = bytearray()
        self._seen: Seen | None = None
        self._task: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self.gone = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=0)  # "writable" then means that the kernel has it all
        self._wall._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._wall._connections.discard(self)
        if self._seen is not None:
            self._seen.disconnected.set()
        if self._task is not None:
            self._task.cancel()
        self.gone.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._serve()

    def _serve(self) -> None:
        while self._seen is None and not self._transport.is_closing():
            seen = self._take_request()
            if seen is None:
                return
            self._seen, self._gate = seen, self._wall._gate
            self._begin(seen)

    def _take_request(self) -> Seen | None:
        end = self._buffer.find(HEAD_END)
        if end < 0:
            return None
        head = bytes(self._buffer[:end])
        length = _LENGTH.search(head)
        size = int(length[1]) if length else 0
        body: bytes | None = bytes(self._buffer[end + 4 : end + 4 + size])
        if length is None and _CHUNKED.search(head):
            body, size = _dechunk(self._buffer, end + 4)
        if body is None or len(self._buffer) < end + 4 + size:
            return None
        del self._buffer[: end + 4 + size]
        method, path, _ = head[: head.find(b"\r\n")].decode("latin-1").split(" ", 2)
        return Seen(method, path, head, body)

    def _begin(self, seen: Seen) -> None:
        try:
            played = self._wall._receive(seen).play(seen)
        except Exception as fault:
            played = self._wall._fault(fault)
        if isinstance(played, bytes):
            self._transport.write(played)
            self._finish(seen)
        else:
            self._task = self._wall._loop.create_task(self._play(seen, played))

    async def _play(self, seen: Seen, steps: Iterable[Step]) -> None:
        try:
            for step in steps:
                if isinstance(step, bytes):
                    self._transport.write(step)
                    await self._writable.wait()
                    if self._transport.is_closing():
                        return None  # the caller left; connection_lost is on its way and notes it
                elif isinstance(step, Pause):
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(step.seconds):
                            await self._gate.wait()
                    await asyncio.sleep(0)  # an endless script whose pauses were released must still let others run
                else:
                    return self.drop(rst=step is Break.RST)
        except Exception as fault:
            self._wall._fault(fault)
            return self.drop(rst=True)
        self._task = None
        self._finish(seen)
        self._serve()
        return None

    def _finish(self, seen: Seen) -> None:
        self._seen = None
        if _CLOSE.search(seen.head):
            self._transport.close()

    def drop(self, rst: bool) -> None:
        """End the connection from our side, which is not a disconnect of the caller."""
        self._seen = None
        if rst:
            linger = struct.pack("ii", 1, 0)
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._transport.abort()
        elif not self._transport.is_closing():
            self._transport.close()

    def abandon(self) -> None:
        """End the connection at once, whatever it is doing."""
        self._seen = None
        self._transport.abort()  # alone: in CPython 3.11 a second close() of a TLS transport disarms it


def _dechunk(buffer: bytearray, start: int) -> tuple[bytes | None, int]:
    """Decode a chunked body: (None, 0) while it is incomplete, else the body and its size on the wire."""
    if not buffer.endswith(LAST_CHUNK):  # saves a rescan of a large body for each of its pieces
        return None, 0
    body, at = bytearray(), start
    while True:
        line = buffer.find(b"\r\n", at)
        if line < 0:  # what looked like the last chunk was data
            return None, 0
        size = int(buffer[at:line], 16)
        if size == 0:
            return bytes(body), line + 4 - start
        body += buffer[line + 2 : line + 2 + size]
        at = line + 2 + size + 2


class Wall:
    """A scripted provider on 127.0.0.1; a context manager, driven from any thread.

    `keep` bounds how many requests `requests` holds (counting goes on beyond it); `tls` makes it speak HTTPS.
    """

    def __init__(self, port: int | None = None, *, tls: ssl.SSLContext | None = None, keep: int = 50_000) -> None:
        self._own_port = port is None
        self.port = free_port() if port is None else port
        self._tls = tls
        self._keep = keep
        self._news = threading.Condition()
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None
        self._faults: list[Exception] = []
        self._forget()

    @property
    def url(self) -> str:
        """The base_url a config names."""
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._gate = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"wall-{self.port}", daemon=True)
        self._thread.start()
        try:
            self.start()
        except BaseException:
            self._end_thread()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
        self._end_thread()
        if self._own_port:
            release_port(self.port)
        if self._faults and kind is None:
            raise self._faults[0]

    def _end_thread(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()

    def start(self) -> None:
        """Listen (again) on the same port."""
        self._call(self._listen())

    def stop(self) -> None:
        """Refuse new connections and close the open ones."""
        self._call(self._unlisten())

    async def _listen(self) -> None:
        if self._server is None:
            make = lambda: _Connection(self)  # noqa: E731
            self._server = await self._loop.create_server(make, "127.0.0.1", self.port, ssl=self._tls, backlog=2048)

    async def _unlisten(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        tasks = [connection._task for connection in self._connections if connection._task is not None]
        for connection in tuple(self._connections):
            connection.abandon()
            await connection.gone.wait()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _call(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)

    def script(self, script: Script) -> None:
        """Say how to answer from now on: one way, a list (one a request, the last repeats) or a function."""
        if isinstance(script, Sequence):
            self._queue, self._choose = deque(script), None
        elif isinstance(script, Behaviour):
            self._queue, self._choose = deque([script]), None
        else:
            self._queue, self._choose = deque(), script

    def release(self) -> None:
        """End every wait of the requests recorded so far."""
        self._call(self._open_gate())

    async def _open_gate(self) -> None:
        gate, self._gate = self._gate, asyncio.Event()
        gate.set()

    def reset(self) -> None:
        """Forget requests and script, end all waits; the wall listens as before."""
        self._forget()
        self.release()
        self.start()

    def _forget(self) -> None:
        with self._news:
            self.requests: list[Seen] = []
            self._paths: Counter[str] = Counter()
        self.script(ok())

    def count(self, path_suffix: str | None = None) -> int:
        """Return how many requests came, of all or of the paths (query excluded) with this ending."""
        with self._news:
            return sum(n for path, n in self._paths.items() if path_suffix is None or path.endswith(path_suffix))

    def wait_for(self, n: int, timeout: float = 5.0) -> list[Seen]:
        """Wait until n requests were seen in all and return them; AssertionError when time is up."""
        with self._news:
            came = self._news.wait_for(lambda: self._paths.total() >= n, timeout)
            assert came, f"the wall saw {self._paths.total()} of {n} requests in {timeout} s: {dict(self._paths)}"
            return list(self.requests)

    def _receive(self, seen: Seen) -> Behaviour:
        with self._news:
            self._paths[seen.endpoint] += 1
            if len(self.requests) < self._keep:
                self.requests.append(seen)
            self._news.notify_all()
        if self._choose is not None:
            return self._choose(seen)
        return self._queue.popleft() if len(self._queue) > 1 else self._queue[0]

    def _fault(self, fault: Exception) -> bytes:
        self._faults.append(fault)
        return _whole(500, b'{"error":{"message":"the wall\'s script failed"}}')


# ----------------------------------------------------------------------------------------------------
# The wall as a process of its own


class WallProcess:
    """`python -m tests.support.wall`, for load that must not share the interpreter of the test."""

    def __init__(self, behaviour: str = "ok", **options: Any) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._argv = [
            sys.executable,
            "-m",
            "tests.support.wall",
            "--port",
            str(self.port),
            "--behaviour",
            behaviour,
        ]
        self._argv += ["--options", json.dumps(options)]

    def __enter__(self) -> Self:
        self._process: subprocess.Popen[str] = subprocess.Popen(self._argv, stdout=subprocess.PIPE, text=True)
        line = _stdout(self._process).readline()
        if line.strip() != str(self.port):
            self._process.kill()
            self.__exit__(None, None, None)
            raise RuntimeError(f"the wall process did not start: {line!r}")
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait(timeout=10)
        _stdout(self._process).close()
        release_port(self.port)


def _stdout(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


def main(argv: Sequence[str] | None = None) -> int:
    """Serve one behaviour until SIGTERM or SIGINT; prints the port once it listens."""
    parser = argparse.ArgumentParser(prog="wall", description="a fake provider")
    parser.add_argument("--port", type=int, default=None)
    parser.add_argument("--behaviour", default="ok", help="the name of a behaviour of this module")
    parser.add_argument("--options", default="{}", type=json.loads, help="its arguments, a JSON object")
    settings = parser.parse_args(argv)
    behaviour = globals()[settings.behaviour](**settings.options)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    with Wall(settings.port, keep=0) as wall:
        wall.script(behaviour)
        sys.stdout.write(f"{wall.port}\n")
        sys.stdout.flush()
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
