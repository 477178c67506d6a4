"""A request from its headers to its plan, or to an answer of our own."""

from __future__ import annotations

import hashlib
import json
from typing import Any
from unittest.mock import ANY

import pytest

from extproc.core import limits
from extproc.core.endpoints import Kind
from extproc.core.exchange import (
    Close,
    Event,
    Part,
    Pass,
    RequestBody,
    RequestHeaders,
    Respond,
    ResponseBody,
    RouteTo,
    SetTimer,
    TimerFired,
    Trailers,
    Unexpected,
)
from extproc.core.feedback import RequestLogged, request_logged
from extproc.core.gateway import Gateway
from extproc.core.limits import PLACE_WAIT_S
from extproc.core.outcome import RouteMode
from extproc.core.request_state import PlanStep
from extproc.core.route import PLACE_POLL_S, RETRY_AFTER_LIMIT_S, RouteExchange, retry_headers
from tests.support.playbook import Fires, JsonBody, Playbook, Some, error_body
from tests.unit.core.build import (
    CHAT,
    LONG_C,
    MESSAGES,
    NOW,
    REQUEST_ID,
    A,
    B,
    C,
    active,
    body,
    chain,
    config,
    gateway,
    headers,
    keys,
    provider,
    trip,
)

BIG: dict[str, Any] = {"big": chain(A, B)}
JSON = ("content-type", "application/json")
PASSED = Pass(Part.REQUEST_HEADERS)
TOKEN = "gw-token"


def conversation(made: Gateway) -> Playbook:
    """Open a route exchange."""
    return Playbook(RouteExchange(made))


def asked(made: Gateway, sent: Event | None = None, **request: Any) -> Playbook:
    """Send headers and body; their route or refusal is to be expected next."""
    return conversation(made) >> (sent or headers()) << PASSED >> body(**request)


def refusal(status: int, code: str, version: int | None = 1) -> Respond:
    """Expect one of the gateway's own errors before anything was asked of a provider."""
    return Respond(status, (JSON,), error_body(code), 0, version)


class TestARequestThatCanBeServed:
    def test_is_sent_along_its_plan_and_the_exchange_ends(self) -> None:
        """Ending it at once is what makes a crash of extproc harmless to requests under way."""
        made = gateway(config(BIG))
        routed = Some(RouteTo, attempts=3, path=CHAT, body=JsonBody(model="m-a", messages=[]))
        assert asked(made) << routed << Close()

    def test_carries_all_that_later_exchanges_need(self) -> None:
        made = gateway(config(BIG), version=7)
        assert asked(made, headers(f"{CHAT}?x=1"), stream=True) << Some(RouteTo) << Close()
        state = made.requests.by_id[REQUEST_ID].state
        assert (REQUEST_ID, 7, "default", Kind.STREAM) == (state.id, state.version, state.policy, state.kind)
        assert ("openai", CHAT, "x=1") == (state.protocol, state.endpoint, state.query)
        assert ("", "big", 0, NOW, NOW) == (state.client, state.model, state.ticket, state.arrived, state.started)
        assert ((), 1, False, None) == (state.classes, state.attempt, state.context, state.first_error)

    def test_carries_no_key_of_its_query(self) -> None:
        made = gateway(config(BIG))
        path = f"{CHAT}?x=1"
        assert asked(made, headers(f"{path}&api-key=secret")) << Some(RouteTo, path=path) << Close()
        assert "x=1" == made.requests.by_id[REQUEST_ID].state.query

    def test_has_a_step_for_each_attempt_with_cluster_path_and_mode(self) -> None:
        made = gateway(config(BIG))
        assert asked(made) << Some(RouteTo) << Close()
        assert (
            PlanStep("a", "m-a", "big", "a-cluster", CHAT, RouteMode.BALANCED),
            PlanStep("b", "m-b", "big", "b-cluster", CHAT, RouteMode.PROVIDER_FAILOVER),
        ) == made.requests.by_id[REQUEST_ID].state.plan

    def test_is_planned_no_further_than_its_policy_has_attempts(self) -> None:
        made = gateway(config({"big": chain(A, B, C)}, {"attempts": 2}))
        assert asked(made) << Some(RouteTo, attempts=2) << Close()
        assert [A, B] == keys(made.requests.by_id[REQUEST_ID].state.plan)

    def test_is_held_to_the_policy_that_its_model_names(self) -> None:
        once = {"once": {"attempts": 1}}
        made = gateway(config({"big": chain(A, B, policy="once")}, {"attempts": 3}, policies=once))
        assert asked(made) << Some(RouteTo, attempts=1) << Close()
        assert "once" == made.requests.by_id[REQUEST_ID].state.policy

    @pytest.mark.parametrize("forced", [True, False])
    def test_asks_for_the_usage_of_a_stream_only_where_the_policy_says_so(self, forced: bool) -> None:
        made = gateway(config(BIG, {"force_usage": forced}))
        asking = {"stream_options": {"include_usage": True}} if forced else {}
        sent = {"model": "m-a", "messages": [], "stream": True} | asking
        exchange = RouteExchange(made)
        exchange.handle(headers(), NOW)
        routed_to = exchange.handle(body(stream=True), NOW)[0]
        assert isinstance(routed_to, RouteTo)
        assert sent == json.loads(routed_to.body or b"")
        assert forced is made.requests.by_id[REQUEST_ID].state.hide_usage

    def test_keeps_the_client_s_bytes_when_the_provider_uses_the_same_name(self) -> None:
        made = gateway(config({"m-a": chain(A)}))
        assert asked(made, model="m-a") << Some(RouteTo, body=None) << Close()

    def test_follows_the_base_url_and_the_static_query_of_its_target(self) -> None:
        url = {"base_url": "https://a.example.com/openai/v1", "query": {"api-version": "preview"}}
        made = gateway(config(BIG, providers={"a": url}))
        path = "/openai/v1/chat/completions?x=1&api-version=preview"
        assert asked(made, headers(f"{CHAT}?x=1")) << Some(RouteTo, path=path) << Close()

    def test_is_pinned_to_the_version_it_arrived_under(self) -> None:
        made = gateway(config(BIG))
        book = conversation(made) >> headers() << PASSED
        made.activate(active(config({"big": chain(C)}), version=2))
        assert book >> body() << Some(RouteTo) << Close()
        state = made.requests.by_id[REQUEST_ID].state
        assert (1, [A, B]) == (state.version, keys(state.plan))

    def test_goes_around_a_target_that_is_ill(self) -> None:
        made = gateway(config(BIG))
        trip(made, A)
        assert asked(made) << Some(RouteTo) << Close()
        steps = [(step.key, step.mode) for step in made.requests.by_id[REQUEST_ID].state.plan]
        assert [(B, "health_reroute")] == steps

    def test_goes_around_a_provider_whose_key_is_missing(self) -> None:
        made = gateway(config(BIG), missing=["a"])
        assert asked(made) << Some(RouteTo) << Close()
        assert [B] == keys(made.requests.by_id[REQUEST_ID].state.plan)

    def test_is_tried_at_the_least_bad_target_when_all_are_ill(self) -> None:
        made = gateway(config(BIG))
        trip(made, A, NOW - 1)
        trip(made, B, NOW - 5)
        assert asked(made) << Some(RouteTo) << Close()
        steps = [(step.key, step.mode) for step in made.requests.by_id[REQUEST_ID].state.plan]
        assert [(B, "last_resort")] == steps

    def test_spreads_over_weights_with_the_ones_before_and_after_it(self) -> None:
        made = gateway(config({"big": {"targets": [{"provider": p, "model": f"m-{p}"} for p in "ab"]}}))
        seen = set()
        for _ in range(4):
            assert asked(made) << Some(RouteTo) << Close()
            seen.add(made.requests.by_id.pop(REQUEST_ID).state.plan[0].key)
        assert {A, B} == seen

    def test_holds_the_client_s_name(self) -> None:
        made = guarded()
        sent = headers(authorization=f"Bearer {TOKEN}")
        assert asked(made, sent) << Some(RouteTo) << Close()
        assert "team-a" == made.requests.by_id[REQUEST_ID].state.client

    def test_on_messages_goes_to_anthropic_providers_only(self) -> None:
        made = gateway(config(BIG, providers={"b": provider("b", protocol="anthropic")}))
        routed = Some(RouteTo, path="/v1/messages", body=JsonBody(model="m-b"))
        assert asked(made, headers(MESSAGES)) << routed << Close()


def guarded(**client: Any) -> Gateway:
    """Make a gateway that asks for a token."""
    entry = {"name": "team-a", "token_sha256": hashlib.sha256(TOKEN.encode()).hexdigest()} | client
    return gateway(config(BIG, clients=[entry]))


class TestAClientBeyondItsLimits:
    @staticmethod
    def refused(made: Gateway, now: float = NOW) -> tuple[int, str | None]:
        """Send a whole request and return status and Retry-After of our answer, 0 when it was routed."""
        exchange = RouteExchange(made)
        actions = exchange.handle(headers(authorization=f"Bearer {TOKEN}"), now)
        if actions == [PASSED]:
            actions = exchange.handle(body(), now)
        if actions == [SetTimer(PLACE_POLL_S)]:
            actions = exchange.handle(TimerFired(), now + PLACE_WAIT_S)
        answer = actions[0]
        return (answer.status, dict(answer.headers).get("retry-after")) if isinstance(answer, Respond) else (0, None)

    def test_of_requests_a_minute_waits_until_the_next_one_fits(self) -> None:
        made = guarded(requests_per_minute=2)
        told = [self.refused(made, NOW + second) for second in (0, 0, 0, 29, 30)]
        assert [(0, None), (0, None), (429, "30"), (429, "1"), (0, None)] == told

    def test_of_requests_at_one_time_waits_until_one_has_ended(self) -> None:
        made = guarded(concurrent_requests=1)
        assert [(0, None), (429, "1")] == [self.refused(made), self.refused(made)]
        request_logged(made, RequestLogged(REQUEST_ID, 200, frozenset(), 1), NOW + 1)
        assert (0, None) == self.refused(made, NOW + 1)

    def test_of_requests_at_one_time_gets_the_place_of_one_whose_end_is_told_a_moment_later(self) -> None:
        """Envoy tells of an end up to 50 ms after the caller has the answer."""
        made = guarded(concurrent_requests=1)
        self.refused(made)
        sent = headers(authorization=f"Bearer {TOKEN}")
        book = conversation(made) >> sent << PASSED >> body() << SetTimer(PLACE_POLL_S)
        book >> Fires() << SetTimer(PLACE_POLL_S)
        request_logged(made, RequestLogged(REQUEST_ID, 200, frozenset(), 1), NOW + 1)
        assert book >> Fires() << Some(RouteTo) << Close()

    def test_that_waited_in_vain_is_refused(self) -> None:
        made = guarded(concurrent_requests=1)
        self.refused(made)
        book = conversation(made) >> headers(authorization=f"Bearer {TOKEN}") << PASSED >> body()
        began = book.clock.now
        book << SetTimer(PLACE_POLL_S)
        while book.clock.now + PLACE_POLL_S < began + PLACE_WAIT_S:
            book >> Fires() << SetTimer(PLACE_POLL_S)
        refused = Respond(429, (JSON, ("retry-after", "1")), error_body("client_rate_limited"), 0, 1)
        assert book >> Fires() << refused << Close()

    def test_that_waits_is_no_more_than_as_many_as_may_be_under_way(self) -> None:
        made = guarded(concurrent_requests=1)
        self.refused(made)
        sent = headers(authorization=f"Bearer {TOKEN}")
        first, second = conversation(made), conversation(made)
        assert first >> sent << PASSED >> body() << SetTimer(PLACE_POLL_S)
        assert second >> sent << PASSED >> body() << Some(Respond, status=429) << Close()
        first.exchange.closed(NOW)
        assert conversation(made) >> sent << PASSED >> body() << SetTimer(PLACE_POLL_S)

    def test_that_is_large_is_not_held_while_others_wait(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made = guarded(concurrent_requests=1)
        self.refused(made)
        monkeypatch.setattr(limits, "WAITING_LIMIT_BYTES", len(body().body) - 1)
        book = conversation(made) >> headers(authorization=f"Bearer {TOKEN}") << PASSED
        assert book >> body() << Some(Respond, status=429) << Close()

    def test_gets_the_error_that_names_it(self) -> None:
        made = guarded(requests_per_minute=1)
        sent = headers(authorization=f"Bearer {TOKEN}")
        assert conversation(made) >> sent << PASSED
        refused = Respond(429, (JSON, ("retry-after", "60")), error_body("client_rate_limited"), 0, 1)
        assert conversation(made) >> sent << refused << Close()

    def test_does_not_spend_a_stranger_s_request(self) -> None:
        """A wrong token is nobody's request."""
        made = guarded(requests_per_minute=1)
        conversation(made) >> headers() << refusal(401, "invalid_api_key") << Close()
        assert (0, None) == self.refused(made)


class TestARefusalBeforeTheBody:
    def test_of_a_caller_without_a_token(self) -> None:
        assert conversation(guarded()) >> headers() << refusal(401, "invalid_api_key") << Close()

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("POST", "/v1/files"),
            ("POST", "/v1/chat/completions/"),
            ("POST", "/v1/models"),
            ("GET", CHAT),
            ("DELETE", "/v1/models/big"),
            ("POST", "/"),
        ],
    )
    def test_of_an_endpoint_nobody_serves(self, method: str, path: str) -> None:
        sent = RequestHeaders({":method": method, ":path": path}, end_of_stream=False)
        assert conversation(gateway(config(BIG))) >> sent << refusal(404, "unsupported_endpoint") << Close()

    @pytest.mark.parametrize("path", ["/v1/messages/count_tokens", "/v1/messages/batches", "/v1/messages/"])
    def test_of_another_path_of_anthropic_s_is_in_its_envelope(self, path: str) -> None:
        not_found = JsonBody(type="error", error={"type": "not_found_error"})
        book = conversation(gateway(config(BIG))) >> headers(path)
        assert book << Some(Respond, status=404, body=not_found) << Close()

    @pytest.mark.parametrize("path", ["/v1/" + "x" * 100, "/v1/\x7f", "/v1/é"])
    def test_does_not_quote_a_strange_path(self, path: str) -> None:
        answer = RouteExchange(gateway(config(BIG))).handle(headers(path), NOW)[0]
        assert isinstance(answer, Respond)
        assert "This gateway does not serve POST this path." == json.loads(answer.body)["error"]["message"]

    def test_of_a_post_without_a_body(self) -> None:
        sent = RequestHeaders({":method": "POST", ":path": CHAT}, end_of_stream=True)
        assert conversation(gateway(config(BIG))) >> sent << refusal(400, "invalid_json") << Close()

    def test_of_a_body_that_says_it_is_too_large(self) -> None:
        made = gateway(config(BIG, server={"max_body": "1MiB"}))
        sent = headers(content_length=str(1024 * 1024 + 1))
        assert conversation(made) >> sent << refusal(413, "request_too_large") << Close()

    def test_while_there_is_no_version(self) -> None:
        assert conversation(gateway()) >> headers() << refusal(503, "gateway_unavailable", None) << Close()

    def test_is_in_anthropic_s_envelope_on_messages(self) -> None:
        enveloped = JsonBody(type="error", error={"type": "authentication_error"})
        assert conversation(guarded()) >> headers(MESSAGES) << Respond(401, (JSON,), enveloped, 0, 1) << Close()


class TestARefusalOfTheBody:
    @pytest.mark.parametrize(
        ("raw", "status", "code"),
        [
            (b"{", 400, "invalid_json"),
            (b'{"model":"big","model":"big"}', 400, "invalid_json"),
            (b"{}", 400, "missing_model"),
            (b'{"model":"unknown"}', 404, "model_not_found"),
        ],
    )
    def test_that_names_no_model_of_ours(self, raw: bytes, status: int, code: str) -> None:
        book = conversation(gateway(config(BIG))) >> headers() << PASSED
        assert book >> RequestBody(raw) << refusal(status, code) << Close()

    def test_that_is_larger_than_allowed(self) -> None:
        made = gateway(config(BIG, server={"max_body": "1KiB"}))
        assert asked(made, user="x" * 1024) << refusal(413, "request_too_large") << Close()

    def test_that_is_exactly_as_large_as_allowed_is_none(self) -> None:
        made = gateway(config(BIG, server={"max_body": "1KiB"}))
        raw = b'{"model":"big"}'
        book = conversation(made) >> headers() << PASSED >> RequestBody(raw + b" " * (1024 - len(raw)))
        assert book << Some(RouteTo) << Close()

    def test_that_names_a_model_of_others(self) -> None:
        made = guarded(models=["small-*"])
        sent = headers(authorization=f"Bearer {TOKEN}")
        assert asked(made, sent) << refusal(403, "model_not_allowed") << Close()

    def test_that_names_a_model_in_other_characters_than_a_header_can_hold(self) -> None:
        """Also of a caller who pins the target, before anything is planned."""
        made = gateway(config({"*": chain(A)}, server={"trust_route_headers": True}))
        sent = headers(x_gateway_target="a/m-a")
        assert asked(made, sent, model="any-\r\nx-evil: 1") << refusal(400, "bad_request") << Close()

    @pytest.mark.parametrize("name", ["my prompt\n", "my prompt" * 12])
    def test_does_not_quote_a_model_name_that_is_no_name(self, name: str) -> None:
        exchange = RouteExchange(gateway(config(BIG)))
        exchange.handle(headers(), NOW)
        answer = exchange.handle(body(model=name), NOW)[0]
        assert isinstance(answer, Respond)
        assert b"my prompt" not in answer.body


class TestNoHealthyTarget:
    def test_tells_when_one_is_expected_back(self) -> None:
        made = gateway(config(BIG, {"when_all_down": "fail", "cooldown": {"base": "20s", "jitter": 0}}))
        trip(made, A)
        trip(made, B, NOW - 5)
        wanted = (JSON, ("x-should-retry", "false"), ("retry-after", "15"))
        answer = Respond(503, wanted, error_body("no_healthy_target"), 0, 1)
        assert asked(made) << answer << Close()

    def test_is_what_a_model_without_any_key_answers(self) -> None:
        made = gateway(config({"big": chain(A)}), missing=["a"])
        answer = Some(Respond, status=503, body=error_body("no_healthy_target"))
        assert asked(made) << answer << Close()

    def test_is_what_a_model_of_another_protocol_answers(self) -> None:
        made = gateway(config(BIG))
        message = f"No target of this model speaks the protocol of {MESSAGES}."
        answer = Some(Respond, status=503, body=JsonBody(error={"message": message}))
        assert asked(made, headers(MESSAGES)) << answer << Close()

    @pytest.mark.parametrize(
        ("wait_s", "expected"),
        [(0.0, "1"), (0.2, "1"), (1.2, "2"), (59.5, "60"), (4000.0, str(RETRY_AFTER_LIMIT_S))],
    )
    def test_gives_whole_seconds_between_1_and_60(self, wait_s: float, expected: str) -> None:
        assert (("x-should-retry", "false"), ("retry-after", expected)) == retry_headers(wait_s)

    def test_without_a_known_recovery_gives_no_time(self) -> None:
        assert (("x-should-retry", "false"),) == retry_headers(None)


class TestAPinnedTarget:
    MODELS: dict[str, Any] = BIG | {"big": chain(A, B, context_fallback=["long"]), "long": chain(LONG_C)}

    @pytest.mark.parametrize("pin", [A, B, LONG_C])
    def test_is_the_whole_plan_of_a_trusted_caller(self, pin: Any) -> None:
        made = gateway(config(self.MODELS, server={"trust_route_headers": True}))
        assert asked(made, headers(x_gateway_target=str(pin))) << Some(RouteTo) << Close()
        steps = [(step.key, step.mode) for step in made.requests.by_id[REQUEST_ID].state.plan]
        assert [(pin, "pinned")] == steps

    def test_is_tried_even_when_it_is_ill(self) -> None:
        made = gateway(config(self.MODELS, server={"trust_route_headers": True}))
        trip(made, A)
        assert asked(made, headers(x_gateway_target=str(A))) << Some(RouteTo) << Close()

    @pytest.mark.parametrize("pin", ["a/other", "c/m-c", "nobody/m-a", "a", "/"])
    def test_must_be_one_of_the_model_s_own(self, pin: str) -> None:
        made = gateway(config(self.MODELS, server={"trust_route_headers": True}))
        assert asked(made, headers(x_gateway_target=pin)) << refusal(400, "bad_request") << Close()

    def test_is_ignored_when_route_headers_are_not_trusted(self) -> None:
        made = gateway(config(self.MODELS))
        assert asked(made, headers(x_gateway_target=str(B))) << Some(RouteTo) << Close()
        assert "balanced" == made.requests.by_id[REQUEST_ID].state.plan[0].mode


class TestTheGatewayItself:
    def test_is_ready_once_envoy_accepted_the_version(self) -> None:
        made = gateway(config(BIG))
        starting = Respond(503, (JSON,), JsonBody(status="starting"), 0, 1)
        assert conversation(made) >> headers("/readyz", "GET") << starting << Close()
        made.accepted = True
        ready = Respond(200, (JSON,), JsonBody(status="ready"), 0, 1)
        assert conversation(made) >> headers("/readyz", "GET") << ready << Close()

    def test_is_not_ready_without_a_version(self) -> None:
        starting = Respond(503, (JSON,), JsonBody(status="starting"), 0, None)
        assert conversation(gateway()) >> headers("/readyz", "GET") << starting << Close()

    def test_tells_its_readiness_without_a_token(self) -> None:
        assert conversation(guarded()) >> headers("/readyz", "GET") << Some(Respond, status=503) << Close()

    def test_lists_its_models(self) -> None:
        listed = Respond(200, (JSON,), JsonBody(object="list"), 0, 1)
        assert conversation(gateway(config(BIG))) >> headers("/v1/models", "GET") << listed << Close()

    def test_shows_one_model_with_its_health(self) -> None:
        made = gateway(config({"big": chain(A)}))
        trip(made, A)
        shown = Respond(200, (JSON,), JsonBody(id="big", available=False), 0, 1)
        assert conversation(made) >> headers("/v1/models/big?x=1", "GET") << shown << Close()

    def test_knows_no_model_of_another_name(self) -> None:
        book = conversation(gateway(config(BIG))) >> headers("/v1/models/none", "GET")
        assert book << refusal(404, "model_not_found") << Close()

    @pytest.mark.parametrize(
        ("written", "name"),
        [
            ("any-org%2Fm%3Ax", "any-org/m:x"),
            ("any-%C3%A9", "any-\u00e9"),
            ("any-a%252Fb", "any-a%2Fb"),
            ("%61ny-org/m", "any-org/m"),
        ],
    )
    def test_shows_a_model_whose_name_is_escaped(self, written: str, name: str) -> None:
        """As the SDKs write a slash, a colon, and whatever is not ASCII; unescaped once."""
        made = gateway(config({"any-*": {"targets": [{"provider": "a", "model": "*"}]}}))
        book = conversation(made) >> headers(f"/v1/models/{written}", "GET")
        assert book << Some(Respond, status=200, body=JsonBody(id=name)) << Close()

    @pytest.mark.parametrize("written", ["big", "b%69g", "%62ig"])
    def test_shows_no_model_of_others_however_it_is_written(self, written: str) -> None:
        made = guarded(models=["other"])
        asking = headers(f"/v1/models/{written}", "GET", authorization=f"Bearer {TOKEN}")
        assert conversation(made) >> asking << refusal(404, "model_not_found") << Close()

    @pytest.mark.parametrize(
        "name", ["any-\udcff", "any-\x85", "any-\u202e", "any-%0d%0a", "%0d%0a", "any-%ff", "any-%C3"]
    )
    def test_shows_no_model_whose_name_cannot_be_told(self, name: str) -> None:
        """Bytes of a path that are no UTF-8 arrive as half surrogates."""
        made = gateway(config({"any-*": {"targets": [{"provider": "a", "model": "*"}]}}))
        answer = RouteExchange(made).handle(headers(f"/v1/models/{name}", "GET"), NOW)
        assert [refusal(400, "bad_request"), Close()] == answer

    def test_lists_nothing_without_a_token(self) -> None:
        book = conversation(guarded()) >> headers("/v1/models", "GET")
        assert book << refusal(401, "invalid_api_key") << Close()


class TestAMessageThatIsNotExpected:
    @pytest.mark.parametrize("event", [body(), TimerFired(), Unexpected(), ResponseBody(b"", end_of_stream=True)])
    def test_before_the_headers_is_counted_and_left_alone(self, event: Event) -> None:
        made = gateway(config(BIG))
        assert conversation(made) >> event
        assert 1 == made.unexpected_messages

    def test_that_has_trailers_is_passed(self) -> None:
        made = gateway(config(BIG))
        trailers = Trailers(Part.REQUEST_TRAILERS)
        assert conversation(made) >> headers() << PASSED >> trailers << Pass(Part.REQUEST_TRAILERS)
        assert 1 == made.unexpected_messages

    def test_after_the_end_is_counted_and_left_alone(self) -> None:
        made = gateway(config(BIG))
        assert asked(made) << Some(RouteTo) << Close() >> body() >> headers()
        assert 2 == made.unexpected_messages


def test_what_the_exchange_shows_of_itself_is_no_request_data() -> None:
    exchange = RouteExchange(gateway(config(BIG)))
    exchange.handle(headers(authorization="Bearer secret"), NOW)
    assert "<RouteExchange want_body>" == repr(exchange)


def test_an_exchange_that_envoy_ends_early_leaves_no_record() -> None:
    made = gateway(config(BIG))
    exchange = RouteExchange(made)
    exchange.handle(headers(), NOW)
    exchange.closed(NOW + 1)
    assert ({}, ANY) == (dict(made.requests.by_id), made.active)
