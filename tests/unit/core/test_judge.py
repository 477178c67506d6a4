"""What a failed answer means for the request: the next attempt, the same target again, or the end.

Streams and their guard have their own conversations.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from extproc.config.snapshot import Protocol
from extproc.core.exchange import (
    Abort,
    Action,
    CancelTimer,
    Close,
    Event,
    Part,
    Pass,
    ReleaseBody,
    ReleaseHeaders,
    RequestBody,
    Respond,
    ResponseBody,
    ResponseHeaders,
    SetTimer,
    TimerFired,
    Trailers,
    Unexpected,
)
from extproc.core.gateway import Gateway
from extproc.core.judge import ERROR_BODY_WAIT_S, JudgeExchange
from extproc.core.outcome import ErrorClass
from extproc.core.provider_error import ERROR_BODY_LIMIT_BYTES
from extproc.core.request_state import FirstError, RequestState
from tests.support.playbook import After, Clock, Fires, Playbook, Some, error_body
from tests.unit.core.build import (
    LONG_C,
    MESSAGES,
    NOW,
    REQUEST_ID,
    SMALL_A,
    A,
    B,
    C,
    chain,
    config,
    gateway,
    keys,
    provider,
    routed,
    trip,
)

BIG: dict[str, Any] = {"big": chain(A, B, C)}
HELD = SetTimer(ERROR_BODY_WAIT_S)
NUDGE = ReleaseBody(b"", False)
"""Envoy lets held headers go with the first piece of body."""


def answered(
    state: RequestState | None,
    status: int,
    *,
    end: bool = False,
    content_type: str = "application/json",
    **headers: Any,
) -> ResponseHeaders:
    """Receive the headers of a provider's answer; `_` in a keyword stands for `-`."""
    found = {":status": str(status), "content-type": content_type}
    found |= {name.replace("_", "-"): value for name, value in headers.items()}
    return ResponseHeaders(status, found, end, state)


def chunk(content: bytes | dict[str, Any], *, end: bool = True) -> ResponseBody:
    """Receive a piece of the answer's body, the last one unless told otherwise."""
    return ResponseBody(content if isinstance(content, bytes) else json.dumps(content).encode(), end)


def error(code: str | None = None, message: str = "no", **more: Any) -> dict[str, Any]:
    """Return OpenAI's error envelope."""
    return {"error": {"message": message, "type": "t", "param": None, "code": code} | more}


def conversation(made: Gateway, later_s: float = 0.2) -> Playbook:
    """Open the exchange of an attempt whose answer begins `later_s` after its request arrived."""
    return Playbook(JudgeExchange(made, "a-cluster"), Clock(NOW + later_s))


def state_of(action: Action | None) -> RequestState:
    """Return the state that an action writes back."""
    assert isinstance(action, ReleaseHeaders | Respond)
    assert action.state is not None
    return action.state


def judged(made: Gateway, state: RequestState, status: int, body: Any = b"{}", **headers: Any) -> Action:
    """Let an attempt fail and return the verdict."""
    exchange = JudgeExchange(made, "a-cluster")
    now = state.started + 0.2
    actions = exchange.handle(answered(state, status, **headers), now) + exchange.handle(chunk(body), now)
    return next(action for action in actions if isinstance(action, ReleaseHeaders | Respond))


class TestAFailureThatAnotherTargetMayMend:
    def test_starts_the_next_attempt_of_the_plan(self) -> None:
        made = gateway(config(BIG))
        state = routed(made)
        failed = state.failed(ErrorClass.RATE_LIMITED, FirstError(429, b"{}", (("content-type", "application/json"),)))
        verdict = ReleaseHeaders(retry=True, state=failed, failed=True)
        book = conversation(made) >> answered(state, 429) << HELD >> chunk(b"{}")
        assert book << CancelTimer() << verdict << NUDGE

    def test_needs_no_body(self) -> None:
        made = gateway(config(BIG))
        book = conversation(made) >> answered(routed(made), 429, end=True)
        assert book << CancelTimer() << Some(ReleaseHeaders, retry=True, replan=False)

    def test_ends_its_body_with_trailers_as_well(self) -> None:
        made = gateway(config(BIG))
        book = conversation(made) >> answered(routed(made), 429) << HELD >> chunk(b"{}", end=False)
        released = book >> Trailers(Part.RESPONSE_TRAILERS) << CancelTimer() << Some(ReleaseHeaders, retry=True)
        assert released << NUDGE

    @pytest.mark.parametrize(
        ("status", "body", "expected"),
        [
            (429, error("rate_limit_exceeded"), "rate_limited"),
            (429, error("insufficient_quota"), "quota_exhausted"),
            (401, error("invalid_api_key"), "auth_rejected"),
            (404, error("model_not_found"), "model_unavailable"),
            (503, error(), "overloaded"),
        ],
    )
    def test_is_understood_by_its_meaning(self, status: int, body: dict[str, Any], expected: str) -> None:
        made = gateway(config(BIG))
        verdict = judged(made, routed(made), status, body)
        assert (True, (expected,)) == (isinstance(verdict, ReleaseHeaders), state_of(verdict).classes)

    def test_is_understood_by_the_operator_s_own_codes(self) -> None:
        made = gateway(config(BIG, providers={"a": provider("a", error_codes={"broke": "quota_exhausted"})}))
        assert ("quota_exhausted",) == state_of(judged(made, routed(made), 400, error("broke"))).classes

    def test_is_charged_to_the_target(self) -> None:
        made = gateway(config(BIG))
        judged(made, routed(made), 429)
        assert not made.health.view(A, NOW + 1).eligible

    def test_keeps_the_plan_while_health_has_not_changed(self) -> None:
        made = gateway(config(BIG))
        verdict = judged(made, routed(made), 429)
        assert isinstance(verdict, ReleaseHeaders)
        assert (False, [A, B, C]) == (verdict.replan, keys(state_of(verdict).plan))

    def test_takes_a_target_out_of_the_plan_that_turned_ill_meanwhile(self) -> None:
        made = gateway(config(BIG))
        state = routed(made)
        trip(made, B)
        verdict = judged(made, state, 429)
        assert isinstance(verdict, ReleaseHeaders)
        assert (True, [A, C]) == (verdict.replan, keys(state_of(verdict).plan))

    def test_takes_the_other_models_of_a_refusing_account_out_of_the_plan(self) -> None:
        made = gateway(config({"big": chain(A, SMALL_A, B)}))
        verdict = judged(made, routed(made), 429, error("insufficient_quota"))
        assert [A, B] == keys(state_of(verdict).plan)

    def test_plans_no_further_than_the_attempts_that_are_left(self) -> None:
        made = gateway(config(BIG, {"attempts": 2}))
        state = routed(made)
        trip(made, B)
        assert [A, C] == keys(state_of(judged(made, state, 429)).plan)


class TestTheSameTarget:
    def test_is_asked_again_after_a_short_retry_after(self) -> None:
        made = gateway(config(BIG))
        state = routed(made)
        again = Some(ReleaseHeaders, retry=True, replan=True, failed=True)
        book = conversation(made) >> answered(state, 429, retry_after="2") << HELD >> chunk(b"{}")
        assert book << SetTimer(2.0) >> Fires() << again << NUDGE
        assert NOW + 2.2 == book.clock.now

    def test_is_asked_again_after_trailers_that_came_during_the_wait(self) -> None:
        """They stay unanswered: Envoy has no use for them once the held headers start the next attempt."""
        made = gateway(config(BIG))
        long = b" " * ERROR_BODY_LIMIT_BYTES
        book = conversation(made) >> answered(routed(made), 429, retry_after="2") << HELD >> chunk(long, end=False)
        waiting = book << SetTimer(2.0) >> Trailers(Part.RESPONSE_TRAILERS)
        assert waiting >> Fires() << Some(ReleaseHeaders, retry=True, replan=True) << NUDGE

    def test_comes_next_in_the_plan_and_the_others_after_it(self) -> None:
        made = gateway(config(BIG))
        exchange = JudgeExchange(made, "a-cluster")
        exchange.handle(answered(routed(made), 500), NOW + 0.1)
        exchange.handle(chunk(b""), NOW + 0.1)
        state = state_of(exchange.handle(TimerFired(), NOW + 0.3)[0])
        assert ([A, A, B], ("server_error",)) == (keys(state.plan), state.classes)

    def test_is_asked_again_once_after_a_fast_server_error(self) -> None:
        made = gateway(config(BIG), draw=0.5)
        book = conversation(made) >> answered(routed(made), 500) << HELD >> chunk(b"{}")
        assert book << SetTimer(0.1875) >> Fires() << Some(ReleaseHeaders, retry=True) << NUDGE

    def test_is_left_alone_after_the_second_failure_in_a_row(self) -> None:
        made = gateway(config(BIG))
        state = routed(made)
        again = state.failed(ErrorClass.SERVER_ERROR, None, (state.plan[0], *state.plan[1:]))
        verdict = judged(made, again.opened(2, NOW + 1, again.classes), 500)
        assert [A, A, B] == keys(state_of(verdict).plan)

    def test_is_left_alone_after_a_slow_server_error(self) -> None:
        made = gateway(config(BIG))
        book = conversation(made, later_s=1.0) >> answered(routed(made), 500) << HELD >> chunk(b"{}")
        assert book << CancelTimer() << Some(ReleaseHeaders, retry=True, replan=False) << NUDGE

    def test_is_left_alone_when_the_retry_budget_is_spent(self) -> None:
        made = gateway(config(BIG))
        state = routed(made)
        while made.budget.take(0.0, NOW):
            pass
        verdict = judged(made, state, 500)
        assert ([A, B, C], 1) == (keys(state_of(verdict).plan), made.budget_denied)

    def test_is_left_alone_when_envoy_would_not_wait_that_long(self) -> None:
        """An answer that is held longer than the per-try timer turns into a silent failure."""
        made = gateway(config(BIG, {"first_byte_timeout": "1s", "same_target": {"only_if_faster_than": "1s"}}))
        exchange = JudgeExchange(made, "a-cluster")
        now = NOW + 0.8
        exchange.handle(answered(routed(made), 500), now)
        actions = exchange.handle(chunk(b"{}"), now)
        assert Some(ReleaseHeaders, retry=True) in actions

    def test_waits_without_further_bodies_being_read(self) -> None:
        made = gateway(config(BIG))
        book = conversation(made) >> answered(routed(made), 500) << HELD
        waiting = book >> chunk(b"x" * ERROR_BODY_LIMIT_BYTES, end=False) << SetTimer(0.1875)
        later = waiting >> After(0.1, chunk(b"more")) >> Fires()
        assert later << Some(ReleaseHeaders, retry=True) << NUDGE


class TestTheEndOfARequest:
    def test_is_the_first_meaningful_error_not_the_last(self) -> None:
        made = gateway(config(BIG))
        first = FirstError(429, b'{"error":"first"}', (("content-type", "application/json"),))
        state = routed(made).failed(ErrorClass.RATE_LIMITED, first)
        verdict = judged(made, state.opened(3, NOW + 1, ("rate_limited", "overloaded")), 503, error("last"))
        assert Some(Respond, status=429, body=first.body, attempts=3) == verdict
        assert ("rate_limited", "overloaded", "overloaded") == state_of(verdict).classes

    def test_is_the_error_itself_when_there_was_none_before(self) -> None:
        made = gateway(config({"big": chain(A)}))
        body = json.dumps(error("over")).encode()
        verdict = judged(made, routed(made), 503, body)
        assert Some(Respond, status=503, body=body, attempts=1) == verdict

    @pytest.mark.parametrize("status", [101, 199])
    def test_is_an_error_of_ours_after_a_status_that_ends_nothing(self, status: int) -> None:
        """Nobody can give it to a caller, and its body may never end."""
        made = gateway(config({"big": chain(A)}))
        actions = JudgeExchange(made, "a-cluster").handle(answered(routed(made), status), NOW + 0.2)
        assert [Some(Respond, status=502, body=error_body("upstream_bad_answer"), attempts=1)] == [
            one for one in actions if isinstance(one, Respond)
        ]

    def test_goes_on_after_a_status_that_ends_nothing(self) -> None:
        made = gateway(config(BIG))
        book = conversation(made) >> answered(routed(made), 101, end=True) << CancelTimer()
        assert book << Some(ReleaseHeaders, retry=True, set_headers=((":status", "502"),))

    def test_is_the_error_itself_after_silent_attempts(self) -> None:
        made = gateway(config(BIG))
        state = routed(made).opened(3, NOW + 1, ("timeout", "connection"))
        assert Some(Respond, status=503, attempts=3) == judged(made, state, 503)

    def test_comes_at_the_deadline(self) -> None:
        made = gateway(config(BIG, {"deadline": "10s"}))
        book = conversation(made, later_s=10.0) >> answered(routed(made), 429) << HELD >> chunk(b"{}")
        assert book << CancelTimer() << Some(Respond, status=429) << Close()

    def test_says_how_its_body_is_compressed(self) -> None:
        made = gateway(config({"big": chain(A)}))
        verdict = judged(made, routed(made), 503, b"packed", content_encoding="gzip")
        assert isinstance(verdict, Respond)
        assert (b"packed", "gzip") == (verdict.body, dict(verdict.headers)["content-encoding"])

    @pytest.mark.parametrize("protocol", ["openai", "anthropic"])
    def test_replaces_a_compressed_body_that_was_cut(self, protocol: Protocol) -> None:
        """Nobody could read even its beginning; the status says what happened."""
        made = gateway(config({"big": chain(A)}))
        long = b"p" * (ERROR_BODY_LIMIT_BYTES + 1)
        state = replace(routed(made), protocol=protocol)
        verdict = judged(made, state, 503, long, content_encoding="gzip", request_id="req_1")
        assert isinstance(verdict, Respond)
        told = dict(verdict.headers)
        assert (503, "application/json", "req_1") == (verdict.status, told["content-type"], told["request-id"])
        assert "content-encoding" not in told
        error = json.loads(verdict.body)["error"]
        expected = ("api_error", None) if protocol == "anthropic" else ("upstream_error", "upstream_bad_answer")
        assert expected == (error["type"], error.get("code"))

    def test_keeps_what_the_provider_told_about_limits_and_ids(self) -> None:
        made = gateway(config({"big": chain(A)}))
        told = {
            "retry_after": "9",
            "x_ratelimit_remaining_tokens": "0",
            "anthropic_ratelimit_tokens_reset": "2026-01-01T00:00:00Z",
            "request_id": "req_1",
        }
        verdict = judged(made, routed(made), 429, b"{}", **told)
        assert isinstance(verdict, Respond)
        assert {name.replace("_", "-"): value for name, value in told.items()}.items() <= dict(verdict.headers).items()

    def test_drops_every_other_header_of_the_provider(self) -> None:
        made = gateway(config({"big": chain(A)}))
        dropped = {"set_cookie": "a=b", "server": "x", "content_length": "2", "x_gateway_retry": "1", "via": "y"}
        verdict = judged(made, routed(made), 503, b"{}", **dropped)
        assert isinstance(verdict, Respond)
        assert {"content-type", "x-should-retry", "retry-after"} >= {name for name, _ in verdict.headers}

    def test_advises_against_trying_again(self) -> None:
        made = gateway(config({"big": chain(A)}))
        verdict = judged(made, routed(made), 503)
        assert isinstance(verdict, Respond)
        assert ("x-should-retry", "false") in verdict.headers

    def test_ends_the_exchange(self) -> None:
        made = gateway(config({"big": chain(A)}))
        book = conversation(made) >> answered(routed(made), 503, end=True)
        assert book << CancelTimer() << Some(Respond, status=503) << Close() >> chunk(b"late")


class TestAnErrorOfTheRequestItself:
    def test_goes_to_the_caller_plain(self) -> None:
        made = gateway(config(BIG))
        body = json.dumps(error("bad_value")).encode()
        verdict = judged(made, routed(made), 400, body)
        assert Some(Respond, status=400, headers=(("content-type", "application/json"),), body=body) == verdict

    def test_is_charged_to_nobody(self) -> None:
        made = gateway(config(BIG, {"cooldown": {"consecutive": 1}}))
        judged(made, routed(made), 400, error("bad_value"))
        assert made.health.view(A, NOW + 1).eligible

    def test_after_another_provider_s_failure_does_not_replace_the_first_error(self) -> None:
        made = gateway(config(BIG))
        first = FirstError(429, b"first", ())
        state = routed(made).failed(ErrorClass.RATE_LIMITED, first).opened(2, NOW + 1, ("rate_limited",))
        assert Some(Respond, status=429, body=b"first") == judged(made, state, 400, error("bad_value"))

    @pytest.mark.parametrize("code", ["content_filter", "context_length_exceeded"])
    def test_replaces_the_first_error_when_it_tells_about_the_content(self, code: str) -> None:
        made = gateway(config(BIG))
        first = FirstError(429, b"first", ())
        state = routed(made).failed(ErrorClass.RATE_LIMITED, first).opened(2, NOW + 1, ("rate_limited",))
        body = json.dumps(error(code)).encode()
        assert Some(Respond, status=400, body=body) == judged(made, state, 400, body)


class TestAContextThatIsTooLong:
    MODELS: dict[str, Any] = {  # noqa: RUF012
        "big": chain(A, B, fallback=["small"], context_fallback=["long"]),
        "small": chain(SMALL_A),
        "long": chain(LONG_C, C),
    }

    def test_goes_to_the_context_fallback_only(self) -> None:
        made = gateway(config(self.MODELS))
        state = state_of(judged(made, routed(made), 400, error("context_length_exceeded")))
        assert ([A, LONG_C, C], True) == (keys(state.plan), state.context)

    def test_stays_there_when_the_next_one_fails_otherwise(self) -> None:
        made = gateway(config(self.MODELS))
        state = state_of(judged(made, routed(made), 400, error("context_length_exceeded")))
        failed = judged(made, state.opened(2, NOW + 1, state.classes), 429)
        assert [A, LONG_C, C] == keys(state_of(failed).plan)

    def test_without_context_fallback_goes_to_the_caller_plain(self) -> None:
        made = gateway(config(BIG))
        verdict = judged(made, routed(made), 400, error("context_length_exceeded"))
        assert Some(Respond, status=400, headers=(("content-type", "application/json"),)) == verdict


class TestTheBodyOfAnError:
    def test_is_kept_up_to_64_kib(self) -> None:
        made = gateway(config({"big": chain(A)}))
        book = conversation(made) >> answered(routed(made), 503) << HELD >> chunk(b"x" * 60_000, end=False)
        cut = b"x" * ERROR_BODY_LIMIT_BYTES
        ended = book >> chunk(b"x" * 3_000_000, end=False) << CancelTimer() << Some(Respond, status=503, body=cut)
        assert ended << Close()

    def test_that_is_larger_than_64_kib_still_has_the_class_of_its_status(self) -> None:
        made = gateway(config(BIG))
        verdict = judged(made, routed(made), 429, b" " * ERROR_BODY_LIMIT_BYTES)
        assert ("rate_limited",) == state_of(verdict).classes

    def test_that_never_ends_is_judged_by_what_came(self) -> None:
        made = gateway(config(BIG))
        book = conversation(made) >> answered(routed(made), 429) << HELD >> After(1.0, chunk(b"{", end=False))
        assert book >> Fires() << CancelTimer() << Some(ReleaseHeaders, retry=True) << NUDGE
        assert NOW + 0.2 + ERROR_BODY_WAIT_S == book.clock.now

    def test_is_awaited_no_longer_than_envoy_waits(self) -> None:
        made = gateway(config(BIG, {"first_byte_timeout": "2s"}))
        waits = [
            a.seconds
            for a in JudgeExchange(made, "a").handle(answered(routed(made), 429), NOW + 1.0)
            if isinstance(a, SetTimer)
        ]
        assert [pytest.approx(0.8)] == waits

    def test_goes_on_in_pieces(self) -> None:
        made = gateway(config(BIG))
        written = json.dumps(error("insufficient_quota")).encode()
        book = conversation(made) >> answered(routed(made), 429) << HELD >> chunk(written[:9], end=False)
        assert book >> chunk(written[9:]) << CancelTimer() << Some(ReleaseHeaders, retry=True) << NUDGE
        assert "quota_exhausted" == made.health.view(B._replace(provider="a"), NOW + 1).reason


class TestAnAllowanceThatIsSpent:
    @pytest.mark.parametrize("guard", ["off", "first_token", "complete"])
    def test_rests_the_target_when_a_stream_s_headers_come(self, guard: str) -> None:
        """Its end, with which Envoy's log tells of them, may be minutes away."""
        made = gateway(config(BIG, {"stream_guard": guard}))
        limits: dict[str, Any] = {"x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_requests": "20s"}
        headers = answered(routed(made, stream=True), 200, content_type="text/event-stream", **limits)
        JudgeExchange(made, "a-cluster").handle(headers, NOW + 1)
        views = [made.health.view(A, NOW + second) for second in (2, 22)]
        assert [(False, "paced"), (True, None)] == [(view.eligible, view.reason) for view in views]


class TestABadAnswerInsideA200:
    @pytest.mark.parametrize(
        ("headers", "end"),
        [({"content_length": "0"}, False), ({}, True), ({"content_type": "text/html; charset=utf-8"}, False)],
    )
    def test_that_is_empty_or_html_is_a_failed_attempt(self, headers: dict[str, Any], end: bool) -> None:
        made = gateway(config(BIG))
        actions = JudgeExchange(made, "a").handle(answered(routed(made), 200, end=end, **headers), NOW + 0.1)
        verdict = next(action for action in actions if isinstance(action, ReleaseHeaders))
        assert (True, ("bad_answer",)) == (verdict.retry, state_of(verdict).classes)

    def test_is_no_provider_error_to_show(self) -> None:
        made = gateway(config({"big": chain(A)}))
        book = conversation(made) >> answered(routed(made), 200, end=True)
        answer = Some(Respond, status=502, body=error_body("upstream_bad_answer"))
        assert book << CancelTimer() << answer << Close()


ERROR_200 = {"error": {"code": "overloaded_error", "message": "no"}}


class TestJsonInPlaceOfAStream:
    def answer(self, body: bytes, content_type: str = "application/json", **policy: Any) -> list[Action]:
        """Answer a request for a stream in two pieces and return all that the judge does."""
        made = gateway(config(BIG, policy))
        judge = JudgeExchange(made, "a")
        headers = answered(routed(made, stream=True), 200, content_type=content_type)
        half = len(body) // 2
        pieces = (headers, chunk(body[:half], end=False), chunk(body[half:]))
        return [action for piece in pieces for action in judge.handle(piece, NOW + 0.1)]

    @pytest.mark.parametrize("guard", ["first_token", "complete"])
    def test_that_holds_an_error_is_a_failed_attempt(self, guard: str) -> None:
        actions = self.answer(json.dumps(ERROR_200).encode(), stream_guard=guard)
        verdict = next(action for action in actions if isinstance(action, ReleaseHeaders))
        assert (True, ("overloaded",)) == (verdict.retry, state_of(verdict).classes)

    def test_is_the_error_that_the_caller_gets_when_nobody_else_can(self) -> None:
        made = gateway(config({"big": chain(A)}))
        book = conversation(made) >> answered(routed(made, stream=True), 200) >> chunk(ERROR_200)
        shown = Some(Respond, status=503, body=error_body("overloaded_error"))
        assert book << CancelTimer() << shown << Close()

    def test_that_is_a_whole_answer_goes_on_as_it_is(self) -> None:
        body = b' {"choices":[{"message":{"content":"hi"}}],"error":null}'
        actions = self.answer(body)
        assert [ReleaseHeaders(), ReleaseBody(body, True), CancelTimer()] == actions

    def test_of_more_than_64_kib_goes_on_unread(self) -> None:
        made = gateway(config(BIG))
        begun = b'{"error":"' + b"x" * ERROR_BODY_LIMIT_BYTES
        book = conversation(made) >> answered(routed(made, stream=True), 200) >> chunk(begun, end=False)
        more = book << ReleaseHeaders() << ReleaseBody(begun, False) << CancelTimer()
        assert more >> chunk(b'"}') << ReleaseBody(b'"}', True) << CancelTimer()

    @pytest.mark.parametrize("content_type", ["application/json", "text/plain", ""])
    def test_that_is_a_stream_by_another_name_is_guarded(self, content_type: str) -> None:
        body = b'data: {"error":{"code":"overloaded_error"}}\n\n'
        actions = self.answer(body, content_type)
        verdict = next(action for action in actions if isinstance(action, ReleaseHeaders))
        assert (True, ("overloaded",)) == (verdict.retry, state_of(verdict).classes)

    def test_that_is_no_json_either_is_a_failed_attempt(self) -> None:
        actions = self.answer(b"upstream request failed", "text/plain")
        verdict = next(action for action in actions if isinstance(action, ReleaseHeaders))
        assert (True, ("bad_answer",)) == (verdict.retry, state_of(verdict).classes)

    def test_passes_where_nothing_is_guarded(self) -> None:
        body = json.dumps(ERROR_200).encode()
        actions = self.answer(body, stream_guard="off")
        assert ReleaseHeaders() == actions[0]


def test_an_event_stream_that_nobody_asked_for_is_guarded_all_the_same() -> None:
    made = gateway(config(BIG))
    judge = JudgeExchange(made, "a")
    judge.handle(answered(routed(made), 200, content_type="text/event-stream"), NOW + 0.1)
    actions = judge.handle(chunk(b'data: {"error":{"code":"overloaded_error"}}\n\n'), NOW + 0.1)
    verdict = next(action for action in actions if isinstance(action, ReleaseHeaders))
    assert (True, ("overloaded",)) == (verdict.retry, state_of(verdict).classes)


class TestAnOrdinaryAnswer:
    def test_passes_untouched(self) -> None:
        made = gateway(config(BIG))
        book = conversation(made) >> answered(routed(made), 200)
        more = book >> chunk(b"a", end=False) << ReleaseHeaders() << ReleaseBody(b"a", False) << CancelTimer()
        assert more >> chunk(b"b") << ReleaseBody(b"b", True) << CancelTimer()

    def test_is_held_until_its_first_byte(self) -> None:
        made = gateway(config(BIG))
        book = conversation(made) >> answered(routed(made), 200) >> chunk(b"", end=False)
        assert book >> chunk(b"a") << ReleaseHeaders() << ReleaseBody(b"a", True) << CancelTimer()
        assert False is made.requests.by_id[REQUEST_ID].attempts[0].held

    @pytest.mark.parametrize("ended_by", [chunk(b""), Trailers(Part.RESPONSE_TRAILERS)])
    def test_that_turns_out_to_be_empty_is_none(self, ended_by: Event) -> None:
        made = gateway(config(BIG))
        book = conversation(made) >> answered(routed(made), 200) >> ended_by
        failed = Some(ReleaseHeaders, set_headers=((":status", "502"),), retry=True)
        assert book << CancelTimer() << failed << NUDGE
        failure = made.requests.by_id[REQUEST_ID].attempts[0].failure
        assert failure is not None
        assert ErrorClass.BAD_ANSWER == failure.error_class

    def test_of_a_request_that_is_not_ours_passes_whatever_it_is(self) -> None:
        book = conversation(gateway(config(BIG))) >> answered(None, 500)
        assert book << ReleaseHeaders() << CancelTimer() >> chunk(b"x") << ReleaseBody(b"x", True) << CancelTimer()

    def test_keeps_its_trailers(self) -> None:
        made = gateway(config(BIG))
        book = conversation(made) >> answered(routed(made), 200)
        shown = book >> chunk(b"a", end=False) << ReleaseHeaders() << ReleaseBody(b"a", False) << CancelTimer()
        ended = shown >> Trailers(Part.RESPONSE_TRAILERS) << CancelTimer()
        assert ended << Pass(Part.RESPONSE_TRAILERS)


def test_an_error_on_messages_that_nobody_answered_is_in_anthropic_s_envelope() -> None:
    made = gateway(config({"big": chain(A)}, providers={"a": provider("a", protocol="anthropic")}))
    book = conversation(made) >> answered(routed(made, path=MESSAGES), 200, end=True) << CancelTimer()
    assert book << Some(Respond, status=502) << Close()


def test_a_failure_that_is_judged_twice_is_charged_once() -> None:
    made = gateway(config(BIG, {"cooldown": {"consecutive": 2}, "same_target": {"max": 0}}))
    state = routed(made)
    judged(made, state, 500)
    judged(made, state, 500)
    assert made.health.view(A, NOW + 1).eligible


def test_a_failure_whose_request_another_process_routed_is_charged_too() -> None:
    state = routed(gateway(config(BIG)))
    other = gateway(config(BIG))
    judged(other, state, 429)
    assert not other.health.view(A, NOW + 1).eligible


@pytest.mark.parametrize("event", [RequestBody(b""), Unexpected()])
def test_a_message_that_is_not_expected_is_counted_and_left_alone(event: Any) -> None:
    made = gateway(config(BIG))
    assert conversation(made) >> event
    assert 1 == made.unexpected_messages


def test_no_failure_is_ever_an_abort() -> None:
    made = gateway(config(BIG))
    for status in (400, 401, 404, 429, 500, 503):
        exchange = JudgeExchange(made, "a")
        actions = exchange.handle(answered(routed(made), status, end=True), NOW)
        assert not any(isinstance(action, Abort) for action in actions)
