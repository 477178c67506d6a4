"""The executable proof: the first provider says 429, the caller gets 200 from another model of another provider.

Runs alone: two fake OpenAI-compatible providers, the installed gateway, the real Envoy.
"""

from __future__ import annotations

from tests.support.gateway import PLANTED_KEYS, Gateway
from tests.support.wall import Wall, ok, rate_limited


def test_a_429_of_the_first_provider_is_answered_by_the_fallback_model(
    gateway: Gateway, primary: Wall, fallback: Wall
) -> None:
    """Status, words, headers, both providers' view and the access log agree on what happened."""
    primary.script(rate_limited())
    fallback.script(ok("served by the fallback"))

    reply = gateway.chat("demo-primary")

    assert 200 == reply.status
    assert "served by the fallback" == reply.text
    assert "model_fallback" == reply.header("x-gateway-route-mode")
    assert "fallback/demo-fallback-upstream" == reply.header("x-gateway-served-by")
    assert "2" == reply.header("x-gateway-attempts")

    (refused,) = primary.requests
    (served,) = fallback.requests
    assert ("/v1/chat/completions", "demo-primary-upstream") == (refused.path, refused.json["model"])
    assert ("/v1/chat/completions", "demo-fallback-upstream") == (served.path, served.json["model"])
    assert refused.json["messages"] == served.json["messages"] == [{"role": "user", "content": "hi"}]
    assert f"Bearer {PLANTED_KEYS['PRIMARY_KEY']}" == refused.header("authorization")
    assert f"Bearer {PLANTED_KEYS['FALLBACK_KEY']}" == served.header("authorization")

    row = gateway.logged(reply)
    assert {
        "status": 200,
        "model": "demo-primary",
        "route_mode": "model_fallback",
        "served_by": "fallback/demo-fallback-upstream",
        "served_model": "demo-fallback",
        "classes": ["rate_limited"],
        "attempts": 2,
    }.items() <= row.items()


def test_the_next_request_does_not_ask_the_provider_that_said_429(
    gateway: Gateway, primary: Wall, fallback: Wall
) -> None:
    """The target cools, so the fallback serves in the first attempt."""
    primary.script(rate_limited(retry_after=30))
    gateway.chat("demo-primary")

    reply = gateway.chat("demo-primary")

    assert (200, "model_fallback", "1") == (
        reply.status,
        reply.header("x-gateway-route-mode"),
        reply.header("x-gateway-attempts"),
    )
    assert (1, 2) == (primary.count(), fallback.count())


def test_a_healthy_first_provider_serves_directly(gateway: Gateway, primary: Wall, fallback: Wall) -> None:
    """Without a failure there is no fallback: the same gateway, the ordinary case."""
    reply = gateway.chat("demo-primary")

    assert (200, "direct", "primary/demo-primary-upstream", "1") == (
        reply.status,
        reply.header("x-gateway-route-mode"),
        reply.header("x-gateway-served-by"),
        reply.header("x-gateway-attempts"),
    )
    assert (1, 0) == (primary.count(), fallback.count())
