"""What a provider's `limits` do to traffic: requests beyond them go to another target, and none is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.conftest import GatewayFactory
from tests.support.gateway import Gateway, provider, two_providers
from tests.support.http1 import Reply
from tests.support.wall import Wall, ok, reset, silence

NARROW = {"max_connections": 1, "max_pending": 1}
AT_ONCE = 6


@pytest.fixture
def callers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield pool


def narrow_primary(primary: Wall, fallback: Wall) -> dict[str, Any]:
    """Let the primary have one request on its connection and one that waits for it."""
    config = two_providers(primary, fallback)
    config["providers"]["primary"] = provider(primary, "PRIMARY_KEY", limits=NARROW)
    return config


def ask(callers: ThreadPoolExecutor, gateway: Gateway, count: int = AT_ONCE) -> list[Future[Reply]]:
    """Send requests at the same time."""
    return [callers.submit(gateway.chat, "demo-primary") for _ in range(count)]


def results(asked: list[Future[Reply]]) -> Counter[tuple[int, str | None]]:
    """Count what callers got: status and route mode."""
    replies = [one.result() for one in asked]
    return Counter((reply.status, reply.header("x-gateway-route-mode")) for reply in replies)


def test_requests_beyond_a_provider_s_limits_are_served_by_the_next_target(
    gateway_factory: GatewayFactory, primary: Wall, fallback: Wall, callers: ThreadPoolExecutor
) -> None:
    """One on its connection and one waiting for it; Envoy would have answered the others 503 without another try."""
    config = narrow_primary(primary, fallback)
    gateway = gateway_factory(config)
    primary.script(ok(first_delay_s=1.0))
    got = results(ask(callers, gateway))
    assert {(200, "direct"): 2, (200, "model_fallback"): AT_ONCE - 2} == got


def test_a_provider_has_room_again_once_its_requests_have_ended(
    gateway_factory: GatewayFactory, primary: Wall, fallback: Wall, callers: ThreadPoolExecutor
) -> None:
    config = narrow_primary(primary, fallback)
    gateway = gateway_factory(config)
    primary.script(ok(first_delay_s=0.3))
    results(ask(callers, gateway))
    gateway.wait_until(
        lambda: "direct" == gateway.chat("demo-primary").header("x-gateway-route-mode"), "the primary's turn"
    )


def test_requests_that_only_a_full_provider_can_serve_wait_for_it(
    gateway_factory: GatewayFactory, primary: Wall, fallback: Wall, callers: ThreadPoolExecutor
) -> None:
    config = narrow_primary(primary, fallback)
    del config["models"]["demo-primary"]["fallback"]
    gateway = gateway_factory(config)
    primary.script(ok(first_delay_s=0.1))
    assert {(200, "direct"): AT_ONCE} == results(ask(callers, gateway))


@pytest.mark.parametrize("failure", [reset(), silence()], ids=["reset", "silence"])
def test_requests_that_fail_over_without_a_word_are_not_lost_at_a_narrow_fallback(
    gateway_factory: GatewayFactory, primary: Wall, fallback: Wall, callers: ThreadPoolExecutor, failure: object
) -> None:
    """Their plans were made while the fallback was free, and Envoy follows them without asking."""
    config = two_providers(primary, fallback, first_byte_timeout="700ms")
    config["providers"]["fallback"] = provider(fallback, "FALLBACK_KEY", limits=NARROW)
    gateway = gateway_factory(config)
    primary.script(failure)  # type: ignore[arg-type]
    fallback.script(ok(first_delay_s=0.1))
    assert {(200, "model_fallback"): AT_ONCE} == results(ask(callers, gateway))


def test_failovers_to_a_slow_provider_are_not_held_up_by_the_narrow_one_that_failed(
    gateway_factory: GatewayFactory, primary: Wall, fallback: Wall, callers: ThreadPoolExecutor
) -> None:
    """Envoy counts a retry where the first attempt failed, until the next one has ended elsewhere."""
    config = two_providers(primary, fallback, cooldown={"consecutive": 1000, "failure_ratio": 1.0})
    config["providers"]["primary"] = provider(primary, "PRIMARY_KEY", limits={"max_connections": 2, "max_pending": 1})
    gateway = gateway_factory(config)
    primary.script(reset())
    fallback.script(ok(first_delay_s=1.0))
    assert {200: AT_ONCE} == Counter(one.result().status for one in ask(callers, gateway))
