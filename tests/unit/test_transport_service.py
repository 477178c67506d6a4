"""A session carries bytes in and out, keeps the one timer, and turns a fault into a broken exchange."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from extproc.core.exchange import (
    Abort,
    Action,
    CancelTimer,
    Close,
    Event,
    Part,
    Pass,
    ReleaseBody,
    RequestBody,
    SetTimer,
    TimerFired,
    Unexpected,
)
from extproc.transport.service import Session
from extproc.wire.ext_proc import Request, Response
from tests.support.playbook import Clock

MESSAGE = b""
"""The empty message: one that no filter of ours sends."""


class Scripted:
    """An exchange that answers each event with the next list of actions, or raises it."""

    def __init__(self, *answers: list[Action] | Exception) -> None:
        self.answers = list(answers)
        self.seen: list[tuple[Event, float]] = []
        self.closed_at: list[float] = []

    def __repr__(self) -> str:
        return "<Scripted>"

    def handle(self, event: Event, now: float) -> list[Action]:
        """Note the event and give the next answer."""
        self.seen.append((event, now))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def closed(self, now: float) -> None:
        """Note the end."""
        self.closed_at.append(now)


class Faults:
    """Counts what a session reports."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def session(
    *answers: list[Action] | Exception, faults: Callable[[], None] | None = None
) -> tuple[Session, Scripted, Clock]:
    """Open a session over a scripted exchange at second 100."""
    exchange, clock = Scripted(*answers), Clock(100.0)
    return Session(exchange, clock, faults or Faults()), exchange, clock


def replies(messages: list[bytes]) -> list[str | None]:
    """Return which part each message answers."""
    return [Response.FromString(message).WhichOneof("response") for message in messages]


class TestAMessage:
    def test_is_decoded_and_handled_with_the_time(self) -> None:
        request = Request()
        request.request_body.body = b"{}"
        opened, exchange, _ = session([])
        opened.on_message(request.SerializeToString())
        assert [(RequestBody(b"{}"), 100.0)] == exchange.seen

    def test_is_answered_in_the_order_of_the_actions(self) -> None:
        opened, _, _ = session([Pass(Part.RESPONSE_HEADERS), ReleaseBody(b"x", False)])
        output = opened.on_message(MESSAGE)
        assert ["response_headers", "response_body"] == replies(output.messages)
        assert (False, None) == (output.close, output.abort)

    def test_that_no_filter_of_ours_sends_is_still_handled(self) -> None:
        opened, exchange, _ = session([])
        opened.on_message(MESSAGE)
        assert [Unexpected()] == [event for event, _ in exchange.seen]

    def test_may_end_the_exchange_after_its_answer(self) -> None:
        opened, _, _ = session([Pass(Part.REQUEST_BODY), Close()])
        output = opened.on_message(MESSAGE)
        assert (["request_body"], True, None) == (replies(output.messages), output.close, output.abort)

    def test_may_break_the_exchange_after_its_last_piece(self) -> None:
        opened, _, _ = session([ReleaseBody(b"x", False), Abort("stream_cut")])
        output = opened.on_message(MESSAGE)
        assert (1, "stream_cut") == (len(output.messages), output.abort)


class TestTheTimer:
    def test_is_not_set_at_first(self) -> None:
        assert session()[0].timer_at is None

    def test_counts_from_the_message_that_asked_for_it(self) -> None:
        opened, _, clock = session([SetTimer(2.5)])
        clock.now = 110.0
        opened.on_message(MESSAGE)
        assert 112.5 == opened.timer_at

    def test_is_replaced_by_a_later_one(self) -> None:
        opened, _, _ = session([SetTimer(2.5)], [SetTimer(1.0)])
        opened.on_message(MESSAGE)
        opened.on_message(MESSAGE)
        assert 101.0 == opened.timer_at

    def test_stays_when_a_message_says_nothing_of_it(self) -> None:
        opened, _, _ = session([SetTimer(2.5)], [])
        opened.on_message(MESSAGE)
        opened.on_message(MESSAGE)
        assert 102.5 == opened.timer_at

    def test_is_forgotten_when_it_is_cancelled(self) -> None:
        opened, _, _ = session([SetTimer(2.5), CancelTimer()])
        opened.on_message(MESSAGE)
        assert opened.timer_at is None

    def test_fires_once_unless_it_is_set_again(self) -> None:
        opened, exchange, _ = session([SetTimer(2.5)], [Pass(Part.RESPONSE_HEADERS)])
        opened.on_message(MESSAGE)
        output = opened.on_timer()
        assert (["response_headers"], None) == (replies(output.messages), opened.timer_at)
        assert TimerFired() == exchange.seen[-1][0]

    def test_may_be_set_again_when_it_fires(self) -> None:
        opened, _, clock = session([SetTimer(2.5)], [SetTimer(4.0)])
        opened.on_message(MESSAGE)
        clock.now = 102.5
        opened.on_timer()
        assert 106.5 == opened.timer_at


class TestAFault:
    def test_breaks_the_exchange_and_is_counted(self) -> None:
        faults = Faults()
        opened, _, _ = session(KeyError("x"), faults=faults)
        output = opened.on_message(MESSAGE)
        assert ([], False, "internal error", 1) == (output.messages, output.close, output.abort, faults.count)

    def test_in_a_timer_is_one_too(self) -> None:
        faults = Faults()
        opened, _, _ = session(KeyError("x"), faults=faults)
        assert ("internal error", 1) == (opened.on_timer().abort, faults.count)

    def test_of_bytes_that_are_no_message_is_one_too(self) -> None:
        faults = Faults()
        opened, exchange, _ = session(faults=faults)
        assert "internal error" == opened.on_message(b"\xff\xff").abort
        assert ([], 1) == (exchange.seen, faults.count)

    def test_of_an_action_that_cannot_be_written_is_one_too(self) -> None:
        broken: Any = ReleaseBody("text", False)  # type: ignore[arg-type]  # what a programming error would do
        opened, _, _ = session([broken])
        output = opened.on_message(MESSAGE)
        assert ([], "internal error") == (output.messages, output.abort)

    def test_is_logged_with_its_place_but_no_value(self, caplog: pytest.LogCaptureFixture) -> None:
        opened, _, _ = session(ValueError("my prompt"))
        with caplog.at_level(logging.ERROR):
            opened.on_message(MESSAGE)
        (record,) = caplog.records
        assert record.getMessage().startswith("unhandled ValueError in <Scripted> at handle:")
        assert ("my prompt" in caplog.text, record.exc_info) == (False, None)


class TestTheEnd:
    def test_is_told_to_the_exchange_with_the_time(self) -> None:
        opened, exchange, clock = session()
        clock.now = 105.0
        opened.on_closed()
        assert [105.0] == exchange.closed_at

    def test_that_the_exchange_cannot_bear_is_counted_and_no_more(self) -> None:
        class Brittle(Scripted):
            def closed(self, now: float) -> None:
                raise RuntimeError

        faults = Faults()
        Session(Brittle(), Clock(), faults).on_closed()
        assert 1 == faults.count
