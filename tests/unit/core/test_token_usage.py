"""Token usage is read out of passing streams: whatever the protocol, however the bytes are cut, and counts only."""

from __future__ import annotations

import pytest

from extproc.core.token_usage import OBJECT_LIMIT_BYTES, UsageWatch

CHAT = b"""data: {"choices":[{"index":0,"delta":{"content":"hi"}}],"usage":null}

data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":5},\
"completion_tokens_details":{"reasoning_tokens":2},"total_tokens":10}}

data: [DONE]

""".replace(b"\\\n", b"")
MESSAGES = b"""event: message_start
data: {"type":"message_start","message":{"id":"m","usage":{"input_tokens":7,"output_tokens":1,\
"cache_read_input_tokens":4,"cache_creation_input_tokens":6,"service_tier":"standard"}}}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":3}}

""".replace(b"\\\n", b"")
RESPONSES = b"""event: response.completed
data: {"type":"response.completed","response":{"output":[],"usage": {"input_tokens" : 7,"output_tokens":3,\
"input_tokens_details":{"cached_tokens":5},"output_tokens_details":{"reasoning_tokens":2}},"user":null}}

""".replace(b"\\\n", b"")
ALL = {"input": 7, "output": 3, "cached": 5, "reasoning": 2}
STREAMS = {
    "chat": (CHAT, ALL),
    "messages": (MESSAGES, {"input": 7, "output": 3, "cached": 4, "cache_write": 6}),
    "responses": (RESPONSES, ALL),
}


def read(*pieces: bytes) -> dict[str, int]:
    """Watch a stream that comes in these pieces and return what it said in the end."""
    watch, found = UsageWatch(), dict[str, int]()
    for piece in pieces:
        found |= watch.feed(piece)
    return found


@pytest.mark.parametrize("name", STREAMS)
class TestTheUsageOfAStream:
    def test_is_read_in_every_protocol(self, name: str) -> None:
        stream, expected = STREAMS[name]
        assert expected == read(stream)

    def test_is_the_same_for_any_cuts(self, name: str) -> None:
        stream, expected = STREAMS[name]
        assert [expected] * (len(stream) - 1) == [read(stream[:at], stream[at:]) for at in range(1, len(stream))]

    def test_is_the_same_byte_by_byte(self, name: str) -> None:
        stream, expected = STREAMS[name]
        assert expected == read(*(stream[at : at + 1] for at in range(len(stream))))


def test_the_later_count_wins() -> None:
    assert {"output": 9, "input": 1} == read(
        b'{"usage":{"completion_tokens":4,"prompt_tokens":1}}', b'{"usage":{"completion_tokens":9}}'
    )


def test_an_object_over_several_lines_of_data_is_one() -> None:
    lines = b'data: {"usage": {\ndata:   "prompt_tokens": 7,\r\ndata:   "completion_tokens": 3}}\n\n'
    assert {"input": 7, "output": 3} == read(lines)


@pytest.mark.parametrize("odd", [b'"7"', b"-1", b"1.5", b"true", b"null", b"99999999999999999999", b"{}", b"[7]"])
def test_only_counts_are_believed(odd: bytes) -> None:
    assert {"output": 3} == read(b'{"usage":{"prompt_tokens":' + odd + b',"completion_tokens":3}}')


@pytest.mark.parametrize(
    "text",
    [
        rb'data: {"choices":[{"delta":{"content":"\"usage\":{\"prompt_tokens\":7}"}}]}',
        b'data: {"usage":{"prompt_tokens":',
        b'data: {"usage":{"prompt_tokens":7,}}',
        b'data: {"usage":[{"prompt_tokens":7}]}',
        b'data: "usage"',
        b"data: null",
        b'data: {"other_usage":{"prompt_tokens":7}}',
    ],
)
def test_what_is_no_usage_object_says_nothing(text: bytes) -> None:
    assert {} == read(text + b"\n\n")


def test_one_that_is_too_long_is_not_read_and_the_next_one_is() -> None:
    long = b'{"usage":{"prompt_tokens":1,"x":"' + b"y" * OBJECT_LIMIT_BYTES + b'"}}'
    assert {"input": 7} == read(long, b'{"usage":{"prompt_tokens":7}}')


def test_little_of_a_stream_is_remembered() -> None:
    watch = UsageWatch()
    for _ in range(100):
        watch.feed(b'"usage":{"usage":{' + b'"' * 1000)
        assert len(watch._rest) <= OBJECT_LIMIT_BYTES + 32
