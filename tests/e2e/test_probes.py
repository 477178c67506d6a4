"""A half-open target gets one live request at a time, although Envoy follows plans that were made earlier."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.e2e.conftest import GatewayFactory
from tests.support.gateway import Gateway, provider
from tests.support.wall import Wall, error, ok, silence

AT_ONCE = 6


def config(**walls: Wall) -> dict[str, Any]:
    """Build a model whose targets are these walls, in order, and one model more for each by itself."""
    targets = [{"provider": name, "model": "upstream", "tier": tier} for tier, name in enumerate(walls)]
    return {
        "schema": 1,
        "providers": {name: provider(wall) for name, wall in walls.items()},
        "models": {"all": {"targets": targets}}
        | {f"only-{name}": {"targets": [target]} for name, target in zip(walls, targets, strict=True)},
        "policies": {"default": {"first_byte_timeout": "500ms", "same_target": {"max": 0}}},
    }


def is_probing(gateway: Gateway, subject: str) -> bool:
    found = (name for name, value in gateway.metrics("gateway_target_state").items() if value == 1.0)
    return any(f'subject="{subject}"' in name and 'state="probing"' in name for name in found)


def test_silent_failures_of_many_requests_do_not_all_probe_the_same_target(
    gateway_factory: GatewayFactory, primary: Wall, fallback: Wall
) -> None:
    """Each plan was made while the second target was half-open; all are carried out at the same moment."""
    with Wall() as third:
        gateway = gateway_factory(config(first=primary, second=fallback, third=third))
        fallback.script([error(429, headers={"retry-after": "1"}), ok(first_delay_s=0.3)])
        assert 429 == gateway.chat("only-second").status
        gateway.wait_until(lambda: is_probing(gateway, "second/upstream"), "the end of the cooldown")
        primary.script(silence())
        with ThreadPoolExecutor(AT_ONCE) as pool:
            replies = list(pool.map(lambda _: gateway.chat("all"), range(AT_ONCE)))
        served = Counter(reply.header("x-gateway-served-by") for reply in replies)
        assert ({"third/upstream": AT_ONCE}, 1) == (served, fallback.count())
