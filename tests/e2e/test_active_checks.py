"""Active checks of a self-hosted provider, through real Envoy; each case has a wall of its own in one gateway."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest

from tests.e2e.conftest import GatewayFactory
from tests.support.gateway import Gateway, provider
from tests.support.wall import Seen, Wall, answer, error, ok

CHECK = {"path": "/health", "interval": "100ms", "timeout": "100ms"}
CASES = ("fails", "recovers", "spent", "carries")


class Checked(NamedTuple):
    """One gateway, and the wall behind each case's provider and model."""

    gateway: Gateway
    walls: Mapping[str, Wall]


@pytest.fixture(scope="module")
def checked(module_gateway_factory: GatewayFactory, module_fallback: Wall) -> Iterator[Checked]:
    """Start the gateway; two of the walls are ill from the first check on."""
    with ExitStack() as stack:
        walls = {name: stack.enter_context(Wall()) for name in CASES}
        for name in CASES:
            walls[name].script(health_answer(good=name not in ("fails", "recovers")))
        providers = {name: provider(walls[name], "PRIMARY_KEY", health_check=CHECK) for name in CASES}
        models: dict[str, Any] = {
            name: {"targets": [{"provider": name, "model": "upstream"}], "fallback": ["rescue"]} for name in CASES
        }
        config = {
            "schema": 1,
            "providers": providers | {"fallback": provider(module_fallback)},
            "models": models | {"rescue": {"targets": [{"provider": "fallback", "model": "upstream"}]}},
            "policies": {"default": {"cooldown": {"base": "1s", "max": "1s"}}},
        }
        yield Checked(module_gateway_factory(config), walls)


def is_in(gateway: Gateway, subject: str, state: str) -> bool:
    return gateway.metric("gateway_target_state", subject=subject, state=state) == 1.0


def health_answer(good: bool) -> Callable[[Seen], Any]:
    def behave(seen: Seen) -> Any:
        if seen.path == "/health":
            return answer(200, b"fine") if good else error(503)
        return ok()

    return behave


def test_a_failing_check_takes_the_provider_out_before_a_request_fails(checked: Checked) -> None:
    gateway, wall = checked.gateway, checked.walls["fails"]
    gateway.wait_until(lambda: is_in(gateway, "fails", "cooling"), "the provider cools", 10)

    reply = gateway.chat("fails")

    assert (200, "model_fallback") == (reply.status, reply.header("x-gateway-route-mode"))
    assert 0 == wall.count("chat/completions")


def test_passing_checks_bring_the_provider_back(checked: Checked) -> None:
    gateway = checked.gateway
    gateway.wait_until(lambda: is_in(gateway, "recovers", "cooling"), "the provider cools", 10)

    checked.walls["recovers"].script(health_answer(good=True))

    gateway.wait_until(lambda: is_in(gateway, "recovers", "degraded"), "the provider recovers", 10)


def test_a_passing_check_never_lifts_a_quota_cooldown(checked: Checked) -> None:
    def out_of_quota(seen: Seen) -> Any:
        if seen.path == "/health":
            return answer(200, b"fine")
        return error(429, code="insufficient_quota", type="insufficient_quota")

    gateway, wall = checked.gateway, checked.walls["spent"]
    wall.script(out_of_quota)
    assert 200 == gateway.chat("spent").status
    checks = wall.count("/health")

    gateway.wait_until(lambda: wall.count("/health") >= checks + 5, "five more checks pass", 10)

    assert is_in(gateway, "spent", "cooling")


def test_checks_carry_the_providers_key_and_no_internal_header(checked: Checked) -> None:
    seen, *_ = checked.walls["carries"].wait_for(1)

    assert "Bearer sk-planted-primary-0123456789abcdef" == seen.header("authorization")
    assert [] == [name for name, _ in seen.headers if name.startswith(("x-gateway-", "x-envoy-"))]
