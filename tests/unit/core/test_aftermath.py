"""What follows a failed attempt: the same target, the rest of the plan, a larger context, or the end and its answer."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from extproc.core.aftermath import HOLD_MARGIN, Case, GoOn, after_failure, open_case
from extproc.core.budget import FLOOR_PER_S, WINDOW_S
from extproc.core.exchange import Respond
from extproc.core.gateway import Gateway
from extproc.core.outcome import ErrorClass, Failure
from extproc.core.request_state import FirstError, RequestState
from tests.unit.core.build import LONG_C, MESSAGES, NOW, SMALL_A, A, B, C, chain, config, gateway, keys, routed, trip

BIG: dict[str, Any] = {"big": chain(A, B, C)}
LATER = NOW + 0.2
JSON = ("content-type", "application/json")

RATE_LIMITED = Failure(ErrorClass.RATE_LIMITED, 429)
OVERLOADED = Failure(ErrorClass.OVERLOADED, 503)
SERVER_ERROR = Failure(ErrorClass.SERVER_ERROR, 500)
TIMEOUT = Failure(ErrorClass.TIMEOUT)
BAD_ANSWER = Failure(ErrorClass.BAD_ANSWER, 200)
TOO_LONG = Failure(ErrorClass.CONTEXT_LENGTH, 400)
FILTERED = Failure(ErrorClass.CONTENT_FILTERED, 400)
INVALID = Failure(ErrorClass.INVALID_REQUEST, 400)


def said(status: int, text: str = "no") -> FirstError:
    """Return what a provider answered."""
    return FirstError(status, json.dumps({"error": {"message": text}}).encode(), (JSON,))


def case_of(made: Gateway, state: RequestState) -> Case:
    case = open_case(made, state)
    assert case is not None
    return case


def after(
    made: Gateway, state: RequestState, failure: Failure, error: FirstError | None = None, now: float = LATER
) -> GoOn | Respond:
    return after_failure(made, case_of(made, state), failure, error, now)


def goes_on(
    made: Gateway, state: RequestState, failure: Failure, error: FirstError | None = None, now: float = LATER
) -> GoOn:
    following = after(made, state, failure, error, now)
    assert isinstance(following, GoOn)
    return following


def ends(
    made: Gateway, state: RequestState, failure: Failure, error: FirstError | None = None, now: float = LATER
) -> Respond:
    following = after(made, state, failure, error, now)
    assert isinstance(following, Respond)
    return following


def begun(made: Gateway, state: RequestState, now: float = LATER) -> RequestState:
    """Let Envoy begin the attempt that follows."""
    opened = state.opened(state.attempt + 1, now, state.classes)
    made.requests.open_attempt(opened, now)
    return opened


def code_of(answer: Respond) -> Any:
    return json.loads(answer.body)["error"]["code"]


class TestACase:
    def test_is_none_for_a_request_that_never_passed_the_route_exchange(self) -> None:
        assert None is open_case(gateway(config(BIG)), None)

    def test_is_none_before_any_version_is_active(self) -> None:
        state = routed(gateway(config(BIG)))
        assert None is open_case(gateway(), state)

    def test_is_none_beyond_the_plan(self) -> None:
        made = gateway(config(BIG))
        state = routed(made)
        assert None is open_case(made, state.opened(len(state.plan) + 1, LATER, ("connection",) * 3))

    def test_knows_the_step_that_was_tried_and_the_policy_of_its_version(self) -> None:
        made = gateway(config(BIG))
        state = routed(made)
        case = case_of(made, state)
        assert (A, "default") == (case.step.key, case.policy.name)

    def test_leaves_a_margin_of_envoy_s_timer(self) -> None:
        made = gateway(config(BIG, {"first_byte_timeout": "100s"}))
        state = routed(made)
        assert (90.0 * HOLD_MARGIN, 0.0) == pytest.approx(
            (case_of(made, state).hold_left_s(NOW + 10.0), case_of(made, state).hold_left_s(NOW + 200.0))
        )

    def test_of_a_stream_is_held_no_longer_than_its_first_token_may_take(self) -> None:
        made = gateway(config(BIG, {"first_token_timeout": "10s"}))
        assert 8.0 == pytest.approx(case_of(made, routed(made, stream=True)).hold_left_s(NOW))


class TestTheNextTarget:
    def test_is_the_next_of_the_plan(self) -> None:
        made = gateway(config(BIG))
        following = goes_on(made, routed(made), RATE_LIMITED)
        assert (False, 0.0, [A, B, C]) == (following.replan, following.wait_s, keys(following.state.plan))

    def test_remembers_the_class_and_what_the_provider_said(self) -> None:
        made = gateway(config(BIG))
        following = goes_on(made, routed(made), RATE_LIMITED, said(429))
        assert (("rate_limited",), said(429)) == (following.state.classes, following.state.first_error)

    def test_is_planned_anew_when_health_has_changed_since(self) -> None:
        made = gateway(config(BIG))
        state = routed(made)
        trip(made, B)
        following = goes_on(made, state, RATE_LIMITED)
        assert (True, [A, C]) == (following.replan, keys(following.state.plan))

    def test_may_be_another_model_s(self) -> None:
        made = gateway(config({"big": chain(A, fallback=["small"]), "small": chain(SMALL_A)}))
        following = goes_on(made, routed(made), OVERLOADED)
        assert ([A, SMALL_A], "small") == (keys(following.state.plan), following.state.plan[1].public_model)

    def test_at_an_account_that_failed_needs_budget(self) -> None:
        made = gateway(config({"big": chain(A, SMALL_A, B)}))
        state = routed(made)
        spend_budget(made)
        following = goes_on(made, state, OVERLOADED)
        assert (True, [A, B], 1) == (following.replan, keys(following.state.plan), made.budget_denied)

    def test_at_another_account_is_free(self) -> None:
        made = gateway(config(BIG))
        state = routed(made)
        spend_budget(made)
        assert [A, B, C] == keys(goes_on(made, state, OVERLOADED).state.plan)


@pytest.mark.parametrize(
    ("written", "failure", "said"),
    [
        (chain(A), SERVER_ERROR, "stop: no retry budget, no other target is left"),
        (chain(A, SMALL_A), OVERLOADED, "stop: no retry budget, no other target is left"),
        (chain(A, B), SERVER_ERROR, "next: no retry budget for the same target, b/m-b"),
        (chain(A), OVERLOADED, "stop: no target is left"),
    ],
)
def test_what_the_retry_budget_refused_is_told(written: dict[str, Any], failure: Failure, said: str) -> None:
    made = gateway(config({"big": written}, server={"retry_budget": 0}))
    state = routed(made)
    spend_budget(made)
    after(made, state, failure)
    assert said == made.requests.by_id[state.id].attempts[0].next


def spend_budget(made: Gateway) -> None:
    for _ in range(FLOOR_PER_S * WINDOW_S):
        made.budget.take(0.0, LATER)


class TestTheSameTarget:
    def test_is_tried_again_after_a_wait(self) -> None:
        made = gateway(config(BIG), draw=0.0)
        following = goes_on(made, routed(made), SERVER_ERROR, said(500))
        assert (True, 0.125, [A, A, B]) == (following.replan, following.wait_s, keys(following.state.plan))

    def test_takes_one_of_the_attempts(self) -> None:
        """Envoy follows the plan by itself after a reset, so the plan may not be longer than the attempts are many."""
        made = gateway(config(BIG, {"attempts": 2}))
        assert [A, A] == keys(goes_on(made, routed(made), SERVER_ERROR).state.plan)

    def test_waits_as_long_as_the_provider_asks(self) -> None:
        made = gateway(config(BIG))
        asked = replace(RATE_LIMITED, retry_at=LATER + 2.0)
        assert 2.0 == pytest.approx(goes_on(made, routed(made), asked).wait_s)

    def test_is_not_tried_a_third_time(self) -> None:
        made = gateway(config(BIG, {"attempts": 6}))
        again = begun(made, goes_on(made, routed(made), SERVER_ERROR).state)
        following = goes_on(made, again, SERVER_ERROR)
        assert (0.0, [A, A, B, C]) == (following.wait_s, keys(following.state.plan))

    def test_counts_only_its_tries_in_a_row(self) -> None:
        """B fails for the first time although it is the third attempt."""
        made = gateway(config(BIG, {"attempts": 6}))
        again = begun(made, goes_on(made, routed(made), SERVER_ERROR).state)
        other = begun(made, goes_on(made, again, SERVER_ERROR).state)
        assert [A, A, B, B, C] == keys(goes_on(made, other, SERVER_ERROR).state.plan)

    def test_is_left_when_the_budget_is_spent(self) -> None:
        made = gateway(config(BIG))
        state = routed(made)
        spend_budget(made)
        assert (0.0, 1) == (goes_on(made, state, SERVER_ERROR).wait_s, made.budget_denied)


class TestALargerContext:
    MODELS: dict[str, Any] = {  # noqa: RUF012 - read only
        "big": chain(A, B, fallback=["small"], context_fallback=["long"]),
        "small": chain(SMALL_A),
        "long": chain(LONG_C),
    }

    def test_is_looked_for_where_the_model_says(self) -> None:
        made = gateway(config(self.MODELS))
        following = goes_on(made, routed(made), TOO_LONG, said(400))
        assert (True, True, [A, LONG_C]) == (following.replan, following.state.context, keys(following.state.plan))

    def test_stays_what_is_looked_for_after_another_failure(self) -> None:
        made = gateway(config(self.MODELS | {"long": chain(LONG_C, C)}))
        longer = begun(made, goes_on(made, routed(made), TOO_LONG).state)
        following = goes_on(made, longer, RATE_LIMITED)
        assert (True, [A, LONG_C, C]) == (following.state.context, keys(following.state.plan))

    def test_whose_provider_fails_ends_the_request_with_the_first_one_s_words_alone(self) -> None:
        """Trying again would meet the same length, whenever the larger one can serve again."""
        made = gateway(config(self.MODELS))
        longer = begun(made, goes_on(made, routed(made), TOO_LONG, said(400, "too long")).state)
        answer = ends(made, longer, OVERLOADED, said(503))
        assert (400, said(400, "too long").body, (JSON,)) == (answer.status, answer.body, answer.headers)

    def test_that_nobody_offers_ends_the_request_with_the_provider_s_words(self) -> None:
        made = gateway(config(BIG))
        answer = ends(made, routed(made), TOO_LONG, said(400, "too long"))
        assert (400, said(400, "too long").body, (JSON,)) == (answer.status, answer.body, answer.headers)


class TestTheEnd:
    def test_is_the_first_error_that_had_a_meaning(self) -> None:
        made = gateway(config({"big": chain(A, B)}))
        second = begun(made, goes_on(made, routed(made), RATE_LIMITED, said(429, "first")).state)
        answer = ends(made, second, OVERLOADED, said(503, "second"))
        assert (429, said(429, "first").body, 2) == (answer.status, answer.body, answer.attempts)

    def test_is_a_later_error_where_the_first_had_no_meaning(self) -> None:
        made = gateway(config({"big": chain(A, B)}))
        second = begun(made, goes_on(made, routed(made), BAD_ANSWER).state)
        assert 503 == ends(made, second, OVERLOADED, said(503)).status

    @pytest.mark.parametrize("own", [TOO_LONG, FILTERED])
    def test_is_what_concerns_the_caller_s_request_even_after_another_error(self, own: Failure) -> None:
        made = gateway(config({"big": chain(A, B)}))
        second = begun(made, goes_on(made, routed(made), RATE_LIMITED, said(429)).state)
        answer = ends(made, second, own, said(400, "yours"))
        assert (400, said(400, "yours").body, (JSON,)) == (answer.status, answer.body, answer.headers)

    def test_of_a_request_that_another_target_found_invalid_is_the_first_error(self) -> None:
        """An adapter that cannot express the request says little about it."""
        made = gateway(config({"big": chain(A, B)}))
        second = begun(made, goes_on(made, routed(made), RATE_LIMITED, said(429)).state)
        answer = ends(made, second, INVALID, said(400))
        assert (429, "false") == (answer.status, dict(answer.headers)["x-should-retry"])

    @pytest.mark.parametrize("failure", [FILTERED, INVALID])
    def test_comes_at_once_when_the_request_itself_is_at_fault(self, failure: Failure) -> None:
        made = gateway(config(BIG))
        answer = ends(made, routed(made), failure, said(400))
        assert (400, 1, (JSON,)) == (answer.status, answer.attempts, answer.headers)

    def test_comes_when_the_attempts_are_spent(self) -> None:
        made = gateway(config(BIG, {"attempts": 1}))
        assert 429 == ends(made, routed(made), RATE_LIMITED, said(429)).status

    def test_comes_when_the_deadline_has_passed(self) -> None:
        made = gateway(config(BIG, {"deadline": "30s", "first_byte_timeout": "20s"}))
        assert 429 == ends(made, routed(made), RATE_LIMITED, said(429), NOW + 30.0).status

    def test_comes_when_nothing_healthy_is_left(self) -> None:
        made = gateway(config({"big": chain(A, B)}))
        state = routed(made)
        trip(made, B)
        assert 429 == ends(made, state, RATE_LIMITED, said(429)).status

    @pytest.mark.parametrize(
        ("failure", "status", "code"),
        [
            (TIMEOUT, 504, "upstream_timeout"),
            (BAD_ANSWER, 502, "upstream_bad_answer"),
            (Failure(ErrorClass.CONNECTION), 502, "upstream_connect_failed"),
        ],
    )
    def test_is_our_own_error_where_no_provider_said_anything(self, failure: Failure, status: int, code: str) -> None:
        made = gateway(config({"big": chain(A)}))
        answer = ends(made, routed(made), failure)
        assert (status, code) == (answer.status, code_of(answer))

    def test_speaks_the_caller_s_protocol(self) -> None:
        account = {"providers": {"a": {"base_url": "https://a.example.com/v1", "protocol": "anthropic"}}}
        made = gateway(config({"big": chain(A)}, **account))
        answer = ends(made, routed(made, path=MESSAGES), TIMEOUT)
        assert "error" == json.loads(answer.body)["type"]

    def test_tells_when_a_target_can_serve_again(self) -> None:
        made = gateway(config({"big": chain(A)}, {"same_target": {"max": 0}}))
        answer = ends(made, routed(made), replace(RATE_LIMITED, retry_at=LATER + 60.0), said(429))
        assert "60" == dict(answer.headers)["retry-after"]

    def test_keeps_the_provider_s_own_advice(self) -> None:
        made = gateway(config({"big": chain(A)}))
        first = replace(said(429), headers=(JSON, ("retry-after", "9")))
        answer = ends(made, routed(made), RATE_LIMITED, first)
        assert ["9"] == [value for name, value in answer.headers if name == "retry-after"]

    def test_carries_the_state_for_the_log(self) -> None:
        made = gateway(config({"big": chain(A)}))
        answer = ends(made, routed(made), TIMEOUT)
        assert answer.state is not None
        assert ("timeout",) == answer.state.classes


class TestTheCharge:
    def test_is_made_whatever_follows(self) -> None:
        made = gateway(config(BIG))
        after(made, routed(made), RATE_LIMITED)
        assert [False, True] == [made.health.view(key, LATER).eligible for key in (A, B)]

    def test_is_made_once(self) -> None:
        """Envoy's log of the attempt comes later and must find it settled."""
        made = gateway(config(BIG))
        state = routed(made)
        after(made, state, SERVER_ERROR)
        (attempt,) = made.requests.by_id[state.id].attempts
        assert (True, SERVER_ERROR) == (attempt.settled, attempt.failure)

    def test_of_the_caller_s_own_fault_is_nobody_s(self) -> None:
        made = gateway(config(BIG))
        after(made, routed(made), INVALID)
        assert True is made.health.view(A, LATER).eligible
