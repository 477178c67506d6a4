"""`force_usage`: the request asks, the caller who did not ask sees nothing of it, every other byte is as it was."""

from __future__ import annotations

import json
from typing import Any

import pytest

from extproc.core.usage import HOLD_LIMIT_BYTES, UsageCut, ask_for_usage, must_ask

CHAT = "/v1/chat/completions"
WORDS = b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}],"usage":null}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}\n\n'
DONE = b"data: [DONE]\n\n"


def shown(*pieces: bytes) -> bytes:
    """Cut a stream that comes in these pieces."""
    cut = UsageCut()
    return b"".join(cut.feed(piece, end=index == len(pieces) - 1) for index, piece in enumerate(pieces))


class TestAsking:
    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({"stream": True}, True),
            ({"stream": True, "stream_options": None}, True),
            ({"stream": True, "stream_options": {"include_usage": False}}, True),
            ({"stream": True, "stream_options": {"include_usage": True}}, False),
            ({"stream": True, "stream_options": "odd"}, False),
            ({"stream": False}, False),
            ({}, False),
        ],
    )
    def test_is_for_streams_that_did_not_ask(self, fields: dict[str, Any], expected: bool) -> None:
        assert expected == must_ask(CHAT, fields)

    @pytest.mark.parametrize("endpoint", ["/v1/responses", "/v1/messages", "/v1/audio/speech"])
    def test_is_not_for_endpoints_that_tell_by_themselves(self, endpoint: str) -> None:
        assert not must_ask(endpoint, {"stream": True})

    @pytest.mark.parametrize(
        ("raw", "expected"),
        [
            (b'{"model":"m"}', b'{"stream_options":{"include_usage":true},"model":"m"}'),
            (b' { "model":"m"}', b' {"stream_options":{"include_usage":true}, "model":"m"}'),
            (b'{"stream_options": null ,"a":1}', b'{"stream_options": {"include_usage":true} ,"a":1}'),
            (
                b'{"stream_options":{"include_usage":false,"x":1},"a":[1.0]}',
                b'{"stream_options":{"include_usage":true,"x":1},"a":[1.0]}',
            ),
        ],
    )
    def test_changes_nothing_else(self, raw: bytes, expected: bytes) -> None:
        assert expected == ask_for_usage(raw, json.loads(raw))

    def test_leaves_a_body_alone_that_names_the_option_twice(self) -> None:
        raw = b'{"stream_options":{},"stream_options":null,"model":"m"}'
        assert ask_for_usage(raw, json.loads(raw)) is None


class TestTheCut:
    def test_takes_the_usage_event_out(self) -> None:
        assert WORDS + DONE == shown(WORDS + USAGE + DONE)

    def test_gives_the_same_for_any_cuts(self) -> None:
        whole = WORDS + USAGE + DONE
        for at in range(1, len(whole)):
            assert WORDS + DONE == shown(whole[:at], whole[at:])

    @pytest.mark.parametrize("newline", [b"\r\n", b"\r"])
    def test_knows_every_line_end(self, newline: bytes) -> None:
        whole = (WORDS + USAGE + DONE).replace(b"\n", newline)
        assert (WORDS + DONE).replace(b"\n", newline) == shown(whole[:100], whole[100:])

    @pytest.mark.parametrize(
        "event",
        [
            b'data: {"choices":[],"prompt_filter_results":[]}\n\n',
            b'data: {"choices":[],"usage":null}\n\n',
            b'data: {"choices":[],"usage":\n\n',
            b'data: {"choices":[{"delta":{"content":"\\"choices\\":[] \\"usage\\":{}"}}]}\n\n',
            b": ping\n\n",
            b'data: {"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":1}}\n\n',
        ],
    )
    def test_leaves_everything_else(self, event: bytes) -> None:
        assert WORDS + event + DONE == shown(WORDS, event + DONE)

    def test_releases_what_never_ends(self) -> None:
        cut = UsageCut()
        assert b"x" * (HOLD_LIMIT_BYTES + 1) == cut.feed(b"x" * (HOLD_LIMIT_BYTES + 1), end=False)

    def test_gives_an_unfinished_rest_at_the_end(self) -> None:
        assert WORDS + b'data: {"choices":[{"del' == shown(WORDS, b'data: {"choices":[{"del')
