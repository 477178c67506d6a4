"""The parser of server-sent events, one claim a test."""

from __future__ import annotations

import pytest

from extproc.core.sse import HEAD_BYTES, Event, SseParser


def parse(stream: bytes, limit_bytes: int = 1024) -> list[Event]:
    """Feed `stream` whole and close it."""
    parser = SseParser(limit_bytes)
    return parser.feed(stream) + parser.finish()


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_every_line_end_of_the_specification_ends_an_event(end: bytes) -> None:
    """LF, CRLF and CR are equal."""
    stream = b"event: ping" + end + b"data: a" + end + b"data: b" + end + end + b"data: c" + end + end

    assert [Event("ping", b"a\nb"), Event("", b"c")] == SseParser().feed(stream)


def test_line_ends_may_be_mixed_within_one_event() -> None:
    """A proxy may rewrite some of the line ends."""
    assert [Event("x", b"1\n2")] == SseParser().feed(b"event: x\rdata: 1\r\ndata: 2\n\r\n")


def test_one_byte_at_a_time_gives_the_same_events() -> None:
    """The smallest possible chunks."""
    stream = b"\xef\xbb\xbfevent: a\r\ndata: 1\r\n\r\n: note\r\n\r\ndata: 2\r\ndata: 3\r\n\r\n"
    parser = SseParser()

    events = [event for i in range(len(stream)) for event in parser.feed(stream[i : i + 1])]

    assert [Event("a", b"1"), Event("", b"2\n3")] == events


def test_a_cr_at_the_end_of_a_chunk_ends_the_event_without_waiting_for_its_lf() -> None:
    """Waiting would add the next token's delay."""
    parser = SseParser()

    assert [Event("", b"a")] == parser.feed(b"data: a\r\n\r")
    assert [Event("", b"b")] == parser.feed(b"\ndata: b\r\n\r\n")


def test_an_empty_chunk_between_cr_and_lf_changes_nothing() -> None:
    """The memory of the CR outlives an empty chunk."""
    parser = SseParser()
    parser.feed(b"data: a\r")

    assert [] == parser.feed(b"")
    assert [] == parser.feed(b"\n")
    assert [Event("", b"a\nb")] == parser.feed(b"data: b\n\n")


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (b"data:no space", b"no space"),
        (b"data:  two spaces", b" two spaces"),
        (b"data", b""),
        (b"data:", b""),
        (b"data: a:b", b"a:b"),
        (b"data: a\ndata\ndata: b", b"a\n\nb"),
        (b"id: 7\nretry: 10\nunknown: x\ndata: a", b"a"),
        (b": note\ndata: a\n: note", b"a"),
        ("data: é".encode(), "é".encode()),
    ],
)
def test_a_field_is_read_as_the_specification_says(block: bytes, expected: bytes) -> None:
    """One leading space goes, other fields are ignored."""
    assert [Event("", expected)] == SseParser().feed(block + b"\n\n")


@pytest.mark.parametrize("block", [b": comment", b"event: ping", b"id: 1", b"<html>", b"", b" data: x", b"DATA: x"])
def test_a_block_without_a_data_line_is_no_event(block: bytes) -> None:
    """Comments, names alone and HTML are nothing."""
    assert [] == parse(block + b"\n\n")


def test_a_byte_order_mark_is_dropped_at_the_start_only() -> None:
    """Later it makes an unknown field."""
    stream = b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\ndata: c\n\n"

    assert [Event("", b"a"), Event("", b"c")] == SseParser().feed(stream)


def test_an_event_name_that_is_not_utf_8_is_still_an_event() -> None:
    """A malformed event never kills a stream."""
    assert [Event("\ufffd", b"a")] == SseParser().feed(b"event: \xff\ndata: a\n\n")


@pytest.mark.parametrize("rest", [b"data: [DONE]", b"data: [DONE]\n", b"data: [DONE]\r\n"])
def test_finish_hands_out_an_event_whose_blank_line_never_came(rest: bytes) -> None:
    """Some servers close right after `[DONE]`."""
    parser = SseParser()

    assert [] == parser.feed(rest)
    assert [Event("", b"[DONE]")] == parser.finish()
    assert [] == parser.finish()


def test_an_event_over_the_limit_becomes_one_marker_and_the_next_event_is_whole() -> None:
    """It is reported once, however long it goes on."""
    parser = SseParser(limit_bytes=64)

    events = [event for _ in range(100) for event in parser.feed(b"data: " + b"x" * 50)]
    events += parser.feed(b"\n\ndata: next\n\n")

    assert [True, False] == [event.oversized for event in events]
    assert Event("", b"next") == events[1]


def test_a_marker_keeps_name_and_beginning() -> None:
    """Enough to tell a closing event of several megabytes."""
    stream = b'event: response.completed\ndata: {"type":' + b"x" * 5000 + b"\n\n"

    [event] = parse(stream, limit_bytes=2000)

    assert ("response.completed", True) == (event.name, event.oversized)
    assert event.data.startswith(b'{"type":')
    assert len(event.data) < HEAD_BYTES


def test_an_event_of_exactly_the_limit_is_kept() -> None:
    """The limit counts the block without its blank line."""
    assert [Event("", b"x" * 58)] == parse(b"data: " + b"x" * 58 + b"\n\n", limit_bytes=64)
    assert [Event("", b"x" * 58)] == parse(b"data: " + b"x" * 58 + b"\n", limit_bytes=64)
    assert parse(b"data: " + b"x" * 59 + b"\n\n", limit_bytes=64)[0].oversized


def test_a_comment_over_the_limit_is_a_marker_without_data() -> None:
    """A flood of comment is no output."""
    assert [Event("", b"", oversized=True)] == parse(b": " + b"x" * 5000 + b"\n\n")


def test_a_trickled_event_is_held_within_the_limit() -> None:
    """Memory stays bounded during an endless event."""
    parser = SseParser(limit_bytes=256)
    held = []
    for _ in range(5000):
        parser.feed(b"data: y")
        held.append(parser.buffered_bytes)

    assert max(held) <= 257
