"""A later attempt is rewritten for its own target, or refused before any provider sees it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from extproc.core.attempt import ATTEMPT_COUNT, AttemptExchange, last_answer, silence_limit_s, silent_class
from extproc.core.budget import FLOOR_PER_S, WINDOW_S
from extproc.core.endpoints import Kind
from extproc.core.exchange import (
    Close,
    Event,
    Part,
    Pass,
    RequestBody,
    RequestHeaders,
    Respond,
    SendAttempt,
    TimerFired,
    Trailers,
    Unexpected,
)
from extproc.core.gateway import Gateway
from extproc.core.outcome import ErrorClass
from extproc.core.request_state import FirstError, RequestState
from extproc.wire.names import CLUSTER_END
from tests.support.playbook import Clock, JsonBody, Playbook, Some, error_body
from tests.unit.core.build import (
    CHAT,
    NOW,
    REQUEST_ID,
    SMALL_A,
    A,
    B,
    active,
    chain,
    config,
    gateway,
    provider,
    routed,
    snapshot,
    trip,
)

BIG: dict[str, Any] = {"big": chain(A, B)}
PASSED = Pass(Part.REQUEST_HEADERS)
RATE_LIMITED = FirstError(429, b'{"error":{}}', (("content-type", "application/json"), ("retry-after", "7")))


def after_429(state: RequestState) -> RequestState:
    """Return the state after the judge understood a 429 of the first attempt."""
    return state.failed(ErrorClass.RATE_LIMITED, RATE_LIMITED)


def attempt(state: RequestState | None, number: int | str = 2) -> RequestHeaders:
    """Send the headers of an attempt."""
    return RequestHeaders({ATTEMPT_COUNT: str(number), ":path": CHAT}, end_of_stream=False, state=state)


def conversation(made: Gateway, cluster: str = "b-cluster", later_s: float = 0.5) -> Playbook:
    """Open the exchange of an attempt that Envoy is about to send to a cluster."""
    return Playbook(AttemptExchange(made, cluster), Clock(NOW + later_s))


class TestAnAttemptThatIsSent:
    def test_names_its_own_model_at_its_own_path(self) -> None:
        made = gateway(config(BIG, providers={"b": provider("b", base_url="https://b.example.com/api/v1")}))
        state = after_429(routed(made))
        book = conversation(made) >> attempt(state) << PASSED >> RequestBody(b'{"model": "m-a", "x": 1 }')
        sent = state.opened(2, NOW + 0.5, ("rate_limited",))
        assert book << SendAttempt(sent, "/api/v1/chat/completions", b'{"model": "m-b", "x": 1 }') << Close()

    def test_starts_from_the_client_s_bytes_when_the_first_target_used_the_same_name(self) -> None:
        made = gateway(config({"m-a": chain(A, B)}))
        state = after_429(routed(made, model="m-a"))
        book = conversation(made) >> attempt(state) << PASSED >> RequestBody(b'{"model":"m-a"}')
        assert book << Some(SendAttempt, body=b'{"model":"m-b"}') << Close()

    def test_is_remembered_as_the_request_s_present_attempt(self) -> None:
        made = gateway(config(BIG))
        state = after_429(routed(made))
        assert (
            conversation(made)
            >> attempt(state)
            << PASSED
            >> RequestBody(b'{"model":"m-a"}')
            << Some(SendAttempt)
            << Close()
        )
        record = made.requests.by_id[REQUEST_ID]
        assert ([A, B], 2) == ([one.step.key for one in record.attempts], record.state.attempt)

    def test_may_have_been_routed_by_another_process(self) -> None:
        """All it needs travels with the request, so an extproc that was just started goes on."""
        state = after_429(routed(gateway(config(BIG))))
        other = gateway(config(BIG))
        book = conversation(other) >> attempt(state) << PASSED >> RequestBody(b'{"model":"m-a"}')
        assert book << Some(SendAttempt) << Close()

    def test_follows_the_version_its_request_arrived_under(self) -> None:
        made = gateway(config(BIG, {"deadline": "60s"}))
        state = after_429(routed(made))
        made.activate(active(config(BIG, {"deadline": "1s"}), version=2))
        assert conversation(made, later_s=30.0) >> attempt(state) << PASSED


class TestTheClassOfASilentAttempt:
    @pytest.mark.parametrize(
        ("silent_s", "expected"),
        [(0.02, ("connection",)), (2.0, ("connection",)), (19.9, ("connection",)), (20.0, ("timeout",))],
    )
    def test_follows_from_how_long_it_took(self, silent_s: float, expected: tuple[str, ...]) -> None:
        made = gateway(config(BIG, {"first_byte_timeout": "20s"}))
        book = conversation(made, later_s=silent_s) >> attempt(routed(made)) << PASSED
        sent = book >> RequestBody(b'{"model":"m-a"}')
        assert sent << Some(SendAttempt) << Close()
        assert expected == made.requests.by_id[REQUEST_ID].state.classes

    @pytest.mark.parametrize(
        ("elapsed_s", "expected"),
        [(0.02, "connection"), (0.7, "timeout"), (1.9, "timeout"), (2.01, "connection"), (2.1, "timeout")],
    )
    def test_is_a_lost_connection_at_the_end_of_a_longer_connect_timeout(self, elapsed_s: float, expected: str) -> None:
        assert expected == silent_class(elapsed_s, 0.7, 2.0)

    def test_is_a_timeout_where_both_limits_are_the_same(self) -> None:
        assert ErrorClass.TIMEOUT == silent_class(2.001, 2.0, 2.0)

    def test_is_not_made_up_for_an_attempt_that_was_judged(self) -> None:
        made = gateway(config(BIG))
        state = after_429(routed(made))
        assert (
            conversation(made)
            >> attempt(state)
            << PASSED
            >> RequestBody(b'{"model":"m-a"}')
            << Some(SendAttempt)
            << Close()
        )
        assert ("rate_limited",) == made.requests.by_id[REQUEST_ID].state.classes

    @pytest.mark.parametrize(
        ("kind", "guard", "expected_s"),
        [
            (Kind.UNARY, "first_token", 60.0),
            (Kind.STREAM, "first_token", 15.0),
            (Kind.STREAM, "complete", 90.0),
            (Kind.STREAM, "off", 30.0),
            (Kind.STREAM_UNGUARDED, "first_token", 30.0),
        ],
    )
    def test_is_judged_by_the_timer_of_its_route(self, kind: Kind, guard: Any, expected_s: float) -> None:
        policy = snapshot(config(BIG)).policies["default"]
        assert expected_s == silence_limit_s(kind, dataclasses.replace(policy, stream_guard=guard))


def ended(status: int, code: str, attempts: int | None = 1) -> Some:
    """Expect the gateway's own answer to a request whose attempts all failed."""
    return Some(Respond, status=status, body=error_body(code), attempts=attempts)


class TestAnAttemptThatIsRefused:
    def test_because_the_plan_is_over_answers_502_when_nobody_could_be_reached(self) -> None:
        made = gateway(config({"big": chain(A)}))
        book = conversation(made, CLUSTER_END) >> attempt(routed(made))
        assert book << ended(502, "upstream_connect_failed") << Close()

    def test_because_the_plan_is_over_answers_504_when_somebody_was_silent(self) -> None:
        made = gateway(config(BIG))
        state = routed(made).failed(ErrorClass.TIMEOUT, None).opened(2, NOW + 60, ("timeout",))
        book = conversation(made, CLUSTER_END, 61.0) >> attempt(state, 3)
        assert book << ended(504, "upstream_timeout", 2) << Close()

    def test_because_the_plan_is_over_answers_502_after_an_empty_answer(self) -> None:
        made = gateway(config({"big": chain(A)}))
        state = routed(made).failed(ErrorClass.BAD_ANSWER, None)
        book = conversation(made, CLUSTER_END) >> attempt(state)
        assert book << ended(502, "upstream_bad_answer") << Close()

    def test_answers_with_the_first_provider_error_when_there_was_one(self) -> None:
        made = gateway(config({"big": chain(A)}))
        book = conversation(made, CLUSTER_END) >> attempt(after_429(routed(made)))
        wanted = (*RATE_LIMITED.headers, ("x-should-retry", "false"))
        assert book << Some(Respond, status=429, headers=wanted, body=RATE_LIMITED.body, attempts=1) << Close()

    def test_because_the_attempts_are_spent_answers_with_the_first_provider_error(self) -> None:
        """However long the plan is that came with the request."""
        made = gateway(config(BIG, {"attempts": 2}))
        state = after_429(routed(made))
        state = dataclasses.replace(state, plan=(state.plan[0], *state.plan)).opened(2, NOW, ("rate_limited",))
        book = conversation(made) >> attempt(state, 3)
        assert book << Some(Respond, status=429, body=RATE_LIMITED.body, attempts=2) << Close()

    def test_because_the_deadline_has_passed_answers_504(self) -> None:
        made = gateway(config(BIG, {"deadline": "10s"}))
        book = conversation(made, later_s=10.1) >> attempt(routed(made))
        assert book << ended(504, "upstream_timeout") << Close()

    def test_at_the_deadline_itself_is_still_sent(self) -> None:
        made = gateway(config(BIG, {"deadline": "10s"}))
        assert conversation(made, later_s=10.0) >> attempt(routed(made)) << PASSED

    def test_because_it_is_on_its_way_to_another_cluster_than_planned(self) -> None:
        made = gateway(config(BIG))
        book = conversation(made, "a-cluster") >> attempt(routed(made))
        assert book << ended(502, "upstream_connect_failed") << Close()

    def test_because_it_would_ask_the_silent_target_again(self) -> None:
        made = gateway(config(BIG))
        state = routed(made)
        repeated = dataclasses.replace(state, plan=(state.plan[0], state.plan[0]))
        book = conversation(made, "a-cluster", 61.0) >> attempt(repeated)
        assert book << ended(504, "upstream_timeout") << Close()

    def test_is_not_an_answered_target_that_is_tried_again(self) -> None:
        made = gateway(config(BIG))
        state = routed(made)
        repeated = state.failed(ErrorClass.SERVER_ERROR, None, (state.plan[0],))
        assert conversation(made, "a-cluster") >> attempt(repeated) << PASSED

    def test_because_a_silent_account_would_be_asked_again_without_budget(self) -> None:
        made = gateway(config({"big": chain(A, SMALL_A)}))
        state = routed(made)
        while made.budget.take(0.0, NOW):
            pass
        book = conversation(made, "a-cluster") >> attempt(state)
        assert book << ended(502, "upstream_connect_failed") << Close()
        assert 1 == made.budget_denied

    def test_is_none_on_the_way_to_an_account_that_was_not_asked_yet(self) -> None:
        """Envoy cannot skip a place of its plan, so a refusal would be one of the move to B."""
        made = gateway(config({"big": chain(A, SMALL_A, B)}))
        state = routed(made)
        while made.budget.take(0.0, NOW):
            pass
        assert conversation(made, "a-cluster") >> attempt(state) << PASSED
        assert 0 == made.budget_denied

    def test_spends_the_budget_of_those_that_may_be_refused_when_it_is_on_the_way(self) -> None:
        made = gateway(config({"big": chain(A, SMALL_A, B)}))
        for _ in range(FLOOR_PER_S * WINDOW_S):
            assert conversation(made, "a-cluster") >> attempt(routed(made)) << PASSED
        assert not made.budget.take(0.0, NOW)

    def test_may_come_where_the_other_account_is_beyond_the_attempts(self) -> None:
        """A version with fewer attempts stands in for the request's own, which is gone."""
        made = gateway(config({"big": chain(A, SMALL_A, B)}))
        state = routed(made)
        made.activate(active(config({"big": chain(A, SMALL_A, B)}, {"attempts": 2})))
        while made.budget.take(0.0, NOW):
            pass
        book = conversation(made, "a-cluster") >> attempt(state)
        assert book << ended(502, "upstream_connect_failed") << Close()

    def test_is_never_the_first_move_to_another_account(self) -> None:
        made = gateway(config(BIG))
        state = routed(made)
        while made.budget.take(0.0, NOW):
            pass
        assert conversation(made) >> attempt(state) << PASSED

    def test_leaves_health_as_it_was(self) -> None:
        made = gateway(config({"big": chain(A)}))
        assert conversation(made, CLUSTER_END) >> attempt(routed(made)) << Some(Respond) << Close()
        assert 1 == len(made.requests.by_id[REQUEST_ID].attempts)

    def test_tells_the_log_what_happened(self) -> None:
        made = gateway(config({"big": chain(A)}))
        answer = AttemptExchange(made, CLUSTER_END).handle(attempt(routed(made)), NOW + 0.1)[0]
        assert isinstance(answer, Respond)
        assert answer.state is not None
        assert ("connection",) == answer.state.classes


class TestALostRequest:
    @pytest.mark.parametrize("number", ["", "x", "-1"])
    def test_without_a_number_is_refused(self, number: str) -> None:
        made = gateway(config(BIG))
        book = conversation(made) >> attempt(routed(made), number)
        assert book << ended(503, "gateway_unavailable", None) << Close()

    def test_without_state_is_refused(self) -> None:
        book = conversation(gateway(config(BIG))) >> attempt(None)
        assert book << ended(503, "gateway_unavailable", None) << Close()

    def test_of_a_gateway_without_a_version_is_refused(self) -> None:
        state = routed(gateway(config(BIG)))
        book = conversation(gateway()) >> attempt(state)
        assert book << ended(503, "gateway_unavailable", None) << Close()

    def test_whose_policy_is_gone_from_the_version_that_stands_in_is_still_answered(self) -> None:
        """After a restart with another config, requests under way are pinned to a version nobody has."""
        models = {"big": chain(A, B, policy="old")}
        state = routed(gateway(config(models, policies={"old": {}})))
        restarted = gateway(config(BIG), version=2)
        assert conversation(restarted) >> attempt(after_429(state)) << PASSED


class TestTheLastAnswer:
    def made_with(self, **state: Any) -> tuple[Gateway, RequestState]:
        """Make a gateway and the state of a request that arrived at it."""
        made = gateway(config({"big": chain(A)}, {"cooldown": {"base": "20s", "jitter": 0}}))
        return made, dataclasses.replace(routed(made), **state)

    def answer(self, made: Gateway, state: RequestState, **more: Any) -> Respond:
        """Return how a request ends."""
        assert made.active is not None
        return last_answer(made, state, made.active, NOW, **more)

    def test_says_when_a_target_is_expected_back(self) -> None:
        made, state = self.made_with(classes=("connection",))
        trip(made, A)
        assert ("retry-after", "20") in self.answer(made, state).headers

    def test_keeps_the_provider_s_own_retry_after(self) -> None:
        made, state = self.made_with(classes=("rate_limited",), first_error=RATE_LIMITED)
        trip(made, A)
        found = [value for name, value in self.answer(made, state).headers if name == "retry-after"]
        assert ["7"] == found

    def test_gives_no_retry_advice_for_an_error_of_the_request_itself(self) -> None:
        """Also when it is not what failed last."""
        own = dataclasses.replace(RATE_LIMITED, plain=True)
        made, state = self.made_with(classes=("context_length", "timeout"), first_error=own)
        assert own.headers == self.answer(made, state).headers

    def test_is_in_the_envelope_of_the_endpoint(self) -> None:
        made, state = self.made_with(classes=("timeout",), protocol="anthropic")
        assert JsonBody(type="error", error={"type": "timeout_error"}) == self.answer(made, state).body


class TestAMessageThatIsNotExpected:
    @pytest.mark.parametrize("event", [RequestBody(b"{}"), TimerFired(), Unexpected()])
    def test_is_counted_and_left_alone(self, event: Event) -> None:
        made = gateway(config(BIG))
        assert conversation(made) >> event
        assert 1 == made.unexpected_messages

    def test_that_has_trailers_is_passed(self) -> None:
        book = conversation(gateway(config(BIG))) >> Trailers(Part.REQUEST_TRAILERS)
        assert book << Pass(Part.REQUEST_TRAILERS)


def test_a_body_that_turned_unreadable_between_two_attempts_is_a_programming_error() -> None:
    made = gateway(config(BIG))
    exchange = AttemptExchange(made, "b-cluster")
    exchange.handle(attempt(after_429(routed(made))), NOW)
    with pytest.raises(TypeError, match="no longer parses"):
        exchange.handle(RequestBody(b"{"), NOW)
