"""Who serves when several could: targets that have become slow, and sessions that stay where they were."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.e2e.conftest import GatewayFactory, Shared
from tests.support.gateway import Gateway, provider
from tests.support.http1 import Reply
from tests.support.wall import Wall, ok, rate_limited

SLOW_S = 0.5
BASELINE = 60
"""Streams until both targets know their usual time to first token."""
SESSIONS = 6


@pytest.fixture(scope="module")
def module_gateway(module_gateway_factory: GatewayFactory, module_primary: Wall, module_fallback: Wall) -> Gateway:
    """Share every model out evenly between the two walls."""
    return module_gateway_factory(config(module_primary, module_fallback))


def config(primary: Wall, fallback: Wall) -> dict[str, Any]:
    accounts = ("slowed", "steady", "a", "b", "c", "d")
    walls = dict(zip(accounts, (primary, fallback) * 3, strict=True))
    models: dict[str, Any] = {
        "shared": {"targets": targets("slowed", "steady")},
        "by-header": {"targets": targets("a", "b"), "affinity": {"header": "x-session-id", "ttl": "10m"}},
        "by-body": {"targets": targets("c", "d"), "affinity": {"body": "user", "ttl": "10m"}},
    }
    return {"schema": 1, "providers": {name: provider(wall) for name, wall in walls.items()}, "models": models}


def targets(*names: str) -> list[dict[str, Any]]:
    return [{"provider": name, "model": f"upstream-{name}"} for name in names]


def server(reply: Reply) -> str:
    """Return the account that answered well."""
    assert (200, "clean") == (reply.status, reply.ended)
    return (reply.header("x-gateway-served-by") or "").partition("/")[0]


# -- slowness --------------------------------------------------------------------------------------------------------


def streams(gateway: Gateway, times: int) -> Counter[str]:
    """Return who served so many streams."""
    return Counter(server(gateway.chat("shared", stream=True)) for _ in range(times))


def is_in(gateway: Gateway, state: str) -> bool:
    return gateway.metric("gateway_target_state", subject="slowed/upstream-slowed", state=state) == 1


def test_a_target_that_becomes_slow_loses_share_and_regains_it(shared: Shared) -> None:
    """From a half to a third, and after half a minute of quick answers back to a half."""
    assert {"slowed": BASELINE // 2, "steady": BASELINE // 2} == pytest.approx(streams(shared.gateway, BASELINE), abs=3)

    shared.primary.script(ok(first_delay_s=SLOW_S))
    shared.gateway.wait_until(
        lambda: streams(shared.gateway, 1) and is_in(shared.gateway, "degraded"), "the slow target is degraded", 30
    )
    shared.primary.script(ok())
    assert 14 <= streams(shared.gateway, 60)["slowed"] <= 26

    shared.gateway.wait_until(lambda: is_in(shared.gateway, "healthy"), "the target is healthy again", 60)
    assert 27 <= streams(shared.gateway, 60)["slowed"] <= 33


# -- sessions --------------------------------------------------------------------------------------------------------


def ask(gateway: Gateway, model: str, session: str) -> str:
    """Ask as a session, wait until the gateway knows who served it, and return that."""
    before = gateway.metric("gateway_requests_total")
    if model == "by-header":
        body = {"model": model, "messages": []}
        reply = gateway.post("/v1/chat/completions", body, headers={"x-session-id": session})
    else:
        reply = gateway.chat(model, user=session)
    gateway.wait_until(lambda: gateway.metric("gateway_requests_total") > before, "the request is counted")
    return server(reply)


@pytest.mark.parametrize("model", ["by-header", "by-body"])
def test_a_session_stays_on_the_target_that_served_it(shared: Shared, model: str) -> None:
    """Other sessions are on the other target, so it is no coincidence."""
    sessions = [f"session-{number}" for number in range(SESSIONS)]
    firsts = {session: ask(shared.gateway, model, session) for session in sessions}

    again = [{session: ask(shared.gateway, model, session) for session in sessions} for _ in range(4)]

    assert [firsts] * 4 == again
    assert 2 == len(set(firsts.values()))


def test_a_session_moves_when_its_target_cools(gateway_factory: GatewayFactory, primary: Wall, fallback: Wall) -> None:
    """The request that finds out fails over; the next ones go at once to where the prompt is cached now."""
    gateway = gateway_factory(config(primary, fallback))
    home = {ask(gateway, "by-header", name): name for name in ("one", "two", "three")}
    primary.script([rate_limited(retry_after=60), ok()])
    asked = primary.count()

    moved = [ask(gateway, "by-header", home["a"]) for _ in range(4)]

    assert ["b"] * 4 == moved
    assert 1 == primary.count() - asked
