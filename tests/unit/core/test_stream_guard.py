"""What a guarded stream may show, when, and what it counts as when it ends."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from extproc.config.snapshot import StreamGuard
from extproc.core import stream_guard
from extproc.core.stream_events import StreamKind
from extproc.core.stream_guard import Verdict, WatchedStream

HOLD, PASS, BAD, CUT = Verdict

ROLE = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
HI = {"choices": [{"index": 0, "delta": {"content": "Hi"}}]}
STOP: dict[str, Any] = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
ERROR = {"error": {"message": "overloaded", "code": "server_error"}}
DONE = b"data: [DONE]\n\n"
COMMENT = b": keep-alive\n\n"


def event(payload: dict[str, Any]) -> bytes:
    """Write one event."""
    return b"data: " + orjson.dumps(payload) + b"\n\n"


def watched(guard: StreamGuard = "first_token", kind: StreamKind = StreamKind.CHAT) -> WatchedStream:
    return WatchedStream(kind, guard)


def fed(stream: WatchedStream, *pieces: bytes, end: bool = False) -> list[Verdict]:
    """Feed pieces, the last one as the end if `end` says so; returns the verdict of each."""
    last = len(pieces) - 1
    return [stream.feed(piece, end=end and index == last) for index, piece in enumerate(pieces)]


class TestBeforeTheFirstToken:
    def test_nothing_is_shown(self) -> None:
        assert [HOLD, HOLD, HOLD] == fed(watched(), event(ROLE), COMMENT, b"")

    def test_the_first_output_releases(self) -> None:
        stream = watched()
        assert [HOLD, PASS] == fed(stream, event(ROLE), event(HI))
        assert (True, True) == (stream.released, stream.has_output)

    def test_half_an_event_is_no_output(self) -> None:
        whole = event(HI)
        assert [HOLD, PASS] == fed(watched(), whole[:20], whole[20:])

    def test_what_was_held_comes_out_in_order_and_in_its_pieces(self) -> None:
        stream = watched()
        pieces = [event(ROLE)[:9], event(ROLE)[9:] + COMMENT, event(HI)]
        fed(stream, *pieces)
        assert pieces == stream.take_held()

    def test_what_was_taken_is_forgotten(self) -> None:
        stream = watched()
        fed(stream, event(HI))
        stream.take_held()
        assert [] == stream.take_held()

    def test_bytes_after_release_are_not_held(self) -> None:
        stream = watched()
        fed(stream, event(HI))
        stream.take_held()
        fed(stream, event(HI), DONE)
        assert [] == stream.take_held()

    @pytest.mark.parametrize("pieces", [(b"",), (event(ROLE), event(STOP)), (event(ROLE), DONE), (COMMENT,)])
    def test_an_end_without_output_is_a_bad_answer(self, pieces: tuple[bytes, ...]) -> None:
        stream = watched()
        assert BAD == fed(stream, *pieces, end=True)[-1]
        assert (False, None) == (stream.released, stream.error)

    def test_the_terminal_event_without_output_is_bad_before_the_connection_ends(self) -> None:
        assert [HOLD, BAD] == fed(watched(), event(ROLE), DONE)

    def test_an_error_event_is_bad_and_tells_the_provider_s_error(self) -> None:
        stream = watched()
        assert [HOLD, BAD] == fed(stream, event(ROLE), event(ERROR))
        assert ERROR["error"] == stream.error

    def test_an_error_event_without_its_blank_line_is_read_at_the_end(self) -> None:
        stream = watched()
        assert [BAD] == fed(stream, event(ERROR).rstrip(b"\n"), end=True)
        assert ERROR["error"] == stream.error

    def test_an_answer_in_one_piece_that_is_whole_passes(self) -> None:
        assert [PASS] == fed(watched(), event(ROLE) + event(HI) + event(STOP) + DONE, end=True)

    def test_an_answer_in_one_piece_that_breaks_off_is_cut_and_not_released(self) -> None:
        stream = watched()
        assert [CUT] == fed(stream, event(ROLE) + event(HI), end=True)
        assert False is stream.released

    def test_an_error_event_decides_even_behind_output_in_one_piece(self) -> None:
        """Nothing was shown yet, so another target may still serve."""
        assert [BAD] == fed(watched(), event(HI) + event(ERROR))

    def test_noise_ends_at_its_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stream_guard, "QUIET_LIMIT_BYTES", 2 * len(COMMENT))
        assert [HOLD, HOLD, BAD] == fed(watched(), COMMENT, COMMENT, b":")

    def test_output_that_comes_with_the_byte_over_the_limit_is_output(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stream_guard, "QUIET_LIMIT_BYTES", len(COMMENT))
        assert [HOLD, PASS] == fed(watched(), COMMENT, event(HI))


class TestAfterTheFirstToken:
    def test_the_terminal_event_makes_it_whole(self) -> None:
        assert [PASS, PASS, PASS] == fed(watched(), event(HI), event(STOP), DONE, end=True)

    def test_the_end_may_come_by_itself(self) -> None:
        assert [PASS, PASS, PASS] == fed(watched(), event(HI), event(STOP) + DONE, b"", end=True)

    def test_an_end_without_a_finish_is_cut(self) -> None:
        assert [PASS, PASS, CUT] == fed(watched(), event(HI), event(HI), b"", end=True)

    def test_output_that_was_cut_in_the_middle_of_an_event_is_cut(self) -> None:
        assert [PASS, CUT] == fed(watched(), event(HI), event(HI)[:20], end=True)

    def test_an_error_event_at_the_end_is_passed_on_and_told(self) -> None:
        """The caller reads the provider's own error; only the target's health cares."""
        stream = watched()
        assert [PASS, PASS] == fed(stream, event(HI), event(ERROR), end=True)
        assert True is stream.ended_with_error

    def test_a_whole_stream_did_not_end_with_an_error(self) -> None:
        stream = watched()
        fed(stream, event(HI), event(STOP) + DONE, end=True)
        assert False is stream.ended_with_error

    def test_nothing_is_parsed_but_the_end(self) -> None:
        stream = watched()
        fed(stream, event(HI), event(ERROR), event(STOP), DONE)
        assert None is stream.error

    def test_more_than_the_limit_is_cut(self, monkeypatch: pytest.MonkeyPatch) -> None:
        size = len(event(HI))
        monkeypatch.setattr(stream_guard, "LIMIT_BYTES", 2 * size)
        assert [PASS, PASS, CUT] == fed(watched(), event(HI), event(HI), b":")

    def test_the_quiet_limit_is_over(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stream_guard, "QUIET_LIMIT_BYTES", len(event(HI)))
        assert [PASS, PASS, PASS] == fed(watched(), event(HI), COMMENT, COMMENT)


class TestComplete:
    def test_output_alone_releases_nothing(self) -> None:
        stream = watched("complete")
        assert [HOLD, HOLD, HOLD] == fed(stream, event(HI), event(STOP), DONE)
        assert (False, True) == (stream.released, stream.has_output)

    def test_a_whole_answer_passes_with_every_piece_in_order(self) -> None:
        stream = watched("complete")
        pieces = [event(ROLE), event(HI), event(STOP), DONE]
        assert PASS == fed(stream, *pieces, end=True)[-1]
        assert (True, pieces) == (stream.released, stream.take_held())

    def test_an_end_without_output_is_a_bad_answer(self) -> None:
        assert [HOLD, BAD] == fed(watched("complete"), event(ROLE), event(STOP) + DONE, end=True)

    def test_an_end_without_a_finish_is_cut(self) -> None:
        assert [HOLD, CUT] == fed(watched("complete"), event(HI), b"", end=True)

    def test_an_error_event_after_output_is_a_bad_answer(self) -> None:
        stream = watched("complete")
        assert [HOLD, BAD] == fed(stream, event(HI), event(ERROR))
        assert ERROR["error"] == stream.error

    def test_more_than_the_limit_is_cut(self, monkeypatch: pytest.MonkeyPatch) -> None:
        size = len(event(HI))
        monkeypatch.setattr(stream_guard, "LIMIT_BYTES", 2 * size)
        assert [HOLD, HOLD, CUT] == fed(watched("complete"), event(HI), event(HI), b":")

    def test_quiet_is_no_fault_while_the_whole_is_awaited(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stream_guard, "QUIET_LIMIT_BYTES", len(COMMENT))
        assert [HOLD, HOLD] == fed(watched("complete"), COMMENT, COMMENT)


class TestOff:
    def test_everything_passes_from_the_first_byte_on(self) -> None:
        stream = watched("off")
        assert True is stream.released
        assert [PASS, PASS] == fed(stream, event(ROLE), event(ERROR))

    def test_nothing_is_ever_held(self) -> None:
        stream = watched("off")
        fed(stream, event(ROLE), event(HI))
        assert [] == stream.take_held()

    def test_an_end_without_a_finish_is_cut_all_the_same(self) -> None:
        assert [PASS, CUT] == fed(watched("off"), event(HI), b"", end=True)

    def test_a_whole_answer_passes(self) -> None:
        assert [PASS, PASS] == fed(watched("off"), event(HI), event(STOP) + DONE, end=True)


@pytest.mark.parametrize(
    ("kind", "quiet", "output", "last"),
    [
        (
            StreamKind.COMPLETIONS,
            {"choices": [{"text": ""}]},
            {"choices": [{"text": "Hi"}]},
            {"choices": [{"text": "", "finish_reason": "stop"}]},
        ),
        (
            StreamKind.RESPONSES,
            {"type": "response.created", "response": {}},
            {"type": "response.output_text.delta", "delta": "Hi"},
            {"type": "response.completed", "response": {}},
        ),
        (
            StreamKind.MESSAGES,
            {"type": "message_start", "message": {}},
            {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Hi"}},
            {"type": "message_stop"},
        ),
    ],
)
def test_every_protocol_is_held_released_and_closed(
    kind: StreamKind, quiet: dict[str, Any], output: dict[str, Any], last: dict[str, Any]
) -> None:
    whole = fed(watched(kind=kind), event(quiet), event(output), event(last), end=True)
    cut = fed(watched(kind=kind), event(quiet), event(output), b"", end=True)

    assert ([HOLD, PASS, PASS], [HOLD, PASS, CUT]) == (whole, cut)
