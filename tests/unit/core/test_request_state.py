"""How the state of a request follows from what happened to its attempts."""

from __future__ import annotations

from extproc.core.endpoints import Kind
from extproc.core.outcome import ErrorClass, RouteMode
from extproc.core.request_state import FirstError, PlanStep, RequestState

FIRST = PlanStep("a", "m-a", "big", "a-cluster", "/v1/chat/completions", RouteMode.DIRECT)
SECOND = FIRST._replace(provider="b", model="m-b", mode=RouteMode.PROVIDER_FAILOVER)
THIRD = FIRST._replace(provider="c", model="m-c", mode=RouteMode.PROVIDER_FAILOVER)
ERROR = FirstError(429, b"{}", (("content-type", "application/json"),))
STATE = RequestState(
    id="id",
    version=1,
    policy="default",
    kind=Kind.UNARY,
    protocol="openai",
    endpoint="/v1/chat/completions",
    query="",
    client="",
    model="big",
    ticket=0,
    arrived=100.0,
    plan=(FIRST, SECOND),
    started=100.0,
)


def test_steps_are_counted_from_one() -> None:
    assert (None, FIRST, SECOND, None) == tuple(STATE.step(number) for number in range(4))


def test_an_opened_attempt_has_its_own_start_and_the_classes_of_those_before() -> None:
    opened = STATE.opened(2, 105.0, (ErrorClass.TIMEOUT,))
    assert (2, 105.0, ("timeout",), 100.0) == (opened.attempt, opened.started, opened.classes, opened.arrived)


def test_a_failure_adds_its_class_and_keeps_the_plan() -> None:
    failed = STATE.failed(ErrorClass.RATE_LIMITED, ERROR)
    assert (("rate_limited",), STATE.plan, ERROR) == (failed.classes, failed.plan, failed.first_error)


def test_a_new_rest_replaces_only_what_was_planned_after_the_present_attempt() -> None:
    failed = STATE.opened(1, 100.0, ()).failed(ErrorClass.RATE_LIMITED, ERROR, (THIRD, SECOND))
    assert (FIRST, THIRD, SECOND) == failed.plan


def test_an_empty_rest_ends_the_plan_at_the_present_attempt() -> None:
    assert (FIRST,) == STATE.failed(ErrorClass.RATE_LIMITED, ERROR, ()).plan


def test_a_class_that_was_noted_for_the_present_attempt_is_replaced() -> None:
    failed = STATE.opened(2, 101.0, ("timeout",)).failed("server_error", None).failed("rate_limited", None)
    assert ("timeout", "rate_limited") == failed.classes


def test_a_request_that_moved_to_larger_contexts_stays_there() -> None:
    moved = STATE.failed(ErrorClass.CONTEXT_LENGTH, ERROR, (THIRD,), context=True)
    assert moved.opened(2, 101.0, moved.classes).failed(ErrorClass.RATE_LIMITED, ERROR).context
