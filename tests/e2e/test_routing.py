"""Where a healthy request goes and what exactly arrives there, through the real Envoy."""

from __future__ import annotations

from collections import Counter
from typing import Any

import orjson
import pytest

from tests.e2e.conftest import GatewayFactory, Shared
from tests.support.gateway import PLANTED_KEYS, Gateway, provider
from tests.support.http1 import Call, Reply
from tests.support.wall import Wall, answer, error, ok, rate_limited

PRIMARY_KEY = PLANTED_KEYS["PRIMARY_KEY"]
UPSTREAM = "upstream-a"
MIB = 1 << 20


@pytest.fixture(scope="module")
def module_gateway(module_gateway_factory: GatewayFactory, module_primary: Wall, module_fallback: Wall) -> Gateway:
    """Offer every kind of model in front of the two walls."""
    return module_gateway_factory(routing_config(module_primary, module_fallback))


def routing_config(primary: Wall, fallback: Wall) -> dict[str, Any]:
    root = primary.url.removesuffix("/v1")
    providers = {
        "a": provider(primary, "PRIMARY_KEY"),
        "b": provider(fallback, "FALLBACK_KEY"),
        "sick": provider(primary),
        "prefixed": provider(
            primary,
            "PRIMARY_KEY",
            base_url=f"{root}/openai/deployments/x",
            auth={"header": "api-key", "prefix": ""},
            headers={"OpenAI-Organization": "org-1", "x-share": "50%"},
            query={"api-version": "preview", "a b": "c&d"},
        ),
        "claude": provider(primary, "PRIMARY_KEY", base_url=root, protocol="anthropic"),
        "claude-v1": provider(primary, "PRIMARY_KEY", protocol="anthropic"),
        "claude-b": provider(fallback, "FALLBACK_KEY", protocol="anthropic"),
    }
    models = {
        "direct": [target("a")],
        "weighted": [target("a") | {"weight": 7}, target("b") | {"weight": 3}],
        "tiered": [target("b") | {"tier": 3}, target("a") | {"tier": 1}],
        "rerouted": [target("sick"), target("b") | {"tier": 1}],
        "prefixed": [target("prefixed")],
        "gpt-*": [{"provider": "a", "model": "*"}],
        "gpt-4*": [{"provider": "a", "model": "the-fours"}],
        "gpt-4o": [{"provider": "a", "model": "exactly-4o"}],
        "claude": [target("claude")],
        "claude-v1": [target("claude-v1")],
        "mixed": [target("a"), target("claude-b") | {"tier": 1}],
        "large": [target("a"), target("b") | {"tier": 1}],
    }
    named = {name: {"targets": targets} for name, targets in models.items()}
    # A 503 now and then must not change who is asked next; a 429 with Retry-After still does.
    tolerant = {"cooldown": {"consecutive": 1000, "failure_ratio": 1.0, "min_requests": 100_000}}
    return {"schema": 1, "providers": providers, "models": named, "policies": {"default": tolerant}}


def target(name: str) -> dict[str, Any]:
    return {"provider": name, "model": f"upstream-{name}"}


def mode_and_server(reply: Reply) -> tuple[int, str | None, str | None]:
    return reply.status, reply.header("x-gateway-route-mode"), reply.header("x-gateway-served-by")


# -- which target ----------------------------------------------------------------------------------------------------


def test_the_only_target_serves_directly(shared: Shared) -> None:
    """Mode `direct`, and the version of the config is told."""
    reply = shared.gateway.chat("direct")

    assert (200, "direct", "a/upstream-a") == mode_and_server(reply)
    assert ("1", "1") == (reply.header("x-gateway-attempts"), reply.header("x-gateway-config-version"))


def test_weights_share_out_requests(shared: Shared) -> None:
    """70 to 30, near enough after 200 requests."""
    replies = Counter(mode_and_server(shared.gateway.chat("weighted")) for _ in range(200))

    assert {(200, "balanced", "a/upstream-a"), (200, "balanced", "b/upstream-b")} == replies.keys()
    assert 130 <= replies[200, "balanced", "a/upstream-a"] <= 150
    assert (shared.primary.count(), shared.fallback.count()) == (
        replies[200, "balanced", "a/upstream-a"],
        replies[200, "balanced", "b/upstream-b"],
    )


def test_the_lowest_tier_serves_while_it_is_healthy(shared: Shared) -> None:
    """The order of tiers counts, not the order of lines."""
    for _ in range(20):
        assert (200, "balanced", "a/upstream-a") == mode_and_server(shared.gateway.chat("tiered"))
    assert 0 == shared.fallback.count()


def test_a_better_target_that_cools_makes_a_health_reroute(shared: Shared) -> None:
    """The second request's first attempt goes to the next tier."""
    shared.primary.script(rate_limited(retry_after=60))
    assert "provider_failover" == shared.gateway.chat("rerouted").header("x-gateway-route-mode")

    reply = shared.gateway.chat("rerouted")

    assert (200, "health_reroute", "b/upstream-b") == mode_and_server(reply)
    assert 1 == shared.primary.count()


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ("gpt-3.5-turbo", "gpt-3.5-turbo"),
        ("gpt-4-turbo", "the-fours"),
        ("gpt-4o", "exactly-4o"),
        ("gpt-", "gpt-"),
        ('gpt-\u00e9 "q" \\ /', 'gpt-\u00e9 "q" \\ /'),
    ],
)
def test_patterns_give_way_to_longer_patterns_and_exact_names(shared: Shared, asked: str, sent: str) -> None:
    """Target model `*` keeps the client's own name."""
    reply = shared.gateway.chat(asked)

    assert 200 == reply.status
    assert sent == shared.primary.requests[0].json["model"]


def test_a_target_of_another_protocol_is_not_a_candidate(shared: Shared) -> None:
    """The same model name serves each protocol from its own provider."""
    openai = shared.gateway.chat("mixed")
    anthropic = shared.gateway.post("/v1/messages", {"model": "mixed", "max_tokens": 9, "messages": []})

    assert (200, "direct", "a/upstream-a") == mode_and_server(openai)
    assert (200, "direct", "claude-b/upstream-claude-b") == mode_and_server(anthropic)


def test_without_a_target_of_the_protocol_nobody_is_asked(shared: Shared) -> None:
    """An OpenAI-only model cannot answer /v1/messages."""
    reply = shared.gateway.post("/v1/messages", {"model": "direct", "max_tokens": 9, "messages": []})

    assert 503 == reply.status
    assert 0 == shared.primary.count()


# -- pinning ---------------------------------------------------------------------------------------------------------


def test_a_pinned_target_is_ignored_from_untrusted_callers(shared: Shared) -> None:
    """The default: the header has no effect and reaches nobody."""
    headers = {"x-gateway-target": "b/upstream-b"}

    replies = [shared.gateway.post("/v1/chat/completions", {"model": "tiered"}, headers=headers) for _ in range(5)]

    assert [(200, "balanced", "a/upstream-a")] * 5 == [mode_and_server(reply) for reply in replies]
    assert all(seen.header("x-gateway-target") is None for seen in shared.primary.requests)


@pytest.fixture(scope="module")
def trusting(module_gateway_factory: GatewayFactory, module_primary: Wall, module_fallback: Wall) -> Gateway:
    """Start a gateway that believes its callers' route headers."""
    config = routing_config(module_primary, module_fallback)
    return module_gateway_factory(config | {"server": {"trust_route_headers": True}})


def pin(gateway: Gateway, to: str) -> Reply:
    headers = {"x-gateway-target": to}
    return gateway.post("/v1/chat/completions", {"model": "tiered", "messages": []}, headers=headers)


def test_a_trusted_caller_pins_a_target(trusting: Gateway, shared: Shared) -> None:
    """The second tier serves although the first is healthy; the header itself goes nowhere."""
    assert (200, "pinned", "b/upstream-b") == mode_and_server(pin(trusting, "b/upstream-b"))
    assert shared.fallback.requests[0].header("x-gateway-target") is None
    assert 0 == shared.primary.count()


@pytest.mark.parametrize("to", ["sick/upstream-sick", "b", "b/", "/", "nobody/none"])
def test_only_a_target_of_the_model_can_be_pinned(trusting: Gateway, shared: Shared, to: str) -> None:
    """Anything else is the caller's mistake."""
    reply = pin(trusting, to)

    assert (400, "bad_request") == (reply.status, reply.json["error"]["code"])
    assert (0, 0) == (shared.primary.count(), shared.fallback.count())


def test_a_pinned_request_goes_nowhere_else_when_its_target_fails(trusting: Gateway, shared: Shared) -> None:
    """Pinned means this target: its error is the answer."""
    shared.fallback.script(error(503))

    assert (503, "none", None) == mode_and_server(pin(trusting, "b/upstream-b"))
    assert (0, 1) == (shared.primary.count(), shared.fallback.count())


# -- paths, queries and headers --------------------------------------------------------------------------------------


def test_prefix_query_and_static_headers_of_the_provider_are_sent(shared: Shared) -> None:
    """The provider's prefix stands for /v1; its parameters join the client's and win over them."""
    path = "/v1/chat/completions?user=1&x=%20y&api-version=mine&flag"

    reply = shared.gateway.post(path, {"model": "prefixed", "messages": []})

    (seen,) = shared.primary.requests
    assert 200 == reply.status
    expected = "/openai/deployments/x/chat/completions?user=1&x=%20y&flag&"
    assert seen.path in {expected + tail for tail in ("a+b=c%26d&api-version=preview", "api-version=preview&a+b=c%26d")}
    assert ("org-1", "50%", PRIMARY_KEY, None) == tuple(
        seen.header(name) for name in ("openai-organization", "x-share", "api-key", "authorization")
    )


@pytest.mark.parametrize("query", ["?api-version=1&b=%2F+%C3%A9", "?", "?=&&a", "?q=a?b"])
def test_the_clients_query_is_kept_as_it_is(shared: Shared, query: str) -> None:
    """Byte for byte; a lone question mark may go."""
    shared.gateway.post("/v1/chat/completions" + query, {"model": "direct", "messages": []})

    (seen,) = shared.primary.requests
    assert seen.path.removesuffix("?") == ("/v1/chat/completions" + query).removesuffix("?")


def test_the_provider_is_addressed_by_its_own_host(shared: Shared) -> None:
    """Host and port of its base_url, as RFC 9110 section 7.2 wants, not what the client used for the gateway."""
    shared.gateway.chat("direct")

    assert f"127.0.0.1:{shared.primary.port}" == shared.primary.requests[0].header("host")


@pytest.mark.parametrize("model", ["prefixed", "direct"])
def test_the_clients_ordinary_headers_are_sent_on(shared: Shared, model: str) -> None:
    """But no wish for compression: errors and streams must stay readable."""
    headers = {"accept-encoding": "gzip, br", "user-agent": "tests/1", "x-custom": "kept", "openai-beta": "x=1"}
    shared.gateway.post("/v1/chat/completions", {"model": model, "messages": []}, headers=headers)

    (seen,) = shared.primary.requests
    assert headers | {"accept-encoding": "identity"} == {name: seen.header(name) for name in headers}


# -- endpoints -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/v1/chat/completions", "application/json"),
        ("/v1/completions", "application/json"),
        ("/v1/embeddings", "application/json"),
        ("/v1/responses", "application/json"),
        ("/v1/moderations", "application/json"),
        ("/v1/images/generations", "application/json"),
        ("/v1/audio/speech", "audio/mpeg"),
        ("/v1/rerank", "application/json"),
    ],
)
def test_every_endpoint_is_rewritten_and_answered(shared: Shared, path: str, content_type: str) -> None:
    """The provider's path ends like ours, the model is its own name for it, the answer is untouched."""
    reply = shared.gateway.post(path, {"model": "direct", "input": "x"})
    direct = shared.primary.requests[0]

    assert (200, "direct", "a/upstream-a") == mode_and_server(reply)
    assert (path, {"model": UPSTREAM, "input": "x"}) == (direct.path, direct.json)
    assert content_type == reply.header("content-type")


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/responses"])
def test_other_streams_pass_whole(shared: Shared, path: str) -> None:
    """Legacy completions and the Responses API stream like chat does."""
    shared.primary.script(ok("one two three", chunks=3))

    reply = shared.gateway.post(path, {"model": "direct", "stream": True})

    assert (200, "clean", "text/event-stream") == (reply.status, reply.ended, reply.header("content-type"))
    assert "one two three" == "".join(text_of(orjson.loads(data)) for data in reply.events if data != "[DONE]")


def text_of(event: dict[str, Any]) -> str:
    if event.get("type") == "response.output_text.delta":
        return str(event["delta"])
    return "".join(choice.get("text", "") for choice in event.get("choices", ()))


def test_a_binary_answer_arrives_byte_for_byte(shared: Shared) -> None:
    """Speech: every byte value, no content type of ours."""
    sound = bytes(range(256)) * 4096
    shared.primary.script(answer(200, sound, content_type="audio/mpeg"))

    reply = shared.gateway.post("/v1/audio/speech", {"model": "direct", "input": "hi", "voice": "alloy"})

    assert (200, "audio/mpeg", sound) == (reply.status, reply.header("content-type"), reply.body)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/images/generations", "/v1/audio/speech", "/v1/rerank"])
def test_other_endpoints_fail_over_too(shared: Shared, path: str) -> None:
    """A 503 of the first tier is served by the second."""
    shared.primary.script(error(503))

    reply = shared.gateway.post(path, {"model": "large", "input": "x"})

    assert (200, "provider_failover", "b/upstream-b") == mode_and_server(reply)


@pytest.mark.parametrize("model", ["claude", "claude-v1"])
@pytest.mark.parametrize("stream", [False, True])
def test_messages_go_to_an_anthropic_provider(shared: Shared, model: str, stream: bool) -> None:
    """The path has one /v1, whether the base_url names it or not; the key goes into x-api-key."""
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "b", "x-api-key": "the client's own"}
    body = {"model": model, "max_tokens": 9, "messages": [], "stream": stream}

    reply = shared.gateway.post("/v1/messages", body, headers=headers)

    (seen,) = shared.primary.requests
    assert (200, "direct", f"{model}/upstream-{model}") == mode_and_server(reply)
    assert ("/v1/messages", PRIMARY_KEY, None) == (seen.path, seen.header("x-api-key"), seen.header("authorization"))
    assert ("2023-06-01", "b") == (seen.header("anthropic-version"), seen.header("anthropic-beta"))
    assert b"hello" in reply.body
    assert (b"message_stop" in reply.body) is stream


# -- bodies ----------------------------------------------------------------------------------------------------------

AWKWARD_BODY = (
    b' {\r\n "temperature" : 1.0e+2 ,"n":12345678901234567890123 , "z": -0.0, "seed":9007199254740993,\t'
    b'"messages":[ {"role":"user","content":"caf\\u00e9 \\ud83d\\ude00 \xc3\xa9 \\/ \\"model\\": \\"large\\""} ],'
    b'"metadata": {"model": "inner", "x": ["model", {"model":"large"}]},\n "b":1, "a":2, "b":3,'
    b'\n"model"\t: \r\n"large" , "last":null}\n\n'
)


@pytest.mark.parametrize("attempts", [1, 2])
def test_only_the_models_value_changes_in_a_body(shared: Shared, attempts: int) -> None:
    """White space, key order, escapes, odd numbers, double keys and nested models stay, in every attempt."""
    shared.primary.script(ok() if attempts == 1 else error(503))

    reply = shared.gateway.post("/v1/chat/completions", body=AWKWARD_BODY)

    assert (200, str(attempts)) == (reply.status, reply.header("x-gateway-attempts"))
    for wall, name in ((shared.primary, b"upstream-a"), (shared.fallback, b"upstream-b")):
        for seen in wall.requests:
            assert AWKWARD_BODY.replace(b'\n"model"\t: \r\n"large"', b'\n"model"\t: \r\n"%b"' % name) == seen.body
            assert str(len(seen.body)) == seen.header("content-length")
    assert [1, attempts - 1] == [shared.primary.count(), shared.fallback.count()]


def test_a_body_without_a_change_is_sent_as_it_came(shared: Shared) -> None:
    """A pattern whose target keeps the name leaves the bytes alone, an escaped model name included."""
    body = b'{"model":"gpt-\\u0031", "x" : [1,2 ]}'

    reply = shared.gateway.post("/v1/chat/completions", body=body)

    assert (200, body) == (reply.status, shared.primary.requests[0].body)


def test_a_body_of_20_mib_is_rewritten_and_passed(shared: Shared) -> None:
    """Images in a prompt are large."""
    body = big_body("direct", 20 * MIB)

    reply = shared.gateway.post("/v1/chat/completions", body=body)

    assert (200, "direct") == (reply.status, reply.header("x-gateway-route-mode"))
    assert body.replace(b'"direct"', b'"upstream-a"') == shared.primary.requests[0].body


def test_a_caller_that_waits_for_100_continue_is_told_to_go_on(shared: Shared) -> None:
    """As curl does before a large body."""
    body = big_body("direct", MIB)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {len(body)}\r\n"
    with Call(shared.gateway.url, timeout_s=5) as call:
        call.send_raw(head.encode() + b"\r\n")
        assert 100 == call.read_head()
        call.send_raw(body)
        assert 200 == call.read_head()
    assert body.replace(b'"direct"', b'"upstream-a"') == shared.primary.requests[0].body


def test_a_body_of_5_mib_fails_over_whole(shared: Shared) -> None:
    """The second attempt sends all of it again, under the other target's name."""
    body = big_body("large", 5 * MIB)
    shared.primary.script(error(503))

    reply = shared.gateway.post("/v1/chat/completions", body=body)

    assert (200, "provider_failover", "b/upstream-b") == mode_and_server(reply)
    assert body.replace(b'"large"', b'"upstream-a"') == shared.primary.requests[0].body
    assert body.replace(b'"large"', b'"upstream-b"') == shared.fallback.requests[0].body


def big_body(model: str, size_bytes: int) -> bytes:
    """Return a chat request with the model at its end, behind so much content."""
    return b'{"messages":[{"role":"user","content":"%b"}],"model":"%b"}' % (b"x" * size_bytes, model.encode())


def test_an_answer_of_20_mib_arrives_whole(shared: Shared) -> None:
    """Unary answers are not held."""
    picture = orjson.dumps({"data": [{"b64_json": "A" * (20 * MIB)}]})
    shared.primary.script(answer(200, picture))

    reply = shared.gateway.post("/v1/images/generations", {"model": "direct", "prompt": "x"})

    assert (200, "clean", len(picture)) == (reply.status, reply.ended, len(reply.body))
    assert picture == reply.body
