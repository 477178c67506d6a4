"""The parser and the tail watch under any bytes in any cut."""

from __future__ import annotations

from itertools import pairwise

import orjson
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.sse import Event, SseParser
from extproc.core.stream_events import Ending, StreamKind, TailWatch, judge_event

LINE_ENDS = [b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n"]
FIELDS = [b"data:", b"data: ", b"data", b"event: ", b"id: 1", b":"]
VALUES = [b"error", b"[DONE]", b'{"a":1}', b"\xef\xbb\xbf", b"\xff", "é".encode(), b"x" * 40, b" "]
PIECES = st.sampled_from([*LINE_ENDS, *FIELDS, *VALUES])
STREAMS = st.lists(PIECES, max_size=40).map(b"".join) | st.binary(max_size=200)
CUTS = st.lists(st.integers(0, 400), max_size=12)
KEYS = [
    "choices",
    "delta",
    "content",
    "type",
    "error",
    "finish_reason",
    "response",
    "item",
    "part",
    "status",
    "output",
    "text",
    "message",
]
WORDS = [
    "error",
    "message",
    "response.completed",
    "content_block_start",
    "content_block_delta",
    "message_delta",
    "stop",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5) | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=15,
)


def split(stream: bytes, cuts: list[int]) -> list[bytes]:
    """Cut `stream` at `cuts`."""
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    return [stream[a:b] for a, b in pairwise(edges)]


def parse(chunks: list[bytes], limit_bytes: int) -> list[Event]:
    """Feed `chunks` in turn and check what the parser holds."""
    parser = SseParser(limit_bytes)
    events = []
    for chunk in chunks:
        events += parser.feed(chunk)
        assert parser.buffered_bytes <= limit_bytes + 1
    return events + parser.finish()


def parse_by_lines(stream: bytes) -> list[Event]:
    """Follow the specification line by line, as slowly and plainly as it is written."""
    stream = stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    events: list[Event] = []
    name, data = b"", b""
    for line in [*stream.split(b"\n"), b"", b""]:
        field, _, value = line.partition(b":")
        if not line and data:
            events.append(Event(name.decode("utf-8", "replace"), data[:-1]))
        if not line:
            name, data = b"", b""
        elif field == b"data":
            data += (value[1:] if value[:1] == b" " else value) + b"\n"
        elif field == b"event":
            name = value[1:] if value[:1] == b" " else value
    return events


@given(stream=STREAMS, cuts=CUTS, limit_bytes=st.sampled_from([1, 8, 30, 100, 10_000]))
def test_any_cut_gives_the_events_of_the_whole(stream: bytes, cuts: list[int], limit_bytes: int) -> None:
    """Chunk borders carry no meaning, whatever the limit."""
    assert parse([stream], limit_bytes) == parse(split(stream, cuts), limit_bytes)


@given(stream=STREAMS)
def test_events_are_those_of_the_specification(stream: bytes) -> None:
    """The fast parser agrees with a plain one."""
    assert parse_by_lines(stream) == parse([stream], 10_000)


@given(payload=JSON, name=st.sampled_from(["", "error", "ping", "response.completed", "message_stop"]))
def test_any_json_is_judged_without_raising(payload: object, name: str) -> None:
    """Wrong shapes are nothing worse than unknown."""
    for kind in StreamKind:
        meaning = judge_event(kind, Event(name, orjson.dumps(payload)))
        judge_event(kind, Event(name, orjson.dumps(payload), oversized=True))
        assert meaning.finished or not meaning.terminal


@given(data=st.binary(max_size=60), oversized=st.booleans())
def test_any_bytes_are_judged_without_raising(data: bytes, oversized: bool) -> None:
    """Data need not be JSON."""
    for kind in StreamKind:
        judge_event(kind, Event("", data, oversized))


DELTA = st.integers(0, 12_000).map(
    lambda size: b'data: {"choices":[{"delta":{"content":"' + b"[DONE]\\n\\n" * (size // 10) + b'"}}]}\n\n'
)
ENDS = st.sampled_from(
    [
        (b"data: [DONE]\n\n", Ending.WHOLE),
        (b"data: [DONE]", Ending.WHOLE),
        (b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n', Ending.WHOLE),
        (b'data: {"error":{"message":"x"}}\n\ndata: [DONE]\n\n', Ending.ERROR_EVENT),
        (b'data: {"choices":[{"delta":{"content":"data: [DO', Ending.CUT),
        (b": keep-alive\n\n", Ending.CUT),
        (b"", Ending.CUT),
    ]
)


@given(deltas=st.lists(DELTA, max_size=6), end=ENDS, size=st.integers(1, 20_000), crlf=st.booleans())
def test_the_ending_does_not_depend_on_the_cut(
    deltas: list[bytes], end: tuple[bytes, Ending], size: int, crlf: bool
) -> None:
    """Model text full of `[DONE]` never counts as an end."""
    stream = b"".join(deltas) + end[0]
    stream = stream.replace(b"\n", b"\r\n") if crlf else stream
    watch = TailWatch()
    for start in range(0, len(stream), size):
        watch.add(stream[start : start + size])
        assert watch.held_bytes <= 8192

    assert end[1] == watch.ending(StreamKind.CHAT)


@given(chunks=st.lists(STREAMS | st.binary(max_size=9000), max_size=8))
def test_the_tail_watch_takes_any_bytes(chunks: list[bytes]) -> None:
    """Garbage neither raises nor piles up."""
    watch = TailWatch()
    for chunk in chunks:
        watch.add(chunk)
        assert watch.held_bytes <= 8192

    for kind in StreamKind:
        watch.ending(kind)
