"""Active checks of a self-hosted provider, through real Envoy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.support.gateway import Gateway, two_providers
from tests.support.wall import Seen, Wall, answer, error, ok

CHECK = {"path": "/health", "interval": "100ms", "timeout": "100ms"}


def checked(primary: Wall, fallback: Wall, **policy: Any) -> dict[str, Any]:
    config = two_providers(primary, fallback, cooldown={"base": "1s", "max": "1s"}, **policy)
    config["providers"]["primary"]["health_check"] = CHECK
    return config


def state(gateway: Gateway, subject: str, name: str) -> bool:
    return gateway.metric("gateway_target_state", subject=subject, state=name) == 1.0


def health_answer(good: bool) -> Callable[[Seen], Any]:
    def behave(seen: Seen) -> Any:
        if seen.path == "/health":
            return answer(200, b"fine") if good else error(503)
        return ok()

    return behave


def test_a_failing_check_takes_the_provider_out_before_a_request_fails(
    primary: Wall, fallback: Wall, gateway_factory: Callable[..., Gateway]
) -> None:
    primary.script(health_answer(good=False))
    gateway = gateway_factory(checked(primary, fallback))
    gateway.wait_until(lambda: state(gateway, "primary", "cooling"), "the provider cools", 10)
    primary.reset()
    primary.script(health_answer(good=False))

    reply = gateway.chat("demo-primary")

    assert (reply.status, reply.header("x-gateway-route-mode")) == (200, "model_fallback")
    assert primary.count("chat/completions") == 0


def test_passing_checks_bring_the_provider_back(
    primary: Wall, fallback: Wall, gateway_factory: Callable[..., Gateway]
) -> None:
    primary.script(health_answer(good=False))
    gateway = gateway_factory(checked(primary, fallback))
    gateway.wait_until(lambda: state(gateway, "primary", "cooling"), "the provider cools", 10)
    primary.script(health_answer(good=True))

    gateway.wait_until(lambda: state(gateway, "primary", "degraded"), "the provider recovers", 10)


def test_a_passing_check_never_lifts_a_quota_cooldown(
    primary: Wall, fallback: Wall, gateway_factory: Callable[..., Gateway]
) -> None:
    def out_of_quota(seen: Seen) -> Any:
        if seen.path == "/health":
            return answer(200, b"fine")
        return error(429, code="insufficient_quota", type="insufficient_quota")

    primary.script(out_of_quota)
    gateway = gateway_factory(checked(primary, fallback))
    assert gateway.chat("demo-primary").status == 200
    checks = primary.count("/health")

    gateway.wait_until(lambda: primary.count("/health") >= checks + 5, "five more checks pass", 10)

    assert state(gateway, "primary", "cooling")


def test_checks_carry_the_providers_key_and_no_internal_header(
    primary: Wall, fallback: Wall, gateway_factory: Callable[..., Gateway]
) -> None:
    primary.script(health_answer(good=True))
    gateway_factory(checked(primary, fallback))
    primary.wait_for(1)

    seen = primary.requests[0]

    assert seen.header("authorization") == "Bearer sk-planted-primary-0123456789abcdef"
    assert [name for name, _ in seen.headers if name.startswith(("x-gateway-", "x-envoy-"))] == []
