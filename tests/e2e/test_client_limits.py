"""A client's limits through the real gateway: what it may ask for, what it is told, and that others notice nothing."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from tests.e2e.conftest import GatewayFactory, Shared
from tests.support import http1
from tests.support.gateway import Gateway, two_providers
from tests.support.http1 import Call
from tests.support.wall import Wall, silence

PATH = "/v1/chat/completions"
BODY = {"model": "demo-primary", "messages": []}


def client(name: str, **limits: Any) -> dict[str, Any]:
    """Write a client whose token is its name."""
    return {"name": name, "token_sha256": hashlib.sha256(name.encode()).hexdigest()} | limits


@pytest.fixture(scope="module")
def module_gateway(module_gateway_factory: GatewayFactory, module_primary: Wall, module_fallback: Wall) -> Gateway:
    """Know a client of few requests, one of few at a time, and one without limits."""
    config = two_providers(module_primary, module_fallback)
    few, narrow = client("few", requests_per_minute=2), client("narrow", concurrent_requests=1)
    old = client("replaced", expires="2020-01-01T00:00:00Z")
    return module_gateway_factory(config | {"clients": [few, narrow, old, client("free")]})


def ask(gateway: Gateway, name: str) -> http1.Reply:
    return gateway.post(PATH, BODY, headers={"authorization": f"Bearer {name}"})


def test_a_client_beyond_its_minute_is_told_when_to_come_back(shared: Shared) -> None:
    replies = [ask(shared.gateway, "few") for _ in range(3)]

    assert [200, 200, 429] == [reply.status for reply in replies]
    assert "client_rate_limited" == replies[2].json["error"]["code"]
    assert 1 <= int(replies[2].header("retry-after") or 0) <= 30
    assert 200 == ask(shared.gateway, "free").status
    assert 3 == len(shared.primary.requests)


def test_a_client_has_only_so_many_requests_under_way(shared: Shared) -> None:
    """The one that ends makes room for the next, also when its caller just leaves."""
    shared.primary.script(silence())
    with Call(shared.gateway.url + PATH) as first:
        first.send("POST", {"authorization": "Bearer narrow"}, b'{"model":"demo-primary","messages":[]}')
        shared.primary.wait_for(1)
        assert (429, "1") == ((refused := ask(shared.gateway, "narrow")).status, refused.header("retry-after"))
        first.leave()
    shared.primary.reset()

    shared.gateway.wait_until(lambda: ask(shared.gateway, "narrow").status == 200, "room for another request", 5)


def test_a_client_that_asks_one_after_the_other_stays_within_one_at_a_time(shared: Shared) -> None:
    """Envoy tells of a request's end a moment after its caller has the answer."""
    shared.gateway.wait_until(lambda: ask(shared.gateway, "narrow").status == 200, "room for a request", 5)

    assert {200} == {ask(shared.gateway, "narrow").status for _ in range(20)}


def test_a_token_that_expired_is_refused(shared: Shared) -> None:
    assert (401, "invalid_api_key") == (
        (reply := ask(shared.gateway, "replaced")).status,
        reply.json["error"]["code"],
    )


def test_the_client_s_name_is_in_the_access_log_and_its_token_is_not(shared: Shared) -> None:
    assert "free" == shared.gateway.logged(ask(shared.gateway, "free"))["client"]
