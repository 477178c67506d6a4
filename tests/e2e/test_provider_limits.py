"""What a provider's `limits` do to traffic: requests beyond them go to another target, and none is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.conftest import GatewayFactory, Shared
from tests.support.gateway import Gateway, provider
from tests.support.http1 import Reply
from tests.support.wall import Wall, ok, reset, silence

NARROW = {"max_connections": 1, "max_pending": 1}
WIDER = {"max_connections": 2, "max_pending": 1}
FAULTS = {"reset": reset(), "silence": silence()}
AT_ONCE = 6


@pytest.fixture
def callers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield pool


def pair(name: str, first: Wall, second: Wall, limits: tuple[Any, Any], **model: Any) -> dict[str, Any]:
    """Build a model `name` whose provider falls back to another one; each has its own limits, or None."""
    accounts = {
        f"{name}-{who}": provider(wall, limits=bounds) if bounds else provider(wall)
        for who, wall, bounds in zip(("first", "second"), (first, second), limits, strict=True)
    }
    models = {
        name: {"targets": [{"provider": f"{name}-first", "model": "upstream"}], "fallback": [f"{name}-spare"]} | model,
        f"{name}-spare": {"targets": [{"provider": f"{name}-second", "model": "upstream"}]} | model,
    }
    return {"providers": accounts, "models": models}


@pytest.fixture(scope="module")
def module_gateway(module_gateway_factory: GatewayFactory, module_primary: Wall, module_fallback: Wall) -> Gateway:
    """Give each test a pair of accounts of its own."""
    walls = module_primary, module_fallback
    pairs = [pair(name, *walls, (NARROW, None)) for name in ("beyond", "room")]
    pairs += [pair(f"silent-{fault}", *walls, (None, NARROW), policy="hasty") for fault in FAULTS]
    pairs += [pair("alone", *walls, (NARROW, None)), pair("slow", *walls, (WIDER, None), policy="patient")]
    config: dict[str, Any] = {"schema": 1, "providers": {}, "models": {}}
    for one in pairs:
        config["providers"] |= one["providers"]
        config["models"] |= one["models"]
    del config["models"]["alone"]["fallback"]
    patient = {"cooldown": {"consecutive": 1000, "failure_ratio": 1.0}}
    policies = {"default": {}, "hasty": {"first_byte_timeout": "700ms"}, "patient": patient}
    return module_gateway_factory(config | {"policies": policies})


def ask(callers: ThreadPoolExecutor, gateway: Gateway, model: str) -> list[Future[Reply]]:
    """Send requests at the same time."""
    return [callers.submit(gateway.chat, model) for _ in range(AT_ONCE)]


def results(asked: list[Future[Reply]]) -> Counter[tuple[int, str | None]]:
    """Count what callers got: status and route mode."""
    replies = [one.result() for one in asked]
    return Counter((reply.status, reply.header("x-gateway-route-mode")) for reply in replies)


def test_requests_beyond_a_provider_s_limits_are_served_by_the_next_target(
    shared: Shared, callers: ThreadPoolExecutor
) -> None:
    """One on its connection and one waiting for it; Envoy would have answered the others 503 without another try."""
    shared.primary.script(ok(first_delay_s=1.0))
    got = results(ask(callers, shared.gateway, "beyond"))
    assert {(200, "direct"): 2, (200, "model_fallback"): AT_ONCE - 2} == got


def test_a_provider_has_room_again_once_its_requests_have_ended(shared: Shared, callers: ThreadPoolExecutor) -> None:
    gateway = shared.gateway
    shared.primary.script(ok(first_delay_s=0.3))
    results(ask(callers, gateway, "room"))
    gateway.wait_until(lambda: "direct" == gateway.chat("room").header("x-gateway-route-mode"), "the primary's turn")


def test_requests_that_only_a_full_provider_can_serve_wait_for_it(shared: Shared, callers: ThreadPoolExecutor) -> None:
    shared.primary.script(ok(first_delay_s=0.1))
    assert {(200, "direct"): AT_ONCE} == results(ask(callers, shared.gateway, "alone"))


@pytest.mark.parametrize("fault", FAULTS)
def test_requests_that_fail_over_without_a_word_are_not_lost_at_a_narrow_fallback(
    shared: Shared, callers: ThreadPoolExecutor, fault: str
) -> None:
    """Their plans were made while the fallback was free, and Envoy follows them without asking."""
    shared.primary.script(FAULTS[fault])
    shared.fallback.script(ok(first_delay_s=0.1))
    assert {(200, "model_fallback"): AT_ONCE} == results(ask(callers, shared.gateway, f"silent-{fault}"))


def test_failovers_to_a_slow_provider_are_not_held_up_by_the_narrow_one_that_failed(
    shared: Shared, callers: ThreadPoolExecutor
) -> None:
    """Envoy counts a retry where the first attempt failed, until the next one has ended elsewhere."""
    shared.primary.script(reset())
    shared.fallback.script(ok(first_delay_s=1.0))
    assert {200: AT_ONCE} == Counter(one.result().status for one in ask(callers, shared.gateway, "slow"))
