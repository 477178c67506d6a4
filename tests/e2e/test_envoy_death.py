"""When Envoy is killed, what it had under way is forgotten: clients and provider accounts have their places back."""

from __future__ import annotations

import hashlib
import os
import signal
import sqlite3
from contextlib import ExitStack

import pytest

from tests.e2e.conftest import GatewayFactory
from tests.support import http1
from tests.support.gateway import Gateway, two_providers
from tests.support.http1 import Call
from tests.support.wall import Wall, silence

PATH = "/v1/chat/completions"
PLACES = 2
TOKEN = {"authorization": "Bearer narrow"}
BACK_S = 30.0


def ask(gateway: Gateway) -> http1.Reply:
    return gateway.post(PATH, {"model": "demo-primary", "messages": []}, headers=TOKEN)


@pytest.mark.parametrize("transport", ["fast", "grpcio"])
def test_the_requests_of_a_killed_envoy_give_their_places_back_and_are_in_the_ledger_as_lost(
    gateway_factory: GatewayFactory, primary: Wall, fallback: Wall, transport: str
) -> None:
    """All places of the client and of the account are taken when Envoy dies, and free with the next one."""
    config = two_providers(primary, fallback)
    config["providers"]["primary"]["limits"] = {"max_connections": PLACES - 1, "max_pending": 1}
    token = hashlib.sha256(b"narrow").hexdigest()
    config["clients"] = [{"name": "narrow", "token_sha256": token, "concurrent_requests": PLACES}]
    gateway = gateway_factory(config, arguments=("--transport", transport))
    assert 200 == ask(gateway).status
    gateway.wait_until(lambda: gateway.metric("gateway_requests_in_flight") == 0, "the first request's end")
    primary.script(silence())
    with ExitStack() as calls:
        for _ in range(PLACES):
            call = calls.enter_context(Call(gateway.url + PATH))
            call.send("POST", TOKEN, b'{"model":"demo-primary","messages":[]}')
        gateway.wait_until(lambda: gateway.metric("gateway_requests_in_flight") == PLACES, "requests under way")
        killed = gateway.pids().envoy
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        gateway.wait_until(lambda: gateway.pids().envoy not in (None, killed), "another Envoy", BACK_S)
        gateway.wait_until(lambda: _is_ready(gateway), "readiness", BACK_S)
    primary.reset()

    assert (200, "direct") == ((reply := ask(gateway)).status, reply.header("x-gateway-route-mode"))
    gateway.wait_until(lambda: gateway.metric("gateway_requests_in_flight") == 0, "nothing under way")
    gateway.wait_until(lambda: _outcomes(gateway) == ["lost"] * PLACES + ["served"] * 2, "rows in the ledger")


def _is_ready(gateway: Gateway) -> bool:
    try:
        return gateway.get("/readyz").status == 200
    except OSError:
        return False


def _outcomes(gateway: Gateway) -> list[str]:
    with sqlite3.connect(gateway.data_dir / "requests.db") as rows:
        return sorted(outcome for (outcome,) in rows.execute("SELECT outcome FROM requests"))
