"""The table of what follows a failed attempt."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from extproc.config.snapshot import Policy
from extproc.core.outcome import ErrorClass, Failure
from extproc.core.retry import FINAL, Next, Spent, Verb, next_step, same_target_wait
from tests.unit.core.build import NOW, A, chain, config, snapshot

POLICY = snapshot(config({"big": chain(A)})).policies["default"]
FRESH = Spent(attempts=1, same_target=1, elapsed_s=0.1, attempt_s=0.1, hold_left_s=60.0)
MIDDLE = 0.5


def policy(**same_target: Any) -> Policy:
    """Return the default policy with another rule for the same target."""
    return dataclasses.replace(POLICY, same_target=dataclasses.replace(POLICY.same_target, **same_target))


def decide(kind: ErrorClass, spent: Spent = FRESH, retry_after_s: float | None = None, *, allowed: bool = True) -> Next:
    """Decide under the default policy."""
    retry_at = None if retry_after_s is None else NOW + retry_after_s
    return next_step(Failure(kind, 400, retry_at), spent, POLICY, NOW, MIDDLE, lambda: allowed)


def wait(kind: ErrorClass = ErrorClass.SERVER_ERROR, rule: Policy = POLICY, draw: float = MIDDLE, **spent: Any) -> Any:
    """Return how long to wait before the same target is asked again."""
    retry_after_s = spent.pop("retry_after_s", None)
    retry_at = None if retry_after_s is None else NOW + retry_after_s
    return same_target_wait(Failure(kind, 500, retry_at), FRESH._replace(**spent), rule, NOW, draw)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (ErrorClass.RATE_LIMITED, Verb.NEXT),
        (ErrorClass.QUOTA_EXHAUSTED, Verb.NEXT),
        (ErrorClass.AUTH_REJECTED, Verb.NEXT),
        (ErrorClass.MODEL_UNAVAILABLE, Verb.NEXT),
        (ErrorClass.OVERLOADED, Verb.NEXT),
        (ErrorClass.SERVER_ERROR, Verb.SAME),
        (ErrorClass.TIMEOUT, Verb.NEXT),
        (ErrorClass.CONNECTION, Verb.NEXT),
        (ErrorClass.BAD_ANSWER, Verb.NEXT),
        (ErrorClass.STREAM_CUT, Verb.NEXT),
        (ErrorClass.STREAM_STALL, Verb.NEXT),
        (ErrorClass.CONTEXT_LENGTH, Verb.CONTEXT),
        (ErrorClass.CONTENT_FILTERED, Verb.STOP),
        (ErrorClass.INVALID_REQUEST, Verb.STOP),
        (ErrorClass.CLIENT_ABORT, Verb.STOP),
    ],
)
def test_each_class_has_its_consequence(kind: ErrorClass, expected: Verb) -> None:
    assert expected is decide(kind).verb


@pytest.mark.parametrize("kind", list(ErrorClass))
def test_spent_attempts_end_every_request(kind: ErrorClass) -> None:
    assert Verb.STOP is decide(kind, FRESH._replace(attempts=POLICY.attempts)).verb


@pytest.mark.parametrize("kind", list(ErrorClass))
def test_a_passed_deadline_ends_every_request(kind: ErrorClass) -> None:
    assert Verb.STOP is decide(kind, FRESH._replace(elapsed_s=POLICY.deadline_s)).verb


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (decide(ErrorClass.INVALID_REQUEST), "invalid_request is final"),
        (decide(ErrorClass.TIMEOUT, FRESH._replace(attempts=3)), "attempts spent"),
        (decide(ErrorClass.TIMEOUT, FRESH._replace(elapsed_s=90.0)), "deadline passed"),
        (decide(ErrorClass.TIMEOUT), "another target"),
        (decide(ErrorClass.SERVER_ERROR), "worth one more try"),
    ],
)
def test_every_decision_says_why(step: Next, reason: str) -> None:
    assert reason == step.reason


def test_a_short_retry_after_is_waited_out_at_the_same_target() -> None:
    assert (Verb.SAME, 2.0) == decide(ErrorClass.RATE_LIMITED, retry_after_s=2.0)[::2]


def test_a_long_retry_after_moves_on_at_once() -> None:
    assert Verb.NEXT is decide(ErrorClass.RATE_LIMITED, retry_after_s=3.1).verb


def test_a_spent_retry_budget_moves_on() -> None:
    assert (Verb.NEXT, "no retry budget for the same target") == decide(ErrorClass.SERVER_ERROR, allowed=False)[:2]


def test_the_retry_budget_is_only_asked_when_everything_else_agrees() -> None:
    """Asking takes from it."""
    asked: list[bool] = []

    def ask() -> bool:
        asked.append(True)
        return True

    for kind in ErrorClass:
        next_step(Failure(kind), FRESH, POLICY, NOW, MIDDLE, ask)
    assert [True] == asked


def test_final_classes_are_those_whose_fault_is_the_request_s_or_the_caller_s() -> None:
    assert {ErrorClass.CONTENT_FILTERED, ErrorClass.INVALID_REQUEST, ErrorClass.CLIENT_ABORT} == FINAL


@pytest.mark.parametrize(("draw", "expected"), [(0.0, 0.125), (0.5, 0.1875), (1.0, 0.25)])
def test_the_back_off_is_jittered_between_half_and_all_of_it(draw: float, expected: float) -> None:
    assert expected == wait(draw=draw)


@pytest.mark.parametrize(("tries", "expected"), [(1, 0.25), (2, 0.5), (3, 1.0), (4, 2.0), (5, 2.0)])
def test_the_back_off_doubles_up_to_its_maximum(tries: int, expected: float) -> None:
    assert expected == wait(rule=policy(max=9), draw=1.0, same_target=tries)


@pytest.mark.parametrize(("tries", "again"), [(1, True), (2, False)])
def test_the_same_target_is_tried_again_at_most_max_times(tries: int, again: bool) -> None:
    assert again is (wait(same_target=tries) is not None)


def test_max_zero_never_tries_the_same_target_again() -> None:
    assert wait(rule=policy(max=0)) is None


def test_a_class_that_the_policy_does_not_list_is_not_tried_again() -> None:
    assert wait(rule=policy(on=frozenset({"rate_limited"}))) is None


def test_an_attempt_that_failed_slowly_is_not_tried_again() -> None:
    assert (None, 0.1875) == (wait(attempt_s=1.0), wait(attempt_s=0.99))


def test_a_told_wait_counts_even_after_a_slow_failure() -> None:
    assert 0.5 == wait(attempt_s=5.0, retry_after_s=0.5)


def test_a_rate_limit_without_a_time_is_not_tried_again() -> None:
    assert wait(ErrorClass.RATE_LIMITED) is None


def test_a_recovery_time_that_has_passed_means_at_once() -> None:
    assert 0.0 == wait(ErrorClass.RATE_LIMITED, retry_after_s=-5.0)


@pytest.mark.parametrize(("hold_left_s", "expected"), [(0.1875, None), (0.19, 0.1875)])
def test_a_wait_must_fit_into_what_envoy_still_waits(hold_left_s: float, expected: float | None) -> None:
    assert expected == wait(hold_left_s=hold_left_s)


@pytest.mark.parametrize(("elapsed_s", "expected"), [(89.9, None), (89.8, 0.1875)])
def test_a_wait_must_end_before_the_deadline(elapsed_s: float, expected: float | None) -> None:
    assert expected == wait(elapsed_s=elapsed_s)


# What the policy says.


def test_the_back_off_begins_where_the_policy_says() -> None:
    assert 1.0 == wait(rule=policy(backoff_s=1.0), draw=1.0)


def test_the_back_off_ends_where_the_policy_says() -> None:
    assert 0.375 == wait(rule=policy(max=9, max_backoff_s=0.375), draw=1.0, same_target=2)


def test_a_retry_after_is_waited_for_as_long_as_the_policy_says() -> None:
    rule = policy(retry_after_up_to_s=5.0)
    found = [wait(ErrorClass.RATE_LIMITED, rule, retry_after_s=seconds) for seconds in (5.0, 5.5)]
    assert [5.0, None] == found


def test_a_failure_is_slow_when_the_policy_says() -> None:
    rule = policy(only_if_faster_than_s=0.3)
    assert [0.1875, None] == [wait(rule=rule, attempt_s=seconds) for seconds in (0.29, 0.3)]
