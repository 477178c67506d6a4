"""The playbook itself: a conversation that goes otherwise fails and says where."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from extproc.core.exchange import (
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
from tests.support.playbook import After, Clock, Fires, JsonBody, Playbook, Some

EVENT = Unexpected()
PASSED = Pass(Part.REQUEST_BODY)


class Echo:
    """An exchange that answers everything with the same actions."""

    def __init__(self, *actions: Action) -> None:
        self.actions = list(actions)
        self.seen: list[tuple[Event, float]] = []

    def __repr__(self) -> str:
        return "<Echo>"

    def handle(self, event: Event, now: float) -> list[Action]:
        """Note the event and answer."""
        self.seen.append((event, now))
        return self.actions

    def closed(self, now: float) -> None:
        """Take note of nothing."""


def told(conversation: Callable[[], object]) -> str:
    """Return what a conversation that fails says."""
    with pytest.raises(AssertionError) as failure:
        conversation()
    return str(failure.value)


def test_the_expected_conversation_is_true() -> None:
    assert Playbook(Echo(PASSED, Close())) >> EVENT << PASSED << Close() >> EVENT << PASSED << Close()


def test_an_action_that_was_not_expected_fails_at_the_end() -> None:
    assert "not expected: Close()" in told(lambda: bool(Playbook(Echo(PASSED, Close())) >> EVENT << PASSED))


def test_an_action_that_was_not_expected_fails_at_the_next_event() -> None:
    assert "not expected: Close()" in told(lambda: Playbook(Echo(Close())) >> EVENT >> EVENT)


def test_an_action_that_does_not_come_fails() -> None:
    assert "no action came" in told(lambda: Playbook(Echo()) >> EVENT << PASSED)


def test_the_order_of_actions_counts() -> None:
    text = told(lambda: Playbook(Echo(PASSED, Close())) >> EVENT << Close() << PASSED)
    assert "came: Pass(part=<Part.REQUEST_BODY: 'request_body'>)" in text


def test_the_difference_names_the_field() -> None:
    text = told(lambda: Playbook(Echo(ReleaseBody(b"a", True))) >> EVENT << ReleaseBody(b"b", True))
    assert text.startswith("<Echo>\n>> Unexpected()\n<< ReleaseBody")
    assert ("chunk: expected b'b'" in text, "end_of_stream: expected" in text) == (True, False)


def test_some_compares_the_named_fields_only() -> None:
    assert Playbook(Echo(ReleaseBody(b"a", True))) >> EVENT << Some(ReleaseBody, end_of_stream=True)
    text = told(lambda: Playbook(Echo(ReleaseBody(b"a", True))) >> EVENT << Some(ReleaseBody, chunk=b"b"))
    assert "chunk: expected b'b'" in text


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (JsonBody(a=1), True),
        (JsonBody(b={"c": 2}), True),
        (JsonBody(a=2), False),
        (JsonBody(b={"c": 3}), False),
        (JsonBody(x=None), False),
    ],
)
def test_json_bodies_are_compared_by_the_members_that_matter(pattern: JsonBody, expected: bool) -> None:
    assert expected is (pattern == b'{"a":1,"b":{"c":2,"d":3}}')


def test_time_moves_between_lines() -> None:
    exchange = Echo()
    assert Playbook(exchange, Clock(100.0)) >> EVENT >> After(2.5, RequestBody(b"")) >> EVENT
    assert [100.0, 102.5, 102.5] == [now for _, now in exchange.seen]


def test_the_timer_fires_when_it_is_due() -> None:
    exchange = Echo(SetTimer(2.5))
    assert Playbook(exchange, Clock(100.0)) >> EVENT << SetTimer(2.5) >> Fires() << SetTimer(2.5)
    assert (TimerFired(), 102.5) == exchange.seen[1]


@pytest.mark.parametrize("actions", [(), (CancelTimer(),), (SetTimer(1.0), CancelTimer())])
def test_a_timer_that_is_not_set_cannot_fire(actions: tuple[Action, ...]) -> None:
    exchange = Echo(*actions)
    book = Playbook(exchange) >> EVENT
    for action in actions:
        book = book << action
    assert "no timer was set" in told(lambda: book >> Fires())


def test_an_event_cannot_come_after_a_timer_that_runs_out_before_it() -> None:
    book = Playbook(Echo(SetTimer(1.0))) >> EVENT << SetTimer(1.0)
    assert "the timer runs out 0.5 s earlier" in told(lambda: book >> After(1.5, EVENT))
